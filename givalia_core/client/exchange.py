"""One exchange of commands and answers, for any number of threads or greenlets.

There is no thread of its own. Whoever waits for an answer reads for everybody: the first to come takes the reading, hands
each answer to the one it is for, and when it has its own, leaves the reading to the next. What is sent when, to whom, and
when it is given up is decided in `errands`; here are the locks and the sockets.
"""

from __future__ import annotations

import threading
import time as clock
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any, Final, TypeVar

from givalia_core import forks
from givalia_core.client import talk
from givalia_core.client.carrier import OnProgress
from givalia_core.client.errands import Connect, Errands, Find, Listen, Rest, Step
from givalia_core.client.slot import Slot, check_whole
from givalia_core.client.talk import Call
from givalia_core.client.wire import Wire
from givalia_core.errors import ConnectionLost
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Broken
from givalia_core.times import Length

T = TypeVar("T")

TURN_S: Final = 0.05  # How long one who sends waits for room while another reads, who may leave.


class Exchange:
    """Carries calls to one of several servers and their answers back; thread-safe."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self._servers = addresses, resend_s, find
        self._resend_s = resend_s
        self._errands = Errands(*self._servers)
        self._wire: Wire | None = None  # Of the present visit.
        self._lock = threading.RLock()  # Guards everything else here. A call that is cut short lets go of it: see `_clean_up`.
        self._changed = threading.Condition(self._lock)
        self._sending = threading.RLock()  # Held while a frame is sent, so that frames do not mix.
        self._reader: int | None = None  # The thread that reads.
        self._sender: int | None = None  # The thread that has sent a part of a frame.
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: another thread may have held the locks, and the connection and all calls under way are the parent's.

        A lock that this very thread holds is kept: a signal handler has forked in the middle of a call, and that goes on here.
        """
        changed, errands = self._changed, self._errands
        if not _is_mine(self._lock):
            self._lock = threading.RLock()
            self._changed = threading.Condition(self._lock)
        if not _is_mine(self._sending):
            self._sending = threading.RLock()
        self._reader = self._sender = None
        self._errands, self._wire = Errands(*self._servers), None
        self._errands.is_closed = errands.is_closed
        errands.abandon()
        if changed.acquire(blocking=False):  # Greenlets that waited are there in the child, too.
            changed.notify_all()
            changed.release()

    def close(self) -> None:
        """Close the connection; calls under way raise `ConnectionLost`."""
        with self._lock:
            if self._wire is not None:
                self._drop(self._wire, "the client is closed")
            self._errands.close()
            self._changed.notify_all()

    def ask(self, call: Call[T], timeout: Length | None = None, on_progress: OnProgress | None = None) -> T:
        """What one command is answered.

        Args:
            call: The command, alone in its frame.
            timeout: Time to wait for the end of a job; None is for ever. Other commands have the time to resend.
            on_progress: Called in this thread with each progress of the job that it waits for.

        Raises:
            GivaliaError: It was refused, its outcome is unknown, or the job ended without a result.
        """
        (answers,) = self._all_of([call], timeout, on_progress)
        return talk.only(call, answers)

    def several(self, calls: Iterable[Call[Any]]) -> list[Any]:
        """The answers to many calls, in order; a few travel before the first is answered."""
        return [answer for part in self._all_of(calls) for answer in part]

    def _all_of(
        self, calls: Iterable[Call[Any]], timeout: Length | None = None, on_progress: OnProgress | None = None
    ) -> list[list[Any]]:
        """The answers to each call; by way of another connection if this thread is in the middle of a call on this one."""
        if self._is_inside():
            return self._apart(calls, timeout, on_progress)
        return self._carried(calls, timeout, on_progress)

    def _is_inside(self) -> bool:
        """Return whether this thread is in the middle of a call, which a signal handler or a `__del__` has interrupted.

        What it has interrupted can only go on when it has returned, and holds the connection until then.
        """
        return _is_mine(self._lock) or _is_mine(self._sending) or self._reader == threading.get_ident()

    def _apart(self, calls: Iterable[Call[Any]], timeout: Length | None, on_progress: OnProgress | None) -> list[list[Any]]:
        with closing(Exchange(*self._servers)) as apart:
            apart._errands.is_closed = self._errands.is_closed
            return apart._all_of(calls, timeout, on_progress)

    def _carried(self, calls: Iterable[Call[Any]], timeout: Length | None, on_progress: OnProgress | None) -> list[list[Any]]:
        """Carry calls, and return their answers. Whatever cuts that short, nothing is left of them here or on the wire."""
        on_their_way: deque[Slot] = deque()
        answers: list[list[Any]] = []
        try:
            for call in calls:
                if len(on_their_way) == talk.IN_FLIGHT:
                    answers.append(self._finish(on_their_way[0], on_progress))
                    on_their_way.popleft()
                self._begin(call, timeout, on_their_way)
            while on_their_way:
                answers.append(self._finish(on_their_way[0], on_progress))
                on_their_way.popleft()
            return answers
        except BaseException as error:
            self._clean_up(on_their_way)
            if isinstance(error, ConnectionLost):
                check_whole(on_their_way, len(answers))
            raise

    def _clean_up(self, slots: Iterable[Slot]) -> None:
        """Release the locks and the reading that this thread holds, and forget the calls: one was cut short, at any step.

        A connection that has carried a part of a frame is of no use to anybody.
        """
        me = threading.get_ident()
        with self._lock:
            if self._sender == me:
                self._drop_half_sent()
            for slot in slots:
                self._errands.forget(slot)
            if self._reader == me:
                self._reader = None
            self._changed.notify_all()
        for lock in (self._sending, self._lock):
            while _is_mine(lock):
                lock.release()

    def _drop_half_sent(self) -> None:
        """Drop the connection: whoever sent on it was cut short. To be called with the lock held."""
        self._sender = None
        if self._wire is not None:
            self._drop(self._wire, "a call was cut short while it was sent")

    def _begin(self, call: Call[Any], timeout: Length | None, on_their_way: deque[Slot]) -> None:
        """Send a call on its way; what goes wrong with the connection is for `_finish`."""
        slot = Slot.of(call, timeout, self._resend_s, clock.monotonic())
        on_their_way.append(slot)
        with self._lock:
            self._errands.begin(slot)
            wire = self._wire
        if wire is not None:
            self._transmit(wire, slot)

    def _finish(self, slot: Slot, on_progress: OnProgress | None = None) -> list[Any]:
        """Wait for a call's answers, reading for everybody whenever nobody else does."""
        while True:
            with self._lock:
                while self._reader is not None and not self._has_something(slot):
                    self._changed.wait(slot.left(clock.monotonic()))
                self._errands.check_time(slot, clock.monotonic())
                news = slot.take_news()
                if news is None and slot.is_over:
                    return slot.result()
                if news is None:
                    self._reader = threading.get_ident()
            if news is None:
                self._read_for_all(slot)
            elif on_progress is not None:
                on_progress(*news)  # It may take its time, and use this very client: nothing is held meanwhile.

    @staticmethod
    def _has_something(slot: Slot) -> bool:
        """Whether there is something for the caller: the end, news, or that its time is over."""
        return slot.is_over or slot.news is not None or slot.left(clock.monotonic()) == 0

    def _read_for_all(self, slot: Slot) -> None:
        """Read until there is something for this slot, connecting and sending again as often as it takes."""
        try:
            while not self._has_something(slot):
                with self._lock:
                    step = self._errands.step(clock.monotonic())
                if isinstance(step, Connect):
                    self._connect(step)
                elif isinstance(step, Rest):
                    with self._lock:
                        self._changed.notify_all()  # Some may have been given up.
                        self._changed.wait_for(lambda: self._errands.is_closed, step.seconds)
                elif self._wire is not None:
                    self._listen(self._wire, slot, step)
        finally:
            self._leave_reading()

    def _leave_reading(self) -> None:
        with self._lock:
            if self._reader == threading.get_ident():  # In a fork, another greenlet may read by now.
                self._reader = None
            self._changed.notify_all()

    def _connect(self, step: Connect) -> None:
        """Connect, and send whatever has no answer."""
        try:
            wire = Wire(*step)
        except Broken as error:
            with self._lock:
                self._errands.not_connected(error)
                self._changed.notify_all()
            return
        with self._lock:
            if self._errands.is_closed:
                wire.close()
                return
            unanswered = self._errands.connected(wire.visit, clock.monotonic())
            self._wire = wire
        for slot in unanswered:
            self._transmit(wire, slot)

    def _transmit(self, wire: Wire, slot: Slot) -> None:
        """Number a call and send it; a connection that breaks here is found broken by whoever reads."""
        with self._sending:
            with self._lock:
                if self._sender is not None:  # It was cut short, has left the other lock, and has not come to clean up.
                    self._drop_half_sent()
                self._sender = threading.get_ident()
                data = self._errands.load(wire.visit, slot, clock.monotonic())
            try:
                self._put(wire, slot, memoryview(data or b""))
            except Broken as error:
                self._drop(wire, str(error))
            if self._sender == threading.get_ident():
                self._sender = None

    def _put(self, wire: Wire, slot: Slot, left: memoryview) -> None:
        """Send all of a frame; one that has begun has to be finished, as long as it moves and its caller waits.

        Raises:
            Broken: The connection is, or the path is dead, or the caller's time is over in the middle of the frame.
        """
        while left and (left := left[self._send(wire, slot, left) :]):
            if slot.left(clock.monotonic()) == 0:
                raise Broken("a command was not sent in time")
            self._make_room(wire, slot)

    def _send(self, wire: Wire, slot: Slot, data: memoryview) -> int:
        """Send what the socket takes now. What it takes of the rest of a frame shows that the server's TCP took some."""
        sent = wire.send(data)
        if sent and sent < len(data):
            slot.sent = clock.monotonic()
            wire.visit.pulse.moved(slot.sent)
        return sent

    def _make_room(self, wire: Wire, slot: Slot) -> None:
        """The socket takes no more for now. Unless somebody else reads, do so: the server may wait for just that."""
        me = threading.get_ident()
        with self._lock:
            before = self._reader
            self._reader = before or me
        if before not in (None, me):
            wire.wait(TURN_S, to_send=True, to_read=False)
            return
        try:
            with self._lock:
                step = self._errands.step(clock.monotonic())
            if wire.wait(self._until(slot, step), to_send=True):
                self._receive(wire)
            else:
                self._look(wire)
        finally:
            if before is None:
                self._leave_reading()

    @staticmethod
    def _until(slot: Slot, step: Step) -> float | None:
        """Return the seconds to wait for something to arrive: until this caller's time ends or something else is due."""
        seconds = step.seconds if isinstance(step, Listen) else 0.0
        times = [each for each in (seconds, slot.left(clock.monotonic())) if each is not None]
        return min(times, default=None)

    def _listen(self, wire: Wire, slot: Slot, step: Listen) -> None:
        """Wait for something to arrive, as long as there is nothing else to do, and see to what is then due."""
        try:
            if wire.wait(self._until(slot, step)):
                self._receive(wire)
            else:
                self._look(wire)
        except Broken as error:
            self._drop(wire, str(error))
        if self._errands.has_put_off:
            with self._lock:
                due = self._errands.due(clock.monotonic())
            for each in due:
                self._transmit(wire, each)

    def _look(self, wire: Wire) -> None:
        """Nothing has arrived: send a ping if one is due, which needs a moment at which nothing else is being sent.

        Raises:
            Broken: The server is silent, or the path is dead.
        """
        is_free = self._sending.acquire(blocking=False)
        try:
            can_ping = is_free and self._sender is None and wire.wait(0, to_send=True, to_read=False)
            with self._lock:
                ping = self._errands.look(wire.visit, clock.monotonic(), wire.acknowledged_s, can_ping=can_ping)
            if ping and wire.send(memoryview(ping)) < len(ping):
                raise Broken("the system has room, and takes no ping")
        finally:
            if is_free:
                self._sending.release()

    def _receive(self, wire: Wire) -> None:
        """Read once, and hand out the answers."""
        data = wire.receive()
        if data is None:
            return
        with self._lock:
            if not self._errands.arrived(wire.visit, data, clock.monotonic()):
                self._drop(wire, "the server stops")
            self._changed.notify_all()

    def _drop(self, wire: Wire, why: str) -> None:
        """Forget a connection that is of no use any more; unanswered calls are sent again on the next."""
        with self._lock:
            self._close(wire)  # First, so that nothing is sent any more of what is then said not to have been.
            self._errands.drop(wire.visit, why, clock.monotonic())

    def _close(self, wire: Wire) -> None:
        wire.close()
        if self._wire is wire:
            self._wire = None


def _is_mine(lock: Any) -> bool:
    """Return whether this thread holds the lock."""
    owned: bool = lock._is_owned()
    return owned
