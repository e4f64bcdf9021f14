"""All connections of a server: which are accepted, which are closed to make room, and how each one ends.

Nothing here decides a command. Commands of connections go to the queue loop. Before each turn the loop gets the state of the
sockets as a value (`clogged`).
"""

from __future__ import annotations

import contextlib
import socket as native_socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import gevent
from gevent import socket

from givalia_core import takers
from givalia_core.clock import Clock
from givalia_core.engine.records import Gone
from givalia_core.protocol.session import Port, Session
from givalia_core.server import peers
from givalia_core.server.connection import Connection
from givalia_core.server.inbox import Inbox
from givalia_core.server.journal import Journal
from givalia_core.server.unread import STALLED_US, Unread
from givalia_core.settings import ServerSettings

INSIDE: Final = 0  # Stands for code in the server's own process, which has no connection.
GOODBYE_S: Final = 1.0


class Connections:
    """The connections that are open, by number.

    Args:
        settings: The limits; `reload` of the server replaces them.
        clock: The time.
        inbox: Takes the commands of connections.
        wake: Called when the queue loop has something to do.
    """

    def __init__(self, settings: ServerSettings, clock: Clock, inbox: Inbox, wake: Callable[[], object]) -> None:
        self.settings = settings
        self.shed = 0
        """The number of connections that were refused or closed for lack of room."""
        self.unread = Unread()
        self.journal = Journal(self.peer_of)
        self.by_number: dict[int, Connection] = {}
        self.workers: Mapping[int, takers.WorkerSession] = {}
        """The workers by the number of their connection, as the engine knows them."""
        self.peers: dict[int, dict[str, Any]] = {}
        """The peer of each worker as `workers` shows it, by the number of the connection."""
        self.clock = clock
        self.inbox = inbox
        self.wake = wake
        self._per_peer: Counter[str] = Counter()
        self._last_number = INSIDE

    def __len__(self) -> int:
        return len(self.by_number)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self.by_number.values()))

    def peer_of(self, number: int) -> str:
        """Return the address of a connection's peer; empty if the connection is gone."""
        connection = self.by_number.get(number)
        return "" if connection is None else connection.peer

    def accept(self, port: Port, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Serve a connection until it ends."""
        peer, settings = str(address[0]), self.settings
        is_busy = len(self.by_number) >= settings.connections_max or self._per_peer[peer] >= settings.connections_per_peer_max
        self.shed += is_busy
        silent = [connection for connection in self.by_number.values() if not connection.session.is_open]
        if len(silent) >= settings.connections_silent_max:
            # Close the peer that has been silent for longest: it has the least to lose.
            self.shed += 1
            oldest = min(silent, key=lambda connection: connection.opened_us)
            self.journal.refuse(oldest.peer, oldest.session.port.value, "it has said nothing yet, and others need the room")
            oldest.close()
        self._last_number = number = self._last_number + 1
        session = Session(port, number, is_busy=is_busy, read_clock=self.clock.read)
        _tune(sock)
        connection = Connection(number, sock, peer, session, self)
        connection.peer_port = address[1] if len(address) > 1 else 0
        self.by_number[number] = connection
        self._per_peer[peer] += 1
        connection.run()

    def begin(self, connection: Connection) -> None:
        """Note that a connection has sent its first command."""
        if connection.session.port is Port.WORKER:
            self.peers[connection.number] = peers.peer(connection)

    def end(self, connection: Connection) -> None:
        """Note that a connection is over; log the reason and tell the engine."""
        if self.by_number.pop(connection.number, None) is None:
            return
        if connection.session.refusal:
            self.journal.refuse(connection.peer, connection.session.port.value, connection.session.refusal)
        elif connection.ended_for:
            self.journal.end(connection.peer, connection.ended_for)
        self._per_peer[connection.peer] -= 1
        if not self._per_peer[connection.peer]:
            del self._per_peer[connection.peer]
        self.peers.pop(connection.number, None)
        worker = self.workers.get(connection.number)
        self.inbox.put(Gone(connection.number, 1 if worker is None else max(len(worker.announced), 1)))
        self.wake()

    def clogged(self) -> frozenset[int]:
        """Return the numbers of the connections with so many unread bytes that nothing large may be added."""
        return frozenset(number for number, connection in self.by_number.items() if connection.unsent.is_clogged)

    def make_room(self) -> None:
        """Close the connection whose peer has stalled for longest, if the budget of unread answers is low."""
        if not (self.unread.is_low or self.inbox.short):
            return
        behind = [connection for connection in self.by_number.values() if connection.unsent.since_us]
        stalled = min(behind, key=lambda connection: connection.unsent.since_us, default=None)
        if stalled is not None and self.clock.read().mono_us - stalled.unsent.since_us >= STALLED_US:
            self.shed += 1
            stalled.close("it does not read, and others need the room")

    def stop_reading(self) -> None:
        """Take nothing more from any peer."""
        for connection in list(self.by_number.values()):
            connection.stop_reading()

    def say_goodbye(self) -> None:
        """Let the last answers leave before the connections end."""
        connections = list(self.by_number.values())
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(GOODBYE_S):
            while any(connection.unsent.bytes for connection in connections):
                gevent.sleep(0.01)
        for connection in connections:
            connection.end_sending()
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(GOODBYE_S / 4):
            while self.by_number:
                gevent.sleep(0.01)
        for connection in connections:
            connection.close()

    def leave(self) -> None:
        """Leave the connections to the parent, in a fork."""
        for connection in self.by_number.values():
            connection.leave()


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(native_socket.IPPROTO_TCP, native_socket.TCP_NODELAY, 1)
    sock.setsockopt(native_socket.SOL_SOCKET, native_socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(native_socket, name):
            sock.setsockopt(native_socket.IPPROTO_TCP, getattr(native_socket, name), value)
