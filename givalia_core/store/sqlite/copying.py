"""An online copy of a SQLite store, in small parts, while the store is written.

The tables are read from the first row to the last, each part between two commits. Triggers note the rows that are rewritten or
removed; those that were sent already are sent again, as they are then. New rows are still to come. The part that reaches the
last row with no row left to send again is the last one: it completes the copy as the store is at that moment. No part delays a
commit for longer than it takes to read a few hundred KiB.
"""

from __future__ import annotations

import sqlite3
import time
import zlib
from typing import Any, Final

import msgpack

from givalia_core.clock import SystemClock
from givalia_core.errors import BadRequest, Busy, NotFound
from givalia_core.store.backups import CopyPart
from givalia_core.store.sqlite import disk

PART_BYTES: Final = 256 << 10
PART_AGAIN: Final = 64  # Rows that a part sends again before it goes on.
IDLE_S: Final = 60.0  # After so long without a request for a part, the copy is given up.
TAKEN_OVER_S: Final = 3.0  # After so long without a request, another copy may begin: sooner than its client gives up.
AGAIN_MOST: Final = 500_000  # With so many rows to send again, the client is slower than the writes to the store.

# An entry of a part names a table by its place here, with the row's number and columns, or None for a row that is gone.
TABLES: Final = (
    ("jobs", "first_seq", "records"),
    ("changes", "number", "records"),
    ("quarantine", "number", "found_at_us, seq, why, record, params, change"),
)
FACTS: Final = len(TABLES)
_WATCHED: Final = (0, 1)  # The rows of the quarantine never change.
_AGAIN: Final = "CREATE TEMP TABLE again (place INTEGER, number INTEGER, PRIMARY KEY (place, number)) WITHOUT ROWID"
_WATCH: Final = (
    "CREATE TEMP TRIGGER again_{event}_{table} AFTER {event} ON main.{table}"
    " BEGIN INSERT OR IGNORE INTO again VALUES ({place}, old.{number}); END"
)

_pack = msgpack.Packer(autoreset=True).pack


class Copying:
    """One copy that is being sent; the server has no part of it on disk."""

    def __init__(self, database: sqlite3.Connection, backup: bytes) -> None:
        """Begin to note which rows are rewritten."""
        self.backup = backup
        self._database = database
        self._reached = [-(1 << 63)] * len(TABLES)
        self._last_part: tuple[int, CopyPart] | None = None
        self._crc = 0
        self.is_over = False  # The copy was sent whole, or given up.
        self._asked_s = time.monotonic()
        database.execute("PRAGMA temp_store = MEMORY")
        database.execute(_AGAIN)
        for place in _WATCHED:
            table, number, _ = TABLES[place]
            for event in ("UPDATE", "DELETE"):
                database.execute(_WATCH.format(event=event, table=table, place=place, number=number))

    def end(self) -> None:
        """Stop noting rows. The last part can still be fetched again."""
        self.is_over = True
        for place in _WATCHED:
            for event in ("UPDATE", "DELETE"):
                self._database.execute(f"DROP TRIGGER IF EXISTS temp.again_{event}_{TABLES[place][0]}")
        self._database.execute("DROP TABLE IF EXISTS temp.again")

    @property
    def idle_s(self) -> float:
        """Seconds since the client last asked for a part."""
        return time.monotonic() - self._asked_s

    @property
    def is_overrun(self) -> bool:
        """Return whether rows are rewritten faster than the client fetches them."""
        if self.is_over:
            return False
        ((again,),) = self._database.execute("SELECT count(*) FROM (SELECT 1 FROM again LIMIT ?)", (AGAIN_MOST,))
        return bool(again == AGAIN_MOST)

    def part(self, number: int, jobs: int) -> CopyPart:
        """Return the next part, or again the last one, whose answer may have been lost.

        Raises:
            BadRequest: The number is of neither.
        """
        self._asked_s = time.monotonic()
        last = -1 if self._last_part is None else self._last_part[0]
        if self._last_part is not None and number == last:
            return self._last_part[1]
        if number != last + 1 or (self._last_part is not None and self._last_part[1].is_last):
            raise BadRequest(f"part {number} of this backup cannot be had: the last one was {last}")
        entries: list[Any] = []
        is_last = self._send(entries)
        if is_last:
            self.end()
            entries += [(FACTS, name, (value, crc)) for name, value, crc in self._database.execute("SELECT * FROM facts")]
        payload: bytes = _pack(entries)
        self._crc = zlib.crc32(payload, self._crc)
        part = CopyPart(payload, is_last, self._size_bytes(), disk.FORMAT, jobs, SystemClock().read().wall_us, self._crc)
        self._last_part = number, part
        return part

    def _size_bytes(self) -> int:
        ((pages,),) = self._database.execute("PRAGMA page_count")
        ((page_bytes,),) = self._database.execute("PRAGMA page_size")
        return int(pages * page_bytes)

    def _send(self, entries: list[Any]) -> bool:
        """Fill a part; return whether no row is left to send."""
        room = PART_BYTES - self._send_again(entries)
        for place in range(len(TABLES)):
            if room > 0 and self._is_there(place):
                room -= self._send_on(entries, place, room)
        if room <= 0:
            return False
        ((left,),) = self._database.execute("SELECT count(*) FROM again")
        return not left

    def _is_there(self, place: int) -> bool:
        """Return whether a table exists: the quarantine is made when it is first needed."""
        found = self._database.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (TABLES[place][0],)).fetchone()
        return found is not None

    def _send_again(self, entries: list[Any]) -> int:
        """Add rows that were rewritten; return how many bytes that is. Rows that are not reached yet are sent in their turn."""
        sent = 0
        for place, number in self._database.execute("SELECT place, number FROM again LIMIT ?", (PART_AGAIN,)).fetchall():
            self._database.execute("DELETE FROM again WHERE place = ? AND number = ?", (place, number))
            if number <= self._reached[place]:
                table, name, columns = TABLES[place]
                row = self._database.execute(f"SELECT {columns} FROM {table} WHERE {name} = ?", (number,)).fetchone()
                entries.append((place, number, row))
                sent += _bytes_of(row or ())
                if sent >= PART_BYTES:
                    break
        return sent

    def _send_on(self, entries: list[Any], place: int, room: int) -> int:
        """Add the next rows of a table, at least one; return how many bytes that is."""
        table, name, columns = TABLES[place]
        sent = 0
        cursor = self._database.execute(
            f"SELECT {name}, {columns} FROM {table} WHERE {name} > ? ORDER BY {name}", (self._reached[place],)
        )
        for number, *row in cursor:
            entries.append((place, number, row))
            self._reached[place] = number
            sent += _bytes_of(row)
            if sent >= room:
                break
        cursor.close()
        return sent


def _bytes_of(row: Any) -> int:
    return sum([len(value) for value in row if isinstance(value, (bytes, str))]) + 16


class Copies:
    """The copies that a store sends: one at a time."""

    def __init__(self) -> None:
        self._copying: Copying | None = None

    def part(self, database: sqlite3.Connection, backup: bytes, number: int, jobs: int) -> CopyPart:
        """Return a part of the copy of this name; the first part begins the copy.

        Raises:
            Busy: Another copy is under way.
            NotFound: The copy was given up, or begun by another server.
            BadRequest: There is no such part.
        """
        copying = self._copying
        if copying is None or copying.backup != backup:
            if number:
                raise NotFound(
                    "this server knows no such backup: it was started since, or a part was asked for too late. Begin again"
                )
            if copying is not None and not copying.is_over and copying.idle_s < TAKEN_OVER_S:
                raise Busy("another backup is under way", retry_after=TAKEN_OVER_S)
            self.end()
            copying = self._copying = Copying(database, backup)
        return copying.part(number, jobs)

    def poll(self) -> None:
        """Give up a copy whose client has stopped asking, or asks too slowly; call it now and then."""
        if self._copying is not None and (self._copying.idle_s > IDLE_S or self._copying.is_overrun):
            self.end()

    def end(self) -> None:
        """Give up the copy that is under way, if one is."""
        copying, self._copying = self._copying, None
        if copying is not None:
            copying.end()

    def forget(self) -> None:
        """Forget the copy: the connection is gone, and with it the noted rows."""
        self._copying = None
