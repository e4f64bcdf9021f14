"""The slots of jobs: each with its check, taken again once they are free, and found again after a kill."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index import slots, words
from givalia_core.store.sqlite.index.slots import AT, CHECK, FIRST, LANE, PAGE, SLOTS_TOTAL, WHEN, WIDTH, Slots, origin_of
from givalia_core.store.sqlite.index.upkeep import pages
from givalia_core.store.sqlite.places import Damaged, Place, base_at

PAGE_SLOTS = PAGE // WIDTH


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Slots]:
    there = Slots(tmp_path, Mock())
    yield there
    there.close()


def filled(there: Slots, count: int) -> list[int]:
    taken = [there.take() for _ in range(count)]
    for seq, slot in enumerate(taken, 1):
        there.write(slot, seq, 0, 2, 10 * seq, 0, 0, 0)
    return taken


def killed(there: Slots, folder: Path) -> Slots:
    there.close()
    return Slots(folder, Mock())


def test_slots_behind_the_end_in_the_header_are_found_after_a_kill(there: Slots, tmp_path: Path) -> None:
    filled(there, 3)
    there.conclude(7, 1, 2, 3)
    assert there.header == there.read_header()
    filled(there, 2)

    again = killed(there, tmp_path)

    assert again.header.end == FIRST + 3 * WIDTH
    assert again.end == FIRST + 5 * WIDTH
    assert (again.header.commits, again.header.keys_end, again.header.keys_crc, again.header.generation) == (7, 1, 2, 3)
    again.ensure(range(FIRST, again.end, WIDTH))
    again.close()


@pytest.mark.parametrize("word", range(16))
def test_a_word_of_the_header_that_was_changed_is_found(there: Slots, tmp_path: Path, word: int) -> None:
    there.write_header(there.header._replace(epoch=5))
    there.at[word] ^= 1 << 20

    with pytest.raises(Damaged, match="header"):
        killed(there, tmp_path)


@pytest.mark.parametrize("word", range(WIDTH))
def test_a_word_of_a_slot_that_was_changed_is_found_when_its_page_is_first_read(
    there: Slots, tmp_path: Path, word: int
) -> None:
    taken = filled(there, 3 * PAGE_SLOTS)
    there.conclude(1, 0, 0, 0)
    bad = taken[PAGE_SLOTS]  # On another page than the first slot.
    there.at[bad + word] ^= 1 << 20

    again = killed(there, tmp_path)

    again.ensure(taken[:1])
    with pytest.raises(Damaged, match=f"slot {bad} "):
        again.ensure((bad,))
    again.close()


def test_a_slot_that_stands_in_the_place_of_another_is_found(there: Slots, tmp_path: Path) -> None:
    first, second = filled(there, 2)
    at = there.at
    at[first:second], at[second : second + WIDTH] = (
        memoryview(at[second : second + WIDTH].tobytes()).cast("q"),
        memoryview(at[first:second].tobytes()).cast("q"),
    )

    again = killed(there, tmp_path)

    with pytest.raises(Damaged):
        again.ensure((first,))
    again.close()


def test_a_page_of_an_earlier_time_is_found_even_with_its_sum(there: Slots, tmp_path: Path) -> None:
    (slot,) = filled(there, 1)
    earlier, its_sum = there.at[slot : slot + WIDTH].tobytes(), there.sum_at[0]
    there.put(slot, WHEN, 99)
    there.at[slot : slot + WIDTH] = memoryview(earlier).cast("q")

    with pytest.raises(Damaged, match="sum"):
        there.verify(0)
    there.sum_at[0] = its_sum
    there.verify(0)
    with pytest.raises(Damaged, match="total"):
        there.verify_total()
    with pytest.raises(Damaged, match="total"):
        killed(there, tmp_path)


def test_one_word_is_changed_and_the_others_and_the_checks_stay_right(there: Slots) -> None:
    slot, other = filled(there, 2)
    before = there.at[slot : slot + CHECK].tolist()

    there.put(slot, WHEN, 77)

    before[WHEN] = 77
    assert there.at[slot : slot + CHECK].tolist() == before
    assert there.at[SLOTS_TOTAL] == there.at[slot + CHECK] ^ there.at[other + CHECK]
    there.verify(0)
    there.verify_total()


def test_the_version_and_the_places_of_the_records_are_those_that_were_written(there: Slots) -> None:
    slot, base = there.take(), base_at(1_000, 64)
    there.write(slot, 1_063, origin_of(1_063, 1 << 40, base), 0, 0, 0, 0, 0)
    there.put(slot, AT, 12_345)

    assert there.version(slot) == 1 << 40
    assert there.base(slot) == base
    assert there.place(slot) == Place(1_063, base, 12_345)


def test_a_free_slot_is_taken_again_before_a_new_one_and_is_pending_until_the_next(there: Slots) -> None:
    _, second, third = filled(there, 3)
    there.free(second)
    new = there.take()
    assert new == third + WIDTH  # The page was not gathered yet, so that it is not noted twice.
    pages.gather(there, 0)
    there.free(third)

    assert there.at[second] == 0
    assert there.at[second + LANE] == -1
    assert sorted(there.take() for _ in range(3)) == [second, third, new]
    assert there.take() == there.pending == new + WIDTH
    assert there.most == 5


def test_free_slots_beyond_those_kept_in_memory_are_gathered_again_later(there: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_FREE_MOST", 2)
    taken = filled(there, 4)
    pages.gather(there, 0)
    for slot in taken:
        there.free(slot)
    assert list(there.free_slots) == taken[:2]
    assert there.gathered == 1

    for gathered in (1, 0):  # Not before all those in memory are taken.
        there.write(there.take(), 9, 0, 2, 0, 0, 0, 0)
        assert there.gathered == gathered
    pages.gather(there, 0)
    assert sorted(there.free_slots) == taken[2:]


def test_room_that_was_secured_needs_no_room_later_and_a_full_disk_changes_nothing(
    there: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.secure(5_000)
    monkeypatch.setattr(words, "allocate", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    filled(there, 5_000)
    end = there.end

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        there.secure(1 << 20)

    assert there.end == end
    for page in range(there.pages):
        there.verify(page)


@pytest.mark.parametrize("number", [0, FIRST - WIDTH, FIRST + 1, FIRST + WIDTH])
def test_a_number_that_is_no_slot_is_damage(there: Slots, tmp_path: Path, number: int) -> None:
    filled(there, 1)
    again = killed(there, tmp_path)

    assert not again.is_slot(number)
    with pytest.raises(Damaged, match=f"no slot {number}"):
        again.ensure((number,))
    assert again.is_slot(FIRST)
    again.ensure((FIRST,))
    again.close()


@pytest.mark.parametrize("end", [FIRST - WIDTH, FIRST + 1, 1 << 30])
def test_a_header_with_an_end_that_cannot_be_is_damage(there: Slots, tmp_path: Path, end: int) -> None:
    there.write_header(there.header._replace(end=end))

    with pytest.raises(Damaged, match="fewer"):
        killed(there, tmp_path)
