"""What is kept of each job in eight words: where it is filed and where its records are. Slots of forgotten jobs are used again.

A slot is named by the place of its first word. The words before the first slot say what the index as a whole is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from givalia_core.store.index.words import Words

WIDTH: Final = 8
SEQ, VERSION, LANE, WHEN, AT, PAST, ENDED_AT, BASE = range(WIDTH)
"""The words of a slot: the job's seq (0: the slot is free), its version, the number of the lane it is filed in and the time it
is filed under, the place of its newest change (0: none since its enq), the slot of the job that ended before it under the same
key (1: none; 0: it is not in such a chain), when it ended, and the place of the record of its enq."""

(FORMAT, EPOCH, BOOT, COMMITS, IS_CLOSED, FREE, END, SEALED_AT, SEALED_SEQ, FIRST_SECRET, SECOND_SECRET,
 FILE, DEVICE, PARTS) = range(14)  # fmt: skip
"""The words before the first slot."""
_FIRST: Final = 64


class Slots:
    """The slots of all jobs, and the words that say what the index is."""

    def __init__(self, path: Path, make_room: Callable[[], None]) -> None:
        """Open the file, or make an empty one."""
        self._words = Words(path, _FIRST + 1_024 * WIDTH, make_room)
        self.at = self._words.at
        if not self.at[END]:
            self.at[END] = _FIRST
        if self.at[END] > len(self._words):
            self.close()
            raise ValueError(f"{path} is shorter than it was")

    @property
    def most(self) -> int:
        """How many jobs there are at most."""
        return (self.at[END] - _FIRST) // WIDTH

    def take(self) -> int:
        """A free slot; its words are what its last job left there."""
        at = self.at
        if slot := at[FREE]:
            at[FREE] = at[slot + WHEN]
            return slot
        slot = at[END]
        if slot + WIDTH > len(self._words):
            self._words.grow(slot + WIDTH)
            self.at = at = self._words.at
        at[END] = slot + WIDTH
        return slot

    def free(self, slot: int) -> None:
        """The job of the slot is forgotten. A kill in here loses the slot, no more."""
        at = self.at
        at[slot + SEQ] = 0
        at[slot + WHEN] = at[FREE]
        at[FREE] = slot

    def trim(self) -> None:
        """Give back the memory that the slots are mapped into."""
        self._words.trim()

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        self._words.sync()

    def close(self) -> None:
        """Let the file go."""
        self.at = memoryview(b"").cast("q")
        self._words.close()
