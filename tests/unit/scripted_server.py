"""Scripted servers, which send what a test wants: real sockets on loopback, the real session, no engine."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from givalia_core.errors import GivaliaError
from givalia_core.protocol import frames
from givalia_core.protocol.asked import Asked, decoded
from givalia_core.protocol.codec import refusal
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import OK, Kind
from givalia_core.protocol.session import Port, Session

PATIENCE_S: Final = 10.0
LEASE_US: Final = 30_000_000

Script: TypeAlias = Callable[["Line", Asked], None]


class Line:
    """One connection, as a script sees it."""

    def __init__(self, sock: socket.socket, session: Session) -> None:
        self._socket = sock
        self._session = session
        self.is_lost = False  # Whether nothing that comes is heard any more, though TCP takes it.

    def say(self, ask: Asked, items: Iterable[Item]) -> None:
        """Answer."""
        self._socket.sendall(frames.encode(Kind.ANSWER, ask.request, items))

    def refuse(self, ask: Asked, error: GivaliaError) -> None:
        """Answer each command with an error, and a frame without commands with one."""
        self.say(ask, [refusal(error)] * max(len(ask.messages), 1))

    def tell(self, kind: Kind, items: list[Item]) -> None:
        """Say what nobody asked for."""
        self._socket.sendall(frames.encode(kind, 0, items))

    def hang_up(self) -> None:
        """End the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


class ScriptedServer:
    """Listens on a port of its own until `close`; `asks` brings what it was asked, in order."""

    def __init__(self, port: Port, script: Script, *, is_busy: bool = False, refuses: GivaliaError | None = None) -> None:
        self._port = port
        self._script = script
        self._is_busy = is_busy
        self._refuses = refuses  # What every hello is answered with.
        self._listener = socket.create_server(("127.0.0.1", 0))
        # Left to itself, the system takes up to 32 MiB for a server that does not read.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 << 10)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.asks: queue.Queue[Asked] = queue.Queue()
        self.lines: list[Line] = []  # Every connection so far.
        self._threads: list[threading.Thread] = []
        self._go(self._accept)

    def _go(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._go(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        session = Session(self._port, is_busy=self._is_busy)
        line = Line(sock, session)
        self.lines.append(line)
        with sock, contextlib.suppress(OSError):
            while not session.is_over and (data := sock.recv(65_536)):
                if line.is_lost:
                    continue
                if self._refuses is not None:
                    sock.sendall(frames.encode(Kind.ANSWER, 1, [refusal(self._refuses)]))
                    break
                asks = session.feed(data)
                sock.sendall(session.take_out())
                for ask in (ask._replace(messages=decoded(ask.messages)) for ask in asks):
                    self.asks.put(ask)
                    self._script(line, ask)

    def next(self, kind: Kind) -> Asked:
        """The next thing of this kind that it is asked."""
        while True:
            ask = self.asks.get(timeout=PATIENCE_S)
            if ask.kind is kind:
                return ask

    def close(self) -> None:
        """Stop listening, and end every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(PATIENCE_S)
        for line in self.lines:
            line.hang_up()
        for thread in self._threads:
            thread.join(PATIENCE_S)


def serve(line: Line, ask: Asked) -> None:
    """Say yes to everything: each job is made and each wait ends with the result 7; a worker may join and do as it likes."""
    if ask.kind is Kind.ENQ:
        line.say(ask, [((OK, message.id, 0, "memory"), b"") for message in ask.messages])
    elif ask.kind is Kind.WAIT:
        line.say(ask, [((OK, "done", None), b"\x07")])
    elif ask.kind is Kind.JOIN:
        line.say(ask, [((OK, LEASE_US), b"")])
    else:
        line.say(ask, [((OK,), b"")] * len(ask.messages))


def first(kind: Kind, act: Script, then: Script = serve) -> Script:
    """Do something else with the first thing of a kind that comes to this server, however often it is connected to."""
    was_there = threading.Event()

    def script(line: Line, ask: Asked) -> None:
        if ask.kind is kind and not was_there.is_set():
            was_there.set()
            act(line, ask)
        else:
            then(line, ask)

    return script


def every(kind: Kind, act: Script, then: Script = serve) -> Script:
    """Do something else with each thing of a kind."""
    return lambda line, ask: (act if ask.kind is kind else then)(line, ask)


def hang_up(line: Line, ask: Asked) -> None:
    """End the connection without a word."""
    line.hang_up()


def say_nothing(line: Line, ask: Asked) -> None:
    """Be asked, and be silent."""


def lose(line: Line, ask: Asked) -> None:
    """Hear nothing any more on this connection, and say nothing: what a proxy does whose other side is gone."""
    line.is_lost = True


def refuse(error: GivaliaError) -> Script:
    """Answer with an error."""
    return lambda line, ask: line.refuse(ask, error)


def closed_address() -> str:
    """Where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"127.0.0.1:{taken.getsockname()[1]}"
