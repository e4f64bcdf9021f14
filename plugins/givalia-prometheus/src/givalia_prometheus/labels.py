"""Labels that cannot grow without end: whoever may enqueue chooses the module, and each new name costs memory for ever."""

from __future__ import annotations

from typing import Final

OTHER: Final = "(other)"  # The parentheses keep it from ever being somebody's name.


class Bounded:
    """Passes the first `limit` distinct values on, and turns every further one into `(other)`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value not in self._known:
            if len(self._known) >= self._limit:
                return OTHER
            self._known.add(value)
        return value
