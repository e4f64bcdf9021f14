"""The way out of a damaged SQLite store: its sound jobs are written into a new store, and the others are named.

The damaged files are copied first and never written to. A job is taken over if the record of its enq and its newest change are
what was written; if that is unknown, the job is left out, since it may have been cancelled or done meanwhile.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.clock import Mark
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreUnfit
from givalia_core.model import Job
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Store
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.places import change_number
from givalia_core.store.sqlite.records import Forgotten, likely_seq
from givalia_core.store.sqlite.tables import Row, changes_of, jobs_of, row_of

_JOBS_AT_ONCE: Final = 1_000
_BYTES_AT_ONCE: Final = 4 << 20
_FAR: Final = 1 << 62
_OF_THE_DISK: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM})


class Salvaged(NamedTuple):
    """The number of jobs in the new store, and a sentence about each thing that could not be taken over."""

    jobs: int
    lost: list[str]


def salvage(path: Path, new: Store) -> Salvaged:
    """Write the sound jobs of the store at this path into a new store, which is not open and holds no job.

    Raises:
        StoreLocked: A server has the damaged store open.
        StoreUnfit: The new store holds jobs, or there is no store to read.
        StoreFull: The disk has no room for the new store, or for a copy of this one.
        StoreError: The new store cannot be written.
    """
    with disk.ours(path):
        return _salvage(path, new)


def _salvage(path: Path, new: Store) -> Salvaged:
    if not path.is_file():
        raise StoreUnfit(f"there is no store at {path}")
    lock = disk.Lock(path.with_name(path.name + ".lock"))
    try:
        new.open()
        try:
            if any(new.counts().values()):
                raise StoreUnfit("the new store holds jobs already")
            with tempfile.TemporaryDirectory(prefix=path.name, dir=path.parent) as folder:
                copy = _copied(path, Path(folder))
                with closing(sqlite3.connect(copy, isolation_level=None)) as database:
                    return _Salvage(copy, database, new).run()
        finally:
            new.close()
    finally:
        lock.release()


def _copied(path: Path, folder: Path) -> Path:
    for name in (path.name, path.name + "-wal"):
        if (file := path.with_name(name)).is_file():
            shutil.copyfile(file, folder / name)
    return folder / path.name


class _Salvage:
    def __init__(self, path: Path, database: sqlite3.Connection, new: Store) -> None:
        self._path = path
        self._database = database
        self._new = new
        self._lost: list[str] = []
        self._forgotten: set[int] = set()
        self._newest: dict[int, tuple[int, int, int]] = {}  # Seq -> version, row and place of the newest change.
        self._unsure: set[int] = set()
        self._last_seq = self._last_fence = 0

    def run(self) -> Salvaged:
        self._pages()
        mark = self._facts()
        self._changes()
        jobs, batch, size = 0, list[Job](), 0
        for job in self._jobs():
            self._last_seq, self._last_fence = max(self._last_seq, job.seq), max(self._last_fence, job.fence)
            batch.append(job)
            size += len(job.params) + len(job.result or b"")
            if len(batch) == _JOBS_AT_ONCE or size >= _BYTES_AT_ONCE:
                jobs += self._write(batch, mark)
                batch, size = [], 0
        jobs += self._write(batch, mark)
        self._new.raise_numbers(self._last_seq, self._last_fence)
        return Salvaged(jobs, self._lost)

    def _pages(self) -> None:
        """Name the pages that are not where they belong: rows may be missing without a trace in the others."""
        try:
            lines = [line for (line,) in self._database.execute("PRAGMA quick_check") if line != "ok"]
        except sqlite3.Error as error:
            lines = [self._damage(error)]
        self._lost += [f"pages of the database: {part}" for line in lines for part in line.splitlines()]

    def _facts(self) -> Mark:
        """Return the mark of the clocks; note the last numbers."""
        facts: dict[str, Any] = {}
        for name in ("epoch", "commit"):
            try:
                value, crc = self._database.execute("SELECT value, crc FROM facts WHERE name = ?", (name,)).fetchone()
                if zlib.crc32(value) != crc:
                    raise StoreCorrupt("it does not match its checksum")
                facts[name] = msgpack.unpackb(value)
            except sqlite3.Error as error:
                self._lost.append(f"the stored {name}: {self._damage(error)}")
            except (StoreCorrupt, TypeError) as error:
                self._lost.append(f"the stored {name}: {error}")
        self._last_fence = (facts.get("epoch") or 0) << FENCE_COUNTER_BITS
        _, _, self._last_seq, mark, *_ = facts.get("commit") or (0, 0, 0, None)
        return Mark(*mark) if mark else Mark("", 0, 0, 0)

    def _damage(self, error: sqlite3.Error) -> str:
        """Return the words of an error that tells of damage.

        Raises:
            StoreFull, StoreFailed: The error comes from the disk that holds the copy.
        """
        if disk.code_of(error) not in _OF_THE_DISK:
            return str(error)
        kind = StoreFull if disk.is_full(error, self._path.parent) else StoreFailed
        raise kind(f"the copy of the damaged store cannot be read: {error}") from error

    def _changes(self) -> None:
        for row in self._rows("changes", "number"):
            for place, record in changes_of(row, lambda *bad, row=row: self._lose_change(row, *bad)):
                if isinstance(record, Forgotten):
                    self._forgotten.add(record.seq)
                elif record.version > self._newest.get(record.seq, (0,))[0]:
                    self._newest[record.seq] = record.version, row.number, change_number(place)

    def _lose_change(self, row: Row, number: int, place: int, why: str) -> None:
        seq = likely_seq(row.records[place]) if place >= 0 else None
        if seq is None:
            self._lost.append(f"change {number}.{place}: {why}; it is not known of which job")
        else:
            self._unsure.add(seq)

    def _jobs(self) -> Iterator[Job]:
        for row in self._rows("jobs", "first_seq"):
            wanted = {self._newest[seq][1] for seq in range(row.number, row.number + 64) if seq in self._newest}
            changes = {number: found for number in wanted if (found := self._change_row(number)) is not None}
            for job in jobs_of(row, lambda row, place, why: self._lost.append(f"job {row + max(place, 0)}: {why}")):
                if job.seq in self._forgotten:
                    continue
                newest = None if job.seq in self._unsure else self._newest_of(job, changes)
                if newest is None:
                    self._lost.append(f"job {job.seq} (id {job.id.hex()}): what became of it cannot be read")
                else:
                    yield newest

    def _newest_of(self, job: Job, changes: dict[int, Row]) -> Job | None:
        """Return the job after its newest change; None if the change is not in these rows."""
        if job.seq not in self._newest:
            return job
        _, number, place = self._newest[job.seq]
        if number in changes:
            for at, record in changes_of(changes[number], lambda *_: None):
                if change_number(at) == place and isinstance(record, Job) and record.seq == job.seq:
                    return record.changed(params=job.params)
        return None

    def _change_row(self, number: int) -> Row | None:
        """Return a row of `changes`; None if it is not found by its number, although it was read before."""
        try:
            found = self._database.execute("SELECT records FROM changes WHERE number = ?", (number,)).fetchone()
        except sqlite3.Error:
            return None
        return None if found is None else row_of(number, *found)

    def _rows(self, table: str, column: str) -> Iterator[Row]:
        """Yield the readable rows of a table, each once; behind an unreadable row, search for the next readable one.

        Where pages are swapped, rows come out of order. The search never goes back, or it would not end.
        """
        after = -1
        seen: set[int] = set()
        while True:
            try:
                select = f"SELECT {column}, records FROM {table} WHERE {column} > ? ORDER BY {column}"
                for number, records in self._database.execute(select, (after,)):
                    after = max(after, number)
                    if number not in seen:
                        seen.add(number)
                        yield row_of(number, records)
                return
            except sqlite3.Error as error:
                # Python fetches the next row before it returns one: the last readable row is not seen yet.
                if (last := self._next(table, column, after)) is not None and last[0] not in seen:
                    after = last[0]
                    seen.add(after)
                    yield row_of(*last)
                self._lost.append(f"rows of {table} behind {after}: {self._damage(error)}")
                following = self._readable(table, column, after)
                if following is None:
                    return
                after = following

    def _readable(self, table: str, column: str, after: int) -> int | None:
        """Return a number behind which rows can be read again, as near as can be found."""
        bad, step = after, 1
        while step < _FAR and not self._is_readable(table, column, after + step):
            bad, step = after + step, step * 2
        if step >= _FAR:
            return None
        good = after + step
        while good - bad > 1:
            middle = (good + bad) // 2
            if self._is_readable(table, column, middle):
                good = middle
            else:
                bad = middle
        return good

    def _is_readable(self, table: str, column: str, after: int) -> bool:
        return self._next(table, column, after) is not None

    def _next(self, table: str, column: str, after: int) -> tuple[int, bytes] | None:
        """Return the next row behind a number, alone; None if there is none or it cannot be read."""
        select = f"SELECT {column}, records FROM {table} WHERE {column} > ? ORDER BY {column} LIMIT 1"
        try:
            row: tuple[int, bytes] | None = self._database.execute(select, (after,)).fetchone()
        except sqlite3.Error:
            return None
        return row

    def _write(self, jobs: list[Job], mark: Mark) -> int:
        if not jobs:
            return 0
        refused = self._new.commit([Change(None, job) for job in jobs], mark).refused
        self._lost += [f"job {jobs[place].seq}: its id or key is that of another job" for place in refused]
        return len(jobs) - len(refused)
