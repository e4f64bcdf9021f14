"""One exchange of commands and answers, for any number of tasks of one event loop.

Bytes are handed on by the loop as they arrive, and each answer wakes the task that it is for. One task of the exchange's own,
which lives from the first call until `close`, connects, rests and looks whether the server is silent, so that a task that is
cancelled while it waits takes nothing from the others. What is sent when, to whom, and when it is given up is decided in
`errands`, as for the blocking exchange.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time as clock
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from inspect import isawaitable
from typing import Any, Final, TypeAlias, TypeVar

from givalia_core import forks, tcp
from givalia_core.client import talk
from givalia_core.client.errands import Connect, Errands, Find, Listen
from givalia_core.client.slot import Slot, check_whole
from givalia_core.client.talk import Call
from givalia_core.client.visit import Visit
from givalia_core.errors import ConnectionLost
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Broken
from givalia_core.times import Length

T = TypeVar("T")
OnProgress: TypeAlias = Callable[[float, str], Awaitable[object] | object]

BATCH_BYTES: Final = 65_536  # At which calls made together are given to the transport.


class Line(asyncio.Protocol):
    """One connection of a visit; it tells the exchange what arrives, and when it is over."""

    def __init__(self, exchange: AsyncExchange, visit: Visit) -> None:
        loop = asyncio.get_running_loop()
        self._exchange = exchange
        self.visit = visit
        self.transport: Any = None
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.is_full = False  # Whether the transport has enough to send.
        self._given_bytes = 0  # To the transport,
        self._gone_bytes = 0  # and how many had left it when somebody looked last.
        visit.taken_bytes = lambda: self._given_bytes - self._unsent_bytes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        forks.register(self)
        tcp.tune(self.transport.get_extra_info("socket"))
        self.transport.write(self.visit.hello())

    def after_fork(self) -> None:
        """In a fork: the connection is the parent's. Its transport is left alone, for the loop's poll is shared, too."""
        forks.detach(self.transport.get_extra_info("socket").fileno())

    def data_received(self, data: bytes) -> None:
        try:
            if self.greeted.done():
                self._exchange.arrived(self, data)
            elif self.visit.greet(data):
                self.greeted.set_result(None)
        except Broken as error:
            self._end(error)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._exchange.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or ConnectionResetError("the server closed the connection"))
        if not self.closed.done():
            self.closed.set_result(None)

    def _end(self, error: Exception) -> None:
        if not self.greeted.done():
            self.greeted.set_exception(error)
            self.greeted.exception()  # Whoever waited for it may be cancelled, and asyncio is not to complain of that.
        self._exchange.drop(self, str(error))

    def send(self, data: bytes) -> None:
        """Send this, as soon as the other side takes it."""
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
        """Whether bytes wait to be sent, and some have left since this was asked last."""
        unsent_bytes = self._unsent_bytes
        before, self._gone_bytes = self._gone_bytes, self._given_bytes - unsent_bytes
        return unsent_bytes > 0 and self._gone_bytes > before


class AsyncExchange:
    """Carries calls to one of several servers and their answers back; for the tasks of one event loop at a time."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self._servers = addresses, resend_s, find
        self._resend_s = resend_s
        self._errands = Errands(*self._servers)
        self._line: Line | None = None  # Of the present visit.
        self._unsent: deque[Slot] = deque()  # They leave with the next turn of the loop that has room for them.
        self._is_flushing = False  # Whether that turn is ordered.
        self._tending: asyncio.Task[None] | None = None
        self._changed: asyncio.Event | None = None  # Set when what the tending task waits for may be there.
        self._is_idle = False  # Whether that task waits for the next call, and looks at nothing before.
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: the event loop, the connection and all calls under way are the parent's; none of them is touched."""
        errands, tending = self._errands, self._tending
        if tending is not None:
            tending._log_destroy_pending = False  # type: ignore[attr-defined]  # It goes on in the parent, and asyncio warns.
        self._errands = Errands(*self._servers)
        self._errands.is_closed = errands.is_closed
        self._line = self._tending = self._changed = None
        self._unsent, self._is_flushing = deque(), False
        for slot in errands.calls:
            slot.wake = _wake_nobody
        errands.abandon()

    async def close(self) -> None:
        """Close the connection; calls under way raise `ConnectionLost`.

        Raises:
            RuntimeError: The client is at work in another event loop; nothing was changed.
        """
        self._enter()
        line, tending = self._line, self._tending
        if line is not None:
            self.drop(line, "the client is closed")
        self._errands.close()
        if tending is not None:
            tending.cancel()
            await asyncio.wait([tending])
        if line is not None:
            await line.closed

    async def ask(self, call: Call[T], timeout: Length | None = None, on_progress: OnProgress | None = None) -> T:
        """What one command is answered.

        Args:
            call: The command, alone in its frame.
            timeout: Time to wait for the end of a job; None is for ever. Other commands have the time to resend.
            on_progress: Called in this task with each progress of the job that it waits for, and awaited if it can be.

        Raises:
            GivaliaError: It was refused, its outcome is unknown, or the job ended without a result.
        """
        on_their_way: deque[tuple[Slot, asyncio.Event]] = deque()
        try:
            self._begin(call, timeout, on_their_way)
            return talk.only(call, await self._finish(*on_their_way[0], on_progress))
        finally:
            self._forget(on_their_way)

    async def several(self, calls: Iterable[Call[Any]]) -> AsyncIterator[list[Any]]:
        """The answers to each of many calls, in order; a few travel before the first is answered."""
        on_their_way: deque[tuple[Slot, asyncio.Event]] = deque()
        answered = 0
        try:
            for call in calls:
                if len(on_their_way) == talk.IN_FLIGHT:
                    yield await self._finish(*on_their_way[0])
                    on_their_way.popleft()
                    answered += 1
                self._begin(call, None, on_their_way)
            while on_their_way:
                yield await self._finish(*on_their_way[0])
                on_their_way.popleft()
                answered += 1
        except ConnectionLost:
            check_whole([slot for slot, _ in on_their_way], answered)
            raise
        finally:
            self._forget(on_their_way)

    def _forget(self, on_their_way: Iterable[tuple[Slot, asyncio.Event]]) -> None:
        """Nobody waits for these any more: they are not sent again."""
        for slot, _ in on_their_way:
            self._errands.forget(slot)

    def _enter(self) -> None:
        """Refuse another event loop than the one in which the client is at work; call it before anything is touched.

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
        line, self._line, self._changed = self._line, None, None
        for slot in list(self._errands.calls):
            self._errands.forget(slot)
        if line is not None:
            self._errands.drop(line.visit, "its event loop was closed", clock.monotonic())
            with contextlib.suppress(OSError):
                line.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        self._unsent.clear()
        self._is_flushing = False
        self._tending = None

    def _begin(self, call: Call[Any], timeout: Length | None, on_their_way: deque[tuple[Slot, asyncio.Event]]) -> None:
        """Send a call on its way; its event is set whenever there is something for its caller.

        Raises:
            RuntimeError: The client is at work in another event loop; nothing was sent.
        """
        self._enter()
        event = asyncio.Event()
        slot = Slot.of(call, timeout, self._resend_s, clock.monotonic(), event.set)
        on_their_way.append((slot, event))
        self._errands.begin(slot)
        if self._tending is None:
            self._changed = asyncio.Event()
            self._tending = asyncio.create_task(self._tend(self._changed), name="givalia client")
        if self._line is not None:
            self._transmit(slot)
        if self._line is None or self._is_idle:
            self._wake()

    async def _finish(self, slot: Slot, event: asyncio.Event, on_progress: OnProgress | None = None) -> list[Any]:
        """Wait for a call's answers."""
        while True:
            event.clear()
            self._errands.check_time(slot, clock.monotonic())
            news = slot.take_news()
            if news is not None and on_progress is not None:
                heard = on_progress(*news)
                if isawaitable(heard):
                    await heard
            elif slot.is_over:
                return slot.result()
            else:
                await _within(slot.left(clock.monotonic()), event.wait())

    # The task that tends the connection.

    async def _tend(self, changed: asyncio.Event) -> None:
        try:
            while True:
                changed.clear()
                if not self._errands.calls and self._line is None:
                    await changed.wait()
                step = self._errands.step(clock.monotonic())
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
            # Cancelled, by `close` or with the whole loop; a later loop may begin anew, or has done so.
            if self._changed is changed:
                self._tending = None
                if self._line is not None:
                    self.drop(self._line, "the client is closed")
                self._errands.end_all("the client is closed")

    async def _connect(self, step: Connect) -> None:
        """Connect, and send whatever has no answer."""
        visit = Visit()
        transport = None
        try:
            async with asyncio.timeout(step.patience_s):
                loop = asyncio.get_running_loop()
                transport, line = await loop.create_connection(lambda: Line(self, visit), *step.address)
            async with asyncio.timeout(step.patience_s):
                await line.greeted
            if transport.is_closing():
                raise ConnectionResetError("the server closed the connection")
        except (OSError, Broken) as error:
            self._errands.not_connected(error)
            if transport is not None:
                transport.abort()
            return
        except BaseException:
            if transport is not None:
                transport.abort()
            raise
        unanswered = self._errands.connected(visit, clock.monotonic())
        self._line = line
        for slot in unanswered:
            self._transmit(slot)

    def _look(self) -> None:
        """See whether the server is silent, and to what was put off until now."""
        line, now = self._line, clock.monotonic()
        if line is None:
            return
        if line.is_sending():
            self._errands.still_sending(line.visit, now)
        try:
            ping = self._errands.look(line.visit, now, line.acknowledged_s, can_ping=True)
        except Broken as error:
            self.drop(line, str(error))
        else:
            line.send(ping)
        for slot in self._errands.due(now):
            line.send(self._errands.load(line.visit, slot, now) or b"")

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()

    # What the connection brings, and what it takes.

    def arrived(self, line: Line, data: bytes) -> None:
        """Hand out what the connection has brought.

        Raises:
            Broken: The server sends what no server of this protocol sends.
        """
        if not self._errands.arrived(line.visit, data, clock.monotonic()):
            self.drop(line, "the server stops")
        elif self._errands.has_put_off:
            self._wake()

    def drop(self, line: Line, why: str) -> None:
        """Forget a connection that is of no use any more; unanswered calls are sent again on the next."""
        self._errands.drop(line.visit, why, clock.monotonic())
        if line.transport is not None:
            line.transport.abort()
        if self._line is line:
            self._line = None
            self._unsent.clear()
            self._wake()

    def _transmit(self, slot: Slot) -> None:
        """Send a call with the next turn of the loop, so that calls made together travel together."""
        self._unsent.append(slot)
        if not self._is_flushing:
            self._is_flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        """Number calls and send them, as long as there is room.

        The transport would take them all. But what it has, it sends, however slowly, even if the caller is gone by then.
        """
        self._is_flushing = False
        line = self._line
        while line is not None and self._unsent and not line.is_full:
            now, batch, size = clock.monotonic(), list[bytes](), 0
            while self._unsent and size < BATCH_BYTES:
                batch.append(self._errands.load(line.visit, self._unsent.popleft(), now) or b"")
                size += len(batch[-1])
            line.send(b"".join(batch))
        if self._is_idle:
            self._wake()


def _wake_nobody() -> None:
    """The caller is in another process."""


async def _within(seconds: float | None, awaited: Awaitable[object]) -> None:
    """Wait for something, but no longer than this."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await awaited
