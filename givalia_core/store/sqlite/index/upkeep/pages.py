"""Upkeep of the pages of the slots: the scrub gathers free slots, and gives back those at the end of the file."""

from __future__ import annotations

from array import array
from functools import reduce
from operator import xor
from typing import Final

from givalia_core.store.sqlite.index.slots import AT, CHECK, FIRST, LANE, PAGE_BITS, SLOTS_TOTAL, WIDTH, Slots
from givalia_core.store.sqlite.places import Damaged

_CUT_LEAST: Final = 16_384  # Words.


def verify_header(slots: Slots) -> None:
    """Compare the header with the one that was written.

    Raises:
        Damaged: The header differs.
    """
    if slots.read_header() != slots.header:
        raise Damaged("the header of the index is not what was written")


def gather(slots: Slots, page: int) -> None:
    """Note the free slots of a page; those of a page out of turn are known already, or noted later."""
    if page == slots.gathered < slots.pages:
        slots.gathered += 1
        start, end = _bounds(slots, page)
        seqs = slots.at[start:end:WIDTH].tolist()
        slots.note_free([start + place * WIDTH for place, seq in enumerate(seqs) if not seq])


def lanes_of(slots: Slots, page: int) -> set[int]:
    """Return the numbers of the lanes that the jobs of a page are filed in."""
    start, end = _bounds(slots, page)
    return set(slots.at[start + LANE : end : WIDTH].tolist())


def newest_of(slots: Slots, page: int) -> list[tuple[int, int]]:
    """Return the seqs of a page's jobs with the places of their newest changes."""
    start, end = _bounds(slots, page)
    return list(zip(slots.at[start:end:WIDTH].tolist(), slots.at[start + AT : end : WIDTH].tolist(), strict=True))


def _bounds(slots: Slots, page: int) -> tuple[int, int]:
    return max(page << PAGE_BITS, FIRST), min((page + 1) << PAGE_BITS, slots.end)


def cut(slots: Slots) -> bool:
    """Give back the room of free slots at the end, if there is much of it; return whether that was done."""
    end = slots.end
    while end > FIRST and not slots.at[end - WIDTH]:
        end -= WIDTH
    if (slots.end - end) * 4 < slots.end or slots.end - end < _CUT_LEAST:
        return False
    slots.end = end
    slots.free_slots = array("q", [slot for slot in slots.free_slots if slot < end])
    page = end >> PAGE_BITS
    slots.words.shrink((page + 1) << PAGE_BITS)
    slots.sums.shrink(page + 1)
    slots.take_over()
    total = 0
    for slot in range(max(page << PAGE_BITS, FIRST), end, WIDTH):
        total ^= slots.at[slot + CHECK]
    for place in range(end, (page + 1) << PAGE_BITS):
        slots.at[place] = 0
    slots.at[SLOTS_TOTAL] = reduce(xor, slots.sum_at[:page].tolist(), total)
    slots.sum_at[page] = total
    slots.gathered = min(slots.gathered, page)
    slots.unverified = {number for number in slots.unverified if number <= page}
    return True
