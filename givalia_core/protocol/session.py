"""The server's side of the protocol on one connection: bytes in; commands to decide, bytes to answer at once, or the end.

A connection to the client port speaks the protocol that its first byte names: `{` the lines of 2012, our magic the framed
one. Any other connection is closed without an answer, so that a browser or a stray client of another protocol can do no harm.
A framed connection must say hello before anything else. Nothing here touches a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from givalia_core.clock import Reading, read_system
from givalia_core.errors import BadRequest, Busy, GivaliaError, TooLarge, VersionMismatch
from givalia_core.protocol import codec, frames, line_session, messages
from givalia_core.protocol.answers import Answer, Greeting, Uptime
from givalia_core.protocol.asked import Asked, Packed
from givalia_core.protocol.codec import answer_item, decoded_items
from givalia_core.protocol.frames import Item
from givalia_core.protocol.line_session import LineSession
from givalia_core.protocol.messages import CLIENT_KINDS, WORKER_KINDS, Kind
from givalia_core.version import __version__

HANDSHAKE_BYTES_MAX: Final = 4 << 10
DECODED_AT_ONCE: Final = 64  # Items of a frame; a larger frame is decoded when it is decided.
AGENT: Final = "givalia"
BUSY: Final = "this server has as many connections as it takes"
GREETING: Final = Greeting(messages.VERSION, AGENT, __version__)
"""The answer to hello."""


class Port(Enum):
    """The port that a connection came to."""

    CLIENT = "client"  # Framed commands of users, and the lines of 2012.
    WORKER = "worker"  # Framed messages of workers.


KINDS: Final = {Port.CLIENT: CLIENT_KINDS, Port.WORKER: WORKER_KINDS}
_ONE_BY_ONE: Final = frozenset(
    {Kind.WAIT, Kind.CLOCK, Kind.LIST, Kind.ACT, Kind.INFO, Kind.MODULES, Kind.WORKERS, Kind.BACKUP}
    | {Kind.RESUME_LENDING, Kind.JOIN, Kind.CREDIT}
)


class _Rule(NamedTuple):
    """A kind of frame that a port takes, and how many items such a frame has."""

    kind: Kind
    least: int
    most: int


def _rules(kinds: frozenset[Kind]) -> dict[int, _Rule]:
    rules = {int(kind): _Rule(kind, 1, 1) if kind in _ONE_BY_ONE else _Rule(kind, 0, frames.ITEMS_MAX) for kind in kinds}
    if Kind.STAT in kinds:
        rules[Kind.STAT] = _Rule(Kind.STAT, 1, messages.STATS_PER_FRAME)
    return rules


RULES: Final = {port: _rules(kinds) for port, kinds in KINDS.items()}


class Session:
    """The server's side of one connection; `feed` it what arrives, send what `take_out` gives, close when `is_over`.

    Args:
        port: The port that the peer has connected to.
        conn: The number of the connection, which each `Asked` carries.
        is_busy: True if the server has no room for this connection: its hello is refused.
        read_clock: Reads the clocks, for the answer to CLOCK.
    """

    def __init__(
        self, port: Port, conn: int = 0, *, is_busy: bool = False, read_clock: Callable[[], Reading] = read_system
    ) -> None:
        self.port = port
        self._conn = conn
        self.refusal = ""
        """The reason why nothing more is taken from the peer; empty while frames or lines are taken."""
        self.agent = ""
        """The name of the peer's program, such as `givalia/0.1.0`; empty until the peer has said hello."""
        self.is_open = False
        """True once the peer's protocol is known and its hello, where one is due, is accepted."""
        self.is_mid_frame = False
        """True while a hello, frame or line has begun and not ended, so that a deadline runs."""
        self.is_over = False
        self.at_once = 0
        """The number of answers that `take_out` returns; nothing has to be decided for them."""
        self._is_busy = is_busy
        self._read_clock = read_clock
        self._rules = RULES[port]
        self._start: bytes | None = b""  # What has arrived of the first bytes; None once the protocol is known.
        self._lines: LineSession | None = None
        self._reader = frames.FrameReader()
        self._hello_bytes = 0
        self._until_us: int | None = None  # As the newest CLOCK of this connection said, on the monotonic clock.
        self._out: list[bytes] = []

    def feed(self, data: bytes) -> list[Asked]:
        """Take the bytes that arrived; return what must be decided."""
        if not self.is_open or self._lines is not None:
            return self._feed_other(data)
        try:
            arrived = self._reader.feed(data)
        except TooLarge as error:
            self._end(0, error)
            return []
        asked = [each for frame in arrived if (each := self._take(frame)) is not None]
        self.is_mid_frame = self._reader.is_mid_frame
        return asked

    def _take(self, frame: frames.Frame | frames.Unreadable) -> Asked | None:
        if isinstance(frame, frames.Unreadable):
            self._refuse(frame.request, frame.error)
            return None
        rule, items = self._rules.get(frame.kind), frame.items
        if rule is None or not rule.least <= len(items) <= rule.most or rule.kind is Kind.CLOCK:
            self._answer_at_once(frame)
            return None
        commands = Packed(rule.kind, items) if len(items) > DECODED_AT_ONCE else decoded_items(rule.kind, items)
        return Asked(self._conn, frame.request, rule.kind, commands, self._until_us)

    def answer(self, request: int, answers: list[Answer]) -> bytes:
        """Return the bytes that answer a frame or line."""
        if self._lines is not None:
            return self._lines.answer(request, answers)
        return frames.encode(Kind.ANSWER, request, map(answer_item, answers))

    def take_out(self) -> bytes:
        """Return the bytes to send at once, such as the answer to hello."""
        out, self._out, self.at_once = b"".join(self._out), [], 0
        return out

    # The beginning of a connection, and frames that a peer of this protocol seldom or never sends.

    def _feed_other(self, data: bytes) -> list[Asked]:
        """Feed a connection that speaks lines, or has not said hello yet."""
        if self._start is not None:
            data, self._start = self._start + data, None
            if data[:1] == b"{" and self.port is Port.CLIENT and not self._is_busy:
                self._lines, self.is_open, self.agent = LineSession(self._conn), True, line_session.AGENT
            elif data.startswith(frames.MAGIC):
                data = data[len(frames.MAGIC) :]
            else:
                self._wait_for_magic(data)
                return []
        return self._feed_hello(data) if self._lines is None else self._feed_lines(self._lines, data)

    def _wait_for_magic(self, data: bytes) -> None:
        if frames.MAGIC.startswith(data):
            self._start, self.is_mid_frame = data, bool(data)
        else:
            is_line = data[:1] == b"{" and self.port is Port.CLIENT
            self.is_over, self.refusal = True, BUSY if is_line else "it does not speak the protocol"

    def _feed_lines(self, lines: LineSession, data: bytes) -> list[Asked]:
        asked = lines.feed(data)
        if (out := lines.take_out()) != b"":
            self._out.append(out)
            self.at_once = len(self._out)
        self.is_over, self.refusal, self.is_mid_frame = lines.is_over, lines.refusal, lines.is_mid_frame
        return asked

    def _feed_hello(self, data: bytes) -> list[Asked]:
        self._hello_bytes += len(data)
        asked: list[Asked] = []
        try:
            arrived = self._reader.feed(data)
        except TooLarge as error:
            self._end(0, error)
            return asked
        for frame in arrived:
            if not self.is_open:
                self._take_other(frame)
            elif (each := self._take(frame)) is not None:
                asked.append(each)
            if self.is_over:
                return asked
        self.is_mid_frame = self._reader.is_mid_frame or not self.is_open
        if not self.is_open and self._hello_bytes > HANDSHAKE_BYTES_MAX:
            self.is_over, self.refusal = True, "its hello is too long"
        return asked

    def _take_other(self, frame: frames.Frame | frames.Unreadable) -> None:
        """Take a hello, or refuse a frame that cannot be read."""
        if isinstance(frame, frames.Unreadable):
            self._refuse(frame.request, frame.error)
            return
        try:
            if frame.kind != Kind.HELLO or len(frame.items) != 1:
                raise BadRequest("a connection begins with hello")
            hello = codec.decode(Kind.HELLO, *frame.items[0])
            if not hello.version_min <= messages.VERSION <= hello.version_max:
                raise VersionMismatch(
                    f"this server, Givalia {__version__}, speaks version {messages.VERSION} of the protocol, and"
                    f" {hello.agent or 'the caller'} {hello.version_min} to {hello.version_max}",
                    version=messages.VERSION,
                )
            if self._is_busy:
                raise Busy(BUSY, retry_after=5.0)
        except GivaliaError as error:
            self._end(frame.request, error)
            return
        self.is_open = True
        self.agent = hello.agent
        self._say(frame.request, [answer_item(GREETING)])

    def _answer_at_once(self, frame: frames.Frame) -> None:
        """Answer a frame for which nothing has to be decided: a ping, a CLOCK, or one that this port does not take."""
        if frame.kind == Kind.STAT and not frame.items:
            # A ping, on either port: it asks whether the path is alive, so its answer must not wait for the store.
            self._say(frame.request, [])
            return
        try:
            if self._legal_kind(frame) is Kind.CLOCK:
                self._tell_clock(frame)
        except GivaliaError as error:
            self._refuse(frame.request, error)
            if frame.kind == Kind.JOIN:
                self.refusal = "it is a worker, and the port for workers is another one, which is set with -w"

    def _tell_clock(self, frame: frames.Frame) -> None:
        """Answer with the uptime: a client takes the answer for the present time, so it must not wait for a decision."""
        clock = codec.decode(Kind.CLOCK, *frame.items[0])
        # We tell the uptime, which counts suspended time; decisions are made on the monotonic clock.
        _, uptime_us, mono_us = self._read_clock()
        self._until_us = None if clock.until_us is None else clock.until_us - uptime_us + mono_us
        self._say(frame.request, [answer_item(Uptime(uptime_us))])

    def _legal_kind(self, frame: frames.Frame) -> Kind:
        try:
            kind = Kind(frame.kind)
        except ValueError:
            raise BadRequest(f"there is no kind {frame.kind}") from None
        if kind not in KINDS[self.port]:
            raise BadRequest(_why_not_here(kind))
        if kind in _ONE_BY_ONE and len(frame.items) != 1:
            raise BadRequest(f"{kind.name} is alone in its frame")
        if kind is Kind.STAT:
            raise BadRequest(f"at most {messages.STATS_PER_FRAME} STAT in a frame")
        return kind

    def _end(self, request: int, error: GivaliaError) -> None:
        self._refuse(request, error)
        self.is_over, self.refusal = True, str(error)

    def _refuse(self, request: int, error: GivaliaError) -> None:
        self._say(request, [codec.refusal(error)])

    def _say(self, request: int, items: list[Item]) -> None:
        self._out.append(frames.encode(Kind.ANSWER, request, items))
        self.at_once = len(self._out)


def _why_not_here(kind: Kind) -> str:
    """Return why a port does not take a message: it is for the other port, or nobody sends it to a server."""
    words = f"{kind.name} is not for this port"
    for port, flag in ((Port.CLIENT, "-p"), (Port.WORKER, "-w")):
        if kind in KINDS[port]:
            return f"{words}: the port for {port.value}s is another one, which is set with {flag}"
    return words
