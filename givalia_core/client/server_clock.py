"""The clock of the server at the other end of one connection, so that the server knows how long we wait for an answer.

The clocks of two machines are never compared: the server tells its own, and from then on we count on ours. An answer that was
held up makes us take our commands for older than they are, never for younger. Nothing here touches a socket.
"""

from __future__ import annotations

import contextlib
from typing import Final

from givalia_core.protocol.answers import Unreadable, Uptime, decode
from givalia_core.protocol.caller import Answer, Caller
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Clock, Kind

FITS: Final = 0.9  # The part of the time that we wait: while so much is left of the limit told before, no other is told.
DRIFT: Final = 2e-4  # By how much our clock may run faster than the server's.


class ServerClock:
    """The clock of one connection's server, as far as it is known here: never ahead of the truth.

    A server of an earlier version does not tell its clock; then it is told no limit.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.asked: set[int] = set()
        """The numbers of the questions that are not answered yet."""
        self.until_s = 0.0
        """A command sent now may be decided until this time of our monotonic clock."""
        self._told_us: int | None = None  # The clock as told last,
        self._told_at_s = 0.0  # and when that arrived; an answer that was held up makes us take our commands for older.

    def ask(self, until_us: int | None) -> bytes:
        """Return the frame that asks for the clock. `until_us` limits the time at which later commands may be decided."""
        number, data = self._caller.ask(Kind.CLOCK, [item(Clock(until_us))])
        self.asked.add(number)
        return data

    def take(self, answer: Answer) -> bool:
        """Take an answer if it tells the clock; return whether it does. `heard` then says when it arrived."""
        if answer.request not in self.asked:
            return False
        self.asked.discard(answer.request)
        self._told_us = None
        with contextlib.suppress(Unreadable):
            told = decode(Kind.CLOCK, *answer.items[0]) if answer.items else None
            self._told_us = told.uptime_us if isinstance(told, Uptime) else None
        return True

    def heard(self, now_s: float) -> None:
        """Note when the last answer that was taken arrived."""
        self._told_at_s = now_s

    def limit(self, now_s: float, patience_s: float) -> bytes:
        """Return the frame to send before a command whose answer is waited for so long; empty while the last limit fits."""
        if self._told_us is None or FITS * patience_s <= self.until_s - now_s <= patience_s:
            return b""
        self.until_s = now_s + patience_s
        passed_s = (now_s - self._told_at_s) * (1 - DRIFT)
        return self.ask(max(self._told_us + round((passed_s + patience_s) * 1e6), 0))
