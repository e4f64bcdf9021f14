"""The verbs of workers about themselves: join, announce, credit, beat, and resume, which names their leases again."""

from __future__ import annotations

from givalia_core.engine.batch import NOBODY, Batch
from givalia_core.engine.desk import Desk, Lease, Names
from givalia_core.engine.failures import give_back
from givalia_core.engine.leases import needs_held
from givalia_core.engine.records import Refusal
from givalia_core.errors import BadRequest, GivaliaError, Stale
from givalia_core.model import (
    DONE,
    RUNNING,
    Job,
    evolve,
)
from givalia_core.protocol.answers import TAKEN, Answer, Joined
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import (
    PROCESSES_MAX,
    Announce,
    Credit,
    Join,
    Kind,
    NamedLease,
    Process,
    Stop,
)
from givalia_core.takers import WorkerSession


def needs_nothing(names: Names, asked: Asked, desk: Desk) -> None:
    """Note nothing: what the message says concerns memory alone."""


def needs_resumed(names: Names, asked: Asked, desk: Desk) -> None:
    """Note the same of all that a worker holds: it may come from another server, which may have taken some of it over."""
    needs_held(names, asked, desk)
    if desk.is_shared:
        names.resumed |= {
            message.id for message in asked.messages if not isinstance(message, GivaliaError)
        } & desk.leases.keys()


def join(batch: Batch, asked: Asked, message: Join) -> Answer:
    """A worker process introduces itself; an older connection of the same process is over."""
    routing = batch.desk.routing
    if asked.conn in routing.sessions:
        leave(batch, asked.conn)
    if (session := routing.roster.of_instance(message.instance)) is not None:
        leave(batch, session.conn)
        batch.close(session.conn, "the same worker has connected again")
    batch.desk.losses.join(message.instance)
    joined = WorkerSession(asked.conn, message, batch.now)
    routing.join(joined)
    batch.news("joined", joined)
    return Joined(batch.desk.policy.lease_us, batch.desk.client_port)


def lose(batch: Batch, conn: int, why: str) -> None:
    """A connection is gone, or of no use any more; if it was that of a worker, the log says so."""
    session = batch.desk.routing.sessions.get(conn)
    if session is not None and not batch.desk.is_draining:
        rooms = session.rooms.values()
        held = sum(room.held for room in rooms)
        if held or any(room.capacity for room in rooms):
            batch.news("gone", session, jobs=held, why=why)
        else:
            batch.news("left", session)
    leave(batch, conn)


def silence(batch: Batch, conn: int) -> None:
    """A worker missed two beats: its connection is of no use any more."""
    batch.close(conn, "it missed two beats")
    lose(batch, conn, "it missed two beats")


def leave(batch: Batch, conn: int) -> None:
    """A connection is gone. Its leases live on: their worker may come back and settle them before they end."""
    session = batch.desk.routing.leave(conn)
    if session is not None:
        batch.desk.losses.leave(session, batch.now.mono_us)
        for lease in batch.desk.leases.of_holder(session.join.instance):
            if lease.session is session:
                lease.room = None
    batch.desk.waits.leave(conn)


def announce(batch: Batch, asked: Asked) -> list[Answer]:
    """A worker says which modules it has; this replaces what it said before."""
    session = _session(batch, asked)
    served = [message for message in asked.messages if isinstance(message, Announce)]
    batch.desk.routing.announce(session, served)
    return [each if isinstance(each, GivaliaError) else TAKEN for each in asked.messages]


def resume(batch: Batch, asked: Asked) -> list[Answer]:
    """After joining, a worker names the leases it holds; those of it that it does not name never reached it (T9)."""
    session = _session(batch, asked)
    if not session.has_resumed:  # What it was lent since is not for it to name, if this is decided again.
        batch.resumed.append(session)
        named = {message.id for message in asked.messages if isinstance(message, NamedLease)}
        asking, batch.author = batch.author, NOBODY
        for lease in batch.desk.leases.of_holder(session.join.instance):
            job = batch.jobs.get(lease.job.seq, lease.job)
            if job.state is RUNNING and job.holder == session.join.instance and job.id not in named:
                give_back(batch, job)
        batch.author = asking
    return _take_up_all(batch, session, asked)


def _take_up_all(batch: Batch, session: WorkerSession, asked: Asked) -> list[Answer]:
    answers: list[Answer] = []
    place, _ = batch.author
    for number, message in enumerate(asked.messages):
        batch.author = place, number
        answers.append(_take_up(batch, session, message))
    return answers


def _take_up(batch: Batch, session: WorkerSession, message: NamedLease | GivaliaError) -> Answer:
    if isinstance(message, GivaliaError):
        return message
    lease = batch.desk.leases.get(message.id)
    job = _present(batch, message.id)
    if job is not None and job.state is DONE and job.fence == message.fence:
        return TAKEN  # Its code, which has yet to return, may have completed it in a transaction.
    if job is None or not _is_holder(session, job, message.fence):
        return Stale("the lease is no longer this worker's")
    if lease is None:
        adopt(batch, job, session, batch.desk.policy.lease_us)
    else:
        if lease.session is not session:
            lease.room = session.room(job.module)
            lease.room.held += 1
        lease.expires_mono_us = batch.now.mono_us + batch.desk.policy.lease_us
    if job.stop_asked:
        batch.tell(0, session.conn, Kind.STOP, item(Stop(message.id, message.fence, True)))
    return TAKEN


def _present(batch: Batch, job_id: bytes) -> Job | None:
    """A job as this batch has left it: one that this server lent from memory, any other as it was read."""
    lease = batch.desk.leases.get(job_id)
    return batch.by_id(job_id) if lease is None else batch.jobs.get(lease.job.seq, lease.job)


def adopt(batch: Batch, job: Job, session: WorkerSession | None, lent_us: int) -> None:
    """Look after a lease from now on that another server granted; its worker is connected here, or has `lent_us` to be."""
    adopted = evolve(job, "adopt")
    adopted.keeper = batch.desk.me
    batch.put(job, adopted)
    batch.taken[job.seq] = session, lent_us


def credit(batch: Batch, asked: Asked, message: Credit) -> Answer:
    """Take the number of jobs that the worker can hold from now on."""
    rooms = _session(batch, asked).rooms
    rooms["greenlet"].capacity, rooms["process"].capacity = message.capacity, message.processes
    return TAKEN


def processes(batch: Batch, asked: Asked) -> list[Answer]:
    """A worker says which processes it has, and how they are; this replaces what it said before."""
    _session(batch, asked).processes = [message for message in asked.messages if isinstance(message, Process)][:PROCESSES_MAX]
    return [each if isinstance(each, GivaliaError) else TAKEN for each in asked.messages]


def beat(batch: Batch, asked: Asked) -> list[Answer]:
    """A worker is alive and holds these leases; each is renewed, and a job that was asked to stop is told again."""
    return _take_up_all(batch, _session(batch, asked), asked)


def _session(batch: Batch, asked: Asked) -> WorkerSession:
    session = batch.desk.routing.sessions.get(asked.conn)
    if session is None:
        raise Refusal(BadRequest("a worker joins first"))
    return session


def _is_holder(session: WorkerSession, job: Job, fence: int) -> bool:
    return job.state is RUNNING and job.fence == fence and job.holder == session.join.instance


def take_over(batch: Batch, job: Job) -> None:
    """Let the lease of a job begin that this server looks after from now on, for another server."""
    desk, (session, lent_us) = batch.desk, batch.taken[job.seq]
    if session is not None and session.conn not in desk.routing.sessions:
        session = None
    room = None if session is None else session.room(job.module)
    if room is not None:
        room.held += 1
    desk.leases[job.id] = Lease(job, room, batch.now.mono_us + lent_us)


def conclude(batch: Batch) -> None:
    """The commit is durable: let memory believe what workers and operators have said in the batch."""
    for resumed in batch.resumed:
        resumed.has_resumed = True
    if batch.ends_hold:
        batch.desk.is_holding = False
        batch.desk.routing.forget_windows()  # They are read again at once, with all that has become ready meanwhile.
