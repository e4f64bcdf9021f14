"""Routing: which worker may take which job, by modules, versions, names and credits.

A *route* is a module and a worker name (or `any`). A worker serves the routes of the modules it announced, for its own
name and, unless told otherwise, for `any`. A job may also ask for certain versions of a module: it waits on a *variant* of
the route, which only workers with such a version serve. Every served route has a near window. A route that no worker serves
has none, so its jobs stay rows and cost nothing. All of this is a hint that is rebuilt after a restart.

A batch visits only the windows on which something happens: those that have changed, whose next timer is due, or whose workers
have free credits while jobs are ready. Windows with ready jobs and no free worker are *parked* until one of their workers is
free.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final

from givalia_core.clock import Now
from givalia_core.elsewhere import Elsewhere
from givalia_core.model import Job
from givalia_core.protocol.messages import Announce
from givalia_core.roster import Roster
from givalia_core.store.base import VARIANTS_MAX, Route, Span, Timer
from givalia_core.takers import LENT_BYTES_MAX, Moves, Room, Takers, WorkerSession
from givalia_core.timers import Window

Name = tuple[str, str]  # A route or variant.


class Routing:
    """The connected workers, the routes that they serve, and the near window of each served route."""

    def __init__(self, near_limit: int | None = None) -> None:
        self._near_limit = near_limit  # How many timers of a route are read at once; None: the usual number.
        self.elsewhere = Elsewhere()
        self.roster = roster = Roster()
        self.sessions, self.serving = roster.sessions, roster.serving
        self.windows: dict[Name, Window] = {}  # By route.
        self.unlearned: set[Route] = set()  # Served routes whose variants the store must be asked for.
        self.crowded: set[Route] = set()  # Routes with more variants than may have windows.
        self.variants: dict[Route, dict[Route, None]] = {}  # By route: its variants that have a window.
        self.takers: dict[Name, Takers] = {}  # By route or variant.
        self.moves = Moves()
        self._moved_at = 0  # The place in the moves up to which parked windows know them.
        self._numbers = count(0, 2)
        self.changed: dict[Route, Window] = {}  # Windows that have changed since they were sorted last.
        self.stirring: dict[Route, Window] = {}  # Windows with jobs that may be lent now.
        self.parked: dict[Route, Window] = {}  # Windows with jobs that may be lent when a worker is free.
        self.spent: dict[Route, Window] = {}  # Windows that must be read.
        self._dues: list[tuple[int, int, Window]] = []  # The time at which to visit each window.
        self._armed = count()
        self._lent_to: list[WorkerSession] = []  # The workers that were lent jobs in this batch.
        self._clogged: frozenset[int] = frozenset()  # The connections that may not be sent more.

    # Workers.

    def join(self, session: WorkerSession) -> None:
        """Note that a worker has connected; it serves nothing before it announces."""
        self.roster.join(session)
        session.note = self.moves.note
        session.lent_to = self._lent_to
        session.clog(is_clogged=session.conn in self._clogged)
        for room, number in zip(session.rooms.values(), count(next(self._numbers)), strict=False):
            room.number = number

    def announce(self, session: WorkerSession, announced: Iterable[Announce]) -> None:
        """Replace what a worker serves."""
        served = self._serve(session, {module.name: module for module in announced})
        self.unlearned.update(served)  # The worker may satisfy variants that no other does.

    def leave(self, conn: int) -> WorkerSession | None:
        """Note that a connection is gone; return the session it had, if it was a worker's."""
        session = self.sessions.get(conn)
        if session is not None:
            announced = session.announced
            self._serve(session, {})
            session.announced = announced
            self.roster.leave(session)
        return session

    def _serve(self, session: WorkerSession, announced: dict[str, Announce]) -> dict[Route, None]:
        """Let a worker serve these modules and no others; return the routes that it now serves."""
        before, served = self.roster.serve(session, announced)
        for route in {**before, **served}:
            for each in (route, *self.variants.get(route, ())):
                self._refit(session, each, is_served=route in served)
        return served

    def _refit(self, session: WorkerSession, route: Route, *, is_served: bool) -> None:
        """Make a worker a taker of a route or variant exactly if it can be; the last taker takes the window with it."""
        takers = self.takers.get(route)
        room = session.room(route.module) if is_served and session.satisfies(route.module, route.specifier) else None
        for other in session.rooms.values():
            if takers is not None and other is not room:
                takers.discard(other)
        if room is not None and takers is None:
            self.open_window(route)
        elif room is not None and takers is not None:
            takers.add(room)
            self._unpark(route)
        elif takers is not None and not takers:
            self.close_window(route)

    def open_window(self, route: Route) -> Window | None:
        """Let the route have a window if there is a worker to take its jobs."""
        specifier = route.specifier
        plain = route if specifier is None else route.plain
        able = [session for session in self.serving.get(plain, ()) if session.satisfies(route.module, specifier)]
        if not able:
            return None
        if specifier is not None:
            known = self.variants.setdefault(plain, {})
            if len(known) >= VARIANTS_MAX:
                self.crowded.add(plain)
                return None
            known[route] = None
        takers = self.takers[route] = Takers(self.moves)
        for session in able:
            takers.add(session.room(route.module))
        return self._renew(route)

    def _renew(self, route: Route) -> Window:
        """Give the route a new window, which knows nothing yet."""
        self._drop(route)
        window = self.windows[route] = Window(route, self._near_limit, self.changed)
        window.note()
        return window

    def _drop(self, route: Route) -> None:
        for windows in (self.changed, self.stirring, self.parked, self.spent):
            windows.pop(route, None)

    def close_window(self, route: Route) -> None:
        """Forget a route or variant from which no worker takes jobs, or on which no jobs wait."""
        del self.takers[route], self.windows[route]
        self._drop(route)
        if route.specifier is not None and (known := self.variants.get(route.plain)) is not None:
            known.pop(route, None)
            if not known:
                del self.variants[route.plain]
        self.unlearned.discard(route)

    # Windows.

    def forget_windows(self) -> None:
        """Discard the near windows; the store fills them again."""
        self._dues.clear()
        for window in list(self.windows.values()):
            self._renew(window.route)
        self.unlearned.update(self.serving)

    def window(self, route: Route) -> Window | None:
        """Return the window of a route; a variant without a window gets one now."""
        window = self.windows.get(route)
        return self.open_window(route) if window is None and route.specifier is not None else window

    def begin(self, clogged: frozenset[int]) -> None:
        """Begin a batch: nothing was lent in it yet, and these connections may not be sent more."""
        for session in self._lent_to:
            session.lent_bytes = 0
            if session.is_clogged:
                session.clog(is_clogged=session.conn in clogged)
        self._lent_to.clear()
        if clogged is not self._clogged:
            for conn in clogged ^ self._clogged:
                if (worker := self.sessions.get(conn)) is not None:
                    worker.clog(is_clogged=conn in clogged)
            self._clogged = clogged

    def tick(self, now: Now) -> list[Span]:
        """Let timers fall due; return the spans to read so that the next timers are known."""
        if self.changed:
            self.sort()
        while self._dues and self._dues[0][0] <= now.timer_us:
            due_us, _, window = heappop(self._dues)
            if window.armed_us == due_us and self.windows.get(window.route) is window:
                window.armed_us = None
                window.tick(now.timer_us)
        for window in self.stirring.values():
            if window.fresh:
                window.tick(now.timer_us)
        if self.parked:
            self.unpark_moved()
        if self.changed:
            self.sort()
        return [span for window in self.spent.values() for span in window.spans()] if self.spent else []

    def sort(self) -> None:
        """Sort the windows that have changed into stirring, spent and timed ones; call this only if `changed` has any."""
        for route, window in self.changed.items():
            window.is_noted = False
            timers = window.timers
            if timers.bound is not None and not timers.members:
                self.spent[route] = window
            else:
                self.spent.pop(route, None)
            if window.fresh or (window.has_ready and route not in self.parked):
                self.parked.pop(route, None)
                self.stirring[route] = window
            due_us = window.next_due_us()
            if due_us is not None and (window.armed_us is None or due_us < window.armed_us):
                window.armed_us = due_us
                heappush(self._dues, (due_us, next(self._armed), window))
        self.changed.clear()

    def park(self, route: Route) -> None:
        """Park a window until one of its workers is free, or a due job comes to it."""
        if not self.parked:
            self._moved_at = self.moves.end
        self.parked[route] = self.stirring.pop(route)

    def _unpark(self, route: Route) -> None:
        if (window := self.parked.pop(route, None)) is not None:
            self.stirring[route] = window

    def unpark_moved(self) -> None:
        """Unpark the windows whose workers' credits have changed; drop the noted changes if there are many."""
        if self.parked:
            moved = self.moves.since(self._moved_at)
            if moved is None:
                self.stirring.update(self.parked)
                self.parked.clear()
            else:
                for session in {room.session: None for room in moved if room.free > 0}:
                    self.unpark_for(session)
        self.moves.trim()
        self._moved_at = self.moves.start + len(self.moves.rooms)

    def unpark_for(self, session: WorkerSession) -> list[Route]:
        """Unpark the windows of a worker that can take another job now or soon; return its routes that are stirring."""
        served = self.roster.served.get(session, {})
        if len(self.parked) + len(self.stirring) < len(served):
            routes = [route for route in (*self.parked, *self.stirring) if route.plain in served]
        else:
            routes = [route for plain in served for route in (plain, *self.variants.get(plain, ()))]
        for route in routes:
            if (window := self.parked.pop(route, None)) is not None:
                self.stirring[route] = window
        return [route for route in routes if route in self.stirring]

    def offer(self, job: Job, now: Now) -> None:
        """Note a job that waits now; remember it if it is near and its route is served."""
        if job.specifier is None:
            window = self.windows.get((job.module, job.target_worker))
        else:
            window = self.window(Route(job.module, job.target))
        if window is not None:
            due_us = job.due_at_us + now.timer_us - now.wall_us if job.on_wall else job.due_at_us
            window.offer(_timer(Timer, (due_us, job.seq)), now.timer_us)

    def discard(self, job: Job) -> None:
        """Note that a job waits no longer on this route."""
        window = self.windows.get((job.module, job.target_worker if job.specifier is None else job.target))
        if window is not None:
            window.discard(job.seq)

    # Credits.

    def taker(self, route: Name) -> Room | None:
        """Return the room with the most free credits among the workers of this route; None if all are full."""
        takers = self.takers.get(route)
        return None if takers is None else takers.best()

    def credits(self, route: Name) -> int:
        """Return the number of jobs that the workers of this route can take now."""
        takers = self.takers.get(route)
        return 0 if takers is None else takers.credits()

    @property
    def has_lent_much(self) -> bool:
        """Return whether some worker was lent as many bytes in this batch as it may be."""
        return any(session.lent_bytes >= LENT_BYTES_MAX for session in self._lent_to)

    def next_due_us(self) -> int | None:
        """Return the due of the next near timer, on the timer clock; None: there is none."""
        if self.changed:
            self.sort()
        while self._dues:
            due_us, _, window = self._dues[0]
            if window.armed_us == due_us and self.windows.get(window.route) is window:
                next_us = window.next_due_us()
                if next_us == due_us:
                    return due_us
                window.armed_us = next_us
                if next_us is not None:
                    heapreplace(self._dues, (next_us, next(self._armed), window))
                    continue
            heappop(self._dues)
        return None


_timer: Final = tuple.__new__  # The constructor of a named tuple costs as much again.
