"""The sealed order of jobs: runs of entries that never change, and the list of those that count.

An entry is (lane, when, seq, slot), in four columns. The list has the length and the checksum of each run, and the last records
of the store that the runs cover. Two files hold the list in turn, so that a kill leaves one of them whole. The place
of a run that no longer counts is used again once a list without it is written.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import msgpack

from givalia_core.store.sqlite.index.words import Words, no_file_is_damage
from givalia_core.store.sqlite.places import Damaged

RUN_ENTRIES: Final = 10_240  # The room of a run: the entries sealed at once, with those of the commit that reached that number.
_LISTS: Final = ("sealed.0", "sealed.1")
_CRC_BYTES: Final = 4

Entry = tuple[int, int, int]
Column: TypeAlias = "memoryview[int]"
Stretch = tuple[Column, Column, Column, int, int]


class SortedRun(NamedTuple):
    """The beginning of a run, the number of its entries, and their checksum."""

    place: int
    size: int
    crc: int


class Runs:
    """All runs of an index."""

    def __init__(self, folder: Path, generation: int, make_room: Callable[[], None]) -> None:
        """Open the files, or create empty ones; `generation` is that of the list that was written last.

        Raises:
            Damaged: No list is of this generation or the next one.
            OSError: A file cannot be opened, or there is no room.
        """
        self._words = Words(folder / "runs", _run_words(), make_room)
        self._folder = folder
        self.generation = generation
        self.sealed_at = self.sealed_seq = 0
        self._runs: deque[SortedRun] = deque()
        self._unverified: set[int] = set()
        self._turn = 0
        try:
            self._read_list(generation)
        except BaseException:
            self.close()
            raise
        taken = {run.place for run in self._runs}
        self._free = [place for place in range(0, len(self._words) - _run_words() + 1, _run_words()) if place not in taken]

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run: object) -> bool:
        return run in self._runs

    def _read_list(self, generation: int) -> None:
        lists = [read for name in _LISTS if (read := _read(self._folder / name)) is not None]
        if not lists and not generation:
            return
        found = max((read for read in lists if generation <= read[0] <= generation + 1), default=None)
        if found is None:
            raise Damaged("no list of the runs is the one that was written last")
        self.generation, self.sealed_at, self.sealed_seq, runs = found
        self._runs = deque(SortedRun(*run) for run in runs)
        if any(run.place % _run_words() or run.place + _run_words() > len(self._words) for run in self._runs):
            raise Damaged("the runs are fewer than their list says")
        self._unverified = {run.place for run in self._runs}

    # Reading.

    def stretches(self, number: int, start: Entry) -> Iterator[Stretch]:
        """Yield the whens, seqs and slots of each run, and the range in them of a lane's entries behind `start`.

        Raises:
            Damaged: A run is not what was written.
        """
        words = self._words.at
        for run in self._runs:
            if run.place in self._unverified:
                self.verify(run)
            place, size = run.place, run.size
            lanes = words[place : place + size]
            if not size or not lanes[0] <= number <= lanes[size - 1]:
                continue
            whens, seqs, slots = (words[first : first + size] for first in _columns(place))
            low = bisect_left(lanes, number)
            high = bisect_right(lanes, number, low)
            low = bisect_left(whens, start[0], low, high)
            low = bisect_right(seqs, start[1], low, bisect_right(whens, start[0], low, high))
            yield whens, seqs, slots, low, high

    def entries(self, run: SortedRun, step: int = 1) -> Iterator[tuple[int, list[Entry]]]:
        """Yield the lane numbers of a run with their entries, or with every `step`-th entry."""
        if run.place in self._unverified:
            self.verify(run)
        words, end = self._words.at, run.size
        numbers = words[run.place : run.place + end]
        whens, seqs, slots = (words[first : first + end] for first in _columns(run.place))
        low = 0
        while low < end:
            high = bisect_right(numbers, numbers[low], low)
            some = slice(low, high, step)
            yield numbers[low], list(zip(whens[some], seqs[some], slots[some], strict=True))
            low = high

    def rows(self, run: SortedRun, step: int = 1) -> list[tuple[int, int, int, int]]:
        """Return the entries of a run with their lanes in front, or every `step`-th of them.

        Raises:
            Damaged: The run is not what was written.
        """
        if run.place in self._unverified:
            self.verify(run)
        firsts = (run.place, *_columns(run.place))
        return list(zip(*(self._words.at[first : first + run.size : step].tolist() for first in firsts), strict=True))

    def verify(self, run: SortedRun) -> None:
        """Compare a run with its checksum.

        Raises:
            Damaged: The run is not what was written.
        """
        crc = 0
        for first in (run.place, *_columns(run.place)):
            crc = zlib.crc32(self._words.at[first : first + run.size], crc)
        if crc != run.crc:
            raise Damaged(f"the run at {run.place} does not match its checksum")
        self._unverified.discard(run.place)

    def verify_list(self) -> None:
        """Compare the file of the present list with the runs.

        Raises:
            Damaged: The list is not what was written.
        """
        with no_file_is_damage():
            told = _read(self._folder / _LISTS[self.generation % 2])
        if self.generation and told != (self.generation, self.sealed_at, self.sealed_seq, [list(run) for run in self._runs]):
            raise Damaged("the list of the runs is not what was written")

    def all(self) -> list[SortedRun]:
        """Return the runs."""
        return list(self._runs)

    def is_far_back(self, run: SortedRun) -> bool:
        """Return whether a run lies in the second half of the file, and could lie further in front."""
        return run.place * 2 > len(self._words) and min(self._free, default=run.place) < run.place

    @staticmethod
    def fit(count: int) -> bool:
        """Return whether so many entries fit into one run."""
        return count <= RUN_ENTRIES

    # Writing.

    def oldest(self) -> SortedRun:
        """Return the next run to sample: each has its turn."""
        self._turn += 1
        return self._runs[self._turn % len(self._runs)]

    def seal(self, columns: Sequence[array[int]], without: Collection[SortedRun], sealed_at: int, sealed_seq: int) -> None:
        """Write new runs, and a list with them and without some old runs; the list covers the records up to these.

        Args:
            columns: The lanes, whens, seqs and slots of the entries, in order.
            without: Runs whose entries are among the new ones, as far as they count.
            sealed_at: The last change that the runs know of.
            sealed_seq: The last seq.

        Raises:
            OSError: There is no room; all is as before.
        """
        parts = [
            [column[start : start + RUN_ENTRIES] for column in columns] for start in range(0, len(columns[0]), RUN_ENTRIES)
        ]
        while len(self._free) < len(parts):
            self._grow()
        written = [self._write(part) for part in parts]
        runs = [run for run in self._runs if run not in without] + written
        try:
            self._write_list(runs, sealed_at, sealed_seq)
        except OSError:
            self._free += [run.place for run in written]
            raise
        self._runs = deque(runs)
        self._free += [run.place for run in without]
        if not self._free:
            with contextlib.suppress(OSError):  # Room for the next run, while the disk has room.
                self._grow()

    def _grow(self) -> None:
        before = len(self._words)
        start = before // _run_words() * _run_words()
        self._words.grow(start + _run_words())
        self._free += range(start, len(self._words) - _run_words() + 1, _run_words())

    def _write(self, columns: list[array[int]]) -> SortedRun:
        place, size, crc = min(self._free), len(columns[0]), 0
        self._free.remove(place)
        words = self._words.at
        for first, column in zip((place, *_columns(place)), columns, strict=True):
            words[first : first + size] = memoryview(column)
            crc = zlib.crc32(column, crc)
        return SortedRun(place, size, crc)

    def _write_list(self, runs: list[SortedRun], sealed_at: int, sealed_seq: int) -> None:
        packed: bytes = msgpack.packb((self.generation + 1, sealed_at, sealed_seq, runs))
        _write(self._folder / _LISTS[(self.generation + 1) % 2], packed)
        self.generation += 1
        self.sealed_at, self.sealed_seq = sealed_at, sealed_seq

    def cut(self) -> None:
        """Give back the room behind the last run, if there is much of it."""
        end = max((run.place for run in self._runs), default=0) + 2 * _run_words()
        if end * 2 < len(self._words):
            self._words.shrink(end)
            self._free = [place for place in self._free if place + _run_words() <= end]

    def trim(self) -> None:
        """Give back the memory that the runs are mapped into."""
        self._words.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self._words.sync()
        for name in _LISTS:
            if (self._folder / name).exists():
                fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._words.close()


def _run_words() -> int:
    return 4 * RUN_ENTRIES


def _columns(place: int) -> tuple[int, int, int]:
    """Return where the columns of a run begin that follow the column of the lanes."""
    first = place + RUN_ENTRIES
    return first, first + RUN_ENTRIES, first + 2 * RUN_ENTRIES


def _read(path: Path) -> tuple[int, int, int, list[list[int]]] | None:
    """Return the content of a list; None if the list is not whole."""
    try:
        told = path.read_bytes()
    except FileNotFoundError:
        return None
    packed, crc = told[:-_CRC_BYTES], told[-_CRC_BYTES:]
    if len(told) <= _CRC_BYTES or zlib.crc32(packed).to_bytes(_CRC_BYTES, "little") != crc:
        return None
    generation, sealed_at, sealed_seq, runs = msgpack.unpackb(packed)
    return generation, sealed_at, sealed_seq, runs


def _write(path: Path, packed: bytes) -> None:
    with no_file_is_damage():
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        told = packed + zlib.crc32(packed).to_bytes(_CRC_BYTES, "little")
        done = os.pwrite(fd, told, 0)
        while done < len(told):
            done += os.pwrite(fd, told[done:], done)
        os.ftruncate(fd, len(told))
    finally:
        os.close(fd)
