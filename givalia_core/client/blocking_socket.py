"""The socket of a blocking client: connects, says hello, and moves bytes; no wait is longer than the caller says.

The socket never waits by itself, so each error that the system reports has a number. An `OSError` without one was thrown into
the call from outside, such as the `TimeoutError` of a signal handler, and belongs to the caller.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time as clock
from collections.abc import Iterator
from functools import partial
from typing import Final

from givalia_core import forks, tcp
from givalia_core.client.connection import ClientConnection
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Broken

RECEIVE_BYTES: Final = 65_536  # From 128 KiB on, glibc maps new memory for each read.
_UNDER_WAY: Final = (0, errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR)


@contextlib.contextmanager
def _breaks() -> Iterator[None]:
    """Raise an error of the system as `Broken`, and one that was thrown from outside as it is."""
    try:
        yield
    except OSError as error:
        raise _broken(error) from error


def _broken(error: OSError) -> Exception:
    return error if error.errno is None else Broken(str(error))


class BlockingSocket:
    """One connection that has said hello; `connection` is its state."""

    def __init__(self, address: Address, patience_s: float) -> None:
        """Connect and say hello, each within `patience_s` seconds.

        Raises:
            Broken: No server answers, or the server is busy, or refuses this client.
        """
        process = os.getpid()
        self._socket = _connected(address, patience_s)
        self._taken_bytes = 0
        self.wait = partial(_wait, self._socket)
        self.connection = ClientConnection()
        forks.register(self)
        try:
            if os.getpid() != process:  # Another greenlet forked while this one connected.
                self.after_fork()
            self._say_hello(clock.monotonic() + patience_s)
        except BaseException:
            self._socket.close()
            raise
        self._taken_bytes = 0
        self.connection.taken_bytes = lambda: self._taken_bytes

    def _say_hello(self, deadline_s: float) -> None:
        """Say hello and read the answer; a server that answers byte by byte gets no more time than others."""
        with _breaks():
            tcp.tune(self._socket)
        hello = memoryview(self.connection.hello())
        while hello := hello[self.send(hello) :]:
            self._await(deadline_s, to_send=True)
        is_greeted = False
        while not is_greeted:
            self._await(deadline_s)
            data = self.receive()
            is_greeted = data is not None and self.connection.greet(data)

    def _await(self, deadline_s: float, *, to_send: bool = False) -> None:
        if not self.wait(max(deadline_s - clock.monotonic(), 0), to_send=to_send, to_read=not to_send):
            raise Broken("timed out")

    def send(self, data: memoryview) -> int:
        """Send what the socket takes now, and return how much that was; raise `Broken` if the connection is over."""
        # Until the system says how much it took, other threads must assume that it took everything.
        self._taken_bytes += len(data)
        try:
            sent = self._socket.send(data)
        except OSError as error:
            if error.errno is not None:
                self._taken_bytes -= len(data)
            if isinstance(error, BlockingIOError):
                return 0
            raise _broken(error) from error
        self._taken_bytes -= len(data) - sent
        return sent

    def acknowledged_s(self) -> float:
        """As `tcp.acknowledged_s`."""
        return tcp.acknowledged_s(self._socket)

    def receive(self) -> bytes | None:
        """Return the bytes that arrived; None if there are none.

        Raises:
            Broken: The connection is over.
        """
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _broken(error) from error
        if not data:
            raise Broken("the server closed the connection")
        return data

    def after_fork(self) -> None:
        """Leave the connection to the parent, in a fork.

        The file descriptor stays in use for good. A greenlet of the parent may wait for it, and libev ends a process that waits
        for a closed file descriptor.
        """
        fd = self._socket.fileno()
        forks.detach(fd)
        hub = getattr(self._socket, "hub", None)  # Of gevent.
        if hub is not None:
            hub.loop.closing_fd(fd)  # That wakes the greenlet, once.
        self._socket.detach()

    def close(self) -> None:
        """Close the connection, and wake the thread that waits for it."""
        with contextlib.suppress(Broken), _breaks():
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _connected(address: Address, patience_s: float) -> socket.socket:
    """Return a non-blocking socket, connected to the first place of an address that answers in time.

    Raises:
        Broken: No place does.
    """
    why = Broken(f"{address} has no place")
    with _breaks():
        places = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for family, kind, protocol, _, place in places:
        try:
            return _connected_to(socket.socket(family, kind, protocol), place, patience_s)
        except Broken as error:
            why = error
        except OSError as error:  # There is no socket of this family.
            why = Broken(str(error))
            if error.errno is None:
                raise
    raise why


def _connected_to(sock: socket.socket, place: object, patience_s: float) -> socket.socket:
    try:
        sock.setblocking(False)
        number = sock.connect_ex(place)  # type: ignore[arg-type]
        if number in _UNDER_WAY:
            if number and not _wait(sock, patience_s, to_send=True, to_read=False):
                raise Broken("timed out")
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise Broken(f"[Errno {number}] {os.strerror(number)}")
    except BaseException:
        sock.close()
        raise
    return sock


def _wait(sock: socket.socket, seconds: float | None, *, to_send: bool = False, to_read: bool = True) -> bool:
    """Wait until there is something to read, or room to send, as asked; return whether there is.

    Raises:
        Broken: The connection was closed here.
    """
    if sock.fileno() < 0:
        raise Broken("the connection is closed")
    try:  # Not `_breaks`, which takes longer than all the rest.
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(sock, (select.POLLIN if to_read else 0) | (select.POLLOUT if to_send else 0))
            return bool(poll.poll(None if seconds is None else max(seconds, 0) * 1000))
        ready = select.select([sock] if to_read else [], [sock] if to_send else [], [], seconds)
        return bool(ready[0] or ready[1])
    except OSError as error:
        raise _broken(error) from error
