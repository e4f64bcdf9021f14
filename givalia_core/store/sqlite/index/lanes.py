"""Jobs in order of time, by lanes: the waiting ones of a route and priority by due, the ended ones by when to forget them.

An entry is (when, seq, slot). Entries are only ever added: one counts as long as the slot still says that this job is filed in
this lane under this time. New ones are *loose*, in memory; when there are enough of them over all lanes they are sorted and
*sealed* into a run (`runs`). After a kill the loose ones are found again from the jobs that changed since the last seal. Of a
lane that is looked at, its *front* is in memory: every entry up to its bound. A lane that holds no job is freed in the end.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Final

from givalia_core.store.sqlite.index.keys import EXPIRES, FORGOTTEN, NEWEST, Keys, LaneKey
from givalia_core.store.sqlite.index.runs import Entry, Run, Runs
from givalia_core.store.sqlite.index.slots import ENDED_AT, FAR, LANE, SEQ, WHEN, Slots
from givalia_core.store.sqlite.index.words import Damaged

SEAL_ENTRIES: Final = 8_192  # Loose entries that are sealed.
_FRONT: Final = 4_000  # Entries of a lane that are read at once; a front that has grown to three times as many is cut back.
_FRONT_MOST: Final = 3 * _FRONT
_LEAST_OF_A_RUN: Final = 16
_SAMPLE: Final = 16  # Of so many entries one is looked at to see how much of a run is past.

START: Final[Entry] = (-FAR, 0, 0)


class Lane:
    """One order of jobs. `bound` is the last entry that `front` would hold if it existed; None: it holds all there are.

    No entry that counts is before `low`. In a loosely filed lane stand jobs that are filed in another one.
    """

    __slots__ = (
        "bound", "front", "is_due", "is_fixed", "is_loosely_filed", "is_sorted", "key", "loose", "low", "number", "used_in",
    )  # fmt: skip

    def __init__(self, number: int, key: LaneKey, low: int, used_in: int) -> None:
        """A lane of whose entries nothing is known yet."""
        self.number = number
        self.key = key
        self.low = low
        self.is_due = key[0] == "due"
        self.is_fixed = not self.is_due
        self.is_loosely_filed = key[0] in (EXPIRES, NEWEST)
        self.front: list[Entry] = []
        self.bound: Entry | None = START
        self.loose: list[Entry] = []
        self.is_sorted = False  # Whether the loose entries are in order: who reads much of a lane sorts them once.
        self.used_in = used_in  # The last round of the scrub in which a job was found or filed in it.


class Lanes:
    """All lanes of an index, by key and by number."""

    def __init__(self, folder: Path, slots: Slots, make_room: Callable[[], None]) -> None:
        """Open what earlier runs have sealed; `slots` say which entries still count.

        Raises:
            Damaged: A file is not what was written.
            OSError: A file cannot be opened, or there is no room.
        """
        self.by_key: dict[LaneKey, Lane] = {}
        self.by_number: list[Lane | None] = []
        self.loose = 0  # Entries that are not sealed.
        self.round = 1
        self.unused: list[Lane] = []  # Lanes to be freed.
        self._thin: Run | None = None  # A run that is mostly past, to be laid together with the next one.
        self._slots = slots
        self._with_loose: dict[int, Lane] = {}
        self._numbers: list[int] = []  # Of lanes that were freed.
        self.keys = Keys(folder / "lanes.keys", slots.header.keys_end, slots.header.keys_crc, make_room)
        try:
            self.runs = Runs(folder, slots.header.generation, make_room)
        except BaseException:
            self.keys.close()
            raise
        try:
            for number, key in self.keys.read():
                self._set(number, None if key is None else Lane(number, key, -FAR, self.round))
        except BaseException:
            self.close()
            raise
        for number, lane in enumerate(self.by_number):
            if lane is None or self.by_key.get(lane.key) is not lane:
                self.by_number[number] = None
                self._numbers.append(number)

    def _set(self, number: int, lane: Lane | None) -> None:
        if number >= len(self.by_number):
            self.by_number += [None] * (number + 1 - len(self.by_number))
        before = self.by_number[number]
        # The file may still name a lane that was freed, and the same one once more with the number that it got later.
        if before is not None and self.by_key.get(before.key) is before:
            del self.by_key[before.key]
        self.by_number[number] = lane
        if lane is not None:
            self.by_key[lane.key] = lane

    def lane(self, key: LaneKey) -> Lane:
        """Return the lane of a key, which is made if there is none.

        Raises:
            OSError: There is no room for it.
        """
        found = self.by_key.get(key)
        if found is None:
            number = self._numbers[-1] if self._numbers else len(self.by_number)
            self.keys.append(number, key)
            if self._numbers:
                self._numbers.pop()
            found = Lane(number, key, FAR, self.round)
            self._set(number, found)
        return found

    def filed(self, slot: int) -> Lane:
        """Return the lane that a slot is filed in.

        Raises:
            Damaged: There is no such lane.
        """
        number = self._slots.at[slot + LANE]
        lane = self.by_number[number] if 0 <= number < len(self.by_number) else None
        if lane is None:
            raise Damaged(f"slot {slot} is filed in lane {number}, which does not exist")
        return lane

    # Lanes that hold nothing.

    def mark(self, numbers: Iterable[int]) -> None:
        """Jobs are filed in these lanes, as this round of the scrub has seen.

        Raises:
            Damaged: There is no such lane.
        """
        for number in numbers:
            if number >= 0:
                lane = self.by_number[number] if number < len(self.by_number) else None
                if lane is None:
                    raise Damaged(f"jobs are filed in lane {number}, which does not exist")
                lane.used_in = self.round

    def end_round(self) -> None:
        """End a round of the scrub: note the lanes that no job was seen in."""
        self.unused = [lane for lane in self.by_key.values() if not lane.is_fixed and lane.used_in < self.round]
        self.round += 1

    def free_unused(self, limit: int) -> list[Lane]:
        """Free some of the lanes that no job was seen in, if none was filed there since, and return them."""
        some, self.unused = self.unused[:limit], self.unused[limit:]
        freed = [lane for lane in some if lane.used_in < self.round - 1 and not lane.loose]
        for lane in freed:
            self._set(lane.number, None)
            self._numbers.append(lane.number)
        return freed

    def forget_freed(self) -> None:
        """Leave nothing behind of lanes that were freed, in memory and in the file of their names.

        Raises:
            OSError: There is no room; the names stay in the file.
        """
        by_number = self.by_number
        while by_number and by_number[-1] is None:
            del by_number[-1]
        # Thousands of numbers that are strewn over the memory would keep all of it from being given back.
        self._numbers = [number for number in reversed(range(len(by_number))) if by_number[number] is None]
        self.by_key = dict(self.by_key)
        self.keys.rewrite((lane.number, lane.key) for lane in self.by_number if lane is not None)

    # Filing.

    def stand(self, slot: int, lane: Lane, when: int) -> None:
        """Let an entry of the lane name the job of a slot; it counts if the slot says the same."""
        entry = (when, self._slots.at[slot], slot)
        loose = lane.loose
        if not loose:
            self._with_loose[lane.number] = lane
            lane.used_in = self.round
        elif lane.is_sorted and entry < loose[-1]:
            lane.is_sorted = False
        loose.append(entry)
        self.loose += 1
        if when < lane.low:
            lane.low = when
        bound = lane.bound
        if bound is None or entry <= bound:
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
        self._prune(lane)
        front, place, last = lane.front, 0, START
        while True:
            for entry in self._counting(lane, front[place:]):
                if entry != last:
                    yield entry
                last = entry
            place = len(front)
            if lane.bound is None:
                return
            self._read_on(lane)

    def first(self, lane: Lane, until: int, limit: int) -> list[Entry]:
        """Return the first entries that count and are of a time no later than this, at most `limit`."""
        if lane.low > until:
            return []
        self._prune(lane)
        front = lane.front
        while True:
            found: list[Entry] = []
            last = START
            for entry in self._counting(lane, islice(front, bisect_right(front, (until, FAR, 0)))):
                if entry != last:
                    found.append(entry)
                    if len(found) == limit:
                        return found
                last = entry
            if lane.bound is None or lane.bound[0] > until:
                return found
            self._read_on(lane)

    def count_until(self, lane: Lane, until: int, most: int) -> int:
        """Count the entries that count and are of a time no later than this, up to `most`; nothing is put in order for that."""
        if lane.low > until:
            return 0
        self._prune(lane)
        found = {slot for _, _, slot in self._counting(lane, islice(lane.front, bisect_right(lane.front, (until, FAR, 0))))}
        if lane.bound is not None and lane.bound[0] <= until:
            found.update(slot for _, _, slot in self._counting(lane, [entry for entry in lane.loose if entry[0] <= until]))
            for whens, seqs, slots, low, high in self.runs.stretches(lane.number, max(lane.bound, (lane.low, -1, 0))):
                if len(found) >= most:
                    break
                due = slice(low, bisect_right(whens, until, low, high))
                entries = [entry for entry in zip(whens[due], seqs[due], slots[due], strict=True) if entry[2] < self._slots.end]
                self._slots.ensure(slot for _, _, slot in entries)
                found.update(slot for _, _, slot in self._counting(lane, entries))
        return min(len(found), most)

    def _read_on(self, lane: Lane) -> None:
        """Let the front hold more of the lane."""
        assert lane.bound is not None
        is_empty = not lane.front
        entries, lane.bound = self._behind(lane, max(lane.bound, (lane.low, -1, 0)), _FRONT)
        lane.front += entries
        if is_empty:
            self._raise_low(lane)

    def after(self, lane: Lane, start: Entry, limit: int) -> list[Entry]:
        """Return the next entries behind one, which need not exist."""
        found: list[Entry] = []
        bound: Entry | None = start
        while bound is not None and len(found) < limit:
            entries, bound = self._behind(lane, bound, limit)
            found += entries
        return found[:limit]

    def _prune(self, lane: Lane) -> None:
        """Drop what no longer counts from the beginning of a front."""
        front = lane.front
        first = next(self._counting(lane, front), None)
        if first is None:
            front.clear()
        elif first is not front[0]:
            del front[: bisect_left(front, first)]
        self._raise_low(lane)

    def _raise_low(self, lane: Lane) -> None:
        low = lane.front[0][0] if lane.front else lane.bound[0] if lane.bound else FAR
        if low > lane.low:
            lane.low = low

    def _counting(self, lane: Lane, entries: Iterable[Entry]) -> Iterator[Entry]:
        at, number = self._slots.at, lane.number
        if lane.key[0] == EXPIRES:
            return (entry for entry in entries if at[entry[2] + SEQ] == entry[1] and self._is_waiting(entry[2]))
        if lane.key[0] == NEWEST:
            forgotten = self.by_key[FORGOTTEN].number
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
        return self._slots.at[slot + LANE] >= 0 and self.filed(slot).is_due

    def _behind(self, lane: Lane, start: Entry, limit: int) -> tuple[list[Entry], Entry | None]:
        """Return some entries that count behind one, about `limit`, in order; and up to where these are all (None: the end).

        Of each run a few are read, and what lies behind the last one read of any run is left for the next time.
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
        end = self._slots.end  # Slots behind it were given back, with jobs that are forgotten.
        found = [entry for entry in found if entry[2] < end]
        self._slots.ensure(slot for _, _, slot in found)
        last = START
        counting: list[Entry] = []
        for entry in self._counting(lane, found):
            if entry != last:
                counting.append(entry)
            last = entry
        return counting, bound

    # Sealing.

    def seal(self, sealed_at: int, sealed_seq: int) -> None:
        """Sort the loose entries into runs, and with them those of an old run that is mostly past, whose place is free then.

        Raises:
            OSError: There is no room; the entries stay loose.
        """
        old = self._look_through() if len(self.runs) > 3 else None
        entries = {number: list(self._counting(lane, lane.loose)) for number, lane in self._with_loose.items()}
        if old is not None:
            for lane, some in self._of_run(old):
                entries.setdefault(lane.number, []).extend(self._counting(lane, some))
        columns = [array("q") for _ in range(4)]
        for number, counting in sorted(entries.items()):
            counting.sort()  # They come nearly in order, which a set would lose.
            once = array("q", chain.from_iterable(entry for entry, _ in groupby(counting)))
            columns[0].extend(array("q", [number]) * (len(once) // 3))
            for place, column in enumerate(columns[1:]):
                column.extend(once[place::3])
        self.runs.seal(columns, () if old is None else (old,), sealed_at, sealed_seq)
        for lane in self._with_loose.values():
            lane.loose = []
            lane.used_in = self.round
        self._with_loose.clear()
        self.loose = 0

    def _look_through(self) -> Run | None:
        """Look at the run that was not looked at for longest; return it if most of it is past."""
        run = self.runs.oldest()
        looked_at = sum(len(entries) for _, entries in self.runs.entries(run, _SAMPLE))
        counting = sum(1 for lane, entries in self._of_run(run, _SAMPLE) for _ in self._counting(lane, entries))
        return run if 2 * counting < looked_at else None

    def thin_out(self, run: Run) -> int:
        """Drop a run of which nothing counts, lay two together that are mostly past, or move one to the front of the file.

        Returns:
            How many runs are gone. What counts in them is in a new one, the last of all.

        Raises:
            Damaged: A run is not what was written.
            OSError: There is no room; all is as before.
        """
        sampled = self.runs.rows(run, _SAMPLE)
        is_thin, is_far_back = 2 * len(self._counting_rows(sampled)) < len(sampled), self.runs.is_far_back(run)
        if not (is_thin or is_far_back):
            return 0
        other = self._thin if is_thin and self._thin != run and self._thin in self.runs else None
        old = (run,) if other is None else (other, run)
        rows = sorted({row for each in old for row in self._counting_rows(self.runs.rows(each))})
        if (rows and other is None and not is_far_back) or not self.runs.fit(len(rows)):
            self._thin = run
            return 0
        self._thin = None
        columns = [array("q", column) for column in zip(*rows, strict=True)] or [array("q")] * 4
        self.runs.seal(columns, old, self.runs.sealed_at, self.runs.sealed_seq)
        return len(old)

    def _counting_rows(self, rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
        """Return the entries of a run that count, with their lanes in front."""
        end = self._slots.end
        rows = [row for row in rows if row[3] < end]
        self._slots.ensure(row[3] for row in rows)
        counting: list[tuple[int, int, int, int]] = []
        for number, some in groupby(rows, itemgetter(0)):
            lane = self.by_number[number] if 0 <= number < len(self.by_number) else None
            if lane is not None:
                counting += [(number, *entry) for entry in self._counting(lane, (row[1:] for row in some))]
        return counting

    def _of_run(self, run: Run, step: int = 1) -> Iterator[tuple[Lane, list[Entry]]]:
        """Yield the lanes of a run with their entries, or with one of this many; some may count no longer."""
        for number, entries in self.runs.entries(run, step):
            lane = self.by_number[number] if number < len(self.by_number) else None
            if lane is not None:
                some = [entry for entry in entries if entry[2] < self._slots.end]
                self._slots.ensure(slot for _, _, slot in some)
                yield lane, some

    def forget_behind(self, end: int) -> None:
        """Drop from memory the entries of slots behind this one, which were given back."""
        for lane in self.by_key.values():
            lane.front, lane.bound = [], START
            lane.loose = [entry for entry in lane.loose if entry[2] < end]

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
