"""Which changes of a commit stand: each is judged by what the store holds and by the changes before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from givalia_core.model import ENDED, Job
from givalia_core.store.base import Change
from givalia_core.store.sqlite.index.index import Index


class Update(NamedTuple):
    """A job that takes the place of another in a slot."""

    slot: int
    was: Job
    job: Job


class Admission:
    """What the changes that stand make of each job, by seq; `refused` are the places of the others."""

    def __init__(
        self,
        index: Index,
        jobs: Callable[[Iterable[int]], dict[int, Job]],
        find_slot: Callable[[Job], int | None],
        absent: set[bytes | str],
    ) -> None:
        """`jobs` reads the jobs of slots, `find_slot` knows where one is; of the names in `absent` there is none."""
        self.inserts: dict[int, Job] = {}
        self.updates: dict[int, Update] = {}
        self.refused: list[int] = []
        self._index = index
        self._jobs = jobs
        self._find_slot = find_slot
        self._absent = absent
        self._ids: set[bytes] = set()
        self._holders: dict[str, int | None] = {}  # Who holds a key once the changes so far are applied.

    def admit(self, changes: Iterable[Change]) -> None:
        """Take in these changes, in their order."""
        for place, (was, job) in enumerate(changes):
            if not (self._insert(job) if was is None else self._update(was, job)):
                self.refused.append(place)

    def _insert(self, job: Job) -> bool:
        if job.id in self._ids or (job.id not in self._absent and self._has(job.id)):
            return False
        if job.key is not None and job.state not in ENDED:
            if self._holder(job.key) is not None:
                return False
            self._holders[job.key] = job.seq
        self._ids.add(job.id)
        self.inserts[job.seq] = job
        return True

    def _update(self, was: Job, job: Job) -> bool:
        seq, key = was.seq, job.key
        slot = 0
        if seq in self.inserts:
            version = self.inserts[seq].version
        elif seq in self.updates:
            slot, first, last = self.updates[seq]
            version = last.version
        else:
            found = self._find_slot(was)
            if found is None:
                return False
            slot, first = found, was
            version = self._index.slots.version(slot)
        if version != was.version:
            return False
        held = was.key if was.state not in ENDED else None
        if key != held and key is not None and job.state not in ENDED:
            if self._holder(key) not in (None, seq):
                return False
            self._holders[key] = seq
        if held is not None and (held != key or job.state in ENDED):
            self._holders[held] = None
        if slot:
            self.updates[seq] = Update(slot, first, job)
        else:
            self.inserts[seq] = job
        return True

    def _has(self, job_id: bytes) -> bool:
        index = self._index
        slots = [slot for slot in index.names.slots(index.of_id(job_id)) if index.is_there(slot)]
        return any(job.id == job_id for job in self._jobs(slots).values())

    def _holder(self, key: str) -> int | None:
        if key in self._holders:
            return self._holders[key]
        if key in self._absent:
            return None
        index = self._index
        slots = [slot for slot in index.names.slots(index.of_key(key)) if index.is_there(slot) and not index.is_past(slot)]
        jobs = self._jobs(slots).values()
        return next((job.seq for job in jobs if job.key == key and job.state not in ENDED), None)
