"""Copies of a SQLite store: the mark of a copy, and the boot epoch at which its first server begins.

A copy and its original go separate ways, and must never grant the same fence: a worker's effects are guarded by the larger
fence. So the epochs of a copy begin ahead of the original's by more starts than the original is likely to make, plus one for
each minute since the copy was made: a second server that is restored from one backup begins above the first, if the first was
started at most once a minute in between.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgpack

from givalia_core.clock import SECOND_US
from givalia_core.errors import StoreCorrupt

STARTS: Final = 1 << 16  # A server that fails at once and is restarted every two seconds needs 36 hours for so many.
MINUTES_MOST: Final = 1 << 20  # Two years: a wrong clock must not use up the 2 ** 23 epochs.
MARK: Final = "copied"
"""The fact of a copy that no server has changed yet: when it was made, on the wall clock, and its epoch then."""
COMMITS: Final = "copied_commits"
"""The number of the copy's commits then: versions that do not know the mark leave it, but raise the number of commits."""

_MINUTE_US: Final = 60 * SECOND_US


def mark(database: sqlite3.Connection, made_us: int) -> None:
    """Mark the store of this connection as a copy; call it within a transaction.

    The copy counts as closed and without an index. Its epoch is raised already, for versions that do not know the mark.

    Raises:
        StoreCorrupt: The epoch or the number of commits is not what was written.
    """
    epoch = (fact(database, "epoch") or 0) + STARTS
    commits, *_ = fact(database, "commit") or (0,)
    for name, value in (("epoch", epoch), ("open", 0), ("index", 0), (MARK, (made_us, epoch)), (COMMITS, commits)):
        keep_fact(database, name, value)


def first_epoch(made_us: int, epoch: int, now_us: int) -> int:
    """Return the first epoch of a copy that was marked with `epoch`: the next one, and one more for each minute since."""
    return epoch + 1 + min(max(now_us - made_us, 0) // _MINUTE_US, MINUTES_MOST)


def words(made_us: int, epoch: int) -> str:
    """Return the server's log line about a copy that it opens."""
    made = datetime.fromtimestamp(made_us / SECOND_US, UTC).isoformat(timespec="seconds")
    return (
        f"this is a copy of another store, made at {made}: what was enqueued since is missing, and jobs that have ended since"
        f" run again. Fences begin at epoch {epoch}, above those of the original"
    )


def is_as_it_was_made(path: Path) -> bool:
    """Return whether a file is a copy that no server has opened, whatever lies beside it.

    Such a copy has no log. A log beside it belongs to the store that had this name before, and SQLite would apply it.
    """
    with contextlib.suppress(sqlite3.Error, StoreCorrupt, ValueError):
        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(database):
            return bool(fact(database, MARK)) and fact(database, "open") == 0
    return False


def state_of(path: Path) -> frozenset[tuple[str, bytes]] | None:
    """Return the facts that tell a copy's store from any other, and from itself at another time; None if it is no copy.

    These are all facts except the instant of the copying; they include the clocks of the last commit.
    """
    with contextlib.suppress(sqlite3.Error, StoreCorrupt, ValueError):
        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
        with contextlib.closing(database):
            if fact(database, MARK):
                return frozenset(database.execute("SELECT name, value FROM facts WHERE name <> ?", (MARK,)))
    return None


def fact(database: sqlite3.Connection, name: str) -> Any:
    """Return a fact; None if there is none.

    Raises:
        StoreCorrupt: The fact is not what was written.
    """
    row = database.execute("SELECT value, crc FROM facts WHERE name = ?", (name,)).fetchone()
    if row is None:
        return None
    value, crc = row
    if zlib.crc32(value) != crc:
        raise StoreCorrupt(f"the stored {name} does not match its checksum")
    return msgpack.unpackb(value)


def keep_fact(database: sqlite3.Connection, name: str, value: Any) -> None:
    """Write a fact; call it within a transaction."""
    packed = msgpack.packb(value)
    database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed)))
