"""The scrub: it reads every row in the background, some at a time, to find damaged rows that no command or claim meets.

Only the oldest of the servers that share a queue scrubs. A damaged row may say that its job has ended: then no server looks
for it, and without a scrub the job would be lost silently.
"""

from __future__ import annotations

from typing import Any, Final

from givalia_postgres.connection import Rows
from givalia_postgres.quarantine import Quarantine
from givalia_postgres.rows import RECORD

ROWS: Final = 2_000  # The most rows that one step reads;
BYTES: Final = 1 << 20  # if they are larger than this, the next step is half as long.
_FIRST_ROWS: Final = 64
_BEFORE_ALL: Final = -(2**63)


class Round:
    """The progress of the present round, and the end of the last one."""

    def __init__(self) -> None:
        self._last = _BEFORE_ALL
        self._limit = _FIRST_ROWS
        self._began: float | None = None
        self._ended: tuple[float, float] | None = None  # When, and after how many seconds.

    @property
    def wants(self) -> list[int]:
        """The seq to read after, and the number of rows to read."""
        return [self._last, self._limit]

    def take(self, rows: Rows, quarantine: Quarantine, now: float) -> None:
        """Take in the wanted rows, read at this time of the wall clock; note damaged ones."""
        quarantine.sound(rows)
        began = self._began = now if self._began is None else self._began
        if len(rows) < self._limit:
            self._ended, self._began, self._last = (now, now - began), None, _BEFORE_ALL
            return
        self._last = rows[-1][0]
        size_bytes = sum(len(part or b"") for row in rows for part in row[RECORD : RECORD + 3])
        self._limit = max(self._limit // 2, 1) if size_bytes > BYTES else min(self._limit * 2, ROWS)

    def describe(self) -> dict[str, Any]:
        """Return the end of this server's last round, as seconds since the epoch, and its length in seconds."""
        if self._ended is None:
            return {}
        at, seconds = self._ended
        return {"scrubbed_at": round(at, 3), "scrub_seconds": round(seconds, 3)}
