"""The lanes: an entry counts as long as its slot says the same, and is found once, wherever it is."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlite_history import SEED

from givalia_core.store.sqlite.index import keys, sealing
from givalia_core.store.sqlite.index.keys import DueKey, LaneKey
from givalia_core.store.sqlite.index.lane import START, Lane
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.runs import Entry
from givalia_core.store.sqlite.index.slots import FAR, FIRST, LANE, SEQ, WHEN, Slots
from givalia_core.store.sqlite.places import Damaged

pytestmark = pytest.mark.usefixtures("small_index")  # A front of four entries at first and twelve at most.


@pytest.fixture
def lanes(tmp_path: Path) -> Iterator[Lanes]:
    lanes = Lanes(tmp_path, Slots(tmp_path, Mock()), Mock(), 16)
    lanes.lane((keys.FORGOTTEN,))
    yield lanes
    lanes.close()
    lanes.slots.close()


def killed(lanes: Lanes, folder: Path) -> Lanes:
    lanes.close()
    lanes.slots.close()
    return Lanes(folder, Slots(folder, Mock()), Mock(), 16)


def due(module: str) -> LaneKey:
    return DueKey(keys.DUE, False, module, "any", 0)


def file(lanes: Lanes, lane: Lane, when: int, slot: int | None = None) -> Entry:
    """File a job, a new one unless it has a slot, and return its entry."""
    slots = lanes.slots
    if slot is None:
        slot = slots.take()
        slots.write(slot, 1 + (slot - FIRST) // 8, 0, lane.number, when, 0, 0, 0)
    else:
        slots.put(slot, LANE, lane.number)
        slots.put(slot, WHEN, when)
    lanes.stand(slot, lane, when)
    return when, slots.at[slot], slot


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("how", ["moved on", "another lane", "free", "another job"])
def test_an_entry_counts_as_long_as_its_slot_says_the_same(lanes: Lanes, how: str, is_sealed: bool) -> None:
    mail, fax = lanes.lane(due("Mail")), lanes.lane(due("Fax"))
    first, second, third = (file(lanes, mail, when) for when in (30, 10, 20))
    if is_sealed:
        sealing.seal(lanes, 0, 3)

    slot = second[2]
    if how == "moved on":
        file(lanes, mail, 40, slot)
    elif how == "another lane":
        file(lanes, fax, 10, slot)
    elif how == "free":
        lanes.slots.free(slot)
    else:
        lanes.slots.put(slot, SEQ, 99)

    left = [third, first, (40, 2, slot)] if how == "moved on" else [third, first]
    assert list(lanes.walk(mail)) == left
    assert lanes.first(mail, FAR, 9) == left
    assert lanes.after(mail, START, 9) == left
    assert list(lanes.walk(fax)) == ([second] if how == "another lane" else [])


def test_a_lane_whose_front_is_cut_has_all_its_entries_in_order(lanes: Lanes) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    lane = lanes.lane(due("Mail"))
    assert list(lanes.walk(lane)) == []  # From here on all entries are in the front,
    assert [lane.bound] == [None]
    whens = random.Random(SEED).sample(range(1_000), 13)
    filed = sorted(file(lanes, lane, when) for when in whens)

    assert lane.front == filed[:4]  # until it has grown to three times.
    assert lane.bound == filed[3]
    filed = sorted([*filed, file(lanes, lane, filed[5][0]), file(lanes, lane, -1)])
    assert lane.front == filed[:5]
    assert lanes.first(lane, FAR, 7) == filed[:7]
    assert list(lanes.walk(lane)) == filed


def test_runs_and_loose_entries_are_one_order_and_an_entry_that_was_filed_twice_is_found_once(lanes: Lanes) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    lane, other = lanes.lane(due("Mail")), lanes.lane(due("Fax"))
    filed: list[Entry] = []
    for part in range(5):
        for _ in range(13):
            filed.append(file(lanes, lane, chance.randrange(200)))
            file(lanes, other, chance.randrange(200))
        for when, _, slot in chance.sample(filed, 5):  # As after a kill.
            lanes.stand(slot, lane, when)
        if part < 4:
            sealing.seal(lanes, 0, 0)
    filed.sort()

    assert lanes.after(lane, START, 1_000) == filed
    for place in (0, 1, 30, 64):
        assert lanes.after(lane, filed[place], 7) == filed[place + 1 : place + 8]
        assert lanes.first(lane, filed[place][0], 1_000) == [entry for entry in filed if entry[0] <= filed[place][0]]
    assert lanes.first(lane, FAR, 20) == filed[:20]
    assert list(lanes.walk(lane)) == filed


def test_entries_that_no_longer_count_are_dropped_from_the_front_and_the_least_due_rises(lanes: Lanes) -> None:
    lane = lanes.lane(due("Mail"))
    filed = [file(lanes, lane, when) for when in (10, 20, 30)]
    assert lane.low == 10
    assert lanes.first(lane, 9, 5) == []
    assert lanes.first(lane, 10, 5) == filed[:1]
    assert lane.front == filed
    for _, _, slot in filed[:2]:
        lanes.slots.free(slot)

    assert lanes.first(lane, 25, 5) == []

    assert (lane.front, lane.low) == (filed[2:], 30)
    assert lanes.first(lane, 30, 5) == filed[2:]
    lanes.slots.free(filed[2][2])
    lanes.prune(lane)
    assert (lane.front, lane.low) == ([], FAR)
    again = file(lanes, lane, 5)
    assert lanes.first(lane, 5, 1) == [again]


def test_a_slot_that_was_changed_behind_its_check_is_found_when_a_run_leads_to_it(lanes: Lanes, tmp_path: Path) -> None:
    lane = lanes.lane(due("Mail"))
    entries = [file(lanes, lane, when) for when in range(3)]
    sealing.seal(lanes, 0, 0)
    lanes.slots.at[entries[1][2] + WHEN] += 1

    again = killed(lanes, tmp_path)

    with pytest.raises(Damaged, match=f"slot {entries[1][2]} "):
        again.after(again.by_key[due("Mail")], START, 9)
    with pytest.raises(Damaged):
        list(again.walk(again.by_key[due("Mail")]))
    again.close()
    again.slots.close()


def test_entries_of_slots_that_were_given_back_are_passed_over(lanes: Lanes, tmp_path: Path) -> None:
    lane = lanes.lane(due("Mail"))
    entries = [file(lanes, lane, when) for when in range(3)]
    sealing.seal(lanes, 0, 0)
    lanes.slots.free(entries[2][2])
    lanes.slots.end = entries[2][2]
    sealing.write_header(lanes)
    lanes.slots.at[entries[2][2] : entries[2][2] + 8] = memoryview(bytes(64)).cast("q")
    lanes.slots.sum_at[0] ^= hash((entries[2][2], 0, 0, -1, 0, 0, 0, 0))
    lanes.slots.at[42] = lanes.slots.sum_at[0]

    again = killed(lanes, tmp_path)

    assert again.slots.end == entries[2][2]
    assert list(again.walk(again.by_key[due("Mail")])) == entries[:2]
    again.close()
    again.slots.close()


def test_additional_lanes_have_the_jobs_that_still_wait_or_have_ended_then(lanes: Lanes) -> None:
    waits, runs = lanes.lane(due("Mail")), lanes.lane((keys.RUNNING,))
    expires, newest = lanes.lane((keys.EXPIRES, False)), lanes.lane((keys.NEWEST, "done"))
    slots = [file(lanes, waits, when)[2] for when in range(4)]
    for slot in slots:
        lanes.stand(slot, expires, 100)
    lanes.slots.put(slots[1], LANE, runs.number)
    lanes.slots.put(slots[2], LANE, -1)  # Placed and not entered.
    assert [slot for _, _, slot in lanes.walk(expires)] == [slots[0], slots[3]]

    for slot, ended_at in zip(slots, (7, 8, 9, 9), strict=True):
        lanes.slots.write(slot, 1, 0, runs.number, 0, 0, 0, ended_at)
        lanes.stand(slot, newest, -ended_at)
    lanes.slots.put(slots[1], LANE, lanes.by_key[keys.FORGOTTEN,].number)
    lanes.slots.write(slots[2], 1, 0, runs.number, 0, 0, 0, 0)  # It waits again.

    assert [slot for _, _, slot in lanes.walk(newest)] == [slots[3], slots[0]]


def test_the_numbers_of_freed_lanes_are_given_again_and_are_read_as_they_were_given_last(lanes: Lanes, tmp_path: Path) -> None:
    numbers = {name: lanes.lane(due(name)).number for name in ("A", "B", "C")}
    assert lanes.lane(due("A")).number == numbers["A"]  # The same one.
    for name in ("A", "B"):
        lanes.set(numbers[name], None)
        lanes.freed_numbers.append(numbers[name])
    assert due("A") not in lanes.by_key

    assert lanes.lane(due("A")).number == numbers["B"]

    assert lanes.freed_numbers == [numbers["A"]]
    for _ in range(2):
        lanes = killed(lanes, tmp_path)
        assert lanes.by_key[due("A")].number == numbers["B"]
        assert lanes.by_key[due("C")].number == numbers["C"]
        assert due("B") not in lanes.by_key
        assert lanes.freed_numbers == [numbers["A"]]
        assert lanes.by_number[numbers["A"]] is None
        assert lanes.by_key[due("A")].low == -FAR  # Its entries are not known.
    assert lanes.lane(due("D")).number == numbers["A"]
    assert lanes.lane(due("E")).number == numbers["C"] + 1
    lanes.close()
    lanes.slots.close()


@pytest.mark.parametrize("number", [-1, 1, 99])
def test_a_slot_that_is_filed_in_no_lane_is_damage(lanes: Lanes, number: int) -> None:
    lane = lanes.lane(due("Mail"))
    _, _, slot = file(lanes, lane, 1)
    assert lanes.filed(slot) is lane
    lanes.set(lane.number, None)
    lanes.slots.put(slot, LANE, number)

    with pytest.raises(Damaged, match=f"lane {number}"):
        lanes.filed(slot)


def test_a_lane_that_there_is_no_room_for_is_not_made(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> None:
    lane = lanes.lane(due("Mail"))
    lanes.set(lane.number, None)
    lanes.freed_numbers.append(lane.number)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            lanes.lane(due("Fax"))

    assert list(lanes.by_key) == [(keys.FORGOTTEN,)]
    assert lanes.freed_numbers == [lane.number]
    assert lanes.lane(due("Fax")).number == lane.number
