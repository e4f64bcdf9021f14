"""A contestant's client or worker as a process of its own: this one program drives all contestants.

A client reads one act a line on its standard input and answers each with a line; the client itself measures, so that no pipe
is part of a figure. A worker signs the ledger with every job. Both end with the process that started them: their input ends.

A peer's module has a class `Client` and a function `work(sign, port, **settings)`. A client has `enq(params)` and `left()`,
which counts the jobs that the peer does not count as done, and if the peer can, `enq_batches(batches)` and
`enq_at(params, due_us)`. When these return, the jobs are as safe as the peer makes them.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

Params = dict[str, Any]
Sign = Callable[[int], None]

POLL_S: Final = 0.005  # The interval in which a client polls whether all is done: 0.2 % of a load of some seconds.
BATCH: Final = 1_000
PATIENCE_S: Final = 90.0


def params_of(line: int) -> Params:
    """Return params as those of the harness, which the peers' environment lacks; some 30 bytes as JSON."""
    return {"line": line, "note": f"{line:010}"}


def ledger_lines(path: str) -> memoryview:
    """Return the ledger as numbers, three per job: its runs, its start, and one that only Givalia's jobs use."""
    with Path(path).open("r+b") as file:
        return memoryview(mmap.mmap(file.fileno(), 0)).cast("q")


def signer(path: str) -> Sign:
    """Return the function that each job calls with its line."""
    lines = ledger_lines(path)

    def sign(line: int) -> None:
        lines[3 * line + 1] = time.time_ns() // 1_000
        lines[3 * line] += 1

    return sign


class Acts:
    """The acts of a client; each returns what it measured."""

    def __init__(self, client: Any, ledger: str) -> None:
        self._client = client
        self._ledger = ledger_lines(ledger)

    def left(self) -> int:
        """Return the number of jobs that are not done."""
        return int(self._client.left())

    def singles(self, first: int, jobs: int) -> float:
        """Enqueue jobs one at a time; return the seconds."""
        load = [params_of(line) for line in range(first, first + jobs)]
        began = time.perf_counter()
        for params in load:
            self._client.enq(params)
        return time.perf_counter() - began

    def batches(self, first: int, jobs: int) -> float:
        """Enqueue jobs in batches; return the seconds."""
        load = [params_of(line) for line in range(first, first + jobs)]
        batches = [load[start : start + BATCH] for start in range(0, jobs, BATCH)]
        began = time.perf_counter()
        self._client.enq_batches(batches)
        return time.perf_counter() - began

    def drain(self, first: int, jobs: int) -> float:
        """Wait until all these jobs have run and no job is left; return the seconds."""
        began = time.perf_counter()
        end = began + PATIENCE_S
        self._await_signed(range(first, first + jobs), end)
        while self._client.left():
            _check(end, "jobs ran and were never recorded as done")
            time.sleep(POLL_S)
        return time.perf_counter() - began

    def load(self, first: int, jobs: int) -> float:
        """Enqueue jobs, in batches if the peer has them, and wait until all are done; return the seconds in all."""
        enqueue = self.batches if hasattr(self._client, "enq_batches") else self.singles
        return enqueue(first, jobs) + self.drain(first, jobs)

    def idle(self, first: int, jobs: int) -> list[int]:
        """Enqueue one job at a time on the idle server; return the start of each enq, in microseconds."""
        began_us = []
        for line in range(first, first + jobs):
            params = params_of(line)
            began_us.append(time.time_ns() // 1_000)
            self._client.enq(params)
            self._await_signed(range(line, line + 1), time.perf_counter() + PATIENCE_S)
            time.sleep(0.002)  # So that the server is idle, and no longer tidies up after the previous job.
        return began_us

    def delays(self, first: int, jobs: int, over_s: float) -> list[int] | None:
        """Enqueue jobs that fall due one after another, and wait for all; return their dues, or None without delays."""
        if not hasattr(self._client, "enq_at"):
            return None
        start_us = time.time_ns() // 1_000 + 1_500_000
        dues_us = [start_us + int(number * over_s * 1e6 / jobs) for number in range(jobs)]
        for number, due_us in enumerate(dues_us):
            self._client.enq_at(params_of(first + number), due_us)
        if time.time_ns() // 1_000 > start_us:
            raise TimeoutError("the first delayed job was due before the last was enqueued")
        self._await_signed(range(first, first + jobs), time.perf_counter() + over_s + PATIENCE_S)
        return dues_us

    def _await_signed(self, lines: range, end: float) -> None:
        waiting: Iterator[int] = iter(lines)
        line = next(waiting, None)
        while line is not None:
            if self._ledger[3 * line]:
                line = next(waiting, None)
            else:
                _check(end, f"job {line - lines.start:,} of {len(lines):,} has not run")
                time.sleep(POLL_S if len(lines) > 1 else 0.001)


def _check(end: float, what: str) -> None:
    if time.perf_counter() > end:
        raise TimeoutError(f"{what} after {PATIENCE_S:g} s")


def converse(acts: Acts) -> None:
    """Read acts and answer them, to the end of the input."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        print(json.dumps(getattr(acts, told.pop("act"))(**told)), flush=True)


def _end_with_input() -> None:
    """End this worker and its group, with all that it has started, when the process that started it is gone."""
    # Not `sys.stdin.read`: that holds a lock, for which the child of a forking peer would wait forever.
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main(role: str, module: str, port: str, ledger: str, settings: str) -> None:
    """Run a client or a worker."""
    options = json.loads(settings)
    if role == "worker":
        threading.Thread(target=_end_with_input, daemon=True).start()
        if options.pop("gevent", False):
            from gevent import monkey  # Before the peer's own imports, which keep the objects that they find.

            monkey.patch_all()
        importlib.import_module(f"peers.{module}").work(signer(ledger), int(port), **options)
    else:
        converse(Acts(importlib.import_module(f"peers.{module}").Client(int(port), **options), ledger))


if __name__ == "__main__":
    main(*sys.argv[1:])
