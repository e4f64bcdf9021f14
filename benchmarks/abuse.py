"""The cost of peers that do not read their answers, that search in vain, or that are connected and idle.

One server, and connections of this process that speak frames themselves. Some ask for large results and read no answer, while
the benchmark watches the server's memory. Some list jobs by a filter that admits none, while it times another client's `stat`.
And workers with their own names are connected and idle, while it measures the server's CPU.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import harness
from harness import Figure, Option

from givalia_core import Busy
from givalia_core.protocol import messages as m
from givalia_core.protocol.caller import Answer, Caller, Told
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import Kind

TITLE = "Abuse"
OPTIONS = (
    Option("waiters", 10, "connections that wait for a large result and never read"),
    Option("waits", 3_000, "waits of each"),
    Option("askers", 190, "connections that ask for large results and never read"),
    Option("stats", 8, "frames of four STAT that each sends"),
    Option("listers", 20, "connections that list jobs in vain"),
    Option("lists", 8, "lists that each asks for at once"),
    Option("waiting", 100_000, "jobs that wait while they do"),
    Option("workers", 190, "idle workers, each with a name of its own"),
    Option("enqs", 1_500, "jobs enqueued beside the idle workers, one at a time"),
    Option("seconds", 5.0, "how long each is watched"),
    Option("repeats", 1, "rounds, each on a fresh store; the medians are shown"),
)
WATCH_S = 0.02


class Wire:
    """A connection that speaks frames and reads only when told to."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((harness.HOST, port), timeout=10)
        self.caller = Caller()
        self.socket.sendall(self.caller.hello("abuse"))
        self.read()

    def read(self) -> Answer:
        """Return the next answer; discard all other frames."""
        while True:
            for arrived in self.receive():
                if isinstance(arrived, Answer):
                    return arrived

    def receive(self) -> list[Answer | Told]:
        """Wait until frames have arrived; return them."""
        data = self.socket.recv(1 << 20)
        if not data:
            raise harness.Broken("the server closed a connection")
        return self.caller.feed(data)

    def ask(self, kind: Kind, *messages: Any) -> None:
        """Send a frame of these messages and wait for its answer."""
        self.send(kind, *messages)
        self.read()

    def send(self, kind: Kind, *messages: Any, times: int = 1) -> None:
        """Send a frame of these messages `times` times, each under its own number."""
        packed = [item(message) for message in messages]
        data = b"".join(self.caller.ask(kind, packed)[1] for _ in range(times))
        with contextlib.suppress(OSError):  # A server that closes it has defended itself.
            self.socket.sendall(data)


def measure(**options: Any) -> list[Figure]:
    """Return the medians over the rounds."""
    repeats = options.pop("repeats")
    return harness.medians([_round(**options) for _ in range(repeats)])


def _round(
    waiters: int, waits: int, askers: int, stats: int, listers: int, lists: int, waiting: int, workers: int, enqs: int,
    seconds: float, folder: str | None = None,
) -> list[Figure]:  # fmt: skip
    return [
        _unread(f"{waiters} connections with {waits:,} waits", waiters, _Waits(waits), seconds, folder),
        _unread(f"{askers} connections with {stats} x 4 STAT", askers, _Stats(stats), seconds, folder),
        _vain(listers, lists, waiting, seconds, folder),
        *_idle(workers, enqs, seconds, folder),
    ]


class _Waits(NamedTuple):
    count: int

    def ask(self, wire: Wire, job: bytes) -> None:
        wire.send(Kind.WAIT, m.Wait(id=job), times=self.count)


class _Stats(NamedTuple):
    count: int

    def ask(self, wire: Wire, job: bytes) -> None:
        wire.send(Kind.STAT, *[m.Stat(id=job)] * 4, times=self.count)


def _unread(words: str, count: int, asked: _Waits | _Stats, seconds: float, folder: str | None) -> Figure:
    """Measure how much the server grows when `count` connections ask for a large result and read nothing."""
    with harness.Rig(1, folder) as rig:
        job = _large_job(rig)
        before = _memory(rig)
        with _crowd(rig.port, count) as crowd:
            for wire in crowd:
                asked.ask(wire, job)
            return Figure(f"{words}, memory", (_most_memory(rig, seconds) - before) / harness.MIB, "MiB", most=256)


def _vain(listers: int, lists: int, waiting: int, seconds: float, folder: str | None) -> Figure:
    """Measure the slowest enq beside listings that find nothing."""
    with harness.Rig(1, folder) as rig, rig.client() as client:
        client.enq_many([{"module": "Waiting", "time": 3_600, "params": n} for n in range(waiting)])
        with _crowd(rig.port, listers) as crowd:
            for number, wire in enumerate(crowd):
                for each in range(lists):
                    wire.send(Kind.LIST, m.List(module=f"Nobody{number}.{each}"))
            slowest = _slowest(client, seconds)
    return Figure(f"{listers} connections with {lists} vain lists, slowest enq meanwhile", slowest, "ms", most=100)


def _idle(workers: int, enqs: int, seconds: float, folder: str | None) -> list[Figure]:
    """Measure the server's CPU for idle workers, and for enqs beside them."""
    with harness.Rig(1, folder) as rig, rig.client() as client:
        alone = _cpu_us(rig, client, enqs)
        with _named_workers(rig.worker_port, workers):
            idle = harness.cpu_s(rig.server.pid)
            time.sleep(seconds)
            idle = (harness.cpu_s(rig.server.pid) - idle) / seconds
            beside = _cpu_us(rig, client, enqs)
    return [
        Figure(f"{workers} idle named workers, CPU", 100 * idle, "% of a core", most=2),
        Figure("CPU of one enq, nobody there", alone, "us"),
        Figure(f"CPU of one enq, {workers} idle named workers", beside, "us"),
    ]


def _large_job(rig: harness.Rig) -> bytes:
    """Return the id of a done job with a result of the largest allowed size."""
    worker, client = Wire(rig.worker_port), Wire(rig.port)
    job_id = os.urandom(16)
    worker.ask(Kind.JOIN, m.Join("large", os.urandom(16)))
    worker.ask(Kind.ANNOUNCE, m.Announce("Large", "d", "1"))
    worker.ask(Kind.CREDIT, m.Credit(1))
    client.ask(Kind.ENQ, m.Enq(job_id, "Large"))
    _, fence = _dispatched(worker)
    worker.ask(Kind.SUCCEED, m.Succeed(job_id, fence, payload=bytes(RESULT_BYTES_MAX)))
    worker.socket.close()
    client.socket.close()
    return job_id


def _dispatched(worker: Wire) -> tuple[bytes, int]:
    while True:
        for arrived in worker.receive():
            if not isinstance(arrived, Answer) and arrived.kind == Kind.DISPATCH:
                _, ((job_id, fence, *_), _) = arrived.items
                return job_id, fence


@contextlib.contextmanager
def _crowd(port: int, count: int) -> Iterator[list[Wire]]:
    crowd = [Wire(port) for _ in range(count)]
    try:
        yield crowd
    finally:
        for wire in crowd:
            wire.socket.close()


@contextlib.contextmanager
def _named_workers(port: int, count: int) -> Iterator[None]:
    with _crowd(port, count) as crowd:
        for number, wire in enumerate(crowd):
            modules = [m.Announce(f"Module{n}", "d", "1") for n in range(5)]
            wire.ask(Kind.JOIN, m.Join(f"worker-{number}", os.urandom(16)))
            wire.ask(Kind.ANNOUNCE, *modules)
            wire.ask(Kind.CREDIT, m.Credit(10))
        yield


def _most_memory(rig: harness.Rig, seconds: float) -> int:
    """Return the server's largest memory within this time."""
    most, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, _memory(rig))
        time.sleep(WATCH_S)
    return most


def _memory(rig: harness.Rig) -> int:
    return harness.rss_bytes(rig.server) - harness.mapped_bytes(rig.server)


def _slowest(client: harness.Client, seconds: float) -> float:
    """Return the milliseconds of the slowest of many consecutive enqs."""
    slowest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.perf_counter()
        with contextlib.suppress(Busy):
            client.enq("Canary", time=3_600)
        slowest = max(slowest, time.perf_counter() - began)
    return slowest * 1e3


def _cpu_us(rig: harness.Rig, client: harness.Client, enqs: int) -> float:
    used = harness.cpu_s(rig.server.pid)
    for _ in range(enqs):
        client.enq("Canary", time=3_600)
    return (harness.cpu_s(rig.server.pid) - used) / enqs * 1e6


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
