"""The honest case for the SQLite store alone: each round inserts delayed jobs, claims the earliest due and settles them.

As in `steady.py`, keys are random and the waits have no memory, so each insert touches a random place. Here waits last an hour,
and the store's clock advances as fast as jobs are run. One thread, no server, each commit on disk before the next.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import harness
import steady
from harness import Figure, Option
from harness.alone import HOUR_US, StoreAlone

TITLE = "Steady, the store alone"
OPTIONS = (
    Option("waiting", 100_000, "jobs that wait, always"),
    Option("frame", 1_000, "jobs in one commit"),
    Option("seconds", 5.0, "how long to measure"),
)
FILL = 10_000


def measure(waiting: int, frame: int, seconds: float, folder: str | None = None) -> list[Figure]:
    """Fill a store, then run rounds until the time is over."""
    with tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path, StoreAlone(Path(path) / "queue.db") as alone:
        filled = sum(alone.insert_due(_delays_us(min(FILL, waiting - first))).seconds for first in range(0, waiting, FILL))
        took = dict.fromkeys(("insert", "read for the claim", "claim", "settle"), 0.0)
        rounds = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            rounds += 1
            read = alone.read(frame)
            while len(read.jobs) < frame:
                alone.ahead_us += HOUR_US * frame // waiting
                read = alone.read(frame)
            claimed = alone.claim(read.jobs)
            settled = alone.settle(claimed.jobs)
            inserted = alone.insert_due(_delays_us(frame))
            for name, step in zip(took, (inserted, read, claimed, settled), strict=True):
                took[name] += step.seconds
    words = f"{waiting:,} waiting"
    return [
        Figure(
            f"store alone, {words}, insert, claim, settle",
            rounds * frame / sum(took.values()),
            "jobs/s",
            least=steady.aim(waiting),
        ),
        *(Figure(f"store alone, {words}, {name}", spent / rounds / frame * 1e6, "us a job") for name, spent in took.items()),
        Figure("store alone, insert while it was filled", filled / waiting * 1e6, "us a job"),
    ]


def _delays_us(count: int) -> list[int]:
    return [round(random.expovariate(1 / HOUR_US)) for _ in range(count)]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
