"""The database's clock, as a server knows it between two looks at it.

Several servers share a queue, so only one clock may say what is due: the database's. Asking it costs a round trip, so each
answer that brings its time is a sample, and in between the time is the last good sample plus what has passed here. A sample is
taken before it arrives, so the estimate is never ahead of the database: a job may start late by a round trip, never early.
"""

from __future__ import annotations

from typing import Final

from givalia_core.clock import SECOND_US, Mark, Now, Reading

DRIFT: Final = 5_000  # This clock may gain one part in so many on the database's; the estimate falls back by as much.
KEPT_US: Final = 10 * SECOND_US  # A sample counts for so long.


class DatabaseClock:
    """The time of the database, which is both the timer clock and the wall clock of what is kept there."""

    def __init__(self) -> None:
        self._ahead_us: int | None = None  # Of this machine's monotonic clock, when the sample was taken.
        self._taken_us = 0

    def sample(self, database_us: int, sent_us: int, mono_us: int) -> None:
        """The database said its time between `sent_us`, when it was asked, and `mono_us`, when the answer was here."""
        ahead_us = database_us - mono_us
        if (
            self._ahead_us is None
            or ahead_us >= self._estimate(mono_us)
            or self._estimate(mono_us) > database_us - sent_us  # It was set back.
            or mono_us - self._taken_us > KEPT_US
        ):
            self._ahead_us, self._taken_us = ahead_us, mono_us

    def _estimate(self, mono_us: int) -> int:
        assert self._ahead_us is not None, "the clock was never read"
        return self._ahead_us - (mono_us - self._taken_us) // DRIFT

    def now(self, reading: Reading) -> Now:
        """The moment of this reading by the database's clock."""
        now_us = reading.mono_us + self._estimate(reading.mono_us)
        return Now(now_us, now_us, reading.mono_us)

    def mark(self, now: Now, lease_us: int = 0) -> Mark:
        """Return the time as a commit is told it."""
        return Mark("", 0, now.timer_us, now.wall_us, lease_us)
