"""What the SQLite store reads: every statement that only looks, and the connection they all share."""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, TypeVar

import msgpack

from givalia_core.clock import Now
from givalia_core.errors import StoreCorrupt, StoreError, StoreFailed, StoreFull
from givalia_core.model import CANCELLED, DEAD, DONE, RUNNING, STORED_STATES, Job, JobState
from givalia_core.store import sqlite_file
from givalia_core.store.base import (
    READY_COUNTED_TO,
    SCAN_MAX,
    VARIANTS_MAX,
    Claim,
    Filter,
    Found,
    Near,
    Page,
    Retention,
    Route,
    Span,
    Timer,
    Wanted,
)
from givalia_core.store.packing import NUMBER, choose, is_ended
from givalia_core.store.sqlite_rows import SELECT, to_job

FULL_CODES: Final = frozenset({sqlite3.SQLITE_FULL})
_CORRUPT_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_CHUNKS: Final = (1, 16, 256)  # Sizes of IN lists, so that few statements serve all.

P = ParamSpec("P")
R = TypeVar("R")


def ours(read: Callable[Concatenate[Reads, P], R]) -> Callable[Concatenate[Reads, P], R]:
    """Let a method raise our errors instead of SQLite's."""

    @wraps(read)
    def reading(self: Reads, /, *values: P.args, **named: P.kwargs) -> R:
        try:
            return read(self, *values, **named)
        except sqlite3.Error as error:
            self._fail(error)

    return reading


class Reads:
    """The reading half of the store; see `givalia_core.store.base.Store` for what each method promises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = sqlite_file.Ballast(path.with_name(path.name + ".ballast"))
        self._database: sqlite3.Connection | None = None

    @ours
    def find(self, wanted: Wanted, now: Now) -> Found:
        found = Found({}, {}, {}, {}, {}, {})
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
        for claim in wanted.claims:
            if jobs := self._claimable(claim, now):
                found.ready[claim.route] = jobs
        for plain in wanted.variants:
            if variants := self._variants(plain):
                found.variants[plain] = variants
        return found

    def _variants(self, plain: Route) -> list[Route]:
        """Found by hops along the index, on which they stand together: no name has a blank, nor what comes behind it."""
        targets = set[str]()
        for on_wall in (0, 1):
            target = f"{plain.target} "
            for _ in range(VARIANTS_MAX):
                following = self._one(
                    "SELECT target_worker FROM jobs WHERE state = 0 AND on_wall = ? AND module = ? AND target_worker > ?"
                    " AND target_worker < ? ORDER BY target_worker LIMIT 1",
                    (on_wall, plain.module, target, f"{plain.target}!"),
                )
                if following is None:
                    break
                (target,) = following
                targets.add(target)
        return [Route(plain.module, target) for target in sorted(targets)[:VARIANTS_MAX]]

    def _claimable(self, claim: Claim, now: Now) -> list[Job]:
        """Rank by rank, since a lower one is only looked at when the higher ones do not fill the claim."""
        jobs: list[Job] = []
        for rank in sorted({rank for on_wall in (0, 1) for rank in self._ranks(claim.route, on_wall)}):
            left = claim.limit - len(jobs)
            if not left:
                break
            parts = [
                self._jobs(
                    "WHERE state = 0 AND on_wall = ? AND module = ? AND target_worker = ? AND rank = ? AND due_at_us <= ?"
                    " ORDER BY due_at_us, seq LIMIT ?",
                    (on_wall, *claim.route, rank, now_us, left),
                )
                for on_wall, now_us in ((0, now.timer_us), (1, now.wall_us))
            ]
            jobs += islice(merge(*parts, key=lambda job: (job.due_on_timer_us(now), job.seq)), left)
        return jobs

    def _jobs_in(self, column: str, names: frozenset[Any]) -> Iterator[Job]:
        left = list(names)
        while left:
            size = next((size for size in _CHUNKS if size >= len(left)), _CHUNKS[-1])
            chunk, left = left[:size], left[size:]
            chunk += chunk[-1:] * (size - len(chunk))
            yield from self._jobs(f"WHERE {column} ({','.join('?' * size)})", chunk)

    def _jobs(self, condition: str, values: Sequence[Any] = ()) -> Iterator[Job]:
        return map(to_job, self._all(f"{SELECT} {condition}", values))

    @ours
    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        return [self._near(span, now) for span in spans]

    def _near(self, span: Span, now: Now) -> Near:
        is_ready = False
        parts: list[list[Timer]] = []
        for on_wall, now_us, shift_us in ((0, now.timer_us, 0), (1, now.wall_us, now.timer_ahead_us)):
            for rank in self._ranks(span.route, on_wall):
                where = "FROM jobs WHERE state = 0 AND on_wall = ? AND module = ? AND target_worker = ? AND rank = ?"
                values = (on_wall, *span.route, rank, now_us)
                is_ready = is_ready or self._one(f"SELECT 1 {where} AND due_at_us <= ? LIMIT 1", values) is not None
                rows = self._all(
                    f"SELECT due_at_us, seq {where} AND due_at_us > ? ORDER BY due_at_us, seq LIMIT ?",
                    (*values, span.limit + 1),
                )
                parts.append([Timer(due_us + shift_us, seq) for due_us, seq in rows])
        timers = list(islice(merge(*parts), span.limit + 1))
        return Near(is_ready, timers[: span.limit], len(timers) > span.limit)

    def _ranks(self, route: Route, on_wall: int) -> Iterator[int]:
        """The ranks that waiting jobs of a route have, found by hops along the index."""
        rank = -100
        while True:
            following = self._one(
                "SELECT rank FROM jobs WHERE state = 0 AND on_wall = ? AND module = ? AND target_worker = ? AND rank > ?"
                " ORDER BY rank LIMIT 1",
                (on_wall, *route, rank),
            )
            if following is None:
                return
            (rank,) = following
            yield rank

    @ours
    def running(self) -> Iterable[Job]:
        return list(self._jobs("WHERE state = 1 ORDER BY seq"))

    @ours
    def expired(self, now: Now, limit: int) -> list[Job]:
        return [
            job
            for on_wall, now_us in ((0, now.timer_us), (1, now.wall_us))
            for job in self._jobs(
                "WHERE state = 0 AND expires_at_us IS NOT NULL AND on_wall = ? AND expires_at_us <= ?"
                " ORDER BY expires_at_us LIMIT ?",
                (on_wall, now_us, limit),
            )
        ][:limit]

    @ours
    def page(self, wanted: Filter, after: tuple[int, int] | None, limit: int, now: Now) -> Page:
        major, minor = after or (0, 0)
        if is_ended(wanted.state):
            scan = (
                "WHERE (state = 3) = ? AND (forget_at_us, seq) > (?, ?) AND forget_at_us IS NOT NULL"
                " ORDER BY forget_at_us, seq LIMIT ?"
            )
            values: tuple[Any, ...] = (int(wanted.state is DEAD), major, minor, SCAN_MAX)
        elif wanted.state is RUNNING:
            scan, values = "WHERE state = 1 AND seq > ? ORDER BY seq LIMIT ?", (minor, SCAN_MAX)
        else:
            scan, values = "WHERE seq > ? ORDER BY seq LIMIT ?", (minor, SCAN_MAX)
        return self._scan(scan, values, wanted, limit, now)

    def _scan(self, scan: str, values: Sequence[Any], wanted: Filter, limit: int, now: Now) -> Page:
        """Look at a bounded number of rows in the order of one index; keep those that the filter admits."""
        heads = self._all(
            "SELECT seq, forget_at_us, state, module, target_worker, on_wall, due_at_us FROM jobs " + scan, values
        )
        seqs, after = choose(heads, wanted, limit, now)
        found = {job.seq: job for job in self._jobs_in("seq IN", frozenset(seqs))}
        return Page([found[seq] for seq in seqs], after)

    @ours
    def counts(self) -> dict[tuple[str, JobState], int]:
        rows = self._all("SELECT module, state, jobs FROM counts WHERE jobs > 0")
        return {(module, STORED_STATES[state]): jobs for module, state, jobs in rows}

    @ours
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

    def _ended_count(self, is_dead: int) -> int:
        states = (NUMBER[DEAD],) if is_dead else (NUMBER[DONE], NUMBER[CANCELLED])
        marks = ",".join("?" * len(states))
        (count,) = self._one(f"SELECT total(jobs) FROM counts WHERE state IN ({marks})", states)
        return int(count)

    @ours
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

    def check(self) -> list[str]:
        """Read every page and every row. Slow: about a second for each million rows."""
        try:
            wrong = [line for (line,) in self._all("PRAGMA quick_check") if line != "ok"]
            counts: Counter[tuple[str, JobState]] = Counter()
            cursor = self._connection.execute(SELECT)
            for row in cursor:
                try:
                    job = to_job(row)
                except StoreCorrupt as error:
                    wrong.append(str(error))
                else:
                    counts[job.module, job.state] += 1
            if not wrong and counts != self.counts():
                wrong.append(f"the stored counts {self.counts()} are not those of the rows {dict(counts)}")
        except sqlite3.Error as error:
            return [str(error)]
        return wrong

    # What all statements share.

    def _fact(self, name: str) -> Any:
        row = self._one("SELECT value, crc FROM facts WHERE name = ?", (name,))
        if row is None:
            return None
        value, crc = row
        if zlib.crc32(value) != crc:
            raise StoreCorrupt(f"{self.path}: the stored {name} does not match its checksum")
        return msgpack.unpackb(value)

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
        code = code_of(error)
        if code in FULL_CODES:
            self._ballast.give_up()
            raise StoreFull(f"{self.path}: {error}") from error
        is_corrupt = code in _CORRUPT_CODES or "Could not decode to UTF-8" in str(error)
        kind: type[StoreError] = StoreCorrupt if is_corrupt else StoreFailed
        raise kind(f"{self.path}: {error}") from error


def code_of(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
