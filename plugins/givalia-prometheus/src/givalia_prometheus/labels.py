"""Labels that cannot grow without end: whoever may enqueue chooses the module, and each new name costs memory for ever."""

from __future__ import annotations

from typing import Final

OTHER: Final = "(other)"  # The parentheses keep it from ever being somebody's name.


class Bounded:
    """Passes the first `limit` distinct values on, and turns every further one into `(other)`.

    As many more are passed on that were said to be wanted: nobody can use up their places.
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
        """Pass this one on from now on, unless there are `limit` such already."""
        if len(self._wanted) < self._limit:
            self._wanted.add(value)
