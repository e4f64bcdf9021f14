"""The evidence of a run for the judge's checks: commands, writes, runs and reports, grouped by job."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sim_history import Execution, History, Op, Report, Written
from sim_setup import EXCUSED_US

from givalia_core.clock import ManualClock
from givalia_core.model import (
    REMEMBERED_AT_LEAST_US,
    RUNNING,
    WAITING,
    Answered,
    Job,
)
from givalia_core.protocol.messages import Kind
from givalia_core.store.memory import Memory


class Violation(NamedTuple):
    """One broken promise."""

    invariant: str
    text: str
    job: bytes | None = None


class Applied(NamedTuple):
    """One command that took effect on a job, as the store's sequence of commits shows it."""

    written: Written
    act: str
    op: Op


class Due(NamedTuple):
    """The due of a job: between `least_us` and `most_us`, on the wall clock or on the monotonic one.

    A command takes effect between its call and the commit that has it, so what it counts from is known to that span.
    """

    on_wall: bool
    least_us: int
    most_us: int

    def is_reached(self, written: Written) -> bool:
        """Return whether a commit is late enough for a start."""
        return self._at_us(written) + EXCUSED_US >= self.least_us

    def has_expired(self, written: Written, expires_us: int) -> bool:
        """Return whether the time to start was certainly over at this commit."""
        return self._at_us(written) > self.most_us + expires_us + EXCUSED_US

    def early_us(self, written: Written) -> int:
        """Return by how much a commit is too early."""
        return self.least_us - self._at_us(written)

    def later(self, us: int) -> Due:
        """The same, moved."""
        return Due(self.on_wall, self.least_us + us, self.most_us + us)

    def _at_us(self, written: Written) -> int:
        return written.now.wall_us if self.on_wall else written.mono_us


class Life:
    """A job from its enq, or from a requeue, to the next."""

    def __init__(self) -> None:
        self.claims: list[Written] = []
        self.replaced = 0
        self.given_back = 0  # Attempts that had started, and lost their process.
        self.attempts: list[int] = []  # What each message that made or replaced it allows.
        self.expires_us: int | None = None
        self.is_clear = True  # Whether every command that shaped it is known.


class Evidence:
    """The history, indexed."""

    def __init__(self, history: History, memory: Memory, last: list[Op], clock: ManualClock) -> None:
        self.history = history
        self.memory = memory
        self.last = last
        self.end_us = clock.read().uptime_us
        self.ops = {op.request: op for op in history.ops if op.request is not None}
        self.enqs: dict[bytes, Op] = {op.message.id: op for op in history.ops if op.kind is Kind.ENQ}
        self.written: dict[bytes, list[Written]] = grouped(history.written, lambda each: each.job.id)
        self.executions: dict[bytes, list[Execution]] = grouped(history.executions, lambda each: each.job)
        self.ran: dict[tuple[bytes, int], Execution] = {(each.job, each.fence): each for each in history.executions}
        self.reports: dict[tuple[bytes, int], list[Report]] = grouped(
            history.reports, lambda each: (each.message.id, each.message.fence)
        )
        self.applied: dict[bytes, list[Applied]] = {job_id: self._applied(each) for job_id, each in self.written.items()}
        self.took_effect = {each.op.request for applied in self.applied.values() for each in applied}
        self.requeues = [op for op in history.ops if op.kind is Kind.REQUEUE]
        self.cancels = [op for op in history.ops if op.kind is Kind.CANCEL]

    def _applied(self, written: list[Written]) -> list[Applied]:
        return [
            Applied(each, past.act, self.ops[past.request])
            for each in written
            for past in news(each)
            if past.request in self.ops
        ]

    def life_began(self, turn: int) -> int:
        """The first turn of the process of the server that had this turn."""
        return max(began for began in self.history.lives if began <= turn)

    def key(self, job_id: bytes) -> str | None:
        """The key of a job, as its client asked."""
        return self.enqs[job_id].message.key if job_id in self.enqs else None

    def names(self, op: Op, job_id: bytes) -> bool:
        """Return whether the command may have named this job."""
        message = op.message
        return message.id == job_id or (message.key is not None and message.key == self.key(job_id))

    def may_be_requeued(self, job_id: bytes, after_us: int, before_us: int) -> bool:
        """Return whether a requeue of the job may have taken effect between these two instants."""
        return any(
            op.invoked_us < before_us
            and not op.is_before(after_us)
            and (op.status != "fail" or op.request in self.took_effect)
            and self.names(op, job_id)
            for op in self.requeues
        )

    def is_forgotten(self, job_id: bytes, now_us: int) -> bool:
        """Return whether the store may have forgotten the job: it ended longer ago than the least retention."""
        written = [each for each in self.written.get(job_id, ()) if each.mono_us <= now_us]
        return bool(written) and not written[-1].job.is_live and now_us - written[-1].mono_us >= REMEMBERED_AT_LEAST_US


def grouped(items: Iterable[Any], name: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for each in items:
        groups[name(each)].append(each)
    return groups


def news(written: Written) -> list[Answered]:
    """The commands that a commit added to a job's memory, in order."""
    known = {past.request for past in written.was.answered} if written.was is not None else set()
    return [past for past in written.job.answered if past.request not in known]


def is_claim(written: Written) -> bool:
    """Return whether a commit lent the job."""
    return written.job.fence > (written.was.fence if written.was is not None else 0)


def is_given_back(written: Written) -> bool:
    """Return whether a commit released the job without counting the attempt."""
    was, job = written.was, written.job
    if was is None or was.state is not RUNNING:
        return False
    if any(past.act == "requeue" for past in news(written)):
        return False
    if is_claim(written):
        return job.attempt == was.attempt
    return job.state is WAITING and job.attempt < was.attempt


def ends_attempt(written: Written) -> bool:
    """Return whether a commit ended an attempt that is retried."""
    was, job = written.was, written.job
    return (
        was is not None
        and was.state is RUNNING
        and (job.state is WAITING or is_claim(written))
        and not is_given_back(written)
        and not any(past.act in ("requeue", "cancel") for past in news(written))
    )


def stored(memory: Memory, job_id: bytes) -> Job | None:
    """Return the job as the store has it."""
    seq = memory._by_id.get(job_id)
    return None if seq is None else memory._jobs[seq]
