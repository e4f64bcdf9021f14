"""Upkeep of the lanes: loose entries are sealed into runs, thin runs are merged, and lanes without jobs are freed.

Each of these happens now and then, for many jobs at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from operator import itemgetter
from typing import Final

from givalia_core.store.sqlite.index.lane import START, Lane
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.runs import Entry, SortedRun
from givalia_core.store.sqlite.index.slots import FAR
from givalia_core.store.sqlite.places import Damaged

SEAL_ENTRIES: Final = 8_192  # So many loose entries are sealed at once.
_SEAL_AGAIN: Final = 1_024  # Loose entries that come in before a seal that failed is tried again.
_SAMPLE: Final = 16  # One of so many entries is sampled to see how much of a run is past.


def mark(lanes: Lanes, numbers: Iterable[int]) -> None:
    """Note that this round of the scrub has seen jobs in these lanes.

    Raises:
        Damaged: There is no such lane.
    """
    for number in numbers:
        if number >= 0:
            lane = lanes.by_number[number] if number < len(lanes.by_number) else None
            if lane is None:
                raise Damaged(f"jobs are filed in lane {number}, which does not exist")
            lane.used_in = lanes.round


def end_round(lanes: Lanes) -> None:
    """End a round of the scrub: note the lanes that no job was seen in."""
    lanes.unused = [lane for lane in lanes.by_key.values() if lane.is_due and lane.used_in < lanes.round]
    lanes.round += 1


def free_unused(lanes: Lanes, limit: int) -> list[Lane]:
    """Free some of the lanes that no job was seen in, if none was filed there since, and return them."""
    some, lanes.unused = lanes.unused[:limit], lanes.unused[limit:]
    freed = [lane for lane in some if lane.used_in < lanes.round - 1 and not lane.loose]
    for lane in freed:
        lanes.set(lane.number, None)
        lanes.freed_numbers.append(lane.number)
    return freed


def forget_freed(lanes: Lanes) -> None:
    """Remove what freed lanes left behind in memory and in the file of the names.

    Raises:
        OSError: There is no room; the names stay in the file.
    """
    by_number = lanes.by_number
    while by_number and by_number[-1] is None:
        del by_number[-1]
    # Thousands of numbers scattered over the memory would keep all of it from being given back.
    lanes.freed_numbers = [number for number in reversed(range(len(by_number))) if by_number[number] is None]
    lanes.by_key = dict(lanes.by_key)
    lanes.keys.rewrite((lane.number, lane.key) for lane in lanes.by_number if lane is not None)


def seal_if_many(lanes: Lanes, names: NameTable, last_at: int, last_seq: int) -> None:
    """Seal, if there is enough for a run. On a full disk the entries stay in memory until there is room."""
    if lanes.loose >= lanes.seal_entries and names.is_whole:
        try:
            seal(lanes, last_at, last_seq)
        except OSError:
            lanes.make_room()
            lanes.seal_entries = lanes.loose + _SEAL_AGAIN


def seal(lanes: Lanes, last_at: int, last_seq: int) -> None:
    """Bring the order of all jobs to the files, so that a restart need only read records behind this change and this seq.

    The loose entries are sorted into runs, with those of an old run that is mostly past, whose place then becomes free.

    Raises:
        OSError: There is no room; the entries stay loose.
    """
    old = _most_past(lanes) if len(lanes.runs) > 3 else None
    entries = {number: list(lanes.counting(lane, lane.loose)) for number, lane in lanes.with_loose.items()}
    if old is not None:
        for lane, some in _of_run(lanes, old):
            entries.setdefault(lane.number, []).extend(lanes.counting(lane, some))
    columns = [array("q") for _ in range(4)]
    for number, counting in sorted(entries.items()):
        counting.sort()  # They come nearly in order, which a set would lose.
        once = array("q", chain.from_iterable(entry for entry, _ in groupby(counting)))
        columns[0].extend(array("q", [number]) * (len(once) // 3))
        for place, column in enumerate(columns[1:]):
            column.extend(once[place::3])
    lanes.runs.seal(columns, () if old is None else (old,), last_at, last_seq)
    for lane in lanes.with_loose.values():
        lane.loose = []
        lane.used_in = lanes.round
    lanes.with_loose.clear()
    lanes.loose = 0
    lanes.seal_entries = SEAL_ENTRIES
    write_header(lanes, floor=FAR)


def write_header(lanes: Lanes, **changes: int) -> None:
    """Write the header of the index for the present files, with these changes."""
    slots, keys = lanes.slots, lanes.keys
    slots.write_header(
        slots.header._replace(end=slots.end, keys_end=keys.end, keys_crc=keys.crc, generation=lanes.runs.generation, **changes)
    )


def _most_past(lanes: Lanes) -> SortedRun | None:
    """Sample the run that was sampled longest ago; return it if most of it is past."""
    run = lanes.runs.oldest()
    sampled = sum(len(entries) for _, entries in lanes.runs.entries(run, _SAMPLE))
    counting = sum(1 for lane, entries in _of_run(lanes, run, _SAMPLE) for _ in lanes.counting(lane, entries))
    return run if 2 * counting < sampled else None


def thin_out(lanes: Lanes, run: SortedRun) -> int:
    """Drop a run in which nothing counts, merge two runs that are mostly past, or move a run to the front of the file.

    Returns:
        How many runs are gone. Their entries that count are in a new run, the last of all.

    Raises:
        Damaged: A run is not what was written.
        OSError: There is no room; all is as before.
    """
    sampled = lanes.runs.rows(run, _SAMPLE)
    is_thin, is_far_back = 2 * len(_counting_rows(lanes, sampled)) < len(sampled), lanes.runs.is_far_back(run)
    if not (is_thin or is_far_back):
        return 0
    other = lanes.thin if is_thin and lanes.thin != run and lanes.thin in lanes.runs else None
    old = (run,) if other is None else (other, run)
    rows = sorted({row for each in old for row in _counting_rows(lanes, lanes.runs.rows(each))})
    if (rows and other is None and not is_far_back) or not lanes.runs.fit(len(rows)):
        lanes.thin = run
        return 0
    lanes.thin = None
    columns = [array("q", column) for column in zip(*rows, strict=True)] or [array("q")] * 4
    lanes.runs.seal(columns, old, lanes.runs.sealed_at, lanes.runs.sealed_seq)
    return len(old)


def _counting_rows(lanes: Lanes, rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Return the entries of a run that count, with their lanes in front."""
    end = lanes.slots.end
    rows = [row for row in rows if row[3] < end]
    lanes.slots.ensure(row[3] for row in rows)
    counting: list[tuple[int, int, int, int]] = []
    for number, some in groupby(rows, itemgetter(0)):
        lane = lanes.by_number[number] if 0 <= number < len(lanes.by_number) else None
        if lane is not None:
            counting += [(number, *entry) for entry in lanes.counting(lane, (row[1:] for row in some))]
    return counting


def _of_run(lanes: Lanes, run: SortedRun, step: int = 1) -> Iterator[tuple[Lane, list[Entry]]]:
    """Yield the lanes of a run with their entries, or with every `step`-th entry; some may no longer count."""
    for number, entries in lanes.runs.entries(run, step):
        lane = lanes.by_number[number] if number < len(lanes.by_number) else None
        if lane is not None:
            some = [entry for entry in entries if entry[2] < lanes.slots.end]
            lanes.slots.ensure(slot for _, _, slot in some)
            yield lane, some


def forget_behind(lanes: Lanes, end: int) -> None:
    """Drop from memory the entries of slots behind this one, which were given back."""
    for lane in lanes.by_key.values():
        lane.front, lane.bound = [], START
        lane.loose = [entry for entry in lane.loose if entry[2] < end]
