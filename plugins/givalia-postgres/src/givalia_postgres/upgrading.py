"""Creating the tables, and bringing them to a later format.

A server that starts does either, as far as its user and its settings allow; so does the command line.
One transaction creates the tables. An upgrade first names the new format, so that no older server starts any more, with a fact
that it is unfinished, so that no newer server starts yet; then it goes through the rows, some in each transaction, which also
notes the progress. If an upgrade is killed, the next one continues from there.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Final

import gevent
from givalia_core.errors import StoreAway, StoreCorrupt, StoreLocked, StoreMissing, StoreUnfit
from givalia_core.store.shared import ALIVE_US

from givalia_postgres import schema, shape
from givalia_postgres import statements as sql
from givalia_postgres.connection import Connection, Rows, Statement
from givalia_postgres.rows import RECORD, bytes_, int8s, is_sealed, sealed_record, texts
from givalia_postgres.tables import KEEP, find_format

ANSWER_S: Final = 3_600.0  # One statement counts all rows.
LOCK_S: Final = 30.0
LOCK_LOOK_S: Final = 0.02
SEALED: Final = 2  # The first format whose rows have checksums.
UNFINISHED: Final = "upgrade"
"""The fact that an upgrade is under way: the seq up to which rows have the new format."""

_NOTHING_DONE: Final = str(-(2**63))
_FIRST_ROWS: Final = 16  # Rows may be large; steps grow as long as they are not.
_ROWS: Final = 2_000
_STEP_BYTES: Final = 4 << 20
_PATIENCE: Final = "SELECT set_config('lock_timeout', '10s', true), set_config('statement_timeout', '0', true)"
_SEAL: Final = """
UPDATE givalia.jobs j SET record = u.record FROM unnest($1::bigint[], $2::bytea[]) AS u(seq, record) WHERE j.seq = u.seq"""
_DONE: Final = "DELETE FROM givalia.facts WHERE name = $1"
_ALIVE: Final = f"SELECT count(*) FROM givalia.servers WHERE {sql.IS_ALIVE}"


def create(connection: Connection, *, may_create: bool = True) -> bool:
    """Create the tables if there are none; return whether there were none.

    Raises:
        StoreMissing: There are no tables, and `may_create` is false.
        StoreTooNew, StoreUnfit: The tables have another format, or the user may not create them.
    """
    if find_format(connection) is None:
        if not may_create:
            raise StoreMissing("the database has no tables of Givalia, and the setting create is false")
        return _make(connection)
    if (words := need_of(connection)) is not None:
        raise StoreUnfit(f"{words}: run givalia store upgrade")
    shape.refuse_other(*connection.ask(*shape.LOOK))
    return False


def need_of(connection: Connection) -> str | None:
    """Return why the tables need an upgrade before a server uses them; None if they need none, or do not exist.

    Raises:
        StoreTooNew, StoreUnfit: The tables have a later format, or no fact names the format.
    """
    found = find_format(connection)
    if found is None:
        return None
    if found < schema.FORMAT:
        return f"the tables have format {found}, this Givalia needs {schema.FORMAT}"
    if _progress(connection) is not None:
        return f"an upgrade to format {found} was begun and has not ended"
    return None


def upgrade(connection: Connection) -> tuple[int, int]:
    """Bring the tables to this format; return the old format and the new. Two programs may call this at once.

    Raises:
        StoreMissing: There are no tables.
        StoreTooNew: The tables have a later format. Nothing was changed.
        StoreLocked: Servers have the tables open. Nothing was changed.
        StoreUnfit: The user may not upgrade them.
    """
    with _locked(connection):
        before = find_format(connection)
        if before is None:
            raise StoreMissing("the database has no tables of Givalia: a first start, or givalia store create, makes them")
        if before < schema.FORMAT:
            _refuse_company(connection)
            is_whole = before >= SEALED and _progress(connection) is None
            _step(connection, [words for step in schema.STEPS[before:] for words in step], finishes=is_whole)
        if (done := _progress(connection)) is not None:
            before = min(before, schema.FORMAT - 1)
            _seal_rows(connection, done)
        return before, schema.FORMAT


def _make(connection: Connection) -> bool:
    """Create the tables; return False if another program has created them meanwhile."""
    with _locked(connection):
        if find_format(connection) is not None:
            return False
        _step(connection, [words for step in schema.STEPS for words in step], finishes=True)
        return True


@contextlib.contextmanager
def _locked(connection: Connection) -> Iterator[None]:
    _lock(connection)
    try:
        yield
    finally:
        connection.ask(("SELECT pg_advisory_unlock($1)", [schema.LOCK]))


def _lock(connection: Connection) -> None:
    """Wait for another program that creates the tables; poll here, since our sessions wait for no lock for long."""
    for _ in range(round(LOCK_S / LOCK_LOOK_S)):
        ((is_ours,),) = connection.ask(("SELECT pg_try_advisory_lock($1)", [schema.LOCK]))[0]
        if is_ours:
            return
        gevent.sleep(LOCK_LOOK_S)
    raise StoreAway(f"somebody else has been making the tables for {LOCK_S:g} s")


def _refuse_company(connection: Connection) -> None:
    ((alive,),) = connection.ask((_ALIVE, ()))[0]
    if alive:
        raise StoreLocked(f"{alive} servers have the store open, or had within the last {ALIVE_US // 1_000_000} s: stop them")


def _step(connection: Connection, words: list[str], *, finishes: bool) -> None:
    """Change the tables and their facts in one transaction."""
    facts: list[Statement] = [(KEEP, ["format", str(schema.FORMAT)])]
    if not finishes:
        facts.append((KEEP, [UNFINISHED, _NOTHING_DONE]))
    connection.ask(("BEGIN", ()), (_PATIENCE, ()), *((each, ()) for each in words), *facts, ("COMMIT", ()))


def _progress(connection: Connection) -> int | None:
    """Return the seq that an unfinished upgrade has reached; None if none is under way."""
    rows = connection.ask(("SELECT value FROM givalia.facts WHERE name = $1", [UNFINISHED]))[0]
    if not rows:
        return None
    if re.fullmatch("-?[0-9]{1,19}", rows[0][0]) is None or not -(2**63) <= int(rows[0][0]) < 2**63:
        raise StoreUnfit(f"the fact {UNFINISHED!r} of the store is {rows[0][0][:40]!r}, which Givalia did not write")
    return int(rows[0][0])


def _seal_rows(connection: Connection, done: int) -> None:
    """Give each row above this seq its checksum; set aside each row that is not a job's."""
    limit = _FIRST_ROWS
    while rows := connection.ask((sql.CHECK, [done, limit]))[0]:
        done = rows[-1][0]
        connection.ask(("BEGIN", ()), (_PATIENCE, ()), *_sealed(rows), (KEEP, [UNFINISHED, str(done)]), ("COMMIT", ()))
        size_bytes = sum(len(part or b"") for row in rows for part in row[RECORD : RECORD + 3])
        limit = max(limit // 2, 1) if size_bytes > _STEP_BYTES else min(limit * 2, _ROWS)
    # A row that was set aside may have been counted under another module or state.
    counted: list[Statement] = [(sql.COUNT_FREELY, ()), (sql.COUNT_ANEW, ())]
    connection.ask(("BEGIN", ()), *counted, (_DONE, [UNFINISHED]), ("COMMIT", ()))


def _sealed(rows: Rows) -> list[Statement]:
    """Return the statements that bring these rows to the format; some have it already, since applications write meanwhile."""
    records: dict[int, bytes] = {}
    why: dict[int, str] = {}
    for row in rows:
        try:
            if not is_sealed(row):
                records[row[0]] = sealed_record(row)
        except StoreCorrupt as error:
            why[row[0]] = str(error)
    statements: list[Statement] = [(_SEAL, [int8s(list(records)), bytes_(list(records.values()))])]
    if why:
        statements.append((sql.SET_ASIDE, [int8s(list(why)), texts(list(why.values()))]))
    return statements
