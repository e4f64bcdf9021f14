"""The world of every simulated process: virtual time, and a network that loses, delays and breaks.

One `random.Random(seed)` decides everything, so a seed determines a run. Messages of one connection arrive in order;
connections overtake each other; a connection that breaks loses any tail of its messages in flight, in both directions.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Protocol

from sim_history import History

from givalia_core.clock import SECOND_US, ManualClock
from givalia_core.protocol import frames
from givalia_core.protocol.codec import decode, item
from givalia_core.protocol.frames import Frame, Item, unpack_fields
from givalia_core.protocol.messages import Kind

MS_US = 1_000
LAST_BYTES_US = 50 * MS_US  # How long after a break what was on its way may still arrive.


class World:
    """The time of one run, its randomness and its history."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.history = History(self.clock)
        self.now_us = self.clock.read().uptime_us
        self.wall_ahead_us = 0  # By how much the wall clock was set since the start, and by how much at most.
        self.wall_ahead_most_us = 0
        self._queue: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0

    def after(self, delay_us: int, act: Callable[..., None], *args: Any) -> None:
        """Do this when `delay_us` have passed; what is due at one instant happens in the order it was asked for."""
        self._count += 1
        heappush(self._queue, (self.now_us + delay_us, self._count, act, args))

    def run_until(self, until_us: int, is_over: Callable[[], bool] = lambda: False) -> None:
        """Let everything happen that is due until then, or until `is_over`."""
        queue = self._queue
        while queue and queue[0][0] <= until_us and not is_over():
            at_us, _, act, args = heappop(queue)
            if at_us > self.now_us:
                self.clock.advance(us=at_us - self.now_us)
                self.now_us = at_us
            act(*args)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back."""
        self.clock.step_wall(seconds)
        self.wall_ahead_us += round(seconds * SECOND_US)
        self.wall_ahead_most_us = max(self.wall_ahead_most_us, self.wall_ahead_us)
        self.history.wall_steps += 1
        self.history.note("clock", "fault", "step", value=seconds)

    def chance(self, probability: float) -> bool:
        """True that often."""
        return self.rng.random() < probability

    def between_us(self, least_s: float, most_s: float) -> int:
        """A random length of time, given in seconds."""
        return round(self.rng.uniform(least_s, most_s) * SECOND_US)


class Peer(Protocol):
    """A client or a worker, as the network knows it."""

    name: str

    def receive(self, conn: Connection, kind: Kind, request: int, items: list[Item]) -> None:
        """A frame of the server has arrived."""

    def lost(self, conn: Connection) -> None:
        """The connection is known to be broken."""


class Host(Protocol):
    """The server, as the network knows it."""

    is_up: bool

    def accept(self, conn: Connection) -> None:
        """A connection was made."""

    def submit(self, conn: Connection, kind: Kind, request: int, messages: list[Any], until_us: int | None) -> None:
        """A frame has arrived."""

    def gone(self, conn: Connection) -> None:
        """The connection is known to have ended."""


class _Pipe:
    """One direction of a connection: in order, each frame a while after it was sent, until it is cut."""

    def __init__(self, world: World, deliver: Callable[..., None], delay_us: Callable[[], int]) -> None:
        self._world = world
        self._deliver = deliver
        self._delay_us = delay_us
        self._last_us = 0
        self._sent = 0
        self._arrived = 0
        self._limit: int | None = None
        self._until_us = 0
        self.held_until_us = 0

    def send(self, *frame: Any) -> None:
        if self._limit is not None:
            return
        self._sent += 1
        self._last_us = max(self._world.now_us + self._delay_us(), self._last_us + 1, self.held_until_us)
        self._world.after(self._last_us - self._world.now_us, self._arrive, self._sent, frame)

    def _arrive(self, number: int, frame: tuple[Any, ...]) -> None:
        if self._limit is None or (number <= self._limit and self._world.now_us <= self._until_us):
            self._arrived = number
            self._deliver(*frame)

    def cut(self, lose_all: bool = False) -> None:
        """Nothing more is sent; of what is under way a beginning may still arrive."""
        if self._limit is None:
            self._limit = self._arrived if lose_all else self._world.rng.randint(self._arrived, self._sent)
            self._until_us = max(self._world.now_us, self.held_until_us) + LAST_BYTES_US
        elif lose_all:
            self._limit = self._arrived


class Connection:
    """A connection between one peer and the server."""

    def __init__(self, world: World, number: int, peer: Peer, host: Host, slow: float, breaks: float) -> None:
        self.number = number
        self.peer = peer
        self._world = world
        self._host = host
        self._slow = slow
        self.breaks = breaks
        self._up = _Pipe(world, self._to_host, self._delay_us)
        self._down = _Pipe(world, self._to_peer, self._delay_us)
        self.is_open = True

    def _delay_us(self) -> int:
        rng = self._world.rng
        return rng.randint(20 * MS_US, 800 * MS_US) if rng.random() < self._slow else rng.randint(50, 4 * MS_US)

    def ask(self, kind: Kind, request: int, messages: list[Any], until_us: int | None = None) -> None:
        """The peer sends a frame, which is not to be decided after `until_us`."""
        if self._world.rng.random() < 0.1:
            messages = _over_the_wire(kind, request, messages)
        self._up.send(kind, request, messages, until_us)
        if self._world.rng.random() < self.breaks:
            # Aimed at the moment when the answer matters: the command, its answer or neither gets through.
            self._world.after(self._world.rng.randint(0, 8 * MS_US), self.cut)

    def tell(self, kind: Kind, request: int, items: list[Item]) -> None:
        """The server sends a frame."""
        self._down.send(kind, request, items)

    def _to_host(self, kind: Kind, request: int, messages: list[Any], until_us: int | None) -> None:
        self._host.submit(self, kind, request, messages, until_us)

    def _to_peer(self, kind: Kind, request: int, items: list[Item]) -> None:
        self.peer.receive(self, kind, request, items)

    def stall(self, length_us: int) -> None:
        """Delay everything that the peer sends from now on by this time, even if the peer is gone by then."""
        self._up.held_until_us = max(self._up.held_until_us, self._world.now_us + length_us)

    def starve(self, alive_us: int, late_us: int, silent_us: int) -> None:
        """A path dies by and by: what the server sends comes late, then nothing reaches it, then nothing moves, and at last
        both sides find out."""
        self._down.held_until_us = max(self._down.held_until_us, self._world.now_us + late_us)
        self._world.after(alive_us, self._up.cut, True)
        self._world.after(late_us + LAST_BYTES_US, self._fall_silent, silent_us)

    def _fall_silent(self, silent_us: int) -> None:
        if self.is_open:
            self.is_open = False
            self._up.cut(lose_all=True)
            self._down.cut(lose_all=True)
            for hears in (self._host.gone, self.peer.lost):
                self._world.after(silent_us + self._world.between_us(0.0, 0.3), hears, self)

    @property
    def stalled_until_us(self) -> int:
        """The time at which the peer's bytes arrive again."""
        return self._up.held_until_us

    def cut(self, half_open: float = 0.2) -> None:
        """The network breaks it; each side finds out in its own time, now and then late."""
        if not self.is_open:
            return
        self.is_open = False
        self._up.cut()
        self._down.cut()
        self._find_out(self._host.gone, half_open)
        self._find_out(self.peer.lost, half_open)

    def _find_out(self, hears: Callable[[Connection], None], half_open: float) -> None:
        late = self._world.chance(half_open)
        delay_us = LAST_BYTES_US + self._world.between_us(*((1.0, 12.0) if late else (0.0, 0.3)))
        if hears == self._host.gone:
            delay_us += max(self._up.held_until_us - self._world.now_us, 0)
        self._world.after(delay_us, hears, self)

    def server_died(self) -> None:
        """The server is gone: what was sent to it is lost, what it sent may partly arrive."""
        self.is_open = False
        self._up.cut(lose_all=True)
        self._down.cut()
        self._find_out(self.peer.lost, 0.05)

    def server_closed(self) -> None:
        """The server ended it: what it sent before still arrives."""
        if self.is_open:
            self.is_open = False
            self._up.cut(lose_all=True)
            self._find_out(self.peer.lost, 0.0)
            self._host.gone(self)

    def peer_closed(self) -> None:
        """The peer ended it, or its process died."""
        if self.is_open:
            self.is_open = False
            self._up.cut()
            self._down.cut(lose_all=True)
            self._find_out(self._host.gone, 0.1)


class Network:
    """Makes connections and knows the open ones."""

    def __init__(self, world: World, host: Host, slow: float, breaks: float) -> None:
        self._world = world
        self._host = host
        self._slow = slow
        self.breaks = breaks
        self._open: list[Connection] = []
        self._stalled: list[Connection] = []
        self._last_number = 0

    def connect(self, peer: Peer) -> Connection | None:
        """A new connection to the server; None while it is down."""
        if not self._host.is_up:
            return None
        self._last_number += 1
        conn = Connection(self._world, self._last_number, peer, self._host, self._slow, self.breaks)
        self._open = [each for each in self._open if each.is_open]
        self._open.append(conn)
        self._host.accept(conn)
        return conn

    def heal(self) -> None:
        """From now on nothing breaks of itself."""
        self.breaks = 0.0
        for conn in self._open:
            conn.breaks = 0.0

    @property
    def stalled_until_us(self) -> int:
        """The end of the last stall."""
        return max((conn.stalled_until_us for conn in self._stalled), default=0)

    def stall(self, conn: Connection, length_us: int) -> None:
        """Hold up what is sent over a connection."""
        self._stalled.append(conn)
        conn.stall(length_us)

    def open_connections(self) -> list[Connection]:
        """Return the connections that may be broken."""
        return [conn for conn in self._open if conn.is_open]


def _over_the_wire(kind: Kind, request: int, messages: list[Any]) -> list[Any]:
    """The same messages as bytes would bring them."""
    data = frames.encode(kind, request, [item(message) for message in messages])
    (frame,) = frames.FrameReader().feed(data)
    assert isinstance(frame, Frame)
    return [decode(kind, packed, payload) for packed, payload in frame.items]


def answer_over_the_wire(items: list[Item]) -> list[Item]:
    """The same answers as bytes would bring them."""
    (frame,) = frames.FrameReader(frames.ANSWER_BYTES_MAX).feed(frames.encode(Kind.ANSWER, 1, items))
    assert isinstance(frame, Frame)
    return [(unpack_fields(packed), payload) for packed, payload in frame.items]
