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
    """Note the jobs as `needs_held` does, and in a shared store also known leases: another server may have taken some over."""
    needs_held(names, asked, desk)
    if desk.is_shared:
        names.resumed |= {
            message.id for message in asked.messages if not isinstance(message, GivaliaError)
        } & desk.leases.keys()


def join(batch: Batch, asked: Asked, message: Join) -> Answer:
    """Add a worker process that introduces itself; end an older connection of the same process."""
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
    """Forget a connection that is gone or of no use any more; if it was a worker's, the log says so."""
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
    """End the connection of a worker that missed two beats, since it is of no use any more."""
    batch.close(conn, "it missed two beats")
    lose(batch, conn, "it missed two beats")


def leave(batch: Batch, conn: int) -> None:
    """Forget a connection that is gone. Its leases live on: the worker may come back and settle them before they end."""
    session = batch.desk.routing.leave(conn)
    if session is not None:
        batch.desk.losses.leave(session, batch.now.mono_us)
        for lease in batch.desk.leases.of_holder(session.join.instance):
            if lease.session is session:
                lease.room = None
    batch.desk.waits.leave(conn)


def announce(batch: Batch, asked: Asked) -> list[Answer]:
    """Replace the modules of a worker by those that it announces."""
    session = _session(batch, asked)
    served = [message for message in asked.messages if isinstance(message, Announce)]
    batch.desk.routing.announce(session, served)
    return [each if isinstance(each, GivaliaError) else TAKEN for each in asked.messages]


def resume(batch: Batch, asked: Asked) -> list[Answer]:
    """Take up the leases that a worker names after joining; give back its others, which never reached it (T9)."""
    session = _session(batch, asked)
    if not session.has_resumed:  # If this is decided again, the worker need not name jobs lent to it since.
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
        return TAKEN  # The job's code, which has yet to return, may have completed the job in a transaction.
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
    """Return a job as this batch has left it: from memory if its lease is here, any other as it was read."""
    lease = batch.desk.leases.get(job_id)
    return batch.by_id(job_id) if lease is None else batch.jobs.get(lease.job.seq, lease.job)


def adopt(batch: Batch, job: Job, session: WorkerSession | None, lent_us: int) -> None:
    """Look after another server's lease from now on; its worker is connected here, or has `lent_us` to connect."""
    adopted = evolve(job, "adopt")
    adopted.keeper = batch.desk.me
    batch.put(job, adopted)
    batch.taken[job.seq] = session, lent_us


def credit(batch: Batch, asked: Asked, message: Credit) -> Answer:
    """Set the number of jobs that the worker can hold from now on."""
    rooms = _session(batch, asked).rooms
    rooms["greenlet"].capacity, rooms["process"].capacity = message.capacity, message.processes
    return TAKEN


def processes(batch: Batch, asked: Asked) -> list[Answer]:
    """Replace the processes of a worker, and their states, by those that it names."""
    _session(batch, asked).processes = [message for message in asked.messages if isinstance(message, Process)][:PROCESSES_MAX]
    return [each if isinstance(each, GivaliaError) else TAKEN for each in asked.messages]


def beat(batch: Batch, asked: Asked) -> list[Answer]:
    """Renew the leases that a live worker holds; tell it again of the jobs that were asked to stop."""
    return _take_up_all(batch, _session(batch, asked), asked)


def _session(batch: Batch, asked: Asked) -> WorkerSession:
    session = batch.desk.routing.sessions.get(asked.conn)
    if session is None:
        raise Refusal(BadRequest("a worker joins first"))
    return session


def _is_holder(session: WorkerSession, job: Job, fence: int) -> bool:
    return job.state is RUNNING and job.fence == fence and job.holder == session.join.instance


def take_over(batch: Batch, job: Job) -> None:
    """Begin the lease of a job that this server takes over from another server."""
    desk, (session, lent_us) = batch.desk, batch.taken[job.seq]
    if session is not None and session.conn not in desk.routing.sessions:
        session = None
    room = None if session is None else session.room(job.module)
    if room is not None:
        room.held += 1
    desk.leases[job.id] = Lease(job, room, batch.now.mono_us + lent_us)


def conclude(batch: Batch) -> None:
    """Let memory believe what workers and operators have said in the batch, whose commit is durable."""
    for resumed in batch.resumed:
        resumed.has_resumed = True
    if batch.ends_hold:
        batch.desk.is_holding = False
        batch.desk.routing.forget_windows()  # They are read again at once, with all that has become ready meanwhile.
