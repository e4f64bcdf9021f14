"""A connected socket for the hub of gevent, made of parts in C, whose methods no job can replace.

The methods of `gevent.socket` are Python functions that read before they wait: where messages come one at a time, every second
system call finds nothing.
"""

from __future__ import annotations

from _socket import SHUT_WR, socket
from functools import partial
from typing import Final

from gevent import get_hub

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

RECEIVE_BYTES: Final = 262_144
_READ, _WRITE = 1, 2  # The numbers of libev.


class Channel:
    """The owner of a descriptor's socket. One greenlet may read while another writes; end both before `close`.

    Args:
        fd: The descriptor.
        receive_bytes: The most bytes that `receive` returns.
    """

    def __init__(self, fd: int, receive_bytes: int = RECEIVE_BYTES) -> None:
        self.socket = socket(fileno=fd)
        self.socket.setblocking(False)
        self._arrived = memoryview(bytearray(receive_bytes))  # Allocated once, because the system maps memory of this size.
        self._is_drained = True  # The last read left nothing, as far as is known.
        self._hub = get_hub()
        self._readable = self._hub.loop.io(fd, _READ)
        self.wait = partial(self._hub.wait, self._readable)
        """The function that waits for bytes to arrive."""
        self._writable = self._hub.loop.io(fd, _WRITE)

    def fileno(self) -> int:
        """Return the descriptor; -1 once it is closed."""
        return self.socket.fileno()

    def receive(self) -> memoryview:
        """Wait for bytes and return them, valid until the next call; empty: the peer has closed the connection.

        Raises:
            OSError: The connection is lost.
        """
        while True:
            if self._is_drained:
                self.wait()
            try:
                count = self.socket.recv_into(self._arrived)
            except BlockingIOError:
                self._is_drained = True
            else:
                self._is_drained = count < len(self._arrived)
                return self._arrived[:count]

    def send(self, data: memoryview) -> int:
        """Wait for room, send the bytes that fit, and return their number.

        Raises:
            OSError: The connection is lost.
        """
        while True:
            try:
                return self.socket.send(data)
            except BlockingIOError:
                self._hub.wait(self._writable)

    def sendall(self, data: bytes) -> None:
        """Send all bytes.

        Raises:
            OSError: The connection is lost.
        """
        left = memoryview(data)
        while left:
            left = left[self.send(left) :]

    def finish(self) -> None:
        """Tell the peer that nothing more will come.

        Raises:
            OSError: The connection is lost.
        """
        self.socket.shutdown(SHUT_WR)

    def close(self) -> None:
        """Close the socket."""
        self._readable.close()
        self._writable.close()
        self.socket.close()
