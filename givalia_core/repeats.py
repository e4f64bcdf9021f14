"""Storms of log lines: the first few of a kind are written, and then, once per period, the number of further ones."""

from __future__ import annotations

from typing import Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

SAID_MOST: Final = 10  # Lines of one kind in one period: all attempts of a job are fewer in ten seconds.
PERIOD_S: Final = 10.0
KINDS_MAX: Final = 500  # Kinds contain names that users choose.
OTHER_KINDS: Final = "lines of other kinds"


class Repeats:
    """The counts of log lines by kind; the kind is a plural in words, such as `attempts of Sample that failed`.

    Call `left_out` about as often as lines come. All times are monotonic seconds.
    """

    def __init__(self, said_most: int = SAID_MOST, period_s: float = PERIOD_S) -> None:
        self._said_most = said_most
        self._period_s = period_s
        self.counts: dict[str, int] = {}
        self._since_s = 0.0  # The start of the period, which is the time of its first line.

    def may_say(self, kind: str, now_s: float) -> bool:
        """Count a line of this kind; return true if it is written, false if it is only counted."""
        if not self.counts:
            self._since_s = now_s
        if kind not in self.counts and len(self.counts) >= KINDS_MAX:
            kind = OTHER_KINDS
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        return count <= self._said_most

    def left_out(self, now_s: float) -> list[str]:
        """Return messages for the lines that were only counted, if the period is over; else nothing."""
        if not self.counts or now_s - self._since_s < self._period_s:
            return []
        return self.rest()

    def rest(self) -> list[str]:
        """Return messages for the lines that were only counted, and begin a new period."""
        counts, self.counts = self.counts, {}
        more = ((kind, count - self._said_most) for kind, count in counts.items() if count > self._said_most)
        return [f"{count} more {kind}, within {self._period_s:g} s" for kind, count in more]
