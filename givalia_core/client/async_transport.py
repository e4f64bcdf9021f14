"""The transport of a client for asyncio, for any number of tasks of one event loop.

The event loop hands on bytes as they arrive, and each answer wakes the task that it is for. One task of the transport's own
lives from the first request until `close`: it connects, rests and checks whether the server is silent, so that a task that is
cancelled while it waits takes nothing from the others. `RequestDelivery` decides what is sent when, to which server, and when
a request is given up, as for the blocking transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time as clock
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from inspect import isawaitable
from typing import Any, Final, TypeVar

from givalia_core import forks
from givalia_core.client.async_socket import AsyncSocket
from givalia_core.client.connection import ClientConnection
from givalia_core.client.delivery import Listen, RequestDelivery
from givalia_core.client.failover import Connect, Find
from givalia_core.client.pending import IN_FLIGHT, OnProgressAwaited, Pending, check_whole
from givalia_core.errors import ConnectionLost, GivaliaError
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Broken

T = TypeVar("T")

BATCH_BYTES: Final = 65_536  # The size at which requests made together are given to the transport.


class AsyncTransport:
    """Carries requests to one of several servers and their answers back; for the tasks of one event loop at a time."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self._servers = addresses, resend_s, find
        self.delivery = RequestDelivery(*self._servers)
        self._socket: AsyncSocket | None = None  # Of the present connection.
        self._unsent: deque[Pending[Any]] = deque()  # They leave with the next turn of the loop that has room for them.
        self._is_flushing = False  # Whether that turn is scheduled.
        self._tending: asyncio.Task[None] | None = None
        self._changed: asyncio.Event | None = None  # Set when the tending task may have something to do.
        self._is_idle = False  # Whether that task waits for the next request, and does nothing before.
        forks.register(self)

    def after_fork(self) -> None:
        """Leave the event loop, the connection and all requests under way to the parent, in a fork; touch none of them."""
        delivery, tending = self.delivery, self._tending
        if tending is not None:
            tending._log_destroy_pending = False  # type: ignore[attr-defined]  # It goes on in the parent, and asyncio warns.  # noqa: SLF001 - asyncio has no other way.
        self.delivery = RequestDelivery(*self._servers)
        self.delivery.is_closed = delivery.is_closed
        self._socket = self._tending = self._changed = None
        self._unsent, self._is_flushing = deque(), False
        for request in delivery.requests:
            request.wake = lambda: None
        delivery.abandon()

    async def close(self) -> None:
        """Close the connection; calls under way raise `ConnectionLost`.

        Raises:
            RuntimeError: The client is at work in another event loop; nothing was changed.
        """
        self._enter()
        sock, tending = self._socket, self._tending
        if sock is not None:
            self.drop(sock, "the client is closed")
        self.delivery.close()
        if tending is not None:
            tending.cancel()
            await asyncio.wait([tending])
        if sock is not None:
            await sock.closed

    async def ask(self, request: Pending[T], on_progress: OnProgressAwaited | None = None) -> T:
        """As `BlockingTransport.ask`; `on_progress` is called in this task, and its return value is awaited if it can be."""
        try:
            event = self._begin(request)
            (answer,) = await self._answers(request, event, on_progress)
        finally:
            self.delivery.forget(request)
        if isinstance(answer, GivaliaError):
            raise answer
        answered: T = answer
        return answered

    async def several(self, requests: Iterable[Pending[Any]]) -> AsyncIterator[list[Any]]:
        """Yield the answers to each of many requests, in order; a few travel before the first is answered."""
        under_way: deque[tuple[Pending[Any], asyncio.Event]] = deque()
        answered = 0
        try:
            for request in requests:
                if len(under_way) == IN_FLIGHT:
                    yield await self._answers(*under_way[0])
                    under_way.popleft()
                    answered += 1
                under_way.append((request, self._begin(request)))
            while under_way:
                yield await self._answers(*under_way[0])
                under_way.popleft()
                answered += 1
        except ConnectionLost:
            check_whole([request for request, _ in under_way], answered)
            raise
        finally:
            for request, _ in under_way:
                self.delivery.forget(request)

    def _enter(self) -> None:
        """Refuse another event loop than the one in which the client is at work; call this before anything is changed.

        A loop may have been closed with its tasks unfinished. Then the connection of the client ended with it.
        """
        loop = None if self._tending is None else self._tending.get_loop()
        if loop is None or loop is asyncio.get_running_loop():
            return
        if not loop.is_closed():
            raise RuntimeError("this client is at work in another event loop; close it there, and make one for each loop")
        self._abandon()

    def _abandon(self) -> None:
        """Forget what belongs to a loop that was closed; nothing there can be woken any more."""
        sock, self._socket, self._changed = self._socket, None, None
        for request in list(self.delivery.requests):
            self.delivery.forget(request)
        if sock is not None:
            self.delivery.drop(sock.connection, "its event loop was closed", clock.monotonic())
            with contextlib.suppress(OSError):
                sock.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._unsent.clear()
        self._is_flushing = False
        self._tending = None

    def _begin(self, request: Pending[Any]) -> asyncio.Event:
        """Take a request to send; return the event that is set whenever there is something for its caller.

        Raises:
            ConnectionLost: The client is closed.
            RuntimeError: The client is at work in another event loop; nothing was sent.
        """
        self._enter()
        event = asyncio.Event()
        request.wake = event.set
        self.delivery.begin(request, clock.monotonic())
        if self._tending is None:
            self._changed = asyncio.Event()
            self._tending = asyncio.create_task(self._tend(self._changed), name="givalia client")
        if self._socket is not None:
            self._transmit(request)
        if self._socket is None or self._is_idle:
            self._wake()
        return event

    async def _answers(
        self, request: Pending[Any], event: asyncio.Event, on_progress: OnProgressAwaited | None = None
    ) -> list[Any]:
        """Wait for the answers to a request."""
        while True:
            event.clear()
            has_something = self.delivery.has_something(request, clock.monotonic())
            news, request.news = request.news, None
            if news is not None and on_progress is not None:
                heard = on_progress(*news)
                if isawaitable(heard):
                    await heard
            elif request.error is not None:
                raise request.error
            elif request.answers is not None:
                return request.answers
            elif not has_something:
                await _within(request.left_s(clock.monotonic()), event.wait())

    # The task that tends the connection.

    async def _tend(self, changed: asyncio.Event) -> None:
        try:
            while True:
                changed.clear()
                if not self.delivery.requests and self._socket is None:
                    await changed.wait()
                step = self.delivery.step(clock.monotonic())
                if isinstance(step, Connect):
                    await self._connect(step)
                elif isinstance(step, Listen):
                    self._is_idle = step.seconds is None
                    await _within(step.seconds, changed.wait())
                    self._is_idle = False
                    self._look()
                else:
                    await asyncio.sleep(step.seconds)
        finally:
            # Cancelled, by `close` or with the whole loop; a later loop may be at work already.
            if self._changed is changed:
                self._tending = None
                if self._socket is not None:
                    self.drop(self._socket, "the client is closed")
                self.delivery.end_all("the client is closed")

    async def _connect(self, step: Connect) -> None:
        """Connect, and send all requests without an answer."""
        connection = ClientConnection()
        transport = None
        try:
            async with asyncio.timeout(step.patience_s):
                loop = asyncio.get_running_loop()
                transport, sock = await loop.create_connection(lambda: AsyncSocket(self, connection), *step.address)
            async with asyncio.timeout(step.patience_s):
                await sock.greeted
            if transport.is_closing():
                raise ConnectionResetError("the server closed the connection")
        except (OSError, Broken) as error:
            self.delivery.not_connected(error)
            if transport is not None:
                transport.abort()
            return
        except BaseException:
            if transport is not None:
                transport.abort()
            raise
        unanswered = self.delivery.connected(connection, clock.monotonic())
        self._socket = sock
        for request in unanswered:
            self._transmit(request)

    def _look(self) -> None:
        """Check whether the server is silent, and send the requests that were put off until now."""
        sock, now = self._socket, clock.monotonic()
        if sock is None:
            return
        if sock.is_sending():
            sock.connection.still_sending(now)
        try:
            ping = self.delivery.look(sock.connection, now, sock.acknowledged_s, can_ping=True)
        except Broken as error:
            self.drop(sock, str(error))
        else:
            sock.send(ping)
        for request in self.delivery.due(now):
            sock.send(self.delivery.load(sock.connection, request, now))

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    # Bytes from and to the connection.

    def arrived(self, sock: AsyncSocket, data: bytes) -> None:
        """Hand out the answers in the bytes that arrived.

        Raises:
            Broken: The server sends what no server of this protocol sends.
        """
        if not self.delivery.arrived(sock.connection, data, clock.monotonic()):
            self.drop(sock, "the server stops")
        elif self.delivery.put_off:
            self._wake()

    def drop(self, sock: AsyncSocket, why: str) -> None:
        """Discard a connection; unanswered requests are sent again on the next."""
        self.delivery.drop(sock.connection, why, clock.monotonic())
        if sock.transport is not None:
            sock.transport.abort()
        if self._socket is sock:
            self._socket = None
            self._unsent.clear()
            self._wake()

    def _transmit(self, request: Pending[Any]) -> None:
        """Send a request with the next turn of the loop, so that requests made together travel together."""
        self._unsent.append(request)
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Number requests and send them, as long as there is room.

        The transport would take them all. But it sends all that it has, however slowly, even if the caller is gone by then.
        """
        self._is_flushing = False
        sock = self._socket
        while sock is not None and self._unsent and not sock.is_full:
            now, batch, size = clock.monotonic(), list[bytes](), 0
            while self._unsent and size < BATCH_BYTES:
                batch.append(self.delivery.load(sock.connection, self._unsent.popleft(), now))
                size += len(batch[-1])
            sock.send(b"".join(batch))
        if self._is_idle:
            self._wake()


async def _within(seconds: float | None, awaited: Awaitable[object]) -> None:
    """Wait for something, but no longer than this."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await awaited
