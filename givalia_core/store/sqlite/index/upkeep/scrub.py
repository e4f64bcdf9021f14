"""The scrub compares the whole index with its checks, round after round, a little at a time beside the work.

Parts that were not read since the opening are thereby verified too. A round also finds free slots, lanes without jobs, and
free room at the ends of the files.
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from givalia_core.clock import SystemClock
from givalia_core.store.sqlite.index import sealing
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.names import SHARDS
from givalia_core.store.sqlite.index.upkeep import pages, shards
from givalia_core.store.sqlite.index.words import FULL_ERRNOS

SHARE: Final = 0.005  # Of the time that passes.
_LEAST_S: Final = 0.000_3
_MOST_S: Final = 0.005  # At once: a command that comes meanwhile waits.
_OVERDUE_S: Final = 0.020
PAUSE_S: Final = 5.0  # Between two rounds.
_PAGES_AT_ONCE: Final = 8
_LANES_AT_ONCE: Final = 500


class ScrubRound(NamedTuple):
    """A round that came to its end."""

    number: int
    ended_at_us: int  # On the wall clock.
    seconds: float


class Scrub:
    """Rounds through the pages of the slots, the shards of the names and the runs."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._place = 0
        self._begun = self._last = time.monotonic()
        self._owed_s = 0.0
        self.rest_until_s = 0.0  # On the monotonic clock; before that a step does nothing.
        self.last: ScrubRound | None = None
        self.number = 1

    def step(self, *, is_quiet: bool) -> None:
        """Go on for a share of the time that has passed; while there is work, only if the scrub has paused for seconds.

        Raises:
            Damaged: Something is not what was written.
        """
        now = time.monotonic()
        self._owed_s = min(self._owed_s + (now - self._last) * SHARE, _OVERDUE_S)
        self._last = now
        if self._owed_s < (_LEAST_S if is_quiet else _OVERDUE_S) or now < self.rest_until_s:
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
        while not self._scrub_some():
            if time.monotonic() > until:
                return

    def finish(self) -> None:
        """Go through a whole round, for tests and tools.

        Raises:
            Damaged: Something is not what was written.
        """
        self._place = 0
        while not self._scrub_some():
            pass

    def _scrub_some(self) -> bool:
        """Scrub the next part; return whether the round has ended. On a full disk the part stays as it is."""
        try:
            return self._scrub_next()
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            return False

    def _scrub_next(self) -> bool:
        index, place = self._index, self._place
        if index.lanes.unused:
            self._free_lanes()
            return False
        count, runs = index.slots.pages, index.lanes.runs
        if place < count:
            self._place = min(place + _PAGES_AT_ONCE, count)
            for page in range(place, self._place):
                index.slots.verify(page)
                pages.gather(index.slots, page)
                sealing.mark(index.lanes, pages.lanes_of(index.slots, page))
            return False
        self._place += 1
        if place < count + SHARDS:
            index.names.verify(place - count)
            shards.tidy(index.names, place - count)
            return False
        left = runs.all()[place - count - SHARDS :]
        if left:
            runs.verify(left[0])
            if gone := sealing.thin_out(index.lanes, left[0]):
                # Before another list is written: the header may be only one list behind.
                sealing.write_header(index.lanes)
                self._place -= gone  # The runs behind it move up.
            return False
        self._end()
        return True

    def _free_lanes(self) -> None:
        """Free some of the lanes that hold no job."""
        index = self._index
        for lane in sealing.free_unused(index.lanes, _LANES_AT_ONCE):
            route, module = lane.route, lane.route.module
            index.routes[route].remove(lane)
            if not index.routes[route]:
                del index.routes[route]
                index.targets[module].discard(route.target)
                if not index.targets[module]:
                    del index.targets[module]
        index.lane_of_fields.clear()
        if not index.lanes.unused:
            sealing.forget_freed(index.lanes)
            sealing.write_header(index.lanes)

    def _end(self) -> None:
        """End a round, which has seen the whole index."""
        now, index = time.monotonic(), self._index
        pages.verify_header(index.slots)
        index.slots.verify_total()
        index.names.verify_total()
        index.lanes.keys.verify()
        index.lanes.runs.verify_list()
        index.is_verified = True
        sealing.end_round(index.lanes)
        if pages.cut(index.slots):
            sealing.forget_behind(index.lanes, index.slots.end)
        shards.cut(index.names)
        index.lanes.runs.cut()
        sealing.write_header(index.lanes)
        self.last = ScrubRound(self.number, SystemClock().read().wall_us, now - self._begun)
        self.number += 1
        self._place, self._begun, self.rest_until_s = 0, now + PAUSE_S, now + PAUSE_S
