"""Floors: the due below which no job waits, as far as this server knows, so that it walks no dead rows to find due jobs.

A lent job leaves its old row version in the index of dues until vacuum removes it, and vacuum cannot while any snapshot is
open. These dead versions lie in front of the live ones. So each read of a route notes the due of the first live row, and the
next read begins there. A server learns of a job that comes to wait below a floor from its own commits, and from the hints of
other servers, which name the due. Hints can be lost, so a server forgets its floors and reads everything again at each poll.
Once such a read takes long, the server reads below its floors piece by piece instead: at each poll the last seconds, where
nearly all lost hints belong, and one older piece, going back.
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
CHEAP_S: Final = 0.1  # A read of everything that takes longer is too much for each poll.
SHARE: Final = 50  # A count that takes longer than that is so rare that it uses one part in 50 of the time.
RECENT_US: Final = 5 * SECOND_US  # How far below its floor a route is read at each poll.
PIECE_S: Final = (0.01, 0.05)  # The older piece grows while a read takes less than the first, and shrinks beyond the second.
ROUTES_MAX: Final = 100  # The most routes that one poll reads.


class Piece(NamedTuple):
    """A range of dues of one route, without its upper end."""

    route: Route
    low_us: int
    high_us: int


class Floors:
    """The floors of the routes that were read, and when the server may count or read everything again."""

    def __init__(self) -> None:
        self._floors: dict[Route, list[int]] = {}
        self.tops: dict[tuple[str, str], int] = {}  # By route: its highest floor; a job above it lowers no floor.
        self._look_at = 0.0
        self._is_cheap = True  # Whether reading everything is cheap.
        self._reached: dict[Route, int] = {}  # How far back a route was read, piece by piece.
        self._piece_us = RECENT_US
        self._round_s = 0.0  # The time that the pieces of this round have taken.

    def of(self, route: Route) -> Sequence[int]:
        """Return the floors of a route; 0 for an unknown one."""
        return self._floors.get(route, NOTHING_KNOWN)

    def knows(self, route: Route) -> bool:
        """Return whether this route was read since its floors were forgotten."""
        return route in self._floors

    def found(self, route: Route, jobs: Sequence[Job], limit: int, now: Now) -> None:
        """Take in the jobs that a read found, by rank and then by due; fewer than `limit` are all due jobs.

        A read that reached its limit has not seen the ranks behind the last job.
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
        """Lower the floors of a route to this due: a job with this due has come to wait there, on any rank."""
        if due_us < self.tops.get(route, 0):
            self._floors[route] = [min(floor, due_us) for floor in self._floors[route]]
            self.tops[route] = due_us

    def forget(self) -> None:
        """Forget all floors, so that the next read is of everything, unless that takes long."""
        if self._is_cheap:
            self._floors.clear()
            self.tops.clear()

    def looked(self, took_s: float) -> None:
        """Note how long a read of everything on some routes took."""
        if took_s > CHEAP_S and self._is_cheap:
            self._is_cheap, self._round_s, self._piece_us = False, 0.0, RECENT_US
            self._reached.clear()

    def pieces(self) -> list[Piece]:
        """Return the pieces that this poll reads: none while reading everything is cheap."""
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
        """Note the time that reading these pieces took; after the last piece of a round, begin the next round."""
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
        """Note how long counting the running jobs took."""
        if took_s > CHEAP_S:
            self._look_at = now + SHARE * took_s


def _place(rank: int, *, on_wall: bool) -> int:
    return rank - RANKS.start + on_wall * len(RANKS)
