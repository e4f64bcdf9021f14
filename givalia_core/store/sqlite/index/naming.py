"""Changes of names: a key or a request that a job gets or loses, and the keys of jobs that have ended.

Most jobs get their names when they come in, and keep them; this file is for all others.
"""

from __future__ import annotations

from givalia_core.model import ENDED, Job
from givalia_core.store.sqlite.index.chains import Chains
from givalia_core.store.sqlite.index.jobs import Jobs
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.slots import PAST, Slots


class Naming:
    """The names of the jobs of one index."""

    def __init__(self, slots: Slots, names: NameTable, chains: Chains, jobs: Jobs) -> None:
        self._slots = slots
        self._names = names
        self._chains = chains
        self._jobs = jobs

    def unchain(self, slot: int, was: Job, job: Job) -> None:
        """Take a job that had ended out of the chain of its key."""
        # After a kill, a job that was live may already be in the chain of its new key.
        chained = was.key if was.state in ENDED else job.key
        self._chains.unlink(slot, None if chained is None else self._names.of_key(chained))

    def rename(self, slot: int, was: Job, job: Job) -> None:
        """Remove the old key of a job, and note that the new key of an ended one is shared."""
        if was.key is not None:
            self._names.remove(self._names.of_key(was.key), slot)
        if job.key is not None and job.state in ENDED:
            self.share(self._names.of_key(job.key))

    def name_ended(self, slot: int, job: Job, hashed: int) -> None:
        """Enter the key of a job that has ended already when it comes in."""
        assert job.key is not None
        if self._slots.at[slot + PAST]:  # A kill may have come while the job was linked.
            self._chains.unlink(slot, hashed)
        self.share(hashed)
        past = self._chains.link(slot, job.ended_at_us, job.key, hashed)
        if self._slots.at[slot + PAST] != past:
            self._slots.put(slot, PAST, past)

    def add_key(self, slot: int, key: str) -> bool:
        """Enter the key of a live job; return whether, as far as is known, no other job has that key."""
        hashed = self._names.of_key(key)
        if self._names.add(hashed, slot):
            return True
        self.share(hashed)
        return False

    def share(self, hashed: int) -> None:
        """Note that another job gets this key: when one of them ends, the chain of the key is searched for the others."""
        for slot in self._names.slots(hashed):
            if (known := self._jobs.by_slot.get(slot)) is not None:
                known.is_alone = False

    def add_requests(self, slot: int, job: Job) -> None:
        """Enter the requests that a job has answered as its names."""
        for past in job.answered:
            if past.request != job.id:
                self._names.add(self._names.of_request(past.request), slot)

    def change_requests(self, slot: int, was: Job, job: Job) -> None:
        """Enter the new requests of a job, and remove the old; a job may remember a thousand, and each change adds one."""
        before, after = set(was.answered), set(job.answered)
        for past in after - before:
            if past.request != job.id:
                self._names.add(self._names.of_request(past.request), slot)
        for past in before - after:
            self._names.remove(self._names.of_request(past.request), slot)
