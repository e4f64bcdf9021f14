"""The table of jobs that are set aside: it is made when it is needed, keeps what was found, and names each job."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgpack
import pytest

from givalia_core.clock import SystemClock
from givalia_core.model import DONE
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.places import Place, base_at, change_at
from givalia_core.store.sqlite.quarantine import Quarantine
from givalia_core.store.sqlite.records import base_rows, change_rows, pack, pack_base
from givalia_core.store.sqlite.tables import Records
from givalia_core.store.suite import waiting

JOBS = [waiting(1), waiting(2)]
CHANGE = pack(JOBS[1].changed(version=2, state=DONE).front())
PLACES = [Place(1, base_at(1, 2), 0), Place(2, base_at(1, 2), change_at(1, 0, 1))]


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    """Two jobs in one row, the second with a change."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.executescript(disk.SCHEMA)
    database.executemany("INSERT INTO jobs VALUES (?, ?)", base_rows(JOBS)[0])
    database.executemany("INSERT INTO changes VALUES (?, ?)", change_rows([CHANGE], 0)[0])
    yield database
    database.close()


def opened(database: sqlite3.Connection) -> Quarantine:
    quarantine = Quarantine(lambda: database, Records(lambda: database))
    quarantine.open()
    return quarantine


def tables(database: sqlite3.Connection) -> set[str]:
    return {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def kept(database: sqlite3.Connection) -> list[tuple[object, ...]]:
    return database.execute("SELECT seq, why, record, params, change FROM quarantine ORDER BY number").fetchall()


def test_a_store_in_which_nothing_was_set_aside_has_no_table_for_it(database: sqlite3.Connection) -> None:
    quarantine = opened(database)

    assert (quarantine.count, quarantine.lines()) == (0, [])
    assert tables(database) == {"jobs", "changes", "counts", "facts"}


def test_a_job_is_moved_with_its_records_params_and_reason_and_with_the_time(database: sqlite3.Connection) -> None:
    before_us = SystemClock().read().wall_us

    opened(database).add(PLACES[1], "bad luck")

    assert kept(database) == [(2, "bad luck", pack_base(JOBS[1]), JOBS[1].params, CHANGE)]
    ((found_at_us,),) = database.execute("SELECT found_at_us FROM quarantine")
    assert abs(found_at_us - before_us) < 60_000_000
    (blob,) = database.execute("SELECT records FROM jobs").fetchone()
    assert msgpack.unpackb(blob) == [pack_base(JOBS[0]), JOBS[0].params, None, None]
    (blob,) = database.execute("SELECT records FROM changes").fetchone()
    assert msgpack.unpackb(blob) == [None]


def test_jobs_are_named_in_the_order_in_which_they_were_found(database: sqlite3.Connection) -> None:
    quarantine = opened(database)

    quarantine.add(PLACES[1], "bad luck")
    quarantine.add(PLACES[0], "worse luck")

    assert quarantine.count == 2
    assert quarantine.lines() == ["job 2 is in quarantine: bad luck", "job 1 is in quarantine: worse luck"]


def test_jobs_that_an_earlier_run_has_set_aside_are_counted_and_named(database: sqlite3.Connection) -> None:
    opened(database).add(PLACES[0], "bad luck")

    again = opened(database)

    assert again.count == 1
    assert again.lines() == ["job 1 is in quarantine: bad luck"]
    again.add(PLACES[1], "worse luck")
    assert (again.count, len(kept(database))) == (2, 2)


def test_parts_that_cannot_be_taken_out_are_missing_and_their_rows_stay(database: sqlite3.Connection) -> None:
    database.execute("UPDATE jobs SET records = x'c1'")

    opened(database).add(PLACES[1], "bad luck")

    assert kept(database) == [(2, "bad luck", None, None, CHANGE)]
    assert database.execute("SELECT records FROM jobs").fetchall() == [(b"\xc1",)]


def test_parts_that_are_no_bytes_are_not_kept(database: sqlite3.Connection) -> None:
    database.execute("UPDATE jobs SET records = ?", (msgpack.packb(["text", 7, pack_base(JOBS[1]), b"params"]),))

    opened(database).add(PLACES[0], "bad luck")

    assert kept(database) == [(1, "bad luck", None, None, None)]


def test_a_job_that_has_no_place_is_named_and_nothing_is_taken_for_its_own(database: sqlite3.Connection) -> None:
    before = database.execute("SELECT * FROM jobs").fetchall()

    opened(database).add(Place(9, 0, 0), "bad luck")

    assert kept(database) == [(9, "bad luck", None, None, None)]
    assert database.execute("SELECT * FROM jobs").fetchall() == before


def test_a_transaction_that_is_rolled_back_sets_nothing_aside(database: sqlite3.Connection) -> None:
    database.execute("BEGIN")
    opened(database).add(PLACES[0], "bad luck")
    database.execute("ROLLBACK")

    assert "quarantine" not in tables(database)
    assert opened(database).lines() == []
    assert Records(lambda: database).read(PLACES[:1]) == {1: JOBS[0]}
