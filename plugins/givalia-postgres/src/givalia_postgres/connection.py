"""One connection to PostgreSQL that lets other greenlets run while it waits, and translates errors.

Several statements go out in one trip. The store above gets their answers, or one of three errors: the transaction must be
repeated (`Again`), the database is away (`StoreAway`), or it is full (`StoreFull`); anything else is a bug, or damage.
"""

from __future__ import annotations

import secrets
import select
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Final, NoReturn, TypeVar

import gevent
import psycopg
from gevent.hub import Hub
from givalia_core import forks
from givalia_core.errors import StoreAway, StoreCorrupt, StoreError, StoreFailed, StoreFull, StoreUnfit
from givalia_core.store.shared import AlreadyDecided
from psycopg import RawCursor, generators, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from givalia_postgres import rows

CONNECT_S: Final = 3  # Unless the URL says otherwise.
ANSWER_S: Final = 15.0  # Longer than any statement may take: after that the connection is dead.

_SETTINGS: Final = {
    "lock_timeout": "5ms",  # Only an insert waits for a lock; `sifting` then finds the held name and leaves it alone.
    "statement_timeout": "3s",
    "idle_in_transaction_session_timeout": "10s",
    "default_transaction_isolation": "read committed",
    # Each statement here is meant for one index. A plan made while the tables were small must not be used when they have grown.
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    "search_path": "pg_catalog",
    "idle_session_timeout": "0",  # The listener is silent for long periods.
    # A server can vanish in the middle of a trip. No other timeout runs then, and the rows that the trip changed stay locked.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
PINNED: Final = "synchronous_commit"
"""A setting of our sessions that keeps its value from the opening of the store, whatever is configured later."""

_SESSION: Final = "givalia.session"
SESSION: Final = f"pg_backend_pid(), current_setting('{_SESSION}', true)"
"""Two columns that name the session of a statement; see `Connection.is_session`."""

POOLED: Final = (
    "the URL leads to a pooler in transaction mode, which gives each transaction another session of PostgreSQL: settings,"
    " prepared statements and LISTEN of a server would be lost. Connect servers directly, or through a pool in session mode"
)

SHORT_MS: Final = 300  # Time limit of a statement that is tried apart from others.
_IMPATIENT: Final = "SELECT set_config('lock_timeout', '1', true), set_config('statement_timeout', $1::bigint::text, true)"

T = TypeVar("T")
Statement = tuple[str, Sequence[Any]]
Rows = list[tuple[Any, ...]]


class Again(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """A transaction that met another one: nothing of it is stored, and it may be repeated."""


class Held(Again):
    """A transaction that would have had to wait for another one for too long."""


class TooLong(Again):
    """A transaction with a statement that took longer than a statement may."""


class _Cooperative(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for its socket in the hub instead of blocking the thread."""

    answer_s = ANSWER_S
    session: tuple[int, str] = (0, "")
    """The answer to `SESSION` when the connection was made."""
    heard: list[tuple[int, bytes]]
    """Notifications that arrived with the answer to a statement and have not been taken yet."""

    def wait(self, gen: Generator[Any, Any, T], interval: float = 0.0, timeout: float | None = None) -> T:  # noqa: ARG002 - All of one table take the same.
        hub: Hub = gevent.get_hub()
        fd = self.pgconn.socket
        deadline = time.monotonic() + (self.answer_s if timeout is None else timeout)
        try:
            wanted = next(gen)
            while True:
                ready = _ready(fd, int(wanted))
                if not ready:
                    watcher = hub.loop.io(fd, int(wanted))
                    try:
                        with gevent.Timeout(max(deadline - time.monotonic(), 0), psycopg.OperationalError("no answer in time")):
                            hub.wait(watcher)
                    finally:
                        watcher.close()
                    ready = _ready(fd, int(wanted))
                wanted = gen.send(ready)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        except psycopg.OperationalError as error:
            # An error with a code of PostgreSQL, such as a lock that is not available, leaves the connection usable. So does
            # the error of the later statements in the same trip, for which psycopg has no code.
            if error.sqlstate is None and not isinstance(error, psycopg.errors.PipelineAborted):
                self.pgconn.finish()
            raise
        except BaseException:
            # The waiting greenlet was ended in the middle of a statement: this connection is no longer usable.
            if self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                self.pgconn.finish()
            raise

    def undo(self) -> None:
        """End the open transaction, if there is one; unlike `rollback`, keep the prepared statements."""
        if self.info.transaction_status:
            self.pgconn.send_query(b"ROLLBACK")
            self.wait(generators.execute(self.pgconn))


def _ready(fd: int, wanted: int) -> int:
    """Return what the socket is ready for: reading (1), writing (2)."""
    poll = select.poll()
    poll.register(fd, (select.POLLIN if wanted & 1 else 0) | (select.POLLOUT if wanted & 2 else 0))
    events = next((events for _, events in poll.poll(0)), 0)
    ended = events & (select.POLLERR | select.POLLHUP | select.POLLNVAL)  # The next read raises the error.
    return wanted if ended else (1 if events & select.POLLIN else 0) | (2 if events & select.POLLOUT else 0)


class Connection:
    """A connection that is opened at its first use, and again after a loss."""

    def __init__(self, url: str, name: str, on_made: Callable[[], None] = lambda: None, *, answer_s: float = ANSWER_S) -> None:
        self._url = url
        self._name = name
        self._answer_s = answer_s
        self._on_made = on_made
        self._pinned: dict[str, str] = {}
        self._made: _Cooperative | None = None
        self._was_made = False
        self._proven: set[str] = set()  # Statements that are certainly prepared, even if a trip has failed since.
        self._is_left = False
        self.in_transaction = False
        forks.register(self)

    def after_fork(self) -> None:
        """Detach the socket in a fork: the session is the parent's, and no farewell of psycopg may reach it."""
        self._is_left = True
        if self._made is not None and not self._made.closed:
            forks.detach(self._made.pgconn.socket)

    @property
    def is_made(self) -> bool:
        return self._made is not None and not self._made.closed

    def make(self) -> _Cooperative:
        """Return the connection; open it if there is none.

        Raises:
            StoreAway: The database is unreachable, or accepts no connections.
            StoreUnfit: The URL, user or password is refused.
            StoreFailed: This is a fork of the process that opened the store.
        """
        if self._is_left:
            raise StoreFailed("the store was opened by another process; a fork may not use it")
        if self._made is not None and not self._made.closed:
            return self._made
        self.in_transaction = False
        # In a thread: connecting resolves names, which would block the hub.
        making = _Making(self._url, self._name, self._pinned)
        try:
            made = gevent.get_hub().threadpool.apply(making.connect)
        except BaseException:
            making.give_up()
            raise
        if isinstance(made, psycopg.Error):
            error = _cannot_connect(made)
            # The same password and name have worked before, so the refusal may be temporary.
            raise StoreAway(str(error)) if self._was_made else error
        self._made = made
        self._proven.clear()
        made.answer_s = self._answer_s
        try:
            self._on_made()
        except BaseException:
            self.close()  # The next use connects and checks again.
            raise
        self._was_made = True
        return made

    def is_session(self, pid: int, token: str | None) -> bool:
        """Return whether the answer to `SESSION` came from this connection's session; true once the connection is closed."""
        return self._made is None or self._made.session == (pid, token)

    def pin(self, value: str) -> None:
        """Keep `PINNED` at this value, on this connection and on those that replace it."""
        self._pinned = {PINNED: value}
        self.ask(("SELECT set_config($1, $2, false)", [PINNED, value]))

    def unpin(self) -> None:
        """End the connection; later ones have the database's own value of `PINNED`."""
        self._pinned = {}
        self.close()

    def ask(self, *statements: Statement) -> list[Rows]:
        """Send statements in one trip; return the rows of each (an empty list for a statement without rows).

        Raises:
            Again, StoreAway, StoreFull, StoreFailed: See there. An open transaction has ended, with nothing stored.
        """
        connection = self.make()
        try:
            if len(statements) == 1:
                return [rows.fetched(_execute(connection, *statements[0]))]
            cursors = _trip(connection, statements)
            self._proven.update(words for words, values in statements if words not in self._proven and _is_steady(values))
            return [rows.fetched(cursor) for cursor in cursors]
        except psycopg.Error as error:
            self._fail(error, are_proven=all(words in self._proven and _is_steady(values) for words, values in statements))

    def ask_unprepared(self, words: str) -> Rows:
        """Return the rows of a statement; it is not prepared, so that any session can run it. Raises as `ask`."""
        connection = self.make()
        try:
            return rows.fetched(_execute(connection, words, (), prepare=False))
        except psycopg.Error as error:
            self._fail(error)

    def alone(self, *statements: Statement, keep: bool = True, most_ms: int = SHORT_MS) -> list[Rows]:
        """Run statements in their own transaction, which gives up at the first wait; without `keep` it is rolled back.

        Prepared statements survive a failure, so a failure costs the next commit nothing. Each statement may take `most_ms`
        at most.

        Raises:
            Again, StoreAway, StoreFull, StoreFailed: See there. Nothing is stored.
        """
        connection = self.make()
        end: list[Statement] = [("COMMIT", ())] if keep else []
        whole = [("BEGIN", ()), (_IMPATIENT, [most_ms]), *statements, *end]
        try:
            cursors = _trip(connection, whole, prepare=False)
            connection.undo()
            return [rows.fetched(cursor) for cursor in cursors[2 : 2 + len(statements)]]
        except psycopg.Error as error:
            meaning = meaning_of(error)
            if connection.closed or not isinstance(meaning, (Again, StoreFull)):
                self._fail(error)
            try:
                connection.undo()
            except psycopg.Error as lost:
                self._fail(lost)
            raise meaning from error

    def _fail(self, error: psycopg.Error, *, are_proven: bool = False) -> NoReturn:
        self.in_transaction = False
        connection, meaning = self._made, meaning_of(error)
        try:
            if connection is not None and not connection.closed:
                if are_proven and isinstance(meaning, (Held, TooLong, StoreFull)):
                    connection.undo()
                else:
                    # Not `rollback`: psycopg must also forget the statements that the failed trip did not get to prepare.
                    connection.execute("ROLLBACK" if connection.info.transaction_status else "DEALLOCATE ALL", binary=True)
                    self._proven.clear()
        except psycopg.Error:
            self.close()
        if isinstance(meaning, StoreAway) or error.sqlstate in _STATEMENT_GONE:
            self.close()
        raise meaning from error

    def await_more(self, seconds: float) -> bool:
        """Wait until something arrives unasked; return False if nothing arrives within `seconds`."""
        watcher = gevent.get_hub().loop.io(self.make().pgconn.socket, 1)
        patience = gevent.Timeout(seconds)
        try:
            with patience:
                gevent.get_hub().wait(watcher)
            return True
        except gevent.Timeout as timeout:
            if timeout is not patience:
                raise
            return False
        finally:
            watcher.close()

    def notifies(self) -> list[tuple[int, bytes]]:
        """Return the process ids and payloads of the notifications that have arrived; never wait.

        Raises:
            StoreAway: The connection is lost.
        """
        connection = self.make()
        pgconn = connection.pgconn
        try:
            pgconn.consume_input()
            while (notify := pgconn.notifies()) is not None:
                connection.heard.append((notify.be_pid, notify.extra))
        except psycopg.Error as error:
            self._fail(error)
        heard = connection.heard.copy()
        connection.heard.clear()
        return heard

    @property
    def pid(self) -> int:
        """The process of the database that serves this connection."""
        return self.make().pgconn.backend_pid

    def close(self) -> None:
        """End the connection; the next use opens a new one."""
        made, self._made, self.in_transaction = self._made, None, False
        if made is not None:
            made.close()


class _Making:
    """A connection that a thread opens for a caller that may give up meanwhile."""

    def __init__(self, url: str, name: str, pinned: dict[str, str]) -> None:
        self._given = (url, name, pinned)
        self._made: _Cooperative | None = None
        self._is_given_up = False

    def connect(self) -> _Cooperative | psycopg.Error:
        """Connect, in the thread; return an error, since the thread would print what it raises."""
        try:
            self._made = _connect(*self._given)
        except psycopg.Error as error:
            return error
        if self._is_given_up:
            self._made.close()
        return self._made

    def give_up(self) -> None:
        """Close the connection, now or once it is open: the caller no longer wants it."""
        self._is_given_up = True
        if self._made is not None:
            self._made.close()


def _connect(url: str, name: str, pinned: dict[str, str]) -> _Cooperative:
    # `read-write` refuses a standby that is not promoted yet.
    wanted: dict[str, Any] = {
        "connect_timeout": CONNECT_S,
        "application_name": name,
        "target_session_attrs": "read-write",
        # Keepalives detect a database that is gone without a word.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20_000,
    }
    wanted |= conninfo_to_dict(url)
    connection = _Cooperative.connect(make_conninfo(**wanted), autocommit=True, prepare_threshold=0, client_encoding="utf8")
    connection.prepared_max = 500
    rows.register(connection)
    # Set in each session, so that no default of a role or a database overrides them.
    settings = {**_SETTINGS, **pinned, _SESSION: secrets.token_hex(8)}
    chosen = ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items())
    row = connection.execute(f"SELECT pg_backend_pid(), {chosen}".encode(), prepare=False).fetchone()
    assert row is not None
    connection.session = (row[0], settings[_SESSION])
    connection.heard = heard = []
    connection.add_notify_handler(lambda notify: heard.append((notify.pid, notify.payload.encode())))
    return connection


def _execute(connection: _Cooperative, words: str, values: Sequence[Any], *, prepare: bool | None = None) -> Any:
    cursor = RawCursor(connection)
    cursor.execute(words.encode(), values, binary=True, prepare=prepare)
    return cursor


def _trip(connection: _Cooperative, statements: Iterable[Statement], *, prepare: bool | None = None) -> list[Any]:
    """Execute statements in one trip; of several errors, raise the first, which caused the others."""
    met: psycopg.Error | None = None
    cursors: list[Any] = []
    try:
        with connection.pipeline():
            try:
                cursors += [_execute(connection, *statement, prepare=prepare) for statement in statements]
            except psycopg.Error as error:
                met = error  # Not raised inside the pipeline: psycopg would log that its end fails as well.
    except psycopg.Error as error:
        met = met or error
    if met is not None:
        raise _first_of(met)
    return cursors


def _first_of(error: psycopg.Error) -> psycopg.Error:
    """Return the original error, where psycopg raises a consequence of it."""
    while isinstance(error, psycopg.errors.PipelineAborted) and isinstance(error.__context__, psycopg.Error):
        error = error.__context__
    return error


def _is_steady(values: Sequence[Any]) -> bool:
    """Return whether the types of these values never change, so the statement is prepared only once."""
    return all(isinstance(value, rows.Array) for value in values)


# Serialization, deadlock, a key just taken; a prepared statement that is missing, or was made for other tables; too little
# memory, or room for temporary files, for one statement.
_STATEMENT_GONE: Final = {"26000", "0A000"}
_AGAIN: Final = {"40001", "40P01", "23505", "53200", "53400"} | _STATEMENT_GONE
_DECIDED: Final = {"requests_pkey", "requests_decided_once"}  # Another server has answered one of the commands.
_STATEMENT_THERE: Final = {"42P05"}  # We give no name twice in a session, so another client shares the session.
# A schema, table, column or function that is missing, or of another type; some of the tables, without the facts.
_OTHER_TABLES: Final = {"42P07", "3F000", "42P01", "42703", "42883", "42809", "42804"}
_USED_UP: Final = {"2200H"}  # A sequence has no number left.
_HELD: Final = {"55P03"}  # A lock was not available in time.
_TOO_LONG: Final = {"57014"}  # The statement was cancelled, by its timeout or by an operator.
_FULL: Final = {"53100"}
# Errors of the system without a code of their own, such as a used up quota: the function of PostgreSQL tells them apart. A
# temporary file that finds no room has no code either, whatever the reason.
_UNNAMED: Final = {"58030", "XX000"}
_GROWING: Final = {"mdextend", "mdzeroextend", "FileWrite", "FileWriteV", "FileZero", "FileFallocate", "BufFileDumpBuffer"}
_UNCODED: Final = "XX000"
_WRITING: Final = {
    "mdcreate",
    "mdwrite",
    "mdwritev",
    "_mdfd_openseg",
    "_mdfd_getseg",
    "SlruReportIOError",
    "OpenTemporaryFileInTablespace",
    "PathNameCreateTemporaryDir",
    "PathNameCreateTemporaryFile",
}
_AWAY_CLASSES: Final = {"08", "57", "53", "58"}  # Connection, operator's intervention, resources, system.
_READ_ONLY: Final = {"25006"}  # The database is a standby now.
_TRANSACTION_ENDED: Final = {"25P03", "25P04"}  # A timeout ended it, with its session.
_FORBIDDEN: Final = {"42501"}


def meaning_of(error: psycopg.Error) -> Exception:
    """Return our error for an error of the database."""
    state = error.sqlstate
    words = f"PostgreSQL: {error.diag.message_primary or str(error).strip()}"
    if error.diag.constraint_name in _DECIDED:
        return AlreadyDecided(words)
    if state in _HELD:
        return Held(words)
    if state in _TOO_LONG:
        return TooLong(words)
    if state in _AGAIN:
        return Again(words)
    if _is_full(state, error.diag.source_function):
        return StoreFull(words)
    if state in _FORBIDDEN:
        return StoreUnfit(words)
    if state in _USED_UP:
        return StoreUnfit(f"a sequence of the store is used up; {words}")
    if state in _STATEMENT_THERE:
        return StoreUnfit(f"{POOLED} ({words})")
    if state in _OTHER_TABLES:
        return StoreUnfit(f"the database does not have the tables that this Givalia makes; {words}")
    if state is None or state[:2] in _AWAY_CLASSES or state in _READ_ONLY or state in _TRANSACTION_ENDED:
        is_ours = state is None and not isinstance(error, psycopg.OperationalError)
        return StoreFailed(words) if is_ours else StoreAway(words)
    return (StoreCorrupt if state in ("XX001", "XX002") else StoreFailed)(f"{words} ({state})")


def _is_full(state: str | None, function: str | None) -> bool:
    """Return whether this code, raised in this function of PostgreSQL, means that there is no room."""
    is_growing = state in _UNNAMED and function in _GROWING
    return state in _FULL or is_growing or (state == _UNCODED and function in _WRITING)


def _cannot_connect(error: psycopg.Error) -> StoreError:
    """Return `StoreUnfit`, which stops a start, for a wrong URL, name or password; `StoreAway` for what may pass."""
    words = str(error).strip()
    state = error.sqlstate or ""
    is_refused = state[:2] in ("28", "3D") or any(sign in words for sign in ("does not exist", "authentication failed"))
    is_malformed = isinstance(error, psycopg.ProgrammingError)
    return StoreUnfit(words) if is_refused or is_malformed else StoreAway(words)
