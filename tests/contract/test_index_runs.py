"""The sealed runs: read as they were written, found to be changed, and kept by a kill and a full disk."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index import runs as runs_module
from givalia_core.store.sqlite.index.runs import Entry, Runs, SortedRun
from givalia_core.store.sqlite.places import Damaged

pytestmark = pytest.mark.usefixtures("small_index")  # A run has room for 16 entries.

Row = tuple[int, int, int, int]


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path, 0, Mock())
    yield runs
    runs.close()


def columns(rows: list[Row]) -> list[array[int]]:
    return [array("q", column) for column in zip(*rows, strict=True)]


def seal(runs: Runs, rows: list[Row], *without: SortedRun) -> None:
    runs.seal(columns(rows), without, 5, 6)


def some(lane: int, first: int, count: int) -> list[Row]:
    return [(lane, first + place, 1_000 + place, 64 + 8 * place) for place in range(count)]


def behind(runs: Runs, lane: int, start: Entry) -> list[list[Entry]]:
    return [
        list(zip(whens[low:high], seqs[low:high], slots[low:high], strict=True))
        for whens, seqs, slots, low, high in runs.stretches(lane, start)
    ]


def test_the_entries_of_a_lane_behind_a_start_are_found_in_each_run_that_may_have_some(runs: Runs) -> None:
    seal(runs, [(1, 10, 7, 64), (2, 10, 3, 72), (2, 10, 5, 80), (2, 10, 8, 88), (2, 20, 1, 96), (4, 1, 1, 104)])
    seal(runs, [(2, 5, 2, 112), (2, 15, 9, 120)])
    seal(runs, [(5, 1, 1, 128)])

    assert behind(runs, 2, (-(1 << 62), 0, 0)) == [
        [(10, 3, 72), (10, 5, 80), (10, 8, 88), (20, 1, 96)],
        [(5, 2, 112), (15, 9, 120)],
    ]
    assert behind(runs, 2, (10, 5, 0)) == [[(10, 8, 88), (20, 1, 96)], [(15, 9, 120)]]
    assert behind(runs, 2, (20, 1, 0)) == [[], []]
    assert behind(runs, 3, (0, 0, 0)) == [[]]  # Between the lanes of the first run.
    assert len(runs) == 3


def test_more_entries_than_a_run_has_room_for_become_several_runs(runs: Runs) -> None:
    rows = [*some(1, 0, 20), *some(2, 0, 20)]
    seal(runs, rows)

    assert [run.size for run in runs.all()] == [16, 16, 8]
    assert [row for run in runs.all() for row in runs.rows(run)] == rows
    assert [list(runs.entries(run)) for run in runs.all()][1] == [
        (1, [row[1:] for row in rows[16:20]]),
        (2, [row[1:] for row in rows[20:32]]),
    ]
    assert runs.rows(runs.all()[0], 8) == [rows[0], rows[8]]
    assert Runs.fit(16)
    assert not Runs.fit(17)


@pytest.mark.parametrize("column", range(4))
def test_a_word_of_a_run_that_was_changed_is_found_when_the_run_is_first_read(tmp_path: Path, runs: Runs, column: int) -> None:
    seal(runs, some(1, 0, 3))
    seal(runs, some(2, 0, 3))
    bad = runs.all()[1]
    runs._words.at[bad.place + 16 * column + 2] ^= 1 << 40
    runs.close()

    again = Runs(tmp_path, 2, Mock())

    assert again.rows(again.all()[0]) == some(1, 0, 3)
    for read in (again.rows, again.verify, lambda run: list(again.entries(run)), lambda _: behind(again, 2, (0, 0, 0))):
        with pytest.raises(Damaged, match=f"run at {bad.place} "):
            read(bad)
    again.close()


def test_a_list_counts_if_it_is_the_one_in_the_header_or_one_later(tmp_path: Path, runs: Runs) -> None:
    for lane in (1, 2, 3):
        seal(runs, some(lane, 0, 3))
    whole = runs.all()
    runs.close()

    for generation in (2, 3):
        again = Runs(tmp_path, generation, Mock())
        assert (again.generation, again.sealed_at, again.sealed_seq, again.all()) == (3, 5, 6, whole)
        again.close()
    for generation in (0, 4):
        with pytest.raises(Damaged, match="no list"):
            Runs(tmp_path, generation, Mock())


def test_a_kill_within_the_writing_of_a_list_leaves_the_one_before(tmp_path: Path, runs: Runs) -> None:
    seal(runs, some(1, 0, 3))
    seal(runs, some(2, 0, 3))
    one_before = runs.all()[:1]
    runs.close()
    torn = tmp_path / "sealed.0"
    os.truncate(torn, torn.stat().st_size - 1)

    again = Runs(tmp_path, 1, Mock())

    assert (again.generation, again.all()) == (1, one_before)
    seal(again, some(3, 0, 3))  # Takes the place of the run that no list has.
    assert [row[0] for run in again.all() for row in again.rows(run)] == [1, 1, 1, 3, 3, 3]
    again.verify_list()
    again.close()
    torn.write_bytes(b"")
    with pytest.raises(Damaged, match="no list"):
        Runs(tmp_path, 2, Mock())


def test_a_file_that_is_shorter_than_its_list_says_is_damage(tmp_path: Path, runs: Runs) -> None:
    for number in range(300):
        seal(runs, some(1, number, 16))
    runs.close()
    file = tmp_path / "runs"
    os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(Damaged, match="fewer"):
        Runs(tmp_path, 300, Mock())


def test_the_place_of_a_run_that_no_longer_counts_is_used_again(tmp_path: Path, runs: Runs) -> None:
    seal(runs, some(1, 0, 16))
    seal(runs, some(2, 0, 16))
    size = (tmp_path / "runs").stat().st_size
    for number in range(500):
        seal(runs, some(1, number, 16), runs.all()[0])

    assert (tmp_path / "runs").stat().st_size == size
    assert [runs.rows(run) for run in runs.all()] == [some(1, 498, 16), some(1, 499, 16)]


def test_a_list_that_cannot_be_written_leaves_the_runs_as_they_were(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seal(runs, some(1, 0, 3))
    before, free = runs.all(), sorted(runs._free)
    with monkeypatch.context() as patched:
        patched.setattr(runs_module, "_write", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            runs.seal(columns(some(2, 0, 40)), before, 7, 8)

    assert (runs.all(), sorted(runs._free), runs.generation) == (before, free, 1)
    assert (runs.sealed_at, runs.sealed_seq) == (5, 6)
    assert runs.rows(before[0]) == some(1, 0, 3)
    runs.verify_list()
    seal(runs, some(2, 0, 40))
    runs.verify_list()


@pytest.mark.parametrize("damage", ["gone", "changed", "earlier"])
def test_a_list_that_was_changed_is_found(tmp_path: Path, runs: Runs, damage: str) -> None:
    runs.verify_list()  # There is none yet.
    for lane in (1, 2, 3):
        seal(runs, some(lane, 0, 3))
    runs.verify_list()
    present = tmp_path / "sealed.1"
    told = present.read_bytes()
    if damage == "gone":
        present.unlink()
    elif damage == "changed":
        present.write_bytes(told[:-1] + bytes([told[-1] ^ 1]))
    else:
        present.write_bytes((tmp_path / "sealed.0").read_bytes())

    with pytest.raises(Damaged):
        runs.verify_list()


def test_room_behind_the_last_run_is_given_back_and_the_runs_stay(tmp_path: Path, runs: Runs) -> None:
    for number in range(600):
        seal(runs, some(1, number, 3))
    gone = runs.all()[2:]
    seal(runs, some(2, 0, 3), *gone)
    size = (tmp_path / "runs").stat().st_size
    runs.cut()
    assert (tmp_path / "runs").stat().st_size == size  # The last one lies at the end.
    assert [runs.is_far_back(run) for run in runs.all()] == [False, False, True]
    seal(runs, some(2, 0, 3), runs.all()[2])

    runs.cut()

    assert (tmp_path / "runs").stat().st_size < size / 2
    assert not any(map(runs.is_far_back, runs.all()))
    assert [runs.rows(run)[0][:2] for run in runs.all()] == [(1, 0), (1, 1), (2, 0)]
    for number in range(20):
        seal(runs, some(3, number, 3))
    assert [runs.rows(run) for run in runs.all()[3:]] == [some(3, number, 3) for number in range(20)]
    assert len({run.place for run in runs.all()}) == 23


def test_each_run_has_its_turn_to_be_sampled(runs: Runs) -> None:
    for lane in (1, 2, 3):
        seal(runs, some(lane, 0, 3))

    turns = [runs.oldest() for _ in range(6)]

    assert set(turns[:3]) == set(runs.all())
    assert turns[:3] == turns[3:]
    assert turns[0] in runs
    assert SortedRun(0, 1, 2) not in runs
