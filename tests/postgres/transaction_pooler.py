"""A pooler in transaction mode, like PgBouncer, small enough for a test: it gives each transaction a session.

It takes any client, opens its own sessions to a PostgreSQL that trusts everybody, and lends a session to a client from the
first message of a transaction to its end. `Pooler.tracking` makes it follow prepared statements, as newer poolers do.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import threading
from collections import deque
from types import TracebackType
from typing import Final, NamedTuple

from postgres_rig import HOST

_SSL, _GSS = 80_877_103, 80_877_104
_PROTOCOL: Final = 196_608
_ASKS: Final = (b"Q", b"S")  # Each is answered by one ReadyForQuery.


class Message(NamedTuple):
    """One message of PostgreSQL's protocol."""

    kind: bytes
    body: bytes

    def packed(self) -> bytes:
        return self.kind + struct.pack(">i", len(self.body) + 4) + self.body


async def _read(reader: asyncio.StreamReader) -> Message:
    kind, length = struct.unpack(">ci", await reader.readexactly(5))
    return Message(kind, await reader.readexactly(length - 4))


async def _read_or_end(reader: asyncio.StreamReader) -> Message | None:
    try:
        return await _read(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


class Session:
    """A session of PostgreSQL that belongs to whichever client has a transaction in it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self.greeting: list[Message] = []
        self.owner: Client | None = None
        self.pending = 0  # Messages that are still to be answered by ReadyForQuery.
        self.known: dict[tuple[int, bytes], bytes] = {}  # Client's statement -> its name here.
        self.parses: deque[bool] = deque()  # Whether the client is told of each.

    async def begin(self, startup: bytes) -> None:
        """Log in."""
        self.writer.write(struct.pack(">ii", len(startup) + 8, _PROTOCOL) + startup)
        while (message := await _read(self._reader)).kind != b"Z":
            self.greeting += [message] if message.kind == b"S" else []

    async def serve_forever(self, free: deque[Session], changed: asyncio.Condition) -> None:
        """Hand on what it answers, until it ends; free it where a transaction has ended."""
        while (message := await _read_or_end(self._reader)) is not None:
            owner = self.owner
            if owner is None or (message.kind == b"1" and self.parses and not self.parses.popleft()):
                continue
            owner.writer.write(message.packed())
            if message.kind == b"E":
                self.known.clear()
            if message.kind == b"Z":
                self.pending -= 1
                self.parses.clear()
                if message.body == b"I" and not self.pending:
                    self.owner = owner.session = None
                    free.append(self)
                    async with changed:
                        changed.notify_all()


class Client:
    """A connection to the pooler."""

    _numbers = itertools.count(1)

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.number = next(self._numbers)
        self.session: Session | None = None
        self.parsed: dict[bytes, bytes] = {}  # Statement -> what stands behind its name in its Parse.

    async def greet(self) -> bytes:
        """The client's wishes, as they came."""
        while True:
            length, code = struct.unpack(">ii", await self.reader.readexactly(8))
            wishes = await self.reader.readexactly(length - 8)
            if code not in (_SSL, _GSS):
                return wishes
            self.writer.write(b"N")

    def tracked(self, message: Message, session: Session) -> list[Message]:
        """Return the bytes to send for this message, with each statement prepared under a name of this client alone."""
        if message.kind == b"P" and not message.body.startswith(b"\0"):
            name, _, rest = message.body.partition(b"\0")
            self.parsed[name] = rest
            return [self._parse(name, session, is_told=True)]
        if message.kind == b"P":
            session.parses.append(True)
        if message.kind != b"B":
            return [message]
        portal, name, rest = message.body.split(b"\0", 2)
        if not name:
            return [message]
        before = [] if (self.number, name) in session.known else [self._parse(name, session, is_told=False)]
        return [*before, Message(b"B", portal + b"\0" + session.known[self.number, name] + b"\0" + rest)]

    def _parse(self, name: bytes, session: Session, *, is_told: bool) -> Message:
        session.known[self.number, name] = ours = b"s%d" % next(self._numbers)
        session.parses.append(is_told)
        return Message(b"P", ours + b"\0" + self.parsed[name])


class Pooler:
    """Listens on a port of loopback until it is closed."""

    def __init__(self, postgres_port: int, *, size: int = 5, newest_first: bool = True, tracking: bool = False) -> None:
        self._postgres_port = postgres_port
        self._size, self._newest_first, self._tracking = size, newest_first, tracking
        self._free: deque[Session] = deque()
        self._sessions = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Condition()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, HOST, 0), self._loop).result(10)
        self.port: int = self._server.sockets[0].getsockname()[1]

    def __enter__(self) -> Pooler:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)  # So that the loop sees them closed.

    async def _session(self, startup: bytes) -> Session:
        async with self._changed:
            while not self._free and self._sessions == self._size:
                await self._changed.wait()
        if self._free:
            return self._free.pop() if self._newest_first else self._free.popleft()
        self._sessions += 1
        session = Session(*await asyncio.open_connection(HOST, self._postgres_port))
        self._writers.append(session.writer)
        await session.begin(startup)
        task = asyncio.create_task(session.serve_forever(self._free, self._changed))
        self._tasks.add(task)
        return session

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(reader, writer)
        self._writers.append(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            startup = await client.greet()
            first = await self._session(startup)
            greeting = [Message(b"R", struct.pack(">i", 0)), *first.greeting, Message(b"K", struct.pack(">ii", 1, 1))]
            self._free.append(first)
            for message in (*greeting, Message(b"Z", b"I")):
                writer.write(message.packed())
            while (message := await _read(reader)).kind != b"X":
                if client.session is None:
                    client.session = await self._session(startup)
                    client.session.owner = client
                session = client.session
                session.pending += message.kind in _ASKS
                for each in client.tracked(message, session) if self._tracking else [message]:
                    session.writer.write(each.packed())
        if client.session is not None:
            client.session.writer.close()  # In the middle of a transaction.
            self._sessions -= 1
        writer.close()
