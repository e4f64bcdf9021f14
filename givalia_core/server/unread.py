"""Unread answers: the bytes that wait for the peer of each connection, and the budget for all of them together.

A peer that reads leaves nothing unread for long. Peers that do not read share the budget. When the budget runs low, no
further large answer is made, and the connection whose peer has stalled for longest is closed; others are still served.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

import gevent
from gevent import socket

from givalia_core.clock import SECOND_US, Clock

MOST_BYTES: Final = 128 << 20
STALLED_US: Final = SECOND_US // 2  # A peer that reads nothing for this long may be closed when the budget runs low.
UNSENT_BYTES_MAX: Final = 1 << 20
BEHIND_BYTES: Final = 256 << 10  # From a peer with this much unread no further command is taken or answered.
WRITE_DEADLINE_S: Final = 10.0


class Unread:
    """Counts the bytes that connections keep because their peers do not take them."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0

    @property
    def is_low(self) -> bool:
        """True once three quarters of the budget are used."""
        return self.bytes * 4 >= self.most_bytes * 3


class Sender(Protocol):
    """A connection, as its unsent bytes know it."""

    is_closed: bool

    def gate(self) -> None:
        """Read on if there is room again."""

    def note_pace(self) -> None:
        """Note that the peer has fallen behind, or has read some."""

    def close(self, why: str = "") -> None:
        """End the connection."""


class Unsent:
    """The bytes that one connection keeps until its peer takes them, and the greenlet that writes them."""

    def __init__(self, connection: Sender, sock: socket.socket, unread: Unread, clock: Clock) -> None:
        self.bytes = 0
        self.since_us = 0
        """The time since which the writer sends its present batch of parts; 0 while nothing waits."""
        self.is_behind = False
        """True while so much is unread that the peer's commands wait until it has read."""
        self._connection, self._socket, self._unread, self._clock = connection, sock, unread, clock
        self._parts: deque[bytes] = deque()
        self._writer: gevent.Greenlet[..., None] | None = None

    @property
    def is_clogged(self) -> bool:
        """True while so much is unread that nothing large may be added."""
        return self.is_behind or (self.bytes > 0 and self._unread.is_low)

    def keep(self, data: bytes) -> None:
        """Keep bytes until the peer takes them."""
        self._parts.append(data)
        self.bytes += len(data)
        self._unread.bytes += len(data)
        self.since_us = self.since_us or self._clock.read().mono_us
        if self._writer is None:
            self._writer = gevent.spawn(self._write)
        if not self.is_behind and self.bytes >= BEHIND_BYTES:
            self.is_behind = True
            self._connection.note_pace()

    def drop(self) -> None:
        """Drop the bytes that are kept: the connection is over."""
        self._parts.clear()
        self._unread.bytes -= self.bytes
        self.bytes = 0

    def _write(self) -> None:
        try:
            while self._parts and not self._connection.is_closed:
                with gevent.Timeout(WRITE_DEADLINE_S):
                    self._write_all(len(self._parts))
        except gevent.Timeout:
            self._connection.close("it does not read what it asked for")
        except OSError:
            self._connection.close()
        finally:
            self._writer = None

    def _write_all(self, parts: int) -> None:
        """Send the oldest parts under one deadline, which a peer that takes a byte now and then does not extend."""
        for _ in range(parts):
            self._socket.sendall(self._parts[0])
            if self._connection.is_closed:
                return
            sent = len(self._parts.popleft())
            self.bytes -= sent
            self._unread.bytes -= sent
        self.since_us = self._clock.read().mono_us if self._parts else 0
        if self.is_behind and self.bytes < BEHIND_BYTES:
            self.is_behind = False
        self._connection.gate()
        self._connection.note_pace()
