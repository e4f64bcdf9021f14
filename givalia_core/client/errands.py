"""A client's calls under way, without a socket, a thread or a clock: what is sent, to whom, and when it is given up.

A connection is a visit to one server. When a server cannot be reached, is lost, is silent or stops, the next is visited at
once, and only when all have failed is there a rest. Everything unanswered is then sent again with the same ids, so nothing
happens twice: servers that share a store know each other's ids. After a minute without an answer the outcome is unknown and
says so. A command is sent with the time until which we wait for its answer on this connection, on the server's own clock, so
that a copy of it which was held up on the way is not done after we have heard of another.

Whoever moves the bytes, with threads or in an event loop, asks `step` what comes next, does it, and says what came of it.
Nothing here may be entered by two at once. All times are seconds on one monotonic clock, which the caller reads.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.client import talk
from givalia_core.client.server_clock import ServerClock
from givalia_core.client.talk import Call
from givalia_core.errors import Busy, ConnectionLost, GivaliaError, WaitTimeout
from givalia_core.protocol.addresses import Address, Round
from givalia_core.protocol.caller import Answer, Caller, Told, refused, retry_after_s
from givalia_core.protocol.messages import CHANGING, Kind, Progressed

AGENT: Final = "givalia-client"
CONNECT_LEAST_S: Final = 0.01
CONNECT_MOST_S: Final = 5.0
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
LAST_S: Final = 0.5  # What is left when a command that was refused is sent no more, for its answer might come too late.
SILENT_S: Final = 10.0  # With commands unanswered; then another server is asked, if there is one.


class Slot:
    """One call on its way: what was sent, and the answers once they are there."""

    __slots__ = (
        "answers",
        "call",
        "deadline",
        "error",
        "lates",
        "may_be_done",
        "news",
        "refusal",
        "refusals",
        "sent",
        "unsent_since",
        "visit",
        "wake",
    )

    def __init__(self, call: Call[Any], deadline: float | None, now: float, wake: Callable[[], None] = lambda: None) -> None:
        self.call = call
        self.deadline = deadline  # When the caller will wait no longer; None if never.
        self.wake = wake  # Called when there is something for the caller: it is over, or has news.
        self.answers: list[Any] | None = None
        self.error: GivaliaError | None = None
        self.news: tuple[float, str] | None = None  # The newest progress that the caller has not taken.
        self.refusal: list[Any] | None = None  # What a server that stops has answered, until the next has been asked.
        self.refusals = 0
        self.lates = 0  # How often a server has refused it because it came too late.
        self.may_be_done = False  # Whether a connection has carried it and was lost before the answer.
        self.visit: Visit | None = None  # The connection that has carried it.
        self.sent = 0.0
        self.unsent_since = now  # Since when no connection has carried it.

    @classmethod
    def of(
        cls, call: Call[Any], timeout: float | None, resend_s: float, now: float, wake: Callable[[], None] = lambda: None
    ) -> Slot:
        """A call whose caller will wait so many seconds; only a wait is without end."""
        if timeout is None and not call.waits:
            timeout = resend_s
        return cls(call, None if timeout is None else now + timeout, now, wake)

    @property
    def is_over(self) -> bool:
        return self.answers is not None or self.error is not None

    @property
    def is_refused(self) -> bool:
        """Whether it was not done, and is not under way: servers that stop have refused it, and it was not sent since."""
        return self.refusal is not None and not self.call.waits and not self.may_be_done

    def left(self, now: float) -> float | None:
        """Seconds until the caller will wait no longer; None if for ever."""
        return None if self.deadline is None else max(self.deadline - now, 0.0)

    def take_news(self) -> tuple[float, str] | None:
        """What the caller has not heard of yet, once."""
        news, self.news = self.news, None
        return news

    def result(self) -> list[Any]:
        """The answers of a call that is over.

        Raises:
            GivaliaError: There are none.
        """
        if self.error is not None:
            raise self.error
        assert self.answers is not None
        return self.answers

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


class Visit:
    """One connection to a server: its numbers, and which calls it has carried."""

    def __init__(self) -> None:
        self.caller = Caller()
        self.commands: dict[int, Slot] = {}  # Those that are answered at once, in the order in which they were sent.
        self.waits: dict[int, Slot] = {}  # Those that are answered when a job has ended.
        self.heard = 0.0  # When the server last said anything but its clock.
        self.clock = ServerClock(self.caller)
        self.has_answered = False  # Whether it has brought an answer.

    def hello(self) -> bytes:
        """What is sent first."""
        return self.caller.hello(AGENT) + self.clock.ask(None)

    def greet(self, data: bytes) -> bool:
        """Take what arrived before both answers to `hello` were whole; whether they are.

        Raises:
            OSError: The server is busy; try again.
            GivaliaError: The server refuses this client; trying again is of no use.
        """
        for arrived in self.caller.feed(data):
            if isinstance(arrived, Answer):
                if self.clock.take(arrived):
                    return True
                error = refused(arrived)
                if isinstance(error, Busy):
                    raise ConnectionRefusedError(str(error))
                if error is not None:
                    raise error
        return False


class Connect(NamedTuple):
    """Connect to this server and greet it, each within so many seconds; then say `connected` or `not_connected`."""

    address: Address
    patience_s: float


class Rest(NamedTuple):
    """Do nothing for so many seconds: every server has failed."""

    seconds: float


class Listen(NamedTuple):
    """Say `arrived` when something has, and after so many seconds (None: never) ask `check_heard` and `due`."""

    seconds: float | None


Step: TypeAlias = Connect | Rest | Listen


class Errands:
    """Every call of one client, and the server that it talks to."""

    def __init__(self, addresses: Sequence[Address], resend_s: float) -> None:
        self.calls: dict[Slot, None] = {}  # Every call that is not over, in order.
        self.visit: Visit | None = None
        self.is_closed = False
        self._resend_s = resend_s
        self.silent_s = min(SILENT_S, resend_s / len(addresses)) if len(addresses) > 1 else resend_s
        self._put_off: dict[Slot, float] = {}  # Those that a busy server wants to hear again, and when.
        self._servers = Round(addresses)
        self._retry_s = RETRY_FIRST_S
        self._must_rest = False  # Whether every server has failed by now.
        self._why = "not tried yet"

    # The calls.

    def begin(self, slot: Slot) -> None:
        """Take in a call that is to be sent.

        Raises:
            ConnectionLost: The client is closed.
        """
        if self.is_closed:
            raise ConnectionLost("the client is closed; the command was not sent")
        if not self.calls:
            self._retry_s = RETRY_FIRST_S
        self.calls[slot] = None

    def check_time(self, slot: Slot, now: float) -> None:
        """End a call whose caller will wait no longer."""
        if not slot.is_over and slot.left(now) == 0:
            slot.run_out()
            self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Nobody waits for this call any more: an answer that is still to come is of no use."""
        self.calls.pop(slot, None)
        self._put_off.pop(slot, None)

    def end_all(self, why: str) -> None:
        """End every call; what became of them is unknown."""
        for slot in self.calls:
            slot.error = ConnectionLost(f"{why}; whether the command took effect is unknown")
        self._settle()

    def abandon(self, why: str) -> None:
        """End every call of the process before a fork; nothing is sent."""
        self.visit = None
        self.end_all(why)

    def close(self) -> None:
        """End every call, and take no other."""
        self.is_closed = True
        self.end_all("the client is closed")

    def _settle(self) -> None:
        """Let go of the calls that are over, and tell their callers."""
        for slot in [slot for slot in self.calls if slot.is_over]:
            self.forget(slot)
            slot.wake()

    # What comes next.

    def step(self, now: float) -> Step:
        """What is to be done next for the calls that are under way."""
        if self.visit is not None:
            return Listen(self._look_again_s(self.visit, now))
        if self._must_rest:
            return Rest(self._rest(now))
        patience_s = self._resend_s / len(self._servers)
        return Connect(self._servers.address, min(max(patience_s, CONNECT_LEAST_S), CONNECT_MOST_S))

    def _rest(self, now: float) -> float:
        """Every server has failed: how long to wait before the next is tried, having ended those that wait no longer."""
        self._must_rest = False
        retry_s, self._retry_s = self._retry_s, min(self._retry_s * 2, RETRY_MAX_S)
        pause_s = random.uniform(retry_s / 2, retry_s)
        for slot in self.calls:
            left = slot.left(now)
            if left is not None and slot.is_refused:
                left = max(left - LAST_S, 0.0)
            if now + retry_s - slot.unsent_since > self._resend_s:
                slot.give_up(f"no server at {self._servers} ({self._why})")
            elif left == 0:
                slot.run_out()
            elif left is not None:
                pause_s = min(pause_s, left)
        self._settle()
        return pause_s if self.calls else 0.0

    def not_connected(self, error: OSError | GivaliaError) -> None:
        """A server could not be reached, or refuses this client: then every call ends so, unless another may take it."""
        self._why = str(error) or "timed out"
        self._must_rest = self._servers.failed()
        if self._must_rest and isinstance(error, GivaliaError):
            self._must_rest = False
            for slot in self.calls:
                slot.error = copy.copy(error)  # Each is raised in a place of its own.
            self._settle()

    def connected(self, visit: Visit, now: float) -> list[Slot]:
        """A server has been reached and greeted; the calls to be sent to it."""
        visit.heard = now
        visit.clock.heard(now)
        self.visit = visit
        return list(self.calls)

    def load(self, visit: Visit, slot: Slot, now: float) -> bytes | None:
        """Number a call and give the bytes to send; None if it is over, was sent already, or the visit is."""
        if visit is not self.visit or slot not in self.calls or slot.visit is visit:
            return None
        limit = self._limit(visit, slot, now)
        number, data = visit.caller.ask(slot.call.kind, slot.call.items)
        (visit.waits if slot.call.waits else visit.commands)[number] = slot
        self._put_off.pop(slot, None)
        slot.may_be_done = slot.may_be_done or (slot.visit is not None and slot.call.kind in CHANGING)
        slot.visit, slot.refusal, slot.sent = visit, None, now
        return limit + data

    def _limit(self, visit: Visit, slot: Slot, now: float) -> bytes:
        """Return the frame that tells the server how long this client waits here: until it asks another server, or gives up.

        One that came too late is given longer, for its way may be long; the servers' memory of answers covers that.
        """
        if slot.call.kind not in CHANGING:
            return b""
        patience_s = self.silent_s * 2**slot.lates
        left = slot.left(now)
        return visit.clock.limit(now, patience_s if left is None else min(patience_s, left))

    def drop(self, visit: Visit, why: str, now: float) -> None:
        """A connection is of no use any more; unanswered calls are to be sent on the next."""
        if self.visit is visit:
            self.visit, self._why = None, why
            if visit.has_answered:
                self._servers.move_on()
            else:
                self._must_rest = self._servers.failed()
            for slot in self.calls:
                slot.unsent_since = now

    # A server that is busy, and one that is silent.

    def _look_again_s(self, visit: Visit, now: float) -> float | None:
        """When there is something to do though nothing arrives; None if never."""
        times: list[float] = []
        if self._servers.has_others:
            quiet_since = self._quiet_since(visit)
            times.append(self.silent_s - (0.0 if quiet_since is None else now - quiet_since))
        if self._put_off:
            times.append(min(self._put_off.values()) - now)
        return max(min(times), 0.0) if times else None

    @staticmethod
    def _quiet_since(visit: Visit) -> float | None:
        """Since when the server owes an answer and says nothing; what waits for a job's end is no sign of that."""
        oldest = next(iter(visit.commands.values()), None)
        return None if oldest is None else max(oldest.sent, visit.heard)

    def check_heard(self, visit: Visit, now: float) -> None:
        """A server that answers no command is given up for another.

        Raises:
            TimeoutError: It has been silent for too long, and there is another.
        """
        quiet_since = self._quiet_since(visit)
        if self._servers.has_others and quiet_since is not None and now - quiet_since >= self.silent_s:
            raise TimeoutError("the server answers nothing")

    def still_sending(self, visit: Visit, now: float) -> None:
        """What was sent is still leaving, so the server cannot have answered: its silence is counted from here."""
        for slot in visit.commands.values():
            slot.sent = now

    @property
    def has_put_off(self) -> bool:
        """Whether calls are to be sent again later though the visit goes on."""
        return bool(self._put_off)

    def due(self, now: float) -> list[Slot]:
        """The calls that were put off until now, to be sent again."""
        return [slot for slot, at in self._put_off.items() if at <= now]

    # What arrives.

    def arrived(self, visit: Visit, data: bytes, now: float) -> bool:
        """Take the bytes that arrived, and hand out what is whole; False if the visit is over, for the server stops.

        Raises:
            GivaliaError, ValueError: The server sends what no server of this protocol sends. Drop the visit.
        """
        was_served: list[bool] = []
        arrived = visit.caller.feed(data)
        # A server that tells its clock may do nothing else: that is no sign of being served.
        others = [each for each in arrived if not (isinstance(each, Answer) and visit.clock.take(each))]
        if len(others) < len(arrived):
            visit.clock.heard(now)
        if others or not arrived:
            visit.heard = now
        for each in others:
            if isinstance(each, Answer):
                was_served.append(self._hand_out(visit, each, now))
            else:
                self._hear(visit, each)
        if was_served and visit is self.visit:
            visit.has_answered = True
        if any(was_served):
            self._servers.worked()
            self._retry_s = RETRY_FIRST_S
        if not all(was_served):
            self.drop(visit, "the server stops", now)
        return all(was_served)

    def _hand_out(self, visit: Visit, answer: Answer, now: float) -> bool:
        """Give a call its answers, or keep it to be sent again; False if that is to be at another server."""
        slot = visit.commands.pop(answer.request, None) or visit.waits.pop(answer.request, None)
        if slot is None or slot not in self.calls or slot.visit is not visit:
            return True  # Nobody waits for it any more.
        answers = talk.read_answers(slot.call, answer.items)
        if self._servers.has_others and talk.ask_next(answers):
            slot.visit = None
            slot.refusal, slot.refusals = answers, slot.refusals + 1
            self._must_rest = self._must_rest or slot.refusals % len(self._servers) == 0
            return False
        busy = talk.ask_later(slot.call, answers, may_be_done=slot.may_be_done)
        if busy is None:
            slot.take(answers)
            self.forget(slot)
            slot.wake()
        else:
            slot.visit = None
            slot.lates += talk.is_late(busy)
            self._put_off[slot] = now + retry_after_s(busy)
        return True

    def _hear(self, visit: Visit, told: Told) -> None:
        """Keep the newest progress for whoever waits; of what has arrived at once, nobody misses more than that."""
        if told.kind is not Kind.PROGRESSED:
            return
        for fields, _ in told.items:
            progressed = Progressed(*fields)
            slot = visit.waits.get(progressed.request)
            if slot is not None and slot in self.calls:
                slot.news = float(progressed.fraction), progressed.text
                slot.wake()
