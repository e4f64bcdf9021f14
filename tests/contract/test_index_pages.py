"""The upkeep of the pages of the slots: free ones are gathered, and those at the end given back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index.slots import FIRST, PAGE, WIDTH, Slots
from givalia_core.store.sqlite.index.upkeep import pages
from givalia_core.store.sqlite.places import Damaged

ON_FIRST_PAGE = (PAGE - FIRST) // WIDTH
ON_A_PAGE = PAGE // WIDTH


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[Slots]:
    slots = Slots(tmp_path, Mock())
    yield slots
    slots.close()


def filled(slots: Slots, count: int) -> list[int]:
    taken = [slots.take() for _ in range(count)]
    for seq, slot in enumerate(taken, 1):
        slots.write(slot, seq, 0, seq % 3, 10 * seq, 1_000 + seq, 0, 0)
    return taken


def verify(slots: Slots) -> None:
    for page in range(slots.pages):
        slots.verify(page)
    slots.verify_total()


def test_the_free_slots_of_each_page_are_gathered_once_page_by_page(slots: Slots) -> None:
    taken = filled(slots, ON_FIRST_PAGE + ON_A_PAGE + 3)
    free = [taken[0], taken[ON_FIRST_PAGE - 1], taken[ON_FIRST_PAGE], taken[-1]]
    for slot in free:
        slots.free(slot)

    for page in (1, 0, 0, 2, 5):  # Those out of turn are left for later.
        pages.gather(slots, page)
    assert list(slots.free_slots) == free[:2]
    for page in (1, 2, 3):
        pages.gather(slots, page)

    assert list(slots.free_slots) == free
    assert slots.gathered == slots.pages == 3


def test_a_page_has_the_lanes_and_the_newest_changes_of_its_own_jobs(slots: Slots) -> None:
    taken = filled(slots, ON_FIRST_PAGE + 2)
    first = ON_FIRST_PAGE + 1

    assert pages.newest_of(slots, 1) == [(first, 1_000 + first), (first + 1, 1_001 + first)]
    assert len(pages.newest_of(slots, 0)) == ON_FIRST_PAGE
    assert pages.lanes_of(slots, 0) == {0, 1, 2}
    assert pages.lanes_of(slots, 1) == {first % 3, (first + 1) % 3}
    slots.free(taken[-1])
    assert pages.lanes_of(slots, 1) == {first % 3, -1}


def test_much_free_room_at_the_end_is_given_back_and_the_rest_is_whole(
    slots: Slots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_CUT_LEAST", 64)
    taken = filled(slots, 2_000)
    for page in range(slots.pages):
        pages.gather(slots, page)
    size = (tmp_path / "slots").stat().st_size
    kept = taken[: ON_FIRST_PAGE + 2]
    for slot in [kept[0], *taken[len(kept) :]]:
        slots.free(slot)

    assert pages.cut(slots)

    assert slots.end == kept[-1] + WIDTH
    assert list(slots.free_slots) == [kept[0]]
    assert (tmp_path / "slots").stat().st_size < size / 4
    assert slots.gathered == 1
    assert len(slots.at) == len(slots.words)
    assert slots.last < len(slots.words)
    verify(slots)
    assert not pages.cut(slots)
    slots.conclude(1, 0, 0, 0)
    slots.close()
    again = Slots(tmp_path, Mock())
    assert again.end == kept[-1] + WIDTH
    verify(again)
    new = [again.take() for _ in range(300)]
    for slot in new:
        again.write(slot, 9, 0, 0, 0, 0, 0, 0)
    assert new[0] == kept[-1] + WIDTH
    verify(again)
    again.close()


@pytest.mark.parametrize(("least", "count", "freed"), [(64, 100, 24), (1_000, 200, 124)])
def test_a_little_free_room_at_the_end_stays(
    slots: Slots, monkeypatch: pytest.MonkeyPatch, least: int, count: int, freed: int
) -> None:
    monkeypatch.setattr(pages, "_CUT_LEAST", least)
    taken = filled(slots, count)
    end = slots.end
    for slot in taken[-freed:]:
        slots.free(slot)
    assert not pages.cut(slots)
    assert slots.end == end
    for slot in taken[-freed - 12 : -freed]:
        slots.free(slot)

    assert pages.cut(slots)
    verify(slots)


def test_all_room_is_given_back_when_no_job_is_left(slots: Slots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_CUT_LEAST", 64)
    for slot in filled(slots, 500):
        slots.free(slot)

    assert pages.cut(slots)

    assert (slots.end, slots.most) == (FIRST, 0)
    verify(slots)
    filled(slots, 3)
    verify(slots)


@pytest.mark.parametrize("how", ["changed", "earlier"])
def test_a_header_that_was_changed_since_it_was_written_is_found(slots: Slots, how: str) -> None:
    earlier = bytes(slots.words.raw[:128])
    slots.write_header(slots.header._replace(epoch=4))
    pages.verify_header(slots)
    if how == "changed":
        slots.at[2] += 1
    else:
        slots.words.raw[:128] = earlier

    with pytest.raises(Damaged, match="header"):
        pages.verify_header(slots)
