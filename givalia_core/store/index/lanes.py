"""Jobs in order of time, by lanes: the waiting ones of a route and priority by due, the ended ones by when to forget them.

An entry is (when, seq, slot). Entries are only ever added: one counts as long as the slot still says that this job is filed in
this lane under this time. New ones are *loose*, in memory; when there are enough of them over all lanes they are sorted and
*sealed* into a run, a stretch of a mapped file that never changes. After a kill the loose ones are found again from the jobs
that changed since the last seal. Of a lane that is looked at, its *front* is in memory: every entry up to its bound.
"""

from __future__ import annotations

import errno
import os
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import msgpack

from givalia_core.store.index.slots import LANE, SEQ, WHEN, Slots
from givalia_core.store.index.words import Words

SEAL_ENTRIES: Final = 8_192  # Loose entries that are sealed.
RUN_ENTRIES: Final = 10_240  # What a run has room for: as many, and those of the commit that made them so many.
_COLUMNS: Final = 8  # Where the columns of a run begin: lane, when, seq, slot. Its first word is the number of entries.
_RUN_WORDS: Final = _COLUMNS + 4 * RUN_ENTRIES
_FRONT: Final = 4_000  # Entries of a lane that are read at once; a front that has grown to three times as many is cut back.
_FRONT_MOST: Final = 3 * _FRONT
_LEAST_OF_A_RUN: Final = 16
_SAMPLE: Final = 16  # Of so many entries one is looked at to see how much of a run is past.
_LOW, _COUNT, _LANE_WORDS = range(3)

LaneKey = tuple[Any, ...]
Entry = tuple[int, int, int]
_Column: TypeAlias = "memoryview[int]"
FAR: Final = 1 << 62
START: Final[Entry] = (-FAR, 0, 0)


class Lane:
    """One order of jobs. `bound` is the last entry that `front` would hold if it existed; None: it holds all there are.

    No entry that counts is before `low`. In a loosely filed lane stand jobs that are filed in another one, where they wait.
    """

    __slots__ = ("bound", "front", "is_due", "is_loosely_filed", "key", "loose", "low", "number")

    def __init__(self, number: int, key: LaneKey, low: int) -> None:
        """A lane of whose entries nothing is known yet."""
        self.number = number
        self.key = key
        self.low = low
        self.is_due = key[0] == "due"
        self.is_loosely_filed = key[0] == "expires"
        self.front: list[Entry] = []
        self.bound: Entry | None = START
        self.loose: list[Entry] = []


class Lanes:
    """All lanes of an index, by key and by number."""

    def __init__(self, folder: Path, slots: Slots, make_room: Callable[[], None]) -> None:
        """Open what earlier runs have sealed; `slots` say which entries still count."""
        self.by_key: dict[LaneKey, Lane] = {}
        self.by_number: list[Lane] = []
        self.loose = 0  # Entries that are not sealed.
        self._slots = slots
        self._with_loose: dict[int, Lane] = {}
        self._words = Words(folder / "lanes", 1_024, make_room)
        self._run_words = Words(folder / "runs", _RUN_WORDS, make_room)
        self._runs: deque[int] = deque()  # Where each begins; first the one whose entries were looked through longest ago.
        self._free: list[int] = []
        self._make_room = make_room
        self._keys_end = 0  # How long the file of keys is.
        path = folder / "lanes.keys"
        self._keys_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            for key, self._keys_end in _keys(path.read_bytes()):
                number = len(self.by_number)
                self._add(Lane(number, key, self._words.at[number * _LANE_WORDS + _LOW]))
            os.ftruncate(self._keys_fd, self._keys_end)  # A kill or a full disk may have left half a key.
        except BaseException:
            self.close()
            raise
        words = self._run_words.at
        for start in range(0, len(words) - _RUN_WORDS + 1, _RUN_WORDS):
            (self._runs if words[start] else self._free).append(start)

    def _add(self, lane: Lane) -> None:
        self.by_key[lane.key] = lane
        self.by_number.append(lane)

    def lane(self, key: LaneKey) -> Lane:
        """The lane of a key, which is made if there is none."""
        found = self.by_key.get(key)
        if found is None:
            number = len(self.by_number)
            self._words.grow((number + 1) * _LANE_WORDS)
            self._words.at[number * _LANE_WORDS + _LOW] = FAR
            self._words.at[number * _LANE_WORDS + _COUNT] = 0
            self._write_key(msgpack.packb(key))
            found = Lane(number, key, FAR)
            self._add(found)
        return found

    def _write_key(self, packed: bytes) -> None:
        for make_room in (self._make_room, None):
            try:
                if os.write(self._keys_fd, packed) == len(packed):
                    self._keys_end += len(packed)
                    return
            except OSError:
                if make_room is None:
                    raise
            os.ftruncate(self._keys_fd, self._keys_end)
            if make_room is not None:
                make_room()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def count(self, lane: Lane) -> int:
        """How many jobs are filed in a lane; after a kill it may be one too many."""
        return self._words.at[lane.number * _LANE_WORDS + _COUNT]

    # Filing.

    def move(self, slot: int, lane: Lane, when: int) -> None:
        """File a job, whose seq the slot has, in this lane instead of the one the slot names."""
        at, counts, number = self._slots.at, self._words.at, lane.number
        before = at[slot + LANE]
        counts[number * _LANE_WORDS + _COUNT] += 1
        at[slot + LANE] = number
        at[slot + WHEN] = when
        if before >= 0:
            counts[before * _LANE_WORDS + _COUNT] -= 1
        self.stand(slot, lane, when)

    def take_out(self, slot: int) -> None:
        """The job of the slot is filed nowhere any more."""
        at = self._slots.at
        before = at[slot + LANE]
        at[slot + LANE] = -1
        if before >= 0:
            self._words.at[before * _LANE_WORDS + _COUNT] -= 1

    def stand(self, slot: int, lane: Lane, when: int) -> None:
        """Let an entry of the lane name this job; it counts if the slot says the same."""
        entry = (when, self._slots.at[slot], slot)
        loose = lane.loose
        if not loose:
            self._with_loose[lane.number] = lane
        loose.append(entry)
        self.loose += 1
        if when < lane.low:
            lane.low = self._words.at[lane.number * _LANE_WORDS + _LOW] = when
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
        """Every entry that counts, in order. Nothing may be filed meanwhile."""
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
        """The first entries that count and are of a time no later than this, at most so many."""
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
        """How many entries count and are of a time no later than this, counted to `most`; nothing is put in order for that."""
        if lane.low > until:
            return 0
        self._prune(lane)
        found = {slot for _, _, slot in self._counting(lane, islice(lane.front, bisect_right(lane.front, (until, FAR, 0))))}
        if lane.bound is not None and lane.bound[0] <= until:
            found.update(slot for _, _, slot in self._counting(lane, [entry for entry in lane.loose if entry[0] <= until]))
            for whens, seqs, slots, low, high in self._stretches(lane, max(lane.bound, (lane.low, -1, 0))):
                if len(found) >= most:
                    break
                due = slice(low, bisect_right(whens, until, low, high))
                found.update(slot for _, _, slot in self._counting(lane, zip(whens[due], seqs[due], slots[due], strict=True)))
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
        """The next entries behind one, which need not exist."""
        found: list[Entry] = []
        bound: Entry | None = start
        while bound is not None and len(found) < limit:
            entries, bound = self._behind(lane, bound, limit)
            found += entries
        return found[:limit]

    def _prune(self, lane: Lane) -> None:
        """Drop what no longer counts from the beginning of a front."""
        front = lane.front
        if not front:
            return
        first = next(self._counting(lane, front), None)
        if first is None:
            front.clear()
        elif first is not front[0]:
            del front[: bisect_left(front, first)]
        if front:
            self._raise_low(lane)

    def _raise_low(self, lane: Lane) -> None:
        low = lane.front[0][0] if lane.front else lane.bound[0] if lane.bound else FAR
        if low > lane.low:
            lane.low = self._words.at[lane.number * _LANE_WORDS + _LOW] = low

    def _counting(self, lane: Lane, entries: Iterable[Entry]) -> Iterator[Entry]:
        at, number = self._slots.at, lane.number
        if lane.is_loosely_filed:
            filed = self.by_number
            return (entry for entry in entries if at[entry[2] + SEQ] == entry[1] and filed[at[entry[2] + LANE]].is_due)
        return (
            entry
            for entry in entries
            if at[entry[2] + LANE] == number and at[entry[2] + WHEN] == entry[0] and at[entry[2] + SEQ] == entry[1]
        )

    def _behind(self, lane: Lane, start: Entry, limit: int) -> tuple[list[Entry], Entry | None]:
        """Some entries that count behind one, about `limit`, in order; and the bound up to which these are all, None: the end.

        Of each run a few are read, and what lies behind the last one read of any run is left for the next time.
        """
        found = [entry for entry in lane.loose if entry > start]
        each = max(2 * limit // (len(self._runs) + 1), _LEAST_OF_A_RUN)
        bound: Entry | None = None
        for whens, seqs, slots, low, high in self._stretches(lane, start):
            end = min(low + each, high)
            found += zip(whens[low:end], seqs[low:end], slots[low:end], strict=True)
            if end < high and (bound is None or found[-1] < bound):
                bound = found[-1]
        found.sort()
        if bound is not None:
            del found[bisect_right(found, bound) :]
        last = START
        counting: list[Entry] = []
        for entry in self._counting(lane, found):
            if entry != last:
                counting.append(entry)
            last = entry
        return counting, bound

    def _stretches(self, lane: Lane, start: Entry) -> Iterator[tuple[_Column, _Column, _Column, int, int]]:
        """Of each run its whens, seqs and slots, and from where to where in them entries of the lane behind one stand."""
        words, number = self._run_words.at, lane.number
        for run in self._runs:
            size = words[run]
            lanes = words[run + _COLUMNS : run + _COLUMNS + size]
            if not lanes[0] <= number <= lanes[size - 1]:
                continue
            whens, seqs, slots = (words[first : first + size] for first in _columns(run))
            low = bisect_left(lanes, number)
            high = bisect_right(lanes, number, low)
            low = bisect_left(whens, start[0], low, high)
            low = bisect_right(seqs, start[1], low, bisect_right(whens, start[0], low, high))
            yield whens, seqs, slots, low, high

    # Sealing.

    def seal(self) -> None:
        """Sort the loose entries into runs, and with them those of an old run that is mostly past, whose place is free then."""
        old = self._look_through() if len(self._runs) > 3 else None
        entries = {number: set(self._counting(lane, lane.loose)) for number, lane in self._with_loose.items()}
        if old is not None:
            for lane, some in self._of_run(old):
                entries.setdefault(lane.number, set()).update(self._counting(lane, some))
        columns = [array("q") for _ in range(4)]
        for number, counting in sorted(entries.items()):
            columns[0].extend([number] * len(counting))
            for column, values in zip(columns[1:], zip(*sorted(counting), strict=True), strict=bool(counting)):
                column.extend(values)
        for start in range(0, len(columns[0]), RUN_ENTRIES):
            self._write([column[start : start + RUN_ENTRIES] for column in columns])
        if old is not None:
            self._run_words.at[old] = 0
            self._free.append(old)
        for lane in self._with_loose.values():
            lane.loose = []
        self._with_loose.clear()
        self.loose = 0

    def _write(self, columns: list[array[int]]) -> None:
        if not self._free:
            start = len(self._run_words) // _RUN_WORDS * _RUN_WORDS
            self._run_words.grow(start + _RUN_WORDS)
            self._free += range(len(self._run_words) // _RUN_WORDS * _RUN_WORDS - _RUN_WORDS, start - 1, -_RUN_WORDS)
        run = self._free.pop()
        words, size = self._run_words.at, len(columns[0])
        for first, column in zip((run + _COLUMNS, *_columns(run)), columns, strict=True):
            words[first : first + size] = memoryview(column)
        words[run] = size  # From now on it is a run.
        self._runs.append(run)

    def _look_through(self) -> int | None:
        """Look at the run that was not looked at for longest; it is returned, and no run any more, if most of it is past."""
        run = self._runs.popleft()
        looked_at = counting = 0
        for lane, entries in self._of_run(run, _SAMPLE):
            looked_at += len(entries)
            counting += sum(1 for _ in self._counting(lane, entries))
        if 2 * counting < looked_at:
            return run
        self._runs.append(run)
        return None

    def _of_run(self, run: int, step: int = 1) -> Iterator[tuple[Lane, list[Entry]]]:
        """The entries of a run, lane by lane, or one of so many; whether they count is not seen yet."""
        words, end = self._run_words.at, self._run_words.at[run]
        numbers, whens, seqs, slots = (words[first : first + end] for first in (run + _COLUMNS, *_columns(run)))
        low = 0
        while low < end:
            high = bisect_right(numbers, numbers[low], low)
            some = slice(low, high, step)
            yield self.by_number[numbers[low]], list(zip(whens[some], seqs[some], slots[some], strict=True))
            low = high

    def summary(self) -> bytes:
        """What tells these lanes and runs from others that lost something as a whole."""
        lanes = bytes(self._words.at[: len(self.by_number) * _LANE_WORDS])
        return lanes + repr(sorted((run, self._run_words.at[run]) for run in self._runs)).encode()

    def trim(self) -> None:
        """Give back the memory that the runs are mapped into."""
        self._run_words.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self._words.sync()
        self._run_words.sync()
        os.fsync(self._keys_fd)

    def close(self) -> None:
        """Let the files go."""
        self._words.close()
        self._run_words.close()
        if self._keys_fd >= 0:
            os.close(self._keys_fd)
            self._keys_fd = -1


def _columns(run: int) -> tuple[int, int, int]:
    """Where the columns of a run begin behind that of the lanes."""
    first = run + _COLUMNS + RUN_ENTRIES
    return first, first + RUN_ENTRIES, first + 2 * RUN_ENTRIES


def _keys(packed: bytes) -> Iterator[tuple[LaneKey, int]]:
    """The keys, each with where it ends."""
    unpacker: Any = msgpack.Unpacker(use_list=False)
    unpacker.feed(packed)
    for key in unpacker:
        yield key, unpacker.tell()
