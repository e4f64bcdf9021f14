"""A blocking client's socket: connects, says hello, and moves bytes without ever waiting longer than it is told."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Final, Protocol

from givalia_core.client.errands import Visit
from givalia_core.protocol.addresses import Address

RECEIVE_BYTES: Final = 262_144
KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))  # Seconds, seconds, and how often.


class Wire:
    """One connection that has said hello; `visit` numbers what goes over it."""

    def __init__(self, address: Address, patience_s: float) -> None:
        """Connect and say hello, each within `patience_s` seconds.

        Raises:
            OSError: Nobody answers, or the server is busy; try again.
            GivaliaError: The server refuses this client; trying again is of no use.
        """
        self._socket = socket.create_connection(address, timeout=patience_s)
        self.visit = Visit()
        try:
            tune(self._socket)
            self._socket.sendall(self.visit.hello())
            while not self.visit.greet(self._received()):
                pass
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def wait(self, seconds: float | None, *, to_send: bool = False, to_read: bool = True) -> bool:
        """Wait until there is something to read, or room to send, as asked; whether there is."""
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(self._socket, (select.POLLIN if to_read else 0) | (select.POLLOUT if to_send else 0))
            return bool(poll.poll(None if seconds is None else max(seconds, 0) * 1000))
        ready = select.select([self._socket] if to_read else [], [self._socket] if to_send else [], [], seconds)
        return bool(ready[0] or ready[1])

    def send(self, data: memoryview) -> int:
        """Send what the socket takes now; how much that was."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self) -> bytes | None:
        """What has arrived; None if nothing has.

        Raises:
            OSError: The connection is over.
        """
        try:
            return self._received()
        except BlockingIOError:
            return None

    def _received(self) -> bytes:
        data = self._socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data

    def leave(self) -> None:
        """Close it in this process alone: in another one it goes on."""
        self._socket.close()

    def close(self) -> None:
        """Close it; whoever waits on it wakes up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Tunable(Protocol):
    """A socket, whoever looks after it."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


def tune(sock: Tunable) -> None:
    """Whoever only waits for a job sends nothing, so the system has to find out when the server's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
