"""Jobs in order of time, by lanes: the waiting ones of a route and priority by due, the ended ones by when to forget them.

An entry is (when, seq, slot). Entries are only ever added: one counts as long as its slot still says that this job is filed in
this lane under this time. New entries are *loose*, in memory; when all lanes together have enough of them, they are sorted and
*sealed* into a run (`runs`). After a kill they are rebuilt from the jobs that changed since the last seal. The *front* of a
lane, every entry up to its bound, is in memory once it is read. A lane that holds no job is freed later.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from givalia_core.store.sqlite.index.keys import EXPIRES, FORGOTTEN, NEWEST, Keys, LaneKey
from givalia_core.store.sqlite.index.lane import START, Lane
from givalia_core.store.sqlite.index.runs import Entry, Runs, SortedRun
from givalia_core.store.sqlite.index.slots import ENDED_AT, FAR, LANE, SEQ, WHEN, Slots
from givalia_core.store.sqlite.places import Damaged

_FRONT: Final = 4_000  # Entries of a lane that are read at once; a front that has grown to three times as many is cut back.
_FRONT_MOST: Final = 3 * _FRONT
_LEAST_OF_A_RUN: Final = 16


class Lanes:
    """All lanes of an index, by key and by number."""

    def __init__(self, folder: Path, slots: Slots, make_room: Callable[[], None], seal_entries: int) -> None:
        """Open the sealed runs; `slots` say which entries still count, `seal_entries` how many loose ones are sealed.

        Raises:
            Damaged: A file is not what was written.
            OSError: A file cannot be opened, or there is no room.
        """
        self.by_key: dict[LaneKey, Lane] = {}
        self.by_number: list[Lane | None] = []
        self.loose = 0  # Entries that are not sealed.
        self.round = 1
        self.unused: list[Lane] = []  # Lanes to be freed.
        self.with_loose: dict[int, Lane] = {}
        self.freed_numbers: list[int] = []  # Of lanes that were freed.
        self.thin: SortedRun | None = None  # A run that is mostly past, and waits to be merged with the next one.
        self.slots = slots
        self.make_room = make_room
        self.seal_entries = seal_entries
        self.keys = Keys(folder / "lanes.keys", slots.header.keys_end, slots.header.keys_crc, make_room)
        try:
            self.runs = Runs(folder, slots.header.generation, make_room)
        except BaseException:
            self.keys.close()
            raise
        try:
            for number, key in self.keys.read():
                self.set(number, None if key is None else Lane(number, key, -FAR, self.round))
        except BaseException:
            self.close()
            raise
        for number, lane in enumerate(self.by_number):
            if lane is None or self.by_key.get(lane.key) is not lane:
                self.by_number[number] = None
                self.freed_numbers.append(number)

    def set(self, number: int, lane: Lane | None) -> None:
        """Give a number to this lane, or to none."""
        if number >= len(self.by_number):
            self.by_number += [None] * (number + 1 - len(self.by_number))
        before = self.by_number[number]
        # The file may still name a lane that was freed, and name it again with its later number.
        if before is not None and self.by_key.get(before.key) is before:
            del self.by_key[before.key]
        self.by_number[number] = lane
        if lane is not None:
            self.by_key[lane.key] = lane

    def lane(self, key: LaneKey) -> Lane:
        """Return the lane of a key; make it if there is none.

        Raises:
            OSError: There is no room for the lane.
        """
        found = self.by_key.get(key)
        if found is None:
            number = self.freed_numbers[-1] if self.freed_numbers else len(self.by_number)
            self.keys.append(number, key)
            if self.freed_numbers:
                self.freed_numbers.pop()
            found = Lane(number, key, FAR, self.round)
            self.set(number, found)
        return found

    def filed(self, slot: int) -> Lane:
        """Return the lane that a slot is filed in.

        Raises:
            Damaged: There is no such lane.
        """
        number = self.slots.at[slot + LANE]
        lane = self.by_number[number] if 0 <= number < len(self.by_number) else None
        if lane is None:
            raise Damaged(f"slot {slot} is filed in lane {number}, which does not exist")
        return lane

    # Filing.

    def stand(self, slot: int, lane: Lane, when: int) -> None:
        """Add an entry for the job of a slot to the lane; the entry counts if the slot says the same."""
        entry, loose = (when, self.slots.at[slot], slot), lane.loose
        if not loose:
            self.with_loose[lane.number] = lane
            lane.used_in = self.round
        elif lane.is_sorted and entry < loose[-1]:
            lane.is_sorted = False
        loose.append(entry)
        self.loose += 1
        if when < lane.low:
            lane.low = when
        if lane.bound is None or entry <= lane.bound:
            self._put_in_front(lane, entry)

    def _put_in_front(self, lane: Lane, entry: Entry) -> None:
        front = lane.front
        if not front or entry > front[-1]:
            front.append(entry)
        else:
            insort(front, entry)
        if len(front) > _FRONT_MOST:
            del front[_FRONT:]
            lane.bound = front[-1]

    # Reading.

    def walk(self, lane: Lane) -> Iterator[Entry]:
        """Yield every entry that counts, in order. Nothing may be filed meanwhile."""
        self.prune(lane)
        front, place, last = lane.front, 0, START
        while True:
            for entry in self.counting(lane, front[place:]):
                if entry != last:
                    yield entry
                last = entry
            place = len(front)
            if lane.bound is None:
                return
            self._read_on(lane)

    def first(self, lane: Lane, until: int, limit: int) -> list[Entry]:
        """Return the first entries of a lane of dues that count and are no later than `until`, at most `limit`."""
        at, number, front = self.slots.at, lane.number, lane.front
        while lane.low <= until:
            found: list[Entry] = []
            last, passed = START, 0
            for entry in front:
                when, seq, slot = entry
                if when > until or len(found) == limit:
                    break
                # As in `counting`; inlined, since each job that is lent is found here.
                if at[slot + LANE] == number and at[slot + WHEN] == when and at[slot] == seq and entry != last:
                    found.append(entry)
                    last = entry
                elif not found:
                    passed += 1
            self._drop_passed(lane, passed)
            if len(found) == limit or lane.bound is None or lane.bound[0] > until:
                return found
            self._read_on(lane)
        return []

    def _drop_passed(self, lane: Lane, passed: int) -> None:
        """Drop so many entries, which no longer count, from the beginning of a front."""
        front = lane.front
        del front[:passed]
        low = front[0][0] if front else lane.bound[0] if lane.bound else FAR
        if low > lane.low:
            lane.low = low

    def _read_on(self, lane: Lane) -> None:
        """Extend the front of the lane."""
        assert lane.bound is not None
        is_empty = not lane.front
        entries, lane.bound = self._behind(lane, max(lane.bound, (lane.low, -1, 0)), _FRONT)
        lane.front += entries
        if is_empty:
            self._drop_passed(lane, 0)

    def after(self, lane: Lane, start: Entry, limit: int) -> list[Entry]:
        """Return the next entries behind one, which need not exist."""
        found: list[Entry] = []
        bound: Entry | None = start
        while bound is not None and len(found) < limit:
            entries, bound = self._behind(lane, bound, limit)
            found += entries
        return found[:limit]

    def prune(self, lane: Lane) -> None:
        """Drop the entries that no longer count from the beginning of a front."""
        first = next(self.counting(lane, lane.front), None)
        self._drop_passed(lane, len(lane.front) if first is None else bisect_left(lane.front, first))

    def counting(self, lane: Lane, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Yield those of these entries that count."""
        at, number = self.slots.at, lane.number
        if lane.kind == EXPIRES:
            return (entry for entry in entries if at[entry[2] + SEQ] == entry[1] and self._is_waiting(entry[2]))
        if lane.kind == NEWEST:
            forgotten = self.by_key[FORGOTTEN,].number
            return (
                entry
                for entry in entries
                if at[entry[2] + ENDED_AT] == -entry[0]
                and at[entry[2] + SEQ] == entry[1]
                and 0 <= at[entry[2] + LANE] != forgotten
            )
        return (
            entry
            for entry in entries
            if at[entry[2] + LANE] == number and at[entry[2] + WHEN] == entry[0] and at[entry[2] + SEQ] == entry[1]
        )

    def _is_waiting(self, slot: int) -> bool:
        return self.slots.at[slot + LANE] >= 0 and self.filed(slot).is_due

    def _behind(self, lane: Lane, start: Entry, limit: int) -> tuple[list[Entry], Entry | None]:
        """Return about `limit` entries that count behind one, in order, and up to where these are all (None: the end).

        Only a few entries of each run are read. Those behind the first unread entry of any run are left for the next call.
        """
        each = max(2 * limit // (len(self.runs) + 1), _LEAST_OF_A_RUN)
        loose = lane.loose
        if not lane.is_sorted:
            loose.sort()
            lane.is_sorted = True
        first = bisect_right(loose, start)
        found = loose[first : first + each]
        bound: Entry | None = found[-1] if first + each < len(loose) else None
        for whens, seqs, slots, low, high in self.runs.stretches(lane.number, start):
            end = min(low + each, high)
            found += zip(whens[low:end], seqs[low:end], slots[low:end], strict=True)
            if end < high and (bound is None or found[-1] < bound):
                bound = found[-1]
        found.sort()
        if bound is not None:
            if bound <= start:
                raise Damaged(f"the entries of lane {lane.number} are not in order")
            del found[bisect_right(found, bound) :]
        end = self.slots.end  # Slots behind it were given back, with jobs that are forgotten.
        found = [entry for entry in found if entry[2] < end]
        self.slots.ensure(slot for _, _, slot in found)
        last = START
        counting: list[Entry] = []
        for entry in self.counting(lane, found):
            if entry != last:
                counting.append(entry)
            last = entry
        return counting, bound

    def trim(self) -> None:
        """Give back the memory that the runs are mapped into."""
        self.runs.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self.runs.sync()
        self.keys.sync()

    def close(self) -> None:
        """Close the files; safe to call twice."""
        self.runs.close()
        self.keys.close()
