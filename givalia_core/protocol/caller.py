"""The connecting side of a framed connection: numbers its frames, and matches answers with them.

The client and the worker's link use it; it touches no socket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeVar

from givalia_core.errors import BadRequest, GivaliaError, VersionMismatch
from givalia_core.protocol import frames
from givalia_core.protocol.codec import answer_error, item
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import OK, VERSION, Hello, Kind
from givalia_core.version import __version__

T = TypeVar("T")

RETRY_LEAST_S: Final = 0.05
RETRY_MOST_S: Final = 60.0
_OK: Final = b"\x91\xa2OK"  # The fields of most answers, which need not be unpacked.
SHOWN_BYTES: Final = 60  # The most bytes of another kind of server that an error shows.
_STRANGERS: Final = {
    b"HTTP/": "an HTTP server", b"<!DOCTYPE": "an HTTP server", b"<html": "an HTTP server",
    b"SSH-": "an SSH server", b"\x15\x03": "a TLS server",
}  # fmt: skip
_LAST_NUMBER: Final = (1 << 32) - 1
_KINDS: Final = frozenset(Kind)
HELLO_NUMBER: Final = 10
"""The last byte of this number ends a line: servers that read lines, such as HTTP, answer at once and are recognised."""
_IS_SKEW = re.compile(r"[A-Z]+ has \d+ to \d+ fields, not \d+|there is no kind \d+|[A-Z]+ is not for this port").fullmatch
"""Matches the refusals of a server that does not know a message, or not all its fields."""


class Broken(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """The end of a connection: it cannot be used any more.

    This error never leaves the client. It is neither an `OSError` nor a `GivaliaError`, because a signal handler or a
    `gevent.Timeout` may throw either of those into a call, and the caller must get what was thrown. `refusal` is the error by
    which the server refuses this client, if it does: another connection would not help.
    """

    def __init__(self, why: str, refusal: GivaliaError | None = None) -> None:
        super().__init__(why)
        self.refusal = refusal


class Answer(NamedTuple):
    """An answered frame: its number, and for each command the answer's fields and payload."""

    request: int
    items: list[tuple[list[Any], bytes]]


class Told(NamedTuple):
    """A frame that is no answer: a dispatch, a stop, or progress of a job."""

    kind: Kind
    items: list[tuple[list[Any], bytes]]


class Caller:
    """One connection's numbering and reading; make a new one for each connection."""

    def __init__(self) -> None:
        self._reader = frames.FrameReader(frames.ANSWER_BYTES_MAX)
        self._last = 0
        self._has_heard = False
        self._greeting: list[Any] = []  # The fields of the answer to HELLO.

    def hello(self, agent: str) -> bytes:
        """Return the first bytes of the connection."""
        self._last = HELLO_NUMBER
        message = item(Hello(VERSION, VERSION, f"{agent}/{__version__}"))
        return frames.MAGIC + frames.encode(Kind.HELLO, self._last, [message])

    def ask(self, kind: Kind, items: Iterable[Item]) -> tuple[int, bytes]:
        """Return the number and the bytes of a frame."""
        self._last = number = self._last % _LAST_NUMBER + 1
        return number, frames.encode(kind, number, items)

    def feed(self, data: bytes | memoryview) -> list[Answer | Told]:
        """Take the bytes that arrived; return the complete frames.

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
        """Return an error as it is, but a mismatch of versions as `VersionMismatch` with both versions."""
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
    """Check the first bytes of a connection: a frame of a server begins with 0 or 1, the first byte of its length.

    Raises:
        BadRequest: The peer is no Givalia server of this protocol.
    """
    if began[0] <= frames.ANSWER_BYTES_MAX >> 24:
        return
    known = next((words for start, words in _STRANGERS.items() if began.startswith(start)), None)
    if known is None:
        line = began.splitlines()[0].decode("latin-1")
        known = f"something that says {line!a}"
    raise BadRequest(f"{known} answers there, and no Givalia server: look at the host and the port")


def refused(answer: Answer) -> GivaliaError | None:
    """Return the error of an answer to a frame with one command; None if it is a success."""
    return answer_error(answer.items[0][0]) if answer.items else None


def retry_after_s(busy: GivaliaError) -> float:
    """Return the seconds after which a busy server wants to be asked again, from 0.05 to 60; 1 if it does not say."""
    said = busy.details.get("retry_after")
    if isinstance(said, bool) or not isinstance(said, (int, float)) or not said > 0:  # A NaN compares false.
        return 1.0
    return min(max(float(said), RETRY_LEAST_S), RETRY_MOST_S)
