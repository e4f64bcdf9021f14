"""One exchange of commands and answers, for any number of threads or greenlets.

There is no thread of its own. Whoever waits for an answer reads for everybody: the first to come takes the reading, hands
each answer to the one it is for, and when it has its own, leaves the reading to the next. A lost connection is made anew and
everything unanswered is sent again with the same ids, so nothing happens twice; after a minute without an answer the outcome
is unknown and says so.
"""

from __future__ import annotations

import random
import threading
import time as clock
from typing import Any, Final

from givalia_core.client import talk
from givalia_core.client.talk import Call
from givalia_core.client.wire import Wire
from givalia_core.errors import ConnectionLost, GivaliaError, WaitTimeout
from givalia_core.protocol.caller import Answer, refused

AGENT: Final = "givalia-client"
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0


class Slot:
    """One call on its way: what was sent, and the answers once they are there."""

    __slots__ = ("answers", "call", "deadline", "error", "unsent_since", "wire")

    def __init__(self, call: Call, deadline: float | None) -> None:
        self.call = call
        self.deadline = deadline
        self.answers: list[Any] | None = None
        self.error: GivaliaError | None = None
        self.wire: Wire | None = None  # The connection that has carried it.
        self.unsent_since = clock.monotonic()  # Since when no connection has carried it.

    @property
    def is_over(self) -> bool:
        return self.answers is not None or self.error is not None

    def left(self) -> float | None:
        """Seconds until the caller will wait no longer; None if for ever."""
        return None if self.deadline is None else max(self.deadline - clock.monotonic(), 0.0)

    def give_up(self) -> GivaliaError:
        """What a caller is told that has waited in vain."""
        if self.call.waits:
            return WaitTimeout("the job has not ended in the time given; it goes on")
        return ConnectionLost("no answer in time; whether the command took effect is unknown")


class Exchange:
    """Carries calls to one server and their answers back; thread-safe."""

    def __init__(self, address: tuple[str, int], resend_s: float) -> None:
        self._address = address
        self._resend_s = resend_s
        self._changed = threading.Condition()  # Guards everything below.
        self._sending = threading.Lock()  # Held while a frame is sent, so that frames do not mix.
        self._is_reading = False
        self._calls: dict[Slot, None] = {}  # Every call without its answers, in order.
        self._numbered: dict[int, Slot] = {}  # Those that the present connection has carried.
        self._wire: Wire | None = None
        self._is_closed = False

    def close(self) -> None:
        """Close the connection; calls under way raise `ConnectionLost`."""
        with self._changed:
            self._is_closed = True
            if self._wire is not None:
                self._drop(self._wire)
            self._changed.notify_all()

    def begin(self, call: Call, timeout: float | None) -> Slot:
        """Send a call on its way; what goes wrong with the connection is for `finish`."""
        if timeout is None and not call.waits:
            timeout = self._resend_s
        slot = Slot(call, None if timeout is None else clock.monotonic() + timeout)
        with self._changed:
            self._check_open()
            self._calls[slot] = None
            wire = self._wire
        if wire is not None:
            self._transmit(wire, slot)
        return slot

    def finish(self, slot: Slot) -> list[Any]:
        """Wait for a call's answers, reading for everybody whenever nobody else does."""
        try:
            while True:
                with self._changed:
                    while not slot.is_over and self._is_reading and slot.left() != 0:
                        self._changed.wait(slot.left())
                    if slot.error is not None:
                        raise slot.error
                    if slot.answers is not None:
                        return slot.answers
                    self._check_open()
                    if slot.left() == 0:
                        raise slot.give_up()
                    self._is_reading = True
                try:
                    self._read_for_all(slot)
                finally:
                    with self._changed:
                        self._is_reading = False
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._calls.pop(slot, None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConnectionLost("the client is closed; whether the command took effect is unknown")

    def _read_for_all(self, slot: Slot) -> None:
        """Read until this slot is over or out of time, connecting and sending again as often as it takes."""
        retry_s = RETRY_FIRST_S
        while not slot.is_over and slot.left() != 0:
            wire = self._wire
            if wire is None:
                try:
                    self._connect()
                except OSError as error:
                    self._pause(slot, error, retry_s)
                    retry_s = min(retry_s * 2, RETRY_MAX_S)
                continue
            retry_s = RETRY_FIRST_S
            try:
                if wire.wait(slot.left()):
                    self._receive(wire)
            except (OSError, ValueError, GivaliaError):
                self._drop(wire)

    def _pause(self, slot: Slot, error: OSError, retry_s: float) -> None:
        """Wait before connecting again, or give up."""
        self._check_open()
        if clock.monotonic() + retry_s - slot.unsent_since > self._resend_s:
            host, port = self._address
            what = "the job is not touched" if slot.call.waits else "whether the command took effect is unknown"
            raise ConnectionLost(f"no server at {host}:{port} ({error}); {what}")
        left = slot.left()
        pause_s = random.uniform(retry_s / 2, retry_s)
        clock.sleep(pause_s if left is None else min(pause_s, left))

    def _connect(self) -> None:
        """Connect, and send again whatever has no answer."""
        self._check_open()
        wire = Wire(self._address, AGENT, self._resend_s)
        with self._changed:
            if self._is_closed:
                wire.close()
            self._check_open()
            self._wire, self._numbered = wire, {}
            unanswered = list(self._calls)
        for slot in unanswered:
            self._transmit(wire, slot)

    def _transmit(self, wire: Wire, slot: Slot) -> None:
        """Number a call and send it; a connection that breaks here is found broken by whoever reads."""
        with self._sending:
            with self._changed:
                if wire is not self._wire or slot.is_over or slot.wire is wire:
                    return
                number, data = wire.caller.ask(slot.call.kind, slot.call.items)
                self._numbered[number], slot.wire = slot, wire
            try:
                left = memoryview(data)
                while left := left[wire.send(left) :]:
                    self._make_room(wire)
            except (OSError, ValueError):
                self._drop(wire)

    def _make_room(self, wire: Wire) -> None:
        """The socket takes no more for now. Unless somebody else reads, do so: the server may wait for just that."""
        with self._changed:
            somebody_reads = self._is_reading
            self._is_reading = True
        try:
            if wire.wait(0.05 if somebody_reads else self._resend_s, to_send=True) and not somebody_reads:
                self._receive(wire)
        finally:
            if not somebody_reads:
                with self._changed:
                    self._is_reading = False
                    self._changed.notify_all()

    def _receive(self, wire: Wire) -> None:
        """Read once, and hand out the answers."""
        data = wire.receive()
        if data is None:
            return
        arrived = wire.caller.feed(data)
        with self._changed:
            for answer in arrived:
                if isinstance(answer, Answer):
                    self._hand_out(answer)
            self._changed.notify_all()

    def _hand_out(self, answer: Answer) -> None:
        slot = self._numbered.pop(answer.request, None)
        if slot is None:
            return
        if len(answer.items) == len(slot.call.items):
            slot.answers = [talk.read_answer(slot.call, fields, payload) for fields, payload in answer.items]
        else:
            slot.error = refused(answer) or GivaliaError("the server answered another number of commands than it was sent")

    def _drop(self, wire: Wire) -> None:
        """Forget a connection that is of no use any more; unanswered calls are sent again on the next."""
        with self._changed:
            wire.close()
            if self._wire is wire:
                self._wire, self._numbered = None, {}
                now = clock.monotonic()
                for slot in self._calls:
                    slot.unsent_since = now
