"""A client's requests under way, without a socket, a thread or a clock: what is sent, when it is sent again or given up.

Requests that are unanswered when a connection is lost are sent again on the next with the same ids, so nothing happens twice:
servers that share a store know each other's ids. After a minute without an answer the outcome is unknown, and the error says
so. A command is sent with the time until which we wait for its answer on this connection, on the server's own clock, so that
a delayed copy of it does not run after we have the answer to another copy. The pulse (`protocol.pulse`) finds a path that died
silently, which is no reason to give up a request.

The transport, with threads or in an event loop, asks `step` what comes next, does it, and reports the outcome. Two callers
never enter at once, except `close`, which a signal handler may call at any time. All times are seconds on one monotonic clock,
which the caller reads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, NamedTuple, TypeAlias

from givalia_core.client import refusals
from givalia_core.client.connection import ClientConnection, nonsense
from givalia_core.client.failover import Connect, Failover, Find, Rest
from givalia_core.client.pending import FOREVER_S, Pending
from givalia_core.client.server_clock import FITS
from givalia_core.errors import BadRequest, ConnectionLost, GivaliaError, TooLarge
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Answer, Broken, Told
from givalia_core.protocol.codec import UnreadableAnswer, read_answer
from givalia_core.protocol.messages import CHANGING
from givalia_core.protocol.pulse import LATE_S, PING_COMMAND_S, PING_WAIT_S, Owed


class Listen(NamedTuple):
    """Call `arrived` when bytes have arrived; after so many seconds (None: never) call `look` and `due`."""

    seconds: float | None


Step: TypeAlias = Connect | Rest | Listen


class RequestDelivery:
    """Every request of one client that is not over, and the connection that carries them."""

    def __init__(self, addresses: Sequence[Address], resend_s: float, find: Find | None = None) -> None:
        self.requests: dict[Pending[Any], None] = {}  # In the order in which they began.
        self.connection: ClientConnection | None = None
        self.is_closed = False
        self.put_off: dict[Pending[Any], float] = {}  # Requests that the present connection carries later, and when.
        self.failover = Failover(addresses, resend_s, find)
        self._resend_s = resend_s

    def begin(self, request: Pending[Any], now_s: float) -> None:
        """Take a request to send; raise `ConnectionLost` if the client is closed."""
        if self.is_closed:
            raise ConnectionLost("the client is closed; the command was not sent", sent=False)
        if not self.requests and self.connection is not None:
            self.connection.pulse.look_at = inf  # No look was due while there were no requests.
        if self.failover.has_failed and not self.requests:
            self.failover.begin()
        request.unsent_since_s = now_s
        if request.timeout_s is not None:
            request.deadline_s = None if request.timeout_s >= FOREVER_S else now_s + request.timeout_s
        elif not request.waits:
            request.deadline_s = now_s + self._resend_s
        self.requests[request] = None

    def has_something(self, request: Pending[Any], now_s: float) -> bool:
        """Return whether there is something for the caller: the end or news. End the request if its caller's time is over."""
        if request.answers is not None or request.error is not None or request.news is not None:
            return True
        if request.deadline_s is None or now_s < request.deadline_s:
            return False
        was_lost = self.connection is None or request.was_sent
        request.run_out(self.failover.why if was_lost else "")
        self.forget(request)
        return True

    def forget(self, request: Pending[Any]) -> None:
        """Forget a request whose caller is gone: a later answer is of no use."""
        self.requests.pop(request, None)
        self.put_off.pop(request, None)

    def end_all(self, why: str) -> None:
        """End every request; the outcome of those that were sent is unknown."""
        for request in list(self.requests):
            request.end(why)
        self._settle()

    def abandon(self) -> None:
        """End every request, in a fork: the parent continues with it, and nothing is sent here."""
        self.connection = None
        for request in list(self.requests):
            request.was_sent = True
        self.end_all("the process was forked, and the call is its parent's")

    def close(self) -> None:
        """End every request, and take no other. The connection is closed before, so that nothing more is sent."""
        self.is_closed = True
        self.end_all("the client is closed")

    def _settle(self) -> None:
        """Forget the requests that are over, and wake their callers."""
        for request in [request for request in list(self.requests) if request.is_over]:
            self.forget(request)
            request.wake()

    # The next step.

    def step(self, now_s: float, deadline_s: float | None = None) -> Step:
        """Return the next step for all requests; no wait is longer than `deadline_s`, the deadline of the caller."""
        connection, ends_s = self.connection, deadline_s
        if connection is None:
            return self._search(now_s)
        if self.requests and (connection.commands or connection.waits):  # Without a request no server is pinged.
            is_soon = connection.commands or connection.pulse.is_leaving
            look_at_s = now_s + (PING_COMMAND_S if is_soon else PING_WAIT_S)
            if now_s <= connection.pulse.look_at + LATE_S:  # Else this process was suspended, which `look` must notice.
                connection.pulse.look_at = look_at_s
            ends_s = look_at_s if ends_s is None or look_at_s < ends_s else ends_s
        if self.requests and (self.failover.has_others or self.put_off):
            ends_s = self._sooner(connection, ends_s, now_s)
        return Listen(None if ends_s is None else max(ends_s - now_s, 0.0))

    def _sooner(self, connection: ClientConnection, ends_s: float | None, now_s: float) -> float | None:
        """Return when to check a server that may be silent, or requests that were put off, if that is sooner."""
        times_s = [] if ends_s is None else [ends_s]
        if self.failover.has_others:
            times_s.append(now_s + self.failover.silent_s - connection.quiet_s(now_s))
        if self.put_off:
            times_s += [at_s for at_s in list(self.put_off.values()) if at_s > now_s]  # The others are sent first.
        return min(times_s, default=None)

    def _search(self, now_s: float) -> Step:
        if not self.failover.must_rest:
            return self.failover.connect(self.requests, now_s)
        pause_s = self.failover.rest(self.requests, now_s)
        self._settle()
        return Rest(pause_s if self.requests else 0.0)

    def not_connected(self, error: OSError | Broken) -> None:
        """Note that a server could not be reached or refuses this client; a refusal ends every request if all have failed."""
        self.failover.not_connected(str(error) or "timed out")
        refusal = error.refusal if isinstance(error, Broken) else None
        if self.failover.must_rest and refusal is not None:
            self.failover.must_rest = False
            for request in list(self.requests):
                request.error = copy.copy(refusal)  # Each copy is raised in a different place.
            self._settle()

    def connected(self, connection: ClientConnection, now_s: float) -> list[Pending[Any]]:
        """Note that a server was reached and greeted; return the requests to send to it."""
        connection.heard_at_s = now_s
        connection.clock.heard(now_s)
        connection.pulse.moved(now_s)
        self.connection = connection
        return list(self.requests)

    def load(self, connection: ClientConnection, request: Pending[Any], now_s: float) -> bytes:
        """Number a request and return its bytes, which leave in the order of these calls; none if they must not leave."""
        if connection is self.connection:
            self.put_off.pop(request, None)
        if connection is not self.connection or request not in self.requests or request.connection is connection:
            return b""  # The connection or the request is over, or the request was sent already.
        request.refusal, limit = None, b""
        if request.kind in CHANGING:
            # Until we ask another server, or give up. A command that came too late gets longer, since its path may be slow.
            patience_s = min(self.failover.silent_s * 2**request.lates, max((request.deadline_s or inf) - now_s, 0.0))
            if not FITS * patience_s <= connection.clock.until_s - now_s <= patience_s:
                limit = connection.clock.limit(now_s, patience_s)
        number, data = connection.caller.ask(request.kind, request.items)
        (connection.waits if request.waits else connection.commands)[number] = request
        connection.loaded_bytes += len(limit) + len(data)
        request.connection, request.ends_at_byte, request.sent_at_s = connection, connection.loaded_bytes, now_s
        return limit + data

    def drop(self, connection: ClientConnection, why: str, now_s: float) -> None:
        """Note that a useless connection is closed; unanswered requests are sent on the next."""
        if self.connection is connection:
            self.connection = None
            self.failover.lost(why, has_answered=connection.has_answered)
            taken_bytes = connection.taken_bytes() if self.requests else 0
            for request in list(self.requests):
                request.lost(taken_bytes, now_s)

    # Busy servers, silent servers and dead paths.

    def look(self, connection: ClientConnection, now_s: float, acknowledged_s: Callable[[], float], *, can_ping: bool) -> bytes:
        """Return the ping to send now, or nothing; call this when nothing has arrived for as long as `step` said.

        `acknowledged_s` is called only if it matters. `can_ping`: the ping that is returned is sent at once.

        Raises:
            Broken: The path is dead; or the server has answered no command for too long, and there is another.
        """
        if self.failover.has_others and connection.quiet_s(now_s) >= self.failover.silent_s:
            raise Broken("the server answers nothing")
        return connection.look(now_s, _owed(connection), acknowledged_s, can_ping=can_ping) if self.requests else b""

    def due(self, now_s: float) -> list[Pending[Any]]:
        """Return the requests that were put off until now, to send on the present connection; none without a connection."""
        if self.connection is None:
            return []
        return [request for request, at_s in list(self.put_off.items()) if at_s <= now_s]

    # Arriving bytes.

    def arrived(self, connection: ClientConnection, data: bytes, now_s: float) -> bool:
        """Take the bytes that arrived, and hand out the answers; return False if the server stops: drop the connection then.

        Raises:
            Broken: The server sends what no server of this protocol sends. Drop the connection.
        """
        try:
            arrived = connection.caller.feed(data)
        except (BadRequest, TooLarge) as error:
            raise nonsense(error) from None
        connection.pulse.moved_at = now_s
        if not arrived:
            connection.heard_at_s = now_s
        served = [self._take(connection, each, now_s) for each in arrived]
        if self.failover.has_failed and True in served:
            self.failover.worked()
        return False not in served

    def _take(self, connection: ClientConnection, arrived: Answer | Told, now_s: float) -> bool | None:
        """Take a frame of the server; return whether the server has served a request, None if the frame answers none."""
        if isinstance(arrived, Told):
            connection.heard_at_s = now_s
            connection.hear(arrived, self.requests)
            return None
        # A server that tells its clock or answers a ping may do nothing else: such an answer is no sign of service.
        if arrived.request == connection.ping_number or arrived.request in connection.clock.asked:
            connection.take_aside(arrived, now_s)
            return None
        connection.heard_at_s = now_s
        connection.has_answered = connection.has_answered or connection is self.connection
        return self._hand_out(connection, arrived, now_s)

    def _hand_out(self, connection: ClientConnection, answer: Answer, now_s: float) -> bool:
        """Give a request its answers, or keep it to send it again; return False if another server must get it."""
        request = connection.commands.pop(answer.request, None) or connection.waits.pop(answer.request, None)
        if request is None or request not in self.requests or request.connection is not connection:
            return True  # Its caller is gone.
        answers = read_answers(request, answer.items)
        if any(isinstance(each, GivaliaError) for each in answers):
            answers = connection.explained(answers)
            if refusals.is_kept(request, answers, self.failover, self.put_off, now_s):
                return request in self.put_off
        if len(answers) == len(request.items):
            request.answers = answers
        else:  # One error for them all.
            request.error = answers[0]
        self.requests.pop(request, None)
        request.wake()
        return True


def read_answers(request: Pending[Any], items: list[tuple[list[Any], bytes]]) -> list[Any]:
    """Return a value or an error (not raised) for each command of a frame, or one error for them all; else raise `Broken`."""
    answers: list[Any] = []
    for fields, payload in items:
        if not fields or type(fields[0]) is not str:
            raise Broken("the server gives an answer without a code")
        try:
            answer = read_answer(request.kind, fields, payload)
            answers.append(answer if isinstance(answer, GivaliaError) else request.read(answer))
        except GivaliaError as ended:
            answers.append(ended)
        except UnreadableAnswer as error:
            raise Broken(str(error)) from None
    if len(answers) != len(request.items) and not (len(answers) == 1 and isinstance(answers[0], GivaliaError)):
        raise Broken(f"the server gives {len(answers)} answers to {len(request.items)} commands")
    return answers


def _owed(connection: ClientConnection) -> Owed | None:
    """Return since when the server owes an answer, and the silence after which we ping it; None if it owes none.

    A wait alone is pinged less often, so that it costs next to nothing.
    """
    for requests, ping_after_s in ((connection.commands, PING_COMMAND_S), (connection.waits, PING_WAIT_S)):
        oldest = next(iter(requests.values()), None)
        if oldest is not None:
            return Owed(oldest.sent_at_s, ping_after_s)
    return None
