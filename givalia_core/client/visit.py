"""One connection of a client to a server: its numbers, its calls, the server's clock and the pulse of the path.

Nothing here touches a socket.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from givalia_core.client.server_clock import ServerClock
from givalia_core.client.slot import Slot
from givalia_core.errors import BadRequest, Busy, TooLarge
from givalia_core.protocol.caller import Answer, Broken, Caller, refused
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.pulse import PING_COMMAND_S, PING_WAIT_S, Owed, Pulse

AGENT = "givalia-client"


class Visit:
    """One connection to a server: its numbers, and which calls it has carried."""

    def __init__(self) -> None:
        self.caller = Caller()
        self.commands: dict[int, Slot] = {}  # Those that are answered at once, in the order in which they were sent.
        self.waits: dict[int, Slot] = {}  # Those that are answered when a job has ended.
        self.heard = 0.0  # When the server last said anything but its clock, or that it is there.
        self.clock = ServerClock(self.caller)
        self.pulse = Pulse()
        self.has_answered = False  # Whether it has brought an answer.
        self.loaded_bytes = 0  # What was to be sent behind `hello`,
        self.taken_bytes: Callable[[], int] = lambda: sys.maxsize  # and how much of that has left this process, or may have.
        self._ping = 0  # The number of the ping that was not answered yet.

    def hello(self) -> bytes:
        """Return the bytes that are sent first on the connection."""
        return self.caller.hello(AGENT) + self.clock.ask(None)

    def greet(self, data: bytes) -> bool:
        """Take what arrived before both answers to `hello` were whole; whether they are.

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

    def load(self, slot: Slot, limit: bytes, now: float) -> bytes:
        """Number a call and give the bytes to send, which leave in the order of these calls."""
        number, data = self.caller.ask(slot.call.kind, slot.call.items)
        (self.waits if slot.call.waits else self.commands)[number] = slot
        data = limit + data
        self.loaded_bytes += len(data)
        slot.visit, slot.ends_at, slot.sent = self, self.loaded_bytes, now
        return data

    def ping(self) -> bytes:
        """Return the bytes of a ping, which every server answers at once."""
        self._ping, data = self.caller.ask(Kind.STAT, [])
        self.loaded_bytes += len(data)
        return data

    def owed(self) -> Owed | None:
        """Return since when the server owes an answer, and after how long a silence it is pinged; None if it owes none.

        A wait alone is pinged less often, so that it costs next to nothing.
        """
        oldest = next(iter(self.commands.values()), None)
        if oldest is not None:
            return Owed(oldest.sent, PING_COMMAND_S)
        oldest = next(iter(self.waits.values()), None)
        return None if oldest is None else Owed(oldest.sent, PING_WAIT_S)

    def is_aside(self, answer: Answer, now: float) -> bool:
        """Take in an answer that only shows that the path is alive, to a ping or with the clock; return whether it is one."""
        if answer.request == self._ping:
            self._ping = 0
            self.pulse.answered()
            return True
        is_clock = self.clock.take(answer)
        if is_clock:
            self.clock.heard(now)
        return is_clock
