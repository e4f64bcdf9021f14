"""The clock of the server of one connection, so that the server knows how long we wait for an answer.

The clocks of two machines are never compared: the server tells its clock, and from then on we count on ours. A delayed answer
makes our commands seem older than they are, never younger. Nothing here touches a socket.
"""

from __future__ import annotations

import contextlib
from typing import Final

from givalia_core.protocol.answers import Uptime
from givalia_core.protocol.caller import Answer, Caller
from givalia_core.protocol.codec import UnreadableAnswer, item, read_answer
from givalia_core.protocol.messages import ClockAsked, Kind

FITS: Final = 0.9  # While this part of the time that we wait is left of the last limit, we send no other.
DRIFT: Final = 2e-4  # By how much our clock may run faster than the server's.


class ServerClock:
    """The clock of one connection's server, as far as it is known here: never ahead of the truth.

    A server of an earlier version does not tell its clock; then we send it no limit.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.asked: set[int] = set()
        """The numbers of the questions that are not answered yet."""
        self.until_s = 0.0
        """A command sent now may be decided until this time of our monotonic clock."""
        self._told_us: int | None = None  # The clock as told last,
        self._told_at_s = 0.0  # and when that arrived; a delayed answer makes our commands seem older.

    def ask(self, until_us: int | None) -> bytes:
        """Return the frame that asks for the clock. `until_us` limits the time at which later commands may be decided."""
        number, data = self._caller.ask(Kind.CLOCK, [item(ClockAsked(until_us))])
        self.asked.add(number)
        return data

    def take(self, answer: Answer) -> bool:
        """Take an answer if it tells the clock; return whether it does. `heard` then says when it arrived."""
        if answer.request not in self.asked:
            return False
        self.asked.discard(answer.request)
        self._told_us = None
        with contextlib.suppress(UnreadableAnswer):
            told = read_answer(Kind.CLOCK, *answer.items[0]) if answer.items else None
            self._told_us = told.uptime_us if isinstance(told, Uptime) else None
        return True

    def heard(self, now_s: float) -> None:
        """Note when the last answer that was taken arrived."""
        self._told_at_s = now_s

    def limit(self, now_s: float, patience_s: float) -> bytes:
        """Return the frame to send before a command with this patience for its answer; empty while the last limit fits."""
        if self._told_us is None or FITS * patience_s <= self.until_s - now_s <= patience_s:
            return b""
        self.until_s = now_s + patience_s
        passed_s = (now_s - self._told_at_s) * (1 - DRIFT)
        return self.ask(max(self._told_us + round((passed_s + patience_s) * 1e6), 0))
