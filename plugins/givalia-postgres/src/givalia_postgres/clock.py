"""The database's clock, as a server estimates it between two samples.

Several servers share a queue, so only one clock decides which jobs are due: the database's. Reading this clock costs a round
trip, so each answer that brings its time is a sample; between samples, the time is the last good sample plus the time that has
passed here. A sample is older than its arrival, so the estimate is never ahead: a job starts late by a round trip, never early.
"""

from __future__ import annotations

from typing import Final

from givalia_core.clock import SECOND_US, Mark, Now, Reading

DRIFT: Final = 5_000  # This clock may gain one part in 5,000 on the database's; the estimate falls back by as much.
KEPT_US: Final = 10 * SECOND_US  # How long a sample counts.


class DatabaseClock:
    """The time of the database, which is both the timer clock and the wall clock of what is kept there."""

    def __init__(self) -> None:
        self._ahead_us: int | None = None  # The database's lead over this machine's monotonic clock at the sample.
        self._taken_us = 0

    def sample(self, database_us: int, sent_us: int, mono_us: int) -> None:
        """Take the database's time as a sample; the query was sent at `sent_us`, and the answer arrived at `mono_us`."""
        ahead_us = database_us - mono_us
        if (
            self._ahead_us is None
            or ahead_us >= self._estimate(mono_us)
            or self._estimate(mono_us) > database_us - sent_us  # The database's clock was set back.
            or mono_us - self._taken_us > KEPT_US
        ):
            self._ahead_us, self._taken_us = ahead_us, mono_us

    def _estimate(self, mono_us: int) -> int:
        assert self._ahead_us is not None, "the clock was never read"
        return self._ahead_us - (mono_us - self._taken_us) // DRIFT

    def now(self, reading: Reading) -> Now:
        """Return the moment of this reading on the database's clock."""
        now_us = reading.mono_us + self._estimate(reading.mono_us)
        return Now(now_us, now_us, reading.mono_us)

    def mark(self, now: Now, lease_us: int = 0) -> Mark:
        """Return the time in the form that a commit takes."""
        return Mark("", 0, now.timer_us, now.wall_us, lease_us)
