"""Which keys cannot be taken for now, because somebody's open transaction is about to take them.

PostgreSQL does not say which of many inserted keys it would have to wait for, and a transaction of somebody else may stay open
for minutes. So the keys of a commit that would have waited are halved and tried apart until the one is found; that one is left
alone for a moment, again and again, and the others are stored.
"""

from __future__ import annotations

from collections import deque
from typing import Final

PAUSE_S: Final = 0.25


class Doubts:
    """What is known of keys that somebody holds."""

    def __init__(self) -> None:
        self._groups: deque[list[str]] = deque()  # One of each would have had to be waited for.
        self._until: dict[str, float] = {}
        self._tried: list[str] = []

    def refuse(self, keys: list[str], now: float) -> frozenset[str]:
        """Those of these keys that are not to be tried now; the others are, until `blame` or `clear` says how it went."""
        asked = set(keys)
        self._until = {key: until for key, until in self._until.items() if until > now and key in asked}
        groups = ([key for key in group if key in asked and key not in self._until] for group in self._groups)
        self._groups = deque(group for group in groups if group)
        refused = set(self._until).union(*list(self._groups)[1:])
        self._tried = [key for key in keys if key not in refused]
        return frozenset(refused)

    def blame(self, now: float) -> None:
        """The commit would have had to wait for one of those that were tried."""
        tried = self._tried
        if self._groups:
            self._groups.popleft()
        if len(tried) == 1:
            self._until[tried[0]] = now + PAUSE_S
        elif tried:
            middle = len(tried) // 2
            self._groups.extendleft((tried[middle:], tried[:middle]))

    def clear(self) -> None:
        """All that were tried are stored, or refused for good reasons."""
        if self._groups:
            self._groups.popleft()
