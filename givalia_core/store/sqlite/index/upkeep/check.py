"""Compares everything in a SQLite store with everything else: pages, records, counts, and the index in both directions."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from givalia_core.errors import StoreCorrupt
from givalia_core.model import ENDED, Job, JobState
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.names import SHARDS
from givalia_core.store.sqlite.index.slots import ENDED_AT, FAR, FIRST, LANE, SEQ, WHEN, WIDTH
from givalia_core.store.sqlite.index.upkeep import shards
from givalia_core.store.sqlite.index.upkeep.filing import when_of
from givalia_core.store.sqlite.places import Damaged, base_at
from givalia_core.store.sqlite.tables import Records, changes_of, jobs_of

_LINES_MOST: Final = 1_000


class Check:
    """One reading of everything; `run` returns the faults."""

    def __init__(
        self, connection: sqlite3.Connection, records: Records, index: Index, counts: dict[tuple[str, JobState], int]
    ) -> None:
        self._connection = connection
        self._records = records
        self._index = index
        self._stored = counts
        self._wrong: list[str] = []
        self._newest: dict[int, tuple[int, int]] = {}  # Seq -> version and place of the newest change.
        self._forgotten: set[int] = set()
        self._seen: set[int] = set()  # Slots that a record leads to.
        self._counts: Counter[tuple[str, JobState]] = Counter()

    def run(self) -> list[str]:
        """Return a sentence about each fault, a thousand at most."""
        for part in (self._pages, self._checks, self._changes, self._jobs, self._slots, self._lanes, self._sums):
            try:
                for line in part():
                    self._wrong.append(line)
                    if len(self._wrong) == _LINES_MOST:
                        return [*self._wrong, "there is more"]
            except (sqlite3.Error, StoreCorrupt, Damaged, IndexError) as error:
                self._wrong.append(str(error))
        return self._wrong

    def _pages(self) -> Iterator[str]:
        for (line,) in self._connection.execute("PRAGMA quick_check"):
            if line != "ok":
                yield line

    def _checks(self) -> Iterator[str]:
        """Compare each part of the index with its own check."""
        index = self._index
        runs = index.lanes.runs
        parts: list[Callable[[], object]] = [partial(index.slots.verify, page) for page in range(index.slots.pages)]
        parts += [partial(index.names.verify, shard) for shard in range(SHARDS)]
        parts += [partial(runs.verify, run) for run in runs.all()]
        for verify in parts:
            try:
                verify()
            except Damaged as error:
                yield f"the index is damaged: {error}"

    def _changes(self) -> Iterator[str]:
        bad: list[str] = []
        for row in self._records.changes(0):
            for place, record in changes_of(row, lambda *told: bad.append("row {} of changes, record {}: {}".format(*told))):
                if not isinstance(record, Job):
                    self._forgotten.add(record.seq)
                elif record.version > self._newest.get(record.seq, (0, 0))[0]:
                    self._newest[record.seq] = record.version, place
            yield from bad
            bad.clear()

    def _jobs(self) -> Iterator[str]:
        bad: list[str] = []
        for row in self._records.bases(0):
            for job in jobs_of(row, lambda *told: bad.append("row {} of jobs, record {}: {}".format(*told))):
                yield from self._job(job, base_at(row.number, len(row.records) // 2))
            yield from bad
            bad.clear()

    def _job(self, enqueued: Job, base: int) -> Iterator[str]:
        """Compare a job, as its records have it, with the index."""
        index, seq = self._index, enqueued.seq
        slot = index.jobs.slot_with(enqueued)
        if slot is None:
            if seq not in self._forgotten:
                yield f"job {seq} is not found by its id"
            return
        self._seen.add(slot)
        if seq in self._forgotten:
            if index.jobs.is_there(slot):
                yield f"job {seq} is forgotten, and the index has it"
            return
        if not index.jobs.is_there(slot):
            yield f"job {seq} is forgotten in the index alone"
            return
        _, place = self._newest.get(seq, (0, 0))
        if index.slots.place(slot) != (seq, base, place):
            yield f"the index has job {seq} as it was at another time"
            return
        bad: dict[int, str] = {}
        job = self._records.read([index.slots.place(slot)], bad).get(seq)
        if job is None:
            yield f"job {seq}: {bad.get(seq, 'its record is gone')}"
            return
        self._counts[job.module, job.state] += 1
        for fault in _faults_of(index, slot, job):
            yield f"job {seq} {fault}"

    def _slots(self) -> Iterator[str]:
        slots, at = self._index.slots, self._index.slots.at
        for slot in range(FIRST, slots.end, WIDTH):
            if at[slot + SEQ] and slot not in self._seen and self._index.jobs.is_there(slot):
                yield f"the index has job {at[slot + SEQ]}, of which there is no record"
        for shard in range(SHARDS):
            if any(not slots.is_slot(slot) for slot in shards.entries(self._index.names, shard)):
                yield f"shard {shard} of the names leads to slots that do not exist"

    def _lanes(self) -> Iterator[str]:
        """Compare how many jobs are filed in each lane with how many are found in its order."""
        slots, lanes = self._index.slots, self._index.lanes
        filed = Counter(slots.at[slot + LANE] for slot in range(FIRST, slots.end, WIDTH) if slots.at[slot + SEQ])
        for lane in lanes.by_key.values():
            if lane.is_loosely_filed:
                continue
            entries = list(lanes.walk(lane))
            if len(entries) != filed[lane.number]:
                yield f"lane {lane.key} has {filed[lane.number]} jobs, and {len(entries)} are found in its order"
            if entries != sorted(entries):
                yield f"lane {lane.key} is not in order"

    def _sums(self) -> Iterator[str]:
        counted = {name: count for name, count in self._counts.items() if count}
        if not self._wrong and counted != self._stored:
            yield f"the stored counts {self._stored} are not those of the records {counted}"


def _faults_of(index: Index, slot: int, job: Job) -> list[str]:
    """Return the ways in which the index does not match the job of a slot."""
    slots, lanes, names, lane = index.slots, index.lanes, index.names, index.lane_of(job)
    when = when_of(lane, job)
    faults = []
    ended_at = job.ended_at_us if job.state in ENDED else 0
    told = (slots.version(slot), slots.at[slot + LANE], slots.at[slot + WHEN], slots.at[slot + ENDED_AT])
    if told != (job.version, lane.number, when, ended_at):
        faults.append("is not filed where it belongs")
    elif lanes.after(lane, (when, job.seq - 1, FAR), 1) != [(when, job.seq, slot)]:
        faults.append("is not found in the order of its lane")
    elif ended_at and lanes.after(index.newest[job.state], (-ended_at, job.seq - 1, FAR), 1) != [(-ended_at, job.seq, slot)]:
        faults.append("is not found among the jobs that ended last")
    if job.key is not None and not _is_named(index, slot, job, job.key):
        faults.append("is not found by its key")
    if any(slot not in names.slots(names.of_request(past.request)) for past in job.answered if past.request != job.id):
        faults.append("is not found by a request")
    return faults


def _is_named(index: Index, slot: int, job: Job, key: str) -> bool:
    if job.state in ENDED and not index.chains.is_head(slot):
        return index.chains.is_linked(slot)
    return slot in index.names.slots(index.names.of_key(key))
