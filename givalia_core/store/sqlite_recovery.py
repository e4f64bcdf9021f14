"""Bring the index of a SQLite store in step with its records, when the store is opened."""

from __future__ import annotations

from givalia_core.model import Job
from givalia_core.store.index.index import Index, Sealed
from givalia_core.store.sqlite_records import Forgotten, Records, changes_of, jobs_of


def catch_up(index: Index, records: Records, sealed: Sealed | None) -> int:
    """File what the last run did since the last seal; without one, everything. Returns how many records were looked at.

    Call it within a transaction.

    Raises:
        StoreCorrupt: A record is not what was written.
    """
    return _make(index, records) if sealed is None else _replay(index, records, sealed)


def _make(index: Index, records: Records) -> int:
    """First a slot for every job, then where its newest record is, then all that finds it."""
    looked_at = 0
    forgotten = {each.seq for row in records.changes(0) for _, each in changes_of(row) if isinstance(each, Forgotten)}
    past: list[tuple[int, list[int]]] = []
    for row in records.bases(0):
        jobs = list(jobs_of(row))
        for job in jobs:
            if job.seq not in forgotten:
                index.note(index.place(job, row.number << 8 | len(row.records) // 2), job.version, 0)
        if forgotten and (seqs := [job.seq for job in jobs if job.seq in forgotten]):
            past.append((row.number, seqs))
        looked_at += len(jobs)
    # The records that they are forgotten name slots of the index that was lost: they must not be needed any more.
    records.drop_jobs(past)
    for row in records.changes(0):
        for place, record in changes_of(row):
            found = index.slot_of(record) if isinstance(record, Job) else None
            # A record without that of its enq is of a job that is long forgotten.
            if found is not None and record.version > index.version(found):
                index.note(found, record.version, place)
            looked_at += 1
    for row in records.bases(0):
        stored = {found: job for job in jobs_of(row) if (found := index.slot_of(job)) is not None}
        stored |= index.jobs([slot for slot in stored if index.has_changed(slot)])
        for slot, job in stored.items():
            index.enter(slot, job)
        index.seal_if_many(0, 0, 0)
    return looked_at


def _replay(index: Index, records: Records, sealed: Sealed) -> int:
    """The jobs that are not in the order of their lanes yet; those of the last commit may not be in the index at all."""
    looked_at = 0
    for row in records.bases(sealed.seq):
        for job in jobs_of(row):
            slot = index.slot_with(job)
            if slot is None:
                index.insert(job, row.number << 8 | len(row.records) // 2)
            elif not index.version(slot):
                index.enter(slot, job)
            elif index.version(slot) == job.version:
                index.stand_again(slot, job)
            looked_at += 1
    for row in records.changes(sealed.at):
        for place, record in changes_of(row):
            if isinstance(record, Job):
                _change(index, place, record)
            elif index.has_seq(record.slot, record.seq):
                index.forget(record.slot, place)
            looked_at += 1
    return looked_at


def _change(index: Index, place: int, job: Job) -> None:
    slot = index.slot_of(job)
    if slot is None:
        return
    if index.version(slot) == job.version:
        index.stand_again(slot, job)
    elif index.version(slot) < job.version:
        index.change(slot, index.jobs([slot])[slot], job, place)
