"""Jobs whose records are not what was written: they are set aside in a table of their own, and the others go on.

The table keeps the parts that can be taken out of a job's rows, as they were found. Only `check` and copies read it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

from givalia_core.clock import SystemClock
from givalia_core.store.sqlite.places import Place
from givalia_core.store.sqlite.tables import Records

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS quarantine (
    number INTEGER PRIMARY KEY, found_at_us INTEGER NOT NULL, seq INTEGER NOT NULL, why TEXT NOT NULL,
    record BLOB, params BLOB, change BLOB
) STRICT
"""


class Quarantine:
    """The table. Methods that write are called within a transaction."""

    def __init__(self, connection: Callable[[], sqlite3.Connection], records: Records) -> None:
        """Take the function that returns the connection, which is open during each call."""
        self._connect = connection
        self._records = records
        self.count = 0

    def open(self) -> None:
        """Count the jobs. The table is made when it is first needed, so that an earlier Givalia finds only tables it knows."""
        (self.count,) = self._connect().execute(f"SELECT count(*) FROM {self._table()}").fetchone()

    def _table(self) -> str:
        is_there = self._connect().execute("SELECT count(*) FROM sqlite_schema WHERE name = 'quarantine'").fetchone()[0]
        return "quarantine" if is_there else "(SELECT 1 WHERE 0)"

    def add(self, place: Place, why: str) -> None:
        """Move the records of a job into the table."""
        self._connect().execute(SCHEMA)
        self._connect().execute(
            "INSERT INTO quarantine (found_at_us, seq, why, record, params, change) VALUES (?, ?, ?, ?, ?, ?)",
            (SystemClock().read().wall_us, place.seq, why, *self._records.take_out(place)),
        )
        self.count += 1

    def lines(self) -> list[str]:
        """Return a sentence about each job."""
        if not self.count:
            return []
        rows = self._connect().execute("SELECT seq, why FROM quarantine ORDER BY number").fetchall()
        return [f"job {seq} is in quarantine: {why}" for seq, why in rows]
