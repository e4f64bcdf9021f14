"""What client and worker set on a TCP socket, and what they ask of it."""

from __future__ import annotations

import math
import socket
import struct
import sys
from typing import Final, Protocol

KEEPALIVE: Final = (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))  # Seconds, seconds, and how often.
_LAST: Final = struct.Struct("=52xII")  # Of Linux's `tcp_info`: ms since data was received last, and an acknowledgement.


class Tunable(Protocol):
    """A socket, whoever looks after it."""

    def setsockopt(self, level: int, name: int, value: int, /) -> None: ...


class Askable(Protocol):
    """A socket, whoever looks after it."""

    def getsockopt(self, level: int, name: int, length: int, /) -> bytes: ...


def tune(sock: Tunable) -> None:
    """Send small frames at once, and let the system find out when the peer's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE:
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def quiet_s(sock: Askable) -> float:
    """Seconds since the peer's TCP was last heard of: data, also what was not read yet, or an acknowledgement of ours.

    A peer that has no room acknowledges probes for it, which counts; the length of the send queue would not show that.
    Infinity where the system does not say (it is not Linux), and for a socket that is closed.
    """
    if sys.platform != "linux":
        return math.inf
    try:
        data_ms, acknowledged_ms = _LAST.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST.size))
    except (OSError, struct.error):
        return math.inf
    return min(int(data_ms), int(acknowledged_ms)) / 1000
