"""The default store: one SQLite file with one connection, one commit a batch, synced before it returns; an index beside it.

What was enqueued and what changed since is appended (`records`), so a commit writes as many pages as its bytes fill,
with ten jobs waiting and with ten million. What finds a job by name or time is derived from that and not synced (`index`): it
outlives the process. The store rebuilds it after the machine itself went down, and when it is not what was written. Opening
takes the same time whatever a store holds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import sqlite3
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgpack

from givalia_core import forks
from givalia_core.clock import Mark, SystemClock, boot_id
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreMissing, StoreUnfit
from givalia_core.model import ENDED, STORED_STATES, Job, JobState
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Commit, CopyPart, Opened, Retention
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite import copies, disk, recovery
from givalia_core.store.sqlite.admission import Admission, Update
from givalia_core.store.sqlite.copying import Copies
from givalia_core.store.sqlite.index.index import DAMAGED, Index, Sealed
from givalia_core.store.sqlite.index.lanes import Lane
from givalia_core.store.sqlite.index.scrub import Scrub
from givalia_core.store.sqlite.index.slots import AT, Place
from givalia_core.store.sqlite.index.words import FULL_ERRNOS, Damaged
from givalia_core.store.sqlite.reads import Reads, Unfiled, ours
from givalia_core.store.sqlite.records import Forgotten, base_rows, change_rows, pack_change, pack_forgotten
from givalia_core.store.sqlite.sweeper import Sweeper
from givalia_core.store.sqlite.upgrade import upgrade as upgrade_format

CHECKPOINT_PAGES: Final = 1_000  # Few enough that no commit waits long behind one.
VACUUM_PAGES: Final = 500
CACHE_KIB: Final = 24 << 10
_TRIM_TOUCHED: Final = 1_000  # Jobs that were changed or looked for before it is seen how much of the index is mapped.
_SLOTS_KEPT: Final = 50_000
_EMPTY_COUNTS_MOST: Final = 1_000
_UNCOUNTED_MOST: Final = 12  # Counts whose changes are written with each commit and not in their table.
_SCRUB_AT_START_S: Final = 0.1
_DAMAGES_KEPT: Final = 100

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

Counts = Mapping[tuple[str, JobState], int]

log = logging.getLogger("givalia.store")
_left_open: list[sqlite3.Connection] = []
_COUNTED = attrgetter("module", "state")
_pack = msgpack.Packer(autoreset=True).pack


class SQLite(Reads):
    """Keeps jobs in one file; see `givalia_core.store.base.Store` for what each method promises."""

    is_shared = False

    def __init__(self, url: str, *, allow_network: bool = False, create: bool = True, may_upgrade: bool = False) -> None:
        """Take `sqlite:///absolute/path` (repeated slashes are one) or `sqlite:relative/path`; nothing is opened yet.

        Args:
            url: The URL of the store.
            allow_network: Whether its folder may lie on a network file system.
            create: Whether `open` may make a store where there is none.
            may_upgrade: Whether `open` may bring a store of an earlier format to this one.
        """
        super().__init__(_path(url))
        self._may_create = create
        self._may_upgrade = may_upgrade
        self._allow_network = allow_network
        self._lock: disk.Lock | None = None
        self._pid = 0
        self._commits = self._last_number = self._last_seq = 0  # As they stand in the file: commits, changes' rows, seqs.
        self._mark: Mark | None = None
        self._uncounted: Counts = {}  # Changes of counts that are not in their table.
        self._rows_since_checkpoint = 0
        self._pages_per_row = 4.0
        self._epoch = 0
        self._copies = Copies()
        self._is_copy = False  # Whether it is a copy of another store, and nothing was committed since.
        self._looked_s = 0.0  # When it was last looked whether the files are still there.

    # Opening and closing.

    @ours
    def open(self, *, unsafe: bool = False) -> Opened:
        disk.prepare_folder(self.path, allow_network=self._allow_network)
        self._lock = disk.Lock(self.path.with_name(self.path.name + ".lock"))
        forks.register(self)
        try:
            upgrade_format(self.path, may_upgrade=self._may_upgrade)
            self._files.is_new = disk.prepare(self.path, may_create=self._may_create)
            is_in_memory = disk.filesystem(self.path.parent) in disk.MEMORY_FILESYSTEMS
            self.durability = "memory" if is_in_memory else "fsync"
            return self._open()
        except BaseException:
            self._let_go()
            raise

    @ours
    def upgrade(self) -> tuple[int, int]:
        if not self.path.exists():
            raise StoreMissing(f"there is no store at {self.path}")
        disk.check_header(self.path, least=1)
        before = disk.format_of(self.path)
        settled, self._may_upgrade = self._may_upgrade, True
        try:
            self.open()
            self.close()
        finally:
            self._may_upgrade = settled
        return before, disk.FORMAT

    @ours
    def _open(self) -> Opened:
        log_path = Path(f"{self.path}-wal")
        has_log = log_path.exists() and log_path.stat().st_size > 0
        if has_log and copies.is_as_it_was_made(self.path):
            log.warning("%s is the log of another store: a copy has taken its place. It is removed", log_path)
            log_path.unlink()
            has_log = False
        if not log_path.exists():
            # If there is no room for another file, SQLite would not say why it cannot open one.
            os.close(os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        # Until the file has been read: a start that fails must not take away a log that may be needed.
        self._is_said_open = has_log
        self._pid = os.getpid()
        self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0)
        for name, value, expected in _PRAGMAS:
            self._set(name, value, expected)
        self._damages, self._rebuilds = [], 0
        # The first look at the log drops what a crash tore off its end: nobody was told that it is safe.
        epoch = self._fact("epoch") or 0
        if not has_log and self._fact("open") == epoch != 0:
            raise StoreCorrupt(
                f"{self.path} was not closed by its last server, and its log ({self.path.name}-wal) is missing or empty: what"
                f" was in it is lost. {disk.way_out(self.path)}"
            )
        self._is_said_open = self._fact("open") == epoch != 0
        self._room.take()
        recovered = self._first_checkpoint()
        self._commits, self._last_number, self._last_seq, mark, *changes = self._fact("commit") or (0, 0, 0, None)
        self._mark = Mark(*mark) if mark else None
        self._read_counts(changes[0] if changes else ())
        self._quarantine.open()
        self._epoch = epoch + 1
        self._is_copy = bool(copied := self._fact(copies.MARK))
        if self._is_copy and self._fact(copies.COMMITS) in (None, self._commits):
            # Else a server of an earlier version, which leaves the mark, has used it.
            self._epoch = max(self._epoch, self._epoch_of_copy(*copied))
        index = self._opened_index = Index(disk.index_folder(self.path), self._peek, self._room.note_full)
        sealed = index.open(epoch, self._commits, boot_id(), self._fact("index"))
        if index.ahead:
            self._say_commits_are_missing(index.ahead)
        if sealed is not None:
            index.begin(self._epoch, boot_id())
        if sealed is None or not self._has_replayed(index, sealed):
            if index.strangeness.startswith(DAMAGED) and index.is_sure:
                self._damages.append(f"the index was damaged, and has been rebuilt: {index.strangeness}")
            self._rebuild(index.strangeness)
        else:
            self._settle_in()
        self._write_or_make_room(self._keep_epoch)
        # SQLite syncs the folder too when it makes the log, and hides what went wrong.
        disk.sync(self.path.parent)
        self._files.open()
        self._first_checkpoint()  # From now on the file alone says that it has a log.
        self._mending(lambda: self._scrub.go_on(_SCRUB_AT_START_S))
        index.trim_if_large()
        return Opened(self._epoch, self._mark, self._last_seq, max(recovered, 0), self._files.is_new)

    def _epoch_of_copy(self, made_us: int, marked: int) -> int:
        """Say that the store is a copy, drop an index that is not its own, and return where its epochs begin."""
        epoch = copies.first_epoch(made_us, marked, SystemClock().read().wall_us)
        log.warning("%s: %s", self.path, copies.words(made_us, epoch))
        if self._fact("index") == 0:
            shutil.rmtree(disk.index_folder(self.path), ignore_errors=True)
        return epoch

    def _say_commits_are_missing(self, commits: int) -> None:
        words = (
            f"the newest commits are missing, {commits} that the index knows of: the log ({self.path.name}-wal) was damaged, or"
            f" the store is an older copy"
        )
        log.error("%s: %s", self.path, words)
        self._damages.append(words)

    def _keep_epoch(self) -> None:
        self._is_said_open = True
        self._connection.execute(f"PRAGMA user_version = {disk.FORMAT}")
        self._keep_fact("epoch", self._epoch)
        self._keep_fact("open", self._epoch)

    def _first_checkpoint(self) -> int:
        """Copy back what is in the log; returns how many pages that is."""
        try:
            _, recovered, _ = self._one("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise
            self._room.note_full()  # The log keeps what could not be copied back.
            return 0
        return int(recovered)

    def _read_counts(self, changes: Iterable[tuple[str, int, int]]) -> None:
        """Read the counts of the table, and add by how much they have changed since."""
        rows = [*self._all("SELECT module, state, jobs FROM counts"), *changes]
        if any(not 0 <= state < len(STORED_STATES) for _, state, _ in rows):
            raise StoreCorrupt(f"{self.path}: the stored counts name a state that no job can have")
        counts: Counter[tuple[str, JobState]] = Counter()
        for module, state, jobs in rows:
            counts[module, STORED_STATES[state]] += jobs
        self._count_from(+counts)
        self._uncounted = {(module, STORED_STATES[state]): change for module, state, change in changes}

    def _write_or_make_room(self, write: Callable[[], None]) -> None:
        """Do this in a transaction; if the disk is full, once more with the reserve given up."""
        try:
            with _Transaction(self):
                write()
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise
            self._room.note_full()
            with _Transaction(self):
                write()

    def _has_replayed(self, index: Index, sealed: Sealed) -> bool:
        """File in the index what the last run did since the last seal; False if something about that is strange."""
        try:
            recovery.replay(index, self._records, sealed)
        except (Damaged, StoreCorrupt, IndexError) as error:
            index.strangeness = f"{DAMAGED}: {error}"
            return False
        index.conclude(self._commits, self._last_number, self._last_seq)
        return True

    def _settle_in(self) -> None:
        """Begin with an index that is in step with the records."""
        self._sweeper = Sweeper(self._index, self._records, self._last_number, self._last_seq)
        self._scrub = Scrub(self._index)

    def _rebuild(self, why: str) -> None:
        """Replace the index by one that is made from the records, which are read from the first to the last."""
        self._refuse_disorder()
        self._forget_memory()
        index, jobs = self._index, self._counted.total()
        if jobs:
            log.warning("the index of %s is rebuilt from the records, %d jobs: %s", self.path, jobs, why)
        bad: list[tuple[Place, str]] = []

        def remake() -> None:
            index.remake(boot_id())
            index.begin(self._epoch, boot_id())

        def write() -> None:
            rebuild = recovery.Rebuild(index, self._records, lambda place, why: bad.append((place, why)))
            counts = rebuild.run(remake)
            for place, reason in bad:
                if place.seq:
                    self._quarantine.add(place, reason)
            self._correct_counts(counts)
            self._keep_fact("index", index.name)

        with _Transaction(self):
            write()
        for place, reason in bad:
            log.error("job %s of %s is set aside: %s", place.seq or "?", self.path, reason)
        index.conclude(self._commits, self._last_number, self._last_seq)
        self._rebuilds += 1
        self._settle_in()

    def _correct_counts(self, counts: Counter[tuple[str, JobState]]) -> None:
        before = {name: count for name, count in self._counted.items() if count}
        if before != dict(counts):
            log.error(
                "%s: the records have %d jobs, the stored counts had %d: the counts are corrected",
                self.path, counts.total(), self._counted.total(),
            )  # fmt: skip
            self._connection.execute("DELETE FROM counts")
            self._write_counts(counts)
            self._uncounted = {}
            self._keep_fact("commit", (self._commits, self._last_number, self._last_seq, self._mark))
            self._count_from(counts)

    def _count_from(self, counts: Mapping[tuple[str, JobState], int]) -> None:
        self._counted, self._in_state = Counter(counts), Counter()
        for (_, state), jobs in counts.items():
            self._in_state[state] += jobs

    def _drop_empty_counts(self) -> None:
        """Let go of the counts of modules that have no job any more, if they are many."""
        if len(self._counted) - _EMPTY_COUNTS_MOST > len(self._index.targets) * len(STORED_STATES):
            with _Transaction(self):
                self._connection.execute("DELETE FROM counts WHERE jobs = 0")
            self._counted = Counter({name: jobs for name, jobs in self._counted.items() if jobs})

    def _mend(self, error: Exception) -> None:
        del self._damages[_DAMAGES_KEPT:]
        why = str(error) or type(error).__name__
        if self._index.is_sure:
            self._damages.append(f"the index was damaged, and has been rebuilt: {why}")
        self._rebuild(why)

    def _set(self, name: str, value: str, expected: str | int) -> None:
        self._one(f"PRAGMA {name} = {value}")
        (actual,) = self._one(f"PRAGMA {name}") or (None,)
        if actual != expected:
            raise StoreUnfit(f"{self.path}: {name} is {actual!r} and will not become {expected!r}")

    def after_fork(self) -> None:
        """In a fork: close every file without writing to it, and never close the connection of SQLite.

        SQLite does not know that it was forked: closing the connection would remove the log under the parent.
        """
        self._unfiled = None
        database, self._database = self._database, None
        if database is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(database))  # The end of the interpreter does not close it either.
        self._let_go()

    def close(self) -> None:
        if self._unfiled is not None:
            try:
                self._catch_up()
            except BaseException:
                self._let_go()
                raise
        database, self._database = self._database, None
        if database is not None:
            try:
                if self._has_said_closed(database):
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                    self._close_index()
            except (sqlite3.Error, OSError) as error:
                self._fail(error)
            finally:
                self._database = database
                self._let_go()
        self._let_go()

    def _has_said_closed(self, database: sqlite3.Connection) -> bool:
        """Write down that the store is closed, so that nobody looks for its log; False if the disk has no room for that."""
        if not self._is_said_open:
            return True
        for _ in range(2):
            try:
                database.execute("BEGIN IMMEDIATE")
                self._keep_fact("open", 0, database)
                database.execute("COMMIT")
                self._is_said_open = False
                return True
            except sqlite3.Error as error:
                if not self._is_full(error):
                    raise
                if database.in_transaction:
                    database.execute("ROLLBACK")
                self._room.note_full()
        return False

    def _close_database(self, database: sqlite3.Connection) -> None:
        """Close the database, unless the file says that it has a log: closing it would remove that, and it would be missed."""
        with suppress(sqlite3.Error):
            if self._has_said_closed(database):
                database.close()
                return
        _left_open.append(database)

    def _close_index(self) -> None:
        """Close the index, whole if that can be. What a failed commit or a full disk kept out of it the next start files."""
        is_whole = self._index.is_whole(self._commits) and self._index.names.is_whole
        if is_whole:
            try:
                self._index.seal(self._last_number, self._last_seq)
            except Damaged as error:
                log.warning("the index of %s is rebuilt at the next start: %s", self.path, error)
                is_whole = False
            except OSError as error:
                if error.errno not in FULL_ERRNOS:
                    raise
                is_whole = False
        self._index.close(sync=is_whole)

    def _forget_memory(self) -> None:
        """Drop what is known of the index and of the jobs in it."""
        self._unfiled = None
        self._recent, self._less_recent = {}, {}
        self._bad.clear()
        for known in (self._slot_of, self._hashes, self._absent):
            known.clear()

    def _let_go(self) -> None:
        self._copies.forget()
        database, self._database = self._database, None
        if database is not None:
            self._close_database(database)
        if self._opened_index is not None:
            self._opened_index.close(sync=False)
            self._opened_index = None
        self._forget_memory()
        self._files.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        forks.unregister(self)

    # Writing.

    @ours
    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        self._refuse_fork()
        self._touched += len(changes)
        try:
            admission = self._admitted(changes)
        except (Damaged, IndexError) as error:
            self._mend(error)
            admission = self._admitted(changes)
        jobs = [job for _, job in sorted(admission.inserts.items())]
        updates = list(admission.updates.values())
        # There is room in the index for a commit before it is accepted: afterwards a full disk must not be met.
        index = self._index
        if jobs:
            index.slots.secure(len(jobs))
        lane_of = index.lane_of
        lanes = [lane_of(job) for job in jobs] + [lane_of(update.job) for update in updates]
        rows_of_jobs, bases = base_rows(jobs)
        rows, places = change_rows([pack_change(update.job) for update in updates], self._last_number)
        self._files.look_if_news()
        self._append(rows_of_jobs, rows, _counts(jobs, updates), mark, jobs[-1].seq if jobs else 0, updates)
        self._unfiled = Unfiled(jobs, bases, updates, places, lanes)
        forgotten = self._mending(lambda: self._retire(retention, mark)) if retention is not None else 0
        return Commit(tuple(admission.refused), forgotten)

    @ours
    def _catch_up(self) -> None:
        # A kill before this is made good by the next start: all that follows the last seal is read again.
        assert self._unfiled is not None
        (jobs, bases, updates, places, lanes), self._unfiled = self._unfiled, None
        try:
            self._sweeper.past.wrote(places, [update.was.seq for update in updates])
            index, hashes = self._index, self._hashes
            for job, base, lane in zip(jobs, bases, lanes[: len(jobs)], strict=True):
                key = job.key
                slot = index.insert(job, base, hashes.get(job.id), None if key is None else hashes.get(key), lane)
                self._keep(slot, job)
                self._slot_of[job.seq] = slot
            for update, place, lane in zip(updates, places, lanes[len(jobs) :], strict=True):
                self._change(index, update, place, lane)
            index.conclude(self._commits, self._last_number, self._last_seq)
        except (Damaged, IndexError) as error:
            self._mend(error)  # From the records, which have this commit.
        self._absent.clear()
        self._hashes.clear()

    def _admitted(self, changes: Sequence[Change]) -> Admission:
        admission = Admission(self._index, self._jobs, self._find_slot, self._absent)
        admission.admit(changes)
        return admission

    def _append(
        self,
        jobs: Sequence[tuple[int, bytes]],
        changes: Sequence[tuple[int, bytes]],
        counts: Counts,
        mark: Mark,
        last_seq: int = 0,
        updates: Sequence[Update] = (),
    ) -> None:
        """Make rows durable, with what follows from them: counts, and how far the numbers go."""
        last_seq = max(self._last_seq, last_seq)
        last_number = self._last_number + len(changes)
        if jobs:
            self._index.expect(jobs[0][0])
        base_of = self._index.slots.base
        with _Transaction(self):
            self._records.append(jobs, changes)
            for slot, was, job in updates:
                if was.params is not job.params and was.params != job.params:
                    self._records.replace(base_of(slot), job)
            uncounted = self._add_to_uncounted(counts)
            self._keep_fact("commit", (self._commits + 1, last_number, last_seq, mark, _deltas(uncounted)))
            if self._is_copy:
                self._keep_fact(copies.MARK, 0)
        self._is_copy = False
        self._commits, self._last_number, self._last_seq = self._commits + 1, last_number, last_seq
        self._mark, self._uncounted = mark, uncounted
        for name, change in counts.items():
            self._counted[name] += change
            self._in_state[name[1]] += change
        self._rows_since_checkpoint += len(jobs) + len(changes) + 1

    def _retire(self, retention: Retention, mark: Mark) -> int:
        """Forget jobs in a transaction of their own, behind that of the changes: it may forget those too."""
        forgotten = self._to_forget(retention)
        if not forgotten:
            return 0
        versions = self._index.slots.version
        gone = [pack_forgotten(Forgotten(job.seq, versions(slot) + 1, slot)) for slot, job in forgotten]
        rows, places = change_rows(gone, self._last_number)
        counts: Counter[tuple[str, JobState]] = Counter()
        counts.subtract((job.module, job.state) for _, job in forgotten)
        try:
            self._append((), rows, counts, mark)
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise
            self._room.note_full()
            return 0  # What was to be forgotten stays until there is room; the changes are safe.
        self._sweeper.past.wrote(places, [job.seq for _, job in forgotten])
        for (slot, _), place in zip(forgotten, places, strict=True):
            self._index.forget(slot, place)
            self._sweeper.forget(slot)
            self._let_go_of(slot)
        self._index.conclude(self._commits, self._last_number, self._last_seq)
        return len(forgotten)

    def _change(self, index: Index, update: Update, place: int, lane: Lane) -> None:
        slot, was, job = update
        if before := index.slots.at[slot + AT]:
            self._sweeper.change(before, job.seq)
        index.change(slot, was, job, place, lane)
        self._keep(slot, job)
        if job.state in ENDED:
            self._slot_of.pop(job.seq, None)

    def _find_slot(self, was: Job) -> int | None:
        slot, index = self._slot_of.get(was.seq), self._index
        if slot is not None and index.slots.at[slot] == was.seq and index.is_there(slot):
            return slot
        return index.slot_of(was, self._hashes.get(was.id))

    @ours
    def raise_numbers(self, seq: int, fence: int) -> None:
        self._refuse_fork()
        commits, number, last_seq, *rest = self._fact("commit") or (0, 0, 0, None)
        with _Transaction(self):
            self._keep_fact("commit", (commits, number, max(last_seq, seq), *rest))
            self._keep_fact("epoch", max(self._fact("epoch") or 0, fence >> FENCE_COUNTER_BITS))
        self._last_seq = max(self._last_seq, seq)

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise StoreFailed("the store was opened by another process; a fork may not use it")

    def _add_to_uncounted(self, counts: Counts) -> Counts:
        """Return the changes of counts that are not in the table, with these added; if they are many, write them to the table.

        Few are written with the fact of the commit, which every commit writes: that saves a page.
        """
        uncounted = dict(self._uncounted)
        for name, change in counts.items():
            uncounted[name] = uncounted.get(name, 0) + change
        if len(uncounted) <= _UNCOUNTED_MOST:
            return uncounted
        self._write_counts(uncounted)
        return {}

    def _write_counts(self, counts: Counts) -> None:
        if deltas := _deltas(counts):
            self._connection.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs", deltas
            )

    def _keep_fact(self, name: str, value: Any, database: sqlite3.Connection | None = None) -> None:
        packed = _pack(value)
        (database or self._connection).execute(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed))
        )

    # Copies.

    @ours
    def copy_part(self, backup: bytes, part: int) -> CopyPart:
        return self._copies.part(self._connection, backup, part, self._counted.total())

    # Housekeeping: none of it in the way of an answer.

    @ours
    def tidy(self) -> None:
        if self._unfiled is not None:
            self._catch_up()
        if len(self._slot_of) > _SLOTS_KEPT:
            self._slot_of.clear()
        now = time.monotonic()
        is_second_over = now - self._looked_s >= 1.0
        if is_second_over:
            self._looked_s = now
            self._files.look()
            if self._lock is not None:
                self._lock.look()
            self._copies.look()
        try:
            try:
                self._sweep()
                if is_second_over:
                    self._scrub.step(is_quiet=False)
            except (Damaged, IndexError) as error:
                self._mend(error)
            if self._bad:
                self._mending(self._set_bad_aside)
            if self._touched >= _TRIM_TOUCHED:
                self._touched = 0
                self._index.trim_if_large()
            if self._rows_since_checkpoint * self._pages_per_row >= CHECKPOINT_PAGES:
                self._checkpoint()
                self._vacuum()
                self._drop_empty_counts()
        except sqlite3.Error as error:
            if not self._is_full(error):
                raise
            # The log keeps what could not be copied back; the reserve makes room to go on settling.
            self._room.note_full()

    @ours
    def rest(self) -> None:
        self._mending(lambda: self._scrub.step(is_quiet=True))

    def _sweep(self) -> None:
        if self._sweeper.has_work:
            with _Transaction(self):
                swept = self._sweeper.write()
            self._sweeper.drop(swept)
            self._rows_since_checkpoint += swept.rows
            for slot, _ in swept.jobs:
                self._let_go_of(slot)
        self._sweeper.look()

    def _vacuum(self) -> None:
        (free,) = self._one("PRAGMA freelist_count")
        (pages,) = self._one("PRAGMA page_count")
        if free > 10 * VACUUM_PAGES and free * 4 > pages:
            # Not `execute`, which would stop at the first page.
            self._connection.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")

    def _set_bad_aside(self) -> None:
        """Move the jobs whose records were found bad into quarantine, so that the others go on."""
        bad, self._bad = self._bad, {}
        for slot, why in bad.items():
            job = self._index.slots.place(slot)
            if not job.seq:
                continue
            lane = self._index.lanes.filed(slot)
            with _Transaction(self):
                self._quarantine.add(job, why)
                self._keep_fact("index", 0)  # How the counts change is known when the next start reads every record.
            self._index.slots.free(slot)
            self._slot_of.pop(job.seq, None)
            self._let_go_of(slot)
            log.error(
                "job %d of %s (%s) is set aside: %s; givalia store check lists what is in quarantine",
                job.seq, self.path, " ".join(map(str, lane.key)), why,
            )  # fmt: skip

    def _checkpoint(self) -> None:
        """Copy the log back into the file; the log is then written again from its start, not truncated."""
        _, pages, _ = self._one("PRAGMA wal_checkpoint(PASSIVE)")
        if self._rows_since_checkpoint and pages > 0:
            self._pages_per_row = max(pages / self._rows_since_checkpoint, 0.05)
        self._rows_since_checkpoint = 0

    @property
    def is_full(self) -> bool:
        return self._room.is_full

    def has_room(self) -> bool:
        return self._room.take()


def _deltas(counts: Counts) -> list[tuple[str, int, int]]:
    """Counts as they are stored, those that are none left out."""
    return [(module, NUMBER[state], delta) for (module, state), delta in counts.items() if delta]


def _counts(jobs: Sequence[Job], updates: Sequence[Update]) -> Counts:
    """By how much the counts change."""
    counts: dict[tuple[str, JobState], int] = dict(Counter(map(_COUNTED, jobs))) if jobs else {}
    if updates:
        # A job stays with its module unless it is replaced, so that most updates are of a few kinds.
        kinds = Counter([(was.module, was.state, job.module, job.state) for _, was, job in updates])
        for (before, was, after, state), times in kinds.items():
            counts[after, state] = counts.get((after, state), 0) + times
            counts[before, was] = counts.get((before, was), 0) - times
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
