"""Bring the index of a SQLite store in step with its records: when the store is opened, and when the index proved damaged."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from givalia_core.model import Job, JobState
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.opening import Sealed
from givalia_core.store.sqlite.index.sealing import seal_if_many
from givalia_core.store.sqlite.index.upkeep import filing, pages
from givalia_core.store.sqlite.places import Damaged, Place, base_at, change_at, change_row, without_size
from givalia_core.store.sqlite.records import Forgotten, likely_seq
from givalia_core.store.sqlite.tables import Records, Row, changes_of, jobs_of

Counts = Counter[tuple[str, JobState]]
OnBad = Callable[[Place, str], None]
"""A function that is called for each bad record, with its `Place` (0: unknown) and the reason."""

_GONE: Final = "what became of it since its enq cannot be read"


class Rebuild:
    """The filing of every job in an empty index. A job with a bad record is left out, and `on_bad` is called for it."""

    def __init__(self, index: Index, records: Records, on_bad: OnBad) -> None:
        self._index = index
        self._records = records
        self._on_bad = on_bad
        self._forgotten: set[int] = set()
        self._changed: set[int] = set()
        self._replaced: dict[int, int] = {}  # Seq -> the version of an enq record that a change of the params has replaced.
        self._lost: dict[int, int] = {}  # Seq -> place of a change that cannot be read.
        self._unknown: set[int] = set()  # Places, without the size of the row, of records that may be any job's,
        self._unknown_rows: set[int] = set()  # and rows that cannot be read at all.
        self._counts: Counts = Counter()

    def run(self, remake: Callable[[], None]) -> Counts:
        """File all jobs; return their number by module and state. The caller has begun a transaction.

        Jobs that never changed are entered as they are read; for the others, the record that counts must be found first.
        `remake` empties the index; before that, the old index may still know whose the unreadable records are.
        """
        self._read_changes()
        if self._unknown or self._unknown_rows:
            self._lost |= _owners(self._index, self._unknown, self._unknown_rows)
        remake()
        placed = self._enter_unchanged()
        self._note_newest()
        for slots in placed:
            self._enter_changed(slots)
        return self._counts

    def _read_changes(self) -> None:
        for row in self._records.changes(0):
            for _, record in self._changes_of(row):
                (self._changed if isinstance(record, Job) else self._forgotten).add(record.seq)

    def _changes_of(self, row: Row) -> Iterator[tuple[int, Job | Forgotten]]:
        def lose(number: int, place: int, why: str) -> None:
            seq = likely_seq(row.records[place]) if place >= 0 else None
            if seq is None:
                self._on_bad(Place(0, 0, change_at(number, max(place, 0), 0)), why)
                if place < 0:
                    self._unknown_rows.add(number)
                else:
                    self._unknown.add(without_size(change_at(number, place, 0)))
            else:
                self._lost[seq] = change_at(number, place, len(row.records))

        return changes_of(row, lose)

    def _enter_unchanged(self) -> list[list[int]]:
        """Enter the jobs that never changed; return the slots of the others, by row."""
        past: list[tuple[int, list[int]]] = []
        placed: list[list[int]] = []
        for row in self._records.bases(0):
            past.append((row.number, []))
            placed.append([])
            base = base_at(row.number, len(row.records) // 2)
            for job in jobs_of(row, self._bad_base):
                if job.seq in self._forgotten:
                    past[-1][1].append(job.seq)
                elif job.seq in self._lost:
                    self._on_bad(Place(job.seq, base, self._lost[job.seq]), _GONE)
                elif job.seq in self._changed:
                    if job.version > 1:
                        self._replaced[job.seq] = job.version
                    placed[-1].append(filing.place(self._index, job, base))
                else:
                    self._index.insert(job, base, self._index.lane_of(job))
                    self._counts[job.module, job.state] += 1
            seal_if_many(self._index.lanes, self._index.names, 0, 0)
            self._index.jobs.shed()
        # The records of forgettings name slots of the lost index, so they must not be needed any more.
        self._records.drop_jobs([(row, seqs) for row, seqs in past if seqs])
        return placed

    def _bad_base(self, row: int, place: int, why: str) -> None:
        self._on_bad(Place(row + max(place, 0), base_at(row, 0), 0), why)

    def _note_newest(self) -> None:
        for row in self._records.changes(0):
            for place, record in changes_of(row, lambda *_: None):
                found = self._index.jobs.slot_of(record) if isinstance(record, Job) else None
                # A record without its enq record is of a job that was forgotten long ago.
                if found is None or record.version < self._replaced.get(record.seq, 0):
                    continue
                if record.version > self._index.slots.version(found):
                    filing.note(self._index, found, record.version, place)

    def _enter_changed(self, slots: list[int]) -> None:
        places = {slot: self._index.slots.place(slot) for slot in slots}
        jobs = self._records.read(places.values(), {})
        for slot, place in places.items():
            job = jobs[place.seq]
            filing.enter(self._index, slot, job)
            self._counts[job.module, job.state] += 1
        seal_if_many(self._index.lanes, self._index.names, 0, 0)


def replay(index: Index, records: Records, sealed: Sealed) -> None:
    """File the jobs that changed since the last seal, which are not in the order of their lanes yet.

    Those of the last commit may not be in the index at all. Call it within a transaction.

    Raises:
        Damaged: The index is not what was written.
        StoreCorrupt: A record is not what was written.
    """
    _drop_pending(index, records)
    for row in records.bases(sealed.seq):
        for job in jobs_of(row):
            slot = index.jobs.slot_with(job)
            if slot is None:
                index.insert(job, base_at(row.number, len(row.records) // 2), index.lane_of(job))
            elif index.slots.version(slot) == job.version:
                filing.stand_again(index, slot, job)
        index.jobs.shed()
    for row in records.changes(sealed.at):
        for place, record in changes_of(row):
            if isinstance(record, Job):
                _change(index, place, record)
            elif filing.has_seq(index, record.slot, record.seq):
                filing.forget(index, record.slot, place)


def _drop_pending(index: Index, records: Records) -> None:
    """Free the slot of a job that a kill kept from being named: nothing leads to the slot, and the job gets another one."""
    slot = index.slots.pending
    if not index.slots.is_slot(slot):
        return
    index.slots.ensure((slot,))
    place = index.slots.place(slot)
    if place.seq:
        job = records.read([place], {}).get(place.seq)
        if job is None or index.jobs.slot_with(job) != slot:
            index.slots.free(slot)


def _change(index: Index, place: int, job: Job) -> None:
    slot = index.jobs.slot_of(job)
    if slot is None:
        return
    if index.slots.version(slot) == job.version:
        filing.stand_again(index, slot, job)
    elif index.slots.version(slot) < job.version:
        was = index.jobs.peek([slot]).get(slot, job)
        index.change(index.jobs.keep(slot, was), was, job, place, index.lane_of(job))
        index.jobs.drop(slot)  # The record has no params.
        filing.name_again(index, slot, job)


def _owners(index: Index, places: set[int], rows: set[int]) -> dict[int, int]:
    """Return the seqs of the jobs whose newest record is at one of these places or in one of these rows, with its place.

    Unreadable parts of the index are left out: the index is about to be rebuilt.
    """
    found: dict[int, int] = {}
    with contextlib.suppress(AttributeError, Damaged, IndexError, ValueError):
        for page in range(index.slots.pages):
            with contextlib.suppress(Damaged):
                index.slots.verify(page)
                found.update(
                    (seq, place)
                    for seq, place in pages.newest_of(index.slots, page)
                    if seq and place and (without_size(place) in places or change_row(place) in rows)
                )
    return found
