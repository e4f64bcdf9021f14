"""Finds attempts that the host has lost, although its loop turns.

A job can harm its host without stopping the pulse: a report is never sent, or job code has read a note from the connection.
So the crew asks the host at intervals for its attempts. The host sends its reports before the answer, so an attempt that is
neither reported by then nor in the answer is lost.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

DEAF_S: Final = 15.0  # Silence after a question that counts as deafness; a busy host needs some seconds.


class Audit:
    """The questions to one host; all times are monotonic seconds."""

    def __init__(self) -> None:
        self._asked: frozenset[int] | None = None  # The fences that the host should have; None while no question is open.
        self.heard_s = 0.0
        """The time of the host's last note, or of the last question."""

    def begin_anew(self, now_s: float) -> None:
        """Forget the open question: the host is new, or it or this process was suspended."""
        self._asked, self.heard_s = None, now_s

    @property
    def is_open(self) -> bool:
        """True while a question is open."""
        return self._asked is not None

    def ask(self, fences: Collection[int], now_s: float) -> None:
        """Note a question: the host should have the attempts with these fences, or report them before it answers."""
        self._asked, self.heard_s = frozenset(fences), now_s

    def answered(self, fences: Collection[int], now_s: float) -> frozenset[int]:
        """Take the answer of the host; return the missing fences, which are lost unless they were reported."""
        missing = (self._asked or frozenset()).difference(fences)
        self.begin_anew(now_s)
        return missing

    def is_deaf(self, now_s: float) -> bool:
        """Return whether the host was asked and has said nothing for `DEAF_S`."""
        return self._asked is not None and now_s - self.heard_s > DEAF_S
