"""What users ask for: one function a verb, each reading its message, deciding, and returning its answer.

A changing verb is only asked when its request id is not known (CONTRACT C1); `KNOWN` has the function that finds the answer
of one that changed a job before. No function here talks to a store or a socket; what it decides is put into the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from givalia_core.engine import dues, words
from givalia_core.engine.desk import Batch
from givalia_core.engine.records import Refusal, Reply
from givalia_core.errors import BadRequest, Busy, DuplicateKey, NotFound, ShuttingDown, StoreFull, WrongState
from givalia_core.model import (
    CANCELLED,
    DEAD,
    ENDED,
    RUNNING,
    WAITING,
    Answered,
    Job,
    evolve,
    join_target,
)
from givalia_core.protocol.answers import Answer, Cancelled, Enqueued, LendingResumed, Moved, Shown
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import (
    Cancel,
    Enq,
    Ext,
    Kind,
    Requeue,
    ResumeLending,
    Stat,
    Stop,
    Wait,
    item,
)
from givalia_core.specifiers import canonical
from givalia_core.store.base import VARIANTS_MAX, Route
from givalia_core.views import id_in, text_id


def enq(batch: Batch, asked: Asked, message: Enq) -> Answer:
    """Make the job, or do with the live one of its key what `if_exists` says."""
    now = batch.now
    on_wall, due_at_us = dues.due_of(message.delay_us, message.at_us, now)
    holder = batch.live(message.key) if message.key is not None else None
    if holder is not None:
        return _enq_live(batch, message, holder, on_wall, due_at_us)
    _admit(batch)
    specifier = None if message.version is None else _admitted_specifier(batch, message)
    due_on_wall_us = due_at_us if on_wall else due_at_us - now.timer_us + batch.told_us
    job = Job(
        batch.desk.next_seq(),  # As far as possible without names, which cost half a microsecond in each job.
        message.id,
        message.key,
        WAITING,
        message.module,
        message.target_worker,
        message.priority,
        on_wall,
        due_at_us,
        None if message.expires_us is None else due_at_us + message.expires_us,
        enq_at_us=now.wall_us if on_wall else batch.told_us,  # As its due, which is never before.
        max_attempts=message.max_attempts,
        timeout_us=message.timeout_us,
        expires_us=message.expires_us,
        retain_us=message.retain_us,
        answered=(Answered(message.id, "enq", due_on_wall_us, now.timer_us),),
        params=message.payload,
        specifier=specifier,
    )
    batch.insert(job)
    batch.hook("on_enq", job)
    return Enqueued(job.id, due_on_wall_us, batch.desk.durability)


def _taken(holder: Job) -> DuplicateKey:
    return DuplicateKey(f"key {holder.key} is held by the live job {text_id(holder.id)}", id=text_id(holder.id))


def _admit(batch: Batch) -> None:
    desk = batch.desk
    if desk.is_draining:
        raise Refusal(ShuttingDown("the server is draining and takes no new job", retry_after=2.0))
    if desk.is_full:
        raise Refusal(StoreFull("the disk of the store is full; no new job is taken until there is room"))
    if desk.busy:
        raise Refusal(Busy(next(iter(desk.busy.values())), retry_after=1.0))
    if desk.live >= desk.policy.live_max:
        raise Refusal(Busy(desk.all_taken, retry_after=10.0))


def route_of(message: Enq) -> Route:
    """Where the job is to go."""
    specifier = None if message.version is None else canonical(message.version)
    return Route(message.module, join_target(message.target_worker, specifier))


def _admitted_specifier(batch: Batch, message: Enq) -> str | None:
    route = route_of(message)
    if not batch.has_room(route):
        words = f"jobs wait that ask for {VARIANTS_MAX} different versions of {message.module}, as many as this server takes"
        raise Refusal(Busy(words, retry_after=10.0))
    return route.specifier


def _known_enq(batch: Batch, message: Enq) -> Answer | None:
    if batch.is_unheard(message.id):
        return None
    job = batch.by_id(message.id) or batch.by_request(message.id)
    if job is None:
        return None
    past = _past(job, message.id)
    due_at_us = job.due_on_wall_us(batch.now) if past is None else past.due_at_us
    return Enqueued(job.id, due_at_us, batch.desk.durability)


def _past(job: Job, request: bytes) -> Answered | None:
    return next((past for past in job.answered if past.request == request), None)


def _enq_live(batch: Batch, message: Enq, holder: Job, on_wall: bool, due_at_us: int) -> Answer:
    if message.if_exists == "keep":
        return Enqueued(holder.id, holder.due_on_wall_us(batch.now), batch.desk.durability)
    if message.if_exists == "refuse":
        raise Refusal(_taken(holder))
    if holder.state is RUNNING:
        raise Refusal(WrongState(f"the job of key {message.key} is running", state="running"))
    job = evolve(holder, message.if_exists)
    if message.if_exists == "replace":
        job.module, job.target_worker, job.priority = message.module, message.target_worker, message.priority
        # An attempt is always left, however many were made before it was replaced.
        job.max_attempts = message.max_attempts and max(message.max_attempts, holder.attempt + 1)
        job.timeout_us, job.backoff_us = message.timeout_us, None
        job.expires_us, job.retain_us = message.expires_us, message.retain_us
        job.params, job.specifier = message.payload, _admitted_specifier(batch, message)
    _move(batch, holder, job, message.if_exists, message.id, on_wall, due_at_us)
    return Enqueued(job.id, job.due_on_wall_us(batch.now), batch.desk.durability)


def _move(batch: Batch, job: Job, moved: Job, act: str, request: bytes, on_wall: bool, due_at_us: int) -> None:
    """Let `moved` stand where `job` stood, with another due."""
    moved.on_wall, moved.due_at_us = on_wall, due_at_us
    # An attempt that was given back because its process was replaced had started.
    expires = moved.expires_us is not None and moved.attempt == 0 and not moved.replacements
    moved.expires_at_us = due_at_us + (moved.expires_us or 0) if expires else None
    moved.answered = batch.answered(job, request, act, moved.due_on_wall_us(batch.now))
    batch.put(job, moved)
    batch.hook("on_ext", moved)


def cancel(batch: Batch, asked: Asked, message: Cancel) -> Answer:
    """Call the job off; it will not start again once this is answered."""
    job = _known(batch, message)
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


def _known_cancel(batch: Batch, message: Cancel) -> Answer | None:
    job = batch.by_request(message.request)
    if job is None:
        return None
    past = _past(job, message.request)
    return Cancelled("stop_requested" if past is not None and past.act == "ask_stop" else "cancelled")


def _ask_stop(batch: Batch, job: Job, request: bytes) -> None:
    asked = evolve(job, "ask_stop")
    asked.stop_asked, asked.answered = True, batch.answered(job, request, "ask_stop", 0)
    batch.put(job, asked)  # If another server looks after the job, it hears of the change and does the rest.
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
    job = _known(batch, message)
    if job.state is not WAITING:
        raise Refusal(_wrong_state(batch, job, message))
    on_wall, due_at_us = dues.moved(job, message.delta_us, message.at_us, now)
    moved = evolve(job, "ext")
    _move(batch, job, moved, "ext", message.request, on_wall, due_at_us)
    return Moved(moved.id, moved.due_on_wall_us(now))


def _known_move(batch: Batch, message: Ext | Requeue) -> Answer | None:
    job = batch.by_request(message.request)
    if job is None:
        return None
    past = _past(job, message.request)
    return Moved(job.id, job.due_on_wall_us(batch.now) if past is None else past.due_at_us)


def requeue(batch: Batch, asked: Asked, message: Requeue) -> Answer:
    """Give a dead or cancelled job another life, with all its attempts."""
    _one_name(message)
    job, last = batch.named(message.key, message.id)
    if message.id is None and job is not None and last is not None:
        raise Refusal(_taken(job))
    job = _existing(batch, job or last, message)
    if job.state not in (DEAD, CANCELLED):
        raise Refusal(_wrong_state(batch, job, message))
    holder = batch.live(job.key) if job.key is not None else None
    if holder is not None:
        raise Refusal(_taken(holder))
    _admit(batch)
    on_wall, due_at_us = dues.due_of(message.delay_us, message.at_us, batch.now)
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


def resume(batch: Batch, asked: Asked, message: ResumeLending) -> Answer:
    """End the hold of this server; jobs that are ready are lent from the next batch on."""
    is_holding = batch.desk.is_holding
    if is_holding:
        batch.ends_hold = True
        batch.news("resumed", asked.conn)
    return LendingResumed(is_holding)


def _known_resume(batch: Batch, message: ResumeLending) -> Answer | None:
    """No job knows it."""
    return None


KNOWN: Final[dict[Kind, Callable[[Batch, Any], Answer | None]]] = {
    Kind.ENQ: _known_enq,
    Kind.CANCEL: _known_cancel,
    Kind.EXT: _known_move,
    Kind.REQUEUE: _known_move,
    Kind.RESUME_LENDING: _known_resume,
}
"""By the kind of a changing command, whose first field is its request id: what finds the answer that it got when it changed
a job; None if no job knows the request."""


def stat(batch: Batch, asked: Asked, message: Stat) -> Answer:
    """What is known of a job: the live one of a key, else the one that ended last."""
    job = _known(batch, message)
    shown, result = words.status(batch.desk, job, batch.now), job.result or b""
    if not message.params:
        return Shown(shown, result)
    shown["params_bytes"] = len(job.params)
    return Shown(shown, result + job.params)


def wait(batch: Batch, asked: Asked, message: Wait) -> Answer | None:
    """Answer when the job has ended, which may be in this batch; the answer is an effect of its own."""
    if len(asked.messages) > 1:
        raise Refusal(BadRequest("a wait is alone in its frame"))
    job = _known(batch, message)
    waits = batch.desk.waits
    if job.state in ENDED:
        batch.effects.append((job.seq, Reply(asked.conn, asked.request, [words.end(job)], job.id)))
        return None
    if not waits.has_room(asked.conn):
        raise Refusal(Busy("as many jobs are waited for as this server takes", retry_after=1.0))
    waits.add(job.id, asked.conn, asked.request, wants_progress=message.progress)
    if message.progress:
        batch.tell_progress(job.id, (asked.conn, asked.request))
    batch.follow(job)
    return None


def _known(batch: Batch, message: Stat | Wait | Cancel | Ext) -> Job:
    """The job that a command names; of a key the live one, else the one that ended last."""
    _one_name(message)
    job, last = batch.named(message.key, message.id)
    return _existing(batch, job or last, message)


def _existing(batch: Batch, job: Job | None, message: Any) -> Job:
    _one_name(message)
    if job is None:
        meant = None if message.key is None else id_in(message.key)
        if message.id is not None:
            name = f"id {text_id(message.id)}"
        else:
            name = f"key {message.key}" if meant is None else f"key or id {message.key}"
        hold = batch.desk.aside.hold_of_name(message.key, message.id or meant)
        why = "" if hold is None else f"; {hold.words}"
        raise Refusal(NotFound(f"no job has the {name}{why}"))
    return job


def _wrong_state(batch: Batch, job: Job, message: Cancel | Ext | Requeue) -> WrongState:
    is_last = message.key is not None and message.key == job.key and job.state in ENDED
    named = f"the last job of key {job.key}" if is_last else "the job"
    state = job.shown_state(batch.now)
    return WrongState(f"{named} is {state}", state=str(state))


def _one_name(message: Any) -> None:
    if (message.key is None) == (message.id is None):
        raise Refusal(BadRequest("name the job by its key or by its id, and by one of them only"))
