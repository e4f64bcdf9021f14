"""How many bytes of answers wait for their peers to read, over all connections: what the server may owe at once.

A connection that reads owes nothing for long. Those that do not read share this budget. When it runs low, no further large
answer is made, and the connection whose peer has stood still for longest is closed; others are served on.
"""

from __future__ import annotations

from typing import Final

from givalia_core.clock import SECOND_US

MOST_BYTES: Final = 128 << 20
STALLED_US: Final = SECOND_US // 2  # A peer that reads nothing for so long may be closed when the budget runs low.


class Unread:
    """Counts the bytes that connections keep because their peers do not take them."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self.bytes = 0

    @property
    def left(self) -> int:
        """How many more bytes may come to wait; 0 or less if there is no room."""
        return self._most_bytes - self.bytes

    @property
    def is_low(self) -> bool:
        """Whether three quarters of the budget are used."""
        return self.bytes * 4 >= self._most_bytes * 3
