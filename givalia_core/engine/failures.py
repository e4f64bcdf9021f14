"""Attempts that end without success: failed, given back, or lost with their worker. Also the progress of running ones."""

from __future__ import annotations

from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Lease
from givalia_core.engine.leases import find_held, stale
from givalia_core.engine.records import Ended
from givalia_core.model import CHILD_DEATHS_MAX, RELEASES_MAX, RUNNING, WAITING, Job, OutcomeKind, evolve
from givalia_core.protocol.answers import TAKEN, Answer, Failed
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import FailReport, Progress, Release


def _held(batch: Batch, asked: Asked, message: FailReport | Release | Progress) -> Job:
    """Return the job of `find_held`; raise a refusal if there is none."""
    job = find_held(batch, asked, message)
    if job is None:
        raise stale(batch)
    return job


def progress(batch: Batch, asked: Asked, message: Progress) -> Answer:
    """Keep the attempt's progress as a hint, for `stat` and for waiters that want it."""
    lease = batch.desk.leases.get(_held(batch, asked, message).id)
    if lease is not None:
        lease.progress = (message.fraction, message.text)
        for waiter, wants_progress in batch.desk.waits.of(message.id).items():
            if wants_progress:
                batch.tell_progress(message.id, waiter)
    return TAKEN


def fail(batch: Batch, asked: Asked, message: FailReport) -> Answer:
    """Settle a failed attempt: retried, dead, or cancelled if a stop was asked (T5, T7, T8)."""
    job = _held(batch, asked, message)
    kind, deaths = OutcomeKind(message.kind), job.deaths + message.child_died
    after = settle_failure(batch, job, kind, message.error, message.after_us, permanent=message.permanent, deaths=deaths)
    most = after.max_attempts or batch.desk.policy.max_attempts
    wait_us = max(after.due_on_timer_us(batch.now) - batch.now.timer_us, 0) if after.state is WAITING else None
    return Failed(after.state.value, most, wait_us)


def settle_failure(
    batch: Batch,
    job: Job,
    kind: OutcomeKind,
    error: str,
    after_us: int | None = None,
    *,
    permanent: bool = False,
    deaths: int | None = None,
) -> Job:
    """Settle and return a running job whose attempt ended without success; `deaths` of its processes, if their number grew."""
    deaths = job.deaths if deaths is None else deaths
    if job.stop_asked:
        stopped = evolve(job, "stop")
        stopped.error, stopped.deaths = error, deaths
        return batch.end(job, stopped)
    reason = None
    if permanent:
        reason = "failed"
    elif deaths >= CHILD_DEATHS_MAX:
        reason = "child_died"
    elif job.attempt >= (job.max_attempts or batch.desk.policy.max_attempts):
        reason = "exhausted"
    if reason is not None:
        dead = evolve(job, "die")
        dead.reason, dead.error, dead.deaths = reason, error, deaths
        return batch.end(job, dead)
    delay_us = batch.desk.backoff_us(job) if after_us is None else after_us
    retried = evolve(job, "fail")
    retried.on_wall, retried.due_at_us = False, batch.now.timer_us + delay_us
    retried.error, retried.deaths = error, deaths
    batch.put(job, retried)
    batch.hook("on_retry", retried, outcome=Ended(kind, error))
    return retried


def release(batch: Batch, asked: Asked, message: Release) -> Answer:
    """Take back a job that the worker did not start, or that lost its process to another job's fault (T9)."""
    give_back(batch, _held(batch, asked, message), is_replaced=message.replaced)
    return TAKEN


def give_back(batch: Batch, job: Job, *, is_replaced: bool = False) -> None:
    """Let a job wait again without counting its attempt; if it was given back too often, that counts as a failure."""
    if is_replaced and job.stop_asked:
        settle_failure(batch, job, OutcomeKind.DIED, "its process was replaced for the fault of another job")
        return
    if not is_replaced and (job.stop_asked or job.releases >= RELEASES_MAX):
        settle_failure(batch, job, OutcomeKind.RELEASED, "given back unstarted")
        return
    given = evolve(job, "release")
    given.attempt -= 1
    given.releases += not is_replaced
    given.replacements += is_replaced
    expires = given.expires_us is not None and given.attempt == 0 and given.replacements == 0
    given.expires_at_us = given.due_at_us + (given.expires_us or 0) if expires else None
    batch.put(job, given)


def expire(batch: Batch, lease: Lease) -> None:
    """End a lease that no worker renewed in time (T6, T7, T8)."""
    job = batch.jobs.get(lease.job.seq, lease.job)
    if job.state is RUNNING and job.fence == lease.job.fence:
        batch.desk.losses.leases += 1
        batch.news("unreported", job, job.seq)
        settle_failure(batch, job, OutcomeKind.DIED, f"worker {job.worker} was lost: its lease ended with no report")
