"""The receiving end of `copying`: a new file that is made of the parts of a copy, and checked.

The file is a complete store, marked as a copy (`copies`). Nothing in the parts names a file or a statement.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreTooNew
from givalia_core.model import Job, JobState
from givalia_core.store.backups import CopyPart
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite import copies, disk
from givalia_core.store.sqlite.copying import FACTS, TABLES
from givalia_core.store.sqlite.quarantine import SCHEMA as QUARANTINE
from givalia_core.store.sqlite.tables import Records, changes_of, jobs_of

_COLUMNS: Final = (1, 1, 6)
_NO_ROWS: Final = (ValueError, TypeError, LookupError, OverflowError, sqlite3.ProgrammingError, sqlite3.IntegrityError)
_TICK_ROWS: Final = 1_000
_PUT: Final = tuple(
    f"INSERT OR REPLACE INTO {table} ({number}, {columns}) VALUES (?{', ?' * count})"
    for (table, number, columns), count in zip(TABLES, _COLUMNS, strict=True)
)
_DROP: Final = tuple(f"DELETE FROM {table} WHERE {number} = ?" for table, number, _ in TABLES)


class Received(NamedTuple):
    """The content of a finished copy: how many jobs, and a sentence about each fault, which the original has too."""

    jobs: int
    wrong: list[str]


class Receiver:
    """The maker of the file. The caller calls `close`, and removes the file unless `finish` has returned."""

    def __init__(self, path: Path) -> None:
        """Make an empty database; `path` is an empty file, or there is none.

        Raises:
            StoreFull, StoreFailed: The file cannot be written.
        """
        self._path = path
        self._crc = 0
        disk.create(path)
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = DELETE")  # One file, to be renamed.
        self._database.execute("PRAGMA synchronous = OFF")  # The file is synced once, when it is whole.
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        self._database.execute(QUARANTINE)
        self._database.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with contextlib.suppress(sqlite3.Error):
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
        self._database.close()

    def add(self, part: CopyPart) -> None:
        """Add the next part.

        Raises:
            StoreTooNew: The server's store has a later format than this version knows.
            StoreCorrupt: The part is not what the server has sent.
            StoreFull, StoreFailed: The file cannot be written.
        """
        if not disk.READABLE <= part.format <= disk.FORMAT:
            raise StoreTooNew(f"the server's store has format {part.format}; this Givalia knows {disk.FORMAT} at most")
        self._crc = zlib.crc32(part.payload, self._crc)
        if self._crc != part.crc:
            raise StoreCorrupt("a part of the backup is not what the server has sent")
        with self._writing():
            for entry in msgpack.unpackb(part.payload):
                self._take(*entry)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with disk.ours(self._path):
                yield
        except _NO_ROWS as error:
            raise StoreCorrupt(f"a part of the backup is none: {error}") from error
        except sqlite3.Error as error:
            kind = StoreFull if disk.is_full(error, self._path.parent) else StoreFailed
            raise kind(f"{self._path}: {error}") from error

    def _take(self, place: int, number: Any, row: Any) -> None:
        if place == FACTS:
            self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (number, *row))
        elif row is None:
            self._database.execute(_DROP[place], (number,))
        else:
            self._database.execute(_PUT[place], (number, *row))

    def finish(self, last: CopyPart, on_progress: Callable[[int], None] = lambda _: None) -> Received:
        """Check the received file, and make it a store, on stable storage on return.

        Args:
            last: The last part, which was added.
            on_progress: Called now and then with the number of rows that are checked.

        Raises:
            StoreCorrupt: There are not as many jobs as the server has.
            StoreFull, StoreFailed: The file cannot be written.
        """
        with self._writing():
            checked = _Census(self._database, on_progress)
            counts = checked.run()
            set_aside = [
                f"job {seq} is in quarantine: {why}"
                for seq, why in self._database.execute("SELECT seq, why FROM quarantine ORDER BY number")
            ]
            if counts.total() != last.jobs and not checked.wrong:
                raise StoreCorrupt(f"the server has {last.jobs} jobs, and {counts.total()} of them arrived")
            self._database.executemany(
                "INSERT INTO counts VALUES (?, ?, ?)", [(module, NUMBER[state], n) for (module, state), n in counts.items()]
            )
            commits, rows, seq, at, *_ = copies.fact(self._database, "commit") or (0, 0, 0, None)
            copies.keep_fact(self._database, "commit", (commits, rows, seq, at))  # Counts are in their table.
            copies.mark(self._database, last.made_us)
            self._database.execute(f"PRAGMA user_version = {last.format}")
            self._database.execute("COMMIT")
            found = self._database.execute("PRAGMA quick_check(1)").fetchone()
            if found != ("ok",):
                raise StoreCorrupt(f"the copy is damaged: {found[0]}")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.close()
            disk.sync(self._path)
        return Received(counts.total(), checked.wrong + set_aside)


class _Census:
    """One reading of every record, which counts the jobs."""

    def __init__(self, database: sqlite3.Connection, on_progress: Callable[[int], None]) -> None:
        self._records = Records(lambda: database)
        self._on_progress = on_progress
        self._rows = 0
        self._newest: dict[int, tuple[int, JobState, str]] = {}  # Seq -> version, state and module of the newest change.
        self._forgotten: set[int] = set()
        self.wrong: list[str] = []

    def run(self) -> Counter[tuple[str, JobState]]:
        for row in self._records.changes(0):
            self._tick()
            for _, record in changes_of(row, lambda *bad: self.wrong.append("row {} of changes, record {}: {}".format(*bad))):
                if not isinstance(record, Job):
                    self._forgotten.add(record.seq)
                elif record.version > self._newest.get(record.seq, (0,))[0]:
                    self._newest[record.seq] = record.version, record.state, record.module
        counts: Counter[tuple[str, JobState]] = Counter()
        for row in self._records.bases(0):
            self._tick()
            for job in jobs_of(row, self._lose):
                if job.seq not in self._forgotten:
                    version, state, module = self._newest.get(job.seq, (0, job.state, job.module))
                    counts[(module, state) if version > job.version else (job.module, job.state)] += 1
        return counts

    def _lose(self, row: int, place: int, why: str) -> None:
        self.wrong.append(f"row {row} of jobs, record {place}: {why}")

    def _tick(self) -> None:
        self._rows += 1
        if self._rows % _TICK_ROWS == 0:
            self._on_progress(self._rows)
