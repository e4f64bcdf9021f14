"""Both tables of records: what they tell of a job, what they tell of damage, and how what is past is taken out of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import msgpack
import pytest

from givalia_core.errors import StoreCorrupt
from givalia_core.model import RUNNING
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.places import Damaged, Place, base_at, change_at
from givalia_core.store.sqlite.records import Forgotten, base_rows, change_rows, pack, pack_base, pack_forgotten
from givalia_core.store.sqlite.tables import Records, Row, changes_of, jobs_of, row_of
from givalia_core.store.suite import waiting

JOBS = {seq: waiting(seq, key=f"k{seq}") for seq in (1, 2, 3, 7)}
LATER = {seq: JOBS[seq].changed(version=2, state=RUNNING) for seq in (2, 7)}
BASE, ALONE = base_at(1, 3), base_at(7, 1)
AT = {2: change_at(1, 0, 3), 7: change_at(1, 2, 3)}
PLACES = {1: Place(1, BASE, 0), 2: Place(2, BASE, AT[2]), 3: Place(3, BASE, 0), 7: Place(7, ALONE, AT[7])}


@pytest.fixture
def database() -> Iterator[sqlite3.Connection]:
    """Jobs 1 to 3 in one row, 7 in another; in one row of changes job 2, that job 3 is forgotten, and job 7."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.executescript(disk.SCHEMA)
    rows, _ = base_rows(list(JOBS.values()))
    database.executemany("INSERT INTO jobs VALUES (?, ?)", rows)
    changes = [pack(LATER[2].front()), pack_forgotten(Forgotten(3, 2, 0)), pack(LATER[7].front())]
    rows, _ = change_rows(changes, 0)
    database.executemany("INSERT INTO changes VALUES (?, ?)", rows)
    yield database
    database.close()


@pytest.fixture
def records(database: sqlite3.Connection) -> Records:
    return Records(lambda: database)


def row(database: sqlite3.Connection, table: str, number: int) -> list[bytes | None] | None:
    name = "first_seq" if table == "jobs" else "number"
    found = database.execute(f"SELECT records FROM {table} WHERE {name} = ?", (number,)).fetchone()
    return None if found is None else list(msgpack.unpackb(found[0]))


def spoil(database: sqlite3.Connection, table: str, place: int, record: bytes | None) -> None:
    """Replace a part of the first row of a table."""
    spoiled = row(database, table, 1)
    assert spoiled is not None
    spoiled[place] = record
    database.execute(f"UPDATE {table} SET records = ? WHERE rowid = 1", (msgpack.packb(spoiled),))


# What the tables tell.


def test_a_job_is_its_newest_change_with_the_params_of_its_enq_and_absent_when_that_is_gone(
    records: Records, database: sqlite3.Connection
) -> None:
    assert records.read(PLACES.values()) == {1: JOBS[1], 2: LATER[2], 3: JOBS[3], 7: LATER[7]}
    assert LATER[2].params == b"params"

    spoil(database, "jobs", 0, None)

    assert records.read([PLACES[1], PLACES[2], Place(50, base_at(50, 1), 0)]) == {2: LATER[2]}


def test_a_bad_record_costs_its_job_alone_and_is_an_error_if_nobody_asks_for_the_bad(
    records: Records, database: sqlite3.Connection
) -> None:
    spoil(database, "jobs", 3, b"other")
    bad: dict[int, str] = {}

    assert records.read(PLACES.values(), bad) == {1: JOBS[1], 3: JOBS[3], 7: LATER[7]}

    assert bad == {2: "a record does not match its checksum"}
    with pytest.raises(StoreCorrupt):
        records.read(PLACES.values())


@pytest.mark.parametrize(
    "place",
    [
        Place(2, base_at(1, 3), AT[7]),  # The change of another job.
        Place(1, base_at(1, 3), change_at(1, 1, 3)),  # That another job is forgotten.
        Place(1, base_at(1, 3), change_at(1, 3, 4)),  # Behind the end of the row.
        Place(1, base_at(1, 3), change_at(9, 0, 1)),  # In no row.
        Place(4, base_at(1, 3), 0),  # Behind the end of the row.
        Place(0, base_at(1, 3), 0),  # Before its beginning.
    ],
)
def test_a_place_that_leads_elsewhere_is_damage_of_the_index(records: Records, place: Place) -> None:
    with pytest.raises(Damaged):
        records.read([place], {})


@pytest.mark.parametrize("count", [1, 16, 17, 256, 257, 600])
def test_any_number_of_rows_is_read_at_once(records: Records, database: sqlite3.Connection, count: int) -> None:
    jobs = {seq: waiting(seq) for seq in range(100, 100 + 2 * count, 2)}  # Each in a row of its own.
    rows, bases = base_rows(list(jobs.values()))
    database.executemany("INSERT INTO jobs VALUES (?, ?)", rows)

    assert records.read([Place(seq, base, 0) for seq, base in zip(jobs, bases, strict=True)]) == jobs


def test_the_tables_alone_tell_which_jobs_are_forgotten_and_which_still_have_an_enq_record(
    records: Records, database: sqlite3.Connection
) -> None:
    places = [change_at(1, number, 3) for number in range(4)] + [change_at(9, 0, 1)]
    assert records.forgets(places) == {places[1]: 3}

    spoil(database, "changes", 1, pack_forgotten(Forgotten(3, 2, 0))[:-1])

    assert records.forgets(places) == {}
    spoil(database, "jobs", 2, None)

    assert records.have_bases(range(10)) == {1, 3, 7}
    database.execute("UPDATE jobs SET records = ? WHERE first_seq = 7", (b"\xc1",))
    assert records.have_bases([6, 7, 8]) == {7, 8}, "a row that cannot be read may have them"


def test_rows_come_in_order_from_behind_a_number_and_no_more_than_asked_for(records: Records) -> None:
    assert [row.number for row in records.bases(0)] == [1, 7]
    assert [row.number for row in records.bases(0, 1)] == [1]
    assert [row.number for row in records.bases(1)] == [7]
    assert [row.number for row in records.changes(1)] == []
    assert [records.first_at_or_before(seq) for seq in (0, 1, 6, 7, 8)] == [0, 1, 1, 7, 7]


# What is written.


@pytest.mark.parametrize("how", ["past", "damaged", "no row"])
def test_other_params_replace_the_enq_record_of_their_job_alone_if_it_is_sound(
    records: Records, database: sqlite3.Connection, how: str
) -> None:
    new = LATER[2].changed(version=3, params=b"new")

    records.replace(BASE, new)

    assert records.read([Place(2, BASE, 0), PLACES[2], PLACES[1], PLACES[3]]) == {
        2: LATER[2].changed(params=b"new"), 1: JOBS[1], 3: JOBS[3],
    }  # fmt: skip
    assert records.read([Place(2, BASE, 0)]) == {2: new}

    spoil(database, "jobs", 2, None if how == "past" else pack_base(JOBS[2])[:-1])
    before = row(database, "jobs", 1)

    with pytest.raises(StoreCorrupt):
        records.replace(base_at(5, 1) if how == "no row" else BASE, JOBS[2].changed(version=2, params=b"new"))

    assert row(database, "jobs", 1) == before


def test_only_what_is_the_jobs_own_is_taken_out_and_returned_as_it_is(records: Records, database: sqlite3.Connection) -> None:
    spoil(database, "jobs", 2, b"damaged")
    spoil(database, "changes", 0, b"cut")

    assert records.take_out(PLACES[2]) == (b"damaged", b"params", b"cut")

    assert records.take_out(PLACES[2]) == (None, None, None)
    assert records.read([PLACES[1], PLACES[3], PLACES[7]]) == {1: JOBS[1], 3: JOBS[3], 7: LATER[7]}

    spoil(database, "jobs", 2, pack_base(JOBS[1]))
    spoil(database, "jobs", 3, b"params")
    assert records.take_out(Place(2, BASE, AT[7])) == (None, None, None)
    assert records.read([PLACES[7]]) == {7: LATER[7]}

    for table in ("jobs", "changes"):
        database.execute(f"UPDATE {table} SET records = ?", (b"\xc1",))
    assert records.take_out(PLACES[1]) == records.take_out(PLACES[7]) == (None, None, None)
    assert database.execute("SELECT DISTINCT records FROM jobs").fetchall() == [(b"\xc1",)]


def test_a_row_of_jobs_is_removed_with_its_last_job(records: Records, database: sqlite3.Connection) -> None:
    assert records.drop_jobs([(1, [1, 3]), (7, [7]), (50, [50])]) == [7]
    assert row(database, "jobs", 1) == [None, None, pack_base(JOBS[2]), b"params", None, None]
    assert row(database, "jobs", 7) is None

    database.execute("INSERT INTO jobs VALUES (9, ?)", (b"\xc1",))
    assert records.drop_jobs([(1, [2]), (9, [9])]) == [1]
    assert [number for (number,) in database.execute("SELECT first_seq FROM jobs")] == [9], "it cannot be read, and stays"


def test_changes_are_removed_by_row_or_by_their_bits(records: Records, database: sqlite3.Connection) -> None:
    rows, _ = change_rows([pack_forgotten(Forgotten(1, 2, 0))], 1)
    database.executemany("INSERT INTO changes VALUES (?, ?)", rows)

    records.drop_changes([2, 99], [(1, 0b011), (98, 1)])

    assert row(database, "changes", 1) == [None, None, pack(LATER[7].front())]
    assert row(database, "changes", 2) is None


# What a row says.


def test_a_row_yields_its_sound_records_and_names_the_bad_ones_by_their_place() -> None:
    told: list[tuple[int, int, str]] = []
    jobs = [pack_base(JOBS[1]), b"params", None, None, pack_base(JOBS[2]), b"params", b"cut", b"params"]
    changes = [pack(LATER[2].front()), b"cut", None, pack_forgotten(Forgotten(3, 2, 0))]

    assert list(jobs_of(Row(1, jobs), lambda *bad: told.append(bad))) == [JOBS[1]]
    assert list(changes_of(Row(6, changes), lambda *bad: told.append(bad))) == [
        (change_at(6, 0, 4), LATER[2].changed(params=b"")), (change_at(6, 3, 4), Forgotten(3, 2, 0)),
    ]  # fmt: skip

    assert [(number, place) for number, place, _ in told] == [(1, 2), (1, 3), (6, 1)]
    assert told[0][2] == "the record of job 3 is that of another"
    for read in (lambda: list(jobs_of(Row(1, jobs))), lambda: list(changes_of(Row(6, changes)))):
        with pytest.raises(StoreCorrupt):
            read()


@pytest.mark.parametrize("raw", [b"", b"\xc1", b"\x07", msgpack.packb([b"x"])[:-1], msgpack.packb({1: 2})])
def test_a_row_that_cannot_be_read_is_named_as_a_whole(raw: bytes) -> None:
    told: list[tuple[int, int, str]] = []
    found = row_of(5, raw)
    assert found == Row(5, [], raw)

    assert list(jobs_of(found, lambda *bad: told.append(bad))) == []
    assert list(changes_of(found, lambda *bad: told.append(bad))) == []

    assert told == [(5, -1, "the row cannot be read")] * 2
    for read in (lambda: list(jobs_of(found)), lambda: list(changes_of(found)), lambda: list(jobs_of(Row(1, [b"odd"])))):
        with pytest.raises(StoreCorrupt, match=r"row [15] of the .* cannot be read"):
            read()
