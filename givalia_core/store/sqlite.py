"""The default store: one SQLite file, one connection, one commit a batch, synced before it returns.

The jobs are rows appended in the order of enq. What finds them is indexes, each of which holds only the jobs it is for: due
times of waiting jobs by route and priority, the few that run, the ended ones by when they are forgotten. Rows carry a
checksum over all they say. Nothing scans: opening takes the same time with ten jobs and with ten million.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import msgpack

from givalia_core.clock import Mark
from givalia_core.errors import StoreFailed, StoreUnfit
from givalia_core.store import sqlite_file
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Commit, Opened, Retention
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite_reads import FULL_CODES, Reads, code_of
from givalia_core.store.sqlite_rows import INSERT, to_row, update

CHECKPOINT_PAGES: Final = 2_000  # Few enough that no commit waits long behind one.
VACUUM_PAGES: Final = 500
CACHE_KIB: Final = 24 << 10

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
        self._changes_since_checkpoint = 0
        self._pages_per_change = 4.0

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
        self.open()  # There is one format so far; whatever is of another one does not open.
        self.close()
        return sqlite_file.FORMAT, sqlite_file.FORMAT

    def _open(self) -> Opened:
        try:
            self._database = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=0)
            for name, value, expected in _PRAGMAS:
                self._set(name, value, expected)
            self._pid = os.getpid()
            # The first look at the log drops what a crash tore off its end: nobody was told that it is safe.
            _, recovered, _ = self._one("PRAGMA wal_checkpoint(PASSIVE)")
            self._ballast.take()
            epoch = (self._fact("epoch") or 0) + 1
            mark = self._fact("mark")
            with _Transaction(self):
                self._keep_fact("epoch", epoch)
            (last_seq,) = self._one("SELECT max(seq) FROM jobs")
            last_seq = max(last_seq or 0, self._fact("last_seq") or 0)
        except sqlite3.Error as error:
            self._fail(error)
        return Opened(epoch, Mark(*mark) if mark else None, last_seq, max(recovered, 0))

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
            except sqlite3.Error as error:
                self._fail(error)
            finally:
                database.close()
                self._let_go()
        self._let_go()

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    # Writing.

    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        self._refuse_fork()
        try:
            with _Transaction(self):
                refused = self._write(changes)
                forgotten = self._retire(retention) if retention is not None else 0
                self._keep_fact("mark", mark)
        except sqlite3.Error as error:
            self._fail(error)
        self._changes_since_checkpoint += len(changes) + forgotten + 1
        return Commit(refused, forgotten)

    def raise_numbers(self, seq: int, fence: int) -> None:
        self._refuse_fork()
        try:
            with _Transaction(self):
                self._keep_fact("last_seq", max(self._fact("last_seq") or 0, seq))
                self._keep_fact("epoch", max(self._fact("epoch") or 0, fence >> FENCE_COUNTER_BITS))
        except sqlite3.Error as error:
            self._fail(error)

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise StoreFailed("the store was opened by another process; a fork may not use it")

    def _write(self, changes: Sequence[Change]) -> tuple[int, ...]:
        updates: dict[str, list[tuple[Any, ...]]] = {}
        for was, job in changes:
            if was is not None:
                updates.setdefault(update(was, job), []).append((*to_row(job), was.version))
        inserts = [to_row(job) for was, job in changes if was is None]
        database = self._connection
        if _frees_too_late(changes):
            return self._write_singly(changes)
        try:
            # Updates first: they may free the keys that inserts take.
            fits = all(database.executemany(words, rows).rowcount == len(rows) for words, rows in updates.items())
            if inserts and fits:
                database.executemany(INSERT, inserts)
        except sqlite3.IntegrityError:
            fits = False
        if fits:
            self._index(changes)
            return ()
        database.execute("ROLLBACK")
        database.execute("BEGIN IMMEDIATE")
        return self._write_singly(changes)

    def _write_singly(self, changes: Sequence[Change]) -> tuple[int, ...]:
        """Some guard does not hold: find out which, one change at a time in the order given."""
        refused: list[int] = []
        applied: list[Change] = []
        for place, change in enumerate(changes):
            was, job = change
            try:
                if was is None:
                    done = self._connection.execute(INSERT, to_row(job)).rowcount
                else:
                    done = self._connection.execute(update(was, job), (*to_row(job), was.version)).rowcount
            except sqlite3.IntegrityError:
                done = 0
            if done:
                applied.append(change)
            else:
                refused.append(place)
        self._index(applied)
        return tuple(refused)

    def _index(self, changes: Sequence[Change]) -> None:
        """Keep the counts and the request ids in step with the rows."""
        counts: Counter[tuple[str, int]] = Counter()
        known: list[tuple[bytes, int]] = []
        dropped: list[tuple[bytes]] = []
        for was, job in changes:
            counts[job.module, NUMBER[job.state]] += 1
            if was is not None:
                counts[was.module, NUMBER[was.state]] -= 1
                if was.answered != job.answered:
                    before, after = set(was.answered), set(job.answered)
                    dropped += [(past.request,) for past in before - after]
                    known += [(past.request, job.seq) for past in after - before if past.request != job.id]
            elif len(job.answered) > 1:
                known += [(past.request, job.seq) for past in job.answered if past.request != job.id]
        database = self._connection
        if dropped:
            database.executemany("DELETE FROM requests WHERE request = ?", dropped)
        if known:
            database.executemany("INSERT OR REPLACE INTO requests VALUES (?, ?)", known)
        self._count(counts)

    def _count(self, counts: Counter[tuple[str, int]]) -> None:
        deltas = [(module, state, delta) for (module, state), delta in counts.items() if delta]
        if deltas:
            self._connection.executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs", deltas
            )

    def _retire(self, retention: Retention) -> int:
        forgotten = last_seq = 0
        for is_dead, keep in ((0, retention.keep_ended), (1, retention.keep_dead)):
            rows = self._all(
                "SELECT seq, module, state FROM jobs WHERE (state = 3) = ? AND forget_at_us <= ? ORDER BY forget_at_us LIMIT ?",
                (is_dead, retention.now_us, retention.limit - forgotten),
            )
            beyond = min(self._ended_count(is_dead) - keep, retention.limit - forgotten)
            if beyond > len(rows):
                rows = self._all(
                    "SELECT seq, module, state FROM jobs WHERE (state = 3) = ? AND forget_at_us IS NOT NULL"
                    " AND (forget_at_us <= ? OR ended_at_us <= ?) ORDER BY forget_at_us LIMIT ?",
                    (is_dead, retention.now_us, retention.ended_before_us, beyond),
                )
            seqs = [(seq,) for seq, _, _ in rows]
            last_seq = max((last_seq, *(seq for seq, _, _ in rows)))
            self._connection.executemany("DELETE FROM requests WHERE seq = ?", seqs)
            self._connection.executemany("DELETE FROM jobs WHERE seq = ?", seqs)
            self._count(Counter({name: -count for name, count in Counter((m, s) for _, m, s in rows).items()}))
            forgotten += len(rows)
        if forgotten:
            # The row with the highest seq may be gone now; its number must not come again.
            self._keep_fact("last_seq", max(self._fact("last_seq") or 0, last_seq))
        return forgotten

    def _keep_fact(self, name: str, value: Any) -> None:
        packed = _pack(value)
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed)))

    # Housekeeping: none of it in the way of an answer.

    def tidy(self) -> None:
        if self._changes_since_checkpoint * self._pages_per_change < CHECKPOINT_PAGES:
            return
        try:
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

    def _checkpoint(self) -> None:
        """Copy the log back into the file; the log is then written again from its start, not truncated."""
        _, pages, _ = self._one("PRAGMA wal_checkpoint(PASSIVE)")
        if self._changes_since_checkpoint and pages > 0:
            self._pages_per_change = max(pages / self._changes_since_checkpoint, 0.05)
        self._changes_since_checkpoint = 0

    def has_room(self) -> bool:
        return self._ballast.take()


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


def _frees_too_late(changes: Sequence[Change]) -> bool:
    """Whether an update comes behind an insert of the key it had: only then does updating first change the outcome."""
    taken: set[str | None] = set()
    for was, job in changes:
        if was is None:
            taken.add(job.key)
        elif was.key is not None and was.key in taken:
            return True
    return False


def _path(url: str) -> Path:
    rest = url.removeprefix("sqlite:")
    if rest.startswith("//"):
        rest = "/" + rest.lstrip("/")
    if not rest or rest.endswith("/"):
        raise StoreUnfit(f"{url} names no file")
    return Path(unquote(rest)).absolute()
