"""The SQLite store on a disk that is full, or worse."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_rig import BALLAST_BYTES, CALLS, database, read_anew

from givalia_core.errors import StoreFailed, StoreFull
from givalia_core.model import RUNNING, WAITING, Answered
from givalia_core.store.sqlite import SQLite, chores, commits, disk, opening
from givalia_core.store.suite import (
    MARK,
    NOW,
    by_seq,
    changed,
    ended,
    inserts,
    job_id,
    request_id,
    waiting,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("small_ballast")


def fill(store: SQLite) -> None:
    """Let the file grow no further."""
    (pages,) = database(store).execute("PRAGMA page_count").fetchone()
    database(store).execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_leaves_nothing_of_the_commit(store: SQLite) -> None:
    first = waiting(1, key="k", answered=(Answered(job_id(1), "enq", 0), Answered(request_id(1), "ext", 0)))
    store.commit(inserts([first]), MARK)
    fill(store)

    later = MARK._replace(timer_us=MARK.timer_us + 1)
    big = [waiting(seq, params=bytes(50_000)) for seq in range(2, 9)]
    with pytest.raises(StoreFull):
        store.commit([ended(first), *inserts(big)], later)

    assert by_seq(store, range(9)) == {1: first}
    assert store.counts() == {("Mail", WAITING): 1}
    assert store.check() == []


def test_a_full_disk_costs_the_ballast_and_settling_goes_on(store: SQLite, path: Path) -> None:
    first = waiting(1, state=RUNNING)
    store.commit(inserts([first]), MARK)
    ballast = Path(f"{path}.ballast")
    assert ballast.stat().st_size == BALLAST_BYTES
    fill(store)
    with pytest.raises(StoreFull):
        store.commit(inserts([waiting(2, params=bytes(500_000))]), MARK)

    assert ballast.stat().st_size == 0
    assert store.commit([ended(first)], MARK).refused == ()


def test_room_that_comes_back_is_noticed_and_held_back_again(
    store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    with pytest.raises(StoreFull):
        store.commit(inserts([waiting(1, params=bytes(500_000))]), MARK)
    free = os.statvfs(path.parent)
    with monkeypatch.context() as patched:
        none = os.statvfs_result((free.f_bsize, free.f_frsize, free.f_blocks, 0, 0, 9, 9, 9, 0, 255))
        patched.setattr(os, "statvfs", lambda place: none)
        assert store.has_room() is False
    database(store).execute("PRAGMA max_page_count = 1000000")

    assert store.has_room() is True

    assert Path(f"{path}.ballast").stat().st_size == BALLAST_BYTES
    assert store.commit(inserts([waiting(1, params=bytes(500_000))]), MARK).refused == ()


def test_a_disk_that_is_full_at_start_does_not_hinder_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(path.parent.parent)
    monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result((free[0], free[1], 9, 0, 0, 9, 9, 9, 0, 255)))
    store = SQLite(f"sqlite://{path}")

    assert store.open().epoch == 1

    assert store.has_room() is False
    store.close()


class Broken:
    """A connection on which one kind of statement fails, as a disk would make it fail."""

    def __init__(self, real: sqlite3.Connection, code: int, *words: str) -> None:
        self.real, self.code, self.words = real, code, words

    def _fail(self, statement: str) -> None:
        if any(statement.lstrip().startswith(word) for word in self.words):
            error = sqlite3.OperationalError("disk trouble")
            error.sqlite_errorcode = self.code
            raise error

    def execute(self, statement: str, *values: Any) -> Any:
        self._fail(statement)
        return self.real.execute(statement, *values)

    def executemany(self, statement: str, *values: Any) -> Any:
        self._fail(statement)
        return self.real.executemany(statement, *values)

    @property
    def in_transaction(self) -> bool:
        return self.real.in_transaction

    def close(self) -> None:
        self.real.close()


@pytest.fixture
def broken(store: SQLite) -> Iterator[Any]:
    real = database(store)

    def breaks(code: int, *words: str) -> None:
        store._core.database = Broken(real, code, *words)  # type: ignore[assignment]

    yield breaks
    if store._core.database is not None:
        store._core.database = real


"""Requests that need the file; the others are answered from the index and from memory."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_IOERR_READ, StoreFailed),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreFailed),
        (sqlite3.SQLITE_READONLY, StoreFailed),
        (sqlite3.SQLITE_BUSY, StoreFailed),
        # A failed read is called corruption, too: the file is looked through, and it is whole.
        (sqlite3.SQLITE_CORRUPT, StoreFailed),
        (sqlite3.SQLITE_NOTADB, StoreFailed),
    ],
)
def test_an_error_of_sqlite_is_never_shown_as_it_is(
    store: SQLite, broken: Any, call: str, code: int, expected: type[Exception]
) -> None:
    due = waiting(2, due_at_us=NOW.timer_us - 9, expires_at_us=NOW.timer_us - 1)
    store.commit(inserts([waiting(1), due, waiting(3, state=RUNNING)]), MARK)
    read_anew(store)
    broken(code, "SELECT", "INSERT", "UPDATE")

    with pytest.raises(expected):
        CALLS[call](store)


def test_a_read_that_fails_at_the_start_is_not_called_corruption(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: object) -> int:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    store = SQLite(f"sqlite://{path}")
    monkeypatch.setattr(opening, "_first_checkpoint", failing)

    with pytest.raises(StoreFailed):
        store.open()


def test_pages_that_the_disk_does_not_give_are_not_called_corrupt(
    store: SQLite, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    read_anew(store)
    broken(sqlite3.SQLITE_CORRUPT, "SELECT", "quick_check")
    monkeypatch.setattr(disk, "is_readable", lambda path: False)

    with pytest.raises(StoreFailed):
        by_seq(store, {1})


@pytest.mark.parametrize("word", ["BEGIN", "INSERT INTO jobs", "INSERT OR REPLACE", "INSERT INTO counts", "COMMIT"])
def test_whichever_statement_fails_nothing_of_the_commit_is_stored(
    store: SQLite, broken: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "UNCOUNTED_MOST", 0)
    first = waiting(1)
    store.commit(inserts([first]), MARK)
    real = database(store)
    broken(sqlite3.SQLITE_FULL, word)

    with pytest.raises(StoreFull):
        store.commit([changed(first, module="Fax"), *inserts([waiting(2)])], MARK)

    store._core.database = real
    assert not real.in_transaction
    assert by_seq(store, {1, 2}) == {1: first}
    assert store.check() == []


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN])
@pytest.mark.parametrize("word", ["BEGIN", "INSERT INTO jobs", "COMMIT", "PRAGMA wal_checkpoint"])
def test_a_used_up_quota_is_a_full_disk(
    store: SQLite, broken: Any, word: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has one error for each write that fails; only of a disk without a block to spare it says that it is full."""
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 1)
    real = database(store)
    allocated = disk.allocate

    def no_quota(fd: int, start: int, length: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(disk, "allocate", no_quota)
    store.commit(inserts([waiting(1)]), MARK)
    broken(code, word)

    with contextlib.suppress(StoreFull):
        store.commit(inserts([waiting(2)]), MARK)
    store.tidy()

    assert store.is_full
    store._core.database = real
    monkeypatch.setattr(disk, "allocate", allocated)
    assert store.has_room()
    store.commit(inserts([waiting(3)]), MARK)
    assert store.check() == []


def test_a_new_store_on_a_full_disk_is_refused_for_now(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SCHEMA", "PRAGMA max_page_count = 3; " + disk.SCHEMA)

    with pytest.raises(StoreFull):
        SQLite(f"sqlite://{path}").open()


def test_a_checkpoint_that_fails_stops_the_server(store: SQLite, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 1)
    store.commit(inserts([waiting(1)]), MARK)
    broken(sqlite3.SQLITE_IOERR_FSYNC, "PRAGMA")

    with pytest.raises(StoreFailed):
        store.tidy()


def test_a_checkpoint_without_room_costs_the_ballast_only(
    store: SQLite, path: Path, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 1)
    store.commit(inserts([waiting(1)]), MARK)
    broken(sqlite3.SQLITE_FULL, "PRAGMA")

    store.tidy()

    assert Path(f"{path}.ballast").stat().st_size == 0


def test_a_close_that_fails_says_so_and_still_lets_go(store: SQLite, path: Path, broken: Any) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    broken(sqlite3.SQLITE_IOERR_FSYNC, "PRAGMA")

    with pytest.raises(StoreFailed):
        store.close()

    again = SQLite(f"sqlite://{path}")
    assert again.open().last_seq == 1
    again.close()
