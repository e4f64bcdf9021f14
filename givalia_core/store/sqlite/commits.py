"""A commit of the SQLite store: which of its changes are admitted, and how they become durable.

Each change is checked against the jobs in the store and the changes before it.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgpack

from givalia_core.clock import Mark
from givalia_core.model import ENDED, Job, JobState
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Retention
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite import copies
from givalia_core.store.sqlite.core import KEEP_FACT, Core, Counts
from givalia_core.store.sqlite.index import Index, Update, forget, questions, to_forget
from givalia_core.store.sqlite.records import change_rows, pack_forgotten

UNCOUNTED_MOST: Final = 12  # So many changed counts are written with each commit, and not in their table.
_NEWS_BYTES: Final = 16 << 10
_pack = msgpack.Packer(autoreset=True).pack


class Admission:
    """The jobs as the admitted changes make them, by id; `refused` has the places of the other changes."""

    def __init__(self, index: Index, absent: dict[bytes | str, int], changes: Iterable[Change]) -> None:
        """Admit or refuse these changes, in their order. No job has any of the names in `absent`."""
        self.inserts: dict[bytes, Job] = {}
        self.updates: dict[bytes, Update] = {}
        self.refused: list[int] = []
        self.counts: dict[tuple[str, JobState], int] = {}  # By how much they change.
        self._index, self._absent = index, absent
        self._holders: dict[str, int | None] = {}  # By key: the seq of its holder after the changes so far.
        for place, (was, job) in enumerate(changes):
            if not (self._insert(job) if was is None else self._update(was, job)):
                self.refused.append(place)
                continue
            name = job.module, job.state
            self.counts[name] = self.counts.get(name, 0) + 1
            if was is not None:
                name = was.module, was.state
                self.counts[name] = self.counts.get(name, 0) - 1

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
        known, first, last = self.updates.get(was.id) or (None, was, self.inserts.get(was.id))
        if last is None:
            known, last = self._index.jobs.by_id.get(was.id), was
            if known is None or known.seq != was.seq:
                known = self._index.jobs.locate(was)
            if known is None or known.version != was.version:
                return False
        if last.version != was.version or not self._moves_key(was, job):
            return False
        if known is None:
            self.inserts[was.id] = job
        else:
            self.updates[was.id] = known, first, job
        return True

    def _moves_key(self, was: Job, job: Job) -> bool:
        """Let a job hold its present key only; return False if another job holds that key."""
        held = None if was.state in ENDED else was.key
        holds = None if job.state in ENDED else job.key
        if held != holds:
            if holds is not None and self._holder(holds) not in (None, was.seq):
                return False
            if held is not None:
                self._holders[held] = None
            if holds is not None:
                self._holders[holds] = was.seq
        return True

    def _holder(self, key: str) -> int | None:
        """Return the seq of the job that holds a key once the changes so far are applied; None if none does."""
        if key in self._holders:
            return self._holders[key]
        return None if key in self._absent else questions.holder(self._index, key)


class Rows(NamedTuple):
    """The rows that a transaction appends, and the changes that follow from them."""

    jobs: Sequence[tuple[int, bytes]]
    changes: Sequence[tuple[int, bytes]]
    counts: dict[tuple[str, JobState], int]  # By how much they change.
    last_seq: int = 0
    replaced: Sequence[tuple[int, Job]] = ()  # Places of enq records, and their jobs with other params.


def refuse_moved(core: Core) -> None:
    """Refuse to write to a file that is gone; check that if the system reports changed names, or cannot report them."""
    try:
        has_news = core.files.news_fd < 0 or os.read(core.files.news_fd, _NEWS_BYTES)
    except BlockingIOError:
        return
    if has_news:
        core.files.look()


def write(core: Core, rows: Rows, mark: Mark) -> None:
    """Make rows durable, with the counts and the last numbers that follow from them."""
    database = core.database
    assert database is not None
    database.execute("BEGIN IMMEDIATE")
    try:
        database.executemany("INSERT INTO jobs VALUES (?, ?)", rows.jobs)
        database.executemany("INSERT INTO changes VALUES (?, ?)", rows.changes)
        for base, job in rows.replaced:
            core.records.replace(base, job)
        ahead = _ahead(core, database, rows, mark)
        database.execute("COMMIT")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")
    core.commits, core.last_number, core.last_seq, core.mark, core.uncounted = ahead
    core.is_copy = False
    core.rows_since_checkpoint += len(rows.jobs) + len(rows.changes) + 1
    for name, change in rows.counts.items():
        core.counted[name] = core.counted.get(name, 0) + change
        core.in_state[name[1]] += change


def _ahead(core: Core, database: sqlite3.Connection, rows: Rows, mark: Mark) -> tuple[int, int, int, Mark, Counts]:
    """Write the fact of the commit, within its transaction; return the numbers, mark and counts after the commit."""
    number, last_seq = core.last_number + len(rows.changes), max(core.last_seq, rows.last_seq)
    uncounted = dict(core.uncounted)
    for name, change in rows.counts.items():
        uncounted[name] = uncounted.get(name, 0) + change
    if len(uncounted) > UNCOUNTED_MOST:  # A few go into the fact that every commit writes: that saves a page.
        core.write_counts(uncounted)
        uncounted = {}
    deltas = [(module, NUMBER[state], delta) for (module, state), delta in uncounted.items() if delta]
    packed = _pack((core.commits + 1, number, last_seq, mark, deltas))
    database.execute(KEEP_FACT, ("commit", packed, zlib.crc32(packed)))
    if core.is_copy:
        core.keep_fact(copies.MARK, 0)
    return core.commits + 1, number, last_seq, mark, uncounted


def retire(core: Core, retention: Retention, mark: Mark) -> int:
    """Forget jobs, which may be among those just changed, in a transaction after that of the changes; return how many."""
    gone = to_forget(core.index, retention, core.in_state)
    if not gone:
        return 0
    records = [record for record, _ in gone]
    rows, places = change_rows([pack_forgotten(record) for record in records], core.last_number)
    counts: dict[tuple[str, JobState], int] = {}
    for _, job in gone:
        counts[job.module, job.state] = counts.get((job.module, job.state), 0) - 1
    try:
        write(core, Rows((), rows, counts), mark)
    except sqlite3.Error as error:
        if not core.is_full(error):
            raise
        core.room.note_full()
        return 0  # The jobs stay until there is room; the changes are safe.
    forget(core.index, core.sweeper, records, places)
    core.index.conclude(core.commits, core.last_number, core.last_seq)
    return len(gone)


def raise_numbers(core: Core, seq: int, fence: int) -> None:
    """Raise the numbers, as `Store.raise_numbers`."""
    commits, number, last_seq, *rest = core.fact("commit") or (0, 0, 0, None)
    with core.transaction():
        core.keep_fact("commit", (commits, number, max(last_seq, seq), *rest))
        core.keep_fact("epoch", max(core.fact("epoch") or 0, fence >> FENCE_COUNTER_BITS))
    core.last_seq = max(core.last_seq, seq)
