"""Bring the index of a SQLite store in step with its records, when the store is opened."""

from __future__ import annotations

from givalia_core.model import Job
from givalia_core.store.index.index import Index, Sealed
from givalia_core.store.sqlite_records import Records, changes_of, jobs_of


def catch_up(index: Index, records: Records, sealed: Sealed | None) -> None:
    """File what the last run did since the last seal; without one, everything. Call it within a transaction.

    Raises:
        StoreCorrupt: A record is not what was written.
    """
    if sealed is None:
        _make(index, records)
    else:
        _replay(index, records, sealed)


def _make(index: Index, records: Records) -> None:
    """Jobs that never changed are entered as they are read; of the others it must be known first which record counts."""
    forgotten: set[int] = set()
    changed: set[int] = set()
    for row in records.changes(0):
        for _, record in changes_of(row):
            (changed if isinstance(record, Job) else forgotten).add(record.seq)
    past: dict[int, list[int]] = {}
    placed: dict[int, list[int]] = {}
    for row in records.bases(0):
        base = row.number << 8 | len(row.records) // 2
        for job in jobs_of(row):
            if job.seq in forgotten:
                past.setdefault(row.number, []).append(job.seq)
            elif job.seq in changed:
                slot = index.place(job, base)
                index.note(slot, job.version, 0)
                placed.setdefault(row.number, []).append(slot)
            else:
                index.insert(job, base)
        index.seal_if_many(0, 0)
    # The records that jobs are forgotten name slots of the index that was lost: they must not be needed any more.
    records.drop_jobs(list(past.items()))
    for row in records.changes(0):
        for place, record in changes_of(row):
            found = index.slot_of(record) if isinstance(record, Job) else None
            # A record without that of its enq is of a job that is long forgotten.
            if found is not None and record.version > index.version(found):
                index.note(found, record.version, place)
    for slots in placed.values():
        for slot, job in index.jobs(slots).items():
            index.enter(slot, job)
        index.seal_if_many(0, 0)


def _replay(index: Index, records: Records, sealed: Sealed) -> None:
    """The jobs that are not in the order of their lanes yet; those of the last commit may not be in the index at all."""
    for row in records.bases(sealed.seq):
        for job in jobs_of(row):
            slot = index.slot_with(job)
            if slot is None:
                index.insert(job, row.number << 8 | len(row.records) // 2)
            elif not index.version(slot):
                index.enter(slot, job)
            elif index.version(slot) == job.version:
                index.stand_again(slot, job)
    for row in records.changes(sealed.at):
        for place, record in changes_of(row):
            if isinstance(record, Job):
                _change(index, place, record)
            elif index.has_seq(record.slot, record.seq):
                index.forget(record.slot, place)


def _change(index: Index, place: int, job: Job) -> None:
    slot = index.slot_of(job)
    if slot is None:
        return
    if index.version(slot) == job.version:
        index.stand_again(slot, job)
    elif index.version(slot) < job.version:
        index.change(slot, index.jobs([slot])[slot], job, place)
        index.name_again(slot, job)
