"""What the life of a job costs in the SQLite store alone: one thread, no server, each commit on disk before the next.

In batches, jobs with random keys are inserted, read and claimed, and settled, each step one commit as the server makes it
(what decides and makes the records is not counted); then the same for jobs that are claimed in the commit that inserts them,
as when a worker is free. The store is empty at the start, or holds `--waiting` other jobs: with a million, each touch of an
index finds a cold page.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import harness
from harness import Figure, Option

from givalia_core.client.talk import new_id
from givalia_core.clock import SECOND_US, SystemClock, TimerClock
from givalia_core.model import WAITING, Answered, Job, evolve
from givalia_core.store.base import Change, Claim, Route, Wanted
from givalia_core.store.sqlite import SQLite

TITLE = "The store alone"
OPTIONS = (
    Option("batches", "1,10,100,1000", "jobs in one commit, several sizes with commas between"),
    Option("seconds", 1.0, "how long to measure each"),
    Option("waiting", 0, "other jobs in the store, with random keys and due times"),
)
HOUR_US = 3_600 * SECOND_US
ROUTE = Route("Noop", "any")


def measure(batches: str, seconds: float, waiting: int, folder: str | None = None) -> list[Figure]:
    """Each size of batch on the same store, the smallest first."""
    with tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path:
        bench = _Bench(Path(path) / "queue.db")
        try:
            for _ in range(0, waiting, 10_000):
                bench.insert(min(waiting, 10_000), HOUR_US + random.randrange(HOUR_US))
            return [figure for size in batches.split(",") for figure in bench.measure(int(size), seconds)]
        finally:
            bench.close()


class _Bench:
    """The store, the clock that stamps its commits, and the seconds spent in the store, by step."""

    def __init__(self, path: Path) -> None:
        self._store = SQLite(f"sqlite://{path}")
        self._clock = SystemClock()
        self._timer = TimerClock.start(self._clock, self._store.open().mark)
        self._last_seq = 0
        self._holder = uuid.uuid4().bytes
        self._took: defaultdict[str, float] = defaultdict(float)

    def close(self) -> None:
        self._store.close()

    def measure(self, size: int, seconds: float) -> list[Figure]:
        self._took.clear()
        rounds = 0
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            rounds += 1
            inserted = self.insert(size)
            waiting = self._read(inserted)
            running = [_claim(job, self._holder) for job in waiting]
            self._commit("claim", waiting, running)
            self._commit("settle", running, [_settle(job) for job in running])
            claimed = [_claim(self._new(0), self._holder) for _ in range(size)]
            self._commit("insert and claim at once", [None] * size, claimed)
            self._commit("settle, again", claimed, [_settle(job) for job in claimed])
        each_us = {name: spent / rounds / size * 1e6 for name, spent in self._took.items()}
        together = each_us["insert and claim at once"] + each_us.pop("settle, again")
        apart = sum(each_us.values()) - each_us["insert and claim at once"]
        title = f"batches of {size:,}"
        return [
            *(Figure(f"{title}: {name}", each, "us a job") for name, each in each_us.items()),
            Figure(f"{title}: whole life, three commits", 1e6 / apart, "jobs/s"),
            Figure(f"{title}: whole life, two commits", 1e6 / together, "jobs/s"),
        ]

    def insert(self, count: int, delay_us: int = 0) -> list[Job]:
        jobs = [self._new(delay_us) for _ in range(count)]
        self._commit("insert", [None] * count, jobs)
        return jobs

    def _new(self, delay_us: int) -> Job:
        self._last_seq += 1
        job_id, now = new_id(), self._timer.now(self._clock.read())
        return Job(
            self._last_seq, job_id, f"{random.getrandbits(96):024x}", WAITING, "Noop", "any", 0, False, now.timer_us + delay_us,
            enq_at_us=now.wall_us, answered=(Answered(job_id, "enq", now.wall_us),), params=b"\x01",
        )  # fmt: skip

    def _read(self, jobs: Sequence[Job]) -> list[Job]:
        began = time.perf_counter()
        now = self._timer.now(self._clock.read())
        found = self._store.find(Wanted(claims=(Claim(ROUTE, len(jobs)),)), now).ready.get(ROUTE, [])
        self._took["read for the claim"] += time.perf_counter() - began
        return found

    def _commit(self, step: str, was: Sequence[Job | None], jobs: Sequence[Job]) -> None:
        changes = [Change(before, job) for before, job in zip(was, jobs, strict=True)]
        now = self._timer.now(self._clock.read())
        began = time.perf_counter()
        refused = self._store.commit(changes, self._timer.mark(now)).refused
        self._store.tidy()
        self._took[step] += time.perf_counter() - began
        if refused:
            raise harness.Broken(f"the store refused {len(refused)} changes")


def _claim(job: Job, holder: bytes) -> Job:
    return evolve(job, "claim", attempt=1, fence=job.seq, worker="any", holder=holder, max_attempts=5, backoff_us=(1, 2))


def _settle(job: Job) -> Job:
    ended_at_us = job.due_at_us + job.seq
    return evolve(job, "succeed", ended_at_us=ended_at_us, forget_at_us=ended_at_us + HOUR_US, result=b"\x01")


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
