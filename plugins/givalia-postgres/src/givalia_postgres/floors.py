"""Below which due nothing waits, as far as this server knows, so that it walks no dead rows to find what is due.

A job that was lent leaves its old row version in the index of dues until vacuum may remove it, which is never while a snapshot
is open anywhere. These versions lie in front of those that live. So each look at a route notes where the first live one is, and
the next look begins there. What comes to wait below that is told: by the commits of this server, and by the hints of others,
which name the due. Hints can be lost, so a server forgets its floors and looks at everything again at each poll. Once such a
look takes long, it looks below its floors piece by piece instead: at each poll at the last seconds, where nearly all that was
lost is, and at one older piece, going back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from givalia_core.clock import SECOND_US, Now
from givalia_core.model import Job
from givalia_core.store.base import Route

RANKS: Final = range(-9, 10)
PLACES: Final = 2 * len(RANKS)  # A floor for each rank on the timer clock, then for each on the wall clock.
NOTHING_KNOWN: Final = (0,) * PLACES
CHEAP_S: Final = 0.1  # A look at everything that takes longer is too much for each poll.
SHARE: Final = 50  # What else takes longer than that is done so seldom that it takes one part in so many of the time.
RECENT_US: Final = 5 * SECOND_US  # Below its floor, a route is looked at so far back at each poll.
PIECE_S: Final = (0.01, 0.05)  # The older piece grows while a look takes less than this, and shrinks when it takes more.
ROUTES_MAX: Final = 100  # That are looked at in one poll.


class Piece(NamedTuple):
    """A range of dues of one route, the upper end not included."""

    route: Route
    low_us: int
    high_us: int


class Floors:
    """The floors of the routes that were looked at, and when everything is to be looked at again."""

    def __init__(self) -> None:
        self._floors: dict[Route, list[int]] = {}
        self.tops: dict[tuple[str, str], int] = {}  # By route: its highest floor, above which nothing needs to be told.
        self._look_at = 0.0
        self._is_cheap = True  # To look at everything.
        self._reached: dict[Route, int] = {}  # How far back a route was looked at, piece by piece.
        self._piece_us = RECENT_US
        self._round_s = 0.0  # What the pieces of this round have taken.

    def of(self, route: Route) -> Sequence[int]:
        """Return the floors of a route; 0 where nothing is known."""
        return self._floors.get(route, NOTHING_KNOWN)

    def knows(self, route: Route) -> bool:
        """Return whether this route was looked at since its floors were forgotten."""
        return route in self._floors

    def found(self, route: Route, jobs: Sequence[Job], limit: int, now: Now) -> None:
        """Take in what a look found, by rank and then by due; fewer than `limit` are all that is due.

        Ranks behind the last of a look that reached its limit were not looked at.
        """
        floors = self._floors.setdefault(route, list(NOTHING_KNOWN))
        last = jobs[-1].rank if len(jobs) >= limit else RANKS.stop
        for rank in range(RANKS.start, min(last, RANKS.stop)):
            floors[_place(rank, on_wall=False)], floors[_place(rank, on_wall=True)] = now.timer_us, now.wall_us
        firsts: dict[tuple[int, bool], int] = {}
        for job in jobs:
            firsts.setdefault((job.priority, job.on_wall), job.due_at_us)
        for (priority, on_wall), due_us in firsts.items():
            floors[_place(-priority, on_wall=on_wall)] = due_us
        self.tops[route] = max(floors)

    def lower(self, route: Route, due_us: int) -> None:
        """A job that is due then has come to wait on this route, on whatever rank."""
        if due_us < self.tops.get(route, 0):
            self._floors[route] = [min(floor, due_us) for floor in self._floors[route]]
            self.tops[route] = due_us

    def forget(self) -> None:
        """Look at everything next time, unless that takes long."""
        if self._is_cheap:
            self._floors.clear()
            self.tops.clear()

    def looked(self, took_s: float) -> None:
        """A look at everything on some routes took so long."""
        if took_s > CHEAP_S and self._is_cheap:
            self._is_cheap, self._round_s, self._piece_us = False, 0.0, RECENT_US
            self._reached.clear()

    def pieces(self) -> list[Piece]:
        """Return what is to be looked at in this poll: nothing while it is cheap to look at everything."""
        if self._is_cheap:
            return []
        pieces: list[Piece] = []
        for route in sorted(self._floors, key=lambda route: self._reached.get(route, 1 << 62), reverse=True)[:ROUTES_MAX]:
            top_us = self.tops[route]
            recent_us = max(top_us - RECENT_US, 0)
            high_us = min(self._reached.get(route, recent_us), recent_us)
            low_us = self._reached[route] = max(high_us - self._piece_us, 0)
            pieces += [Piece(route, recent_us, top_us), Piece(route, low_us, high_us)]
        return pieces

    def looked_at_pieces(self, took_s: float) -> None:
        """Note the time that a look at these pieces took; after the last piece of a round, begin the next round."""
        self._round_s += took_s
        if took_s < PIECE_S[0]:
            self._piece_us *= 2
        elif took_s > PIECE_S[1]:
            self._piece_us = max(self._piece_us // 2, SECOND_US // 10)
        if not any(self._reached.values()):
            self._is_cheap = self._round_s < CHEAP_S / 2
            self._reached.clear()
            self._round_s, self._piece_us = 0.0, RECENT_US

    def is_time(self, now: float) -> bool:
        """Return whether the running jobs may be counted again."""
        return now >= self._look_at

    def counted(self, took_s: float, now: float) -> None:
        """To count the running jobs took so long."""
        if took_s > CHEAP_S:
            self._look_at = now + SHARE * took_s


def _place(rank: int, *, on_wall: bool) -> int:
    return rank - RANKS.start + on_wall * len(RANKS)
