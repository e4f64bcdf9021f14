"""A process's end of the connection to its supervisor, for the hub of gevent.

It is made of parts in C whose methods no job can replace; those of `gevent.socket` are functions of Python.
"""

from __future__ import annotations

from _socket import socket
from typing import Final

from gevent import get_hub

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

RECEIVE_BYTES: Final = 262_144
_READ, _WRITE = 1, 2  # As libev numbers them.


class Channel:
    """Reads and writes the socket of a descriptor; one greenlet may read while another writes."""

    def __init__(self, fd: int) -> None:
        self._socket = socket(fileno=fd)
        self._socket.setblocking(False)
        self._arrived = memoryview(bytearray(RECEIVE_BYTES))  # Made once: the system maps memory of this size anew each time.
        self._hub = get_hub()
        self._readable = self._hub.loop.io(fd, _READ)
        self._writable = self._hub.loop.io(fd, _WRITE)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def receive(self) -> memoryview:
        """Wait for something to arrive and return it, good until the next call; empty: the other end is closed.

        Raises:
            OSError: The connection is lost.
        """
        while True:
            try:
                return self._arrived[: self._socket.recv_into(self._arrived)]
            except BlockingIOError:
                self._hub.wait(self._readable)

    def sendall(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            OSError: The connection is lost.
        """
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                self._hub.wait(self._writable)
