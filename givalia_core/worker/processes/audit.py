"""Finds attempts that the host has lost, although its loop turns.

A job may harm its host in ways that leave the host's pulse as it was: a report is never sent, or job code has read a note from
the connection. So the host is asked at intervals which attempts it has. It sends its reports before the answer, so an attempt
that is neither reported by then nor in the answer is lost.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

DEAF_S: Final = 15.0  # Silence after a question that counts as deaf; a busy host needs some seconds for the answer.


class Audit:
    """The questions to one host; all times are monotonic seconds."""

    def __init__(self) -> None:
        self._asked: frozenset[int] | None = None  # Fences that it should have; None while no question is open.
        self.heard_s = 0.0
        """When the host last said something, or was asked."""

    def begin_anew(self, now_s: float) -> None:
        """Forget the open question: the host or this process stood still for a while, or the host is a new one."""
        self._asked, self.heard_s = None, now_s

    @property
    def is_open(self) -> bool:
        """Whether a question is open."""
        return self._asked is not None

    def ask(self, fences: Collection[int], now_s: float) -> None:
        """Note that the host is asked now, and should have the attempts with these fences, or report them first."""
        self._asked, self.heard_s = frozenset(fences), now_s

    def answered(self, fences: Collection[int], now_s: float) -> frozenset[int]:
        """Take the fences that the host has; return those that are missing, which are lost unless they were reported."""
        missing = (self._asked or frozenset()).difference(fences)
        self.begin_anew(now_s)
        return missing

    def is_deaf(self, now_s: float) -> bool:
        """Return whether the host was asked and has said nothing for `DEAF_S`."""
        return self._asked is not None and now_s - self.heard_s > DEAF_S
