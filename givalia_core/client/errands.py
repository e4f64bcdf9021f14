"""A client's calls under way, without a socket, a thread or a clock: what is sent, to whom, and when it is given up.

A connection is a visit to one server. When a server cannot be reached, is lost, is silent or stops, the next is visited at
once, and only when all have failed is there a rest. Everything unanswered is then sent again with the same ids, so nothing
happens twice: servers that share a store know each other's ids. After a minute without an answer the outcome is unknown and
says so. A command is sent with the time until which we wait for its answer on this connection, on the server's own clock, so
that a copy of it which was held up on the way is not done after we have heard of another. A path that has died without a word
is found by its pulse (`protocol.pulse`), and is no reason to give a call up.

Whoever moves the bytes, with threads or in an event loop, asks `step` what comes next, does it, and says what came of it.
Nothing here may be entered by two at once, but for `close`, which a signal handler may call at any time. All times are seconds
on one monotonic clock, which the caller reads.
"""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from givalia_core.client import talk
from givalia_core.client.slot import Slot
from givalia_core.client.visit import Visit
from givalia_core.errors import BadRequest, ConnectionLost, TooLarge
from givalia_core.protocol import messages
from givalia_core.protocol.addresses import Address, Round
from givalia_core.protocol.caller import Answer, Broken, Told, retry_after_s
from givalia_core.protocol.messages import CHANGING, Kind, Progressed
from givalia_core.protocol.pulse import Due

CONNECT_LEAST_S: Final = 0.01
CONNECT_MOST_S: Final = 5.0
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
LAST_S: Final = 0.5  # What is left when a command that was refused is sent no more, for its answer might come too late.
SILENT_S: Final = 10.0  # With commands unanswered; then another server is asked, if there is one.


class Connect(NamedTuple):
    """Connect to this server and greet it, each within so many seconds; then say `connected` or `not_connected`."""

    address: Address
    patience_s: float


class Rest(NamedTuple):
    """Do nothing for so many seconds: every server has failed."""

    seconds: float


class Listen(NamedTuple):
    """Say `arrived` when something has, and after so many seconds (None: never) ask `look` and `due`."""

    seconds: float | None


Find: TypeAlias = Callable[[], Sequence[Address]]
Step: TypeAlias = Connect | Rest | Listen


class Errands:
    """Every call of one client, and the server that it talks to."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self.calls: dict[Slot, None] = {}  # Every call that is not over, in order.
        self.visit: Visit | None = None
        self.is_closed = False
        self._resend_s = resend_s
        self._put_off: dict[Slot, float] = {}  # Those that a busy server wants to hear again, and when.
        self._servers = Round(addresses)
        self._find = find  # Where the servers are by now, if they may have moved.
        self._retry_s = RETRY_FIRST_S
        self._must_rest = False  # Whether every server has failed by now.
        self._why = ""

    @property
    def silent_s(self) -> float:
        """How long a server may answer no command before another is asked, if there is another."""
        return min(SILENT_S, self._resend_s / len(self._servers)) if self._servers.has_others else self._resend_s

    # The calls.

    def begin(self, slot: Slot) -> None:
        """Take in a call that is to be sent.

        Raises:
            ConnectionLost: The client is closed.
        """
        if self.is_closed:
            raise ConnectionLost("the client is closed; the command was not sent", sent=False)
        if not self.calls:
            self._retry_s = RETRY_FIRST_S
        self.calls[slot] = None

    def check_time(self, slot: Slot, now: float) -> None:
        """End a call whose caller will wait no longer."""
        if not slot.is_over and slot.left(now) == 0:
            was_lost = self.visit is None or slot.was_sent
            slot.run_out(self._why if was_lost else "")
            self.forget(slot)

    def forget(self, slot: Slot) -> None:
        """Nobody waits for this call any more: an answer that is still to come is of no use."""
        self.calls.pop(slot, None)
        self._put_off.pop(slot, None)

    def end_all(self, why: str) -> None:
        """End every call; what became of those that were sent is unknown."""
        for slot in list(self.calls):
            slot.end(why)
        self._settle()

    def abandon(self) -> None:
        """In a fork: end every call, for it is the parent's, which goes on with it; nothing is sent here."""
        self.visit = None
        for slot in list(self.calls):
            slot.was_sent = True
        self.end_all("the process was forked, and the call is its parent's")

    def close(self) -> None:
        """End every call, and take no other. The connection is closed before, so that nothing more is sent."""
        self.is_closed = True
        self.end_all("the client is closed")

    def _settle(self) -> None:
        """Let go of the calls that are over, and tell their callers."""
        for slot in [slot for slot in list(self.calls) if slot.is_over]:
            self.forget(slot)
            slot.wake()

    # What comes next.

    def step(self, now: float) -> Step:
        """What is to be done next for the calls that are under way."""
        if self.visit is not None:
            return Listen(self._look_again_s(self.visit, now))
        if self._must_rest:
            return Rest(self._rest(now))
        if not self._why:
            self._why = f"{self._servers.address} has not answered yet"
        return Connect(self._servers.address, self._connect_patience_s(now))

    def _connect_patience_s(self, now: float) -> float:
        """Return how long to try one server: each has its share of the time, and none more than any call has left."""
        lefts = [min(slot.unsent_since + self._resend_s, slot.deadline or math.inf) - now for slot in list(self.calls)]
        patience_s = min(self._resend_s / len(self._servers), CONNECT_MOST_S, max(lefts, default=CONNECT_MOST_S))
        return max(patience_s, CONNECT_LEAST_S)

    def _rest(self, now: float) -> float:
        """Every server has failed: how long to wait before the next is tried, having ended those that wait no longer."""
        self._must_rest = False
        if self._find is not None:
            self._servers.replace(self._find())
        retry_s, self._retry_s = self._retry_s, min(self._retry_s * 2, RETRY_MAX_S)
        pause_s = random.uniform(retry_s / 2, retry_s)
        for slot in list(self.calls):
            left = slot.left(now)
            if left is not None and slot.is_refused:
                left = max(left - LAST_S, 0.0)
            if now + retry_s - slot.unsent_since > self._resend_s:
                slot.give_up(f"no server at {self._servers} ({self._why})")
            elif left == 0:
                slot.run_out(self._why)
            elif left is not None:
                pause_s = min(pause_s, left)
        self._settle()
        return pause_s if self.calls else 0.0

    def not_connected(self, error: OSError | Broken) -> None:
        """A server could not be reached, or refuses this client: then every call ends so, unless another may take it."""
        self._why = str(error) or "timed out"
        self._must_rest = self._servers.failed()
        refusal = error.refusal if isinstance(error, Broken) else None
        if self._must_rest and refusal is not None:
            self._must_rest = False
            for slot in list(self.calls):
                slot.error = copy.copy(refusal)  # Each is raised in a place of its own.
            self._settle()

    def connected(self, visit: Visit, now: float) -> list[Slot]:
        """A server has been reached and greeted; the calls to be sent to it."""
        visit.heard = now
        visit.clock.heard(now)
        visit.pulse.moved(now)
        self.visit = visit
        return list(self.calls)

    def load(self, visit: Visit, slot: Slot, now: float) -> bytes | None:
        """Number a call and give the bytes to send; None if it is over, was sent already, or the visit is."""
        if visit is not self.visit or slot not in self.calls or slot.visit is visit:
            return None
        self._put_off.pop(slot, None)
        slot.refusal = None
        return visit.load(slot, self._limit(visit, slot, now), now)

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
        """A connection is closed, for it is of no use any more; unanswered calls are to be sent on the next."""
        if self.visit is visit:
            self.visit, self._why = None, why
            if visit.has_answered:
                self._servers.move_on()
            else:
                self._must_rest = self._servers.failed()
            taken_bytes = visit.taken_bytes() if self.calls else 0
            for slot in list(self.calls):
                slot.lost(taken_bytes, now)

    # A server that is busy, one that is silent, and a path that is dead.

    def _look_again_s(self, visit: Visit, now: float) -> float | None:
        """When there is something to do though nothing arrives; None if never: for nobody, no server is hurried."""
        if not self.calls:
            return None
        times: list[float] = []
        pulse_s = visit.pulse.look_again_s(now, visit.owed())
        if pulse_s is not None:
            times.append(pulse_s)
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

    def look(self, visit: Visit, now: float, acknowledged_s: Callable[[], float], *, can_ping: bool) -> bytes:
        """Nothing has arrived for as long as `step` said: the ping to send now, or nothing.

        Args:
            visit: The connection.
            now: The present.
            acknowledged_s: As `tcp.acknowledged_s`; asked only if it matters.
            can_ping: Whether what is returned is sent at once.

        Raises:
            Broken: The path is dead; or the server has answered no command for too long, and there is another.
        """
        quiet_since = self._quiet_since(visit)
        if self._servers.has_others and quiet_since is not None and now - quiet_since >= self.silent_s:
            raise Broken("the server answers nothing")
        if not self.calls:
            return b""
        due = visit.pulse.due(now, visit.owed(), acknowledged_s, can_ping=can_ping)
        if due is Due.DROP:
            raise Broken("nothing comes from the server, not even an acknowledgement")
        return visit.ping() if due is Due.PING else b""

    def still_sending(self, visit: Visit, now: float) -> None:
        """What was sent is still leaving, so the server cannot have answered: its silence is counted from here."""
        visit.pulse.moved(now)
        for slot in visit.commands.values():
            slot.sent = now

    @property
    def has_put_off(self) -> bool:
        """Whether calls are to be sent again later though the visit goes on."""
        return bool(self._put_off)

    def due(self, now: float) -> list[Slot]:
        """The calls that were put off until now, to be sent again."""
        return [slot for slot, at in list(self._put_off.items()) if at <= now]

    # What arrives.

    def arrived(self, visit: Visit, data: bytes, now: float) -> bool:
        """Take the bytes that arrived, and hand out what is whole; False if the visit is to be dropped, for the server stops.

        Raises:
            Broken: The server sends what no server of this protocol sends. Drop the visit.
        """
        was_served: list[bool] = []
        with _from_server():
            arrived = visit.caller.feed(data)
        visit.pulse.moved(now)
        # A server that tells its clock or answers a ping may do nothing else: that is no sign of being served.
        others = [each for each in arrived if not (isinstance(each, Answer) and visit.is_aside(each, now))]
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
        return all(was_served)

    def _hand_out(self, visit: Visit, answer: Answer, now: float) -> bool:
        """Give a call its answers, or keep it to be sent again; False if that is to be at another server."""
        slot = visit.commands.pop(answer.request, None) or visit.waits.pop(answer.request, None)
        if slot is None or slot not in self.calls or slot.visit is not visit:
            return True  # Nobody waits for it any more.
        answers = talk.read_answers(slot.call, answer.items)
        if BadRequest in map(type, answers):
            answers = [visit.caller.explained(each) for each in answers]
        if self._servers.has_others and talk.ask_next(answers):
            slot.refused()
            slot.refusal, slot.refusals = answers, slot.refusals + 1
            self._must_rest = self._must_rest or slot.refusals % len(self._servers) == 0
            return False
        busy = talk.ask_later(slot.call, answers, may_be_done=slot.may_be_done)
        if busy is None:
            slot.take(answers)
            self.forget(slot)
            slot.wake()
        else:
            slot.refused()
            slot.lates += talk.is_late(busy)
            self._put_off[slot] = now + retry_after_s(busy)
        return True

    def _hear(self, visit: Visit, told: Told) -> None:
        """Keep the newest progress for whoever waits; of what has arrived at once, nobody misses more than that."""
        if told.kind is not Kind.PROGRESSED:
            return
        for fields, _ in told.items:
            with _from_server():
                progressed: Progressed = messages.told(Progressed, fields)
            slot = visit.waits.get(progressed.request)
            if slot is not None and slot in self.calls:
                slot.news = float(progressed.fraction), progressed.text
                slot.wake()


@contextlib.contextmanager
def _from_server() -> Iterator[None]:
    """Raise `Broken` for a message that the protocol does not allow a server to send."""
    try:
        yield
    except (BadRequest, TooLarge) as error:
        raise Broken(f"the server sends what no server sends: {error}") from None
