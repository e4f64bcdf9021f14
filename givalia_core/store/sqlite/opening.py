"""Opens and closes a SQLite store, also after a kill, in a copy of another store, and in a fork that must touch nothing."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from givalia_core.clock import Mark, SystemClock, boot_id
from givalia_core.errors import StoreCorrupt, StoreMissing, StoreUnfit
from givalia_core.model import STORED_STATES, JobState
from givalia_core.store.base import Opened
from givalia_core.store.sqlite import copies, disk
from givalia_core.store.sqlite.core import Core, write_or_make_room
from givalia_core.store.sqlite.index import (
    DAMAGED,
    FULL_ERRNOS,
    Index,
    Sealed,
    begin,
    close_index,
    open_index,
    replay,
    seal,
    trim_if_large,
)
from givalia_core.store.sqlite.mending import mending, rebuild, settle_in
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.sqlite.upgrade import upgrade as upgrade_format

CACHE_KIB: Final = 24 << 10
_SCRUB_AT_START_S: Final = 0.1

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
_left_open: list[sqlite3.Connection] = []


class Allowed(NamedTuple):
    """The permissions of an opening: to make a store if there is none, to upgrade one, to use one on a network file system."""

    create: bool
    upgrade: bool
    network: bool


def open_core(core: Core, allowed: Allowed) -> Opened:
    """Open the store; if that fails, nothing stays open.

    Raises:
        As `Store.open`, and errors of SQLite and of the system.
    """
    disk.prepare_folder(core.path, allow_network=allowed.network)
    core.lock = disk.Lock(core.path.with_name(core.path.name + ".lock"))
    try:
        with core.failing():  # While the database is open: `fail` may ask it what is wrong.
            upgrade_format(core.path, may_upgrade=allowed.upgrade)
            core.files.is_new = disk.prepare(core.path, may_create=allowed.create)
            is_in_memory = disk.filesystem(core.path.parent) in disk.MEMORY_FILESYSTEMS
            core.durability = "memory" if is_in_memory else "fsync"
            has_log = _prepare_log(core)
            recovered = _open_database(core, has_log)
            _open_index(core)
            write_or_make_room(core, lambda: _keep_epoch(core))
            # SQLite syncs the folder too when it makes the log, but hides errors.
            disk.sync(core.path.parent)
            core.files.open()
            _first_checkpoint(core)  # From now on the file says without its log that it has one.
            mending(core, lambda: core.scrub.go_on(_SCRUB_AT_START_S))
            trim_if_large(core.index)
            return Opened(core.epoch, core.mark, core.last_seq, max(recovered, 0), core.files.is_new)
    except BaseException:
        abandon(core)
        raise


def upgrade(core: Core, allowed: Allowed) -> tuple[int, int]:
    """Bring the store to the present format by opening and closing it; return the formats before and after.

    Raises:
        StoreMissing: There is no store.
        As `open_core`.
    """
    if not core.path.exists():
        raise StoreMissing(f"there is no store at {core.path}")
    disk.check_header(core.path, least=1)
    before = disk.format_of(core.path)
    open_core(core, allowed._replace(upgrade=True))
    close_core(core)
    return before, disk.FORMAT


def _prepare_log(core: Core) -> bool:
    """Remove another store's log, and make an empty log if there is none; return whether the store has a log of its own."""
    log_path = Path(f"{core.path}-wal")
    has_log = log_path.exists() and log_path.stat().st_size > 0
    if has_log and copies.is_as_it_was_made(core.path):
        log.warning("%s is the log of another store: a copy has taken its place. It is removed", log_path)
        log_path.unlink()
        has_log = False
    if not log_path.exists():
        # If there is no room for another file, SQLite would not say why it cannot open one.
        os.close(os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    return has_log


def _open_database(core: Core, has_log: bool) -> int:
    """Connect, and read the last numbers and the counts; return how many pages of a log were left behind."""
    # Until the file has been read: a start that fails must not remove a log that may be needed.
    core.is_said_open = has_log
    core.pid = os.getpid()
    core.database = sqlite3.connect(core.path, isolation_level=None, check_same_thread=False, timeout=0)
    for name, value, expected in _PRAGMAS:
        core.one(f"PRAGMA {name} = {value}")
        (actual,) = core.one(f"PRAGMA {name}") or (None,)
        if actual != expected:
            raise StoreUnfit(f"{core.path}: {name} is {actual!r} and will not become {expected!r}")
    core.damages, core.rebuilds = [], 0
    # The first read of the log drops an end that a crash has torn: no caller was told that it is durable.
    core.epoch = core.fact("epoch") or 0
    if not has_log and core.fact("open") == core.epoch != 0:
        raise StoreCorrupt(
            f"{core.path} was not closed by its last server, and its log ({core.path.name}-wal) is missing or empty: what"
            f" was in it is lost. {disk.way_out(core.path)}"
        )
    core.is_said_open = core.fact("open") == core.epoch != 0
    core.room.take()
    recovered = _first_checkpoint(core)
    core.commits, core.last_number, core.last_seq, mark, *changes = core.fact("commit") or (0, 0, 0, None)
    core.mark = Mark(*mark) if mark else None
    _read_counts(core, changes[0] if changes else ())
    core.quarantine.open()
    return recovered


def _open_index(core: Core) -> None:
    """Open the index as the last run left it, or rebuild it."""
    before, core.epoch = core.epoch, core.epoch + 1
    core.is_copy = bool(copied := core.fact(copies.MARK))
    if core.is_copy and core.fact(copies.COMMITS) in (None, core.commits):
        # Else a server of an earlier version, which leaves the mark, has used the copy.
        core.epoch = max(core.epoch, _epoch_of_copy(core, *copied))
    index = core.index = Index(disk.index_folder(core.path), core.records.read, core.room.note_full)
    core.has_index = True
    sealed = open_index(index, before, core.commits, boot_id(), core.fact("index"))
    if index.ahead:
        _say_commits_are_missing(core, index.ahead)
    if sealed is not None:
        begin(index, core.epoch, boot_id())
    if sealed is not None and _has_replayed(core, sealed):
        settle_in(core)
        return
    if index.strangeness.startswith(DAMAGED) and index.is_sure:
        core.damages.append(f"the index was damaged, and has been rebuilt: {index.strangeness}")
    rebuild(core, index.strangeness)


def _epoch_of_copy(core: Core, made_us: int, marked: int) -> int:
    """Log that the store is a copy, remove an index that is not its own, and return its first epoch."""
    epoch = copies.first_epoch(made_us, marked, SystemClock().read().wall_us)
    log.warning("%s: %s", core.path, copies.words(made_us, epoch))
    if core.fact("index") == 0:
        shutil.rmtree(disk.index_folder(core.path), ignore_errors=True)
    return epoch


def _say_commits_are_missing(core: Core, commits: int) -> None:
    words = (
        f"the newest commits are missing, {commits} that the index knows of: the log ({core.path.name}-wal) was damaged, or"
        f" the store is an older copy"
    )
    log.error("%s: %s", core.path, words)
    core.damages.append(words)


def _has_replayed(core: Core, sealed: Sealed) -> bool:
    """File in the index the changes of the last run since the last seal; return False if that meets damage."""
    index = core.index
    try:
        replay(index, core.records, sealed)
    except (Damaged, StoreCorrupt, IndexError) as error:
        index.strangeness = f"{DAMAGED}: {error}"
        return False
    index.conclude(core.commits, core.last_number, core.last_seq)
    return True


def _keep_epoch(core: Core) -> None:
    core.is_said_open = True
    core.connection().execute(f"PRAGMA user_version = {disk.FORMAT}")
    core.keep_fact("epoch", core.epoch)
    core.keep_fact("open", core.epoch)


def _first_checkpoint(core: Core) -> int:
    """Copy the log back into the file; return how many pages that is."""
    try:
        _, recovered, _ = core.one("PRAGMA wal_checkpoint(PASSIVE)")
    except sqlite3.Error as error:
        if not core.is_full(error):
            raise
        core.room.note_full()  # The log keeps what could not be copied back.
        return 0
    return int(recovered)


def _read_counts(core: Core, changes: Iterable[tuple[str, int, int]]) -> None:
    """Read the table of counts, and add the changes since it was written."""
    rows = [*core.all("SELECT module, state, jobs FROM counts"), *changes]
    if any(not 0 <= state < len(STORED_STATES) for _, state, _ in rows):
        raise StoreCorrupt(f"{core.path}: the stored counts name a state that no job can have")
    counts: Counter[tuple[str, JobState]] = Counter()
    for module, state, jobs in rows:
        counts[module, STORED_STATES[state]] += jobs
    core.count_from(+counts)
    core.uncounted = {(module, STORED_STATES[state]): change for module, state, change in changes}


# Closing.


def close_core(core: Core) -> None:
    """Close the store, whole; the caller has filed the last commit in the index."""
    database, core.database = core.database, None
    if database is not None:
        try:
            if _has_said_closed(core, database):
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                _close_index(core)
        except (sqlite3.Error, OSError) as error:
            core.fail(error)
        finally:
            core.database = database
            abandon(core)
    abandon(core)


def after_fork(core: Core) -> None:
    """Close every file in a fork without writing to it, and never close the connection of SQLite.

    SQLite does not know that it was forked: closing the connection would remove the parent's log.
    """
    database, core.database = core.database, None
    if database is not None:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(database))  # The end of the interpreter does not close it either.
    abandon(core)


def abandon(core: Core) -> None:
    """Close every file as it is."""
    core.copies.forget()
    database, core.database = core.database, None
    if database is not None:
        _close_database(core, database)
    if core.has_index:
        close_index(core.index, sync=False)
        core.has_index = False
    core.files.close()
    if core.lock is not None:
        core.lock.release()
        core.lock = None


def _has_said_closed(core: Core, database: sqlite3.Connection) -> bool:
    """Write down that the store is closed, so that no server needs its log; return False if the disk has no room for that."""
    if not core.is_said_open:
        return True
    for _ in range(2):
        try:
            database.execute("BEGIN IMMEDIATE")
            core.keep_fact("open", 0, database)
            database.execute("COMMIT")
            core.is_said_open = False
            return True
        except sqlite3.Error as error:
            if not core.is_full(error):
                raise
            if database.in_transaction:
                database.execute("ROLLBACK")
            core.room.note_full()
    return False


def _close_database(core: Core, database: sqlite3.Connection) -> None:
    """Close the database, unless the file says that it has a log: closing would remove the log, and a start would miss it."""
    with suppress(sqlite3.Error):
        if _has_said_closed(core, database):
            database.close()
            return
    _left_open.append(database)


def _close_index(core: Core) -> None:
    """Close the index, whole if possible; the next start files what a failed commit or a full disk kept out of it."""
    index = core.index
    is_whole = index.slots.header.commits == core.commits and index.names.is_whole
    if is_whole:
        try:
            seal(index.lanes, core.last_number, core.last_seq)
        except Damaged as error:
            log.warning("the index of %s is rebuilt at the next start: %s", core.path, error)
            is_whole = False
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            is_whole = False
    close_index(index, sync=is_whole)
