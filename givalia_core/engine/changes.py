"""The verbs that change an existing job (`cancel`, `ext`, `requeue`), and `resume`, which ends the server's hold.

As in `verbs`, each verb has a function that notes what must be read and one that decides. `known_…` finds the answer of a
request that changed a job before; None if no job knows the request.
"""

from __future__ import annotations

from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Names
from givalia_core.engine.dues import due_of, moved_due
from givalia_core.engine.records import Refusal
from givalia_core.engine.verbs import admit, move, named_job, needs_named, taken
from givalia_core.errors import BadRequest, GivaliaError, WrongState
from givalia_core.model import CANCELLED, DEAD, ENDED, RUNNING, WAITING, Answered, Job, evolve
from givalia_core.protocol.answers import Answer, Cancelled, Enqueued, LendingResumed, Moved
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Cancel, Enq, Ext, Kind, Requeue, ResumeLending, Stop
from givalia_core.views import id_in


def _past(job: Job, request: bytes) -> Answered | None:
    return next((past for past in job.answered if past.request == request), None)


def known_enq(batch: Batch, message: Enq) -> Answer | None:
    """Return the answer of an enq that made a job, or changed the job of its key."""
    job = batch.by_id(message.id) or batch.by_request(message.id)
    if job is None:
        return None
    past = _past(job, message.id)
    due_at_us = job.due_on_wall_us(batch.now) if past is None else past.due_at_us
    return Enqueued(job.id, due_at_us, batch.desk.durability)


def cancel(batch: Batch, asked: Asked, message: Cancel) -> Answer:
    """Cancel the job; it does not start again once this is answered."""
    job = named_job(batch, message)
    if job.state is CANCELLED:
        return Cancelled("cancelled")
    if job.state is WAITING:
        cancelled = evolve(job, "cancel")
        cancelled.answered = batch.answered(job, message.request, "cancel", 0)
        batch.hook("on_cancel", batch.end(job, cancelled), running=False)
        return Cancelled("cancelled")
    if job.state is not RUNNING or not message.running:
        raise Refusal(_wrong_state(batch, job, message))
    if not job.stop_asked:
        _ask_stop(batch, job, message.request)
    return Cancelled("stop_requested")


def known_cancel(batch: Batch, message: Cancel) -> Answer | None:
    """Return the answer of a cancel that changed a job."""
    job = batch.by_request(message.request)
    if job is None:
        return None
    past = _past(job, message.request)
    return Cancelled("stop_requested" if past is not None and past.act == "ask_stop" else "cancelled")


def _ask_stop(batch: Batch, job: Job, request: bytes) -> None:
    asked = evolve(job, "ask_stop")
    asked.stop_asked, asked.answered = True, batch.answered(job, request, "ask_stop", 0)
    batch.put(job, asked)  # If another server looks after the job, that server hears of the change and does the rest.
    lease = batch.desk.leases.get(job.id)
    room = lease.room if lease is not None else batch.claims.get(job.seq)
    if room is None and job.keeper == batch.desk.me:
        batch.hook("on_cancel", job, running=True)
    elif room is not None:
        batch.tell(job.seq, room.session.conn, Kind.STOP, item(Stop(job.id, job.fence)))


def ext(batch: Batch, asked: Asked, message: Ext) -> Answer:
    """Move the due of a job that has not started."""
    if (message.delta_us is None) == (message.at_us is None):
        raise Refusal(BadRequest("ext takes either a time or an at"))
    now = batch.now
    job = named_job(batch, message)
    if job.state is not WAITING:
        raise Refusal(_wrong_state(batch, job, message))
    on_wall, due_at_us = moved_due(job, message.delta_us, message.at_us, now)
    moved = evolve(job, "ext")
    move(batch, job, moved, "ext", message.request, on_wall, due_at_us)
    return Moved(moved.id, moved.due_on_wall_us(now))


def known_move(batch: Batch, message: Ext | Requeue) -> Answer | None:
    """Return the answer of an ext or requeue that changed a job."""
    job = batch.by_request(message.request)
    if job is None:
        return None
    past = _past(job, message.request)
    return Moved(job.id, job.due_on_wall_us(batch.now) if past is None else past.due_at_us)


def needs_requeue(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the named jobs; note also which are named by id, since only such a job itself says what its key is."""
    needs_named(names, asked, desk)
    for message in asked.messages:
        if not isinstance(message, GivaliaError):
            job_id = message.id or (None if message.key is None else id_in(message.key))
            if job_id is not None:
                names.requeued.add(job_id)


def requeue(batch: Batch, asked: Asked, message: Requeue) -> Answer:
    """Give a dead or cancelled job another life, with all its attempts."""
    if message.key is not None and message.id is None:
        live, last = batch.of_key(message.key)
        if live is not None and last is not None:
            raise Refusal(taken(live))
    job = named_job(batch, message)
    if job.state not in (DEAD, CANCELLED):
        raise Refusal(_wrong_state(batch, job, message))
    holder = batch.live(job.key) if job.key is not None else None
    if holder is not None:
        raise Refusal(taken(holder))
    admit(batch)
    on_wall, due_at_us = due_of(message.delay_us, message.at_us, batch.now)
    again = evolve(job, "requeue")
    again.on_wall, again.due_at_us = on_wall, due_at_us
    again.expires_at_us = None if job.expires_us is None else due_at_us + job.expires_us
    again.ended_at_us, again.forget_at_us, again.started_at_us = 0, None, 0
    again.attempt = again.releases = again.replacements = again.deaths = 0
    again.stop_asked, again.reason, again.result, again.result_error = False, None, None, None
    due_on_wall_us = again.due_on_wall_us(batch.now)
    again.answered = batch.answered(job, message.request, "requeue", due_on_wall_us)
    batch.put(job, again)
    batch.hook("on_requeue", again)
    return Moved(again.id, due_on_wall_us)


def needs_resume(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the requests, whose answers a shared store may have."""
    names.requests.update(message.request for message in asked.messages if not isinstance(message, GivaliaError))


def resume_lending(batch: Batch, asked: Asked, message: ResumeLending) -> Answer:
    """End the hold of this server; ready jobs are lent from the next batch on."""
    is_holding = batch.desk.is_holding
    if is_holding:
        batch.ends_hold = True
        batch.news("resumed", asked.conn)
    return LendingResumed(is_holding)


def known_to_none(batch: Batch, message: ResumeLending) -> Answer | None:
    """Return None: no job knows the request."""
    return None


def _wrong_state(batch: Batch, job: Job, message: Cancel | Ext | Requeue) -> WrongState:
    is_last = message.key is not None and message.key == job.key and job.state in ENDED
    named = f"the last job of key {job.key}" if is_last else "the job"
    state = job.shown_state(batch.now)
    return WrongState(f"{named} is {state}", state=str(state))
