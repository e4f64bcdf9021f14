"""The commonest verbs of clients: `enq`, `stat` and `wait`. `changes` has those that change a job later.

Each verb has a function that notes what must be read (`needs_…`) and one that decides: it takes its message and returns the
answer. A changing verb is only decided when its request id is not known ("Sending again" in docs/delivery.md). No function
here talks to a store or a socket; decisions are put into the batch.
"""

from __future__ import annotations

from typing import Any, Final

from givalia_core.engine import words
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Names
from givalia_core.engine.dues import due_of
from givalia_core.engine.records import Refusal, Reply
from givalia_core.errors import BadRequest, Busy, DuplicateKey, GivaliaError, NotFound, ShuttingDown, StoreFull, WrongState
from givalia_core.model import CANCELLED, DONE, ENDED, RUNNING, WAITING, Answered, Job, evolve, join_target
from givalia_core.protocol.answers import Answer, EndedCancelled, EndedDead, EndedDone, Enqueued, Shown
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Enq, Stat, Wait
from givalia_core.specifiers import canonical
from givalia_core.store.base import VARIANTS_MAX, Route
from givalia_core.views import id_in, text_id


def needs_enq(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the jobs that an enq may meet: by its id, its key and its request."""
    names.has_enq = True
    for message in asked.messages:
        if isinstance(message, GivaliaError):
            continue
        names.ids.add(message.id)
        if message.key is not None:
            names.keys.add(message.key)
        if desk.is_shared or message.if_exists in ("replace", "reschedule"):
            names.requests.add(message.id)  # Another server may have refused the request, or it has changed the job of its key.
        if message.version is not None and (route := route_of(message)) not in desk.routing.windows:
            names.variants.add(route.plain)


def enq(batch: Batch, asked: Asked, message: Enq) -> Answer:
    """Make the job, or apply `if_exists` to the live job of its key."""
    now = batch.now
    if message.at_us is None:
        on_wall, due_at_us = False, now.timer_us + message.delay_us
    else:
        on_wall, due_at_us = due_of(message.delay_us, message.at_us, now)
    holder = batch.live(message.key) if message.key is not None else None
    if holder is not None:
        return _enq_live(batch, message, holder, on_wall, due_at_us)
    admit(batch)
    due_on_wall_us = due_at_us if on_wall else due_at_us - now.timer_us + batch.told_us
    job = _new_job(batch, message, on_wall, due_at_us, due_on_wall_us)
    batch.insert(job)
    if batch.desk.listening:
        batch.hook("on_enq", job)
    return _make(Enqueued, (job.id, due_on_wall_us, batch.desk.durability))


def _new_job(batch: Batch, message: Enq, on_wall: bool, due_at_us: int, due_on_wall_us: int) -> Job:
    specifier = None if message.version is None else _admitted_specifier(batch, message)
    batch.desk.last_seq = seq = batch.desk.last_seq + 1
    job = Job(
        seq, message.id, message.key, WAITING, message.module, message.target_worker, message.priority, on_wall, due_at_us
    )
    if message.expires_us is not None:
        job.expires_at_us = due_at_us + message.expires_us
    job.enq_at_us = batch.now.wall_us if on_wall else batch.told_us  # By the clock of the due, which is never earlier.
    job.max_attempts, job.timeout_us = message.max_attempts, message.timeout_us
    job.expires_us, job.retain_us = message.expires_us, message.retain_us
    job.answered = (_make(Answered, (message.id, "enq", due_on_wall_us, batch.now.timer_us)),)
    job.params, job.specifier = message.payload, specifier
    return job


def taken(holder: Job) -> DuplicateKey:
    """Return the refusal of a command that needs a key which a live job holds."""
    return DuplicateKey(f"key {holder.key} is held by the live job {text_id(holder.id)}", id=text_id(holder.id))


def admit(batch: Batch) -> None:
    """Refuse a new job while the server takes none."""
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
    """Return the route of the job that an enq asks for."""
    specifier = None if message.version is None else canonical(message.version)
    return Route(message.module, join_target(message.target_worker, specifier))


def _admitted_specifier(batch: Batch, message: Enq) -> str | None:
    route = route_of(message)
    if not batch.has_room(route):
        words = f"jobs wait that ask for {VARIANTS_MAX} different versions of {message.module}, as many as this server takes"
        raise Refusal(Busy(words, retry_after=10.0))
    return route.specifier


def _enq_live(batch: Batch, message: Enq, holder: Job, on_wall: bool, due_at_us: int) -> Answer:
    if message.if_exists == "keep":
        return Enqueued(holder.id, holder.due_on_wall_us(batch.now), batch.desk.durability)
    if message.if_exists == "refuse":
        raise Refusal(taken(holder))
    if holder.state is RUNNING:
        raise Refusal(WrongState(f"the job of key {message.key} is running", state="running"))
    job = evolve(holder, message.if_exists)
    if message.if_exists == "replace":
        job.module, job.target_worker, job.priority = message.module, message.target_worker, message.priority
        # One attempt is always left, however many were made before the replacement.
        job.max_attempts = message.max_attempts and max(message.max_attempts, holder.attempt + 1)
        job.timeout_us, job.backoff_us = message.timeout_us, None
        job.expires_us, job.retain_us = message.expires_us, message.retain_us
        job.params, job.specifier = message.payload, _admitted_specifier(batch, message)
    move(batch, holder, job, message.if_exists, message.id, on_wall, due_at_us)
    return Enqueued(job.id, job.due_on_wall_us(batch.now), batch.desk.durability)


def move(batch: Batch, job: Job, moved: Job, act: str, request: bytes, on_wall: bool, due_at_us: int) -> None:
    """Replace `job` by `moved`, with another due."""
    moved.on_wall, moved.due_at_us = on_wall, due_at_us
    # An attempt that was given back because its process was replaced had started.
    expires = moved.expires_us is not None and moved.attempt == 0 and not moved.replacements
    moved.expires_at_us = due_at_us + (moved.expires_us or 0) if expires else None
    moved.answered = batch.answered(job, request, act, moved.due_on_wall_us(batch.now))
    batch.put(job, moved)
    batch.hook("on_ext", moved)


def needs_named(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the jobs that commands name, by key or id, and the jobs that the commands have changed before."""
    for message in asked.messages:
        if isinstance(message, GivaliaError):
            continue
        job_id = message.id
        if message.key is not None:
            names.keys.add(message.key)
            names.past_keys.add(message.key)
            job_id = job_id or id_in(message.key)
        if job_id is not None:
            names.ids.add(job_id)
        request = getattr(message, "request", None)
        if request is not None:
            names.requests.add(request)


def stat(batch: Batch, asked: Asked, message: Stat) -> Answer:
    """Describe the named job; a key means its live job, else the one that ended last."""
    job = named_job(batch, message)
    shown, result = words.status(batch.desk, job, batch.now), job.result or b""
    if not message.params:
        return Shown(shown, result)
    shown["params_bytes"] = len(job.params)
    return Shown(shown, result + job.params)


def wait(batch: Batch, asked: Asked, message: Wait) -> Answer | None:
    """Wait for the end of the job, which may come in this batch; the answer is an effect of its own."""
    if len(asked.messages) > 1:
        raise Refusal(BadRequest("a wait is alone in its frame"))
    job = named_job(batch, message)
    waits = batch.desk.waits
    if job.state in ENDED:
        batch.effects.append((job.seq, Reply(asked.conn, asked.request, [end_of(job)], job.id)))
        return None
    if not waits.add(job.id, asked.conn, asked.request, wants_progress=message.progress):
        raise Refusal(Busy("as many jobs are waited for as this server takes", retry_after=1.0))
    if message.progress:
        batch.tell_progress(job.id, (asked.conn, asked.request))
    if batch.desk.is_shared:
        batch.follow(job)
    return None


def named_job(batch: Batch, message: Any) -> Job:
    """Return the job that a command names; a key means its live job, else the one that ended last."""
    if (message.key is None) == (message.id is None):
        raise Refusal(BadRequest(ONE_NAME))
    if message.id is None:
        live, last = batch.of_key(message.key)
        job = live or last
    elif (job := batch.by_id(message.id)) is not None and job.expires_at_us is not None:
        job = batch.unexpired(job)
    if job is None:
        raise Refusal(not_found(batch, message))
    return job


ONE_NAME = "name the job by its key or by its id, and by one of them only"


def not_found(batch: Batch, message: Any) -> NotFound:
    """Return the refusal of a command whose name no job has."""
    meant = None if message.key is None else id_in(message.key)
    if message.id is not None:
        name = f"id {text_id(message.id)}"
    else:
        name = f"key {message.key}" if meant is None else f"key or id {message.key}"
    hold = batch.desk.aside.hold_of_name(message.key, message.id or meant)
    why = "" if hold is None else f"; {hold.words}"
    return NotFound(f"no job has the {name}{why}")


def end_of(job: Job) -> Answer:
    """Return the answer to a `wait` for a job that has ended."""
    if job.state is DONE:
        return EndedDone(job.result_error, job.result or b"")
    if job.state is CANCELLED:
        return EndedCancelled()
    return EndedDead(job.reason, job.error)


_make: Final = tuple.__new__  # The constructor of a named tuple takes twice as long.
