"""Collects the cycles that ended jobs have left: connections, locks, open transactions.

In a process of many small jobs, Python's collector is set to run seldom, and would leave the cycles for minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from gc import collect
from typing import Final

from givalia_core.frozen import BUILTINS, OwnClock

__builtins__ = BUILTINS

EACH_S: Final = 1.0  # The time between two collections while jobs end.
JOBS_MOST: Final = 50  # Collect earlier if so many jobs have ended, or one has failed.
LEAST_S: Final = 0.1  # The shortest time between two collections, unless a job has failed.
SHARE: Final = 0.01  # The largest share of the time for collections.
SHARE_BAD: Final = 0.1  # The same after a job that has failed.


class Collector:
    """The decision when to collect; call `run` several times a second."""

    def __init__(self, collect: Callable[[], object] = collect) -> None:
        self._collect = collect
        self._ended = 0
        self._has_bad = False
        self._last_s = 0.0
        self._took_s = 0.0

    def note(self, *, is_bad: bool) -> None:
        """Note that a job has ended; `is_bad`: it raised or was stopped."""
        self._ended += 1
        self._has_bad = self._has_bad or is_bad

    def run(self, now_s: float) -> None:
        """Collect if a collection is due; `now_s` is monotonic."""
        if not self._ended:
            return
        since_s = now_s - self._last_s
        if not self._has_bad and (since_s < LEAST_S or (self._ended < JOBS_MOST and since_s < EACH_S)):
            return
        if since_s * (SHARE_BAD if self._has_bad else SHARE) < self._took_s:
            return
        self._ended, self._has_bad = 0, False
        began_s = OwnClock.monotonic()
        self._collect()
        self._last_s, self._took_s = now_s, OwnClock.monotonic() - began_s
