"""Copies of a SQLite store: how one is marked, and at which boot epoch a server begins that opens one.

A copy and its original go separate ways, and no fence may be granted by both: a worker's effects are guarded by the larger
fence. So a copy begins its epochs ahead of its original by more starts than the original is likely to make, and counts the time
since it was made besides: a second server that is restored from one backup begins above the first, if that was not started more
often than once a minute in between.
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
MINUTES_MOST: Final = 1 << 20  # Two years: a clock that is wrong must not use up the epochs, of which there are 2 ** 23.
MARK: Final = "copied"
"""The fact of a copy that no server has changed yet: when it was made, on the wall clock, and its epoch then."""
COMMITS: Final = "copied_commits"
"""The number of its commits then: servers that do not know the mark leave it, and count on."""

_MINUTE_US: Final = 60 * SECOND_US


def mark(database: sqlite3.Connection, made_us: int) -> None:
    """Mark the store of this connection as a copy; call it within a transaction.

    It counts as closed and without an index. Its epoch is ahead already, for versions that do not know the mark.

    Raises:
        StoreCorrupt: The epoch is not what was written.
    """
    epoch = (fact(database, "epoch") or 0) + STARTS
    commits, *_ = fact(database, "commit") or (0,)
    for name, value in (("epoch", epoch), ("open", 0), ("index", 0), (MARK, (made_us, epoch)), (COMMITS, commits)):
        keep_fact(database, name, value)


def first_epoch(made_us: int, epoch: int, now_us: int) -> int:
    """Return the first epoch of a copy that was marked with this one: there is one more for each minute since it was made."""
    return epoch + 1 + min(max(now_us - made_us, 0) // _MINUTE_US, MINUTES_MOST)


def words(made_us: int, epoch: int) -> str:
    """Return what the server says of a copy that it opens."""
    made = datetime.fromtimestamp(made_us / SECOND_US, UTC).isoformat(timespec="seconds")
    return (
        f"this is a copy of another store, made at {made}: what was enqueued since is missing, and jobs that have ended since"
        f" run again. Fences begin at epoch {epoch}, above those of the original"
    )


def is_as_it_was_made(path: Path) -> bool:
    """Return whether a file is a copy that no server has opened, whatever lies beside it.

    Such a copy has no log. One that is there belongs to the store that had this name before, and SQLite would apply it.
    """
    with contextlib.suppress(sqlite3.Error, StoreCorrupt, ValueError):
        database = sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True)
        with contextlib.closing(database):
            return bool(fact(database, MARK)) and fact(database, "open") == 0
    return False


def state_of(path: Path) -> frozenset[tuple[str, bytes]] | None:
    """Return what tells the store of a copy from any other, and from itself at another time; None if it is no copy.

    These are all its facts but for the instant of the copying: the clocks of its last commit are among them.
    """
    with contextlib.suppress(sqlite3.Error, StoreCorrupt, ValueError):
        database = sqlite3.connect(f"file:{quote(str(path))}?immutable=1", uri=True)
        with contextlib.closing(database):
            if fact(database, MARK):
                return frozenset(database.execute("SELECT name, value FROM facts WHERE name <> ?", (MARK,)))
    return None


def fact(database: sqlite3.Connection, name: str) -> Any:
    """Return a fact; None if there is none.

    Raises:
        StoreCorrupt: It is not what was written.
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
