"""Jobs in a user's own transaction: enqueued, cancelled, pushed back or completed if and only if the transaction commits.

The verbs are a server's; here they read, lock and write rows through the user's connection, without a server. At the commit
PostgreSQL notifies the servers, which act at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeVar

import msgpack
import psycopg
from givalia_core.client import commands
from givalia_core.client.commands import CANCEL, ENQ, EXT, Command
from givalia_core.client.many import enq_of
from givalia_core.clock import Now
from givalia_core.engine.single import Single, SingleDecision
from givalia_core.errors import BadRequest, Busy, GivaliaError, NotFound, StoreUnfit, TooLarge
from givalia_core.model import TEN_YEARS_US, WAITING, Job
from givalia_core.policy import Policy
from givalia_core.protocol import codec
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import Kind, Succeed
from givalia_core.store.base import Change, Found
from givalia_core.times import to_datetime
from givalia_core.views import text_id
from psycopg import RawCursor
from psycopg.rows import tuple_row

from givalia_postgres import checksums, reads, rows, writes
from givalia_postgres import statements as sql
from givalia_postgres.connection import Rows, Statement
from givalia_postgres.hints import CHANNEL, Hints

T = TypeVar("T")

TRIES: Final = 5


class Enqueued(NamedTuple):
    """A job that exists once the transaction commits."""

    id: str
    key: str | None
    due: datetime
    durability: str


def enq(connection: Any, module: str, **options: Any) -> Enqueued:
    """Enqueue a job in the transaction of this connection; the job exists if and only if that commits.

    Its due counts from this call: a commit that comes later than the due finds the job due at once.

    Args:
        connection: A connection of psycopg, SQLAlchemy (a Session, too) or Django to the database that the servers share.
            A connection in autocommit commits the job by itself.
        module: The name of a WorkModule.
        options: Those of `Client.enq`.

    Raises:
        DuplicateKey, WrongState, BadRequest, TooLarge: As in `Client.enq`; the transaction can go on.
        Busy: Others changed the job of this key again and again.
    """
    made = _perform(connection, ENQ, enq_of({"module": module, **options}))
    return Enqueued(text_id(made.id), options.get("key"), to_datetime(made.due_us), made.durability)


def cancel(connection: Any, key: str | None = None, *, id: str | None = None, running: bool = False) -> str:
    """Call a job off in the transaction of this connection; return `cancelled` or `stop_requested`, as `Client.cancel`.

    The job is locked until the transaction ends, and does not start meanwhile.

    Raises:
        NotFound, WrongState: As in `Client.cancel`; the transaction can go on.
    """
    return _perform(connection, CANCEL, commands.cancel(key, id=id, running=running))


def ext(
    connection: Any, key: str | None = None, time: Any = None, *, at: float | datetime | None = None, id: str | None = None
) -> datetime:
    """Move the due of a job that has not started, in this connection's transaction; return the new due, as `Client.ext`.

    Raises:
        NotFound, WrongState: As in `Client.ext`; the transaction can go on.
    """
    return _perform(connection, EXT, commands.ext(key, time, at=at, id=id))


def complete_in(connection: Any, job_id: bytes, fence: int, result: Any = None) -> None:
    """Complete a running job in the transaction of this connection; see `RunningJobView.complete_in`."""
    try:
        packed = msgpack.packb(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadRequest(f"a result must be plain data that msgpack can carry: {error}") from None
    if len(packed) > RESULT_BYTES_MAX:
        raise TooLarge(f"the result is {len(packed)} bytes long; {RESULT_BYTES_MAX} is the most")
    with _transaction(connection) as cursor:
        answer = _decide(cursor, Kind.SUCCEED, Succeed(job_id, fence, None, packed))
    if isinstance(answer, GivaliaError):
        raise answer


def takes(connection: Any) -> bool:
    """Return whether this is, or holds, a connection of psycopg."""
    try:
        return isinstance(_driver(connection), psycopg.Connection)
    except BadRequest:
        return False


def _perform(connection: Any, command: Command[..., T], message: Any) -> T:
    codec.checked(command.kind, message)
    with _transaction(connection) as cursor:
        answer = _decide(cursor, command.kind, message)
    if isinstance(answer, GivaliaError):
        raise answer
    return command.read(answer)


# The connection.


@contextlib.contextmanager
def _transaction(connection: Any) -> Iterator[_Cursor]:
    """Enter the user's transaction; or, if the connection has none and would begin none, one of our own."""
    driver = _driver(connection)
    if driver.pgconn.pipeline_status:
        raise BadRequest("the connection is in pipeline mode, in which nothing can be decided; do it before or after that")
    if driver.info.encoding != "utf-8":
        raise BadRequest(
            f"the connection's client_encoding is {driver.info.encoding}; a key can be any text, so it must be UTF8"
        )
    if getattr(driver, "_tpc", None) is not None:
        raise BadRequest(
            "the transaction is one of two phases (tpc_begin, twophase): PostgreSQL prepares none that notifies, and one that"
            " is prepared would hold its jobs until somebody ends it; use a transaction of one phase"
        )
    own = driver.transaction() if driver.autocommit and not driver.info.transaction_status else contextlib.nullcontext()
    with own, RawCursor(driver, row_factory=tuple_row) as cursor:
        rows.register(cursor)
        yield _Cursor(cursor)


def _driver(connection: Any) -> psycopg.Connection[Any]:
    """Return the connection of psycopg inside the user's object."""
    if isinstance(connection, psycopg.Connection):
        return connection
    found = connection
    if hasattr(found, "get_bind") and callable(getattr(found, "connection", None)):  # A session of SQLAlchemy.
        found = found.connection()
    if hasattr(found, "exec_driver_sql"):
        found.exec_driver_sql("SELECT")  # So that SQLAlchemy knows of the transaction, and commits it.
        found = found.connection.driver_connection
    elif hasattr(found, "ensure_connection"):  # Django.
        found.ensure_connection()
        found = found.connection
    if not isinstance(found, psycopg.Connection):
        kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
        raise BadRequest(f"a connection of psycopg 3, SQLAlchemy or Django is wanted, and not a {kind}")
    return found


class _Cursor:
    """A cursor for our statements on the user's connection."""

    def __init__(self, cursor: RawCursor[Any]) -> None:
        self._cursor = cursor

    def ask(self, *statements: Statement) -> list[Rows]:
        """Return the rows of each statement."""
        return [self._ask(*statement) for statement in statements]

    def _ask(self, words: str, values: Any) -> Rows:
        # Not prepared: the connection may belong to a pool that gives the next transaction another session.
        self._cursor.execute(words.encode(), values, binary=True, prepare=False)
        return rows.fetched(self._cursor)


# The command.


def _decide(cursor: _Cursor, kind: Kind, message: Any) -> Answer:
    ((is_there, is_known, is_durable, is_synced),) = cursor.ask((sql.DATABASE, ()))[0]
    if not is_there:
        raise StoreUnfit("this database has no tables of Givalia: start a server on it first")
    if not is_known:
        raise StoreUnfit(
            "the tables have another format than this package knows: run givalia store upgrade, or install its newer version"
        )
    listened, policy = _common(cursor.ask((sql.TERMS, ()))[0])
    single = Single(kind, message, policy, "memory" if not is_durable else "fsync" if is_synced else "flush")
    for _ in range(TRIES):
        found, now = _read(cursor, single)
        decided = single.decide(found, now)
        if _write(cursor, decided.changes):
            _tell(cursor, decided, listened, now)
            return decided.answer
    raise Busy("the job was changed by others again and again", retry_after=0.1)


def _common(terms: Rows) -> tuple[set[str] | None, Policy]:
    """Return the hooks of the live servers (None without one: a later server decides), and their policy."""
    known = [msgpack.unpackb(packed) for (sealed,) in terms if (packed := checksums.unsealed(sealed))]
    hooks = {name for names, _ in known for name in names} if known else None
    return hooks, Policy(*known[0][1]) if known else Policy()


def _read(cursor: _Cursor, single: Single) -> tuple[Found, Now]:
    """Lock the jobs that the command names; return them as they then are, new numbers, and the database's time."""
    found = Found({}, {}, {}, {}, {}, {}, answers={})
    parts = [*reads.named(single.wanted, found, _sound), *reads.variants(single.wanted, found)]

    def look() -> None:
        for named in found[:4]:
            named.clear()
        for statement, take in parts:
            take(cursor.ask(statement)[0])

    look()
    seen = {job.seq: job for named in found[:4] for job in named.values()}
    if seen:
        cursor.ask((sql.LOCK, [rows.int8s(list(seen))]))
        look()
    ((floor, now_us),) = cursor.ask((sql.NUMBERS, ()))[0]
    return found._replace(floor=floor), Now(now_us, now_us, 0)


def _sound(some: Iterable[Sequence[Any]]) -> list[Job]:
    """Return the jobs of these rows; raise for a damaged row, since the user may lack the right to set it aside."""
    return [rows.to_job(row) for row in some]


def _write(cursor: _Cursor, changes: list[Change]) -> bool:
    """Write the changes; return False if nothing was written, since others changed the job that the command changes."""
    if not changes:
        return True
    written = {seq for answer in cursor.ask(*writes.apply(changes)) for (seq,) in answer}
    if written != {change.job.seq for change in changes}:
        if written:
            raise NotFound("the command changed several jobs, and some of them were changed by others")
        return False
    counts, known, dropped = writes.accounts_of(changes)
    if counts:
        _, modules, states, deltas = zip(*counts, strict=True)
        cursor.ask((sql.ADD_COUNTS, [rows.texts(modules), rows.int2s(states), rows.int2s(deltas)]))
    if dropped:
        cursor.ask((sql.DROP_REQUESTS, [rows.uuids([request for request, _ in dropped])]))
    if known:
        cursor.ask((sql.ADD_REQUESTS, [rows.uuids([each for each, _ in known]), rows.int8s([seq for _, seq in known])]))
    return True


def _tell(cursor: _Cursor, decided: SingleDecision, listened: set[str] | None, now: Now) -> None:
    """Leave the events and hints that the servers receive at the commit."""
    hints = Hints()
    for was, job in decided.changes:
        if was is not None and (was.keeper or job.ended_at_us):
            hints.changed.add(job.id)
        if job.state is WAITING:
            hints.waits(job, now.timer_us, soon_us=TEN_YEARS_US)  # The commit may be any time later.
    events = [event for event in decided.events if listened is None or event.hook in listened]
    if events:
        hooks, jobs = [event.hook for event in events], [event.job.seq for event in events]
        runnings = [event.running for event in events]
        cursor.ask((sql.ADD_EVENTS, [rows.texts(hooks), rows.bools(runnings), rows.int8s(jobs)]))
        hints.must_watch = True
    if decided.changes and not hints:
        hints.must_watch = True  # PostgreSQL cannot prepare a transaction that notifies, so none of two phases holds a job.
    for payload in hints.payloads():
        cursor.ask(("SELECT pg_notify($1, $2)", [CHANNEL, payload]))
