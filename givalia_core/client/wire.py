"""A blocking client's socket: connects, says hello, and moves bytes without ever waiting longer than it is told."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from typing import Final

from givalia_core import forks, tcp
from givalia_core.client.visit import Visit
from givalia_core.protocol.addresses import Address

RECEIVE_BYTES: Final = 262_144


class Wire:
    """One connection that has said hello; `visit` numbers what goes over it."""

    def __init__(self, address: Address, patience_s: float) -> None:
        """Connect and say hello, each within `patience_s` seconds.

        Raises:
            OSError: Nobody answers, or the server is busy; try again.
            GivaliaError: The server refuses this client; trying again is of no use.
        """
        process = os.getpid()
        self._socket = socket.create_connection(address, timeout=patience_s)
        self._taken_bytes = 0
        self.visit = Visit()
        self.visit.taken_bytes = lambda: self._taken_bytes
        forks.register(self)
        try:
            if os.getpid() != process:  # A greenlet connects, and another one has forked meanwhile.
                self.after_fork()
            tcp.tune(self._socket)
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
        # While the system has not said how much it took, another thread is to believe that it was everything.
        self._taken_bytes += len(data)
        try:
            sent = self._socket.send(data)
        except OSError as error:
            self._taken_bytes -= len(data)
            if isinstance(error, BlockingIOError):
                return 0
            raise
        self._taken_bytes -= len(data) - sent
        return sent

    def acknowledged_s(self) -> float:
        """As `tcp.acknowledged_s`."""
        return tcp.acknowledged_s(self._socket)

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

    def after_fork(self) -> None:
        """In a fork: close it here alone, and at once; a socket of gevent would close it only when the loop runs."""
        forks.detach(self._socket.fileno())
        self._socket.close()

    def close(self) -> None:
        """Close it; whoever waits on it wakes up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
