"""Leases: how they begin, how workers report the end of attempts, and how they end with no report.

A report names the lease it is about by job and fence. A fence that is not the job's present one changes nothing and is
answered STALE (CONTRACT C7); one that already settled the job is answered OK again.
"""

from __future__ import annotations

from typing import Final

from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Lease, Names
from givalia_core.engine.records import Ended, Refusal
from givalia_core.errors import GivaliaError, Stale
from givalia_core.model import (
    CHILD_DEATHS_MAX,
    DONE,
    RELEASES_MAX,
    RUNNING,
    WAITING,
    Job,
    OutcomeKind,
    evolve,
)
from givalia_core.protocol.answers import TAKEN, Answer, Failed
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import (
    Fail,
    Progress,
    Release,
    Succeed,
)
from givalia_core.takers import Room

OWN_CODE: Final = 0  # In place of a connection, whose numbers begin at 1: a job's own code decides in a transaction.


def needs_held(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the jobs that a worker says it holds and of which memory knows no lease."""
    leases = desk.leases
    for message in asked.messages:
        if not isinstance(message, GivaliaError) and message.id not in leases:
            names.ids.add(message.id)


def needs_reported(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the same of a report, and how many more jobs the worker can take then."""
    leases = desk.leases
    for message in asked.messages:
        if not isinstance(message, GivaliaError) and message.id not in leases:
            names.ids.add(message.id)
    names.reporting[asked.conn] = names.reporting.get(asked.conn, 0) + len(asked.messages)


def _find_held(batch: Batch, asked: Asked, message: Succeed | Fail | Release | Progress) -> Job | None:
    """Return the running job whose lease the message is about, if it was lent to the worker process that sends it.

    The connection may be another than the one that the job was lent on. What the job's own code decides in a transaction of
    the database, to which it has access, comes over none.
    """
    desk, job_id = batch.desk, message.id
    lease = desk.leases.get(job_id)
    job = batch.by_id(job_id) if lease is None else batch.jobs.get(lease.job.seq, lease.job)
    if job is not None and job.state is RUNNING and job.fence == message.fence:
        session = desk.routing.sessions.get(asked.conn)
        if (session is not None and job.holder == session.join.instance) or asked.conn == OWN_CODE:
            return job
    return None


def _held(batch: Batch, asked: Asked, message: Fail | Release | Progress) -> Job:
    """Return the same job; raise a refusal if there is none."""
    job = _find_held(batch, asked, message)
    if job is None:
        raise _stale(batch)
    return job


def _stale(batch: Batch) -> Refusal:
    batch.desk.stale += 1
    return Refusal(Stale("the lease is no longer this worker's"))


def progress(batch: Batch, asked: Asked, message: Progress) -> Answer:
    """A hint of how far the attempt is, for whoever asks and for those who wait and want to hear of it."""
    lease = batch.desk.leases.get(_held(batch, asked, message).id)
    if lease is not None:
        lease.progress = (message.fraction, message.text)
        for waiter, wants_progress in batch.desk.waits.of(message.id).items():
            if wants_progress:
                batch.tell_progress(message.id, waiter)
    return TAKEN


def succeed(batch: Batch, asked: Asked, message: Succeed) -> Answer:
    """The job is done (T4), also if it was asked to stop: its effect happened."""
    job = _find_held(batch, asked, message)
    if job is None:
        done = batch.by_id(message.id)
        if done is not None and done.state is DONE and done.fence == message.fence:
            return TAKEN  # The worker says so once more.
        raise _stale(batch)
    done = evolve(job, "succeed")
    done.result = None if message.result_error else message.payload
    done.result_error, done.error = message.result_error, None
    batch.end(job, done)
    return TAKEN


def fail(batch: Batch, asked: Asked, message: Fail) -> Answer:
    """The attempt failed: retried, dead, or cancelled if a stop was asked (T5, T7, T8)."""
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
    """Return what becomes of a running job whose attempt ended without success; `deaths` of its processes, if it grew."""
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
    """The worker gives a job back that it did not start, or that lost its process to another job's fault (T9)."""
    give_back(batch, _held(batch, asked, message), is_replaced=message.replaced)
    return TAKEN


def give_back(batch: Batch, job: Job, *, is_replaced: bool = False) -> None:
    """Put a job back where it was, its attempt not counted; if it was often not started, that counts as a failure."""
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
    """End a lease that nobody renewed in time (T6, T7, T8)."""
    job = batch.jobs.get(lease.job.seq, lease.job)
    if job.state is RUNNING and job.fence == lease.job.fence:
        batch.desk.losses.leases += 1
        batch.news("unreported", job, job.seq)
        settle_failure(batch, job, OutcomeKind.DIED, f"worker {job.worker} was lost: its lease ended with no report")


def claim(batch: Batch, job: Job, room: Room) -> None:
    """Lend a due job to a worker (T3): the attempt and its fence are durable before the worker hears of it."""
    join, announced, policy = room.session.join, room.session.announced[job.module], batch.desk.policy
    claimed = evolve(job, "claim")
    claimed.attempt = attempt = job.attempt + 1
    batch.desk.last_fence = claimed.fence = batch.desk.last_fence + 1
    claimed.worker, claimed.holder, claimed.keeper = join.name, join.instance, batch.desk.me
    claimed.expires_at_us, claimed.started_at_us = None, batch.told_us
    claimed.max_attempts = max(job.max_attempts or announced.max_attempts or policy.max_attempts, attempt)
    claimed.timeout_us = job.timeout_us or announced.timeout_us
    if job.backoff_us is None:
        backoff_us = announced.backoff_us if announced.backoff_us is not None else policy.backoff_us
        backoff_max_us = announced.backoff_max_us if announced.backoff_max_us is not None else policy.backoff_max_us
        claimed.backoff_us = backoff_us, max(backoff_max_us, backoff_us)
    batch.claims[job.seq] = room
    room.lend(len(job.params))
    batch.put(job, claimed)
