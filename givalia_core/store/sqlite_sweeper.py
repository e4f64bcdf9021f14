"""Removes from the SQLite store what is past: records that later ones have replaced, and all those of forgotten jobs.

A row is written anew when half of it is past and removed when all of it is, so that a page is touched once for many jobs. What
is past is known while it happens; after a start it is found again little by little, beside the work.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from givalia_core.model import Job
from givalia_core.store.index.index import Index
from givalia_core.store.index.lanes import START, Entry
from givalia_core.store.index.slots import AT, BASE, SEQ, WHEN
from givalia_core.store.sqlite_records import Forgotten, Past, Place, Records, changes_of, number_of

ROWS_AT_ONCE: Final = 32
_JOBS_LOOKED_AT: Final = 200
_ROWS_LOOKED_AT: Final = 8


class Swept(NamedTuple):
    """What was removed: slots of forgotten jobs with what their records said last, and how many rows were written."""

    jobs: list[tuple[int, Job | None]]
    rows: int


class Sweeper:
    """What is past in a store, and its removal."""

    def __init__(self, index: Index, records: Records, last_number: int, last_seq: int) -> None:
        """Of what was there before, up to these, it is still to be found out what is past."""
        self.past = Past()
        self._taken: list[tuple[list[tuple[int, list[int]]], list[int], list[tuple[int, int]]]] = []  # Not durable yet.
        self._index = index
        self._records = records
        self._forgotten_from: Entry | None = START
        self._changes_from, self._changes_to = 0, last_number
        self._jobs_from, self._jobs_to = 0, last_seq

    @property
    def has_work(self) -> bool:
        """Whether enough rows are worth a transaction."""
        return len(self.past) >= ROWS_AT_ONCE

    def forget(self, slot: int) -> None:
        """The job of this slot is forgotten; its records may go."""
        at = self._index.slots.at
        self.past.add_job(at[slot + SEQ], at[slot + BASE], slot)

    def write(self) -> Swept:
        """Write some rows anew, within a transaction; `drop` follows when it is durable."""
        rows_at_once = max(ROWS_AT_ONCE, len(self.past) // 16)
        at = self._index.slots.at
        rows = self.past.take_jobs(rows_at_once)
        full, half = self.past.take_changes(rows_at_once)
        self._taken.append((rows, full, half))
        slots = [slot for _, of_row in rows for slot in of_row]
        jobs = self._records.read([Place(at[slot + SEQ], at[slot + BASE], at[slot + AT]) for slot in slots])
        # Now, for behind the transaction nobody may know any more what they were called.
        self._index.unname({slot: job for slot in slots if (job := jobs.get(at[slot + SEQ])) is not None})
        for row in self._records.drop_jobs([(row, [at[slot + SEQ] for slot in of_row]) for row, of_row in rows]):
            self.past.is_gone(row)
        self._records.drop_changes(full, half)
        return Swept([(slot, jobs.get(at[slot + SEQ])) for slot in slots], len(rows) + len(full) + len(half))

    def drop(self, swept: Swept) -> None:
        """The rows are written: the index forgets the jobs too. Now there is room for what could not be written before."""
        for before in self._taken[:-1]:
            self.past.put_back(*before)
        self._taken.clear()
        at = self._index.slots.at
        for slot, job in swept.jobs:
            for place in (at[slot + AT], at[slot + WHEN]):
                if place:
                    self.past.add_change(place)
            self._index.drop(slot, job)

    def look(self) -> None:
        """Find out a little more of what was past when the store was opened."""
        if self._forgotten_from is not None:
            entries = self._index.lanes.after(self._index.forgotten, self._forgotten_from, _JOBS_LOOKED_AT)
            for place, _, slot in entries:
                if number_of(place) <= self._changes_to:  # What was forgotten since is known.
                    self.forget(slot)
            self._forgotten_from = entries[-1] if entries else None
        elif self._changes_from < self._changes_to:
            self._look_at_changes()
        elif self._jobs_from < self._jobs_to:
            self._look_at_jobs()

    def _look_at_changes(self) -> None:
        rows = list(self._records.changes(self._changes_from, _ROWS_LOOKED_AT))
        for row in rows:
            size = len(row.records)
            left = {place for place, record in changes_of(row) if self._counts(place, record)}
            for number in range(size):
                if (place := row.number << 16 | number << 8 | size) not in left:
                    self.past.add_change(place)
        self._changes_from = rows[-1].number if rows else self._changes_to

    def _counts(self, place: int, record: Job | Forgotten) -> bool:
        at = self._index.slots.at
        if isinstance(record, Forgotten):
            return self._index.has_seq(record.slot, record.seq) and at[record.slot + WHEN] == place
        slot = self._index.slot_with(record)
        return slot is not None and at[slot + AT] == place

    def _look_at_jobs(self) -> None:
        rows = list(self._records.bases(self._jobs_from, _ROWS_LOOKED_AT))
        for row in rows:
            size = len(row.records) // 2
            for number, record in enumerate(row.records[::2]):
                if record is None:
                    self.past.add_job(row.number + number, row.number << 8 | size, None)
        self._jobs_from = rows[-1].number if rows else self._jobs_to
