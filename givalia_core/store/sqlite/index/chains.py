"""A chain of the ended jobs of each key, the last to end first: the head has the name, and each slot knows both neighbours.

So a job leaves its chain in three writes, however long the chain is. Each step may be done twice: after a kill the change that
was under way is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from givalia_core.model import Job
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.slots import ENDED_AT, PAST, SEQ, Slots
from givalia_core.store.sqlite.places import Damaged

GetJobs = Callable[[Iterable[int]], dict[int, Job]]
LAST: Final = 1  # Stands for the older neighbour where there is none.
_SHIFT: Final = 34
_OLDER: Final = (1 << _SHIFT) - 1


class Chains:
    """All chains of an index. `jobs` reads the jobs of slots."""

    def __init__(self, slots: Slots, names: NameTable, jobs: GetJobs) -> None:
        self._slots = slots
        self._names = names
        self._jobs = jobs

    def head(self, key: str, named: list[int], but: int = 0) -> int | None:
        """Return the head of the chain of a key, other than slot `but`; the slots in `named` may have the key."""
        at = self._slots.at
        heads = [slot for slot in named if slot != but and at[slot + PAST] and at[slot + SEQ]]
        if not heads:
            return None
        if len(heads) > 1:  # A kill may have left the name to a slot further down the chain.
            heads.sort(key=lambda slot: -at[slot + ENDED_AT])
        jobs = self._jobs(heads)
        return next((slot for slot in heads if slot in jobs and jobs[slot].key == key), None)

    def older(self, slot: int) -> int:
        """Return the job that ended before this one, 0 if there is none.

        Raises:
            Damaged: The chain is broken.
        """
        older = self._slots.at[slot + PAST] & _OLDER
        if older <= LAST:
            return 0
        if not self._slots.is_slot(older):
            raise Damaged(f"slot {slot} has a neighbour that is no slot")
        self._slots.ensure((older,))
        if self._newer(older) != slot or not self._slots.at[older + SEQ]:
            raise Damaged(f"slots {slot} and {older} are not neighbours on both sides")
        return older

    def _newer(self, slot: int) -> int:
        return self._slots.at[slot + PAST] >> _SHIFT << 3

    def link(self, slot: int, ended_at: int, key: str, hashed: int) -> int:
        """Put an ended job into the chain of its key, in order of end; return its neighbours as its slot has them."""
        names, at = self._names, self._slots.at
        named = names.slots(hashed)
        if named == [slot]:  # The usual case: the job was live, and no other one of its key has ended.
            return LAST
        head = self.head(key, named, but=slot)
        if head is None or at[head + ENDED_AT] <= ended_at:
            self._join(slot, head or 0, 0)
            names.add(hashed, slot)
            if head is not None:
                names.remove(hashed, head)
        else:
            newer = head
            while (older := self.older(newer)) and at[older + ENDED_AT] > ended_at:
                newer = older
            # Before the join, or a kill between the two would make the slot look like the head of those behind it.
            names.remove(hashed, slot)
            self._join(slot, older, newer)
        return at[slot + PAST]

    def _join(self, slot: int, older: int, newer: int) -> None:
        """Put a slot between these two."""
        self._slots.put(slot, PAST, _packed(older, newer))
        if older:
            self._put(older, newer=slot)
        if newer:
            self._put(newer, older=slot)

    def _put(self, slot: int, older: int | None = None, newer: int | None = None) -> None:
        past = self._slots.at[slot + PAST]
        self._slots.put(
            slot,
            PAST,
            _packed(past & _OLDER if older is None else older, past >> _SHIFT << 3 if newer is None else newer),
        )

    def unlink(self, slot: int, hashed: int | None) -> None:
        """Take a job out of the chain of its key; `hashed` is the hash of the key, None if the key is no longer known.

        A kill may have left the chain half done, so a neighbour that does not know the slot is left as it is.
        """
        past = self._slots.at[slot + PAST]
        older, newer = past & _OLDER, past >> _SHIFT << 3
        older = older if older > LAST else 0
        for neighbour in filter(None, (older, newer)):
            if not self._slots.is_slot(neighbour):
                raise Damaged(f"slot {slot} has a neighbour that is no slot")
            self._slots.ensure((neighbour,))
        if newer and self._slots.at[newer + PAST] & _OLDER == slot:
            self._put(newer, older=older or LAST)
        if not newer and hashed is not None:
            if older:
                self._names.add(hashed, older)
            self._names.remove(hashed, slot)
        if older and self._newer(older) == slot:
            self._put(older, newer=newer)
        self._slots.put(slot, PAST, 0)

    def is_head(self, slot: int) -> bool:
        """Return whether a slot in a chain is its head."""
        return not self._newer(slot)

    def is_linked(self, slot: int) -> bool:
        """Return whether a slot in a chain that is not its head and its newer neighbour know each other."""
        newer = self._newer(slot)
        return self._slots.is_slot(newer) and self.older(newer) == slot


def _packed(older: int, newer: int) -> int:
    return (newer >> 3) << _SHIFT | (older or LAST)
