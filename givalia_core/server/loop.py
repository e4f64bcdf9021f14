"""The queue loop: takes the inputs that arrived, has them decided and stored, and hands on the answers.

One greenlet runs the queue loop. Between two turns the event loop of the process polls every socket, timer and signal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import gevent
from gevent.event import Event

from givalia_core.clock import SECOND_US, Clock, Now, Timekeeper
from givalia_core.engine import turn
from givalia_core.engine.desk import BusyFor
from givalia_core.engine.questions import ALL_INFO
from givalia_core.engine.records import Input, Reply
from givalia_core.engine.turn import Engine
from givalia_core.errors import StoreAway
from givalia_core.protocol.asked import Asked
from givalia_core.server import outage
from givalia_core.server.connections import Connections
from givalia_core.server.delivery import Delivery
from givalia_core.server.inbox import COMMANDS_PER_TURN, Inbox
from givalia_core.store.base import Store

POLL_S: Final = 0.0001
NOBODY: Final[frozenset[int]] = frozenset()
SLOW_TURN_US: Final = SECOND_US
SLOW_WORDS: Final = "the store takes over a second to sync; hold back"
MAKE_ROOM_US: Final = SECOND_US // 10  # How often we search for stalled connections while commands wait for room.
_MONOTONIC: Final = 1
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC


class _Span(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Setting(ctypes.Structure):
    _fields_ = [("interval", _Span), ("first", _Span)]


class Alarm:
    """Lets one greenlet wait for an event or for a time, whichever comes first.

    The timers of the event loop are as coarse as its poll, which counts milliseconds. Linux has timers that are read like a
    socket, to the microsecond; elsewhere the timer of the event loop must do.
    """

    def __init__(self, event: Event) -> None:
        """Wait for this event; nothing is opened before `open`."""
        self._event = event
        self._fd = -1
        self._watcher: Any = None
        self._rings_ns = 0  # When the timer rings, on the monotonic clock; 0 if it has rung.

    def open(self) -> None:
        """Open the timer, in the thread whose event loop it serves."""
        if not sys.platform.startswith("linux"):
            return
        self._system = ctypes.CDLL(None, use_errno=True)
        self._fd = self._system.timerfd_create(_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            self._setting = _Setting()
            self._watcher = gevent.get_hub().loop.io(self._fd, 1)
            self._watcher.start(self._ring)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # The timer was set again after it rang.
            os.read(self._fd, 8)
            self._rings_ns = 0
        self._event.set()

    def wait(self, us: int) -> None:
        """Return when the event is set or when `us` microseconds have passed, perhaps sooner."""
        if self._fd < 0:
            self._event.wait(us / SECOND_US)
            return
        now_ns = time.monotonic_ns()
        rings_ns = now_ns + max(us, 1) * 1_000
        # A timer left from a wait that the event ended is kept if it rings in time: cheaper under load than setting it again.
        if not now_ns < self._rings_ns <= rings_ns:
            first = self._setting.first
            first.seconds, first.nanoseconds = divmod(rings_ns - now_ns, SECOND_US * 1_000)
            if self._system.timerfd_settime(self._fd, 0, ctypes.byref(self._setting), None) != 0:
                self._event.wait(us / SECOND_US)
                return
            self._rings_ns = rings_ns
        self._event.wait()

    def close(self) -> None:
        """Close the timer; safe to call twice."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Loop:
    """Takes turns until it is asked to stop and nothing is left to decide.

    Args:
        engine: Decides the inputs.
        store: Keeps the jobs.
        timer: The time of this store.
        clock: The time of this machine.
        inbox: The inputs that have arrived.
        connections: The connections that sent them.
        delivery: Takes the effects.
        describe: Returns the server's own part of `info`.
        wake: Set when an input has arrived.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        timer: Timekeeper,
        clock: Clock,
        inbox: Inbox,
        connections: Connections,
        delivery: Delivery,
        describe: Callable[[], dict[str, Any]],
        wake: Event,
    ) -> None:
        self.outage = outage.Outage()
        self.alarm = Alarm(wake)
        self.round_us = 0
        """The beginning of the newest turn, on the monotonic clock."""
        self.slow_turns = 0
        self.is_stopping = False
        self._engine, self._store, self._timer, self._clock = engine, store, timer, clock
        self._inbox, self._connections, self._delivery, self._wake = inbox, connections, delivery, wake
        self._describe = describe

    def run(self) -> None:
        """Take turns; return when the loop is stopping and nothing is left to decide."""
        while not self.is_stopping or self._inbox or self._engine.questions.has_work:
            self._wake.clear()
            self._turn()

    def _turn(self) -> None:
        engine, store, clock, connections = self._engine, self._store, self._clock, self._connections
        now = self._timer.now(clock.read())
        self.round_us = now.mono_us
        unread = connections.unread
        if unread.bytes or self._inbox.short:
            connections.make_room()
        inputs = self._inbox.take(unread.most_bytes - unread.bytes)
        engine.desk.clogged = connections.clogged() if unread.bytes else NOBODY
        self.outage.turn_since_us = now.mono_us
        try:
            self._delivery.deliver(turn.turn(engine, store, self._timer, inputs, clock), now)
            store.tidy()
            took_us = clock.read().mono_us - now.mono_us
            if took_us > SLOW_TURN_US or BusyFor.SYNCS in engine.desk.busy:
                self.note_pace(took_us, inputs)
            if engine.questions.lines:
                self._walk(now)
        except StoreAway as error:
            self._wait_for_store(error, now)
        else:
            self.outage.turn_since_us = None
            if self.outage.away_since_us is not None:
                self.outage.end()
            self._rest(is_loaded=len(inputs) > 1)

    def _walk(self, now: Now) -> None:
        """Continue with the questions whose answers take a walk."""
        if ALL_INFO in self._engine.questions.lines:
            self._engine.desk.about = self._describe()
        self._delivery.deliver(turn.walk(self._engine, self._store, self._timer, self._clock), now)

    def _rest(self, *, is_loaded: bool) -> None:
        """Let the event loop read connections; return when there is something to do."""
        questions = self._engine.questions
        if self._inbox.queues or is_loaded or (questions.lines and questions.has_work):
            # A sleep of 0 would only run callbacks that are ready. This sleep lets the event loop poll every socket, timer
            # and signal, so that a flood on some starves none.
            gevent.sleep(POLL_S)
            return
        wait_us = self._engine.wake_in_us(self._timer.now(self._clock.read()))
        if self._inbox.short:
            wait_us = min(wait_us, MAKE_ROOM_US)
        if wait_us > 0:
            self.alarm.wait(wait_us)
        else:
            gevent.sleep(0)

    def note_pace(self, turn_us: int, inputs: Sequence[Input]) -> None:
        """Tell producers to hold back if a turn took over a second: the disk is slower than the input.

        A large frame that is alone in its turn says nothing about the disk; a small one says nothing about producers.
        """
        is_slow = turn_us > SLOW_TURN_US
        if is_slow and not is_large(inputs):
            self.slow_turns += 1
        if len(inputs) != 1:
            self._engine.desk.note_busy(BusyFor.SYNCS, SLOW_WORDS if is_slow else "")

    def _wait_for_store(self, error: StoreAway, now: Now) -> None:
        """Wait before the next try of an absent store; if its absence lasts, tell clients to come later."""
        retry_s = self.outage.fail_turn(error, now.mono_us)
        if self.outage.lasts(self._clock.read().mono_us):
            self.put_off(self._engine.again.put_off(outage.PUT_OFF))
        gevent.sleep(retry_s)

    def put_off_stuck(self, now_us: int) -> None:
        """Tell clients to come again if a turn has waited for the store for too long."""
        if self.outage.is_stuck(now_us):
            self.put_off(self._inbox.take_out(outage.PUT_OFF))

    def put_off(self, refused: Iterable[Asked]) -> None:
        """Tell clients to come again when the store is back."""
        now = self._timer.now(self._clock.read())
        self._delivery.deliver([Reply(asked.conn, asked.request, [outage.BUSY]) for asked in refused], now)


def is_large(inputs: Sequence[Input]) -> bool:
    """Return whether these inputs are one frame of many commands."""
    return len(inputs) == 1 and isinstance(inputs[0], Asked) and len(inputs[0].messages) > COMMANDS_PER_TURN
