"""Removes past records from the SQLite store: those that later ones have replaced, and all those of forgotten jobs.

A row is rewritten when half of it is past and removed when all of it is, so that a page is touched once for many jobs. Records
are noted when they become past; after a start, older ones are found little by little, beside the work. No record is removed
because the index says so: either this process wrote its replacement, or the records themselves say that it is past.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from givalia_core.errors import StoreCorrupt
from givalia_core.model import Job
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.lane import START
from givalia_core.store.sqlite.index.runs import Entry
from givalia_core.store.sqlite.index.slots import AT, SEQ, WHEN
from givalia_core.store.sqlite.index.upkeep import filing
from givalia_core.store.sqlite.index.upkeep.past import Past
from givalia_core.store.sqlite.places import Damaged, base_at, change_row
from givalia_core.store.sqlite.records import Forgotten, unpack
from givalia_core.store.sqlite.tables import Records, Row

ROWS_AT_ONCE: Final = 32
_JOBS_LOOKED_AT: Final = 200
_ROWS_LOOKED_AT: Final = 8


class Swept(NamedTuple):
    """The outcome of a sweep: slots of forgotten jobs with their last state, and how many rows were written."""

    jobs: list[tuple[int, Job | None]]
    rows: int


class Sweeper:
    """The past records of a store, and their removal."""

    def __init__(self, index: Index, records: Records, last_number: int, last_seq: int) -> None:
        """Begin; rows up to these were there before, and `look_back` finds which of their records are past."""
        self.past = Past()
        self.written: list[tuple[list[int], list[int]]] = []  # Places of records in new rows, and whose they are; by commit.
        self.notes_most = ROWS_AT_ONCE  # So many notes, with those in `Index.replaced`, are worth a sweep.
        self.is_behind = True  # There is more to do at once than the notes say.
        index.replaced.clear()
        self._taken: list[tuple[list[tuple[int, list[int]]], list[int], list[tuple[int, int]]]] = []  # Not durable yet.
        self._index = index
        self._records = records
        self._forgotten_from: Entry | None = START
        self._changes_from, self._changes_to = 0, last_number
        self._jobs_from, self._jobs_to = 0, last_seq

    def has_work(self) -> bool:
        """Take in the notes of the commits since; return whether enough rows are worth a transaction.

        Raises:
            Damaged: A note is about the record of another job.
        """
        for places, seqs in self.written:
            self.past.wrote(places, seqs)
        self.written.clear()
        replaced, self._index.replaced = self._index.replaced, []
        for place, seq in replaced:
            self.change(place, seq)
        return len(self.past) >= ROWS_AT_ONCE

    def forget(self, slot: int) -> None:
        """Note that the job of this slot is forgotten; its records may go."""
        slots = self._index.slots
        self.past.add_job(slots.at[slot + SEQ], slots.base(slot), slot)

    def change(self, place: int, seq: int) -> None:
        """Note that the record of this job at this place is past.

        Raises:
            Damaged: The record is another job's.
        """
        if not self.past.add_change(place, seq):
            raise Damaged(f"the record that the index has of job {seq} is that of another")

    def write(self) -> Swept:
        """Rewrite some rows, within a transaction; `drop` follows when that is durable.

        Raises:
            Damaged: The index calls a job forgotten, and no record says so.
        """
        rows_at_once = max(ROWS_AT_ONCE, len(self.past) // 16)
        for number in self.past.take_hints(rows_at_once):
            row = next(iter(self._records.changes(number - 1, 1)), None)
            if row is None or row.number != number:
                self.past.add_proven(number, 0, 0)  # It is gone.
            else:
                self.past.add_proven(number, self._past_of(row), len(row.records))
        at = self._index.slots.at
        rows = self.past.take_jobs(rows_at_once)
        full, half = self.past.take_changes(rows_at_once)
        self._taken.append((rows, full, half))
        slots = [slot for _, of_row in rows for slot in of_row]
        self._refuse_unsaid(slots)
        jobs = self._records.read(map(self._index.slots.place, slots), bad={})
        # Remove the names now: after the transaction the records that hold them are gone.
        filing.unname(self._index, {slot: job for slot in slots if (job := jobs.get(at[slot + SEQ])) is not None})
        for first in self._records.drop_jobs([(row, [at[slot + SEQ] for slot in of_row]) for row, of_row in rows]):
            self.past.is_gone(first)
        self._records.drop_changes(full, half)
        return Swept([(slot, jobs.get(at[slot + SEQ])) for slot in slots], len(rows) + len(full) + len(half))

    def _refuse_unsaid(self, slots: list[int]) -> None:
        at = self._index.slots.at
        said = self._records.forgets([at[slot + WHEN] for slot in slots])
        for slot in slots:
            if said.get(at[slot + WHEN]) != at[slot + SEQ]:
                raise Damaged(f"no record says that job {at[slot + SEQ]} is forgotten")

    def drop(self, swept: Swept) -> None:
        """Drop the swept jobs from the index, once their rows are written; put back the rows of earlier sweeps that failed."""
        for before in self._taken[:-1]:
            self.past.put_back(*before)
        self._taken.clear()
        at = self._index.slots.at
        for slot, job in swept.jobs:
            for place in (at[slot + AT], at[slot + WHEN]):
                if place:
                    self.change(place, at[slot + SEQ])
            filing.drop(self._index, slot, job)

    def look_back(self) -> bool:
        """Find a few more records that were past when the store was opened; return whether there may be more."""
        if self._forgotten_from is not None:
            entries = self._index.lanes.after(self._index.forgotten, self._forgotten_from, _JOBS_LOOKED_AT)
            for place, _, slot in entries:
                if change_row(place) <= self._changes_to:  # Jobs that were forgotten since are known.
                    self.forget(slot)
            self._forgotten_from = entries[-1] if entries else None
        elif self._changes_from < self._changes_to:
            self._look_at_changes()
        elif self._jobs_from < self._jobs_to:
            self._look_at_jobs()
        else:
            return False
        return True

    def _look_at_changes(self) -> None:
        rows = list(self._records.changes(self._changes_from, _ROWS_LOOKED_AT))
        for row in rows:
            self.past.add_proven(row.number, self._past_of(row), len(row.records))
        self._changes_from = rows[-1].number if rows else self._changes_to

    def _past_of(self, row: Row) -> int:
        """Return which records of a row are past, as bits: those that are gone, and those that other records replace.

        A record that cannot be read stays, for `check` and `salvage` to find.
        """
        told = {place: _told(record) for place, record in enumerate(row.records) if record is not None}
        told = {place: record for place, record in told.items() if record is not None}
        there = self._records.have_bases(record.seq for record in told.values() if record is not None)
        jobs = [record for record in told.values() if isinstance(record, Job) and record.seq in there]
        slots = [slot for job in jobs if (slot := self._index.jobs.slot_with(job)) is not None]
        newest = self._records.read(map(self._index.slots.place, slots), bad={})
        bits = 0
        for place, record in enumerate(row.records):
            known = told.get(place)
            is_replaced = known is not None and (
                known.seq not in there
                or (isinstance(known, Job) and known.seq in newest and newest[known.seq].version > known.version)
            )
            if record is None or is_replaced:
                bits |= 1 << place
        return bits

    def _look_at_jobs(self) -> None:
        rows = list(self._records.bases(self._jobs_from, _ROWS_LOOKED_AT))
        for row in rows:
            size = len(row.records) // 2
            for number, record in enumerate(row.records[::2]):
                if record is None:
                    self.past.add_job(row.number + number, base_at(row.number, size), None)
        self._jobs_from = rows[-1].number if rows else self._jobs_to


def _told(record: bytes) -> Job | Forgotten | None:
    try:
        return unpack(record)
    except StoreCorrupt:
        return None
