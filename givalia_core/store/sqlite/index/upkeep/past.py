"""Past records of the SQLite store, until the sweeper has removed them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import islice
from typing import Final

from givalia_core.store.sqlite.places import base_row, base_size, change_number, change_row, change_size

_WRITTEN_ROWS: Final = 8_192


class Past:
    """The past records, by row, until their rows are rewritten: once when half of a row is past, once when all of it is.

    A caller knows from the index that a record is past, and the index may be wrong. So `Past` remembers whose records each new
    row has; a note about another row is only a hint, and is compared with the records before anything is removed.
    """

    def __init__(self) -> None:
        self._changes: dict[int, int] = {}  # Row -> bits, one for each record.
        self._jobs: dict[int, int] = {}
        self._slots: dict[int, list[int]] = {}  # Row of jobs -> slots of forgotten ones whose records are still there.
        self._full_changes: dict[int, None] = {}  # Rows to remove, and rows to rewrite, each in the order in which they came.
        self._half_changes: dict[int, None] = {}
        self._ripe_jobs: list[int] = []
        self._written: dict[int, array[int]] = {}  # Row -> the seqs of its records, for the rows written last.
        self._hints: set[int] = set()  # Rows for which a note is only a hint.

    def __len__(self) -> int:
        return len(self._full_changes) + len(self._half_changes) + len(self._ripe_jobs)

    def wrote(self, places: Sequence[int], seqs: Sequence[int]) -> None:
        """Remember whose records are at these places, which are those of whole new rows, in order."""
        written, start = self._written, 0
        while start < len(places):
            row, count = change_row(places[start]), change_size(places[start])
            written[row] = array("q", seqs[start : start + count])
            start += count
            if len(written) > _WRITTEN_ROWS:
                del written[next(iter(written))]

    def add_change(self, place: int, seq: int) -> bool:
        """Note that the record of this job at this place is past; return False if the record is another job's."""
        row, number = change_row(place), change_number(place)
        written = self._written.get(row)
        if written is None:
            self._hints.add(row)
        elif written[number] != seq:
            return False
        self._add(row, 1 << number, change_size(place))
        return True

    def add_proven(self, row: int, bits: int, size: int) -> None:
        """Note that these records of a row are past, as the records themselves say."""
        self._hints.discard(row)
        for known in (self._changes, self._full_changes, self._half_changes):
            known.pop(row, None)
        if bits:
            self._add(row, bits, size)

    def _add(self, row: int, more: int, size: int) -> None:
        before = self._changes.get(row, 0)
        bits = self._changes[row] = before | more
        past, half = bits.bit_count(), (size + 1) // 2
        if bits != before and past == size:
            self._half_changes.pop(row, None)
            self._full_changes[row] = None
        elif before.bit_count() < half <= past:
            self._half_changes[row] = None

    def add_job(self, seq: int, base: int, slot: int | None) -> None:
        """Note that the job whose first record is at `base` is forgotten; without a slot the record is gone already."""
        row, size = base_row(base), base_size(base)
        before = self._jobs.get(row, 0)
        bits = self._jobs[row] = before | 1 << (seq - row)
        if slot is not None:
            self._slots.setdefault(row, []).append(slot)
        if bits != before and bits.bit_count() in (size, (size + 1) // 2):
            self._ripe_jobs.append(row)

    def take_jobs(self, limit: int) -> list[tuple[int, list[int]]]:
        """Take rows of `jobs` to rewrite, with the slots of the forgotten jobs in them."""
        taken, self._ripe_jobs = self._ripe_jobs[:limit], self._ripe_jobs[limit:]
        return [(row, self._slots.pop(row)) for row in taken if row in self._slots]

    def is_gone(self, row: int) -> None:
        """Note that a row of `jobs` was removed."""
        self._jobs.pop(row, None)

    def take_hints(self, limit: int) -> list[int]:
        """Return the first rows, at most `limit`, that would be rewritten on a hint alone."""
        if not self._hints:
            return []
        coming = [*islice(self._full_changes, 16 * limit), *islice(self._half_changes, limit)]
        return [row for row in coming if row in self._hints][:limit]

    def take_changes(self, limit: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Take rows of `changes` that are wholly past, and some that are half past, with the bits of their past records.

        A row of hints stays for the next time.
        """
        full = self._take(self._full_changes, 16 * limit)
        for row in full:
            self._changes.pop(row, None)
        return full, [(row, self._changes[row]) for row in self._take(self._half_changes, limit)]

    def _take(self, rows: dict[int, None], limit: int) -> list[int]:
        """Take those of the first rows that are more than hints."""
        taken = [row for row in islice(rows, limit) if row not in self._hints]
        for row in taken:
            del rows[row]
        return taken

    def put_back(self, jobs: list[tuple[int, list[int]]], full: list[int], half: list[tuple[int, int]]) -> None:
        """Take rows back that were taken and could not be written."""
        for row, slots in jobs:
            self._slots.setdefault(row, []).extend(slots)
            self._ripe_jobs.append(row)
        self._full_changes.update(dict.fromkeys(full))
        # A row that has become wholly past meanwhile has its place among those.
        self._half_changes.update((row, None) for row, _ in half if row in self._changes and row not in self._full_changes)
