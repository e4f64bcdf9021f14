"""Which ready jobs are lent to whom: the most urgent first, over all routes that have a free worker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Any, Final

from givalia_core.clock import Now
from givalia_core.engine import leases
from givalia_core.engine.desk import Batch, Desk
from givalia_core.model import Job
from givalia_core.protocol.messages import CAPACITY_MAX
from givalia_core.routing import Routing
from givalia_core.store.base import Claim, Route
from givalia_core.takers import Room
from givalia_core.timers import Window

ROOM_LEAST: Final = 8
LENT_TOGETHER_BYTES: Final = 8 << 20  # Of params, to all workers in one batch; and read for one.

Order = tuple[int, ...]  # Of dispatch.


class Lender:
    """Asks the store for as many jobs as may be lent, and lends them in their order."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.hurry = False  # Whether more could be lent at once, in another batch.
        self._room = CAPACITY_MAX  # How many jobs of a route are read at once.
        self._claims: dict[Route, int] = {}  # How many the store was asked for.
        self._lent_bytes = 0  # Of params, in this batch.

    def claims(self, reporting: Mapping[int, int]) -> tuple[Claim, ...]:
        """What the store is asked for; `reporting` is how many more jobs the workers may take that report in this batch."""
        self._claims = dict(self._to_claim(reporting)) if self._desk.lends else {}
        return tuple(Claim(*claim) for claim in self._claims.items())

    def _to_claim(self, reporting: Mapping[int, int]) -> Iterable[Claim]:
        routing = self._desk.routing
        if routing.changed:
            routing.sort()
        freed: dict[Route, int] = {}
        for conn, reports in reporting.items():
            if (session := routing.sessions.get(conn)) is not None:
                for route in routing.unpark_for(session):
                    freed[route] = freed.get(route, 0) + reports
        for route, window in routing.stirring.items():
            if window.has_ready and (room := min(routing.credits(route) + freed.get(route, 0), self._room)):
                yield Claim(route, room)

    def hold(self) -> None:
        """Lend nothing in this batch; what has become ready in it is for the next one to ask for."""
        routing = self._desk.routing
        if routing.changed:
            routing.sort()
        stirring = routing.stirring.items()
        self.hurry = self._desk.lends and any(window.fresh and routing.taker(route) for route, window in stirring)

    def lend(self, batch: Batch) -> None:
        """Lend ready jobs in order of (priority, due, enq) over all routes that have a free worker."""
        routing = self._desk.routing
        if routing.changed:
            routing.sort()
        routing.unpark_moved()
        heads: list[tuple[Order, Route, Job, Iterator[tuple[Order, Job]]]] = []
        unread: list[Route] = []  # Routes whose known jobs are lent while the store may have more.
        for route, window in list(routing.stirring.items()):
            if not (window.has_ready or window.fresh):
                del routing.stirring[route]
            elif routing.taker(route) is not None:
                self._queue(heads, unread, route, iter(self._line(batch, window)))
            elif not window.fresh:
                routing.park(route)
        self._lent_bytes = 0
        # What is unread must not be overtaken, so the next batch reads on first.
        while heads and self._lent_bytes < LENT_TOGETHER_BYTES and not any(map(routing.taker, unread)):
            _, route, job, line = heappop(heads)
            room = routing.taker(route)
            if room is None:
                routing.windows[route].has_ready = True
                continue
            self._lend(batch, job, room)
            self._queue(heads, unread, route, line)
        for _, route, _, _ in heads:
            routing.windows[route].has_ready = True
        self.hurry = any(window.has_ready and routing.taker(route) for route, window in routing.stirring.items())
        self._pace(routing)

    def _queue(self, heads: list[Any], unread: list[Route], route: Route, line: Iterator[tuple[Order, Job]]) -> None:
        head = next(line, None)
        if head is not None:
            heappush(heads, (head[0], route, head[1], line))
        elif self._desk.routing.windows[route].has_ready:
            unread.append(route)

    def _line(self, batch: Batch, window: Window) -> list[tuple[Order, Job]]:
        """The jobs of one route that may be lent now, in order: those that the store named and those fresh in this batch.

        Where the store may have more than it was asked for, nothing that sorts behind what it named may overtake them.
        """
        stored = batch.facts.found.ready.get(window.route, [])
        is_cut = window.route in batch.facts.found.cut
        window.has_ready = window.has_ready and (is_cut or len(stored) >= self._claims.get(window.route, 0))
        fresh = [(_order(job, batch.now), job) for job in map(batch.jobs.__getitem__, window.fresh)]
        if window.has_ready:
            last = _order(stored[-1], batch.now) if stored else ()
            fresh = [place for place in fresh if place[0] < last]
        return sorted(fresh + [(_order(job, batch.now), job) for job in stored if job.seq not in batch.jobs])

    def _pace(self, routing: Routing) -> None:
        """After a batch of large params read few jobs for the next one, since few will be lent; else more and more again."""
        if routing.has_lent_much or self._lent_bytes >= LENT_TOGETHER_BYTES:
            self._room, self.hurry = ROOM_LEAST, True
        else:
            self._room = min(self._room * 2, CAPACITY_MAX)

    def _lend(self, batch: Batch, job: Job, room: Room) -> None:
        if job.is_expired(batch.now):
            batch.expire(job)
        else:
            leases.claim(batch, job, room)
            self._lent_bytes += len(job.params)


def _order(job: Job, now: Now) -> Order:
    return job.rank, job.due_on_timer_us(now), job.seq
