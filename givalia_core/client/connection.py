"""One connection of a client to a server: its numbers, its requests, the server's clock and the pulse of the path.

Nothing here touches a socket.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container
from typing import Any

from givalia_core.client.pending import Pending
from givalia_core.client.server_clock import ServerClock
from givalia_core.errors import BadRequest, Busy, TooLarge
from givalia_core.protocol import codec
from givalia_core.protocol.caller import Answer, Broken, Caller, Told, refused
from givalia_core.protocol.messages import Kind, Progressed
from givalia_core.protocol.pulse import Due, Owed, Pulse

AGENT = "givalia-client"


class ClientConnection:
    """The state of one connection to a server: which requests it carries, and what the server said of itself."""

    def __init__(self) -> None:
        self.caller = Caller()
        self.commands: dict[int, Pending[Any]] = {}  # Requests that are answered at once, in the order of sending.
        self.waits: dict[int, Pending[Any]] = {}  # Requests that are answered when a job has ended.
        self.heard_at_s = 0.0  # When the server last said anything but its clock or a pong.
        self.clock = ServerClock(self.caller)
        self.pulse = Pulse()
        self.has_answered = False  # The connection has brought an answer to a request.
        self.loaded_bytes = 0  # The bytes to be sent after `hello`,
        self.taken_bytes: Callable[[], int] = lambda: sys.maxsize  # and how many of them left this process, or may have.
        self.ping_number = 0  # The number of the ping that is not answered yet; 0 for none.

    def hello(self) -> bytes:
        """Return the first bytes of the connection."""
        return self.caller.hello(AGENT) + self.clock.ask(None)

    def greet(self, data: bytes) -> bool:
        """Take what arrived before both answers to `hello` were whole; return whether they are.

        Raises:
            Broken: The server is busy, or refuses this client, or is no server.
        """
        try:
            greeting = self.caller.feed(data)
        except (BadRequest, TooLarge) as error:
            raise Broken(str(error), error) from None
        for arrived in greeting:
            if isinstance(arrived, Answer):
                if self.clock.take(arrived):
                    return True
                refusal = refused(arrived)
                if refusal is not None:
                    refusal = self.caller.explained(refusal)
                    raise Broken(str(refusal), None if isinstance(refusal, Busy) else refusal)
        return False

    def ping(self) -> bytes:
        """Return the bytes of a ping, which every server answers at once."""
        self.ping_number, data = self.caller.ask(Kind.STAT, [])
        self.loaded_bytes += len(data)
        return data

    def take_aside(self, answer: Answer, now_s: float) -> bool:
        """Take an answer to a ping or with the clock, which only shows that the path is alive; return whether it is one."""
        if answer.request == self.ping_number:
            self.ping_number = 0
            self.pulse.answered()
            return True
        is_clock = self.clock.take(answer)
        if is_clock:
            self.clock.heard(now_s)
        return is_clock

    def explained(self, answers: list[Any]) -> list[Any]:
        """Return the answers; refusals caused by versions that do not fit become `VersionMismatch`."""
        return [self.caller.explained(each) for each in answers] if BadRequest in map(type, answers) else answers

    def hear(self, told: Told, requests: Container[Pending[Any]]) -> None:
        """Keep the newest progress of each job for its caller; discard older reports that arrive together with it.

        Raises:
            Broken: The server sends what no server of this protocol sends.
        """
        if told.kind is not Kind.PROGRESSED:
            return
        for fields, _ in told.items:
            try:
                progressed: Progressed = codec.told(Progressed, fields)
            except (BadRequest, TooLarge) as error:
                raise nonsense(error) from None
            request = self.waits.get(progressed.request)
            if request is not None and request in requests:
                request.news = float(progressed.fraction), progressed.text
                request.wake()

    def quiet_s(self, now_s: float) -> float:
        """Return for how long the server owes an answer and says nothing; a wait may take any time, and does not count."""
        oldest = next(iter(self.commands.values()), None)
        return 0.0 if oldest is None else now_s - max(oldest.sent_at_s, self.heard_at_s)

    def look(self, now_s: float, owed: Owed | None, acknowledged_s: Callable[[], float], *, can_ping: bool) -> bytes:
        """Return the ping to send now, or nothing; arguments as in `RequestDelivery.look`.

        Raises:
            Broken: The path is dead.
        """
        due = self.pulse.due(now_s, owed, acknowledged_s, can_ping=can_ping)
        if due is Due.DROP:
            raise Broken("nothing comes from the server, not even an acknowledgement")
        return self.ping() if due is Due.PING else b""

    def still_sending(self, now_s: float) -> None:
        """Note that sent bytes are still leaving, so the server cannot have answered: its silence counts from here."""
        self.pulse.moved(now_s)
        for request in self.commands.values():
            request.sent_at_s = now_s


def nonsense(error: BadRequest | TooLarge) -> Broken:
    """Return the end of a connection whose server breaks the protocol."""
    return Broken(f"the server sends what no server sends: {error}")
