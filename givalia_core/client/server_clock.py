"""The clock of the server at the other end of one connection, so that it knows how long we wait for an answer.

The clocks of two machines are never compared: the server tells its own, and from then on we count on ours. An answer that was
held up makes us take our commands for older than they are, never for younger. Nothing here touches a socket.
"""

from __future__ import annotations

from typing import Final

from givalia_core.protocol.caller import Answer, Caller
from givalia_core.protocol.messages import OK, Clock, Kind, item

FITS: Final = 0.9  # Of the time that we wait: how much must be left of what the server was told before, not to be told anew.
DRIFT: Final = 2e-4  # By how much our clock may run faster than the server's.


class ServerClock:
    """The clock of one connection's server, as far as it is known here: never ahead of the truth.

    A server of an earlier version does not tell it; then nothing is said of how long we wait.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._asked: set[int] = set()  # The numbers of the frames that were not answered yet.
        self._told_us: int | None = None  # What was told last,
        self._told = 0.0  # and when that was here; an answer that was held up makes us take our commands for older.
        self._until = 0.0  # Until when the server takes the commands that are sent now, on our clock.

    def ask(self, until_us: int | None) -> bytes:
        """The frame that asks for the clock, and says until when what follows it may be decided."""
        number, data = self._caller.ask(Kind.CLOCK, [item(Clock(until_us))])
        self._asked.add(number)
        return data

    def take(self, answer: Answer) -> bool:
        """Take in an answer if it tells the clock; whether it is one. `heard` then says when it arrived."""
        if answer.request not in self._asked:
            return False
        self._asked.discard(answer.request)
        fields = answer.items[0][0] if answer.items else []
        self._told_us = fields[1] if fields[:1] == [OK] and len(fields) > 1 and type(fields[1]) is int else None
        return True

    def heard(self, now: float) -> None:
        """Note that the last input taken in has arrived."""
        self._told = now

    def limit(self, now: float, patience_s: float) -> bytes:
        """What to send before a command whose answer is waited for so long: nothing, while what was said before still fits."""
        if self._told_us is None or FITS * patience_s <= self._until - now <= patience_s:
            return b""
        self._until = now + patience_s
        passed_s = (now - self._told) * (1 - DRIFT)
        return self.ask(max(self._told_us + round((passed_s + patience_s) * 1e6), 0))
