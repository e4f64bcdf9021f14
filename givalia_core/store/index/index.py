"""The index of a store: what finds its jobs, and in which order, held in mapped files that are never synced.

It follows from the jobs alone. A process that is killed leaves it as it was, but for the last commit, whose jobs are filed
again; after the machine went down, or if anything about it is strange, it is made anew from the jobs. Every step of a change
may be done twice, so it does not matter where a kill fell.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from givalia_core.model import ENDED, RUNNING, WAITING, Job, JobState
from givalia_core.store.base import Route
from givalia_core.store.index.chains import Chains, GetJobs
from givalia_core.store.index.lanes import FAR, SEAL_ENTRIES, Entry, Lane, LaneKey, Lanes
from givalia_core.store.index.names import Names
from givalia_core.store.index.slots import (
    AT,
    BASE,
    BOOT,
    COMMITS,
    DEVICE,
    END,
    ENDED_AT,
    EPOCH,
    FILE,
    FIRST_SECRET,
    FORMAT,
    IS_CLOSED,
    LANE,
    PARTS,
    PAST,
    SEALED_AT,
    SEALED_SEQ,
    SECOND_SECRET,
    SEQ,
    VERSION,
    WHEN,
    Slots,
)

INDEX_FORMAT: Final = 2
FORGOTTEN: Final[LaneKey] = ("forgotten",)  # Of jobs that are forgotten while their records are there, by where it is said.
_FILES: Final = ("slots", "names", "lanes", "lanes.keys", "runs")
_STATM: Final = Path("/proc/self/statm")
_MAPPED_MOST: Final = 96 << 20
RUNNING_LANE: Final[LaneKey] = ("running",)


class Sealed(NamedTuple):
    """Up to where the order of jobs is in the files: the last change and the last seq before the seal."""

    at: int
    seq: int


class Index:
    """Slots, names and lanes of one store, kept in step with its records.

    `jobs` reads the jobs of slots: entries of names are no proof.
    """

    def __init__(self, folder: Path, jobs: GetJobs, make_room: Callable[[], None]) -> None:
        """Nothing is opened yet."""
        self._folder = folder
        self.jobs = jobs
        self._make_room = make_room
        self._lane_of: dict[tuple[object, ...], Lane] = {}
        self.routes: dict[Route, list[Lane]] = {}  # The lanes of each route on which jobs have waited.
        self.targets: dict[str, set[str]] = {}  # By module.
        self._found: list[int] = []

    # Opening and closing.

    def open(self, epoch: int, commit: int, boot: str, name: int | None) -> Sealed | None:
        """Open what the run of this epoch left when its last commit was `commit`; None: nothing of use, it is empty now.

        `name` says which index is that of the store: the one that had this name when it was made.

        Raises:
            OSError: There is no room for it, or what is there cannot be removed.
        """
        try:
            is_sound = self._open_files(boot) and self.name == name and self._is_of(epoch, commit, boot)
        except (ValueError, IndexError, TypeError):  # The files are not what was written.
            is_sound = False
        if not is_sound:
            self.close(sync=False)
            shutil.rmtree(self._folder)
            self._open_files(boot)
            return None
        at = self.slots.at
        return Sealed(at[SEALED_AT], at[SEALED_SEQ])

    @property
    def name(self) -> int:
        """What tells it from every other index."""
        return self.slots.at[FIRST_SECRET]

    def _open_files(self, boot: str) -> bool:
        """Whether there was an index, with all its files."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        was_there = all((self._folder / name).exists() for name in _FILES)
        self._found = self._sizes() if was_there else []  # Before a file that is too short is made longer.
        self._lane_of.clear()
        self.routes.clear()
        self.targets.clear()
        path = self._folder / "slots"
        self.slots = Slots(path, self._make_room)
        at = self.slots.at
        if not at[FORMAT]:
            at[FIRST_SECRET], at[SECOND_SECRET] = struct.unpack("qq", os.urandom(16))
            at[FILE], at[DEVICE] = _identity(path)
            at[BOOT] = zlib.crc32(boot.encode())
            at[FORMAT] = INDEX_FORMAT
            was_there = False
        secret = struct.pack("qq", at[FIRST_SECRET], at[SECOND_SECRET])
        self.names = Names(self._folder / "names", secret, self._make_room)
        self.chains = Chains(self.slots, self.names, self.jobs)
        self.lanes = Lanes(self._folder, self.slots, self._make_room)
        for lane in self.lanes.by_number:
            self._note(lane)
        self._forgotten = self.lanes.lane(FORGOTTEN)
        return was_there

    def _is_of(self, epoch: int, commit: int, boot: str) -> bool:
        at = self.slots.at
        return (
            at[FORMAT] == INDEX_FORMAT
            and at[EPOCH] in (epoch, epoch + 1)  # A kill may have come between the two.
            and at[COMMITS] in (commit, commit - 1)
            and (at[FILE], at[DEVICE]) == _identity(self._folder / "slots")  # Not a copy, made at another moment than the rest.
            and (at[BOOT] == zlib.crc32(boot.encode()) or at[IS_CLOSED] == 1)
            and (at[IS_CLOSED] == 0 or at[PARTS] == self._summary(self._found))
        )

    def _sizes(self) -> list[int]:
        return [(self._folder / name).stat().st_size for name in _FILES]

    def _summary(self, sizes: list[int]) -> int:
        return zlib.crc32(self.names.summary() + self.lanes.summary() + repr(sizes).encode())

    def begin(self, epoch: int, boot: str) -> None:
        """This run, of this epoch, changes it from now on."""
        at = self.slots.at
        at[IS_CLOSED], at[EPOCH], at[BOOT] = 0, epoch, zlib.crc32(boot.encode())

    def close(self, *, sync: bool) -> None:
        """Let the files go; with `sync`, and everything sealed, they are good after a restart of the machine too."""
        if sync:
            for part in (self.names, self.lanes, self.slots):
                part.sync()
            self.slots.at[PARTS] = self._summary(self._sizes())
            self.slots.at[IS_CLOSED] = 1
            self.slots.sync()
        for name in ("names", "lanes", "slots"):
            if hasattr(self, name):  # Opening may have failed half-way.
                getattr(self, name).close()

    def trim(self) -> None:
        """Give back the memory that the files are mapped into."""
        for part in (self.names, self.lanes, self.slots):
            part.trim()

    # Names.

    def of_id(self, job_id: bytes) -> int:
        """The hash of an id."""
        return self.names.hash(b"i" + job_id)

    def of_key(self, key: str) -> int:
        """The hash of a key."""
        return self.names.hash(b"k" + key.encode())

    def of_request(self, request: bytes) -> int:
        """The hash of a request that was not an enq."""
        return self.names.hash(b"r" + request)

    def slot_with(self, job: Job) -> int | None:
        """The slot of a job that was read, also if it is forgotten, as long as its records are there."""
        at = self.slots.at
        return next((slot for slot in self.names.slots(self.of_id(job.id)) if at[slot + SEQ] == job.seq), None)

    def has_seq(self, slot: int, seq: int) -> bool:
        """Whether a slot that was written down is still that of this job."""
        at = self.slots.at
        return 0 < slot < at[END] and at[slot + SEQ] == seq

    def has_changed(self, slot: int) -> bool:
        """Whether the job of a slot has another record than that of its enq."""
        return self.slots.at[slot + AT] != 0

    def version(self, slot: int) -> int:
        """The version of the job of a slot."""
        return self.slots.at[slot + VERSION]

    def slot_of(self, job: Job, hashed: int | None = None) -> int | None:
        """The slot of a job that was read once; None if it is forgotten."""
        at = self.slots.at
        for slot in self.names.slots(self.of_id(job.id) if hashed is None else hashed):
            if at[slot + SEQ] == job.seq:
                return None if at[slot + LANE] == self._forgotten.number else slot
        return None

    def is_there(self, slot: int) -> bool:
        """Whether the slot has a job that is not forgotten."""
        at = self.slots.at
        return at[slot + SEQ] != 0 and at[slot + LANE] != self._forgotten.number

    def is_past(self, slot: int) -> bool:
        """Whether the slot's job has ended and has a key."""
        return self.slots.at[slot + PAST] != 0

    def is_named(self, slot: int, job: Job) -> bool:
        """Whether the job of a slot is found by its key, if it is live or the one that ended last."""
        assert job.key is not None
        named = self.names.slots(self.of_key(job.key))
        return slot in named or (job.state in ENDED and self.ended_last(job.key, named) is not None)

    def is_filed(self, slot: int, job: Job) -> bool:
        """Whether a slot says of its job what is so, and the job is found in the order of its lane."""
        at, lane, when = self.slots.at, self.lane_of(job), _when(job)
        if (at[slot + VERSION], at[slot + LANE], at[slot + WHEN]) != (job.version, lane.number, when):
            return False
        return self.lanes.after(lane, (when, job.seq - 1, FAR), 1) == [(when, job.seq, slot)]

    def ended_last(self, key: str, named: list[int]) -> int | None:
        """The slot of the job of this key that ended last; these are the slots that may have the key."""
        head = self.chains.head(key, named)
        at = self.slots.at
        while head is not None and head > 1:
            if self.is_there(head):
                return head
            head = at[head + PAST]
        return None

    # Lanes.

    def lane_of(self, job: Job) -> Lane:
        """Where a job is filed."""
        state = job.state
        key = (state, job.module, job.target_worker, job.specifier, job.priority, job.on_wall, job.forget_at_us is None)
        lane = self._lane_of.get(key)
        if lane is None:
            lane = self._lane_of[key] = self._lane(_lane_key(job))
        return lane

    def _lane(self, key: LaneKey) -> Lane:
        lane = self.lanes.by_key.get(key)
        if lane is None:
            lane = self.lanes.lane(key)
            self._note(lane)
        return lane

    def _note(self, lane: Lane) -> None:
        if lane.key[0] == "due":
            _, _, module, target, _ = lane.key
            self.routes.setdefault(Route(module, target), []).append(lane)
            self.targets.setdefault(module, set()).add(target)

    def ended_lanes(self, states: Iterable[JobState]) -> list[Lane]:
        """The lanes of jobs that have ended so and are to be forgotten one day."""
        wanted = set(states)
        return [lane for lane in self.lanes.by_number if lane.key[0] == "ended" and lane.key[1] in wanted]

    @property
    def forgotten(self) -> Lane:
        """Jobs that are forgotten while their records are still there."""
        return self._forgotten

    def running_after(self, seq: int, limit: int) -> list[Entry]:
        """The next running jobs behind a seq, in the order of their seqs."""
        lane = self.lanes.by_key.get(RUNNING_LANE)
        return [] if lane is None else self.lanes.after(lane, (0, seq, FAR), limit)

    # Changes.

    def insert(self, job: Job, base: int, hashed_id: int | None = None, hashed_key: int | None = None) -> int:
        """A new job, whose record is at `base`; its slot."""
        slot = self.place(job, base, hashed_id)
        self.enter(slot, job, hashed_key)
        return slot

    def place(self, job: Job, base: int, hashed_id: int | None = None) -> int:
        """Take a slot for a job and let it be found by its id, and by nothing else before `enter`; its version there is 0."""
        slot = self.slots.take()
        at = self.slots.at
        at[slot + LANE] = -1
        at[slot + PAST] = at[slot + AT] = at[slot + VERSION] = 0
        at[slot + BASE] = base
        at[slot + SEQ] = job.seq
        self.names.add(self.of_id(job.id) if hashed_id is None else hashed_id, slot)
        return slot

    def enter(self, slot: int, job: Job, hashed_key: int | None = None) -> None:
        """Let a job that has a slot be found by its key and its requests and in its lane."""
        at = self.slots.at
        at[slot + ENDED_AT] = job.ended_at_us
        if job.key is not None:
            if job.state not in ENDED:
                self.names.add(self.of_key(job.key) if hashed_key is None else hashed_key, slot)
            else:
                if at[slot + PAST]:  # A kill may have come while it was linked.
                    self.chains.unlink({slot}, [self.of_key(job.key)])
                self.chains.link(slot, job.key, self.of_key(job.key))
        self._add_requests(slot, job)
        self._file(slot, job)
        at[slot + VERSION] = job.version

    def note(self, slot: int, version: int, place: int) -> None:
        """A job that is not entered yet has a later record at this place."""
        self.slots.at[slot + AT], self.slots.at[slot + VERSION] = place, version

    def change(self, slot: int, was: Job, job: Job, place: int) -> None:
        """The job of a slot is another than it was; its record is at `place`."""
        at = self.slots.at
        if at[slot + PAST]:
            # After a kill it may be in the chain that it is to come to.
            self.chains.unlink({slot}, {self.of_key(key) for key in (was.key, job.key) if key is not None})
        if was.key is not None and was.key != job.key:
            self.names.remove(self.of_key(was.key), slot)
        at[slot + ENDED_AT] = job.ended_at_us
        if job.key is not None:
            if job.state in ENDED:
                self.chains.link(slot, job.key, self.of_key(job.key))
            elif was.key != job.key or was.state in ENDED:
                self.names.add(self.of_key(job.key), slot)
        if was.answered is not job.answered:
            self._add_requests(slot, job)
            for past in set(was.answered).difference(job.answered):
                self.names.remove(self.of_request(past.request), slot)
        self._file(slot, job)
        # Last, for a kill in here leaves what was, to be done again.
        at[slot + AT], at[slot + VERSION] = place, job.version

    def stand_again(self, slot: int, job: Job) -> None:
        """After a kill: the job's entry in the order of its lane was not sealed."""
        self.lanes.stand(slot, self.lane_of(job), _when(job))
        self._stand_by_expiry(slot, job)

    def name_again(self, slot: int, job: Job) -> None:
        """After a kill: what the job was before may be lost, for the record of its enq is replaced when its params change."""
        if job.key is not None and job.state not in ENDED:
            self.names.add(self.of_key(job.key), slot)

    def _add_requests(self, slot: int, job: Job) -> None:
        for past in job.answered:
            if past.request != job.id:
                self.names.add(self.of_request(past.request), slot)

    def _file(self, slot: int, job: Job) -> None:
        self.lanes.move(slot, self.lane_of(job), _when(job))
        self._stand_by_expiry(slot, job)

    def _stand_by_expiry(self, slot: int, job: Job) -> None:
        if job.expires_at_us is not None and job.state is WAITING:
            self.lanes.stand(slot, self._lane(("expires", job.on_wall)), job.expires_at_us)

    def forget(self, slot: int, place: int) -> None:
        """The job of a slot is forgotten, which is written at `place`; until `drop` only the slot's records are known."""
        self.lanes.move(slot, self._forgotten, place)

    def unname(self, jobs: dict[int, Job]) -> None:
        """The records of forgotten jobs will be gone; these are what they said last. Ids stay: a restart looks for them."""
        at = self.slots.at
        ended: dict[str, set[int]] = {}  # A chain may be long: it is walked once for all of them.
        for slot, job in jobs.items():
            if job.key is not None and at[slot + PAST]:
                ended.setdefault(job.key, set()).add(slot)
        for key, gone in ended.items():
            self.chains.unlink(gone, [self.of_key(key)])
        for slot, job in jobs.items():
            if job.key is not None:
                self.names.remove(self.of_key(job.key), slot)
            for past in job.answered:
                if past.request != job.id:
                    self.names.remove(self.of_request(past.request), slot)

    def drop(self, slot: int, job: Job | None) -> None:
        """The records of an unnamed job are gone; without a job they were so before, and a kill came in between."""
        if job is not None:
            self.names.remove(self.of_id(job.id), slot)
        self.slots.free(slot)
        self.lanes.take_out(slot)

    def expect(self, seq: int) -> None:
        """Jobs from this seq on come in; they may be below those that came in before, and a restart is to look at them."""
        at = self.slots.at
        at[SEALED_SEQ] = min(at[SEALED_SEQ], seq - 1)

    def is_whole(self, commit: int) -> bool:
        """Whether all commits up to this one are in the index."""
        return self.slots.at[COMMITS] == commit

    def conclude(self, commit: int, last_at: int, last_seq: int) -> None:
        """A commit is whole in the index, whose last change and seq are these."""
        self.slots.at[COMMITS] = commit
        self.seal_if_many(last_at, last_seq)

    def seal_if_many(self, last_at: int, last_seq: int) -> None:
        """Seal, if there is enough for a run."""
        if self.lanes.loose >= SEAL_ENTRIES:
            self.seal(last_at, last_seq)

    def seal(self, last_at: int, last_seq: int) -> None:
        """Have the order of all jobs in the files, so that a restart need not look at what was before."""
        self.lanes.seal()
        at = self.slots.at
        at[SEALED_AT], at[SEALED_SEQ] = last_at, last_seq

    def trim_if_large(self) -> None:
        """Keep what this process is said to hold within bounds, where the system tells."""
        try:
            shared = int(_STATM.read_text().split()[2]) * mmap.PAGESIZE
        except OSError:
            return
        if shared > _MAPPED_MOST:
            self.trim()


def _when(job: Job) -> int:
    if job.state is WAITING:
        return job.due_at_us
    return 0 if job.state is RUNNING or job.forget_at_us is None else job.forget_at_us


def _lane_key(job: Job) -> LaneKey:
    if job.state is WAITING:
        return "due", job.on_wall, job.module, job.target, job.rank
    if job.state is RUNNING:
        return RUNNING_LANE
    return "kept" if job.forget_at_us is None else "ended", str(job.state), job.module


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_dev & 0x7FFF_FFFF_FFFF_FFFF
