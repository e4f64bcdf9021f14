"""The jobs of slots: those that were written, found or lent last come from memory, all others from the records.

Memory has what the records say: a change updates the job, and a forgotten job is dropped. Only the place of a large job is
kept; the job is read again each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from givalia_core.model import Job
from givalia_core.store.base import Found, Route, Share
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.slots import LANE, Slots
from givalia_core.store.sqlite.places import Damaged, Place

KEPT_BYTES: Final = 1_000  # Of params and result; a larger job is read again.
KEPT_MOST: Final = 16_000
_DROPPED_AT_ONCE: Final = 1_000
_READ_TOGETHER: Final = 16  # Jobs to read at once, which may all be large,
_READ_MOST: Final = 256  # and the most, after small jobs of the same route.
ID, KEY, REQUEST = range(3)  # The kinds of names.

ReadRecords = Callable[[Iterable[Place], dict[int, str]], dict[int, Job]]
"""A function that reads the jobs at some places, by seq, and notes the seqs of those with bad records, with the reason."""


@dataclass(slots=True)
class Known:
    """The place of one job, and the job itself unless it is large."""

    slot: int
    id: bytes
    seq: int
    version: int
    job: Job | None
    is_alone: bool = False  # As far as is known, no other job has its key.


class Jobs:
    """The jobs of an index."""

    def __init__(self, slots: Slots, names: NameTable, read: ReadRecords) -> None:
        self.by_id: dict[bytes, Known] = {}
        self.by_slot: dict[int, Known] = {}
        self.bad: dict[int, str] = {}  # Slots of jobs whose records are not what was written, with the reason.
        self.forgotten = -1  # The number of the lane of forgotten jobs whose records are still there.
        self._slots = slots
        self._names = names
        self._read = read

    # By name.

    def match(self, named: list[tuple[int, bytes | str, list[int]]], found: Found) -> None:
        """Read the jobs of slots that may have a name, and take those that have it."""
        jobs = self.of({slot for _, _, slots in named for slot in slots if self.is_there(slot)})
        for which, name, slots in named:
            for slot in slots:
                job = jobs.get(slot)
                if job is None:
                    continue
                if which == ID and job.id == name:
                    found.ids[job.id] = job
                elif which == KEY and job.key is not None and job.key == name and job.is_live:
                    found.live[job.key] = job
                elif which == REQUEST:
                    found.requests.update((past.request, job) for past in job.answered if past.request == name)

    def is_there(self, slot: int) -> bool:
        """Return whether the slot has a job that is not forgotten."""
        at = self._slots.at
        return at[slot] != 0 and at[slot + LANE] != self.forgotten

    def slot_with(self, job: Job) -> int | None:
        """Return the slot of a job that was read, also if it is forgotten, as long as its records are there."""
        at = self._slots.at
        return next((slot for slot in self._names.slots(self._names.of_id(job.id)) if at[slot] == job.seq), None)

    def slot_of(self, job: Job) -> int | None:
        """Return the slot of a job that was read before; None if it is forgotten."""
        slot = self.slot_with(job)
        return slot if slot is not None and self.is_there(slot) else None

    def locate(self, was: Job) -> Known | None:
        """Return the place of a job that was read before; None if it is forgotten or has changed since."""
        slot = self.slot_of(was)
        return None if slot is None or self._slots.version(slot) != was.version else self.keep(slot, was)

    def read_share(self, route: Route, slots: Sequence[int], share: Share) -> list[Job]:
        """Return the jobs of these slots as far as the share allows, reading a few at a time."""
        lent: list[Job] = []
        start, size = 0, _READ_TOGETHER
        while start < len(slots):
            some = slots[start : start + size]
            jobs = self.of(some)
            if not share.take(route, lent, (jobs[slot] for slot in some if slot in jobs)):
                break
            start, size = start + size, min(2 * size, _READ_MOST)
        return lent

    # In memory.

    def keep(self, slot: int, job: Job) -> Known:
        """Keep a job in memory for a while."""
        small = job if len(job.params) + len(job.result or b"") <= KEPT_BYTES else None
        known = self.by_slot[slot] = self.by_id[job.id] = Known(slot, job.id, job.seq, job.version, small)
        self.shed()
        return known

    def shed(self) -> None:
        """Drop the jobs from memory that came first, if there are too many."""
        by_slot, by_id = self.by_slot, self.by_id
        while len(by_slot) > KEPT_MOST:
            for known in list(islice(by_slot.values(), _DROPPED_AT_ONCE)):  # As `drop` does; every job comes by here once.
                del by_slot[known.slot]
                by_id.pop(known.id, None)

    def drop(self, slot: int) -> None:
        """Drop a job from memory: it is forgotten, or others need the room."""
        known = self.by_slot.pop(slot, None)
        if known is not None:
            self.by_id.pop(known.id, None)

    def clear(self) -> None:
        """Drop all jobs from memory."""
        self.by_id.clear()
        self.by_slot.clear()
        self.bad.clear()

    def of(self, slots: Iterable[int]) -> dict[int, Job]:
        """Return the jobs of these slots, none of which is forgotten, and keep them in memory.

        Those whose records are not what was written are absent; `bad` names them.

        Raises:
            Damaged: A record is not where the index says.
        """
        slots = list(slots)
        found = self.peek(slots)
        for slot in slots:
            if slot not in found:
                if slot not in self.bad:
                    raise Damaged(f"the record of job {self._slots.at[slot]} is gone")
            elif slot not in self.by_slot:
                self.keep(slot, found[slot])
        return found

    def peek(self, slots: Iterable[int]) -> dict[int, Job]:
        """Return the jobs of these slots without keeping them; those whose records are gone are absent too."""
        found: dict[int, Job] = {}
        missing: list[int] = []
        for slot in slots:
            known = self.by_slot.get(slot)
            if known is None or known.job is None:
                missing.append(slot)
            else:
                found[slot] = known.job
        if missing:
            places = {slot: self._slots.place(slot) for slot in missing}
            bad: dict[int, str] = {}
            read = self._read(places.values(), bad)
            found |= {slot: read[place.seq] for slot, place in places.items() if place.seq in read}
            if bad:
                self.bad.update((slot, bad[place.seq]) for slot, place in places.items() if place.seq in bad)
        return found
