"""The index of a store: what finds its jobs, and in which order, held in mapped files that are never synced.

It follows from the records alone, and none of it is believed before it was compared with its checks. A process that is killed
leaves it as it was, but for the last commit, whose jobs are filed again. After the machine went down, or if anything about it
is strange, the store rebuilds it from the records. Every step of a change may be done twice, so a kill may come at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from givalia_core.model import ENDED, RUNNING, WAITING, Job, JobState
from givalia_core.store.base import Route
from givalia_core.store.sqlite.index import keys, sealing
from givalia_core.store.sqlite.index.chains import LAST, Chains
from givalia_core.store.sqlite.index.jobs import KEPT_BYTES, Jobs, Known, ReadRecords
from givalia_core.store.sqlite.index.keys import LaneKey
from givalia_core.store.sqlite.index.lane import Lane
from givalia_core.store.sqlite.index.lanes import Lanes
from givalia_core.store.sqlite.index.names import Names
from givalia_core.store.sqlite.index.naming import Naming
from givalia_core.store.sqlite.index.slots import AT, ORIGIN, PAST, VERSION_SHIFT, Slots, origin_of

_ORIGIN: Final = (1 << VERSION_SHIFT) - 1

Update = tuple[Known, Job, Job]
"""A job that changes: where it is, what it was, and what it is."""


class Index:
    """Slots, names and lanes of one store, kept in step with its records."""

    # These come with the opening, and others with each new one.
    slots: Slots
    names: Names
    chains: Chains
    lanes: Lanes
    jobs: Jobs
    naming: Naming
    forgotten: Lane  # Of jobs that are forgotten while their records are there.
    running: Lane
    newest: dict[JobState, Lane]  # Of all jobs that ended so, the last one first.
    ended: dict[JobState, Lane]  # Of those among them that are forgotten one day, the next one first.
    expiring: dict[bool, Lane]  # By clock.

    def __init__(self, folder: Path, read: ReadRecords, make_room: Callable[[], None]) -> None:
        """Nothing is opened yet.

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
        self.stamp = 0  # Another one after each commit.
        self.touched = 0  # Jobs whose part of the index may have been mapped lately.
        self.strangeness = ""  # Why the index was not used as it was found.
        self.ahead = 0  # Commits that it knows of, and that the records did not have when it was opened.
        self.was_closed = False
        self.is_verified = False  # Whether the scrub has seen all of it since it was opened.

    @property
    def name(self) -> int:
        """What tells it from every other index."""
        return self.slots.header.first_secret

    @property
    def is_sure(self) -> bool:
        """Whether damage that is found now can be no trace of a kill."""
        return self.was_closed or self.is_verified

    def prepare(self, jobs: Sequence[Job], updates: Sequence[Update]) -> list[Lane]:
        """Have room for what a commit brings before it is accepted: afterwards a full disk must not be met.

        Returns:
            The lanes of the new jobs, then those of the updates.

        Raises:
            OSError: There is no room.
        """
        if jobs:
            self.slots.secure(len(jobs))
            if jobs[0].seq <= min(self.lanes.runs.sealed_seq, self.slots.header.floor):
                # They are below jobs that came in before, and a restart has to read them.
                sealing.write_header(self.lanes, floor=jobs[0].seq - 1)
        lane_of = self.lane_of
        return [lane_of(job) for job in jobs] + [lane_of(job) for _, _, job in updates]

    def lane_of(self, job: Job) -> Lane:
        """Return the lane that a job belongs to, which is made if there is none.

        Raises:
            OSError: There is no room for it.
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
        """Let a lane be found by its route."""
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
        slot, key, names = self.slots.take(), job.key, self.names
        is_ended = job.state is not WAITING and job.state is not RUNNING
        when = job.due_at_us if lane.is_due else job.forget_at_us or 0 if is_ended else 0
        ended_at = job.ended_at_us if is_ended else 0
        self.slots.write(slot, job.seq, origin_of(job.seq, job.version, base), lane.number, when, 0, 0, ended_at)
        hashed = absent.get(job.id)
        names.add(names.hash(b"i" + job.id) if hashed is None else hashed, slot)
        known = self.jobs.keep(slot, job)
        if key is not None:
            hashed = absent.get(key)
            hashed = names.hash(b"k" + key.encode()) if hashed is None else hashed
            if is_ended:
                self.naming.name_ended(slot, job, hashed)
            elif names.add(hashed, slot):
                known.is_alone = True
            else:
                self.naming.share(hashed)
        if job.answered:
            self.naming.add_requests(slot, job)
        self.lanes.stand(slot, lane, when)
        if ended_at or job.expires_at_us is not None:
            self.stand_elsewhere(slot, job)
        return slot

    def change(self, known: Known, was: Job, job: Job, place: int, lane: Lane) -> None:
        """Let a job be another than it was; its record is at `place`."""
        slot, slots, at, key = known.slot, self.slots, self.slots.at, job.key
        is_ended = job.state is not WAITING and job.state is not RUNNING
        when = job.due_at_us if lane.is_due else job.forget_at_us or 0 if is_ended else 0
        if before := at[slot + AT]:
            self.replaced.append((before, job.seq))
        if at[slot + PAST]:
            self.naming.unchain(slot, was, job)
        past = ended_at = 0
        if key != was.key:
            self.naming.rename(slot, was, job)
        if is_ended:
            ended_at = job.ended_at_us
            if key is not None:
                is_alone, known.is_alone = known.is_alone and key == was.key, False
                past = LAST if is_alone else self.chains.link(slot, ended_at, key, self.names.of_key(key))
        elif key is not None and (key != was.key or was.state in ENDED):
            known.is_alone = self.naming.add_key(slot, key)
        if was.answered is not job.answered:
            self.naming.change_requests(slot, was, job)
        # In one go and last: a kill before this leaves what was, to be done again.
        origin = job.version << VERSION_SHIFT | at[slot + ORIGIN] & _ORIGIN
        slots.write(slot, job.seq, origin, lane.number, when, place, past, ended_at)
        self.lanes.stand(slot, lane, when)
        if ended_at:
            self.lanes.stand(slot, self.newest[job.state], -ended_at)
        elif job.expires_at_us is not None:
            self.stand_elsewhere(slot, job)
        known.version = job.version
        known.job = job if len(job.params) + len(job.result or b"") <= KEPT_BYTES else None

    def conclude(self, commit: int, last_at: int, last_seq: int) -> None:
        """Write down that a commit is whole in the index, whose last change and seq are these."""
        keys, runs = self.lanes.keys, self.lanes.runs
        self.slots.conclude(commit, keys.end, keys.crc, runs.generation)
        self.stamp += 1
        if self.lanes.loose >= self.lanes.seal_entries:
            sealing.seal_if_many(self.lanes, self.names, last_at, last_seq)

    def stand_elsewhere(self, slot: int, job: Job) -> None:
        """File a job in the lanes beside the one that its slot names; most jobs that live are in none."""
        if job.expires_at_us is not None and job.state is WAITING:
            self.lanes.stand(slot, self.expiring[job.on_wall], job.expires_at_us)
        if job.ended_at_us:
            self.lanes.stand(slot, self.newest[job.state], -job.ended_at_us)


def _lane_key(job: Job) -> LaneKey:
    if job.state is WAITING:
        return keys.Due(keys.DUE, job.on_wall, job.module, job.target, job.rank)
    if job.state is RUNNING:
        return (keys.RUNNING,)
    return keys.KEPT if job.forget_at_us is None else keys.ENDED, str(job.state)
