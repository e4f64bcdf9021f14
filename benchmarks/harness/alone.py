"""The SQLite store alone, without a server: the steps of a job's life as the server would commit them, each timed."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgpack

from givalia_core.clock import SECOND_US, Now, SystemClock, TimerClock, new_id
from givalia_core.model import WAITING, Answered, Job, evolve
from givalia_core.store.base import Change, Claim, Route, Wanted
from givalia_core.store.sqlite import SQLite
from harness.ledger import Broken
from harness.load import params_of

HOUR_US = 3_600 * SECOND_US
ROUTE = Route("Noop", "any")


class Step(NamedTuple):
    """The jobs as a step left them, and the seconds spent in the store, without deciding and making the records."""

    jobs: list[Job]
    seconds: float


class StoreAlone:
    """A store in this process, and the clock that stamps its commits, which can be ahead of the real one."""

    def __init__(self, path: Path) -> None:
        self._store = SQLite(f"sqlite://{path}")
        self._clock = SystemClock()
        opened = self._store.open()
        self._timer = TimerClock.start(self._clock, opened.mark)
        self._last_seq = opened.last_seq
        self._holder = uuid.uuid4().bytes
        self.ahead_us = 0

    def __enter__(self) -> StoreAlone:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def insert(self, count: int, delay_us: int = 0) -> Step:
        """Insert `count` jobs with random keys, all due after the same delay."""
        return self.insert_due([delay_us] * count)

    def insert_due(self, delays_us: Sequence[int]) -> Step:
        """Insert a job with a random key for each of these delays."""
        jobs = [self._new(delay_us) for delay_us in delays_us]
        return self._commit([None] * len(jobs), jobs)

    def insert_claimed(self, count: int) -> Step:
        """Insert jobs and claim them in the same commit, as when a worker is free."""
        return self._commit([None] * count, [_claimed(self._new(0), self._holder) for _ in range(count)])

    def read(self, limit: int) -> Step:
        """Read the due jobs that would be lent first."""
        began = time.perf_counter()
        found = self._store.find(Wanted(claims=(Claim(ROUTE, limit),)), self._now())
        seconds = time.perf_counter() - began
        return Step(list(found.ready.get(ROUTE, [])), seconds)

    def claim(self, jobs: Sequence[Job]) -> Step:
        """Lend these jobs."""
        return self._commit(jobs, [_claimed(job, self._holder) for job in jobs])

    def settle(self, jobs: Sequence[Job]) -> Step:
        """Record these jobs as done."""
        return self._commit(jobs, [_settled(job) for job in jobs])

    def _now(self) -> Now:
        now = self._timer.now(self._clock.read())
        return now._replace(timer_us=now.timer_us + self.ahead_us, wall_us=now.wall_us + self.ahead_us)

    def _new(self, delay_us: int) -> Job:
        self._last_seq += 1
        job_id, now = new_id(), self._now()
        return Job(
            self._last_seq, job_id, f"{random.getrandbits(96):024x}", WAITING, "Noop", "any", 0, False, now.timer_us + delay_us,
            enq_at_us=now.wall_us, answered=(Answered(job_id, "enq", now.wall_us),),
            params=msgpack.packb(params_of(self._last_seq)),
        )  # fmt: skip

    def _commit(self, was: Sequence[Job | None], jobs: list[Job]) -> Step:
        changes = [Change(before, job) for before, job in zip(was, jobs, strict=True)]
        mark = self._timer.mark(self._now())
        began = time.perf_counter()
        refused = self._store.commit(changes, mark).refused
        self._store.tidy()
        seconds = time.perf_counter() - began
        if refused:
            raise Broken(f"the store refused {len(refused)} changes")
        return Step(jobs, seconds)


def _claimed(job: Job, holder: bytes) -> Job:
    return evolve(job, "claim", attempt=1, fence=job.seq, worker="any", holder=holder, max_attempts=5, backoff_us=(1, 2))


def _settled(job: Job) -> Job:
    ended_at_us = job.due_at_us + job.seq
    return evolve(job, "succeed", ended_at_us=ended_at_us, forget_at_us=ended_at_us + HOUR_US, result=b"\x01")
