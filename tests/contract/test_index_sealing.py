"""The upkeep of the lanes: what is sealed is what counts, thin runs are laid together, and lanes without jobs are freed."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index import keys, sealing
from givalia_core.store.sqlite.index.keys import DueKey
from givalia_core.store.sqlite.index.lane import START, Lane
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.runs import Entry, Runs
from givalia_core.store.sqlite.index.slots import FAR, FIRST, Slots
from givalia_core.store.sqlite.places import Damaged

pytestmark = pytest.mark.usefixtures("small_index")  # A run has room for 16 entries.


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[Lanes]:
    lanes = Lanes(tmp_path, Slots(tmp_path, Mock()), Mock(), 16)
    yield lanes
    lanes.close()
    lanes.slots.close()


def due(lanes: Lanes, module: str) -> Lane:
    return lanes.lane(DueKey(keys.DUE, False, module, "any", 0))


def file(lanes: Lanes, lane: Lane, when: int) -> Entry:
    slot = lanes.slots.take()
    seq = 1 + (slot - FIRST) // 8
    lanes.slots.write(slot, seq, 0, lane.number, when, 0, 0, 0)
    lanes.stand(slot, lane, when)
    return when, seq, slot


def free(lanes: Lanes, entries: list[Entry]) -> None:
    for _, _, slot in entries:
        lanes.slots.free(slot)


def sealed(lanes: Lanes) -> list[tuple[int, int, int, int]]:
    return [row for run in lanes.runs.all() for row in lanes.runs.rows(run)]


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_seal_of_many_entries_in_several_lanes_has_each_once_by_lane_and_in_order(lanes: Lanes, tmp_path: Path) -> None:
    some = [due(lanes, name) for name in ("A", "B", "C")]
    filed = [(lane.number, *file(lanes, lane, 7 * number % 20)) for number in range(15) for lane in reversed(some)]
    for number, when, _, slot in filed[::4]:
        lanes.stand(slot, some[number], when)
    moved = filed.pop(20)
    lanes.slots.free(moved[3])

    sealing.seal(lanes, 11, 12)

    assert sealed(lanes) == sorted(filed)
    assert [run.size for run in lanes.runs.all()] == [16, 16, 12]
    assert (lanes.loose, lanes.with_loose, [lane.loose for lane in some]) == (0, {}, [[], [], []])
    assert (lanes.runs.sealed_at, lanes.runs.sealed_seq) == (11, 12)
    lanes.close()
    lanes.slots.close()
    again = Lanes(tmp_path, Slots(tmp_path, Mock()), Mock(), 16)
    for lane in some:
        assert list(again.walk(again.by_key[lane.key])) == sorted(row[1:] for row in filed if row[0] == lane.number)
    again.close()
    again.slots.close()


def test_a_seal_takes_the_place_of_a_run_that_is_mostly_past(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_SAMPLE", 1)
    lane = due(lanes, "A")
    parts = [[file(lanes, lane, 10 * part + number) for number in range(4)] for part in range(1)]
    sealing.seal(lanes, 0, 0)
    for part in range(1, 5):
        parts.append([file(lanes, lane, 10 * part + number) for number in range(4)])
        sealing.seal(lanes, 0, 0)
    past = lanes.runs.all()[1]
    free(lanes, parts[1][:3])

    for _ in range(5):  # Each run has its turn.
        sealing.seal(lanes, 0, 0)

    assert past not in lanes.runs
    left = sorted([entry for part in parts for entry in part if entry not in parts[1][:3]])
    assert list(lanes.walk(lane)) == left
    assert sorted(row[1:] for row in sealed(lanes)) == left


def test_on_a_full_disk_the_entries_stay_in_memory_and_are_sealed_later(
    lanes: Lanes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NameTable(tmp_path / "names", b"secret", lanes.slots, Mock())
    lane = due(lanes, "A")
    filed = [file(lanes, lane, number) for number in range(15)]
    sealing.seal_if_many(lanes, names, 1, 2)
    assert len(lanes.runs) == 0  # They are not enough.
    filed.append(file(lanes, lane, 15))
    with monkeypatch.context() as patched:
        patched.setattr(Runs, "_write_list", full)
        sealing.seal_if_many(lanes, names, 1, 2)
        assert lanes.make_room.call_count == 1  # type: ignore[attr-defined]
        sealing.seal_if_many(lanes, names, 1, 2)
        assert lanes.make_room.call_count == 1  # type: ignore[attr-defined] # Not with every commit.

    assert list(lanes.walk(lane)) == filed
    names.overflow[1] = [FIRST]
    lanes.seal_entries = 16
    sealing.seal_if_many(lanes, names, 1, 2)
    assert len(lanes.runs) == 0  # A restart could not find names that are in memory alone.
    names.overflow.clear()
    sealing.seal_if_many(lanes, names, 1, 2)
    assert (len(lanes.runs), lanes.loose, lanes.seal_entries) == (1, 0, 16)
    assert list(lanes.walk(lane)) == filed
    names.close()


def test_a_lane_that_a_whole_round_saw_no_job_in_is_freed_unless_one_was_filed_since(lanes: Lanes) -> None:
    a, b, c = (due(lanes, name) for name in ("A", "B", "C"))
    running = lanes.lane((keys.RUNNING,))
    sealing.end_round(lanes)
    assert lanes.unused == []
    sealing.mark(lanes, [a.number, -1])
    sealing.end_round(lanes)
    assert lanes.unused == [b, c]
    file(lanes, b, 1)

    assert sealing.free_unused(lanes, 1) == []
    assert sealing.free_unused(lanes, 9) == [c]

    assert lanes.unused == []
    assert lanes.by_number == [a, b, None, running]
    assert lanes.freed_numbers == [c.number]
    assert due(lanes, "D").number == c.number


@pytest.mark.parametrize("number", [1, 9])
def test_jobs_in_a_lane_that_does_not_exist_are_damage(lanes: Lanes, number: int) -> None:
    due(lanes, "A")
    lanes.set(1, None)

    with pytest.raises(Damaged, match=f"lane {number}"):
        sealing.mark(lanes, [0, number])


def test_freed_lanes_leave_no_number_at_the_end_and_no_name_in_the_file(lanes: Lanes, tmp_path: Path) -> None:
    some = [due(lanes, f"M{number}") for number in range(100)]
    size = (tmp_path / "lanes.keys").stat().st_size
    for lane in some[1:2] + some[3:]:
        lanes.set(lane.number, None)

    sealing.forget_freed(lanes)

    assert lanes.by_number == [some[0], None, some[2]]
    assert lanes.freed_numbers == [1]
    assert list(lanes.keys.read()) == [(0, some[0].key), (2, some[2].key)]
    assert (tmp_path / "lanes.keys").stat().st_size < size / 10


def test_a_run_in_which_nothing_counts_is_dropped_and_two_thin_ones_become_one(
    lanes: Lanes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealing, "_SAMPLE", 1)
    lane, other = due(lanes, "A"), due(lanes, "B")
    parts = [[file(lanes, lane, 10 * part + number) for number in range(4)] for part in range(1)]
    sealing.seal(lanes, 3, 4)
    for part in range(1, 4):
        parts.append([file(lanes, (lane, other)[number % 2], 10 * part + number) for number in range(4)])
        lanes.runs.seal(
            [*map(_column, zip(*sorted((n % 2, *entry) for n, entry in enumerate(parts[-1])), strict=True))], (), 3, 4
        )
        for each in (lane, other):
            each.loose = []
    first, second, third, fourth = lanes.runs.all()
    free(lanes, [*parts[0], *parts[1][:3], *parts[2][1:]])

    assert sealing.thin_out(lanes, fourth) == 0  # All of it counts.
    assert sealing.thin_out(lanes, first) == 1
    assert sealing.thin_out(lanes, second) == 0  # It waits for another one,
    assert sealing.thin_out(lanes, second) == 0  # which is not itself.
    assert sealing.thin_out(lanes, third) == 2

    assert lanes.runs.all()[0] == fourth
    merged = lanes.runs.rows(lanes.runs.all()[1])
    assert merged == [(lane.number, *parts[2][0]), (other.number, *parts[1][3])]
    assert len(lanes.runs) == 2
    assert (lanes.runs.sealed_at, lanes.runs.sealed_seq) == (3, 4)


def _column(values: tuple[int, ...]) -> array[int]:
    return array("q", values)


def test_the_header_has_the_files_as_they_are_and_only_a_seal_lifts_the_floor(lanes: Lanes) -> None:
    file(lanes, due(lanes, "A"), 1)
    sealing.write_header(lanes, floor=5)
    header = lanes.slots.header
    assert (header.end, header.keys_end, header.keys_crc) == (lanes.slots.end, lanes.keys.end, lanes.keys.crc)
    assert (header.generation, header.floor) == (0, 5)
    assert lanes.slots.read_header() == header

    sealing.write_header(lanes, is_closed=1)
    assert (lanes.slots.header.floor, lanes.slots.header.is_closed) == (5, 1)
    sealing.seal(lanes, 1, 1)

    assert (lanes.slots.header.floor, lanes.slots.header.generation) == (FAR, 1)


def test_entries_of_slots_that_were_given_back_are_dropped_from_memory(lanes: Lanes) -> None:
    lane = due(lanes, "A")
    first, second, third = (file(lanes, lane, when) for when in (3, 2, 1))
    assert list(lanes.walk(lane)) == [third, second, first]
    lanes.slots.free(third[2])

    sealing.forget_behind(lanes, third[2])

    assert (lane.front, lane.bound, sorted(lane.loose)) == ([], START, [second, first])
    assert list(lanes.walk(lane)) == [second, first]
