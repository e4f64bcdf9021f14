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
from collections.abc import Iterable, Iterator, Sequence
from functools import wraps
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import unquote

import msgpack

from givalia_core.clock import Mark, Now
from givalia_core.errors import StoreCorrupt, StoreError, StoreFailed, StoreFull, StoreUnfit
from givalia_core.model import CANCELLED, DEAD, DONE, RUNNING, STORED_STATES, Answered, Job, JobState
from givalia_core.store import sqlite_file
from givalia_core.store.base import (
    READY_COUNTED_TO,
    SCAN_MAX,
    Change,
    Commit,
    Entry,
    Filter,
    Found,
    Opened,
    Page,
    Retention,
    Span,
    Wanted,
)

CHECKPOINT_PAGES: Final = 2_000  # Few enough that no commit waits long behind one.
VACUUM_PAGES: Final = 500
CACHE_KIB: Final = 24 << 10

_HEAD: Final = Job._fields.index("enq_at_us")  # The fields before it are columns,
_BODY: Final = slice(_HEAD, Job._fields.index("params"))  # these are packed into one,
_ANSWERED: Final = Job._fields.index("answered") - _HEAD
_BACKOFF: Final = Job._fields.index("backoff_us") - _HEAD
_NUMBER: Final = {state: number for number, state in enumerate(STORED_STATES)}
_COLUMNS: Final = (
    "seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us,"
    " version, body, params, result, crc"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM jobs"
_INSERT: Final = f"INSERT INTO jobs ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
_UPDATE: Final = (
    "UPDATE jobs SET key=?3, state=?4, module=?5, target_worker=?6, rank=?7, on_wall=?8, due_at_us=?9,"
    " expires_at_us=?10, ended_at_us=?11, forget_at_us=?12, version=?13, body=?14, params=?15, result=?16, crc=?17"
    " WHERE seq=?1 AND id=?2 AND version=?18"
)
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
_FULL_CODES: Final = frozenset({sqlite3.SQLITE_FULL})
_CORRUPT_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CHUNKS: Final = (1, 16, 256)  # Sizes of IN lists, so that few statements serve all.

_pack = msgpack.Packer(autoreset=True).pack


def _ours(read: Any) -> Any:
    @wraps(read)
    def reading(self: Any, *values: Any) -> Any:
        try:
            return read(self, *values)
        except sqlite3.Error as error:
            self._fail(error)

    return reading


class SQLite:
    """Keeps jobs in one file; see `givalia_core.store.base.Store` for what each method promises."""

    durability = "fsync"

    def __init__(self, url: str, *, allow_network: bool = False) -> None:
        """Take `sqlite:///absolute/path` (repeated slashes are one) or `sqlite:relative/path`; nothing is opened yet."""
        self.path = _path(url)
        self._allow_network = allow_network
        self._lock: sqlite_file.Lock | None = None
        self._ballast = sqlite_file.Ballast(self.path.with_name(self.path.name + ".ballast"))
        self._database: sqlite3.Connection | None = None
        self._pid = 0
        self._changes_since_checkpoint = 0
        self._pages_per_change = 4.0

    # Opening and closing.

    def open(self) -> Opened:
        sqlite_file.prepare_folder(self.path, allow_network=self._allow_network)
        self._lock = sqlite_file.Lock(self.path.with_name(self.path.name + ".lock"))
        try:
            sqlite_file.prepare(self.path)
            return self._open()
        except BaseException:
            self._let_go()
            raise

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
        if os.getpid() != self._pid:
            raise StoreFailed("the store was opened by another process; a fork may not use it")
        try:
            with _Transaction(self):
                refused = self._write(changes)
                forgotten = self._retire(retention) if retention is not None else 0
                self._keep_fact("mark", mark)
        except sqlite3.Error as error:
            self._fail(error)
        self._changes_since_checkpoint += len(changes) + forgotten + 1
        return Commit(refused, forgotten)

    def _write(self, changes: Sequence[Change]) -> tuple[int, ...]:
        updates = [(*_row(job), was.version) for was, job in changes if was is not None]
        inserts = [_row(job) for was, job in changes if was is None]
        database = self._connection
        if _frees_too_late(changes):
            return self._write_singly(changes)
        database.execute("SAVEPOINT fast")
        try:
            # Updates first: they may free the keys that inserts take.
            fits = not updates or database.executemany(_UPDATE, updates).rowcount == len(updates)
            if inserts and fits:
                database.executemany(_INSERT, inserts)
        except sqlite3.IntegrityError:
            fits = False
        if fits:
            database.execute("RELEASE fast")
            self._index(changes)
            return ()
        database.execute("ROLLBACK TO fast")
        database.execute("RELEASE fast")
        return self._write_singly(changes)

    def _write_singly(self, changes: Sequence[Change]) -> tuple[int, ...]:
        """Some guard does not hold: find out which, one change at a time in the order given."""
        refused: list[int] = []
        applied: list[Change] = []
        for place, change in enumerate(changes):
            was, job = change
            try:
                if was is None:
                    done = self._connection.execute(_INSERT, _row(job)).rowcount
                else:
                    done = self._connection.execute(_UPDATE, (*_row(job), was.version)).rowcount
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
            counts[job.module, _NUMBER[job.state]] += 1
            if was is not None:
                counts[was.module, _NUMBER[was.state]] -= 1
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

    def _ended_count(self, is_dead: int) -> int:
        states = (_NUMBER[DEAD],) if is_dead else (_NUMBER[DONE], _NUMBER[CANCELLED])
        marks = ",".join("?" * len(states))
        (count,) = self._one(f"SELECT total(jobs) FROM counts WHERE state IN ({marks})", states)
        return int(count)

    @_ours
    def forgettable(self, retention: Retention) -> bool:
        for is_dead, keep in ((0, retention.keep_ended), (1, retention.keep_dead)):
            first = self._one(
                "SELECT forget_at_us, ended_at_us FROM jobs WHERE (state = 3) = ? AND forget_at_us IS NOT NULL"
                " ORDER BY forget_at_us LIMIT 1",
                (is_dead,),
            )
            if first is None:
                continue
            if first[0] <= retention.now_us:
                return True
            if first[1] <= retention.ended_before_us and self._ended_count(is_dead) > keep:
                return True
        return False

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
            if _code(error) in _FULL_CODES:
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

    # Reading.

    def find(self, wanted: Wanted) -> Found:
        try:
            found = Found({}, {}, {}, {}, {})
            for job in self._jobs_in("id IN", wanted.ids):
                found.ids[job.id] = job
            for job in self._jobs_in("ended_at_us = 0 AND key IN", wanted.keys):
                if job.key is not None:
                    found.live[job.key] = job
            for key in wanted.past_keys:
                for job in self._jobs("WHERE key = ? AND ended_at_us > 0 ORDER BY ended_at_us DESC LIMIT 1", (key,)):
                    found.ended[key] = job
            for request in wanted.requests:
                for job in self._jobs("WHERE seq = (SELECT seq FROM requests WHERE request = ?)", (request,)):
                    found.requests[request] = job
            for job in self._jobs_in("seq IN", wanted.seqs):
                found.seqs[job.seq] = job
        except sqlite3.Error as error:
            self._fail(error)
        return found

    def _jobs_in(self, column: str, names: frozenset[Any]) -> Iterator[Job]:
        left = list(names)
        while left:
            size = next((size for size in _CHUNKS if size >= len(left)), _CHUNKS[-1])
            chunk, left = left[:size], left[size:]
            chunk += chunk[-1:] * (size - len(chunk))
            yield from self._jobs(f"WHERE {column} ({','.join('?' * size)})", chunk)

    def _jobs(self, condition: str, values: Sequence[Any] = ()) -> Iterator[Job]:
        return map(_job, self._all(f"{_SELECT} {condition}", values))

    def upcoming(self, spans: Sequence[Span], now: Now) -> list[tuple[list[Entry], bool]]:
        try:
            return [self._span(span, now) for span in spans]
        except sqlite3.Error as error:
            self._fail(error)

    def _span(self, span: Span, now: Now) -> tuple[list[Entry], bool]:
        parts: list[list[Entry]] = []
        compare = "<=" if span.ready else ">"
        for on_wall, now_us, shift_us in ((0, now.timer_us, 0), (1, now.wall_us, now.timer_ahead_us)):
            for rank in self._ranks(span, on_wall):
                rows = self._all(
                    "SELECT due_at_us, seq FROM jobs WHERE state = 0 AND on_wall = ? AND module = ? AND target_worker = ?"
                    f" AND rank = ? AND due_at_us {compare} ? ORDER BY due_at_us, seq LIMIT ?",
                    (on_wall, *span.route, rank, now_us, span.limit + 1),
                )
                parts.append([Entry(rank, due_us + shift_us, seq) for due_us, seq in rows])
        order = None if span.ready else _by_due
        entries = list(islice(merge(*parts, key=order), span.limit + 1))
        return entries[: span.limit], len(entries) > span.limit

    def _ranks(self, span: Span, on_wall: int) -> Iterator[int]:
        """The ranks that waiting jobs of a route have, found by hops along the index."""
        rank = -100
        while True:
            following = self._one(
                "SELECT rank FROM jobs WHERE state = 0 AND on_wall = ? AND module = ? AND target_worker = ? AND rank > ?"
                " ORDER BY rank LIMIT 1",
                (on_wall, *span.route, rank),
            )
            if following is None:
                return
            (rank,) = following
            yield rank

    def running(self) -> Iterable[Job]:
        try:
            return list(self._jobs("WHERE state = 1 ORDER BY seq"))
        except sqlite3.Error as error:
            self._fail(error)

    def expired(self, now: Now, limit: int) -> list[Job]:
        try:
            return [
                job
                for on_wall, now_us in ((0, now.timer_us), (1, now.wall_us))
                for job in self._jobs(
                    "WHERE state = 0 AND expires_at_us IS NOT NULL AND on_wall = ? AND expires_at_us <= ?"
                    " ORDER BY expires_at_us LIMIT ?",
                    (on_wall, now_us, limit),
                )
            ][:limit]
        except sqlite3.Error as error:
            self._fail(error)

    def page(self, wanted: Filter, after: tuple[int, int] | None, limit: int, now: Now) -> Page:
        major, minor = after or (0, 0)
        if wanted.state in (DONE, DEAD, CANCELLED):
            scan = (
                "WHERE (state = 3) = ? AND (forget_at_us, seq) > (?, ?) AND forget_at_us IS NOT NULL"
                " ORDER BY forget_at_us, seq LIMIT ?"
            )
            values: tuple[Any, ...] = (int(wanted.state is DEAD), major, minor, SCAN_MAX)
        elif wanted.state is RUNNING:
            scan, values = "WHERE state = 1 AND seq > ? ORDER BY seq LIMIT ?", (minor, SCAN_MAX)
        else:
            scan, values = "WHERE seq > ? ORDER BY seq LIMIT ?", (minor, SCAN_MAX)
        try:
            return self._scan(scan, values, wanted, limit, now)
        except sqlite3.Error as error:
            self._fail(error)

    def _scan(self, scan: str, values: Sequence[Any], wanted: Filter, limit: int, now: Now) -> Page:
        """Look at a bounded number of rows in the order of one index; keep those that the filter admits."""
        heads = self._all(
            "SELECT seq, forget_at_us, state, module, target_worker, on_wall, due_at_us FROM jobs " + scan, values
        )
        seqs: list[int] = []
        for place, (seq, _, state, module, target_worker, on_wall, due_at_us) in enumerate(heads, 1):
            if not 0 <= state < len(STORED_STATES):
                raise StoreCorrupt(f"the row of job {seq} has no state that Givalia knows")
            head = _head(seq, STORED_STATES[state], module, target_worker, bool(on_wall), due_at_us)
            if wanted.admits(head, now):
                seqs.append(seq)
                if len(seqs) == limit and place < len(heads):
                    break
        else:
            place = len(heads)
        more = place < len(heads) or len(heads) == SCAN_MAX
        found = {job.seq: job for job in self._jobs_in("seq IN", frozenset(seqs))}
        last = heads[place - 1] if heads else None
        ended = wanted.state in (DONE, DEAD, CANCELLED)
        after = ((last[1] or 0) if ended else 0, last[0]) if more and last else None
        return Page([found[seq] for seq in seqs], after)

    @_ours
    def counts(self) -> dict[tuple[str, JobState], int]:
        rows = self._all("SELECT module, state, jobs FROM counts WHERE jobs > 0")
        return {(module, STORED_STATES[state]): jobs for module, state, jobs in rows}

    @_ours
    def ready(self, now: Now) -> dict[str, int]:
        ready: Counter[str] = Counter()
        left = READY_COUNTED_TO
        for on_wall, now_us in ((0, now.timer_us), (1, now.wall_us)):
            route: tuple[Any, ...] = ("", "", -100)
            while left > 0:
                following = self._one(
                    "SELECT module, target_worker, rank FROM jobs WHERE state = 0 AND on_wall = ?"
                    " AND (module, target_worker, rank) > (?, ?, ?) ORDER BY module, target_worker, rank LIMIT 1",
                    (on_wall, *route),
                )
                if following is None:
                    break
                route = following
                (count,) = self._one(
                    "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 0 AND on_wall = ? AND module = ?"
                    " AND target_worker = ? AND rank = ? AND due_at_us <= ? LIMIT ?)",
                    (on_wall, *route, now_us, left),
                )
                ready[route[0]] += count
                left -= count
        return {module: count for module, count in ready.items() if count}

    def describe(self) -> dict[str, Any]:
        log = Path(f"{self.path}-wal")
        return {
            "url": f"sqlite://{self.path}",
            "format": sqlite_file.FORMAT,
            "sqlite": sqlite3.sqlite_version,
            "bytes": self.path.stat().st_size,
            "log_bytes": log.stat().st_size if log.exists() else 0,
        }

    def check(self) -> list[str]:
        """Read every page and every row. Slow: about a second for each million rows."""
        try:
            wrong = [line for (line,) in self._all("PRAGMA quick_check") if line != "ok"]
            counts: Counter[tuple[str, JobState]] = Counter()
            cursor = self._connection.execute(_SELECT)
            for row in cursor:
                try:
                    job = _job(row)
                except StoreCorrupt as error:
                    wrong.append(str(error))
                else:
                    counts[job.module, job.state] += 1
            if not wrong and counts != self.counts():
                wrong.append(f"the stored counts {self.counts()} are not those of the rows {dict(counts)}")
        except sqlite3.Error as error:
            return [str(error)]
        return wrong

    # Facts, statements and errors.

    def _fact(self, name: str) -> Any:
        row = self._one("SELECT value, crc FROM facts WHERE name = ?", (name,))
        if row is None:
            return None
        value, crc = row
        if zlib.crc32(value) != crc:
            raise StoreCorrupt(f"{self.path}: the stored {name} does not match its checksum")
        return msgpack.unpackb(value)

    def _keep_fact(self, name: str, value: Any) -> None:
        packed = _pack(value)
        self._connection.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed)))

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreFailed(f"{self.path} is not open")
        return self._database

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.execute(statement, values).fetchone()

    def _fail(self, error: sqlite3.Error) -> NoReturn:
        """Turn SQLite's error into ours: full is survived, anything else stops the server."""
        code = _code(error)
        if code in _FULL_CODES:
            self._ballast.give_up()
            raise StoreFull(f"{self.path}: {error}") from error
        is_corrupt = code in _CORRUPT_CODES or "Could not decode to UTF-8" in str(error)
        kind: type[StoreError] = StoreCorrupt if is_corrupt else StoreFailed
        raise kind(f"{self.path}: {error}") from error


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


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _path(url: str) -> Path:
    rest = url.removeprefix("sqlite:")
    if rest.startswith("//"):
        rest = "/" + rest.lstrip("/")
    if not rest or rest.endswith("/"):
        raise StoreUnfit(f"{url} names no file")
    return Path(unquote(rest)).absolute()


def _by_due(entry: Entry) -> tuple[int, int]:
    return entry.due_us, entry.seq


def _row(job: Job) -> tuple[Any, ...]:
    head = (*job[:3], _NUMBER[job.state], job.module, job.target_worker, -job.priority, int(job.on_wall), *job[8:_HEAD])
    body = _pack(job[_BODY])
    return (*head, body, job.params, job.result, _checksum(head, body, job.params, job.result))


def _job(row: tuple[Any, ...]) -> Job:
    *head, body, params, result, crc = row
    if crc != _checksum(tuple(head), body, params, result):
        raise StoreCorrupt(f"the row of job {head[0]} does not match its checksum")
    cold = list(msgpack.unpackb(body, use_list=False))
    cold[_ANSWERED] = tuple(Answered(*past) for past in cold[_ANSWERED])
    head[3] = STORED_STATES[head[3]]
    head[6] = -head[6]
    head[7] = bool(head[7])
    return Job._make((*head, *cold, params, result))


def _checksum(head: tuple[Any, ...], body: bytes, params: bytes, result: bytes | None) -> int:
    return zlib.crc32(result or b"", zlib.crc32(params, zlib.crc32(body, zlib.crc32(_pack(head)))))


def _head(seq: int, state: JobState, module: str, target_worker: str, on_wall: bool, due_at_us: int) -> Job:
    """As much of a job as a filter looks at."""
    return Job(seq, b"", None, state, module, target_worker, 0, on_wall, due_at_us)
