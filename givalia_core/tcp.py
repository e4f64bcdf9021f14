"""TCP sockets of clients and workers: their options, and how long ago the peer acknowledged something."""

from __future__ import annotations

import math
import socket
import struct
import sys
from typing import Final, Protocol

if sys.platform == "linux":
    import fcntl
    import termios

KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))  # Seconds, seconds, and how often.
_SINCE: Final = struct.Struct("=56xI")  # Of Linux's `tcp_info`: milliseconds since the last acknowledgement.
_COUNT: Final = struct.Struct("=i")


class Tunable(Protocol):
    """A socket of any library, as far as its options are set."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


class Askable(Protocol):
    """A socket of any library, as far as it is asked about its connection."""

    def fileno(self) -> int: ...

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes: ...


def tune(sock: Tunable) -> None:
    """Send small frames at once, and let the system find out when the peer's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def acknowledged_s(sock: Askable) -> float:
    """Seconds since the peer's TCP acknowledged something, if it has not acknowledged all that was sent; else infinity.

    A peer that has no room acknowledges probes for it, which counts; the length of the send queue would not show that. A peer
    that has acknowledged everything has only to answer. Infinity, too, where the system does not say (it is not Linux), and
    for a socket that is closed.
    """
    if sys.platform != "linux":
        return math.inf
    try:
        (unacknowledged_bytes,) = _COUNT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size)))
        (since_ms,) = _SINCE.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE.size))
    except (OSError, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # The system did not raise it: a signal handler did, say, and it is the caller's.
        return math.inf
    return int(since_ms) / 1000 if unacknowledged_bytes else math.inf
