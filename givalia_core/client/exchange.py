"""One exchange of commands and answers, for any number of threads or greenlets.

There is no thread of its own. Whoever waits for an answer reads for everybody: the first to come takes the reading, hands
each answer to the one it is for, and when it has its own, leaves the reading to the next. A lost connection is made anew and
everything unanswered is sent again with the same ids, so nothing happens twice; after a minute without an answer the outcome
is unknown and says so.

Of several servers one is talked to at a time. When it cannot be reached, is lost, is silent or stops, the next is asked at
once, and only when all have failed is there a pause. Servers that share a store know each other's ids, so a command that went
to two of them happens once.
"""

from __future__ import annotations

import random
import threading
import time as clock
from collections.abc import Sequence
from typing import Any, Final

from givalia_core.client import talk
from givalia_core.client.talk import Call
from givalia_core.client.wire import Wire
from givalia_core.errors import ConnectionLost, GivaliaError, WaitTimeout
from givalia_core.protocol.addresses import Address, Round
from givalia_core.protocol.caller import Answer, retry_after_s

AGENT: Final = "givalia-client"
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
LAST_S: Final = 0.5  # What is left when a command that was refused is sent no more, for its answer might come too late.
SILENT_S: Final = 10.0  # With commands unanswered; then another server is asked, if there is one.


class Slot:
    """One call on its way: what was sent, and the answers once they are there."""

    __slots__ = ("answers", "call", "deadline", "error", "refusal", "refusals", "sent", "unsent_since", "wire")

    def __init__(self, call: Call, deadline: float | None) -> None:
        self.call = call
        self.deadline = deadline
        self.answers: list[Any] | None = None
        self.error: GivaliaError | None = None
        self.refusal: list[Any] | None = None  # What a server that stops has answered, until the next has been asked.
        self.refusals = 0
        self.wire: Wire | None = None  # The connection that has carried it.
        self.sent = 0.0
        self.unsent_since = clock.monotonic()  # Since when no connection has carried it.

    @property
    def is_over(self) -> bool:
        return self.answers is not None or self.error is not None

    @property
    def is_refused(self) -> bool:
        """Whether it was not done, and is not under way: servers that stop have refused it, and it was not sent since."""
        return self.refusal is not None and not self.call.waits

    def left(self) -> float | None:
        """Seconds until the caller will wait no longer; None if for ever."""
        return None if self.deadline is None else max(self.deadline - clock.monotonic(), 0.0)

    def take(self, answers: list[Any]) -> None:
        """Be over: an answer for each command, or one error for them all."""
        if len(answers) == len(self.call.items):
            self.answers = answers
        else:
            self.error = answers[0]

    def run_out(self) -> None:
        """Be over because the caller will wait no longer."""
        if self.call.waits:
            self.error = WaitTimeout("the job has not ended in the time given; it goes on")
        else:
            self.give_up("no answer in time")

    def give_up(self, why: str) -> None:
        """Be over without an answer, unless a refusal is one."""
        if self.is_refused and self.refusal is not None:
            self.take(self.refusal)
        else:
            what = "the job is not touched" if self.call.waits else "whether the command took effect is unknown"
            self.error = ConnectionLost(f"{why}; {what}")


class Exchange:
    """Carries calls to one of several servers and their answers back; thread-safe."""

    def __init__(self, addresses: Sequence[Address], resend_s: float) -> None:
        self._resend_s = resend_s
        self._silent_s = min(SILENT_S, resend_s / len(addresses)) if len(addresses) > 1 else resend_s
        self._changed = threading.Condition()  # Guards everything below.
        self._sending = threading.Lock()  # Held while a frame is sent, so that frames do not mix.
        self._is_reading = False
        self._calls: dict[Slot, None] = {}  # Every call without its answers, in order.
        self._numbered: dict[int, Slot] = {}  # Those that the present connection has carried.
        self._put_off: dict[Slot, float] = {}  # Those that a busy server wants to hear again, and when.
        self._servers = Round(addresses)
        self._must_rest = False  # Whether every server has failed by now.
        self._why = "not tried yet"
        self._wire: Wire | None = None
        self._has_answered = False  # Whether the present connection has brought an answer.
        self._is_closed = False

    def close(self) -> None:
        """Close the connection; calls under way raise `ConnectionLost`."""
        with self._changed:
            self._is_closed = True
            if self._wire is not None:
                self._drop(self._wire, "the client is closed")
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
                    if not slot.is_over and not self._is_closed and slot.left() == 0:
                        slot.run_out()
                    if slot.error is not None:
                        raise slot.error
                    if slot.answers is not None:
                        return slot.answers
                    self._check_open()
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
                self._put_off.pop(slot, None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConnectionLost("the client is closed; whether the command took effect is unknown")

    def _read_for_all(self, slot: Slot) -> None:
        """Read until this slot is over or out of time, connecting and sending again as often as it takes."""
        retry_s = RETRY_FIRST_S
        while not slot.is_over and slot.left() != 0:
            wire = self._wire
            if wire is None and self._must_rest:
                self._rest(slot, retry_s)
                retry_s = min(retry_s * 2, RETRY_MAX_S)
            elif wire is None:
                self._connect()
            else:
                try:
                    if not wire.wait(self._look_again_s(slot)):
                        self._check_heard(wire)
                    elif self._receive(wire):
                        retry_s = RETRY_FIRST_S
                except (OSError, ValueError, GivaliaError) as error:
                    self._drop(wire, str(error))
                self._ask_again(wire)

    def _rest(self, slot: Slot, retry_s: float) -> None:
        """Every server has failed: wait before connecting again, or give up."""
        self._check_open()
        self._must_rest = False
        if clock.monotonic() + retry_s - slot.unsent_since > self._resend_s:
            slot.give_up(f"no server at {self._servers} ({self._why})")
            return
        left = slot.left()
        if left is not None and slot.is_refused:
            left -= LAST_S
            if left <= 0:
                slot.run_out()
                return
        pause_s = random.uniform(retry_s / 2, retry_s)
        clock.sleep(pause_s if left is None else min(pause_s, left))

    def _connect(self) -> None:
        """Connect to the server whose turn it is, and send again whatever has no answer.

        Raises:
            GivaliaError: It refuses this client, and no other server is left that might take it.
        """
        self._check_open()
        try:
            wire = Wire(self._servers.address, AGENT, self._resend_s / len(self._servers))
        except (OSError, GivaliaError) as error:
            with self._changed:
                self._why = str(error)
                self._must_rest = self._servers.failed()
                if self._must_rest and isinstance(error, GivaliaError):
                    self._must_rest = False
                    raise
            return
        with self._changed:
            if self._is_closed:
                wire.close()
            self._check_open()
            self._wire, self._numbered, self._has_answered = wire, {}, False
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
                self._put_off.pop(slot, None)
                slot.refusal, slot.sent = None, clock.monotonic()
            try:
                left = memoryview(data)
                while left := left[wire.send(left) :]:
                    slot.sent = clock.monotonic()
                    self._make_room(wire)
            except (OSError, ValueError) as error:
                self._drop(wire, str(error))

    def _make_room(self, wire: Wire) -> None:
        """The socket takes no more for now. Unless somebody else reads, do so: the server may wait for just that."""
        with self._changed:
            somebody_reads = self._is_reading
            self._is_reading = True
        try:
            is_ready = wire.wait(0.05 if somebody_reads else self._silent_s, to_send=True)
            if not somebody_reads:
                if is_ready:
                    self._receive(wire)
                else:
                    self._check_heard(wire)
        finally:
            if not somebody_reads:
                with self._changed:
                    self._is_reading = False
                    self._changed.notify_all()

    # A server that is busy, and one that is silent.

    def _look_again_s(self, slot: Slot) -> float | None:
        """How long whoever reads for this slot may sleep over it; None if for ever."""
        times = [slot.left()]
        if self._servers.has_others:
            times.append(self._silent_s)
        if self._put_off:
            with self._changed:
                times += [max(at - clock.monotonic(), 0.0) for at in self._put_off.values()]
        return min((seconds for seconds in times if seconds is not None), default=None)

    def _ask_again(self, wire: Wire) -> None:
        """Send again what was put off until now."""
        if self._put_off:
            now = clock.monotonic()
            with self._changed:
                due = [slot for slot, at in self._put_off.items() if at <= now]
            for slot in due:
                self._transmit(wire, slot)

    def _check_heard(self, wire: Wire) -> None:
        """A server that answers no command is given up for another; what waits for a job's end is no sign of that.

        Raises:
            TimeoutError: It has been silent for too long, and there is another.
        """
        if not self._servers.has_others:
            return
        with self._changed:
            sent = next((slot.sent for slot in self._numbered.values() if not slot.call.waits), None)
        if sent is not None and clock.monotonic() - max(sent, wire.heard) >= self._silent_s:
            raise TimeoutError("the server answers nothing")

    # What arrives.

    def _receive(self, wire: Wire) -> bool:
        """Read once, and hand out the answers; whether any was more than the word that the server stops."""
        data = wire.receive()
        if data is None:
            return False
        arrived = wire.caller.feed(data)
        with self._changed:
            was_served = [self._hand_out(answer) for answer in arrived if isinstance(answer, Answer)]
            if was_served and wire is self._wire:
                self._has_answered = True
            if any(was_served):
                self._servers.worked()
            if not all(was_served):
                self._drop(wire, "the server stops")
            self._changed.notify_all()
        return any(was_served)

    def _hand_out(self, answer: Answer) -> bool:
        """Give a call its answers, or keep it to be sent again; False if that is to be at another server."""
        slot = self._numbered.pop(answer.request, None)
        if slot is None or slot not in self._calls:
            return True  # Nobody waits for it any more.
        answers = talk.read_answers(slot.call, answer.items)
        if self._servers.has_others and talk.ask_next(answers):
            slot.refusal, slot.refusals = answers, slot.refusals + 1
            self._must_rest = self._must_rest or slot.refusals % len(self._servers) == 0
            return False
        busy = talk.ask_later(slot.call, answers)
        if busy is None:
            slot.take(answers)
        else:
            slot.wire = None
            self._put_off[slot] = clock.monotonic() + retry_after_s(busy)
        return True

    def _drop(self, wire: Wire, why: str) -> None:
        """Forget a connection that is of no use any more; unanswered calls are sent again on the next."""
        with self._changed:
            wire.close()
            if self._wire is wire:
                self._wire, self._numbered, self._why = None, {}, why
                if self._has_answered:
                    self._servers.move_on()
                else:
                    self._must_rest = self._servers.failed()
                now = clock.monotonic()
                for slot in self._calls:
                    slot.unsent_since = now
