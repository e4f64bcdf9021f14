"""Which worker may take which job: modules, their versions, names and credits.

A *route* is a module and a worker name (or `any`). A worker serves the routes of the modules it announced, for its own
name and, unless told otherwise, for `any`. Jobs may besides ask for certain versions of a module: they wait on a *variant* of
the route, which those of its workers serve whose version satisfies it. For every served route there is a near window; a route
that nobody serves has none, so its jobs stay rows and cost nothing. All of this is a hint that workers' announcements rebuild
after a restart; on which variants jobs wait is learned from the store then, and from each job that comes to wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from givalia_core import specifiers
from givalia_core.clock import Now
from givalia_core.model import Job
from givalia_core.protocol.messages import ANY, ISOLATIONS, Announce, Join, Process
from givalia_core.store.base import VARIANTS_MAX, News, Route, Span, Timer
from givalia_core.timers import Window

LENT_BYTES_MAX: Final = 1 << 20  # Of params, to one worker in one batch.
NAMED_MAX: Final = 5  # Workers that an explanation names.


class Room:
    """What a worker can hold of one isolation: jobs that run as greenlets, or jobs that each have a process."""

    __slots__ = ("capacity", "held", "session")

    def __init__(self, session: Session) -> None:
        self.session = session
        self.capacity = 0
        self.held = 0

    @property
    def free(self) -> int:
        """How many more jobs it can take now."""
        return 0 if self.session.is_clogged else self.capacity - self.held

    def lend(self, params_bytes: int) -> None:
        """Count a job that is lent to it."""
        session = self.session
        self.held += 1
        session.lent_bytes += params_bytes
        session.is_clogged = session.is_clogged or session.lent_bytes >= LENT_BYTES_MAX


class Session:
    """One connected worker: what it can run and how much of it now."""

    __slots__ = (
        "announced", "beat_mono_us", "conn", "has_resumed", "heard", "is_clogged", "join", "joined_wall_us", "lent_bytes",
        "processes", "rooms",
    )  # fmt: skip

    def __init__(self, conn: int, join: Join, now: Now) -> None:
        self.conn = conn
        self.join = join
        self.announced: dict[str, Announce] = {}
        self.rooms = {isolation: Room(self) for isolation in ISOLATIONS}
        self.processes: Sequence[Process] = ()  # What it says of its own processes.
        self.is_clogged = False  # It has as many bytes on their way to it as it may; credits alone do not bound them.
        self.lent_bytes = 0  # Of params, in this batch.
        self.has_resumed = False  # It has named the leases it holds: any other that it was given never reached it.
        self.heard = 0  # The request number of its newest message: leases are counted from when it sent that.
        self.beat_mono_us = now.mono_us
        self.joined_wall_us = now.wall_us

    def room(self, module: str) -> Room:
        """Where a job of this module has its place."""
        announced = self.announced.get(module)
        return self.rooms.get(announced.isolation if announced else "", self.rooms["greenlet"])

    def serves(self, module: str) -> bool:
        """Whether it can run this module."""
        announced = self.announced.get(module)
        return announced is not None and announced.broken is None

    def satisfies(self, module: str, specifier: str | None) -> bool:
        """Whether its version of a module that it serves is one that is asked for."""
        return specifier is None or specifiers.satisfies(self.announced[module].version, specifier)

    def routes(self) -> Iterable[Route]:
        """The routes it takes jobs from; their variants, which it may satisfy or not, are not named."""
        names = (self.join.name,) if self.join.only_targeted or self.join.name == ANY else (self.join.name, ANY)
        return [Route(module, name) for module in self.announced if self.serves(module) for name in names]

    def describe(self) -> dict[str, Any]:
        """What `givalia workers` shows."""
        return {
            "name": self.join.name,
            "instance": self.join.instance.hex(),
            "pid": self.join.pid,
            "only_targeted": self.join.only_targeted,
            "capacity": self.rooms["greenlet"].capacity,
            "process_capacity": self.rooms["process"].capacity,
            "running": sum(room.held for room in self.rooms.values()),
            "processes": [{**each._asdict(), "job": each.job and each.job.hex()} for each in self.processes],
            "since_us": self.joined_wall_us,
            "modules": sorted(name for name in self.announced if self.serves(name)),
            "versions": {name: each.version for name, each in sorted(self.announced.items()) if self.serves(name)},
            "broken": sorted(name for name in self.announced if not self.serves(name)),
        }


class Routing:
    """Who is connected, what they serve, and what is near on each served route."""

    def __init__(self, near_limit: int | None = None) -> None:
        self._near_limit = near_limit  # How many timers of a route are read at once; None: as many as is usual.
        self.elsewhere: list[dict[str, Any]] = []  # The workers of other servers of a shared store, as those describe them.
        self.sessions: dict[int, Session] = {}
        self.windows: dict[tuple[str, str], Window] = {}  # By route.
        self.unlearned: set[Route] = set()  # Served routes whose variants the store must be asked for.
        self._crowded: set[Route] = set()  # Routes with more variants than have windows.
        self._serving: dict[Route, list[Session]] = {}  # Who serves a route, whatever its version.
        self._variants: dict[Route, dict[Route, None]] = {}  # Of a route, those that have a window.
        self._takers: dict[tuple[str, str], list[Room]] = {}  # By route or variant.

    def join(self, session: Session) -> None:
        """A worker has connected; it serves nothing before it announces."""
        self.sessions[session.conn] = session

    def announce(self, session: Session, announced: Iterable[Announce]) -> None:
        """Replace what a worker serves."""
        session.announced = {module.name: module for module in announced}
        self._rebuild()
        self.unlearned.update(session.routes())  # It may satisfy what nobody did.

    def leave(self, conn: int) -> Session | None:
        """A connection is gone; the session it had, if it was a worker's."""
        session = self.sessions.pop(conn, None)
        if session is not None:
            self._rebuild()
        return session

    def _rebuild(self) -> None:
        self._serving = {}
        for session in self.sessions.values():
            for route in session.routes():
                self._serving.setdefault(route, []).append(session)
        windows, variants = self.windows, [route for known in self._variants.values() for route in known]
        self.windows, self._takers, self._variants = {}, {}, {}
        for route in (*self._serving, *variants):
            self._open(route, windows.get(route))

    def _open(self, route: Route, window: Window | None = None) -> Window | None:
        """Let the route have a window, this one or a new one, if there is a worker to take its jobs."""
        specifier = route.specifier
        plain = route if specifier is None else route.plain
        able = [session for session in self._serving.get(plain, ()) if session.satisfies(route.module, specifier)]
        if not able:
            return None
        if specifier is not None:
            known = self._variants.setdefault(plain, {})
            if len(known) >= VARIANTS_MAX:
                self._crowded.add(plain)
                return None
            known[route] = None
        self._takers[route] = [session.room(route.module) for session in able]
        self.windows[route] = window = window or Window(route, self._near_limit)
        return window

    def learn(self, asked: Iterable[Route], found: Mapping[Route, Sequence[Route]]) -> None:
        """Take in what the store says: on these and no other variants of the routes that were asked about do jobs wait.

        So a variant has a window as long as jobs come to wait there, and until somebody asks after its last one has gone.
        """
        for plain in sorted(asked):
            variants = found.get(plain, ())
            for gone in self._variants.get(plain, {}).keys() - set(variants):
                del self._variants[plain][gone], self.windows[gone], self._takers[gone]
            if len(variants) >= VARIANTS_MAX:
                self._crowded.add(plain)
            for route in variants:
                if route not in self.windows:
                    self._open(route)
            self.unlearned.discard(plain)

    def learn_more(self) -> None:
        """Where there were more variants than get windows, ask again: some may have gone."""
        self.unlearned |= self._crowded & self._serving.keys()
        self._crowded.clear()

    def forget_windows(self) -> None:
        """Throw the near windows away; the store fills them again."""
        self.windows = {route: Window(window.route, self._near_limit) for route, window in self.windows.items()}
        self.unlearned.update(self._serving)

    def hear(self, news: News) -> None:
        """Take in what other servers say of jobs that wait."""
        for route in news.ready:
            if (window := self._window(route)) is not None:
                window.has_ready = True
        for route, due_us in news.nearing.items():
            if (window := self._window(route)) is not None:
                window.hear(due_us)

    def _window(self, route: Route) -> Window | None:
        """The window of a route; a variant on which no job waited gets one now."""
        window = self.windows.get(route)
        return self._open(route) if window is None and route.specifier is not None else window

    def tick(self, now: Now) -> list[Span]:
        """Begin a batch: let timers fall due; return what must be read to know which come next."""
        spans: list[Span] = []
        for window in self.windows.values():
            window.tick(now.timer_us)
            spans += window.spans()
        return spans

    def offer(self, job: Job, now: Now) -> None:
        """A job waits (or waits anew); remember it if it is near and its route is served."""
        window = self.windows.get((job.module, job.target))
        if window is None and job.specifier is not None:
            window = self._open(Route(job.module, job.target))
        if window is not None:
            window.offer(Timer(job.due_on_timer_us(now), job.seq), now.timer_us)

    def discard(self, job: Job) -> None:
        """A job waits no longer on this route."""
        window = self.windows.get((job.module, job.target))
        if window is not None:
            window.discard(job.seq)

    def taker(self, route: tuple[str, str]) -> Room | None:
        """Of the workers of this route the room with the most free credits; None if all are full."""
        best: Room | None = None
        for room in self._takers.get(route, ()):
            if room.free > 0 and (best is None or room.free > best.free):
                best = room
        return best

    def credits(self, route: tuple[str, str]) -> int:
        """How many jobs the workers of this route can take now."""
        return sum(max(room.free, 0) for room in self._takers.get(route, ()))

    @property
    def must_read(self) -> bool:
        """Whether the store must be asked before one can say what comes next: a near window has run out, or may be missing."""
        return bool(self.unlearned) or any(window.timers.is_spent for window in self.windows.values())

    def next_due_us(self) -> int | None:
        """When the next near timer falls due, on the timer clock."""
        dues = [due for window in self.windows.values() if (due := window.next_due_us()) is not None]
        return min(dues, default=None)

    def why_not_taken(self, job: Job) -> str:
        """In words, why no worker has taken this ready job yet."""
        if self._is_taken_elsewhere(job):
            return "it is for a worker of another server to take, or about to be"
        if job.specifier is not None and (words := self._why_no_version(job)):
            return words
        able = [session for session in self.sessions.values() if session.serves(job.module)]
        if job.target_worker != ANY:
            named = [session for session in self.sessions.values() if session.join.name == job.target_worker]
            if not named:
                return f"worker {job.target_worker} is not connected"
            able = [session for session in named if session.serves(job.module)]
            if not able:
                return f"worker {job.target_worker} has no module {job.module}{_because(named, job.module)}"
        if not able:
            return f"no worker has module {job.module}{_because(self.sessions.values(), job.module)}"
        if job.target_worker == ANY:
            able = [session for session in able if not session.join.only_targeted or session.join.name == ANY]
            if not able:
                return f"every worker with module {job.module} takes only jobs for its own name"
        if all(session.room(job.module).free <= 0 for session in able if session.satisfies(job.module, job.specifier)):
            return "every worker that could take it is full"
        return "it is about to be given to a worker"

    def _why_no_version(self, job: Job) -> str | None:
        """In words, if workers could take the job and that it asks for a version is why they do not."""
        found = dict.fromkeys(f"{name} with {version}" for name, version in self._versions(job))
        if not found or (job.module, job.target) in self._takers:
            return None
        here = self._serving.get(Route(job.module, job.target_worker), ())
        if any(session.satisfies(job.module, job.specifier) for session in here):
            return f"jobs ask for too many different versions of {job.module}; it waits until some of those are gone"
        named = ", ".join([*found][:NAMED_MAX]) + (f" and {len(found) - NAMED_MAX} more" if len(found) > NAMED_MAX else "")
        who = "no worker" if job.target_worker == ANY else f"no worker {job.target_worker}"
        return f"{who} has {job.module} {job.specifier}; connected: {named}"

    def _versions(self, job: Job) -> Iterator[tuple[str, str]]:
        """Who could take the job if their version, which comes with the name, were one that it asks for."""
        for session in self._serving.get(Route(job.module, job.target_worker), ()):
            yield session.join.name, session.announced[job.module].version
        for worker in self.elsewhere:
            if _serves(worker, job):
                yield worker["name"], worker.get("versions", {}).get(job.module, "an unknown version")

    def _is_taken_elsewhere(self, job: Job) -> bool:
        """Whether no worker here takes the job, and one that is connected to another server does."""
        return (job.module, job.target) not in self._takers and any(
            _serves(worker, job)
            and (job.specifier is None or specifiers.satisfies(worker.get("versions", {}).get(job.module, ""), job.specifier))
            for worker in self.elsewhere
        )


def _serves(worker: dict[str, Any], job: Job) -> bool:
    """Whether a worker of another server takes jobs from the route of this one, whatever their version."""
    is_named = worker["name"] == job.target_worker or (job.target_worker == ANY and not worker["only_targeted"])
    return is_named and job.module in worker["modules"]


def _because(sessions: Iterable[Session], module: str) -> str:
    for session in sessions:
        announced = session.announced.get(module)
        if announced is not None and announced.broken:
            return f" that works: on {session.join.name}, {announced.broken.splitlines()[-1][:200]}"
    return ""
