"""Clients that are processes of their own, so that the figures are the server's and not the client's.

Each client gets its plan as JSON, prepares all of it, reports that it is ready, and begins on command; then it prints its
result as JSON. Run as a program, this module is one of these clients.
"""

from __future__ import annotations

import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgpack

from givalia_core import Client
from givalia_core.clock import new_id
from givalia_core.protocol import frames
from givalia_core.protocol.messages import Kind
from harness.ledger import Broken
from harness.load import enq_in_frames, jobs_of, key_of, params_of
from harness.rig import HOST, MODULE, cpu_s

READY: Final = "ready"
PACE_S: Final = 0.01
_FOLDER: Final = Path(__file__).resolve().parent.parent


class Crowd:
    """One process for each plan; all of them are ready inside the `with` and gone after it."""

    def __init__(self, port: int, plans: Sequence[dict[str, Any]]) -> None:
        self._port, self._plans = port, plans
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Crowd:
        path = os.pathsep.join(filter(None, [str(_FOLDER), os.environ.get("PYTHONPATH")]))
        try:
            for plan in self._plans:
                command = [sys.executable, "-m", "harness.crowd", json.dumps({"port": self._port, **plan})]
                pipe = subprocess.PIPE
                environ = {**os.environ, "PYTHONPATH": path}
                self._children.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environ))
            for child in self._children:
                if _line_of(child) != READY:
                    raise Broken("a client did not get ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.terminate()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def begin(self) -> None:
        """Let all processes begin."""
        for child in self._children:
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()

    def results(self) -> list[dict[str, Any]]:
        """Return the results, once all are done.

        Raises:
            Broken: One of them failed, or was refused a job.
        """
        lines = [_line_of(child) for child in self._children]
        if not all(lines):
            raise Broken("a client failed; what it says is above")
        return [json.loads(line) for line in lines]

    def run(self) -> tuple[float, list[dict[str, Any]]]:
        """Let all begin and wait; return the seconds until the last was done, and their results."""
        began = time.perf_counter()
        self.begin()
        results = self.results()
        return time.perf_counter() - began, results


def _line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def shares(lines: range, count: int) -> list[tuple[int, int]]:
    """Return the lines in `count` consecutive parts: the first line of each and the one after its last."""
    cuts = [lines.start + len(lines) * part // count for part in range(count + 1)]
    return list(pairwise(cuts))


def fill(port: int, lines: range, due: dict[str, Any], clients: int = 2) -> float:
    """Enqueue a job for each line, with the key of `key_of`, by several clients; return the seconds it took."""
    same = {"do": "batches", "frame": 1_000, "in_flight": 4, "due": due}
    with Crowd(port, [{**same, "first": first, "stop": stop} for first, stop in shares(lines, clients)]) as crowd:
        return crowd.run()[0]


# The plans of a process of the crowd: each function prepares its work and returns the rest as a callable.

Work = Callable[[], dict[str, Any]]


def _batches(port: int, first: int, stop: int, frame: int, in_flight: int, due: dict[str, float]) -> Work:
    """Enqueue lines from `first` up to `stop` in batches of `frame`; the work begins when the first part is ready."""
    client = Client(HOST, port)
    part = 100_000  # The jobs that one process holds at once.
    starts = range(first, stop, part)

    def made(start: int) -> list[dict[str, Any]]:
        lines = range(start, min(start + part, stop))
        jobs = jobs_of(lines)
        return [{**job, "key": key_of(line), **_due(due)} for line, job in zip(lines, jobs, strict=True)]

    load = made(first)

    def work() -> dict[str, Any]:
        seconds, jobs = 0.0, load
        for number, start in enumerate(starts):
            if number:
                jobs = made(start)
            began = time.perf_counter()
            handles = enq_in_frames(client, jobs, frame, in_flight)
            seconds += time.perf_counter() - began
            if {handle.durability for handle in handles} != {"fsync"}:
                raise Broken("not every job was durable when it was answered")
        return {"seconds": seconds}

    return work


def _due(due: dict[str, float]) -> dict[str, float]:
    """Return the due of a job: spread evenly over some seconds, or from a base so that the waits have no memory.

    After any number of runs, the remaining waits of the second kind have the same distribution as at the start.
    """
    if "base" in due:
        return {"at": due["base"] + random.expovariate(1 / due["mean"])}
    return {"time": random.uniform(*due["between"])}


def _paced(port: int, first: int, rate: int, seconds: float) -> Work:
    """Enqueue jobs that are due now, `rate` a second, in one frame each hundredth of a second."""
    client = Client(HOST, port)
    each = round(rate * PACE_S)
    count = round(seconds / PACE_S)
    load = jobs_of(range(first, first + count * each))

    def work() -> dict[str, Any]:
        began = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, began + number * PACE_S - time.perf_counter()))
            client.enq_many(load[number * each : (number + 1) * each])
        return {"jobs": len(load), "seconds": time.perf_counter() - began}

    return work


def _together(port: int, first: int, jobs: int, connections: int, due: dict[str, float]) -> Work:
    """Enqueue one job at a time on each of many connections, the next after the answer, with as little code as possible.

    A client with a thread for each would use more CPU than the server; here all frames are made in advance.
    """
    pending = [list[bytes]() for _ in range(connections)]
    for number in range(jobs):
        lines, line = pending[number % connections], first + number
        delay_us = round(_due(due)["time"] * 1e6)
        item = ((new_id(), MODULE, delay_us, key_of(line)), msgpack.packb(params_of(line)))
        lines.append(frames.encode(Kind.ENQ, len(lines) + 2, [item]))
    for lines in pending:
        lines.reverse()  # Lines are taken off the end, the first one first.
    socks = {sock.fileno(): (sock, frames_left) for frames_left in pending for sock in [_greeted(port)]}
    poll = select.poll()
    for number in socks:
        poll.register(number, select.POLLIN)

    def work() -> dict[str, Any]:
        used, began = cpu_s(os.getpid()), time.perf_counter()
        for sock, left in socks.values():
            sock.sendall(left.pop())
        unanswered = jobs
        while unanswered:
            for number, _ in poll.poll():
                sock, left = socks[number]
                _accepted(sock)
                unanswered -= 1
                if left:
                    sock.send(left.pop())
        seconds = time.perf_counter() - began
        return {"jobs": jobs, "seconds": seconds, "cpu_s": cpu_s(os.getpid()) - used}

    return work


def _greeted(port: int) -> socket.socket:
    sock = socket.create_connection((HOST, port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(frames.MAGIC + frames.encode(Kind.HELLO, 1, [((1, 1, "bench"), b"")]))
    _accepted(sock, durable=b"")
    return sock


def _accepted(sock: socket.socket, durable: bytes = b"fsync") -> None:
    """Receive one answer, which must be an OK that ends in the class of durability."""
    answer = sock.recv(4096)
    while len(answer) < 4 or len(answer) < int.from_bytes(answer[:4]) + 4:
        more = sock.recv(4096)
        if not more:
            raise Broken("the server closed the connection")
        answer += more
    # Length, kind, request, two lengths of the item; then an array with the code as its first field.
    if answer[16:19] != b"\xa2OK" or durable not in answer[-len(b"fsync") :]:
        raise Broken(f"an enq was answered {answer[15:]!r}")


_PLANS: Final[dict[str, Callable[..., Work]]] = {"batches": _batches, "paced": _paced, "together": _together}


def _main() -> None:
    plan = json.loads(sys.argv[1])
    work = _PLANS[plan.pop("do")](**plan)
    print(READY, flush=True)
    sys.stdin.readline()
    print(json.dumps(work()), flush=True)


if __name__ == "__main__":
    _main()
