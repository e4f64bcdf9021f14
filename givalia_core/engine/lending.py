"""Which ready jobs are lent to whom: the most urgent first, over all routes that have a free worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import LENT_TOGETHER_BYTES, Desk
from givalia_core.engine.leases import claim
from givalia_core.model import Job
from givalia_core.protocol.messages import CAPACITY_MAX
from givalia_core.store.base import Claim, Route
from givalia_core.takers import LENT_BYTES_MAX
from givalia_core.timers import Window

ROOM_LEAST: Final = 8

Place = tuple[int, int, int]  # In the order of dispatch: rank, due on the timer clock, seq.
Head = tuple[Place, Route, Job, Iterator[tuple[Place, Job]]]  # The first job of a route's line, and the rest of the line.


class Lender:
    """Asks the store for as many jobs as may be lent, and lends them in their order."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.hurry = False  # More could be lent at once, in another batch.
        self._room = CAPACITY_MAX  # How many jobs of a route are read at once.
        self._claims: dict[Route, int] = {}  # How many the store was asked for.

    def claims(self, reporting: Mapping[int, int]) -> tuple[Claim, ...]:
        """Return what to ask the store for; `reporting` is how many more jobs each worker may take behind its reports."""
        desk, routing, claims = self._desk, self._desk.routing, self._claims
        claims.clear()
        if desk.is_draining or desk.is_holding:
            return ()
        if routing.changed:
            routing.sort()
        freed: dict[Route, int] = {}
        for conn, reports in reporting.items():
            if (session := routing.sessions.get(conn)) is not None:
                for route in routing.unpark_for(session):
                    freed[route] = freed.get(route, 0) + reports
        for route, window in routing.stirring.items():
            if window.has_ready and (room := min(routing.takers[route].credits() + freed.get(route, 0), self._room)):
                claims[route] = room
        return tuple(Claim(route, room) for route, room in claims.items()) if claims else ()

    def _hold(self) -> None:
        """Lend nothing in this batch; what has become ready in it is for the next one to ask for."""
        routing = self._desk.routing
        stirring = routing.stirring.items()
        self.hurry = self._desk.lends and any(window.fresh and routing.taker(route) for route, window in stirring)

    def lend(self, batch: Batch, *, may_lend: bool) -> None:
        """Lend ready jobs in order of (priority, due, enq) over all routes that have a free worker."""
        routing = self._desk.routing
        if routing.changed:
            routing.sort()
        if not may_lend:
            self._hold()
            return
        routing.unpark_moved()
        heads: list[Head] = []
        unread: list[Route] = []  # Routes whose known jobs are lent while the store may have more.
        for route, window in list(routing.stirring.items()) if routing.stirring else ():
            if not (window.has_ready or window.fresh):
                del routing.stirring[route]
            elif routing.takers[route].best() is not None:
                line = iter(self._line(batch, window))
                if (head := next(line, None)) is not None:
                    heads.append((head[0], route, head[1], line))
                elif window.has_ready:
                    unread.append(route)
            elif not window.fresh:
                routing.park(route)
        self.hurry = False
        if heads:
            self._lend(batch, heads, unread)
        if routing.stirring and not self.hurry:
            self.hurry = any(window.has_ready and routing.taker(route) for route, window in routing.stirring.items())

    def _lend(self, batch: Batch, heads: list[Head], unread: list[Route]) -> None:
        """Lend the jobs at the heads while somebody is free."""
        routing = self._desk.routing
        heapify(heads)
        lent_bytes = 0
        # What is unread must not be overtaken, so the next batch reads on first.
        while heads and lent_bytes < LENT_TOGETHER_BYTES and not (unread and any(map(routing.taker, unread))):
            _, route, job, line = heappop(heads)
            room = routing.takers[route].best()
            if room is None:
                routing.windows[route].has_ready = True
                continue
            if job.expires_at_us is not None and job.is_expired(batch.now):
                batch.expire(job)
            else:
                claim(batch, job, room)
                lent_bytes += len(job.params) + 1
            if (head := next(line, None)) is not None:
                heappush(heads, (head[0], route, head[1], line))
            elif routing.windows[route].has_ready:
                unread.append(route)
        for _, route, _, _ in heads:
            routing.windows[route].has_ready = True
        if lent_bytes >= LENT_BYTES_MAX or self._room < CAPACITY_MAX:
            self._pace(lent_bytes)

    def _pace(self, lent_bytes: int) -> None:
        """After a batch of large params read few jobs for the next one, since few will be lent; else more and more again."""
        if lent_bytes >= LENT_BYTES_MAX and (lent_bytes >= LENT_TOGETHER_BYTES or self._desk.routing.has_lent_much):
            self._room, self.hurry = ROOM_LEAST, True
        else:
            self._room = min(self._room * 2, CAPACITY_MAX)

    def _line(self, batch: Batch, window: Window) -> list[tuple[Place, Job]]:
        """Return the jobs of one route that may be lent now, in order: those of the store, and those fresh in this batch.

        Where the store may have more than it was asked for, nothing that sorts behind what it named may overtake them.
        """
        jobs, found = batch.jobs, batch.found
        ahead_us = batch.now.timer_us - batch.now.wall_us
        line = stored = found.ready.get(window.route, [])
        is_cut = window.route in found.cut
        window.has_ready = window.has_ready and (is_cut or len(stored) >= self._claims.get(window.route, 0))
        if jobs:
            line = [job for job in stored if job.seq not in jobs] + [jobs[seq] for seq in window.fresh]
        places = [((-job.priority, job.due_at_us + ahead_us if job.on_wall else job.due_at_us, job.seq), job) for job in line]
        if window.fresh and window.has_ready:
            places = _in_order(stored, window, places, ahead_us)
        return sorted(places)


def _in_order(
    stored: list[Job], window: Window, places: list[tuple[Place, Job]], ahead_us: int
) -> list[tuple[Place, Job]]:  # fmt: skip
    """Leave out the fresh jobs that sort behind the last job of the store, before which it may have others."""
    if not stored:
        return [each for each in places if each[1].seq not in window.fresh]
    job = stored[-1]
    end = -job.priority, job.due_at_us + ahead_us if job.on_wall else job.due_at_us, job.seq
    return [each for each in places if each[1].seq not in window.fresh or each[0] < end]
