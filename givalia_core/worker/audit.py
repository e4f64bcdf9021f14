"""Whether the process with the greenlets still has what it was lent.

A job may harm it in ways that leave its pulse as it was: a report that is never sent, a note that somebody else has read. So
it is asked at intervals which attempts are under way. It answers behind its reports, so what it then neither has nor has
reported is lost.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

ASK_S: Final = 2.0  # So long behind an answer it is asked again.
DEAF_S: Final = 15.0  # Not to say anything for so long, though it was asked, is to be deaf: one that is busy needs a while.


class Audit:
    """What one process was asked, and when; all times are monotonic seconds."""

    def __init__(self) -> None:
        self._asked: frozenset[int] | None = None  # What it should have, while there is no answer.
        self._since_s = 0.0  # Since when it says nothing, while it is asked; or since it has answered.

    def begin_anew(self, now_s: float) -> None:
        """Forget what it was asked: it, or whoever asks, could do nothing for a while, or it is another process."""
        self._asked, self._since_s = None, now_s

    def is_due(self, now_s: float) -> bool:
        """Return whether to ask now; say so with `ask`."""
        return self._asked is None and now_s - self._since_s >= ASK_S

    def ask(self, fences: Collection[int], now_s: float) -> None:
        """Note that it is asked, and that it should have the attempts with these fences, or report them first."""
        self._asked, self._since_s = frozenset(fences), now_s

    def heard(self, now_s: float) -> None:
        """Note that it has said something."""
        if self._asked is not None:
            self._since_s = now_s

    def answered(self, fences: Collection[int], now_s: float) -> frozenset[int]:
        """Take the fences that it has; return those that it should have: it must have reported them by now."""
        missing = (self._asked or frozenset()).difference(fences)
        self.begin_anew(now_s)
        return missing

    def is_deaf(self, now_s: float) -> bool:
        """Return whether it was asked and says nothing."""
        return self._asked is not None and now_s - self._since_s > DEAF_S
