"""One connection: the event loop calls it when there is something to read, its writes never wait, and both have limits.

Reading stops while too much of this connection's own work is in flight or unread by its peer; other connections go on.
Answers are sent at once as far as the socket takes them; a greenlet with a deadline sends the rest. A greenlet that waits
for each read would cost two switches and an exception per request.
"""

from __future__ import annotations

import contextlib
import errno
import socket as native_socket
from typing import TYPE_CHECKING, Final

import gevent
from gevent import socket
from gevent.event import Event

from givalia_core import forks
from givalia_core.clock import SECOND_US
from givalia_core.errors import GivaliaError
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.session import Port, Session
from givalia_core.server.unread import BEHIND_BYTES, UNSENT_BYTES_MAX, WRITE_DEADLINE_S, Unsent

if TYPE_CHECKING:  # That module imports this one.
    from givalia_core.server.connections import Connections

RECEIVE_BYTES: Final = 16_384
RECEIVE_LEAST_BYTES: Final = 2_048  # For small frames: decoding the input of many connections must not take long.
FRAMES_AT_ONCE: Final = 32  # With more frames than this in one read, frames count as small.
RECEIVED_AT_ONCE: Final = 8  # A queue turn may follow each poll of the sockets, so a large frame should need few polls.
JOIN_US: Final = 10 * SECOND_US
IN_FLIGHT_MAX: Final = 128
COMMANDS_IN_FLIGHT_MAX: Final = 4_000  # In all frames of a connection; one frame may have more by itself.
READS_IN_FLIGHT_MAX: Final = 8  # Each answer may be a megabyte.
WAITS_MAX: Final = 10_000
HANDSHAKE_US: Final = 5 * SECOND_US
FRAME_US: Final = 30 * SECOND_US
SLOW_AFTER_US: Final = 5 * SECOND_US
SLOW_BYTES_PER_S: Final = 1024
_READS: Final = frozenset({Kind.STAT, Kind.LIST, Kind.ACT, Kind.INFO, Kind.MODULES, Kind.WORKERS, Kind.BACKUP})


class Connection:
    """A client's or worker's connection; `owner` takes its commands, and is told of its first command and of its end."""

    def __init__(self, number: int, sock: socket.socket, peer: str, session: Session, owner: Connections) -> None:
        self.number, self.peer, self.peer_port = number, peer, 0
        self.session = session
        self._socket = sock
        self._owner, self._inbox, self._clock = owner, owner.inbox, owner.clock
        self._is_worker = session.port is Port.WORKER
        self.unsent = Unsent(self, sock, owner.unread, owner.clock)
        # Reading from a worker continues for longer: its reports delay nobody, and its leases depend on its beats.
        self._unsent_most = UNSENT_BYTES_MAX if self._is_worker else BEHIND_BYTES
        self._in_flight: dict[int, int] = {}  # request -> how many commands it has
        self._commands = 0
        self._has_asked = self._is_ending = self._is_reading = self.is_closed = False
        self._reads: set[int] = set()  # The requests of reads in flight,
        self._waits: set[int] = set()  # and of waits.
        self._readable = gevent.get_hub().loop.io(sock.fileno(), 1)
        self._receive_bytes = RECEIVE_LEAST_BYTES
        self._finish_by_us = 0  # Deadline for sending pending answers after the peer closes; 0 until then.
        self._over = Event()
        self.ended_for = ""  # The reason for closing; empty if it needs no log line.
        self.opened_us = self._clock.read().mono_us
        self._begun_us = 0  # When the present frame began to arrive; 0 between frames.
        self._begun_bytes = 0

    # Reading.

    def run(self) -> None:
        """Read until the peer or the session ends the connection."""
        self.gate()
        self._over.wait()

    def _receive(self) -> None:
        """Read a limited amount, so that the event loop serves other connections in between. Never waits."""
        try:
            for _ in range(RECEIVED_AT_ONCE):
                # gevent's recv would wait; the native recv beneath it returns at once, even if nothing has arrived.
                wanted = self._receive_bytes
                data = self._socket._sock.recv(wanted)  # type: ignore[attr-defined]  # noqa: SLF001 - gevent's own methods wait.
                frames = self._take(data) if data else 0
                if not data or self.session.is_over:
                    self._finish()
                self._receive_bytes = RECEIVE_LEAST_BYTES if frames > FRAMES_AT_ONCE else min(2 * wanted, RECEIVE_BYTES)
                if len(data) < wanted or not self._is_reading or frames > FRAMES_AT_ONCE:
                    return
        except BlockingIOError:
            pass
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Close the connection after a failed read; raise the error again if it is a bug."""
        if isinstance(error, OSError):
            is_usual = error.errno in (errno.ECONNRESET, errno.EPIPE, errno.EBADF, errno.ETIMEDOUT)
            self.close("" if is_usual else str(error))
        elif isinstance(error, MemoryError):
            self.close("out of memory")
        else:
            self.close()
            raise error

    def _take(self, data: bytes) -> int:
        """Submit the commands that arrived; return the number of frames."""
        session = self.session
        asked = session.feed(data)
        frames = len(asked) + session.at_once
        if session.is_mid_frame or self._begun_us:
            self._note_pace(len(data), whole=bool(asked))
        if session.at_once:
            self.send(session.take_out())
            if self.is_closed:
                return 0  # The peer is gone; commands submitted now would never be followed by another `Gone`.
        if asked:
            self._submit(asked)
        self.gate()
        return frames

    def _submit(self, asked: list[Asked]) -> None:
        if not self._has_asked:
            self._has_asked = True
            self._owner.begin(self)
        for each in asked:
            if each.request in self._in_flight or each.request in self._waits:
                self.close("it used a request number twice")
                return
            if each.kind is Kind.WAIT:
                self._waits.add(each.request)
            else:
                self._in_flight[each.request] = commands = len(each.messages) or 1
                self._commands += commands
                if each.kind in _READS:
                    self._reads.add(each.request)
            self._inbox.put(each)
        self._owner.wake()

    def gate(self) -> None:
        """Read only while this connection has room for more; close it when the peer has ended and has all its answers."""
        if self.is_closed or self._finish_by_us:
            self._close_if_all_is_said()
            return
        has_room = (
            len(self._in_flight) < IN_FLIGHT_MAX
            and self._commands < COMMANDS_IN_FLIGHT_MAX
            and len(self._reads) < READS_IN_FLIGHT_MAX
            and len(self._waits) < WAITS_MAX
            and self.unsent.bytes < self._unsent_most
            and not self._is_ending
        )
        if has_room is not self._is_reading:
            self._open_gate() if has_room else self._close_gate()

    def _close_if_all_is_said(self) -> None:
        if not (self.is_closed or self._in_flight or self.unsent.bytes):
            self.close()

    def _open_gate(self) -> None:
        if self._begun_us:
            # Reading was paused, so the deadline of the frame starts again.
            self._begun_us, self._begun_bytes = self._clock.read().mono_us, 0
        self._is_reading = True
        self._readable.start(self._receive)

    def _close_gate(self) -> None:
        self._is_reading = False
        self._readable.stop()

    def stop_reading(self) -> None:
        """Take nothing more; commands already taken are still answered."""
        self._is_ending = True
        self.gate()

    def _finish(self) -> None:
        """Answer the commands that arrived before the end, if the peer still reads."""
        if not self.is_closed:
            self._close_gate()
            self._finish_by_us = self._clock.read().mono_us + round(WRITE_DEADLINE_S * SECOND_US)
            self.gate()

    # Deadlines, which the server checks once a second.

    def _note_pace(self, count: int, *, whole: bool) -> None:
        if not self.session.is_mid_frame:
            self._begun_us = 0
        elif self._begun_us == 0 or whole:
            self._begun_us, self._begun_bytes = self._clock.read().mono_us, count
        else:
            self._begun_bytes += count

    def overdue(self, now_us: int) -> str:
        """Return why the connection must end; empty if it may stay."""
        if not self._has_asked and self._is_worker and self.session.is_open and now_us - self.opened_us > JOIN_US:
            return "no worker joined"
        if self._finish_by_us:
            return "it ended, and does not read what it asked for" if now_us > self._finish_by_us else ""
        if self._begun_us == 0 or not self._is_reading:
            return ""
        age_us = now_us - self._begun_us
        if not self.session.is_open and age_us > HANDSHAKE_US:
            return "it did not finish its hello in time"
        if age_us > FRAME_US:
            return "a frame was not complete in time"
        if age_us > SLOW_AFTER_US and self._begun_bytes * SECOND_US < SLOW_BYTES_PER_S * age_us:
            return "a frame arrives too slowly"
        return ""

    # Writing.

    def answer(self, request: int, answers: list[Answer]) -> bytes:
        """Note that a request is answered; return the bytes of the answer."""
        if request in self._waits:
            self._waits.discard(request)
        else:
            self._commands -= self._in_flight.pop(request, 0)
            self._reads.discard(request)
        try:
            return self.session.answer(request, answers)
        except GivaliaError as error:  # An answer that fits no frame becomes a refusal; it must not end the server.
            return self.session.answer(request, [error] * len(answers))

    def postpone(self, request: int) -> None:
        """Note that a wait is over but answered later, even if the peer ends its side meanwhile."""
        if request in self._waits:
            self._waits.discard(request)
            self._in_flight[request] = 1
            self._commands += 1

    def send(self, data: bytes) -> None:
        """Send what the socket takes now and keep the rest; never waits."""
        if self.is_closed:
            return
        sent = 0
        if not self.unsent.bytes:
            try:
                # gevent's send would wait; the native send beneath it returns at once how much it took.
                sent = self._socket._sock.send(data)  # type: ignore[attr-defined]  # noqa: SLF001 - gevent's own methods wait.
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        if sent < len(data):
            self.unsent.keep(data[sent:] if sent else data)
        self.gate()

    def note_pace(self) -> None:
        """Note that the peer has fallen behind in reading its answers, or has read some."""
        if not (self.is_closed or self._is_worker):
            if self.unsent.is_behind:
                self._inbox.hold(self.number)
            else:
                self._inbox.release(self.number)
        self._owner.wake()

    def end_sending(self) -> None:
        """End sending and let the peer close, so that it can read its last answers; drop everything that the peer sends."""
        if self.is_closed:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(native_socket.SHUT_WR)
        self._is_ending, self._is_reading = True, False
        self._readable.stop()
        self._readable.start(self._drop)

    def _drop(self) -> None:
        try:
            is_over = not self._socket._sock.recv(RECEIVE_BYTES)  # type: ignore[attr-defined]  # noqa: SLF001 - gevent's own methods wait.
        except BlockingIOError:
            return
        except OSError:
            is_over = True
        if is_over:
            self.close()

    def leave(self) -> None:
        """Leave the connection to the parent, in a fork."""
        self.is_closed = True
        self._readable.stop()
        self.unsent.drop()
        forks.detach(self._socket.fileno())

    def close(self, why: str = "") -> None:
        """End the connection once: tell the engine, and the log if there is a reason."""
        if self.is_closed:
            return
        self.is_closed, self.ended_for = True, why
        self.unsent.drop()
        self._readable.stop()
        self._readable.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(native_socket.SHUT_RDWR)
        self._socket.close()
        self._over.set()
        self._owner.end(self)
