"""The index of a store: it finds jobs by name and in order, in mapped files that are never synced.

The index follows from the records alone, and no part of it is trusted before its checks are verified. A kill leaves the index
as it was, except for the last commit, whose jobs are filed again. After a crash of the machine, or if anything about the index
is strange, the store rebuilds it from the records. Every step of a change may be done twice, so a kill may come at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from givalia_core.clock import Now
from givalia_core.model import ENDED, RUNNING, WAITING, Job, JobState
from givalia_core.store.base import Found, Route, Share, Wanted
from givalia_core.store.sqlite.index import keys, sealing
from givalia_core.store.sqlite.index.chains import LAST, Chains
from givalia_core.store.sqlite.index.jobs import ID, KEPT_BYTES, KEPT_MOST, KEY, REQUEST, Jobs, Known, ReadRecords
from givalia_core.store.sqlite.index.keys import LaneKey
from givalia_core.store.sqlite.index.lane import Lane
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.naming import Naming
from givalia_core.store.sqlite.index.slots import AT, ORIGIN, PAST, VERSION_SHIFT, WIDTH, Slots, origin_of

_ORIGIN: Final = (1 << VERSION_SHIFT) - 1

Named = tuple[int, bytes | str, list[int]]
"""The kind of a name, the name, and slots that may have it."""
Absent = dict[bytes | str, int]
"""Ids and keys that no job has, with their hashes."""
Update = tuple[Known, Job, Job]
"""A job that changes: its place, the job before, and the job after."""


class Learned(NamedTuple):
    """Facts that a `find` learned about its names: the commit that follows need not search again."""

    stamp: int  # The stamp of the index then; under another one these facts no longer hold.
    absent: Absent


class Index:
    """Slots, names and lanes of one store, kept in step with its records."""

    # The opening sets these.
    slots: Slots
    names: NameTable
    chains: Chains
    lanes: Lanes
    jobs: Jobs
    naming: Naming
    forgotten: Lane  # Forgotten jobs whose records are still there.
    running: Lane
    newest: dict[JobState, Lane]  # All jobs that ended in a state, the last one first.
    ended: dict[JobState, Lane]  # Those among them that will be forgotten, the next one first.
    expiring: dict[bool, Lane]  # By clock.

    def __init__(self, folder: Path, read: ReadRecords, make_room: Callable[[], None]) -> None:
        """Open nothing yet.

        Args:
            folder: Where the files are.
            read: Reads the records of jobs: entries of names are no proof.
            make_room: Called when the disk is full.
        """
        self.folder = folder
        self.read = read
        self.make_room = make_room
        self.lane_of_fields: dict[tuple[object, ...], Lane] = {}
        self.routes: dict[Route, list[Lane]] = {}  # The lanes of each route on which jobs have waited, by rank.
        self.targets: dict[str, set[str]] = {}  # By module.
        self.replaced: list[tuple[int, int]] = []  # Places of records that others have replaced, with the seqs of the jobs.
        self.stamp = 0  # Changes with each commit.
        self.touched = 0  # Jobs whose part of the index may have been mapped lately.
        self.strangeness = ""  # Why the index was not used as it was found.
        self.ahead = 0  # Commits that the index knew and the records lacked at the opening.
        self.was_closed = False
        self.is_verified = False  # Whether the scrub has seen the whole index since the opening.

    @property
    def name(self) -> int:
        """A number that no other index has."""
        return self.slots.header.first_secret

    @property
    def is_sure(self) -> bool:
        """Return whether damage that is found now cannot come from a kill."""
        return self.was_closed or self.is_verified

    # Finding.

    def find(self, wanted: Wanted, found: Found, absent: Absent) -> None:
        """Find the jobs of the ids, the live jobs of the keys, and those of the requests; note the names that no job has."""
        named: list[Named] = []
        by_id, look_up = self.jobs.by_id, self.names.look_up
        for job_id in wanted.ids:
            if (known := by_id.get(job_id)) is not None and known.job is not None:
                found.ids[job_id] = known.job
            elif slots := look_up(b"i" + job_id, job_id, absent):
                named.append((ID, job_id, slots))
        for key in wanted.keys:
            if slots := look_up(b"k" + key.encode(), key, absent):
                named.append((KEY, key, slots))
        for request in wanted.requests:
            if slots := look_up(b"r" + request, request, {}):
                named.append((REQUEST, request, slots))
        if named:
            self.jobs.match(named, found)

    def lend(self, wanted: Wanted, now: Now, found: Found) -> frozenset[Route]:
        """Find the jobs to lend; return the routes that were cut short, since `wanted.claimed_bytes` were used up."""
        left, share, by_slot = wanted.claimed_bytes, None, self.jobs.by_slot
        for route, limit in wanted.claims:
            slots = self._due(route, now, limit)
            jobs = [known.job for slot in slots if (known := by_slot.get(slot)) is not None and known.job is not None]
            size = sum([len(job.params) for job in jobs])
            if len(jobs) < len(slots) or size > left or share is not None:
                share = share or Share(left)
                jobs = self.jobs.read_share(route, slots, share)
            left -= size
            if jobs:
                found.ready[route] = jobs
        return frozenset() if share is None else frozenset(share.cut)

    def _due(self, route: Route, now: Now, limit: int) -> list[int]:
        """Return the slots of the first due jobs of a route: by rank, then due."""
        entries: list[tuple[int, int, int, int]] = []
        lanes = self.routes.get(route, ())
        for lane in lanes:
            # A later rank is read only if the earlier ones leave room.
            if len(entries) >= limit and lane.rank > entries[-1][0]:
                break
            until_us, shift_us = (now.wall_us, now.timer_ahead_us) if lane.on_wall else (now.timer_us, 0)
            first, rank = self.lanes.first(lane, until_us, limit), lane.rank
            entries += [(rank, when + shift_us, seq, slot) for when, seq, slot in first]
        if len(lanes) > 1:
            entries.sort()
        return [slot for _, _, _, slot in entries[:limit]]

    # Filing.

    def prepare(self, jobs: Sequence[Job], updates: Sequence[Update]) -> list[Lane]:
        """Allocate the room for a commit before it is accepted: filing it afterwards must not meet a full disk.

        Returns:
            The lanes of the new jobs, then those of the updates.

        Raises:
            OSError: There is no room.
        """
        if jobs:
            if self.slots.end + len(jobs) * WIDTH > self.slots.last:
                self.slots.secure(len(jobs))
            if jobs[0].seq <= min(self.lanes.runs.sealed_seq, self.slots.header.floor):
                # These seqs are below those of earlier jobs, and a restart must read them.
                sealing.write_header(self.lanes, floor=jobs[0].seq - 1)
        lane_of = self.lane_of
        return [lane_of(job) for job in jobs] + [lane_of(job) for _, _, job in updates]

    def lane_of(self, job: Job) -> Lane:
        """Return the lane that a job belongs to; make it if there is none.

        Raises:
            OSError: There is no room for the lane.
        """
        fields: tuple[object, ...]
        if job.state is WAITING:
            fields = (job.module, job.target_worker, job.specifier, job.priority, job.on_wall)
        else:
            fields = (job.state, job.forget_at_us is None)
        return self.lane_of_fields.get(fields) or self._make_lane(fields, job)

    def _make_lane(self, fields: tuple[object, ...], job: Job) -> Lane:
        key = _lane_key(job)
        lane = self.lanes.by_key.get(key)
        if lane is None:
            lane = self.lanes.lane(key)
            self.note_lane(lane)
        self.lane_of_fields[fields] = lane
        return lane

    def note_lane(self, lane: Lane) -> None:
        """Note a lane under its route."""
        if lane.is_due:
            lanes = self.routes.setdefault(lane.route, [])
            lanes.append(lane)
            lanes.sort(key=lambda lane: lane.rank)
            self.targets.setdefault(lane.route.module, set()).add(lane.route.target)

    def base_of(self, known: Known) -> int:
        """Return the place of the record of a job's enq."""
        return self.slots.base(known.slot)

    def insert(self, job: Job, base: int, lane: Lane, absent: Mapping[bytes | str, int] = MappingProxyType({})) -> int:
        """Enter a new job, whose record is at `base`; return its slot. `absent` has the hashes of new names."""
        slot, is_ended = self.slots.take(), job.state is not WAITING and job.state is not RUNNING
        when = job.due_at_us if lane.is_due else job.forget_at_us or 0 if is_ended else 0
        ended_at = job.ended_at_us if is_ended else 0
        self.slots.write(slot, job.seq, origin_of(job.seq, job.version, base), lane.number, when, 0, 0, ended_at)
        hashed = absent.get(job.id)
        self.names.add(self.names.hash(b"i" + job.id) if hashed is None else hashed, slot)
        is_alone = job.key is not None and self._name(slot, job, job.key, absent)
        small = job if len(job.params) + len(job.result or b"") <= KEPT_BYTES else None
        self.jobs.by_slot[slot] = self.jobs.by_id[job.id] = Known(slot, job.id, job.seq, job.version, small, is_alone)
        if len(job.answered) > 1 or (job.answered and job.answered[0].request != job.id):
            self.naming.add_requests(slot, job)
        self.lanes.stand(slot, lane, when)
        if ended_at or job.expires_at_us is not None:
            self.stand_elsewhere(slot, job)
        return slot

    def _name(self, slot: int, job: Job, key: str, absent: Mapping[bytes | str, int]) -> bool:
        """Enter the key of a new job; return whether, as far as is known, no other job has that key."""
        hashed = absent.get(key)
        if hashed is None:
            hashed = self.names.hash(b"k" + key.encode())
        if job.state in ENDED:
            self.naming.name_ended(slot, job, hashed)
            return False
        if self.names.add(hashed, slot):
            return True
        self.naming.share(hashed)
        return False

    def change(self, known: Known, was: Job, job: Job, place: int, lane: Lane) -> None:
        """Update the index for a changed job, whose new record is at `place`."""
        slot, at, is_ended = known.slot, self.slots.at, job.state is not WAITING and job.state is not RUNNING
        when = job.due_at_us if lane.is_due else job.forget_at_us or 0 if is_ended else 0
        ended_at = job.ended_at_us if is_ended else 0
        if before := at[slot + AT]:
            self.replaced.append((before, job.seq))
        past = self._rename(known, was, job) if is_ended or was.key is not job.key or was.state in ENDED else 0
        if was.answered is not job.answered:
            self.naming.change_requests(slot, was, job)
        # In one step, and last: a kill before this leaves the old slot, and the change is done again.
        origin = job.version << VERSION_SHIFT | at[slot + ORIGIN] & _ORIGIN
        self.slots.write(slot, job.seq, origin, lane.number, when, place, past, ended_at)
        self.lanes.stand(slot, lane, when)
        if ended_at or job.expires_at_us is not None:
            self.stand_elsewhere(slot, job)
        known.version, known.job = job.version, job if len(job.params) + len(job.result or b"") <= KEPT_BYTES else None

    def _rename(self, known: Known, was: Job, job: Job) -> int:
        """File a job under its present key; return its neighbours in the chain of the key, if the job has ended."""
        key = job.key
        if self.slots.at[known.slot + PAST]:
            self.naming.unchain(known.slot, was, job)
        if key != was.key:
            self.naming.rename(known.slot, was, job)
        if key is None:
            return 0
        if job.state in ENDED:
            is_alone, known.is_alone = known.is_alone and key == was.key, False
            return LAST if is_alone else self.chains.link(known.slot, job.ended_at_us, key, self.names.of_key(key))
        if key != was.key or was.state in ENDED:
            known.is_alone = self.naming.add_key(known.slot, key)
        return 0

    def conclude(self, commit: int, last_at: int, last_seq: int) -> None:
        """Write down that this commit, with this last change and seq, is whole in the index."""
        lane_keys, lanes = self.lanes.keys, self.lanes
        self.slots.conclude(commit, lane_keys.end, lane_keys.crc, lanes.runs.generation)
        self.stamp += 1
        if lanes.loose >= lanes.seal_entries:
            sealing.seal_if_many(lanes, self.names, last_at, last_seq)
        if len(self.jobs.by_slot) > KEPT_MOST:
            self.jobs.shed()

    def stand_elsewhere(self, slot: int, job: Job) -> None:
        """File a job in its additional lanes, which its slot does not name; most live jobs have none."""
        if job.expires_at_us is not None and job.state is WAITING:
            self.lanes.stand(slot, self.expiring[job.on_wall], job.expires_at_us)
        if job.ended_at_us:
            self.lanes.stand(slot, self.newest[job.state], -job.ended_at_us)


def _lane_key(job: Job) -> LaneKey:
    if job.state is WAITING:
        return keys.DueKey(keys.DUE, job.on_wall, job.module, job.target, job.rank)
    if job.state is RUNNING:
        return (keys.RUNNING,)
    return keys.KEPT if job.forget_at_us is None else keys.ENDED, str(job.state)
