"""The parts of an open SQLite store: its files and its connection, its records and its index, its counts and numbers.

The store itself (`store`) has the path of every job. Opening, mending and chores work on these parts, in files of their own.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import msgpack

from givalia_core.clock import Mark
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreLocked
from givalia_core.model import JobState
from givalia_core.store.packing import NUMBER
from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.copying import Copies
from givalia_core.store.sqlite.index import Index, Scrub, Sweeper
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.sqlite.quarantine import Quarantine
from givalia_core.store.sqlite.tables import Records

Counts = Mapping[tuple[str, JobState], int]

KEEP_FACT: Final = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)"
_BUSY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CORRUPT_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DISORDER: Final = "*** in database main ***"  # The beginning of SQLite's words for pages that are not in order.

log = logging.getLogger("givalia.store")
_pack = msgpack.Packer(autoreset=True).pack


class Core:
    """The parts of one store, open or not."""

    index: Index  # The opening sets these.
    sweeper: Sweeper
    scrub: Scrub

    def __init__(self, path: Path, note_full: Callable[[bool], None]) -> None:
        """Open nothing yet. `note_full` is called with whether the disk is full, each time that this is found out."""
        self.path = path
        self.durability = "fsync"
        self.pid = 0
        self.lock: disk.Lock | None = None
        self.room = disk.Reserve(path.with_name(path.name + ".ballast"), note_full)
        self.files = disk.Files(path)
        self.database: sqlite3.Connection | None = None
        self.is_said_open = False  # Whether the file says, or may say, that a server has it open and that it has a log.
        self.is_copy = False  # Whether the store is a copy of another one, and nothing was committed since.
        self.has_index = False  # Whether the index is open.
        self.records = Records(self.connection)
        self.quarantine = Quarantine(self.connection, self.records)
        self.copies = Copies()
        self.epoch = 0
        self.commits = self.last_number = self.last_seq = 0  # As they stand in the file: commits, changes' rows, seqs.
        self.mark: Mark | None = None
        self.counted: dict[tuple[str, JobState], int] = {}
        self.in_state: Counter[JobState] = Counter()
        self.uncounted: Counts = {}  # Changes of counts that are not in their table.
        self.chores_due_s: list[float] = []  # On the monotonic clock, in the order of `chores.CHORES`,
        self.chore_due_s = 0.0  # and the first of them.
        self.rows_since_checkpoint = 0
        self.pages_per_row = 4.0
        self.damages: list[str] = []  # The damages found since the store was opened, one sentence each.
        self.rebuilds = 0  # Of the index, since the store was opened.

    # Statements.

    def connection(self) -> sqlite3.Connection:
        """Return the connection.

        Raises:
            StoreFailed: The store is not open.
        """
        if self.database is None:
            raise StoreFailed(f"{self.path} is not open")
        return self.database

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Begin, then commit or roll back; if the rollback fails too, the first error is raised."""
        database = self.connection()
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        finally:
            if database.in_transaction:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")

    def all(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a statement."""
        return self.connection().execute(statement, values).fetchall()

    def one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Return the first row of a statement."""
        return self.connection().execute(statement, values).fetchone()

    def fact(self, name: str) -> Any:
        """Return a fact; None if there is none.

        Raises:
            StoreCorrupt: The fact is not what was written.
        """
        row = self.one("SELECT value, crc FROM facts WHERE name = ?", (name,))
        if row is None:
            return None
        value, crc = row
        if zlib.crc32(value) != crc:
            raise StoreCorrupt(f"{self.path}: the stored {name} does not match its checksum; {disk.way_out(self.path)}")
        return msgpack.unpackb(value)

    def keep_fact(self, name: str, value: Any, database: sqlite3.Connection | None = None) -> None:
        """Write a fact, within a transaction."""
        packed = _pack(value)
        (database or self.connection()).execute(KEEP_FACT, (name, packed, zlib.crc32(packed)))

    def write_counts(self, counts: Counts) -> None:
        """Add these changes to the table of counts, within a transaction."""
        if deltas := [(module, NUMBER[state], delta) for (module, state), delta in counts.items() if delta]:
            self.connection().executemany(
                "INSERT INTO counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs", deltas
            )

    def count_from(self, counts: Counts) -> None:
        """Replace the counts by these."""
        self.counted, self.in_state = dict(counts), Counter()
        for (_, state), jobs in counts.items():
            self.in_state[state] += jobs

    # Errors.

    def refuse(self) -> NoReturn:
        """Raise the error of a store that is not open in this process."""
        if self.database is None:
            raise StoreFailed(f"{self.path} is not open")
        raise StoreFailed("the store was opened by another process; a fork may not use it")

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn errors of SQLite and of the system inside the block into ours."""
        try:
            yield
        except (sqlite3.Error, OSError, Damaged, IndexError) as error:
            self.fail(error)

    def is_full(self, error: Exception) -> bool:
        """Return whether an error says that the disk is full."""
        return disk.is_full(error, self.path.parent)

    def fail(self, error: Exception) -> NoReturn:
        """Turn the error of a file into ours: the server survives a full disk, and stops on anything else."""
        if isinstance(error, OSError):
            if self.is_full(error):
                self.room.note_full()
                raise StoreFull(f"{self.path}: {error}") from error
            raise StoreFailed(f"{self.path}: {error}") from error
        if not isinstance(error, sqlite3.Error):
            raise StoreFailed(f"{self.path}: its index cannot be rebuilt: {error}") from error
        code = disk.code_of(error)
        if self.is_full(error):
            self.room.note_full()
            raise StoreFull(f"{self.path}: {error}") from error
        if code in _BUSY_CODES and not self.has_index:
            raise StoreLocked(f"another process has {self.path} open, though not its lock: {error}", pid="") from error
        is_corrupt = code in _CORRUPT_CODES or "Could not decode to UTF-8" in str(error)
        if is_corrupt and not self.is_disk_to_blame():
            raise StoreCorrupt(f"{self.path}: {error}; {disk.way_out(self.path)}") from error
        raise StoreFailed(f"{self.path}: {error}") from error

    def is_disk_to_blame(self) -> bool:
        """Return whether the disk fails while the database is sound as far as it can be read: SQLite calls both corruption."""
        with suppress(sqlite3.Error):
            if self.database is not None and self.all("PRAGMA quick_check(1)") == [("ok",)]:
                return True
        return not disk.is_readable(self.path)

    def refuse_disorder(self) -> None:
        """Refuse a database whose pages are not where they belong: rows would be missed, or found twice.

        Raises:
            StoreCorrupt: The pages are not where they belong.
            StoreFailed: The database cannot be read.
        """
        ((found,),) = self.all("PRAGMA quick_check(1)")
        if not found.startswith(_DISORDER):
            return  # A fault in a row is found when the row is read, and costs that row alone.
        words = f"{self.path}: {' '.join(found.removeprefix(_DISORDER).split())}"
        if self.is_disk_to_blame():
            raise StoreFailed(words)
        raise StoreCorrupt(f"{words}; {disk.way_out(self.path)}")


def write_or_make_room(core: Core, write: Callable[[], None]) -> None:
    """Call `write` in a transaction; if the disk is full, give up the reserve and try once more."""
    try:
        with core.transaction():
            write()
    except sqlite3.Error as error:
        if not core.is_full(error):
            raise
        core.room.note_full()
        with core.transaction():
            write()
