"""Past records until they are removed: a row is taken once when half of it is past, and once when all of it is."""

from __future__ import annotations

import pytest

from givalia_core.store.sqlite.index.upkeep import past as past_module
from givalia_core.store.sqlite.index.upkeep.past import Past
from givalia_core.store.sqlite.places import base_at, change_at


def written(row: int, size: int, past: Past | None = None) -> Past:
    """A row whose records are those of the jobs 100, 101 and so on."""
    past = Past() if past is None else past
    past.wrote([change_at(row, number, size) for number in range(size)], [100 + number for number in range(size)])
    return past


def add(past: Past, row: int, size: int, *numbers: int) -> None:
    for number in numbers:
        assert past.add_change(change_at(row, number, size), 100 + number)


def test_a_row_of_changes_is_taken_once_half_past_and_once_wholly_past() -> None:
    past = written(7, 5)
    add(past, 7, 5, 4, 0, 0)
    assert (len(past), past.take_changes(9)) == (0, ([], []))

    add(past, 7, 5, 2)
    assert (len(past), past.take_changes(9)) == (1, ([], [(7, 0b10101)]))
    add(past, 7, 5, 1, 2)
    assert past.take_changes(9) == ([], [])
    add(past, 7, 5, 3)

    assert (len(past), past.take_changes(9)) == (1, ([7], []))
    assert (len(past), past.take_changes(9)) == (0, ([], []))


def test_a_row_that_is_wholly_past_before_it_was_taken_is_only_removed() -> None:
    past = written(7, 2)
    add(past, 7, 2, 0, 1)

    assert past.take_changes(9) == ([7], [])


def test_the_record_of_another_job_is_refused_and_is_not_past() -> None:
    past = Past()
    past.wrote(
        [change_at(7, 0, 2), change_at(7, 1, 2), change_at(8, 0, 1)], [100, 101, 102]
    )  # Rows of one commit, one behind the other.

    assert not past.add_change(change_at(7, 1, 2), 100)
    assert not past.add_change(change_at(8, 0, 1), 101)
    assert len(past) == 0
    assert past.add_change(change_at(8, 0, 1), 102)
    assert past.take_changes(9) == ([8], [])


def test_a_row_of_which_there_are_only_hints_is_not_removed_until_its_records_prove_it() -> None:
    past = Past()
    for row in (7, 8):
        assert past.add_change(change_at(row, 0, 2), 100)
        assert past.add_change(change_at(row, 1, 2), 101)
    past.add_proven(9, 0b10, 2)

    assert past.take_hints(1) == [7]
    assert past.take_changes(9) == ([], [(9, 0b10)])
    assert len(past) == 2
    past.add_proven(8, 0b11, 2)

    assert set(past.take_hints(9)) == {7}
    full, half = past.take_changes(9)
    assert (set(full), half) == ({8}, [])


def test_a_row_whose_records_prove_that_no_hint_was_right_stays() -> None:
    past = Past()
    assert past.add_change(change_at(7, 1, 2), 101)
    assert past.take_hints(9) == [7]
    past.add_proven(7, 0, 2)

    assert past.take_changes(9) == ([], [])
    assert past.add_change(change_at(7, 0, 2), 100)
    assert past.take_hints(9) == [7]  # A new note about an old row is a hint again.


def test_a_row_whose_records_prove_that_some_hints_were_wrong_is_not_removed() -> None:
    past = Past()
    assert past.add_change(change_at(7, 0, 2), 100)
    assert past.add_change(change_at(7, 1, 2), 101)
    assert past.take_hints(9) == [7]
    past.add_proven(7, 0b01, 2)

    full, half = past.take_changes(9)

    assert full == []
    assert set(half) == {(7, 0b01)}


def test_whose_records_are_in_a_row_is_remembered_for_the_rows_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(past_module, "_WRITTEN_ROWS", 2)
    past = Past()
    for row in (7, 8, 9):
        written(row, 1, past)

    assert past.add_change(change_at(7, 0, 1), 999)  # Forgotten: a hint.
    assert past.take_hints(9) == [7]
    assert not past.add_change(change_at(8, 0, 1), 999)
    assert not past.add_change(change_at(9, 0, 1), 999)


def test_a_row_of_jobs_is_taken_with_its_slots_once_half_and_once_all_of_them_are_forgotten() -> None:
    past, base = Past(), base_at(50, 4)
    past.add_job(51, base, 640)
    past.add_job(51, base, None)
    assert (len(past), past.take_jobs(9)) == (0, [])

    past.add_job(53, base, 648)
    assert (len(past), past.take_jobs(9)) == (1, [(50, [640, 648])])
    past.add_job(50, base, None)  # Its record is gone already.
    past.add_job(52, base, 656)
    assert past.take_jobs(9) == [(50, [656])]

    past.is_gone(50)  # Another job of this number, in a restored store, begins anew.
    past.add_job(50, base, 664)
    past.add_job(51, base, 672)
    assert past.take_jobs(9) == [(50, [664, 672])]


def test_a_row_of_jobs_whose_records_are_all_gone_is_not_taken() -> None:
    past = Past()
    past.add_job(50, base_at(50, 1), None)

    assert past.take_jobs(9) == []


def test_only_so_many_rows_are_taken_at_once_and_the_others_later() -> None:
    past = Past()
    for row in range(1, 41):
        written(row, 1, past)
        add(past, row, 1, 0)
        written(100 + row, 2, past)
        add(past, 100 + row, 2, 0)
        past.add_job(row, base_at(row, 1), 8 * row)
    assert len(past) == 120

    assert past.take_jobs(2) == [(1, [8]), (2, [16])]
    assert past.take_changes(2) == (list(range(1, 33)), [(101, 1), (102, 1)])
    assert past.take_changes(2) == (list(range(33, 41)), [(103, 1), (104, 1)])
    assert len(past) == 38 + 36


def test_rows_that_could_not_be_written_are_taken_again() -> None:
    past = written(7, 1)
    add(past, 7, 1, 0)
    written(8, 2, past)
    add(past, 8, 2, 0)
    past.add_job(50, base_at(50, 1), 640)
    taken = past.take_jobs(9), *past.take_changes(9)
    past.add_job(50, base_at(50, 1), 648)

    past.put_back(*taken)

    assert len(past) == 3
    assert past.take_jobs(9) == [(50, [648, 640])]
    assert past.take_changes(9) == ([7], [(8, 1)])
