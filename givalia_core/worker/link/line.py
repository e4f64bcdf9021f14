"""One connection of the worker's link: how it begins, how it sends what leaves slowly, and how its path is found dead.

A path that has died without a word is found by its pulse (`protocol.pulse`): whatever moves is left to move. The server owes a
worker jobs, so the link looks after the path even while nothing is asked.
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
LOOK_LEAST_S: Final = 0.05  # How long to wait at least for room to send, before the pulse is looked at again.


class ServerLine:
    """A connection to one server. One greenlet sends and looks at the pulse, and another may receive."""

    def __init__(self, address: Address, core: LeaseCore) -> None:
        """Connect.

        Args:
            address: Of the server.
            core: Knows what the server has not answered yet, and numbers the frames.

        Raises:
            OSError: Nobody answers.
        """
        connected = socket.create_connection(address)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.channel = Channel(connected.detach(), RECEIVE_BYTES)
        self.caller = Caller()
        self.moved_s = time.monotonic()
        """When something last arrived, or left slowly."""
        self.look_s = 0.0
        """When `look` is to be called next, if nothing is sent before."""
        self.sleeps_until_us = 0
        """When the greenlet that sends wakes, if nobody wakes it before."""
        self.look_after_s, self.look_idle_s = PING_COMMAND_S, PING_WAIT_S
        """How long after something was sent to call `look` at the latest, and while nothing is asked after something moved."""
        self.ping = 0
        """The number of the ping that is not answered yet."""
        self._core = core
        self.pulse = Pulse(self.moved_s)
        """Decides whether the path is alive."""
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: the connection is the parent's."""
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
        """Wait for something to arrive, and return the frames that are whole.

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
        """Send all of it, as long as it moves.

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
                self.moved_s = time.monotonic()  # Room is made only by what the server's TCP has taken.
                self.pulse.moved(self.moved_s)
            elif left:
                self.look(can_ping=False)

    def look(self, *, can_ping: bool = True) -> None:
        """See whether the path is alive, and send a ping if one is due.

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
