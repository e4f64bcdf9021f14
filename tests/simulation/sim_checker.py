"""The judge: given the history of a run and its store, says which promise of CONTRACT 2.2 was broken, if any.

Most checks are from outside: what clients asked and were told, what workers ran and said. Where the order of two commands
matters, and only there, it is taken from the store's own sequence of commits; what each command must then have done is
worked out here anew from the message and never read from the row.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from sim_history import Execution, History, Op, Report, Said, Written
from sim_setup import ATTEMPTS, BACKOFF_MAX_US, BACKOFF_US, CALM_US, EXCUSED_US, MODULES, RESENDS_FOR_US

from givalia_core.clock import ManualClock
from givalia_core.model import (
    CANCELLED,
    CHILD_DEATHS_MAX,
    DEAD,
    DONE,
    ENDED,
    REMEMBERED_AT_LEAST_US,
    RUNNING,
    TRANSITIONS,
    WAITING,
    Answered,
    Job,
    JobState,
)
from givalia_core.protocol.messages import OK, Enq, Ext, Fail, Kind, Release, Requeue
from givalia_core.specifiers import canonical, satisfies
from givalia_core.store.memory import Memory

UNDECIDED = ("BUSY", "SHUTTING_DOWN", "STORE_FULL", "UNAUTHORIZED", "BAD_REQUEST", "TOO_LARGE")
NEXT: dict[JobState, set[JobState]] = defaultdict(set)
for (_from, _), _to in TRANSITIONS.items():
    NEXT[_from].add(_to)


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
    """When a job is due: not before `least_us`, and not after `most_us`; on the wall clock, or on the one no step moves.

    A command takes effect between its call and the commit that has it, so what it counts from is known to that span.
    """

    on_wall: bool
    least_us: int
    most_us: int

    def is_reached(self, written: Written) -> bool:
        """Whether a commit is late enough for a start."""
        return self._at_us(written) + EXCUSED_US >= self.least_us

    def has_expired(self, written: Written, expires_us: int) -> bool:
        """Whether at this commit the time to start was certainly over."""
        return self._at_us(written) > self.most_us + expires_us + EXCUSED_US

    def early_us(self, written: Written) -> int:
        """How much too early a commit is."""
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
        self.written: dict[bytes, list[Written]] = _grouped(history.written, lambda each: each.job.id)
        self.executions: dict[bytes, list[Execution]] = _grouped(history.executions, lambda each: each.job)
        self.ran: dict[tuple[bytes, int], Execution] = {(each.job, each.fence): each for each in history.executions}
        self.reports: dict[tuple[bytes, int], list[Report]] = _grouped(
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
        """Whether the command may have meant this job."""
        message = op.message
        return message.id == job_id or (message.key is not None and message.key == self.key(job_id))

    def may_be_requeued(self, job_id: bytes, after_us: int, before_us: int) -> bool:
        """Whether a requeue of the job may have taken effect between these two instants."""
        return any(
            op.invoked_us < before_us
            and not op.is_before(after_us)
            and (op.status != "fail" or op.request in self.took_effect)
            and self.names(op, job_id)
            for op in self.requeues
        )

    def is_forgotten(self, job_id: bytes, now_us: int) -> bool:
        """Whether the store may have forgotten the job by now: it ended, longer ago than anything is remembered at least."""
        written = [each for each in self.written.get(job_id, ()) if each.mono_us <= now_us]
        return bool(written) and not written[-1].job.is_live and now_us - written[-1].mono_us >= REMEMBERED_AT_LEAST_US


def _grouped(items: Iterable[Any], name: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = defaultdict(list)
    for each in items:
        groups[name(each)].append(each)
    return groups


def news(written: Written) -> list[Answered]:
    """The commands that a commit added to a job's memory, in order."""
    known = {past.request for past in written.was.answered} if written.was is not None else set()
    return [past for past in written.job.answered if past.request not in known]


def is_claim(written: Written) -> bool:
    """Whether a commit lent the job."""
    return written.job.fence > (written.was.fence if written.was is not None else 0)


def is_given_back(written: Written) -> bool:
    """Whether a commit took a lease back as if the attempt had never been."""
    was, job = written.was, written.job
    if was is None or was.state is not RUNNING:
        return False
    if any(past.act == "requeue" for past in news(written)):
        return False
    if is_claim(written):
        return job.attempt == was.attempt
    return job.state is WAITING and job.attempt < was.attempt


def ends_attempt(written: Written) -> bool:
    """Whether a commit ended an attempt and left the job to be tried again."""
    was, job = written.was, written.job
    return (
        was is not None
        and was.state is RUNNING
        and (job.state is WAITING or is_claim(written))
        and not is_given_back(written)
        and not any(past.act in ("requeue", "cancel") for past in news(written))
    )


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
        job = _stored(evidence.memory, job_id)
        if job is None and not evidence.is_forgotten(job_id, evidence.end_us):
            yield Violation("I1", "an acknowledged job is gone", job_id)
        elif job is not None and job.is_live:
            yield Violation("I1", f"an acknowledged job is still {job.state} after the drain", job_id)


def _stored(memory: Memory, job_id: bytes) -> Job | None:
    seq = memory._by_id.get(job_id)
    return None if seq is None else memory._jobs[seq]


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
    return isinstance(report.message, Fail) and report.message.permanent


def _may_be_cancelled(evidence: Evidence, job_id: bytes, us: int) -> bool:
    return any(op.invoked_us <= us and evidence.names(op, job_id) for op in evidence.cancels)


# When jobs start, and how often.


def lives_are_right(evidence: Evidence) -> Iterator[Violation]:
    """I3, I6, T9, T14: no start before its due, not more than allowed, none of an expired job."""
    for job_id, written in evidence.written.items():
        if job_id in evidence.enqs:
            yield from _judge_lives(evidence, job_id, written)


def _judge_lives(evidence: Evidence, job_id: bytes, written: list[Written]) -> Iterator[Violation]:
    due: Due | None = None
    lives = [Life()]
    for each in written:
        yield from _judge_return(evidence, each)
        lives[-1].given_back += each.was is not None and is_given_back(each) and _lost_its_process(evidence, each.was)
        if ends_attempt(each):
            due = _after_failure(evidence, each)
        for past in news(each):
            op = evidence.ops.get(past.request)
            if op is None:
                continue  # A ghost; `no_ghosts` says so.
            if past.act == "requeue":
                lives.append(_reborn(lives[-1]))
            _note_message(lives[-1], past.act, op.message)
            due = _moved(due, each, past.act, op)
        if is_claim(each):
            if due is not None:
                yield from _judge_claim(evidence, each, lives[-1], due)
            lives[-1].claims.append(each)
        if each.job.state is DEAD and lives[-1].is_clear:
            yield from _judge_death(evidence, each, lives[-1], due)
    for life in lives:
        yield from _judge_attempts(evidence, job_id, life)


def _judge_return(evidence: Evidence, written: Written) -> Iterator[Violation]:
    """T9: only what did not start is given back without costing an attempt."""
    was = written.was
    if was is not None and is_given_back(written):
        ran = evidence.ran.get((was.id, was.fence))
        if ran is not None and ran.started_us <= written.mono_us and not _lost_its_process(evidence, was):
            yield Violation("I6", f"attempt {ran.attempt} was given back although it had started", was.id)


def _lost_its_process(evidence: Evidence, job: Job) -> bool:
    """Whether its worker has said that the attempt's process was replaced for another job's fault."""
    reports = evidence.reports.get((job.id, job.fence), ())
    return any(isinstance(report.message, Release) and report.message.replaced for report in reports)


def _judge_claim(evidence: Evidence, written: Written, life: Life, due: Due) -> Iterator[Violation]:
    job = written.job
    if not due.is_reached(written):
        yield Violation("I3", f"attempt {job.attempt} was lent {due.early_us(written)} us early", job.id)
    has_run = any((job.id, claim.job.fence) in evidence.ran for claim in life.claims)
    is_limited = life.is_clear and life.expires_us is not None and not has_run and job.attempt == 1
    if is_limited and due.has_expired(written, life.expires_us or 0):
        yield Violation("I3", "an expired job was lent", job.id)


def versions_are_right(evidence: Evidence) -> Iterator[Violation]:
    """T3: a job asks for what its enq asked for, and goes only to workers that have it."""
    for job_id, applied in evidence.applied.items():
        # Of several in one commit the last one holds.
        last = {each.written.job.version: each for each in applied if each.act in ("enq", "replace")}
        for each in last.values():
            if each.written.job.specifier != canonical(each.op.message.version or ""):
                yield Violation("T3", f"{each.op.message.version} became {each.written.job.specifier}", job_id)
    for written in evidence.history.written:
        job = written.job
        if is_claim(written) and job.specifier is not None and job.holder is not None:
            version = evidence.history.versions[job.holder]
            if not satisfies(version, job.specifier):
                yield Violation("T3", f"a job that asks for {job.specifier} was lent to {version}", job.id)


def _reborn(life: Life) -> Life:
    again = Life()
    again.attempts, again.expires_us, again.is_clear = life.attempts[-1:], life.expires_us, life.is_clear
    return again


def _note_message(life: Life, act: str, message: Any) -> None:
    if act in ("enq", "replace"):
        life.attempts.append(message.max_attempts or MODULES[message.module] or ATTEMPTS)
        life.expires_us = message.expires_us
        life.replaced += act == "replace"


def _moved(due: Due | None, written: Written, act: str, op: Op) -> Due | None:
    """The due after this command, given what held before it."""
    message, wall_us = op.message, written.now.wall_us
    if act in ("cancel", "ask_stop"):
        return due
    if message.at_us is not None:
        return Due(True, message.at_us, max(message.at_us, wall_us))
    if isinstance(message, (Enq, Requeue)):
        return Due(False, op.invoked_us + message.delay_us, written.mono_us + message.delay_us)
    assert isinstance(message, Ext)
    if due is None:
        return None
    least_us, most_us = (wall_us, wall_us) if due.on_wall else (op.invoked_us, written.mono_us)
    delta_us = message.delta_us or 0
    return Due(
        due.on_wall,
        max(max(due.least_us, least_us) + delta_us, least_us),
        max(max(due.most_us, most_us) + delta_us, most_us),
    )


def _after_failure(evidence: Evidence, written: Written) -> Due:
    """The retry's due is counted from the failure, at the earliest from when the worker said so."""
    was = written.was
    assert was is not None
    delay_us = min(BACKOFF_US << (was.attempt - 1), BACKOFF_MAX_US)
    least_us, from_us = delay_us * 4 // 5, written.mono_us
    for report in evidence.reports.get((was.id, was.fence), ()):
        if isinstance(report.message, Fail):
            from_us = min(from_us, report.sent_us)
            if report.message.after_us is not None:
                least_us = min(least_us, report.message.after_us)
    return Due(False, from_us + least_us, written.mono_us + 2 * BACKOFF_MAX_US)


def _judge_death(evidence: Evidence, written: Written, life: Life, due: Due | None) -> Iterator[Violation]:
    job = written.job
    if job.reason == "expired":
        if life.expires_us is None or any((job.id, claim.job.fence) in evidence.ran for claim in life.claims):
            yield Violation("I1", "a job expired that had no limit or had started", job.id)
        elif due is not None and not due.later(life.expires_us).is_reached(written):
            yield Violation("I1", "a job expired before its time", job.id)
    if job.reason == "exhausted" and len(life.claims) < life.attempts[-1]:
        yield Violation("I1", f"a job died after {len(life.claims)} attempts of {life.attempts[-1]}", job.id)


def _judge_attempts(evidence: Evidence, job_id: bytes, life: Life) -> Iterator[Violation]:
    starts = [claim for claim in life.claims if (job_id, claim.job.fence) in evidence.ran]
    most = max(life.attempts, default=0) + life.replaced + life.given_back
    if life.is_clear and len(starts) > most:
        yield Violation("I6", f"{len(starts)} starts where {most} are allowed", job_id)
    for claim in life.claims:
        if claim.job.deaths >= CHILD_DEATHS_MAX:
            yield Violation("I6", f"it was lent again after {claim.job.deaths} deaths of its process", job_id)
        if claim.job.attempt > (claim.job.max_attempts or 0):
            yield Violation("I6", f"attempt {claim.job.attempt} of {claim.job.max_attempts} was lent", job_id)


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
    last = _stored(evidence.memory, job_id)
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


# Answers.


def answers_repeat(evidence: Evidence) -> Iterator[Violation]:
    """I10: a request takes effect once, whoever asks again is told the same, and what was refused is never done."""
    said = _grouped(
        (each for each in evidence.history.said if each.kind in (Kind.ENQ, Kind.CANCEL, Kind.EXT, Kind.REQUEUE)),
        lambda each: each.message.id if each.kind is Kind.ENQ else each.message.request,
    )
    for job_id, applied in evidence.applied.items():
        places: dict[bytes | None, int] = {}
        for place, each in enumerate(applied):
            if places.setdefault(each.op.request, place) != place:
                yield Violation("I10", f"one {each.act} took effect twice", job_id)
        for request, place in places.items():
            life_began = evidence.life_began(applied[place].written.turn)
            yield from _judge_answers(applied[place], said.get(request, []), life_began, job_id)


def _judge_answers(applied: Applied, said: list[Said], life_began: int, job_id: bytes) -> Iterator[Violation]:
    """A process of the server that ended may be contradicted by the next, unless its client has heard of the answer."""
    act, written, op = applied.act, applied.written, applied.op
    decided = [each for each in said if each.answer[0][0] not in UNDECIDED and each.turn >= life_began]
    if any(each.turn < written.turn for each in decided):
        yield Violation("I10", f"a command that was answered before took effect later ({act})", job_id)
    if any(not each.is_ok and each.turn >= written.turn for each in decided):
        yield Violation("I10", f"a resent {act} that had taken effect was refused", job_id)
    elif len({repr(tuple(each.answer[0])) for each in decided}) > 1:
        yield Violation("I10", f"a resent {act} was answered differently", job_id)
    if op.status == "fail" and op.fields[0] not in UNDECIDED:
        yield Violation("I10", f"what its client was refused took effect ({act})", job_id)
    elif op.is_ok and op.is_before(written.mono_us):
        yield Violation("I10", f"what its client was answered took effect later ({act})", job_id)


def dues_are_told_right(evidence: Evidence) -> Iterator[Violation]:
    """I3: the due that `enq` answers is the delay from the call, unless the wall clock was set meanwhile."""
    for job_id, op in evidence.enqs.items():
        message = op.message
        if not op.is_ok or op.fields[1] != job_id or message.at_us is not None or op.steps_before != op.steps_after:
            continue
        applied = evidence.applied.get(job_id, [])
        if applied and applied[0].op is not op:
            continue
        if not 0 <= op.fields[2] - op.invoked_wall_us - message.delay_us <= op.answered_wall_us - op.invoked_wall_us:
            yield Violation("I3", "enq was answered with a due that its delay does not give", job_id)


def reads_hold(evidence: Evidence) -> Iterator[Violation]:
    """I13, C5: what `stat` and `wait` say was committed, and an acknowledged job is found."""
    for each in evidence.history.said:
        if each.kind is Kind.STAT and each.is_ok:
            yield from _judge_stat(evidence, each)
        if each.kind is Kind.WAIT and each.is_ok and JobState(each.answer[0][1]) not in ENDED:
            yield Violation("I13", "wait was answered before the end", each.message.id)
    for op in evidence.history.ops:
        if op.kind is Kind.STAT and op.status == "fail" and op.fields[0] == "NOT_FOUND":
            yield from _judge_not_found(evidence, op)


def _judge_stat(evidence: Evidence, said: Said) -> Iterator[Violation]:
    status = said.answer[0][1]
    written = evidence.written.get(status["id"], [])
    before = [each for each in written if each.turn < said.turn][-1:]
    within = [each for each in written if each.turn == said.turn]
    if any(each.job.version - (each.was.version if each.was else 0) > 1 for each in within):
        return
    shown = JobState(status["state"])
    shown = WAITING if shown is JobState.READY else shown
    if not any(each.job.state is shown and each.job.attempt == status["attempts"] for each in before + within):
        yield Violation("I13", f"stat said {shown}, attempt {status['attempts']}, which was never stored", status["id"])


def _judge_not_found(evidence: Evidence, op: Op) -> Iterator[Violation]:
    enq = evidence.enqs.get(op.message.id)
    if enq is None or not enq.is_ok or enq.fields[1] != op.message.id or not enq.is_before(op.invoked_us):
        return
    if not evidence.is_forgotten(op.message.id, op.answered_us or 0):
        yield Violation("I13", "stat does not find a job that was acknowledged", op.message.id)


def last_look_agrees(evidence: Evidence) -> Iterator[Violation]:
    """At the end, what users see is what is stored, and every call has come back."""
    for op in evidence.history.ops:
        if op.status is None:
            yield Violation("I14", f"a call of {op.kind.name} never came back", op.message.id)
        if op.status == "info" and _should_have_come_back(evidence, op):
            yield Violation("I14", f"a call of {op.kind.name} was not answered although all was well", op.message.id)
    for op in evidence.last:
        job = _stored(evidence.memory, op.message.id)
        if job is None and evidence.is_forgotten(op.message.id, evidence.end_us):
            continue
        shown = op.fields[1]["state"] if op.is_ok else None
        if shown != (str(job.state) if job is not None else None):
            yield Violation("I13", f"the last look says {shown}, the store {job and job.state}", op.message.id)


def _should_have_come_back(evidence: Evidence, op: Op) -> bool:
    """Whether an answer was possible: half a minute of calm before the client gave up, and for `wait` an end by then."""
    calm_us = op.invoked_us + RESENDS_FOR_US - CALM_US
    if not evidence.history.healed_us or evidence.history.healed_us > calm_us:
        return False
    if op.kind is not Kind.WAIT:
        return True
    written = evidence.written.get(op.message.id, [])
    return bool(written) and not written[-1].job.is_live and written[-1].mono_us <= calm_us


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
