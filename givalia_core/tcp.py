"""TCP sockets of clients and workers: their options, and the time since the peer's last acknowledgement."""

from __future__ import annotations

import math
import socket
import struct
import sys
from typing import Final, Protocol

if sys.platform == "linux":
    import fcntl
    import termios

KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))  # Seconds, seconds, number of probes.
_SINCE: Final = struct.Struct("=56xI")  # From Linux's `tcp_info`: milliseconds since the last acknowledgement.
_COUNT: Final = struct.Struct("=i")


class Tunable(Protocol):
    """A socket of any library whose options can be set."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


class Askable(Protocol):
    """A socket of any library whose options can be read."""

    def fileno(self) -> int: ...

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes: ...


def tune(sock: Tunable) -> None:
    """Send small frames at once, and let the system detect that the peer's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def acknowledged_s(sock: Askable) -> float:
    """Return the seconds since the peer's last TCP acknowledgement; infinity if no sent byte is unacknowledged.

    A peer with a full buffer still acknowledges probes, which counts; the length of the send queue would not show that. The
    result is also infinity for a closed socket and on systems other than Linux, which do not tell.
    """
    if sys.platform != "linux":
        return math.inf
    try:
        (unacknowledged_bytes,) = _COUNT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_COUNT.size)))
        (since_ms,) = _SINCE.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SINCE.size))
    except (OSError, ValueError, struct.error) as error:
        if isinstance(error, OSError) and error.errno is None:
            raise  # Not raised by the system but, for example, by a signal handler of the caller.
        return math.inf
    return int(since_ms) / 1000 if unacknowledged_bytes else math.inf
