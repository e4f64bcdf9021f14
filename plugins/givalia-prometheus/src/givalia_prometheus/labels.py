"""Labels with a limit: clients choose module names, and each new label costs memory until the process ends."""

from __future__ import annotations

from typing import Final

OTHER: Final = "(other)"  # No module's name can have parentheses.


class Bounded:
    """A limit on labels: the first `limit` distinct values pass through, every further one becomes `(other)`.

    As many wanted values (`want`) pass through beside them, so that other values cannot use up their places.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()
        self._wanted: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._known and value not in self._wanted:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value

    def want(self, value: str) -> None:
        """Pass this value through from now on, unless there are already `limit` wanted values."""
        if len(self._wanted) < self._limit:
            self._wanted.add(value)
