"""The judge's checks of answers: each answer is final, is true, and comes if it can."""

from __future__ import annotations

from collections.abc import Iterator

from sim_evidence import Applied, Evidence, Violation, grouped, stored
from sim_history import Op, Said
from sim_setup import CALM_US, RESENDS_FOR_US

from givalia_core.model import (
    ENDED,
    WAITING,
    JobState,
)
from givalia_core.protocol.messages import Kind

UNDECIDED = ("BUSY", "SHUTTING_DOWN", "STORE_FULL", "UNAUTHORIZED", "BAD_REQUEST", "TOO_LARGE")


def answers_repeat(evidence: Evidence) -> Iterator[Violation]:
    """I10: a request takes effect once, whoever asks again is told the same, and what was refused is never done."""
    said = grouped(
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
        job = stored(evidence.memory, op.message.id)
        if job is None and evidence.is_forgotten(op.message.id, evidence.end_us):
            continue
        shown = op.fields[1]["state"] if op.is_ok else None
        if shown != (str(job.state) if job is not None else None):
            yield Violation("I13", f"the last look says {shown}, the store {job and job.state}", op.message.id)


def _should_have_come_back(evidence: Evidence, op: Op) -> bool:
    """Return whether an answer was possible: half a minute of calm before the client gave up, and for `wait` an end."""
    calm_us = op.invoked_us + RESENDS_FOR_US - CALM_US
    if not evidence.history.healed_us or evidence.history.healed_us > calm_us:
        return False
    if op.kind is not Kind.WAIT:
        return True
    written = evidence.written.get(op.message.id, [])
    return bool(written) and not written[-1].job.is_live and written[-1].mono_us <= calm_us
