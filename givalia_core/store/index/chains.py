"""The ended jobs of each key, the one that ended last first: it has the name, and each slot says which comes behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from givalia_core.model import Job
from givalia_core.store.index.names import Names
from givalia_core.store.index.slots import ENDED_AT, PAST, SEQ, Slots

GetJobs = Callable[[Iterable[int]], dict[int, Job]]
LAST: Final = 1  # What a slot says behind which none comes.


class Chains:
    """All chains of an index. `jobs` reads the jobs of slots."""

    def __init__(self, slots: Slots, names: Names, jobs: GetJobs) -> None:
        self._slots = slots
        self._names = names
        self._jobs = jobs

    def head(self, key: str, named: list[int], but: int = 0) -> int | None:
        """Where the chain of a key begins, other than in this slot; `named` may have the key."""
        at = self._slots.at
        heads = [slot for slot in named if slot != but and at[slot + PAST] and at[slot + SEQ]]
        if not heads:
            return None
        if len(heads) > 1:  # A kill may have left the name to one further down the chain.
            heads.sort(key=lambda slot: -at[slot + ENDED_AT])
        jobs = self._jobs(heads)
        return next((slot for slot in heads if slot in jobs and jobs[slot].key == key), None)

    def link(self, slot: int, key: str, hashed: int) -> None:
        """Put a job that ended into the chain of its key, in order of their ends; the last one alone has the name."""
        at = self._slots.at
        named = self._names.slots(hashed)
        if named == [slot]:  # As most are that end: it was live, and none ended before it.
            at[slot + PAST] = LAST
            return
        head = self.head(key, named, but=slot)
        if head is None or at[head + ENDED_AT] < at[slot + ENDED_AT]:
            at[slot + PAST] = head or LAST
            self._names.add(hashed, slot)
            if head is not None:
                self._names.remove(hashed, head)
            return
        before = head
        while at[before + PAST] > LAST and at[at[before + PAST] + ENDED_AT] > at[slot + ENDED_AT]:
            before = at[before + PAST]
        # First, or a kill behind this would leave it looking like the head of what follows it.
        self._names.remove(hashed, slot)
        at[slot + PAST] = at[before + PAST]
        at[before + PAST] = slot

    def unlink(self, gone: set[int], hashes: Iterable[int]) -> None:
        """Take jobs out of the chains of keys with these hashes; which ones, is seen from the links: records may be gone."""
        at = self._slots.at
        for hashed in hashes:
            for head in self._names.slots(hashed):
                before = head
                if head in gone:
                    if (before := self._behind(head, gone)) > LAST:
                        self._names.add(hashed, before)
                    self._names.remove(hashed, head)
                while before > LAST:
                    following = self._behind(before, gone)
                    if following != at[before + PAST]:
                        at[before + PAST] = following
                    before = following
        for slot in gone:
            at[slot + PAST] = 0

    def _behind(self, slot: int, gone: set[int]) -> int:
        """What comes behind a slot when these are gone."""
        at = self._slots.at
        following = at[slot + PAST]
        while following in gone:
            following = at[following + PAST]
        return following
