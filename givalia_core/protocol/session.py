"""What is legal now on one connection to a server: bytes in; commands to decide, bytes to answer at once, or the end.

A connection to the client port speaks the protocol that its first byte names: `{` the lines of 2012, our magic the framed
one. Anything else is closed without a word, so that a browser or a stray client of another protocol can do no harm. A framed
connection says hello before anything else is looked at. Nothing here touches a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple

from givalia_core.clock import Reading, new_id, read_system
from givalia_core.errors import BadRequest, Busy, GivaliaError, TooLarge, VersionMismatch
from givalia_core.protocol import frames, lines, messages
from givalia_core.protocol.answers import Answer, Greeting, Uptime, to_item
from givalia_core.protocol.messages import CLIENT_KINDS, WORKER_KINDS, Kind
from givalia_core.version import __version__

HANDSHAKE_BYTES_MAX: Final = 4 << 10
MALFORMED_LINES_MAX: Final = 3  # In a row.
DECODED_AT_ONCE: Final = 64  # Items of a frame; those of a larger one are decoded when it is decided.
ERRORS_MAX: Final = 16  # That a frame keeps words for; whatever else is wrong in it shares them.
AGENT: Final = "givalia"
BUSY: Final = "this server has as many connections as it takes"
GREETING: Final = Greeting(messages.VERSION, AGENT, __version__)
"""The answer to hello."""


class Port(Enum):
    """Which of the two ports a connection came to."""

    CLIENT = "client"  # Framed commands of users, and the lines of 2012.
    WORKER = "worker"  # Framed messages of workers.


KINDS: Final = {Port.CLIENT: CLIENT_KINDS, Port.WORKER: WORKER_KINDS}
_ONE_BY_ONE: Final = frozenset(
    {Kind.WAIT, Kind.CLOCK, Kind.LIST, Kind.ACT, Kind.INFO, Kind.MODULES, Kind.WORKERS, Kind.BACKUP}
    | {Kind.RESUME_LENDING, Kind.JOIN, Kind.CREDIT}
)


class Packed(list[tuple[bytes, bytes]]):
    """The items of a large frame as they came: until it is decided, it costs little more than was sent."""

    def __init__(self, kind: Kind, items: list[tuple[bytes, bytes]]) -> None:
        super().__init__(items)
        self._kind = kind

    def decoded(self) -> list[Any]:
        """A message or the error that decoding gave, for each item."""
        return _decoded(self._kind, self)


def decoded(messages: list[Any]) -> list[Any]:
    """The messages of an `Ask`, of a large frame too."""
    return messages.decoded() if isinstance(messages, Packed) else messages


class Ask(NamedTuple):
    """One frame (or line) to be decided: its commands in order, each a message or the error that decoding it gave.

    The commands of a large frame are not decoded yet; see `decoded`.
    """

    request: int
    kind: Kind
    messages: list[Any]
    until_us: int | None = None  # On the server's monotonic clock: what changes something is not to be decided later.
    is_once: bool = False  # Its request ids were made here, so it cannot come again.


class Session:
    """One connection's side of the talk; `feed` it what arrives, send what `take_out` gives, close when `is_over`."""

    def __init__(self, port: Port, *, is_busy: bool = False, read_clock: Callable[[], Reading] = read_system) -> None:
        self.port = port
        self._is_busy = is_busy
        self._read_clock = read_clock
        self._talk: _Framed | _Lines | None = None
        self._start = b""
        self._refusal = ""
        self.is_over = False

    @property
    def refusal(self) -> str:
        """Why nothing is taken from the other side, in words; empty while that has not been said."""
        return self._refusal or (self._talk.refusal if self._talk is not None else "")

    @property
    def is_open(self) -> bool:
        """Whether the other side has said what it speaks, and hello where that is due."""
        return self._talk is not None and self._talk.is_open

    @property
    def agent(self) -> str:
        """What the other side says it is, as `givalia/0.1.0`; empty until it has said hello."""
        return "" if self._talk is None else self._talk.agent

    @property
    def is_mid_frame(self) -> bool:
        """Whether something has begun and not ended, so that a deadline runs."""
        return bool(self._start) or (self._talk is not None and self._talk.is_mid_frame)

    def feed(self, data: bytes) -> list[Ask]:
        """Take the bytes that arrived; return what is to be decided."""
        if self._talk is None:
            self._start += data
            data = self._choose()
        if self._talk is None or self.is_over:
            return []
        asks = self._talk.feed(data)
        self.is_over = self._talk.is_over
        return asks

    def _choose(self) -> bytes:
        """Which protocol it is, by the first byte; what it sent beyond the magic is returned to be fed on."""
        start = self._start
        if start[:1] == b"{" and self.port is Port.CLIENT and not self._is_busy:
            self._talk, self._start = _Lines(), b""
            return start
        if start.startswith(frames.MAGIC):
            self._talk, self._start = _Framed(KINDS[self.port], self._read_clock, is_busy=self._is_busy), b""
            return start[len(frames.MAGIC) :]
        if not frames.MAGIC.startswith(start):
            is_line = start[:1] == b"{" and self.port is Port.CLIENT
            self.is_over, self._refusal = True, BUSY if is_line else "it does not speak the protocol"
        return b""

    @property
    def at_once(self) -> int:
        """How many frames `take_out` has the answers to: nothing is to be decided for them."""
        return 0 if self._talk is None else self._talk.at_once

    def answer(self, request: int, answers: list[Answer]) -> bytes:
        """The bytes that answer a frame or line."""
        assert self._talk is not None
        return self._talk.answer(request, answers)

    def take_out(self) -> bytes:
        """What is to be sent at once, such as the answer to hello."""
        return b"" if self._talk is None else self._talk.take_out()


class _Framed:
    def __init__(self, kinds: frozenset[Kind], read_clock: Callable[[], Reading], *, is_busy: bool) -> None:
        self._kinds = kinds
        self._read_clock = read_clock
        self._until_us: int | None = None  # As the newest CLOCK of this connection said, on the monotonic clock.
        self._is_busy = is_busy
        self._reader = frames.Reader()
        self._out: list[bytes] = []
        self._hello_bytes = 0
        self.refusal = ""
        self.agent = ""
        self.is_open = False
        self.is_over = False

    @property
    def is_mid_frame(self) -> bool:
        return self._reader.is_mid_frame or not self.is_open

    @property
    def at_once(self) -> int:
        return len(self._out)

    def feed(self, data: bytes) -> list[Ask]:
        if not self.is_open:
            self._hello_bytes += len(data)
        try:
            arrived = self._reader.feed(data)
        except TooLarge as error:
            self._refuse(0, error)
            self.is_over, self.refusal = True, str(error)
            return []
        asks: list[Ask] = []
        for frame in arrived:
            if isinstance(frame, frames.Unreadable):
                self._refuse(frame.request, frame.error)
            elif self.is_open:
                self._take(frame, asks)
            else:
                self._hello(frame)
            if self.is_over:
                return asks
        if not self.is_open and self._hello_bytes > HANDSHAKE_BYTES_MAX:
            self.is_over, self.refusal = True, "its hello is too long"
        return asks

    def _hello(self, frame: frames.Frame) -> None:
        try:
            if frame.kind != Kind.HELLO or len(frame.items) != 1:
                raise BadRequest("a connection begins with hello")
            hello = messages.decode(Kind.HELLO, *frame.items[0])
            if not hello.version_min <= messages.VERSION <= hello.version_max:
                raise VersionMismatch(
                    f"this server, Givalia {__version__}, speaks version {messages.VERSION} of the protocol, and"
                    f" {hello.agent or 'the caller'} {hello.version_min} to {hello.version_max}",
                    version=messages.VERSION,
                )
            if self._is_busy:
                raise Busy(BUSY, retry_after=5.0)
        except GivaliaError as error:
            self._refuse(frame.request, error)
            self.is_over, self.refusal = True, str(error)
            return
        self.is_open = True
        self.agent = hello.agent
        self._out.append(frames.encode(Kind.ANSWER, frame.request, [to_item(GREETING)]))

    def _take(self, frame: frames.Frame, asks: list[Ask]) -> None:
        if frame.kind == Kind.STAT and not frame.items:
            # A ping, on either port: it asks whether the path is alive, which the store and all that waits for it do not know.
            self._out.append(frames.encode(Kind.ANSWER, frame.request, []))
            return
        try:
            kind = self._legal_kind(frame)
        except BadRequest as error:
            self._refuse(frame.request, error)
            if frame.kind == Kind.JOIN:
                self.refusal = "it is a worker, and the port for workers is another one, which is set with -w"
            return
        if kind is Kind.CLOCK:
            self._tell_clock(frame)
        else:
            is_large = len(frame.items) > DECODED_AT_ONCE
            commands = Packed(kind, frame.items) if is_large else _decoded(kind, frame.items)
            asks.append(Ask(frame.request, kind, commands, self._until_us))

    def _tell_clock(self, frame: frames.Frame) -> None:
        """Answer at once: a client takes the answer for the present, and nothing has to be decided for it."""
        (clock,) = _decoded(Kind.CLOCK, frame.items)
        if isinstance(clock, GivaliaError):
            self._refuse(frame.request, clock)
            return
        # We tell the uptime, which counts suspended time; decisions are made on the monotonic clock.
        _, uptime_us, mono_us = self._read_clock()
        self._until_us = None if clock.until_us is None else clock.until_us - uptime_us + mono_us
        self._out.append(frames.encode(Kind.ANSWER, frame.request, [to_item(Uptime(uptime_us))]))

    def _legal_kind(self, frame: frames.Frame) -> Kind:
        try:
            kind = Kind(frame.kind)
        except ValueError:
            raise BadRequest(f"there is no kind {frame.kind}") from None
        if kind not in self._kinds:
            raise BadRequest(_why_not_here(kind))
        if kind in _ONE_BY_ONE and len(frame.items) != 1:
            raise BadRequest(f"{kind.name} is alone in its frame")
        if kind is Kind.STAT and len(frame.items) > messages.STATS_PER_FRAME:
            raise BadRequest(f"at most {messages.STATS_PER_FRAME} STAT in a frame")
        return kind

    def _refuse(self, request: int, error: GivaliaError) -> None:
        self._out.append(frames.encode(Kind.ANSWER, request, [messages.refusal(error)]))

    def answer(self, request: int, answers: list[Answer]) -> bytes:
        return frames.encode(Kind.ANSWER, request, map(to_item, answers))

    def take_out(self) -> bytes:
        out, self._out = b"".join(self._out), []
        return out


def _why_not_here(kind: Kind) -> str:
    """Say why a port does not take a message: it is the other port's, or nobody sends it to a server."""
    words = f"{kind.name} is not for this port"
    for port, flag in ((Port.CLIENT, "-p"), (Port.WORKER, "-w")):
        if kind in KINDS[port]:
            return f"{words}: the port for {port.value}s is another one, which is set with {flag}"
    return words


def _decoded(kind: Kind, items: list[tuple[bytes, bytes]]) -> list[Any]:
    found: list[Any] = []
    errors: dict[str, GivaliaError] = {}
    for packed, payload in items:
        try:
            found.append(messages.decode(kind, packed, payload))
        except GivaliaError as error:
            found.append(_kept(error, errors))
    return found


def _kept(error: GivaliaError, errors: dict[str, GivaliaError]) -> GivaliaError:
    """An error as it is kept for its answer: one of those that the frame has already, if that says the same."""
    words = str(error)
    if words not in errors:
        if len(errors) >= ERRORS_MAX:
            return errors.setdefault(error.code, type(error)("one of many items of this frame that cannot be taken"))
        # Without what Python remembers of its way here, which is a thousand bytes each.
        error.__traceback__ = error.__context__ = None
        errors[words] = error
    return errors[words]


class _Lines:
    """The 2012 protocol: one object a line, answered in order, which a batch keeps."""

    agent = "lines"
    is_open = True
    at_once = 0  # Every line is asked.

    def __init__(self, make_id: Callable[[], bytes] = new_id) -> None:
        self._make_id = make_id
        self._reader = lines.Reader()
        self._asked: dict[int, tuple[Kind, bool]] = {}  # The kind, and whether it is of a live key.
        self._count = 0
        self._malformed = 0
        self._out = b""
        self.refusal = ""
        self.is_over = False

    @property
    def is_mid_frame(self) -> bool:
        return self._reader.is_mid_line

    def feed(self, data: bytes) -> list[Ask]:
        try:
            arrived = self._reader.feed(data)
        except TooLarge as error:
            self._out = lines.fail(error)
            self.is_over, self.refusal = True, str(error)
            return []
        asks: list[Ask] = []
        for line in arrived:
            asks.append(self._ask(line))
            if self._malformed >= MALFORMED_LINES_MAX:
                self.is_over, self.refusal = True, f"{MALFORMED_LINES_MAX} lines in a row could not be read"
                return asks
        if self._reader.is_overlong:
            overlong = TooLarge(f"a line is longer than {lines.LINE_BYTES_MAX} bytes")
            asks.append(self._refused(overlong))
            self.is_over, self.refusal = True, str(overlong)
        return asks

    def _ask(self, line: bytes) -> Ask:
        try:
            asked = lines.decode(line, self._make_id)
        except GivaliaError as error:
            self._malformed = self._malformed + 1 if lines.is_malformed(error) else 0
            return self._refused(error)
        self._malformed = 0
        return self._numbered(asked)

    def _refused(self, error: GivaliaError) -> Ask:
        """Even a line that cannot be read is asked, so that its answer comes in its turn."""
        return self._numbered(lines.Request(Kind.ENQ, error))

    def _numbered(self, asked: lines.Request) -> Ask:
        self._count += 1
        self._asked[self._count] = asked.kind, asked.is_of_live_key
        return Ask(self._count, asked.kind, [asked.message], is_once=True)

    def answer(self, request: int, answers: list[Answer]) -> bytes:
        kind, is_of_live_key = self._asked.pop(request)
        return lines.encode(kind, answers[0], is_of_live_key=is_of_live_key)

    def take_out(self) -> bytes:
        out, self._out = self._out, b""
        return out
