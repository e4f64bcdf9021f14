"""Connected workers and their credits: which of the workers that serve a route has the most room for a job.

A credit changes with each job that is lent or ends, and hundreds of workers may serve one route. So every change is noted once,
in `Moves`, and each route's `Takers` take in the changes when they are asked. Workers to which nothing happens cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final

from givalia_core import specifiers
from givalia_core.clock import Now
from givalia_core.protocol.messages import ANY, ISOLATIONS, Announce, Join, Process
from givalia_core.store.base import Route

LENT_BYTES_MAX: Final = 1 << 20  # Of params, to one worker in one batch.
FEW: Final = 4  # Up to so many takers of a route are compared one by one.
MOVES_KEPT: Final = 4_096


class Moves:
    """The rooms whose credits have changed, in the order of the changes; the oldest are dropped."""

    def __init__(self) -> None:
        self.rooms: list[Room] = []
        self.start = 0
        self.note = self.rooms.append

    @property
    def end(self) -> int:
        """The place behind the last change."""
        return self.start + len(self.rooms)

    def since(self, place: int) -> list[Room] | None:
        """Return the rooms that have changed from this place on, some more than once; None if some changes were dropped."""
        return None if place < self.start else self.rooms[place - self.start :]

    def trim(self) -> None:
        """Drop the noted changes if there are many."""
        if len(self.rooms) > MOVES_KEPT:
            self.start += len(self.rooms)
            self.rooms.clear()


class Room:
    """A worker's room for jobs of one isolation: greenlets, or processes of their own."""

    __slots__ = ("number", "session", "taken", "taken_most")

    def __init__(self, session: WorkerSession) -> None:
        self.session = session
        self.number = 0  # In the order in which workers have joined.
        self.taken_most = 0  # This and `taken` are `capacity` and `held`, without a note of the change.
        self.taken = 0

    @property
    def capacity(self) -> int:
        """The number of jobs that the worker can hold."""
        return self.taken_most

    @capacity.setter
    def capacity(self, count: int) -> None:
        self.taken_most = count
        self.session.note(self)

    @property
    def held(self) -> int:
        """The number of jobs that the worker holds."""
        return self.taken

    @held.setter
    def held(self, count: int) -> None:
        self.taken = count
        self.session.note(self)

    @property
    def free(self) -> int:
        """The number of jobs that the worker can take now."""
        return 0 if self.session.is_clogged else self.taken_most - self.taken

    def lend(self, params_bytes: int) -> None:
        """Count a job that is lent to the worker."""
        session = self.session
        self.taken += 1
        session.note(self)
        if not session.lent_bytes:
            session.lent_to.append(session)
        session.lent_bytes += params_bytes + 1
        if session.lent_bytes >= LENT_BYTES_MAX:
            session.clog(is_clogged=True)

    def give_back(self) -> None:
        """Stop counting a job that the worker no longer holds."""
        self.taken -= 1
        self.session.note(self)


class WorkerSession:
    """One connected worker: the modules it can run, and its free room."""

    __slots__ = (
        "announced", "beat_mono_us", "conn", "has_resumed", "heard", "is_clogged", "join", "joined_wall_us",
        "lent_bytes", "lent_to", "note", "processes", "rooms",
    )  # fmt: skip

    def __init__(self, conn: int, join: Join, now: Now) -> None:
        self.conn = conn
        self.join = join
        self.note: Callable[[Room], None] = Moves().note  # Notes its credits; once it has joined, in the moves of all workers.
        self.announced: dict[str, Announce] = {}
        self.rooms = {isolation: Room(self) for isolation in ISOLATIONS}
        self.processes: Sequence[Process] = ()  # What it says of its own processes.
        self.is_clogged = False  # As many bytes are on their way to it as may be; credits alone do not bound them.
        self.lent_bytes = 0  # Bytes of params in this batch, plus one for each job.
        self.lent_to: list[WorkerSession] = []  # Workers that were lent jobs in this batch; one list for all, once joined.
        self.has_resumed = False  # It has named the leases it holds: any other that it was given never reached it.
        self.heard = 0  # The request number of its newest message: leases are counted from when it sent that.
        self.beat_mono_us = now.mono_us
        self.joined_wall_us = now.wall_us

    def clog(self, *, is_clogged: bool) -> None:
        """Note whether the worker may be sent no more for now."""
        if is_clogged is not self.is_clogged:
            self.is_clogged = is_clogged
            for room in self.rooms.values():
                self.note(room)

    def room(self, module: str) -> Room:
        """Return the room that a job of this module takes."""
        announced = self.announced.get(module)
        return self.rooms.get(announced.isolation if announced else "", self.rooms["greenlet"])

    def serves(self, module: str) -> bool:
        """Return whether it can run this module."""
        announced = self.announced.get(module)
        return announced is not None and announced.broken is None

    def satisfies(self, module: str, specifier: str | None) -> bool:
        """Return whether its version of a module satisfies the specifier."""
        return specifier is None or specifiers.satisfies(self.announced[module].version, specifier)

    def routes(self) -> Iterable[Route]:
        """Return the routes from which the worker takes jobs, without their variants, which it may satisfy or not."""
        names = (self.join.name,) if self.join.only_targeted or self.join.name == ANY else (self.join.name, ANY)
        return [Route(module, name) for module in self.announced if self.serves(module) for name in names]

    @property
    def is_draining(self) -> bool:
        """Return whether it takes no more jobs because it is about to end."""
        return not any(room.capacity for room in self.rooms.values()) and any(
            process.role == "greenlets" and process.state == "draining" for process in self.processes
        )

    def describe(self) -> dict[str, Any]:
        """Return the map that `givalia workers` shows."""
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
            "draining": self.is_draining,
        }


class Takers:
    """The rooms of the workers that serve one route."""

    __slots__ = ("_at", "_credits", "_heap", "_known", "_moves", "_only", "_rooms")

    def __init__(self, moves: Moves) -> None:
        self._moves = moves
        self._rooms: dict[int, Room] = {}
        self._only: Room | None = None  # The room of a single worker.
        self._at = -1  # The place in the moves up to which the next three are right; -1 if they are not.
        self._known: dict[int, int] = {}  # The free credits of each room,
        self._heap: list[tuple[int, int]] = []  # the most first (with some that are no longer so),
        self._credits = 0  # and all of them together.

    def __len__(self) -> int:
        return len(self._rooms)

    def __contains__(self, room: Room) -> bool:
        return room.number in self._rooms

    def add(self, room: Room) -> None:
        """Add the room of a worker that serves the route."""
        if room.number not in self._rooms:
            self._rooms[room.number] = room
            self._change()

    def discard(self, room: Room) -> None:
        """Remove the room of a worker that no longer serves the route."""
        if self._rooms.pop(room.number, None) is not None:
            self._change()

    def _change(self) -> None:
        self._at = -1
        self._only = next(iter(self._rooms.values())) if len(self._rooms) == 1 else None

    def credits(self) -> int:
        """Return how many jobs these workers can take now."""
        if len(self._rooms) <= FEW:
            rooms = self._rooms.values()
            return sum([max(room.taken_most - room.taken, 0) for room in rooms if not room.session.is_clogged])
        self._look()
        return self._credits

    def best(self) -> Room | None:
        """Return the room with the most free credits, among equals the one that joined first; None if all are full."""
        only = self._only
        if only is not None:
            return only if only.taken < only.taken_most and not only.session.is_clogged else None
        if len(self._rooms) <= FEW:
            return self._best_of_few()
        self._look()
        heap, known = self._heap, self._known
        while heap and -heap[0][0] != known[heap[0][1]]:
            heappop(heap)
        return self._rooms[heap[0][1]] if heap else None

    def _best_of_few(self) -> Room | None:
        best, most = None, 0
        for room in self._rooms.values():
            free = room.free
            if free > most:
                best, most = room, free
        return best

    def _look(self) -> None:
        """Take in what has changed since the last time."""
        moved = self._moves.since(self._at)
        if moved is None or self._at < 0 or len(moved) > len(self._rooms) or len(self._heap) > 2 * len(self._rooms) + FEW:
            self._known = {number: max(room.free, 0) for number, room in self._rooms.items()}
            self._heap = [(-free, number) for number, free in self._known.items() if free]
            heapify(self._heap)
            self._credits = sum(self._known.values())
        else:
            for room in moved:
                if room.number in self._rooms:
                    self._update(room)
        self._at = self._moves.end

    def _update(self, room: Room) -> None:
        free, was = max(room.free, 0), self._known[room.number]
        if free != was:
            self._known[room.number] = free
            self._credits += free - was
            if free:
                heappush(self._heap, (-free, room.number))
