"""The socket of a client for asyncio: it moves the bytes of one connection from and to the event loop."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from givalia_core import forks, tcp
from givalia_core.client.connection import ClientConnection
from givalia_core.protocol.caller import Broken


class Owner(Protocol):
    """The transport that the socket belongs to."""

    def arrived(self, sock: AsyncSocket, data: bytes) -> None:
        """Take the bytes that arrived.

        Raises:
            Broken: The server sends what no server of this protocol sends.
        """

    def flush(self) -> None:
        """Send more: there is room again."""

    def drop(self, sock: AsyncSocket, why: str) -> None:
        """Forget this connection, which is over."""


class AsyncSocket(asyncio.Protocol):
    """The socket of one connection; it tells its transport what arrives, and when the connection is over."""

    def __init__(self, owner: Owner, connection: ClientConnection) -> None:
        loop = asyncio.get_running_loop()
        self._owner = owner
        self.connection = connection
        self.transport: Any = None
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.is_full = False  # Whether the transport has enough to send.
        self._given_bytes = 0  # To the transport,
        self._gone_bytes = 0  # and how many had left it at the last `is_sending`.
        connection.taken_bytes = lambda: self._given_bytes - self._unsent_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        forks.register(self)
        tcp.tune(self.transport.get_extra_info("socket"))
        self.transport.write(self.connection.hello())

    def after_fork(self) -> None:
        """Leave the connection to the parent, in a fork; do not touch its transport, since the loop's poll is shared."""
        forks.detach(self.transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        try:
            if self.greeted.done():
                self._owner.arrived(self, data)
            elif self.connection.greet(data):
                self.greeted.set_result(None)
        except Broken as error:
            self._end(error)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._owner.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError("the server closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)

    def _end(self, error: Exception) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(error)
            self.greeted.exception()  # The awaiter may be cancelled, and asyncio must not complain about that.
        self._owner.drop(self, str(error))

    def send(self, data: bytes) -> None:
        """Send these bytes as soon as the peer takes them."""
        if data:
            self._given_bytes += len(data)
            self.transport.write(data)

    @property
    def _unsent_bytes(self) -> int:
        """The bytes that wait in this process; 0 for a transport that was lost, where the number is unknown."""
        unsent_bytes: int = self.transport.get_write_buffer_size()
        return unsent_bytes

    def acknowledged_s(self) -> float:
        """As `tcp.acknowledged_s`."""
        return tcp.acknowledged_s(self.transport.get_extra_info("socket"))

    def is_sending(self) -> bool:
        """Return whether bytes wait to be sent, and some have left since the last call."""
        unsent_bytes = self._unsent_bytes
        before, self._gone_bytes = self._gone_bytes, self._given_bytes - unsent_bytes
        return unsent_bytes > 0 and self._gone_bytes > before
