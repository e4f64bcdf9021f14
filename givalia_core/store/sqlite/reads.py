"""What the SQLite store reads: the index says which jobs, the records what they are."""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Concatenate, Final, NamedTuple, NoReturn, ParamSpec, TypeVar

import msgpack

from givalia_core.clock import Now
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreLocked
from givalia_core.model import CANCELLED, DEAD, DONE, ENDED, Job, JobState
from givalia_core.store.base import (
    SCAN_MAX,
    VARIANTS_MAX,
    Claim,
    Cursor,
    Filter,
    Found,
    Near,
    Page,
    Ready,
    ReadyBudget,
    Retention,
    Route,
    Share,
    Span,
    Timer,
    Wanted,
    rows_of,
)
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.admission import Update
from givalia_core.store.sqlite.check import Check
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.keys import EXPIRES
from givalia_core.store.sqlite.index.lanes import Lane
from givalia_core.store.sqlite.index.runs import Entry
from givalia_core.store.sqlite.index.scrub import Scrub
from givalia_core.store.sqlite.index.slots import FAR
from givalia_core.store.sqlite.index.words import Damaged
from givalia_core.store.sqlite.listing import Listing
from givalia_core.store.sqlite.quarantine import Quarantine
from givalia_core.store.sqlite.records import Records

_BUSY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CORRUPT_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DISORDER: Final = "*** in database main ***"  # How SQLite begins to say that pages are not in order.
_KEPT_JOBS: Final = 8_000  # Jobs in memory, twice as many at most: most that are read were written a moment ago.
_KEPT_BYTES: Final = 1_000  # Of a job; a larger one is read again.
_READ_AT_ONCE: Final = 64
_READ_TOGETHER: Final = 16  # Jobs that may all be large,
_READ_MOST: Final = 256  # and, behind small ones, of one route.
_PASSED_OVER: Final = 1_000  # Jobs that ended too lately to be forgotten before it is left for another time.

_ID, _KEY, _REQUEST = range(3)

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Reads")


def ours(work: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Let a method raise our errors instead of those of SQLite and of the system."""

    @wraps(work)
    def working(self: S, /, *values: P.args, **named: P.kwargs) -> R:
        try:
            return work(self, *values, **named)
        except (sqlite3.Error, OSError, Damaged, IndexError) as error:
            self._fail(error)

    return working


def mended(read: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The same for a method that reads: if it meets damage in the index, that is rebuilt, and it reads once more."""

    @wraps(read)
    def reading(self: S, /, *values: P.args, **named: P.kwargs) -> R:
        try:
            return read(self, *values, **named)
        except (Damaged, IndexError) as error:
            return again(self, error, *values, **named)
        except (sqlite3.Error, OSError) as error:
            self._fail(error)

    @ours
    def again(self: S, error: Exception, /, *values: P.args, **named: P.kwargs) -> R:
        self._mend(error)
        return read(self, *values, **named)

    return reading


class Unfiled(NamedTuple):
    """A durable commit that is not in the index yet."""

    jobs: Sequence[Job]
    bases: Sequence[int]
    updates: Sequence[Update]
    places: Sequence[int]
    lanes: Sequence[Lane]  # Of the jobs, then of the updates.


class Reads:
    """The reading half of the store; see `givalia_core.store.base.Store` for what each method promises."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.durability = "fsync"
        self._is_said_open = False  # Whether the file says, or may say, that a server has it open and that it has a log.
        self._room = disk.Room(path.with_name(path.name + ".ballast"))
        self._files = disk.Files(path)
        self._database: sqlite3.Connection | None = None
        self._opened_index: Index | None = None
        self._unfiled: Unfiled | None = None
        self._scrub: Scrub
        self._records = Records(lambda: self._connection)
        self._quarantine = Quarantine(lambda: self._connection, self._records)
        self._bad: dict[int, str] = {}  # Slots of jobs whose records are not what was written, with the reason.
        self._damages: list[str] = []  # What was found of the index since the store was opened, one sentence each.
        self._rebuilds = 0  # Of the index, since the store was opened.
        self._recent: dict[int, Job] = {}  # Slot -> job, those that were written or found last,
        self._less_recent: dict[int, Job] = {}  # and those before them.
        self._slot_of: dict[int, int] = {}  # By seq, of jobs that were written, found or are lent now.
        self._hashes: dict[bytes | str, int] = {}  # Of the names that were looked for last.
        self._touched = 0  # Jobs whose part of the index may have been mapped lately.
        self._absent: set[bytes | str] = set()  # Ids and keys that no job has, as far as is known.
        self._counted: Counter[tuple[str, JobState]] = Counter()
        self._in_state: Counter[JobState] = Counter()

    @mended
    def find(self, wanted: Wanted, now: Now) -> Found:
        found = Found({}, {}, {}, {}, {}, {})
        if named := self._named(wanted):
            self._match(named, found)
        index, hashes = self._index, self._hashes
        for key in wanted.past_keys - self._absent:
            slot = index.ended_last(key, index.names.slots(hashes.get(key) or index.of_key(key)))
            if slot is not None and (job := self._jobs((slot,)).get(slot)) is not None:
                found.ended[key] = job
        share = Share(wanted.claimed_bytes)
        for claim in wanted.claims:
            if jobs := self._claimable(claim, now, share):
                found.ready[claim.route] = jobs
        for plain in wanted.variants:
            if variants := self._variants(plain):
                found.variants[plain] = variants
        return found._replace(cut=frozenset(share.cut)) if share.cut else found

    def _named(self, wanted: Wanted) -> list[tuple[int, Any, list[int]]]:
        """The names that some slots may have. Of ids and keys it is remembered for the commit what was found out."""
        index, hashes, absent = self._index, self._hashes, self._absent
        hashes.clear()
        absent.clear()
        named: list[tuple[int, Any, list[int]]] = []
        slots_of = index.names.slots
        for job_id in wanted.ids:
            hashes[job_id] = hashed = index.of_id(job_id)
            if slots := slots_of(hashed):
                named.append((_ID, job_id, slots))
            else:
                absent.add(job_id)
        for key in wanted.keys:
            hashes[key] = hashed = index.of_key(key)
            if slots := slots_of(hashed):
                named.append((_KEY, key, slots))
            else:
                absent.add(key)
        for request in wanted.requests:
            if slots := slots_of(index.of_request(request)):
                named.append((_REQUEST, request, slots))
        return named

    def _match(self, named: Sequence[tuple[int, Any, list[int]]], found: Found) -> None:
        """Of the slots that may have a name, those whose jobs do."""
        index = self._index
        jobs = self._jobs({slot for _, _, slots in named for slot in slots if index.is_there(slot)})
        for which, name, slots in named:
            for slot in slots:
                job = jobs.get(slot)
                if job is None:
                    continue
                if which == _ID and job.id == name:
                    found.ids[name] = job
                elif which == _KEY and job.key == name and job.state not in ENDED:
                    found.live[name] = job
                    self._slot_of[job.seq] = slot
                elif which == _REQUEST and any(past.request == name for past in job.answered):
                    found.requests[name] = job

    def _jobs(self, slots: Iterable[int]) -> dict[int, Job]:
        """Return the jobs of these slots, none of which is forgotten, and keep them in memory for a while.

        Those whose records are not what was written are absent; `tidy` sets them aside.

        Raises:
            Damaged: A record is not where the index says.
        """
        slots = list(slots)
        found = self._peek(slots)
        if len(found) < len(slots):
            for slot in slots:
                if slot not in found and slot not in self._bad:
                    raise Damaged(f"the record of job {self._index.slots.at[slot]} is gone")
        recent = self._recent
        for slot, job in found.items():
            if slot not in recent:
                self._keep(slot, job)
        return found

    def _peek(self, slots: Iterable[int]) -> dict[int, Job]:
        """Return the same without keeping them; those whose records are gone are absent too."""
        found: dict[int, Job] = {}
        missing: list[int] = []
        recent, less = self._recent, self._less_recent
        for slot in slots:
            job = recent.get(slot) or less.get(slot)
            if job is None:
                missing.append(slot)
            else:
                found[slot] = job
        if missing:
            places = {slot: self._index.slots.place(slot) for slot in missing}
            bad: dict[int, str] = {}
            read = self._records.read(places.values(), bad)
            found |= {slot: read[place.seq] for slot, place in places.items() if place.seq in read}
            if bad:
                self._bad.update((slot, bad[place.seq]) for slot, place in places.items() if place.seq in bad)
        return found

    def _mending(self, work: Callable[[], T]) -> T:
        """Do this; if it meets damage in the index, rebuild that, and do it once more."""
        try:
            return work()
        except (Damaged, IndexError) as error:
            self._mend(error)
        return work()

    def _catch_up(self) -> None:
        """File the last commit in the index."""
        raise NotImplementedError

    def _mend(self, error: Exception) -> None:
        """Rebuild the index, which is not what was written."""
        raise NotImplementedError

    def _keep(self, slot: int, job: Job) -> None:
        """Have a job in memory, unless it is large."""
        if len(job.params) + (0 if job.result is None else len(job.result)) > _KEPT_BYTES:
            self._let_go_of(slot)
            return
        self._recent[slot] = job
        if len(self._recent) > _KEPT_JOBS:
            self._less_recent, self._recent = self._recent, {}

    def _let_go_of(self, slot: int) -> None:
        self._recent.pop(slot, None)
        self._less_recent.pop(slot, None)

    def _variants(self, plain: Route) -> list[Route]:
        start = f"{plain.target} "
        targets = [target for target in self._index.targets.get(plain.module, ()) if target.startswith(start)]
        routes = (Route(plain.module, target) for target in sorted(targets))
        return list(islice((route for route in routes if any(map(self._first, self._lanes(route)))), VARIANTS_MAX))

    def _lanes(self, route: Route) -> list[Lane]:
        """Return the lanes of a route on which jobs may wait."""
        return [lane for lane in self._index.routes.get(route, ()) if lane.low < FAR]

    def _first(self, lane: Lane) -> Entry | None:
        return next(self._index.lanes.walk(lane), None)

    def _claimable(self, claim: Claim, now: Now, share: Share) -> list[Job]:
        """Rank by rank, since a lower one is only looked at when the higher ones do not fill the claim."""
        slots: list[int] = []
        by_rank: dict[int, list[Lane]] = {}
        for lane in self._lanes(claim.route):
            by_rank.setdefault(lane.key[4], []).append(lane)
        for _, lanes in sorted(by_rank.items()):
            left = claim.limit - len(slots)
            if not left:
                break
            due = sorted(entry for lane in lanes for entry in self._due(lane, now, left))
            slots += [slot for _, _, slot in due[:left]]
        claimable: list[Job] = []
        start, size = 0, _READ_TOGETHER
        while start < len(slots):
            some = slots[start : start + size]
            jobs = self._jobs(some)
            self._slot_of.update((job.seq, slot) for slot, job in jobs.items())
            if not share.take(claim.route, claimable, (jobs[slot] for slot in some if slot in jobs)):
                break
            start, size = start + size, min(2 * size, _READ_MOST)
        return claimable

    def _due(self, lane: Lane, now: Now, limit: int) -> list[Entry]:
        """The first of what is due in a lane, with the dues on the timer clock."""
        _, on_wall, *_ = lane.key
        if not on_wall:
            return self._index.lanes.first(lane, now.timer_us, limit)
        shift_us = now.timer_ahead_us
        return [(when + shift_us, seq, slot) for when, seq, slot in self._index.lanes.first(lane, now.wall_us, limit)]

    @mended
    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        self._touched += sum(span.limit for span in spans)
        return [self._near(span, now) for span in spans]

    def _near(self, span: Span, now: Now) -> Near:
        is_ready = False
        parts: list[list[Timer]] = []
        for lane in self._lanes(span.route):
            _, on_wall, *_ = lane.key
            now_us, shift_us = (now.wall_us, now.timer_ahead_us) if on_wall else (now.timer_us, 0)
            is_ready = is_ready or bool(self._due(lane, now, 1))
            entries = self._index.lanes.after(lane, (now_us, FAR, 0), span.limit + 1)
            parts.append([Timer(when + shift_us, seq) for when, seq, _ in entries])
        timers = list(islice(merge(*parts), span.limit + 1))
        return Near(is_ready, timers[: span.limit], len(timers) > span.limit)

    @mended
    def running(self) -> Iterable[Job]:
        return list(self._running_after(0, self._index.slots.most))

    @mended
    def expired(self, now: Now, limit: int) -> list[Job]:
        found: list[Job] = []
        for on_wall, now_us in ((False, now.timer_us), (True, now.wall_us)):
            lane = self._index.lanes.by_key.get((EXPIRES, on_wall))
            if lane is None or lane.low > now_us:
                continue
            for when, _, slot in self._index.lanes.walk(lane):
                if when > now_us or len(found) >= limit:
                    break
                if self._index.is_there(slot):
                    # Entries of a time that is not the job's any more are left in this lane.
                    found += [job for job in self._jobs((slot,)).values() if job.is_expired(now) and job.expires_at_us == when]
        return found

    @mended
    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int = SCAN_MAX) -> Page:
        listing = Listing(self._index, self._records, self._jobs)
        jobs: list[Job] = []
        cursors: list[Cursor] = []
        left = rows
        for cursor, job in listing.walk(wanted, after or (0, 0), now, rows):
            if job is not None and wanted.admits(job, now):
                jobs.append(job)
                cursors.append(cursor)
            left -= 1 if job is None else rows_of(len(job.params), len(job.result or b""))
            if len(jobs) == limit or left <= 0:
                return Page(jobs, cursor, cursors)
        return Page(jobs, None, cursors)

    def _running_after(self, seq: int, limit: int) -> Iterator[Job]:
        slots = [slot for _, _, slot in self._index.running_after(seq, limit)]
        for start in range(0, len(slots), _READ_TOGETHER):
            some = slots[start : start + _READ_TOGETHER]
            jobs = self._jobs(some)
            yield from (jobs[slot] for slot in some if slot in jobs)

    @ours
    def counts(self) -> dict[tuple[str, JobState], int]:
        return {name: count for name, count in self._counted.items() if count}

    def ready(self, now: Now) -> Iterator[Ready]:
        budget = ReadyBudget()
        for route in list(self._index.routes):
            found = self._ready_on(route, now, budget.limit)
            budget.count(found.jobs)
            yield found
            if budget.is_spent:
                return

    @mended
    def _ready_on(self, route: Route, now: Now, limit: int) -> Ready:
        """Count the ready jobs of a route."""
        left = limit
        dues: list[int] = []
        for lane in self._lanes(route):
            _, on_wall, *_ = lane.key
            until_us, shift_us = (now.wall_us, now.timer_ahead_us) if on_wall else (now.timer_us, 0)
            for due_us, _, _ in self._index.lanes.first(lane, until_us, 1):
                dues.append(due_us + shift_us)
                left -= self._index.lanes.count_until(lane, until_us, left)
        return Ready(route, limit - left, min(dues, default=None))

    @ours
    def describe(self) -> dict[str, Any]:
        log = Path(f"{self.path}-wal")
        folder = disk.index_folder(self.path)
        usage = os.statvfs(self.path.parent)
        return {
            "url": f"sqlite://{self.path}",
            "format": disk.FORMAT,
            "sqlite": sqlite3.sqlite_version,
            "bytes": self.path.stat().st_size,
            "log_bytes": log.stat().st_size if log.exists() else 0,
            "index_bytes": sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0,
            "disk_free_bytes": usage.f_bavail * usage.f_frsize,
            "disk_bytes": usage.f_blocks * usage.f_frsize,
            "index": self._about_index(),
            "quarantined": self._quarantine.count,
            "is_new": self._files.is_new,
            "is_full": self._room.is_full,
        }

    def _about_index(self) -> dict[str, Any]:
        last = self._scrub.last
        return {
            "rebuilds": self._rebuilds,
            "is_verified": self._index.is_verified,
            "scrub_rounds": 0 if last is None else last.number,
            "scrub_ended_at_us": None if last is None else last.ended_at_us,
            "scrub_seconds": None if last is None else round(last.seconds, 3),
        }

    def _ended_count(self, states: Iterable[JobState]) -> int:
        return sum(self._in_state[state] for state in states)

    @mended
    def forgettable(self, retention: Retention) -> bool:
        return bool(self._to_forget(retention._replace(limit=1)))

    def _to_forget(self, retention: Retention) -> list[tuple[int, Job]]:
        """Return the jobs that a commit with this retention forgets, with their slots; the records say that each may go.

        Raises:
            Damaged: The index files a job among those to be forgotten of which the records say otherwise.
        """
        found: list[tuple[int, Job]] = []
        for states, keep in (((DONE, CANCELLED), retention.keep_ended), ((DEAD,), retention.keep_dead)):
            lanes = self._index.ended_lanes(states)
            beyond = self._ended_count(states) - keep
            if beyond <= 0 and all(lane.low > retention.now_us for lane in lanes):
                continue
            passed_over = 0
            for (when, _, slot), job in self._ended(lanes):
                if len(found) == retention.limit or passed_over == _PASSED_OVER or not (when <= retention.now_us or beyond > 0):
                    break
                if job.state not in states or job.forget_at_us != when:
                    raise Damaged(f"job {job.seq} is filed as one to be forgotten, and its record says otherwise")
                if not (when <= retention.now_us or job.ended_at_us <= retention.ended_before_us):
                    passed_over += 1
                    continue
                found.append((slot, job))
                beyond -= 1
        return found

    def _ended(self, lanes: Sequence[Lane]) -> Iterator[tuple[Entry, Job]]:
        """Yield the jobs of some lanes with their entries, in order, reading a few records at a time."""
        entries = merge(*(self._index.lanes.walk(lane) for lane in lanes))
        while some := list(islice(entries, _READ_AT_ONCE)):
            jobs = self._peek([slot for _, _, slot in some])
            yield from ((entry, jobs[entry[2]]) for entry in some if entry[2] in jobs)

    def check(self) -> list[str]:
        """Read every page and every record, and compare the index with them, and them with it.

        Slow: some seconds for each hundred thousand jobs.
        """
        wrong = Check(self._connection, self._records, self._index, self.counts()).run()
        return [*self._damages, *self._quarantine.lines(), *wrong]

    # What all statements share.

    def _fact(self, name: str) -> Any:
        row = self._one("SELECT value, crc FROM facts WHERE name = ?", (name,))
        if row is None:
            return None
        value, crc = row
        if zlib.crc32(value) != crc:
            raise StoreCorrupt(f"{self.path}: the stored {name} does not match its checksum; {disk.way_out(self.path)}")
        return msgpack.unpackb(value)

    @property
    def _index(self) -> Index:
        """The index, with the last commit in it: that waits until its answers have left or until something is looked for."""
        if self._unfiled is not None:
            self._catch_up()
        if self._opened_index is None:
            raise StoreFailed(f"{self.path} is not open")
        return self._opened_index

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._database is None:
            raise StoreFailed(f"{self.path} is not open")
        return self._database

    def _all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        return self._connection.execute(statement, values).fetchone()

    def _is_full(self, error: Exception) -> bool:
        return disk.is_full(error, self.path.parent)

    def _fail(self, error: Exception) -> NoReturn:
        """Turn the error of a file into ours: a full disk is survived, anything else stops the server."""
        if isinstance(error, OSError):
            if self._is_full(error):
                self._room.note_full()
                raise StoreFull(f"{self.path}: {error}") from error
            raise StoreFailed(f"{self.path}: {error}") from error
        if not isinstance(error, sqlite3.Error):
            raise StoreFailed(f"{self.path}: its index cannot be rebuilt: {error}") from error
        code = code_of(error)
        if self._is_full(error):
            self._room.note_full()
            raise StoreFull(f"{self.path}: {error}") from error
        if code in _BUSY_CODES and self._opened_index is None:
            raise StoreLocked(f"another process has {self.path} open, though not its lock: {error}", pid="") from error
        is_corrupt = code in _CORRUPT_CODES or "Could not decode to UTF-8" in str(error)
        if is_corrupt and not self._is_disk_to_blame():
            raise StoreCorrupt(f"{self.path}: {error}; {disk.way_out(self.path)}") from error
        raise StoreFailed(f"{self.path}: {error}") from error

    def _is_disk_to_blame(self) -> bool:
        """Return whether the disk fails, and the database is sound as far as it can be read: SQLite calls both corruption."""
        with suppress(sqlite3.Error):
            if self._database is not None and self._all("PRAGMA quick_check(1)") == [("ok",)]:
                return True
        return not disk.is_readable(self.path)

    def _refuse_disorder(self) -> None:
        """Refuse a database whose pages are not where they belong: rows would be missed, or found twice.

        Raises:
            StoreCorrupt: It is one.
            StoreFailed: It cannot be read.
        """
        ((found,),) = self._all("PRAGMA quick_check(1)")
        if not found.startswith(_DISORDER):
            return  # What is wrong in a row is found when the row is read, and costs that row alone.
        words = f"{self.path}: {' '.join(found.removeprefix(_DISORDER).split())}"
        if self._is_disk_to_blame():
            raise StoreFailed(words)
        raise StoreCorrupt(f"{words}; {disk.way_out(self.path)}")


def code_of(error: sqlite3.Error) -> int:
    """Return the primary result code of an error of SQLite."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF
