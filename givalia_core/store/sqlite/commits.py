"""A commit of the SQLite store: which of its changes stand, and how what stands becomes durable.

Each change is judged by what the store holds and by the changes before it.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Final

import msgpack

from givalia_core.clock import Mark
from givalia_core.model import ENDED, Job, JobState
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Retention
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite import copies
from givalia_core.store.sqlite.core import KEEP_FACT, Core
from givalia_core.store.sqlite.index import Index, Update, forget, questions, to_forget
from givalia_core.store.sqlite.records import change_rows, pack_forgotten

UNCOUNTED_MOST: Final = 12  # Counts whose changes are written with each commit and not in their table.
_pack = msgpack.Packer(autoreset=True).pack


class Admission:
    """What the changes that stand make of each job, by id; `refused` are the places of the others."""

    def __init__(self, index: Index, absent: dict[bytes | str, int]) -> None:
        """No job has any of the names in `absent`."""
        self.inserts: dict[bytes, Job] = {}
        self.updates: dict[bytes, Update] = {}
        self.refused: list[int] = []
        self._index = index
        self._known = index.jobs.by_id
        self._absent = absent
        self._holders: dict[str, int | None] = {}  # Who holds a key once the changes so far are applied.

    def admit(self, changes: Iterable[Change]) -> None:
        """Take in these changes, in their order."""
        for place, (was, job) in enumerate(changes):
            if not (self._insert(job) if was is None else self._update(was, job)):
                self.refused.append(place)

    def _insert(self, job: Job) -> bool:
        job_id, key = job.id, job.key
        if job_id in self.inserts or (job_id not in self._absent and questions.has_id(self._index, job_id)):
            return False
        if key is not None and job.state not in ENDED:
            if (key in self._holders or key not in self._absent) and self._holder(key) is not None:
                return False
            self._holders[key] = job.seq
        self.inserts[job_id] = job
        return True

    def _update(self, was: Job, job: Job) -> bool:
        job_id, known, first, last = was.id, None, was, was
        if (update := self.updates.get(job_id)) is not None:
            known, first, last = update
        elif (inserted := self.inserts.get(job_id)) is not None:
            last = inserted
        else:
            known = self._known.get(job_id)
            if known is None or known.seq != was.seq:
                known = self._index.jobs.locate(was)
            if known is None or known.version != was.version:
                return False
        if last.version != was.version:
            return False
        held = None if was.state in ENDED else was.key
        holds = None if job.state in ENDED else job.key
        if held != holds:
            if holds is not None:
                if self._holder(holds) not in (None, was.seq):
                    return False
                self._holders[holds] = was.seq
            if held is not None:
                self._holders[held] = None
        if known is None:
            self.inserts[job_id] = job
        else:
            self.updates[job_id] = known, first, job
        return True

    def _holder(self, key: str) -> int | None:
        """Return the seq of the job that holds a key once the changes so far are applied; None if none does."""
        if key in self._holders:
            return self._holders[key]
        return None if key in self._absent else questions.holder(self._index, key)


def counts_of(jobs: Sequence[Job], updates: Sequence[Update]) -> dict[tuple[str, JobState], int]:
    """Return by how much new jobs and updates change the counts."""
    counts: dict[tuple[str, JobState], int] = {}
    for job in jobs:
        name = job.module, job.state
        counts[name] = counts.get(name, 0) + 1
    for _, was, job in updates:
        name = job.module, job.state
        counts[name] = counts.get(name, 0) + 1
        name = was.module, was.state
        counts[name] = counts.get(name, 0) - 1
    return counts


def write(
    core: Core,
    jobs: Sequence[tuple[int, bytes]],
    changes: Sequence[tuple[int, bytes]],
    counts: dict[tuple[str, JobState], int],
    mark: Mark,
    last_seq: int = 0,
    updates: Sequence[Update] = (),
) -> None:
    """Make rows durable, with what follows from them: counts, and how far the numbers go."""
    database, last_seq, number = core.database, max(core.last_seq, last_seq), core.last_number + len(changes)
    assert database is not None
    uncounted = dict(core.uncounted)
    for name, change in counts.items():
        uncounted[name] = uncounted.get(name, 0) + change
    database.execute("BEGIN IMMEDIATE")
    try:
        if jobs:
            database.executemany("INSERT INTO jobs VALUES (?, ?)", jobs)
        if changes:
            database.executemany("INSERT INTO changes VALUES (?, ?)", changes)
        for known, was, job in updates:
            if was.params is not job.params and was.params != job.params:
                core.records.replace(core.index.base_of(known), job)
        if len(uncounted) > UNCOUNTED_MOST:  # Few are written with the fact, which every commit writes: that saves a page.
            core.write_counts(uncounted)
            uncounted = {}
        deltas = [(module, NUMBER[state], delta) for (module, state), delta in uncounted.items() if delta]
        packed = _pack((core.commits + 1, number, last_seq, mark, deltas))
        database.execute(KEEP_FACT, ("commit", packed, zlib.crc32(packed)))
        if core.is_copy:
            core.keep_fact(copies.MARK, 0)
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")
    core.is_copy, core.mark, core.uncounted = False, mark, uncounted
    core.commits, core.last_number, core.last_seq = core.commits + 1, number, last_seq
    for name, change in counts.items():
        core.counted[name] = core.counted.get(name, 0) + change
        core.in_state[name[1]] += change
    core.rows_since_checkpoint += len(jobs) + len(changes) + 1


def retire(core: Core, retention: Retention, mark: Mark) -> int:
    """Forget jobs in a transaction of their own, behind that of the changes: it may forget those too; return how many."""
    gone = to_forget(core.index, retention, core.in_state)
    if not gone:
        return 0
    records = [record for record, _ in gone]
    rows, places = change_rows(map(pack_forgotten, records), core.last_number)
    counts: dict[tuple[str, JobState], int] = {}
    for _, job in gone:
        counts[job.module, job.state] = counts.get((job.module, job.state), 0) - 1
    try:
        write(core, (), rows, counts, mark)
    except sqlite3.Error as error:
        if not core.is_full(error):
            raise
        core.room.note_full()
        return 0  # What was to be forgotten stays until there is room; the changes are safe.
    forget(core.index, core.sweeper, records, places)
    core.index.conclude(core.commits, core.last_number, core.last_seq)
    return len(gone)


def raise_numbers(core: Core, seq: int, fence: int) -> None:
    """As `Store.raise_numbers`."""
    if os.getpid() != core.pid:
        core.refuse_fork()
    commits, number, last_seq, *rest = core.fact("commit") or (0, 0, 0, None)
    with core.transaction():
        core.keep_fact("commit", (commits, number, max(last_seq, seq), *rest))
        core.keep_fact("epoch", max(core.fact("epoch") or 0, fence >> FENCE_COUNTER_BITS))
    core.last_seq = max(core.last_seq, seq)
