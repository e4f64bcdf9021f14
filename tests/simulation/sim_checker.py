"""The judge: from the history of a run and its store, it finds the broken promises, if any.

Most checks are from outside: the commands and answers of clients, the runs and reports of workers. Only where the order of two
commands matters, the judge takes it from the store's own sequence of commits; the judge then derives the effect of each
command from the message, and never reads the effect from the row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise

from sim_answers import answers_repeat, dues_are_told_right, last_look_agrees, reads_hold
from sim_evidence import Evidence, Violation, is_claim, stored
from sim_history import Execution, History, Op, Report
from sim_lives import lives_are_right, versions_are_right

from givalia_core.clock import ManualClock
from givalia_core.model import (
    CANCELLED,
    DEAD,
    DONE,
    RUNNING,
    TRANSITIONS,
    WAITING,
    JobState,
)
from givalia_core.protocol.messages import OK, FailReport, Kind
from givalia_core.store.memory import Memory

NEXT: dict[JobState, set[JobState]] = defaultdict(set)
for (_from, _), _to in TRANSITIONS.items():
    NEXT[_from].add(_to)

Check = Callable[[Evidence], Iterator[Violation]]


def check(history: History, memory: Memory, last: list[Op], clock: ManualClock) -> list[Violation]:
    """Everything that is wrong with this run; empty when every promise was kept."""
    seen = [Violation(invariant, what) for invariant, what in history.trouble]
    evidence = Evidence(history, memory, last, clock)
    return seen + [violation for look in CHECKS for violation in look(evidence)]


# Nothing lost, nothing made up.


def nothing_lost(evidence: Evidence) -> Iterator[Violation]:
    """I1: what was acknowledged is there at the end and has ended, or has ended and was forgotten in its time."""
    for op in evidence.history.ops:
        if op.kind is not Kind.ENQ or not op.is_ok:
            continue
        job_id = op.fields[1]
        if job_id not in evidence.enqs or evidence.key(job_id) != op.message.key:
            yield Violation("I1", "enq was answered with a job that nobody asked for", job_id)
            continue
        job = stored(evidence.memory, job_id)
        if job is None and not evidence.is_forgotten(job_id, evidence.end_us):
            yield Violation("I1", "an acknowledged job is gone", job_id)
        elif job is not None and job.is_live:
            yield Violation("I1", f"an acknowledged job is still {job.state} after the drain", job_id)


def no_ghosts(evidence: Evidence) -> Iterator[Violation]:
    """I2, C6: what starts was asked for, with those params, and its lease was stored before."""
    for job_id in evidence.written.keys() - evidence.enqs.keys():
        yield Violation("I2", "a job was stored that nobody asked for", job_id)
    claims = {(each.job.id, each.job.fence): each for each in evidence.history.written if is_claim(each)}
    for execution in evidence.history.executions:
        if execution.job not in evidence.enqs:
            yield Violation("I2", "a job started that nobody asked for", execution.job)
            continue
        if execution.payload not in _params(evidence, execution.job):
            yield Violation("I2", "a job started with params that nobody gave it", execution.job)
        claim = claims.get((execution.job, execution.fence))
        if claim is None or claim.mono_us > execution.started_us or claim.job.attempt != execution.attempt:
            yield Violation("I2", f"attempt {execution.attempt} started without a stored lease", execution.job)


def _params(evidence: Evidence, job_id: bytes) -> set[bytes]:
    key = evidence.key(job_id)
    replaced = {
        op.message.payload
        for op in evidence.enqs.values()
        if key is not None and op.message.key == key and op.message.if_exists == "replace"
    }
    return {evidence.enqs[job_id].message.payload} | replaced


def ends_have_reasons(evidence: Evidence) -> Iterator[Violation]:
    """I1, I4: a job is done, dead or cancelled only because somebody did or asked what makes it so."""
    for each in evidence.history.written:
        if each.job.is_live:
            continue
        job, reports = each.job, evidence.reports.get((each.job.id, each.job.fence), [])
        if job.state is DONE and not any(report.kind is Kind.SUCCEED for report in reports):
            yield Violation("I7", "a job is done that no worker did", job.id)
        if job.state is DEAD and job.reason == "failed" and not any(_is_for_good(report) for report in reports):
            yield Violation("I1", "a job failed for good although no worker said so", job.id)
        if job.state is CANCELLED and not _may_be_cancelled(evidence, job.id, each.mono_us):
            yield Violation("I1", "a job is cancelled although nobody cancelled it", job.id)


def _is_for_good(report: Report) -> bool:
    return isinstance(report.message, FailReport) and report.message.permanent


def _may_be_cancelled(evidence: Evidence, job_id: bytes, us: int) -> bool:
    return any(op.invoked_us <= us and evidence.names(op, job_id) for op in evidence.cancels)


# What a cancel promises, keys, leases and states.


def cancelled_never_starts(evidence: Evidence) -> Iterator[Violation]:
    """I4, C3: after a cancel was acknowledged there is no start, unless somebody requeues the job."""
    for op in evidence.cancels:
        if not op.is_ok or op.answered_us is None:
            continue
        for job_id in _cancelled_by(evidence, op):
            yield from _judge_cancel(evidence, op, op.answered_us, job_id)


def _cancelled_by(evidence: Evidence, op: Op) -> list[bytes]:
    if op.message.id is not None:
        return [op.message.id]
    return [job_id for job_id, applied in evidence.applied.items() if any(each.op is op for each in applied)]


def _judge_cancel(evidence: Evidence, op: Op, answered_us: int, job_id: bytes) -> Iterator[Violation]:
    if op.fields[1] == "cancelled":
        for execution in evidence.executions.get(job_id, ()):
            after = execution.started_us > answered_us
            # An honest run holds the lease for all of its time, so the job was not there to be cancelled.
            inside = execution.is_honest and _covers(execution, op.invoked_us, answered_us)
            if (after or inside) and not evidence.may_be_requeued(job_id, op.invoked_us, execution.started_us):
                yield Violation("I4", f"attempt {execution.attempt} ran after 'cancelled'", job_id)
    for claim in evidence.written.get(job_id, ()):
        is_late = is_claim(claim) and claim.mono_us > answered_us
        if is_late and not evidence.may_be_requeued(job_id, op.invoked_us, claim.mono_us):
            yield Violation("I4", f"attempt {claim.job.attempt} was lent after '{op.fields[1]}'", job_id)
    last = stored(evidence.memory, job_id)
    if last is not None and not evidence.may_be_requeued(job_id, op.invoked_us, evidence.end_us):
        allowed = {CANCELLED} if op.fields[1] == "cancelled" else {CANCELLED, DONE}
        if last.state not in allowed:
            yield Violation("I4", f"after '{op.fields[1]}' the job ended {last.state}", job_id)


def _covers(execution: Execution, from_us: int, to_us: int) -> bool:
    return execution.started_us < from_us and (execution.ended_us is None or execution.ended_us > to_us)


# Keys, leases, fences.


def keys_are_unique(evidence: Evidence) -> Iterator[Violation]:
    """I5: after every commit, at most one live job for each key."""
    live: dict[str, bytes] = {}
    for each in evidence.history.written:
        job = each.job
        if job.key is None:
            continue
        holder = live.get(job.key)
        if job.is_live:
            if holder not in (None, job.id):
                yield Violation("I5", f"two live jobs have the key {job.key}", job.id)
            live[job.key] = job.id
        elif holder == job.id:
            del live[job.key]


def settled_once(evidence: Evidence) -> Iterator[Violation]:
    """I7: one accepted success for a job, of the highest fence, and its result is the one that is shown."""
    winners: dict[bytes, int] = {}
    for (job_id, fence), reports in evidence.reports.items():
        accepted = [report for report in reports if report.code == OK]
        if len(accepted) > 1:
            yield Violation("I7", "two reports on one lease were accepted", job_id)
        for report in accepted:
            if any(
                is_claim(each) and each.job.fence > fence and each.mono_us < report.sent_us
                for each in evidence.written.get(job_id, ())
            ):
                yield Violation("I7", "a report was accepted although a newer lease was out", job_id)
            if report.kind is Kind.SUCCEED and winners.setdefault(job_id, fence) != fence:
                yield Violation("I7", "two successes of one job were accepted", job_id)
    for job in evidence.memory._jobs.values():
        if job.state is DONE and job.result != b"%d" % job.fence:
            yield Violation("I7", "the result is not that of the winning attempt", job.id)
        if job.id in winners and (job.state is not DONE or job.fence != winners[job.id]):
            yield Violation("I7", f"an accepted success ended as {job.state} of another lease", job.id)


def leases_never_overlap(evidence: Evidence) -> Iterator[Violation]:
    """I8: two honest workers, neither of them paused, never run one job at one time."""
    for job_id, executions in evidence.executions.items():
        honest = sorted((each for each in executions if each.is_honest), key=lambda each: each.started_us)
        for earlier, later in pairwise(honest):
            if earlier.ended_us is None or later.started_us < earlier.ended_us:
                yield Violation("I8", f"attempts {earlier.attempt} and {later.attempt} overlap", job_id)


def done_is_final(evidence: Evidence) -> Iterator[Violation]:
    """I9: nothing starts after done, and nothing leads out of it."""
    for job_id, written in evidence.written.items():
        done_us = next((each.mono_us for each in written if each.job.state is DONE), None)
        if done_us is None:
            continue
        if written[-1].job.state is not DONE:
            yield Violation("I9", f"a job that was done is {written[-1].job.state}", job_id)
        if any(each.started_us > done_us for each in evidence.executions.get(job_id, ())):
            yield Violation("I9", "a job started after it was done", job_id)


def fences_increase(evidence: Evidence) -> Iterator[Violation]:
    """I11: every lease has a fence larger than all of the commits before, over all restarts."""
    highest, pending, turn = 0, 0, -1
    for each in evidence.history.written:
        if each.turn != turn:
            highest, turn = max(highest, pending), each.turn
        if is_claim(each) or (each.job.state is RUNNING and (each.was is None or each.was.state is not RUNNING)):
            if each.job.fence <= highest:
                yield Violation("I11", f"fence {each.job.fence} comes after {highest}", each.job.id)
            pending = max(pending, each.job.fence)


def transitions_are_legal(evidence: Evidence) -> Iterator[Violation]:
    """I12: between two committed versions lies a path of the table, one step for each version."""
    for each in evidence.history.written:
        reach = {each.was.state if each.was is not None else WAITING}
        for _ in range(each.job.version - (each.was.version if each.was is not None else 1)):
            reach = {after for before in reach for after in NEXT[before]}
        if each.job.state not in reach:
            before = each.was.state if each.was is not None else "nothing"
            yield Violation("I12", f"{before} became {each.job.state}, which the table does not allow", each.job.id)


CHECKS: tuple[Check, ...] = (
    nothing_lost,
    no_ghosts,
    ends_have_reasons,
    lives_are_right,
    versions_are_right,
    cancelled_never_starts,
    keys_are_unique,
    settled_once,
    leases_never_overlap,
    done_is_final,
    fences_increase,
    transitions_are_legal,
    answers_repeat,
    dues_are_told_right,
    reads_hold,
    last_look_agrees,
)
