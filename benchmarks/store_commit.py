"""The cost of a job's life in the SQLite store alone: one thread, no server, each commit on disk before the next.

In batches, jobs with random keys are inserted, read and claimed, and settled, each step one commit as the server makes it
(deciding and making the records is not counted); then the same for jobs that are claimed in the commit that inserts them, as
when a worker is free. The store is empty at the start, or has other waiting jobs: with a million, each access to an index
meets a cold page.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import harness
from harness import Figure, Option
from harness.alone import HOUR_US, StoreAlone

TITLE = "The store alone"
OPTIONS = (
    Option("batches", "1,10,100,1000", "jobs in one commit, several sizes with commas between"),
    Option("seconds", 1.0, "how long to measure each"),
    Option("waiting", 0, "other jobs in the store, with random keys and due times"),
)


def measure(batches: str, seconds: float, waiting: int, folder: str | None = None) -> list[Figure]:
    """Measure each size of batch on the same store, the smallest first."""
    with tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path, StoreAlone(Path(path) / "queue.db") as alone:
        for _ in range(0, waiting, 10_000):
            alone.insert(min(waiting, 10_000), HOUR_US + random.randrange(HOUR_US))
        return [figure for size in batches.split(",") for figure in _batches(alone, int(size), seconds)]


def _batches(alone: StoreAlone, size: int, seconds: float) -> list[Figure]:
    took: defaultdict[str, float] = defaultdict(float)
    rounds = 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        rounds += 1
        steps = {"insert": alone.insert(size)}
        steps["read for the claim"] = alone.read(size)
        steps["claim"] = alone.claim(steps["read for the claim"].jobs)
        steps["settle"] = alone.settle(steps["claim"].jobs)
        steps["insert and claim at once"] = alone.insert_claimed(size)
        steps["settle, again"] = alone.settle(steps["insert and claim at once"].jobs)
        for name, step in steps.items():
            took[name] += step.seconds
    each_us = {name: spent / rounds / size * 1e6 for name, spent in took.items()}
    together = each_us["insert and claim at once"] + each_us.pop("settle, again")
    apart = sum(each_us.values()) - each_us["insert and claim at once"]
    title = f"batches of {size:,}"
    return [
        *(Figure(f"{title}: {name}", each, "us a job") for name, each in each_us.items()),
        Figure(f"{title}: whole life, three commits", 1e6 / apart, "jobs/s"),
        Figure(f"{title}: whole life, two commits", 1e6 / together, "jobs/s"),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
