"""A test's own connection: raw bytes, lines of 2012, or frames, whole or in pieces."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from types import TracebackType
from typing import Any

from givalia_core.protocol import codec
from givalia_core.protocol import messages as m
from givalia_core.protocol.caller import Answer, Caller, refused
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Kind

WAIT_S = 10.0


class Raw:
    """A connection; every read has a deadline."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it; a connection that the server has closed is for the next read to find out."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self.socket.sendall(data)

    def read_to_end(self, seconds: float = WAIT_S) -> bytes:
        """All bytes until the server closes."""
        data = b""
        deadline = time.monotonic() + seconds
        while True:
            self.socket.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                part = self.socket.recv(65_536)
            except ConnectionResetError:
                return data
            except TimeoutError:
                raise AssertionError(f"still open after {seconds:g} s, having said {data[:200]!r}") from None
            if not part:
                return data
            data += part


class Lines(Raw):
    """A client of 2012."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._pending = b""

    def read(self) -> dict[str, Any]:
        """The next line that is answered."""
        while b"\n" not in self._pending:
            part = self.socket.recv(65_536)
            assert part, f"closed, having said {self._pending!r}"
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, action: object, **job: object) -> dict[str, Any]:
        """One command and its answer."""
        return self.ask_at_once((action, job))[0]

    def ask_at_once(self, *commands: tuple[object, dict[str, object]]) -> list[dict[str, Any]]:
        """Send commands in one write, so that a slow machine puts no time between them; returns their answers."""
        self.send(b"".join(json.dumps({"action": action, "job": job}).encode() + b"\r\n" for action, job in commands))
        return [self.read() for _ in commands]


class Framed(Raw):
    """A connection that speaks frames, and has said hello unless told not to."""

    def __init__(self, port: int, *, hello: bool = True) -> None:
        super().__init__(port)
        self.caller = Caller()
        self._arrived: list[Any] = []
        if hello:
            self.send(self.caller.hello("test"))
            assert refused(self.read()) is None

    def read(self) -> Answer:
        """The next answer, whatever it answers."""
        while True:
            for place, arrived in enumerate(self._arrived):
                if isinstance(arrived, Answer):
                    del self._arrived[place]
                    return arrived
            part = self.socket.recv(262_144)
            assert part, "closed"
            self._arrived += self.caller.feed(part)

    def begin(self, kind: Kind, *asked: Any) -> int:
        """Send a frame; its number."""
        number, data = self.caller.ask(kind, [item(each) for each in asked])
        self.send(data)
        return number

    def ask(self, kind: Kind, *asked: Any) -> list[Any]:
        """The answers to a frame: for each message its fields behind OK, or its error."""
        number = self.begin(kind, *asked)
        answer = self.read()
        assert answer.request == number
        return answers(answer)

    def ask_raw(self, kind: int, fields: bytes, payload: bytes = b"") -> list[Any]:
        """The answers to a frame whose one item has these bytes as fields."""
        number, _ = self.caller.ask(kind, [])
        body = len(fields).to_bytes(2) + len(payload).to_bytes(4) + fields + payload
        self.send((len(body) + 5).to_bytes(4) + bytes([kind]) + number.to_bytes(4) + body)
        answer = self.read()
        assert answer.request == number
        return answers(answer)


def answers(answer: Answer) -> list[Any]:
    """For each command its fields behind OK, or its error."""
    return [codec.answer_error(fields) or tuple(fields[1:]) for fields, _ in answer.items]


def enq(module: str = "Echo", **fields: Any) -> m.Enq:
    """A message that makes a job."""
    return m.Enq(id=fields.pop("id", None) or os.urandom(16), module=module, **fields)
