"""Upkeep of the shards of the names: the scrub moves a mostly empty shard to a smaller table, and gives back room."""

from __future__ import annotations

from givalia_core.store.sqlite.index.names import FIRST_LOG, SLOT, NameTable


def tidy(names: NameTable, shard: int) -> None:
    """Move a mostly empty shard to a smaller table, or one in the second half of the file further to the front.

    Names that the disk had no room for are tried again.
    """
    for hashed in [hashed for hashed in names.overflow if hashed >> 54 == shard]:
        for slot in names.overflow.pop(hashed):
            names.add(hashed, slot)
    place = names.places[shard] or names.verify(shard)
    log = place & 63
    while log > FIRST_LOG and names.held[shard] * 8 < 1 << log:
        log -= 1
    gap = names.gap(log)
    is_far_back = (place >> 6) * 2 > names.end
    if log < place & 63 or (is_far_back and gap is not None and gap[0] < place >> 6):
        names.move(shard, log)


def cut(names: NameTable) -> None:
    """Give back the room behind the last shard, if there is much of it."""
    names.gaps.clear()
    names.end = names.find_gaps()
    if names.end * 2 < len(names.words):
        names.words.shrink(names.end + names.end // 8)


def entries(names: NameTable, shard: int) -> list[int]:
    """Return the slots that the entries of a shard name."""
    place = names.places[shard] or names.verify(shard)
    start, size = place >> 6, 1 << (place & 63)
    return [entry & SLOT for entry in names.words.at[start : start + size].tolist() if entry]
