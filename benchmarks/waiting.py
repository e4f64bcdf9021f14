"""The cost of many waiting jobs: memory, disk, lateness, throughput, calls by key, and the restart after a kill.

One store grows from level to level: keyed jobs with random due times are enqueued, with the same measurement at each level. At
the last level, jobs are pushed back and called off by key (see `by_key.py`); then the server is killed with -9 and started
again (the clock runs from the start of its process until its answer to a stat). At the end the waiting jobs begin to fall due,
and as many are enqueued as run (see `steady.py`).
"""

from __future__ import annotations

import random
import statistics
import sys
import time

import by_key
import end_to_end
import harness
import lateness
import steady
from harness import Figure, Option
from harness.crowd import fill

TITLE = "While many wait"
OPTIONS = (
    Option("levels", "0,10000,100000,1000000", "how many jobs wait, level after level; the first is 0"),
    Option("load", 20_000, "jobs end to end at each level"),
    Option("repeats", 3, "times that load; the median is shown"),
    Option("late", 500, "jobs that fall due at each level within three seconds"),
    Option("singles", 300, "calls of ext and of cancel, one at a time"),
    Option("many", 30_000, "keys of ext_many and of cancel_many at a million"),
    Option("restarts", 3, "times the server is killed; the median is shown"),
    Option("seconds", 8.0, "how long jobs are enqueued and run at the last level"),
)
FEW = 1_000  # Waiting jobs in the case that calls by key are compared with.
LATE_S = 3.0
LEVEL_S = 8.0  # The approximate time of a level besides its load.
MILLION = 1_000_000
MB = 1_000_000


def measure(
    levels: str,
    load: int,
    repeats: int,
    late: int,
    singles: int,
    many: int,
    restarts: int,
    seconds: float,
    folder: str | None = None,
) -> list[Figure]:
    """Measure one store, level after level."""
    counts = [int(level) for level in levels.split(",")]
    lines = counts[-1] + load + len(counts) * (repeats * load + late) + steady.spare(seconds)
    with harness.Rig(lines, folder) as rig:
        return _Growth(rig, counts, load, repeats, late, singles, many).measure(restarts, seconds)


class _Growth:
    """A growing store: the number of waiting jobs, the used lines of the ledger, and the figures so far."""

    def __init__(
        self, rig: harness.Rig, levels: list[int], load: int, repeats: int, late: int, singles: int, many: int
    ) -> None:
        self._rig, self._levels = rig, levels
        self._load, self._repeats, self._late, self._singles, self._many = load, repeats, late, singles, many
        self._filled = self._cancelled = 0
        self._gone: set[int] = set()
        self._used = levels[-1]
        self._fill_s = 0.0
        self._figures: list[Figure] = []
        self._empty_rate = 0.0
        self._due: dict[str, float] = {}
        self._few = by_key.Taken([], [])

    def measure(self, restarts: int, seconds: float) -> list[Figure]:
        last = self._levels[-1]
        for level in self._levels:
            harness.say(f"{level:,} waiting")
            with self._rig.client() as client:
                self._grow(client, level)
                self._flow(client, level)
                self._by_key(client, level)
        with self._rig.client() as client:
            key = harness.key_of(*self._some(1))
            self._add("enq answered, all levels", (last - FEW) / self._fill_s, "jobs/s")
            self._add("store on disk, each", self._rig.store_bytes() / last, "bytes a job")
        answers = [_restart(self._rig, key, last - self._cancelled) for _ in range(restarts)]
        words = f"{last:,} waiting"
        self._add(f"{words}, kill -9, restart, first answer", statistics.median(answers), "s", most=1)
        self._add(f"{words}, memory after the restart", harness.rss_bytes(self._rig.server) / MB, "MB")
        with self._rig.client() as client:
            self._figures += steady.run(self._rig, client, last, self._due, seconds)
        return self._figures

    def _grow(self, client: harness.Client, level: int) -> None:
        if level and not self._filled:
            fill(self._rig.port, range(FEW), self._due)
            self._filled = FEW
            self._few = self._singly(client)
        if level > self._filled:
            self._fill_s += fill(self._rig.port, range(self._filled, level), self._due)
            self._filled = level
        if self._rig.waiting(client) != self._filled - self._cancelled:
            raise harness.Broken(f"{self._filled:,} were enqueued, and {self._rig.waiting(client):,} wait")
        rss, mapped = harness.rss_bytes(self._rig.server), harness.mapped_bytes(self._rig.server)
        words = f"{level:,} waiting"
        self._add(f"{words}, memory of the server", rss / MB, "MB", most=200 if level >= MILLION else None, curve="memory")
        self._add(f"{words}, of that pages of files", mapped / MB, "MB")

    def _flow(self, client: harness.Client, level: int) -> None:
        """Measure throughput and lateness of other jobs, with a worker that is gone afterwards."""
        rig, words = self._rig, f"{level:,} waiting"
        worker = rig.start_worker(client)
        if level == 0:  # The first jobs of a server and a worker find everything cold.
            end_to_end.run(rig, client, worker, self._lines(self._load), 1_000, 4)
        runs = [end_to_end.run(rig, client, worker, self._lines(self._load), 1_000, 4) for _ in range(self._repeats)]
        rate = statistics.median(each.done for each in runs)
        late_ms = lateness.run(rig, client, self._lines(self._late), LATE_S)
        rig.stop_worker(worker)
        rig.ledger.check(range(self._used - self._repeats * self._load - self._late, self._used))
        if level == 0:
            self._empty_rate = rate
            self._plan(rate, statistics.median(each.answered for each in runs))
        else:
            least = 70 if level == self._levels[-1] else None
            self._add(f"{words}, end to end, of that with none", 100 * rate / self._empty_rate, "%", least=least)
        self._add(f"{words}, end to end", rate, "jobs/s", curve="end to end")
        self._add(f"{words}, late, p50", harness.quantile(late_ms, 0.5), "ms", curve="lateness, p50")
        self._add(f"{words}, late, p99", harness.quantile(late_ms, 0.99), "ms", curve="lateness, p99")

    def _plan(self, rate: float, answered: float) -> None:
        """Plan the dues of the waiting jobs: after all other measurements, and then more than the worker can run."""
        last = self._levels[-1]
        base = time.time() + last / answered + len(self._levels) * (LEVEL_S + self._repeats * self._load / rate)
        self._due = {"base": base, "mean": last / (1.2 * rate)}

    def _by_key(self, client: harness.Client, level: int) -> None:
        if level == self._levels[-1]:
            self._figures += by_key.compared(self._few, FEW, self._singly(client), level)
        if level == min(MILLION, self._levels[-1]):
            lines = self._some(min(self._many, level // 4))
            self._figures += by_key.in_batches(client, lines, level)
            self._cancelled += len(lines)

    def _singly(self, client: harness.Client) -> by_key.Taken:
        taken = by_key.singly(client, self._some(self._singles))
        self._cancelled += self._singles
        return taken

    def _some(self, count: int) -> list[int]:
        """Reserve lines of the ledger for `count` waiting jobs, and return them."""
        lines: set[int] = set()
        while len(lines) < count:
            lines |= {line for line in random.sample(range(self._filled), count - len(lines)) if line not in self._gone}
        self._gone |= lines
        return list(lines)

    def _lines(self, count: int) -> range:
        """Return free lines of the ledger."""
        self._used += count
        return range(self._used - count, self._used)

    def _add(self, name: str, value: float, unit: str, curve: str = "", **aim: float | None) -> None:
        at = self._filled if curve else None
        self._figures.append(Figure(name, value, unit, curve=curve, at=at, **aim))


def _restart(rig: harness.Rig, key: str, jobs: int) -> float:
    """Return the seconds from the start of the new process to its answer about one of the jobs."""
    rig.kill_server()
    began = time.perf_counter()
    rig.start_server()
    with rig.client() as client:
        status = client.stat(key)
        seconds = time.perf_counter() - began
        waiting = rig.waiting(client)
    if status.state != "waiting" or waiting != jobs:
        raise harness.Broken(f"after kill -9 {waiting:,} of {jobs:,} jobs wait, and {key} is {status.state}")
    return seconds


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
