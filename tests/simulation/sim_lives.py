"""The judge's checks of the starts of jobs: when, how often, and on which versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sim_evidence import Due, Evidence, Life, Violation, ends_attempt, is_claim, is_given_back, news
from sim_history import Op, Written
from sim_setup import ATTEMPTS, BACKOFF_MAX_US, BACKOFF_US, MODULES

from givalia_core.model import (
    CHILD_DEATHS_MAX,
    DEAD,
    Job,
)
from givalia_core.protocol.messages import Enq, Ext, FailReport, Release, Requeue
from givalia_core.specifiers import canonical, satisfies


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
    """Return whether its worker reported that the attempt's process was replaced because of another job."""
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
        if isinstance(report.message, FailReport):
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
