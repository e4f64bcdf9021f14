"""One connection of the worker's link: it sends what is given to it, however slowly, and knows whether its path is alive.

A path that has died without a word is found by its pulse (`protocol.pulse`): whatever moves is left to move. The server owes a
worker jobs, so the path is looked after even while nothing is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import gevent
from gevent import socket

from givalia_core import forks, tcp
from givalia_core.errors import ConnectionLost
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Answer, Caller, Told
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.pulse import PING_COMMAND_S, PING_WAIT_S, Due, Owed, Pulse
from givalia_core.worker.channel import Channel

RECEIVE_BYTES: Final = 65_536
LOOK_LEAST_S: Final = 0.05  # How long to wait at least for room to send, before the pulse is looked at again.


class Line:
    """A connection to one server. One greenlet sends and looks at the pulse, and another may receive."""

    def __init__(self, address: Address, asked_since: Callable[[], float | None]) -> None:
        """Connect.

        Args:
            address: Of the server.
            asked_since: Says when the oldest message was sent that the server has not answered, on the monotonic clock in
                seconds; None if there is none.

        Raises:
            OSError: Nobody answers.
        """
        connected = socket.create_connection(address)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel = Channel(connected.detach(), RECEIVE_BYTES)
        self.caller = Caller()
        self._asked_since = asked_since
        self._pulse = Pulse(time.monotonic())
        self._ping = 0  # The number of the ping that was not answered yet.
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: the connection is the parent's."""
        forks.detach(self._channel.fileno())

    def receive(self) -> list[Answer | Told]:
        """Wait for something to arrive, and return what is whole.

        Raises:
            ConnectionLost: The server has closed the connection.
            OSError: The connection is broken.
            GivaliaError: The server sends what no server of this protocol sends.
        """
        data = self._channel.receive()
        if not data:
            raise ConnectionLost("the server closed the connection")
        self._pulse.moved(time.monotonic())
        return [each for each in self.caller.feed(data) if not self._is_pong(each)]

    def _is_pong(self, arrived: Answer | Told) -> bool:
        if not isinstance(arrived, Answer) or arrived.request != self._ping:
            return False
        self._ping = 0
        self._pulse.answered()
        return True

    def send(self, data: bytes) -> None:
        """Send all of it, as long as it moves.

        Raises:
            ConnectionLost: The path is dead.
            OSError: The connection is broken.
        """
        left = memoryview(data)
        while left:
            sent = 0
            with gevent.Timeout(max(self.look_again_s(), LOOK_LEAST_S), False):  # type: ignore[arg-type]
                sent = self._channel.send(left)
            left = left[sent:]
            if left and sent:
                self._pulse.moved(time.monotonic())  # Room is made only by what the server's TCP has taken.
            elif left:
                self._look(can_ping=False)

    def look_again_s(self) -> float:
        """Seconds until `look` is to be called, if nothing arrives before."""
        return self._pulse.look_again_s(time.monotonic(), self._owed()) or 0.0

    def look(self) -> None:
        """Send a ping if one is due.

        Raises:
            ConnectionLost: The path is dead.
            OSError: The connection is broken.
        """
        self._look(can_ping=True)

    def _look(self, *, can_ping: bool) -> None:
        due = self._pulse.due(
            time.monotonic(), self._owed(), lambda: tcp.acknowledged_s(self._channel.socket), can_ping=can_ping
        )
        if due is Due.DROP:
            raise ConnectionLost("nothing comes from the server, not even an acknowledgement")
        if due is Due.PING:
            self._ping, data = self.caller.ask(Kind.STAT, [])
            self.send(data)

    def _owed(self) -> Owed:
        since = self._asked_since()
        return Owed(0.0, PING_WAIT_S) if since is None else Owed(since, PING_COMMAND_S)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()
