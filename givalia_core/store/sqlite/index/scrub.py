"""The scrub: it compares the index with its checks, all of it again and again, a little beside the work.

What was not read since the index was opened is thereby verified too. A round also finds what holds nothing: slots, lanes, and
room at the ends of the files.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from givalia_core.clock import SystemClock
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.names import SHARDS
from givalia_core.store.sqlite.index.words import FULL_ERRNOS

SHARE: Final = 0.005  # Of the time that passes.
_LEAST_S: Final = 0.000_3
_MOST_S: Final = 0.005  # At once: a command that comes meanwhile waits.
_OVERDUE_S: Final = 0.020
PAUSE_S: Final = 5.0  # Between two rounds.
_PAGES_AT_ONCE: Final = 8


class Round(NamedTuple):
    """A round that came to its end."""

    number: int
    ended_at_us: int  # On the wall clock.
    seconds: float


class Scrub:
    """Goes through the pages of the slots, the shards of the names and the runs."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._place = 0
        self._begun = self._last = time.monotonic()
        self._owed_s = 0.0
        self._rest_until = 0.0
        self.last: Round | None = None
        self.number = 1

    def step(self, *, is_quiet: bool) -> None:
        """Go on for a share of the time that has passed; while there is work only when that has not been done for seconds.

        Raises:
            Damaged: Something is not what was written.
        """
        now = time.monotonic()
        self._owed_s = min(self._owed_s + (now - self._last) * SHARE, _OVERDUE_S)
        self._last = now
        if self._owed_s < (_LEAST_S if is_quiet else _OVERDUE_S) or now < self._rest_until:
            return
        seconds = min(self._owed_s, _MOST_S)
        self._owed_s -= seconds
        self.go_on(seconds)

    def go_on(self, seconds: float) -> None:
        """Go on for about this long, or to the end of the round.

        Raises:
            Damaged: Something is not what was written.
        """
        until = time.monotonic() + seconds
        while not self._look():
            if time.monotonic() > until:
                return

    def finish(self) -> None:
        """Go through a whole round, for tests and tools.

        Raises:
            Damaged: Something is not what was written.
        """
        self._place = 0
        while not self._look():
            pass

    def _look(self) -> bool:
        """Look at the next part; returns whether the round has ended. On a full disk the part stays as it is."""
        try:
            return self._look_at_next()
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            return False

    def _look_at_next(self) -> bool:
        index, place = self._index, self._place
        if index.lanes.unused:
            index.free_lanes()
            return False
        pages, runs = index.slots.pages, index.lanes.runs
        if place < pages:
            self._place = min(place + _PAGES_AT_ONCE, pages)
            for page in range(place, self._place):
                index.slots.verify(page)
                index.slots.gather(page)
                index.lanes.mark(index.slots.lanes_of(page))
            return False
        self._place += 1
        if place < pages + SHARDS:
            index.names.verify(place - pages)
            index.names.tidy(place - pages)
            return False
        left = runs.all()[place - pages - SHARDS :]
        if left:
            runs.verify(left[0])
            self._place -= index.thin_out(left[0])  # Those behind it move up.
            return False
        self._end()
        return True

    def _end(self) -> None:
        now = time.monotonic()
        self._index.verify_rest()
        self._index.end_round()
        self.last = Round(self.number, SystemClock().read().wall_us, now - self._begun)
        self.number += 1
        self._place, self._begun, self._rest_until = 0, now + PAUSE_S, now + PAUSE_S
