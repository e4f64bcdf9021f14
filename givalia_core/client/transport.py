"""The transport of a blocking client, for any number of threads or greenlets.

The transport has no thread of its own. One caller that waits for an answer reads for all: it hands each answer to its caller
and, when it has its own, yields the reading to the next. `RequestDelivery` decides what is sent when, to which server, and when
it is given up; here are the locks and the sockets. Calls that are cut short are in `interrupted`.
"""

from __future__ import annotations

import threading
import time as clock
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeVar

from givalia_core import forks
from givalia_core.client import interrupted
from givalia_core.client.blocking_socket import BlockingSocket
from givalia_core.client.delivery import Listen, RequestDelivery
from givalia_core.client.failover import Connect, Find, Rest
from givalia_core.client.pending import IN_FLIGHT, OnProgress, Pending, check_whole
from givalia_core.errors import ConnectionLost, GivaliaError
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Broken

T = TypeVar("T")

TURN_S: Final = 0.05  # How long a sender waits for room while another thread reads; that thread may leave.


class BlockingTransport:
    """Carries requests to one of several servers and their answers back; thread-safe."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self.servers = addresses, resend_s, find
        self.delivery = RequestDelivery(*self.servers)
        self.socket: BlockingSocket | None = None  # Of the present connection.
        self.lock = threading.RLock()  # Guards everything else here. A call that is cut short releases it: see `interrupted`.
        self.changed = threading.Condition(self.lock)
        self.sending = threading.RLock()  # Held while a frame is sent, so that frames do not mix.
        self.reader: int | None = None  # The thread that reads.
        self.is_receiving = False  # The thread that reads has bytes whose answers are not all handed out.
        self.sender: int | None = None  # The thread that has sent a part of a frame.
        forks.register(self)

    def after_fork(self) -> None:
        """Leave the connection and all calls under way to the parent, in a fork."""
        interrupted.by_fork(self)

    def close(self) -> None:
        """Close the connection; calls under way raise `ConnectionLost`."""
        with self.lock:
            if self.socket is not None:
                self.drop(self.socket, "the client is closed")
            self.delivery.close()
            self.changed.notify_all()

    def ask(self, request: Pending[T], on_progress: OnProgress | None = None) -> T:
        """Return the answer to one command.

        Args:
            request: The command, alone in its frame.
            on_progress: Called in this thread with each progress of the job that it waits for.

        Raises:
            GivaliaError: It was refused, its outcome is unknown, or the job ended without a result.
        """
        ((answer,),) = self.carry([request], on_progress)
        if isinstance(answer, GivaliaError):
            raise answer
        answered: T = answer
        return answered

    def several(self, requests: Iterable[Pending[Any]]) -> list[Any]:
        """Return the answers to many requests, in order; a few travel before the first is answered."""
        return [answer for part in self.carry(requests) for answer in part]

    def carry(self, requests: Iterable[Pending[Any]], on_progress: OnProgress | None = None) -> list[list[Any]]:
        """Return the answers to each request. If this is cut short, no part of the requests stays here or on the wire."""
        # RLock has no public method that tells whether this thread holds it.
        if self.lock._is_owned() or self.sending._is_owned() or self.reader == threading.get_ident():  # type: ignore[attr-defined]  # noqa: SLF001 - Python says it in no other way.
            return interrupted.carry_apart(self, requests, on_progress)
        under_way: deque[Pending[Any]] = deque()
        answers: list[list[Any]] = []
        try:
            for request in requests:
                if len(under_way) == IN_FLIGHT:
                    answers.append(self._answers(under_way[0], on_progress))
                    under_way.popleft()
                under_way.append(request)
                with self.lock:
                    self.delivery.begin(request, clock.monotonic())
                    sock = self.socket
                if sock is not None:
                    self.transmit(sock, request)
            while under_way:
                answers.append(self._answers(under_way[0], on_progress))
                under_way.popleft()
        except BaseException as error:
            interrupted.clean_up(self, under_way)
            if isinstance(error, ConnectionLost):
                check_whole(under_way, len(answers))
            raise
        return answers

    def _answers(self, request: Pending[Any], on_progress: OnProgress | None) -> list[Any]:
        """Wait for the answers to a request, reading for all while no other thread does."""
        while True:
            with self.lock:
                while not self.delivery.has_something(request, clock.monotonic()) and self.reader is not None:
                    self.changed.wait(request.left_s(clock.monotonic()))
                news, request.news = request.news, None
                if news is None and request.error is not None:
                    raise request.error
                if news is None and request.answers is not None:
                    return request.answers
                if news is None:
                    self.reader = threading.get_ident()
            if news is None:
                self._read_for_all(request)
            elif on_progress is not None:
                on_progress(*news)  # The function may be slow, and may use this client: no lock is held meanwhile.

    def _read_for_all(self, request: Pending[Any]) -> None:
        """Read until there is something for this request, connecting and sending again as often as necessary."""
        try:
            while True:
                with self.lock:
                    now_s, sock = clock.monotonic(), self.socket
                    if self.delivery.has_something(request, now_s):
                        return
                    due = self.delivery.due(now_s) if self.delivery.put_off else []
                    step = self.delivery.step(now_s, request.deadline_s)
                if not isinstance(step, Listen):
                    self._search(step)
                elif sock is not None:
                    self._listen(sock, step, due)
        finally:
            self._leave_reading()

    def _listen(self, sock: BlockingSocket, step: Listen, due: Sequence[Pending[Any]]) -> None:
        """Send the requests that are due; if none are, wait for bytes to arrive, as long as there is nothing else to do."""
        for request in due:
            self.transmit(sock, request)
        if due:
            return
        try:
            if sock.wait(step.seconds):
                self._receive(sock)
            else:
                self._look(sock)
        except Broken as error:
            self.drop(sock, str(error))

    def _receive(self, sock: BlockingSocket) -> None:
        """Read once, and hand out the answers; `is_receiving` stays True if this is cut short."""
        self.is_receiving = True
        try:
            data = sock.receive()
            if data is not None:
                with self.lock:
                    if not self.delivery.arrived(sock.connection, data, clock.monotonic()):
                        self.drop(sock, "the server stops")
                    self.changed.notify_all()
        except Broken as error:
            self.drop(sock, str(error))
        self.is_receiving = False

    def _leave_reading(self) -> None:
        with self.lock:
            if self.reader == threading.get_ident():  # In a fork, another greenlet may read by now.
                self.reader = None
                if self.is_receiving:
                    interrupted.drop_half_received(self)
            self.changed.notify_all()

    def _search(self, step: Connect | Rest) -> None:
        """Connect, and let all requests without an answer be sent next; or rest."""
        if isinstance(step, Rest):
            with self.lock:
                self.changed.notify_all()  # Some may have been given up.
                self.changed.wait_for(lambda: self.delivery.is_closed, step.seconds)
            return
        try:
            sock = BlockingSocket(*step)
        except Broken as error:
            with self.lock:
                self.delivery.not_connected(error)
                self.changed.notify_all()
            return
        with self.lock:
            if self.delivery.is_closed:
                sock.close()
                return
            now_s = clock.monotonic()
            # Keep this order, and send nothing from a local list: this call may be cut short at any step, and then the next
            # reader continues. A connection needs its socket, and the requests without a connection must be known.
            self.socket = sock
            self.delivery.put_off = dict.fromkeys(self.delivery.requests, now_s)
            self.delivery.connected(sock.connection, now_s)

    def transmit(self, sock: BlockingSocket, request: Pending[Any]) -> None:
        """Number a request and send it; the reader finds out about a connection that breaks here."""
        with self.sending:
            with self.lock:
                if self.sender is not None:  # It was cut short, has released the other lock, and has not cleaned up.
                    interrupted.drop_half_sent(self)
                self.sender = threading.get_ident()
                data = memoryview(self.delivery.load(sock.connection, request, clock.monotonic()))
            try:
                if data and (sent_bytes := sock.send(data)) < len(data):
                    self._send_rest(sock, request, data[sent_bytes:], sent_bytes)
            except Broken as error:
                self.drop(sock, str(error))
            if self.sender == threading.get_ident():
                self.sender = None

    def _send_rest(self, sock: BlockingSocket, request: Pending[Any], rest: memoryview, sent_bytes: int) -> None:
        """Send the rest of a frame; a frame that has begun must be finished, as long as it moves and its caller waits.

        Raises:
            Broken: The connection broke, or the path is dead, or the caller's time is over in the middle of the frame.
        """
        while rest:
            now_s = clock.monotonic()
            if sent_bytes:  # There was room for some bytes, so the server's TCP took some of those sent before.
                request.sent_at_s = now_s
                sock.connection.pulse.moved(now_s)
            if request.left_s(now_s) == 0:
                raise Broken("a command was not sent in time")
            self.make_room(sock, request)
            sent_bytes = sock.send(rest)
            rest = rest[sent_bytes:]

    def make_room(self, sock: BlockingSocket, request: Pending[Any]) -> None:
        """Wait until the socket takes more. Read meanwhile, unless another thread does: the server may wait for this read."""
        me = threading.get_ident()
        with self.lock:
            before = self.reader
            self.reader = before or me
        if before not in (None, me):
            sock.wait(TURN_S, to_send=True, to_read=False)
            return
        try:
            with self.lock:
                step = self.delivery.step(clock.monotonic(), request.deadline_s)
            if sock.wait(step.seconds if isinstance(step, Listen) else 0.0, to_send=True):
                self._receive(sock)
            else:
                self._look(sock)
        finally:
            if before is None:
                self._leave_reading()

    def _look(self, sock: BlockingSocket) -> None:
        """Send a ping if one is due after a silence; this needs a moment at which nothing else is being sent.

        Raises:
            Broken: The server is silent, or the path is dead.
        """
        is_free = self.sending.acquire(blocking=False)
        try:
            can_ping = is_free and self.sender is None and sock.wait(0, to_send=True, to_read=False)
            with self.lock:
                ping = self.delivery.look(sock.connection, clock.monotonic(), sock.acknowledged_s, can_ping=can_ping)
            if ping and sock.send(memoryview(ping)) < len(ping):
                raise Broken("the system has room, and takes no ping")
        finally:
            if is_free:
                self.sending.release()

    def drop(self, sock: BlockingSocket, why: str) -> None:
        """Discard a connection; unanswered requests are sent again on the next."""
        with self.lock:
            sock.close()  # First, so that nothing more is sent of requests that are then reported as not sent.
            self.delivery.drop(sock.connection, why, clock.monotonic())
            if self.socket is sock:
                self.socket = None
