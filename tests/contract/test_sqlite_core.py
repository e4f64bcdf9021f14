"""The parts of an open store: its statements and facts, and what it makes of the errors of SQLite and of the system."""

from __future__ import annotations

import errno
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from givalia_core.errors import GivaliaError, StoreCorrupt, StoreFailed, StoreFull, StoreLocked
from givalia_core.model import DONE, WAITING, JobState
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.core import Core, write_or_make_room
from givalia_core.store.sqlite.places import Damaged

pytestmark = pytest.mark.usefixtures("small_ballast")


@pytest.fixture
def told() -> list[bool]:
    """What the core said of the disk: whether it is full."""
    return []


@pytest.fixture
def core(tmp_path: Path, told: list[bool]) -> Iterator[Core]:
    """A core with a database, and nothing else open."""
    core = Core(tmp_path / "queue.db", told.append)
    disk.create(core.path)
    core.database = sqlite3.connect(core.path, isolation_level=None)
    yield core
    if core.database is not None:
        core.database.close()


def trouble(code: int, words: str = "disk trouble") -> sqlite3.Error:
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return error


class Failing:
    """A connection that is in a transaction, and on which one kind of statement fails."""

    in_transaction = True

    def __init__(self, *words: str) -> None:
        self.words = words

    def execute(self, statement: str, values: object = ()) -> None:
        if statement.startswith(self.words):
            raise trouble(sqlite3.SQLITE_IOERR, statement)


def _write_and_fail(core: Core) -> None:
    with core.transaction():
        core.keep_fact("epoch", 2)
        raise trouble(sqlite3.SQLITE_IOERR)


def spoil(core: Core) -> None:
    """Let a page of the table of jobs say that its cells lie where none can be."""
    database = core.connection()
    database.executemany("INSERT INTO jobs VALUES (?, ?)", [(seq, bytes(900)) for seq in range(1, 20)])
    (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").fetchone()
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.close()
    with core.path.open("r+b") as file:
        file.seek(4_096 * (root - 1) + 12)
        file.write(struct.pack(">H", 2))
    core.database = sqlite3.connect(core.path, isolation_level=None)


def test_a_store_that_is_not_open_or_was_opened_by_another_process_says_which(core: Core) -> None:
    with pytest.raises(StoreFailed, match="opened by another process; a fork may not use it"):
        core.refuse()
    core.connection().close()
    core.database = None

    for refused in (core.refuse, core.connection):
        with pytest.raises(StoreFailed, match=r"queue\.db is not open"):
            refused()


def test_a_transaction_is_stored_whole_or_not_at_all(core: Core) -> None:
    with core.transaction():
        core.keep_fact("epoch", 1)
        core.keep_fact("open", 1)
    with pytest.raises(sqlite3.OperationalError):
        _write_and_fail(core)

    assert core.connection().in_transaction is False
    assert core.all("SELECT name FROM facts ORDER BY name") == [("epoch",), ("open",)]
    assert (core.fact("epoch"), core.one("SELECT max(name) FROM facts")) == (1, ("open",))


def test_the_first_error_is_raised_if_rolling_back_fails_too(core: Core) -> None:
    real, failing = core.database, Failing("COMMIT", "ROLLBACK")
    core.database = failing  # type: ignore[assignment]

    with pytest.raises(sqlite3.OperationalError, match="COMMIT"), core.transaction():
        pass

    core.database = real


def test_a_fact_that_is_not_what_was_written_is_corrupt_and_the_way_out_is_named(core: Core) -> None:
    assert core.fact("epoch") is None
    core.keep_fact("epoch", 7)
    core.keep_fact("epoch", (8, None))
    assert core.fact("epoch") == [8, None]

    core.connection().execute("UPDATE facts SET value = ?", (msgpack.packb((9, None)),))

    with pytest.raises(StoreCorrupt, match=r"the stored epoch does not match its checksum; givalia store salvage --store"):
        core.fact("epoch")


def test_changes_of_counts_are_added_to_their_table_without_those_that_are_none(core: Core) -> None:
    core.write_counts({})
    core.write_counts({("Mail", WAITING): 3, ("Fax", DONE): 0})
    core.write_counts({("Mail", WAITING): -1, ("Mail", DONE): 1})

    assert core.all("SELECT * FROM counts ORDER BY module, state") == [("Mail", 0, 2), ("Mail", 2, 1)]


def test_counts_are_replaced_and_summed_up_by_state(core: Core) -> None:
    core.count_from({("Old", WAITING): 9})
    counts: dict[tuple[str, JobState], int] = {("Mail", WAITING): 2, ("Fax", WAITING): 3, ("Fax", DONE): 1}

    core.count_from(counts)

    assert core.counted == counts
    assert core.counted is not counts
    assert dict(core.in_state) == {WAITING: 5, DONE: 1}


@pytest.mark.parametrize(
    ("error", "expected", "is_full"),
    [
        (OSError(errno.ENOSPC, "no room"), StoreFull, True),
        (OSError(errno.EIO, "no disk"), StoreFailed, False),
        (trouble(sqlite3.SQLITE_FULL), StoreFull, True),
        (trouble(sqlite3.SQLITE_IOERR_FSYNC), StoreFailed, False),
        (trouble(sqlite3.SQLITE_IOERR_WRITE), StoreFailed, False),  # There is room.
        (trouble(sqlite3.SQLITE_BUSY), StoreLocked, False),  # While the store is opened: another process has it.
        (trouble(sqlite3.SQLITE_CORRUPT), StoreFailed, False),  # The file is sound, so the disk failed.
        (Damaged("a lane goes round"), StoreFailed, False),
        (IndexError("beyond the end"), StoreFailed, False),
    ],
)
def test_every_error_becomes_one_of_ours_and_only_a_full_disk_costs_the_reserve(
    core: Core, told: list[bool], error: Exception, expected: type[GivaliaError], is_full: bool
) -> None:
    ballast = core.path.with_name("queue.db.ballast")
    ballast.write_bytes(bytes(disk.BALLAST_BYTES))

    with pytest.raises(expected, match=str(core.path)) as caught, core.failing():
        raise error

    assert type(caught.value) is expected
    assert caught.value.__cause__ is error
    if expected is StoreLocked:
        core.has_index = True
        with pytest.raises(StoreFailed):
            core.fail(error)
    assert told == [True] * is_full
    assert ballast.stat().st_size == (0 if is_full else disk.BALLAST_BYTES)


@pytest.mark.parametrize("error", [trouble(sqlite3.SQLITE_CORRUPT), trouble(sqlite3.SQLITE_ERROR, "Could not decode to UTF-8")])
def test_pages_that_are_not_in_order_are_corrupt_unless_the_disk_fails(
    core: Core, error: sqlite3.Error, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.refuse_disorder()
    spoil(core)

    assert core.is_disk_to_blame() is False
    with pytest.raises(StoreCorrupt, match="givalia store salvage"):
        core.refuse_disorder()
    with pytest.raises(StoreCorrupt, match="givalia store salvage"):
        core.fail(error)

    monkeypatch.setattr(disk, "is_readable", lambda path: False)
    assert core.is_disk_to_blame() is True
    for refused in (core.refuse_disorder, lambda: core.fail(error)):
        with pytest.raises(StoreFailed):
            refused()


def test_a_fault_in_a_row_is_no_disorder(core: Core) -> None:
    core.connection().execute("INSERT INTO changes VALUES (1, x'00')")
    core.connection().executescript(
        "PRAGMA writable_schema = ON;"
        "UPDATE sqlite_schema SET sql = replace(sql, 'records BLOB', 'records TEXT') WHERE name = 'changes';"
        "PRAGMA writable_schema = RESET;"
    )
    assert core.all("PRAGMA quick_check(1)") != [("ok",)]

    core.refuse_disorder()


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_a_full_disk_costs_the_reserve_and_the_write_is_tried_once_more(core: Core, told: list[bool], failures: int) -> None:
    calls: list[bool] = []

    def write() -> None:
        calls.append(core.connection().in_transaction)
        core.keep_fact("epoch", len(calls))
        if len(calls) <= failures:
            raise trouble(sqlite3.SQLITE_FULL)

    if failures < 2:
        write_or_make_room(core, write)
    else:
        with pytest.raises(sqlite3.OperationalError):
            write_or_make_room(core, write)

    assert calls == [True] * min(failures + 1, 2)
    assert told == [True] * min(failures, 1)
    assert core.fact("epoch") == (failures + 1 if failures < 2 else None)


def test_any_other_error_of_a_write_is_not_tried_again(core: Core, told: list[bool]) -> None:
    calls: list[bool] = []

    def write() -> None:
        calls.append(True)
        raise trouble(sqlite3.SQLITE_IOERR_FSYNC)

    with pytest.raises(sqlite3.OperationalError):
        write_or_make_room(core, write)

    assert (calls, told) == ([True], [])
