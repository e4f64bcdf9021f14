"""Places of records as integers, and rows of records as they are cut."""

from __future__ import annotations

import msgpack
import pytest

from givalia_core.store.sqlite import places
from givalia_core.store.sqlite.places import ROW_RECORDS
from givalia_core.store.sqlite.records import base_rows, change_rows, pack, pack_base, unpack
from givalia_core.store.suite import waiting


@pytest.mark.parametrize("size", [1, 2, ROW_RECORDS])
def test_a_place_of_an_enq_says_its_row_and_how_many_jobs_that_has(size: int) -> None:
    base = places.base_at(10**12, size)

    assert (places.base_row(base), places.base_size(base)) == (10**12, size)


@pytest.mark.parametrize("number", [0, 1, ROW_RECORDS - 1])
def test_a_place_of_a_change_says_its_row_its_number_and_how_many_records_the_row_has(number: int) -> None:
    place = places.change_at(10**12, number, ROW_RECORDS)

    assert (places.change_row(place), places.change_number(place), places.change_size(place)) == (10**12, number, ROW_RECORDS)
    assert places.without_size(place) == places.without_size(places.change_at(10**12, number, 1))


def test_jobs_of_consecutive_seqs_share_a_row_and_a_gap_begins_another() -> None:
    jobs = [waiting(seq) for seq in (1, 2, 3, 7, 8)]

    rows, bases = base_rows(jobs)

    assert [first for first, _ in rows] == [1, 7]
    assert bases == [places.base_at(1, 3)] * 3 + [places.base_at(7, 2)] * 2
    records = msgpack.unpackb(rows[1][1])
    assert records == [pack_base(jobs[3]), jobs[3].params, pack_base(jobs[4]), jobs[4].params]
    assert unpack(records[0], records[1]) == jobs[3]


def test_a_row_is_cut_before_it_no_longer_fits_a_page() -> None:
    jobs = [waiting(seq, params=bytes(1_500)) for seq in range(1, 6)]

    rows, bases = base_rows(jobs)

    assert [len(row) < 4_000 for _, row in rows] == [True] * 3
    assert [places.base_row(base) for base in bases] == [1, 1, 3, 3, 5]


def test_a_record_that_is_larger_than_a_page_has_a_row_of_its_own() -> None:
    rows, bases = base_rows([waiting(1), waiting(2, params=bytes(10_000)), waiting(3)])

    assert [first for first, _ in rows] == [1, 2, 3]
    assert [places.base_size(base) for base in bases] == [1, 1, 1]


def test_changes_are_numbered_from_behind_the_last_row() -> None:
    records = [pack(waiting(seq).front()) for seq in range(1, 2 * ROW_RECORDS)]

    rows, at = change_rows(records, 41)

    assert [number for number, _ in rows] == sorted({places.change_row(place) for place in at})
    assert rows[0][0] == 42
    packed = {number: msgpack.unpackb(row) for number, row in rows}
    assert [packed[places.change_row(place)][places.change_number(place)] for place in at] == records
    assert all(places.change_size(place) == len(packed[places.change_row(place)]) for place in at)


def test_nothing_makes_no_row() -> None:
    assert base_rows([]) == ([], [])
    assert change_rows([], 5) == ([], [])
