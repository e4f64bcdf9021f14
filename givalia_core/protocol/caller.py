"""The connecting side of a framed connection: numbers what it asks, and finds what an answer is the answer to.

Used by the client and by the worker's link, over whatever carries bytes; nothing here touches a socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeVar

from givalia_core.errors import BadRequest, GivaliaError, VersionMismatch
from givalia_core.protocol import frames
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import OK, VERSION, Hello, Kind, answer_error, item
from givalia_core.version import __version__

T = TypeVar("T")

RETRY_LEAST_S: Final = 0.05
RETRY_MOST_S: Final = 60.0
_OK: Final = b"\x91\xa2OK"  # The fields of most answers, which are not worth being unpacked.
SHOWN_BYTES: Final = 60  # Of what a stranger says.
_STRANGERS: Final = {
    b"HTTP/": "an HTTP server", b"<!DOCTYPE": "an HTTP server", b"<html": "an HTTP server",
    b"SSH-": "an SSH server", b"\x15\x03": "a TLS server",
}  # fmt: skip
_LAST_NUMBER: Final = (1 << 32) - 1
_KINDS: Final = frozenset(Kind)
HELLO_NUMBER: Final = 10
"""Its last byte ends a line: servers that read lines, as many of HTTP do, answer instead of waiting, and are recognised."""
_IS_SKEW = re.compile(r"[A-Z]+ has \d+ to \d+ fields, not \d+|there is no kind \d+|[A-Z]+ is not for this port").fullmatch
"""The words of a refusal by a server that does not know a message, or not all its fields: no program of ours sends others."""


class Broken(Exception):
    """A connection is of no use any more: the system, the path or the peer said so.

    It never leaves the client. It is neither an `OSError` nor one of ours, because a signal handler or a `gevent.Timeout` may
    throw either of those into a call, and the caller must get what was thrown. `refusal` is what the server has against this
    client, if that is why: connecting again is of no use then.
    """

    def __init__(self, why: str, refusal: GivaliaError | None = None) -> None:
        super().__init__(why)
        self.refusal = refusal


class Answer(NamedTuple):
    """An answered frame: its number, and for each command the answer's fields and payload."""

    request: int
    items: list[tuple[list[Any], bytes]]


class Told(NamedTuple):
    """A frame that nobody asked for: a dispatch, a stop, or how far a job is."""

    kind: Kind
    items: list[tuple[list[Any], bytes]]


class Caller:
    """One connection's numbering and reading; make a new one for each connection."""

    def __init__(self) -> None:
        self._reader = frames.Reader(frames.ANSWER_BYTES_MAX)
        self._last = 0
        self._has_heard = False
        self._greeting: list[Any] = []  # The fields of the answer to hello.

    def hello(self, agent: str) -> bytes:
        """The first bytes of the connection; its answer has the number that `feed` shows first."""
        self._last = HELLO_NUMBER
        message = item(Hello(VERSION, VERSION, f"{agent}/{__version__}"))
        return frames.MAGIC + frames.encode(Kind.HELLO, self._last, [message])

    def next_number(self) -> int:
        """A number that no frame of this connection had (they may come round after four thousand million)."""
        self._last = self._last % _LAST_NUMBER + 1
        return self._last

    def ask(self, kind: Kind, items: Iterable[Item]) -> tuple[int, bytes]:
        """One frame and its number."""
        self._last = number = self._last % _LAST_NUMBER + 1
        return number, frames.encode(kind, number, items)

    def feed(self, data: bytes | memoryview) -> list[Answer | Told]:
        """Take the bytes that arrived; return what is whole.

        Raises:
            GivaliaError: The server sends what no server of this protocol sends. Close the connection.
        """
        if not self._has_heard and data:
            self._has_heard = True
            _refuse_strangers(bytes(data[:SHOWN_BYTES]))
        arrived: list[Answer | Told] = []
        for frame in self._reader.feed(data):
            if isinstance(frame, frames.Unreadable):
                raise frame.error
            if frame.kind not in _KINDS:
                raise BadRequest(f"a frame of kind {frame.kind}, which is none")
            items = [([OK] if fields == _OK else frames.unpack_fields(fields), payload) for fields, payload in frame.items]
            if frame.kind == Kind.ANSWER:
                if frame.request == HELLO_NUMBER and items:
                    self._greeting = items[0][0]
                arrived.append(Answer(frame.request, items))
            else:
                arrived.append(Told(Kind(frame.kind), items))
        return arrived

    def explained(self, error: T) -> T | VersionMismatch:
        """Return a refusal as it is, but one that comes of versions that do not fit as `VersionMismatch`, with both of them."""
        is_skew = isinstance(error, VersionMismatch) or (type(error) is BadRequest and _IS_SKEW(str(error)) is not None)
        if not is_skew or not isinstance(error, GivaliaError):
            return error
        theirs = str(self._greeting[3]) if len(self._greeting) > 3 and self._greeting[0] == OK else ""
        server = f"the server is Givalia {theirs}" if theirs else "the server does not say its version"
        return VersionMismatch(
            f"{error}. This is Givalia {__version__}, {server}: upgrade the older one",
            **{**error.details, "ours": __version__, "theirs": theirs or None},
        )


def _refuse_strangers(began: bytes) -> None:
    """Look at the first bytes of a connection; a frame that a server may send begins with 0 or 1, the first byte of its length.

    Raises:
        BadRequest: What listens there is no Givalia server, or not one of this protocol.
    """
    if began[0] <= frames.ANSWER_BYTES_MAX >> 24:
        return
    known = next((words for start, words in _STRANGERS.items() if began.startswith(start)), None)
    if known is None:
        line = began.splitlines()[0].decode("latin-1")
        known = f"something that says {line!a}"
    raise BadRequest(f"{known} answers there, and no Givalia server: look at the host and the port")


def refused(answer: Answer) -> GivaliaError | None:
    """The error of an answer to a frame with one command; None if it is a success."""
    return answer_error(answer.items[0][0]) if answer.items else None


def retry_after_s(busy: GivaliaError) -> float:
    """Seconds after which a server that is busy wants to be asked again, from 0.05 to 60; 1 if it does not say."""
    said = busy.details.get("retry_after")
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not said > 0:  # A NaN compares false.
        return 1.0
    return min(max(float(said), RETRY_LEAST_S), RETRY_MOST_S)
