"""One connection of the worker's link: its start, its slow sends, and the detection of a dead path.

`protocol.pulse` finds a path that has died silently; a path on which bytes move is never called dead. A worker waits for jobs,
so the path is checked even while no answer is due.
"""

from __future__ import annotations

import time
from typing import Final

import gevent
from gevent import socket

from givalia_core import forks, tcp
from givalia_core.clock import SECOND_US
from givalia_core.errors import ConnectionLost
from givalia_core.protocol import frames
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Answer, Caller, Told, refused
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.pulse import PING_COMMAND_S, PING_WAIT_S, Due, Owed, Pulse
from givalia_core.worker.channel import Channel
from givalia_core.worker.link.lease_core import LeaseCore

RECEIVE_BYTES: Final = 65_536
LOOK_LEAST_S: Final = 0.05  # The shortest wait for room to send between two checks of the pulse.


class ServerLine:
    """A connection to one server. One greenlet sends and checks the pulse; another may receive."""

    def __init__(self, address: Address, core: LeaseCore) -> None:
        """Connect.

        Args:
            address: The address of the server.
            core: Numbers the frames, and knows those without an answer.

        Raises:
            OSError: The connection cannot be made.
        """
        connected = socket.create_connection(address)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.channel = Channel(connected.detach(), RECEIVE_BYTES)
        self.caller = Caller()
        self.moved_s = time.monotonic()
        """The time of the last arrival, or of the last progress of a slow send."""
        self.look_s = 0.0
        """The time of the next `look`, if nothing is sent before."""
        self.sleeps_until_us = 0
        """The time at which the sending greenlet wakes, if nothing wakes it before."""
        self.look_after_s, self.look_idle_s = PING_COMMAND_S, PING_WAIT_S
        """The longest time to the next `look`: after a send, and after the last movement while no answer is due."""
        self.ping = 0
        """The number of the ping without an answer; 0: none."""
        self._core = core
        self.pulse = Pulse(self.moved_s)
        """The decision whether the path is alive."""
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: leave the connection to the parent."""
        forks.detach(self.channel.fileno())

    def greet(self, agent: str) -> None:
        """Say hello, and wait for the answer.

        Raises:
            ConnectionLost, OSError, GivaliaError: This is no server of this protocol, or it does not take the worker.
        """
        self.send(self.caller.hello(agent))
        while not (arrived := self.receive()):
            pass
        if isinstance(arrived[0], Answer) and (error := refused(arrived[0])) is not None:
            raise error

    def receive(self) -> list[Answer | Told]:
        """Wait for bytes, and return the complete frames.

        Raises:
            ConnectionLost: The server has closed the connection.
            OSError: The connection is broken.
            GivaliaError: The server sends what no server of this protocol sends.
        """
        data = self.channel.receive()
        if not data:
            raise ConnectionLost("the server closed the connection")
        self.moved_s = time.monotonic()
        return self.caller.feed(data)

    def send(self, data: bytes | memoryview) -> None:
        """Send all bytes, as long as the path moves them.

        Raises:
            ConnectionLost: The path is dead.
            OSError: The connection is broken.
        """
        left = memoryview(data)
        while left:
            sent = 0
            now_s = time.monotonic()
            wait_s = self.pulse.look_again_s(now_s, self._owed()) or 0.0
            with gevent.Timeout(max(wait_s, LOOK_LEAST_S), False):  # type: ignore[arg-type]
                sent = self.channel.send(left)
            left = left[sent:]
            if left and sent:
                self.moved_s = time.monotonic()  # The send buffer has room only for what the server's TCP has acknowledged.
                self.pulse.moved(self.moved_s)
            elif left:
                self.look(can_ping=False)

    def look(self, *, can_ping: bool = True) -> None:
        """Check the path, and send a ping if one is due.

        Raises:
            ConnectionLost: The path is dead.
            OSError: The connection is broken.
        """
        now_s, owed = time.monotonic(), self._owed()
        self.pulse.moved(self.moved_s)
        due = self.pulse.due(now_s, owed, lambda: tcp.acknowledged_s(self.channel.socket), can_ping=can_ping)
        if due is Due.DROP:
            raise ConnectionLost("nothing comes from the server, not even an acknowledgement")
        if due is Due.PING:
            self.ping = self._core.take_number()
            self.send(frames.encode(Kind.STAT, self.ping, []))
        self.look_s = now_s + (self.pulse.look_again_s(now_s, owed) or 0.0)

    def take_pong(self) -> None:
        """Note that the ping is answered."""
        self.ping, self.look_s = 0, 0.0
        self.pulse.moved(self.moved_s)
        self.pulse.answered()

    def _owed(self) -> Owed:
        oldest = next(iter(self._core.asked.values()), None)
        return Owed(0.0, PING_WAIT_S) if oldest is None else Owed(oldest[2] / SECOND_US, PING_COMMAND_S)

    def close(self) -> None:
        """End the connection."""
        self.channel.close()
