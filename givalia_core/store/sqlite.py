"""The default store: one SQLite file with one connection, one commit a batch, synced before it returns; an index beside it.

What was enqueued and what changed since is appended (`sqlite_records`), so a commit writes as many pages as its bytes fill,
with ten jobs waiting and with ten million. What finds a job by name or time is derived from that and not synced (`index`): it
outlives the process, and is made anew after the machine itself went down. Opening takes the same time whatever a store holds.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgpack

from givalia_core.clock import Mark, boot_id
from givalia_core.errors import StoreFailed, StoreUnfit
from givalia_core.model import ENDED, STORED_STATES, Job, JobState
from givalia_core.store import sqlite_file, sqlite_recovery, sqlite_upgrade
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Commit, Opened, Retention
from givalia_core.store.index.index import Index
from givalia_core.store.index.slots import AT, BASE, VERSION
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite_admission import Admission, Update
from givalia_core.store.sqlite_reads import FULL_CODES, Reads, code_of, ours
from givalia_core.store.sqlite_records import Forgotten, base_rows, change_rows, pack_change, pack_forgotten
from givalia_core.store.sqlite_sweeper import Sweeper

CHECKPOINT_PAGES: Final = 1_000  # Few enough that no commit waits long behind one.
VACUUM_PAGES: Final = 500
CACHE_KIB: Final = 24 << 10
_TRIM_TOUCHED: Final = 1_000  # Jobs that were changed or looked for before it is seen how much of the index is mapped.
_SLOTS_KEPT: Final = 50_000

_PRAGMAS: Final = (
    ("locking_mode", "EXCLUSIVE", "exclusive"),  # Before the log is first touched: its index then stays in memory.
    ("journal_mode", "WAL", "wal"),
    ("synchronous", "FULL", 2),
    ("wal_autocheckpoint", "0", 0),  # An automatic one would hide its errors.
    ("cache_size", str(-CACHE_KIB), -CACHE_KIB),
    ("cell_size_check", "ON", 1),
    ("trusted_schema", "OFF", 0),
    ("fullfsync", "ON" if sys.platform == "darwin" else "OFF", int(sys.platform == "darwin")),
    ("checkpoint_fullfsync", "ON" if sys.platform == "darwin" else "OFF", int(sys.platform == "darwin")),
)

log = logging.getLogger("givalia.store")
_COUNTED = attrgetter("module", "state")
_pack = msgpack.Packer(autoreset=True).pack


class SQLite(Reads):
    """Keeps jobs in one file; see `givalia_core.store.base.Store` for what each method promises."""

    durability = "fsync"
    is_shared = False

    def __init__(self, url: str, *, allow_network: bool = False) -> None:
        """Take `sqlite:///absolute/path` (repeated slashes are one) or `sqlite:relative/path`; nothing is opened yet."""
        super().__init__(_path(url))
        self._allow_network = allow_network
        self._lock: sqlite_file.Lock | None = None
        self._pid = 0
        self._commits = self._last_number = self._last_seq = 0  # As they stand in the file: commits, changes' rows, seqs.
        self._rows_since_checkpoint = 0
        self._pages_per_row = 4.0

    # Opening and closing.

    def open(self, *, unsafe: bool = False) -> Opened:
        sqlite_file.prepare_folder(self.path, allow_network=self._allow_network)
        self._lock = sqlite_file.Lock(self.path.with_name(self.path.name + ".lock"))
        try:
            sqlite_file.prepare(self.path)
            return self._open()
        except BaseException:
            self._let_go()
            raise

    def upgrade(self) -> tuple[int, int]:
        before = sqlite_upgrade.upgrade(self.path)
        self.open()
        self.close()
        return before, sqlite_file.FORMAT

    @ours
    def _open(self) -> Opened:
        self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0)
        for name, value, expected in _PRAGMAS:
            self._set(name, value, expected)
        self._pid = os.getpid()
        # The first look at the log drops what a crash tore off its end: nobody was told that it is safe.
        _, recovered, _ = self._one("PRAGMA wal_checkpoint(PASSIVE)")
        self._ballast.take()
        epoch = self._fact("epoch") or 0
        self._commits, self._last_number, self._last_seq, mark = self._fact("commit") or (0, 0, 0, None)
        rows = self._all("SELECT module, state, jobs FROM counts WHERE jobs > 0")
        self._counted = Counter({(module, STORED_STATES[state]): jobs for module, state, jobs in rows})
        index = self._opened_index = Index(sqlite_file.index_folder(self.path), self._peek, self._ballast.give_up)
        sealed = index.open(epoch, self._commits, boot_id(), self._fact("index"))
        index.begin(epoch + 1, boot_id())
        if sealed is None and self._counted.total():
            log.warning("the index of %s is made anew, for %d jobs", self.path, self._counted.total())
        with _Transaction(self):
            sqlite_recovery.catch_up(index, self._records, sealed)
            if sealed is None:
                self._keep_fact("index", index.name)
        index.conclude(self._commits, self._last_number, self._last_seq)
        self._sweeper = Sweeper(index, self._records, self._last_number, self._last_seq)
        with _Transaction(self):
            self._keep_fact("epoch", epoch + 1)
        index.trim_if_large()
        return Opened(epoch + 1, Mark(*mark) if mark else None, self._last_seq, max(recovered, 0))

    def _set(self, name: str, value: str, expected: str | int) -> None:
        self._one(f"PRAGMA {name} = {value}")
        (actual,) = self._one(f"PRAGMA {name}") or (None,)
        if actual != expected:
            raise StoreUnfit(f"{self.path}: {name} is {actual!r} and will not become {expected!r}")

    def close(self) -> None:
        database, self._database = self._database, None
        if database is not None and os.getpid() == self._pid:
            try:
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                # A commit that failed behind its transaction is filed by the next start, as after a kill.
                if is_whole := self._index.is_whole(self._commits):
                    self._index.seal(self._last_number, self._last_seq)
                self._index.close(sync=is_whole)
            except (sqlite3.Error, OSError) as error:
                self._fail(error)
            finally:
                database.close()
                self._let_go()
        self._let_go()

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
        if self._opened_index is not None:
            self._opened_index.close(sync=False)
            self._opened_index = None
        self._recent, self._less_recent = {}, {}
        for known in (self._slot_of, self._hashes, self._absent):
            known.clear()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Writing.

    @ours
    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        self._refuse_fork()
        self._touched += len(changes)
        admission = Admission(self._index, self._jobs, self._find_slot, self._absent)
        admission.admit(changes)
        jobs = [job for _, job in sorted(admission.inserts.items())]
        updates = list(admission.updates.values())
        rows_of_jobs, bases = base_rows(jobs)
        rows, places = change_rows([pack_change(update.job) for update in updates], self._last_number)
        self._append(rows_of_jobs, rows, _counts(jobs, updates), mark, jobs[-1].seq if jobs else 0, updates)
        for job, base in zip(jobs, bases, strict=True):
            self._insert(job, base)
        for update, place in zip(updates, places, strict=True):
            self._change(update, place)
        self._absent.clear()
        self._hashes.clear()
        self._index.conclude(self._commits, self._last_number, self._last_seq)
        return Commit(tuple(admission.refused), self._retire(retention, mark) if retention is not None else 0)

    def _append(
        self,
        jobs: Sequence[tuple[int, bytes]],
        changes: Sequence[tuple[int, bytes]],
        counts: Counter[tuple[str, JobState]],
        mark: Mark,
        last_seq: int = 0,
        updates: Sequence[Update] = (),
    ) -> None:
        """Make rows durable, with what follows from them: counts, and how far the numbers go."""
        last_seq = max(self._last_seq, last_seq)
        last_number = self._last_number + len(changes)
        if jobs:
            self._index.expect(jobs[0][0])
        at = self._index.slots.at
        with _Transaction(self):
            self._records.append(jobs, changes)
            for slot, was, job in updates:
                if was.params is not job.params and was.params != job.params:
                    self._records.replace(at[slot + BASE], job)
            self._write_counts(counts)
            self._keep_fact("commit", (self._commits + 1, last_number, last_seq, mark))
        self._commits, self._last_number, self._last_seq = self._commits + 1, last_number, last_seq
        self._counted.update(counts)
        self._rows_since_checkpoint += len(jobs) + len(changes) + 1

    def _retire(self, retention: Retention, mark: Mark) -> int:
        """Forget jobs in a transaction of their own, behind that of the changes: it may forget those too."""
        forgotten = self._to_forget(retention)
        if not forgotten:
            return 0
        at = self._index.slots.at
        gone = [pack_forgotten(Forgotten(at[slot], at[slot + VERSION] + 1, slot)) for slot, _ in forgotten]
        rows, places = change_rows(gone, self._last_number)
        counts: Counter[tuple[str, JobState]] = Counter()
        counts.subtract((lane.key[2], JobState(lane.key[1])) for _, lane in forgotten)
        try:
            self._append((), rows, counts, mark)
        except sqlite3.Error as error:
            if code_of(error) not in FULL_CODES:
                raise
            return 0  # What was to be forgotten stays until there is room; the changes are safe.
        for (slot, _), place in zip(forgotten, places, strict=True):
            self._index.forget(slot, place)
            self._sweeper.forget(slot)
            self._let_go_of(slot)
        self._index.conclude(self._commits, self._last_number, self._last_seq)
        return len(forgotten)

    def _insert(self, job: Job, base: int) -> None:
        hashes, key = self._hashes, job.key
        slot = self._index.insert(job, base, hashes.get(job.id), None if key is None else hashes.get(key))
        self._keep(slot, job)
        self._slot_of[job.seq] = slot

    def _change(self, update: Update, place: int) -> None:
        slot, was, job = update
        if before := self._index.slots.at[slot + AT]:
            self._sweeper.past.add_change(before)
        self._index.change(slot, was, job, place)
        self._keep(slot, job)
        if job.state in ENDED:
            self._slot_of.pop(job.seq, None)

    def _find_slot(self, was: Job) -> int | None:
        slot = self._slot_of.get(was.seq)
        if slot is not None and self._index.slots.at[slot] == was.seq and self._index.is_there(slot):
            return slot
        return self._index.slot_of(was, self._hashes.get(was.id))

    @ours
    def raise_numbers(self, seq: int, fence: int) -> None:
        self._refuse_fork()
        commits, number, last_seq, mark = self._fact("commit") or (0, 0, 0, None)
        with _Transaction(self):
            self._keep_fact("commit", (commits, number, max(last_seq, seq), mark))
            self._keep_fact("epoch", max(self._fact("epoch") or 0, fence >> FENCE_COUNTER_BITS))
        self._last_seq = max(self._last_seq, seq)

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise StoreFailed("the store was opened by another process; a fork may not use it")

    def _write_counts(self, counts: Counter[tuple[str, JobState]]) -> None:
        deltas = [(module, NUMBER[state], delta) for (module, state), delta in counts.items() if delta]
        if deltas:
            self._connection.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs", deltas
            )

    def _keep_fact(self, name: str, value: Any) -> None:
        packed = _pack(value)
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed)))

    # Housekeeping: none of it in the way of an answer.

    def tidy(self) -> None:
        try:
            if len(self._slot_of) > _SLOTS_KEPT:
                self._slot_of.clear()
            if self._sweeper.has_work:
                with _Transaction(self):
                    swept = self._sweeper.write()
                self._sweeper.drop(swept)
                self._rows_since_checkpoint += swept.rows
                for slot, _ in swept.jobs:
                    self._let_go_of(slot)
            self._sweeper.look()
            if self._touched >= _TRIM_TOUCHED:
                self._touched = 0
                self._index.trim_if_large()
            if self._rows_since_checkpoint * self._pages_per_row >= CHECKPOINT_PAGES:
                self._checkpoint()
                (free,) = self._one("PRAGMA freelist_count")
                (pages,) = self._one("PRAGMA page_count")
                if free > 10 * VACUUM_PAGES and free * 4 > pages:
                    # Not `execute`, which would stop at the first page.
                    self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
        except sqlite3.Error as error:
            if code_of(error) in FULL_CODES:
                # The log keeps what could not be copied back; the reserve makes room to go on settling.
                self._ballast.give_up()
                return
            self._fail(error)
        except OSError as error:
            self._fail(error)

    def _checkpoint(self) -> None:
        """Copy the log back into the file; the log is then written again from its start, not truncated."""
        _, pages, _ = self._one("PRAGMA wal_checkpoint(PASSIVE)")
        if self._rows_since_checkpoint and pages > 0:
            self._pages_per_row = max(pages / self._rows_since_checkpoint, 0.05)
        self._rows_since_checkpoint = 0

    def has_room(self) -> bool:
        return self._ballast.take()


def _counts(jobs: Iterable[Job], updates: Iterable[Update]) -> Counter[tuple[str, JobState]]:
    """By how much the counts change."""
    counts = Counter(map(_COUNTED, jobs))
    counts.update(map(_COUNTED, [update.job for update in updates]))
    counts.subtract(map(_COUNTED, [update.was for update in updates]))
    return counts


class _Transaction:
    """Begin, then commit or roll back; a rollback that fails leaves the first error standing."""

    def __init__(self, store: SQLite) -> None:
        self._store = store

    def __enter__(self) -> None:
        self._store._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        database = self._store._connection
        try:
            if kind is None:
                database.execute("COMMIT")
        finally:
            if database.in_transaction:
                database.execute("ROLLBACK")


def _path(url: str) -> Path:
    rest = url.removeprefix("sqlite:")
    if rest.startswith("//"):
        rest = "/" + rest.lstrip("/")
    if not rest or rest.endswith("/"):
        raise StoreUnfit(f"{url} names no file")
    return Path(unquote(rest)).absolute()
