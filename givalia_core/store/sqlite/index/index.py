"""The index of a store: what finds its jobs, and in which order, held in mapped files that are never synced.

It follows from the jobs alone, and none of it is believed before it was compared with its checks. A process that is killed
leaves it as it was, but for the last commit, whose jobs are filed again. After the machine went down, or if anything about it
is strange, the store rebuilds it from the jobs. Every step of a change may be done twice, so a kill may come at any moment.
"""

from __future__ import annotations

import contextlib
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
from givalia_core.store.sqlite.index.chains import LAST, Chains, GetJobs
from givalia_core.store.sqlite.index.keys import EXPIRES, FORGOTTEN, NEWEST, LaneKey
from givalia_core.store.sqlite.index.lanes import SEAL_ENTRIES, Lane, Lanes
from givalia_core.store.sqlite.index.names import Names
from givalia_core.store.sqlite.index.runs import Entry, Run
from givalia_core.store.sqlite.index.slots import AT, ENDED_AT, FAR, LANE, ORIGIN, PAST, SEQ, WHEN, Header, Slots, origin_of
from givalia_core.store.sqlite.index.words import NO_FILE, Damaged

INDEX_FORMAT: Final = 5
RUNNING_LANE: Final[LaneKey] = ("running",)
_FILES: Final = ("slots", "sums", "names", "lanes.keys", "runs")
_CHECKED: Final = hash((1, -1, 1 << 40, 1 << 62))  # Differs where an interpreter hashes numbers in another way.
_FIXED: Final = (
    FORGOTTEN,
    RUNNING_LANE,
    *((EXPIRES, on_wall) for on_wall in (False, True)),
    *((kind, str(state)) for kind in ("ended", "kept", NEWEST) for state in sorted(ENDED)),
)
DAMAGED: Final = "it is not what was written"
_STATM: Final = Path("/proc/self/statm")
_MAPPED_MOST: Final = 96 << 20
_LANES_AT_ONCE: Final = 500
_ALONE_MOST: Final = 50_000
_SEAL_AGAIN: Final = 1_024  # Loose entries that come in before a seal that failed is tried again.


class Sealed(NamedTuple):
    """Up to where the order of jobs is in the files: the last change and the last seq before the seal."""

    at: int
    seq: int


class Index:
    """Slots, names and lanes of one store, kept in step with its records.

    `jobs` reads the jobs of slots: entries of names are no proof.
    """

    def __init__(self, folder: Path, jobs: GetJobs, make_room: Callable[[], None]) -> None:
        """Nothing is opened yet. `make_room` is called when the disk is full."""
        self._folder = folder
        self.jobs = jobs
        self._make_room = make_room
        self._lane_of: dict[tuple[object, ...], Lane] = {}
        self.routes: dict[Route, list[Lane]] = {}  # The lanes of each route on which jobs have waited.
        self.targets: dict[str, set[str]] = {}  # By module.
        self._alone: dict[int, int] = {}  # Slot -> seq, of live jobs whose keys no other job has.
        self._seal_entries = SEAL_ENTRIES
        self.strangeness = ""  # Why the index was not used as it was found.
        self.ahead = 0  # Commits that it knows of, and that the records did not have when it was opened.
        self._was_closed = False
        self.is_verified = False  # Whether the scrub has seen all of it since it was opened.

    # Opening and closing.

    def open(self, epoch: int, commit: int, boot: str, name: int | None) -> Sealed | None:
        """Open what the run of this epoch left when its last commit was `commit`; None: it is of no use, and `remake` follows.

        Args:
            epoch: The epoch of the last run.
            commit: The number of its last commit.
            boot: The id of this boot of the machine.
            name: The name of the index that belongs to the store, given to it when it was made.

        Raises:
            OSError: There is no room, or what is there cannot be removed.
        """
        self.ahead = 0
        if self._is_no_folder:
            self.strangeness = f"{DAMAGED}: {self._folder.name} is no folder of its own"
            return None
        try:
            was_there = self._open_files(boot)
            self.strangeness = self._strangeness(epoch, commit, boot, name) if was_there else "it was not there"
        except (Damaged, ValueError, IndexError, TypeError, struct.error) as error:  # The files are not what was written.
            self.strangeness = f"{DAMAGED}: {error}"
        except OSError as error:
            if error.errno not in NO_FILE:
                raise
            self.strangeness = f"{DAMAGED}: {error}"
        if self.strangeness:
            return None
        return Sealed(self.lanes.runs.sealed_at, min(self.lanes.runs.sealed_seq, self.slots.header.floor))

    def remake(self, boot: str) -> None:
        """Remove the index and make an empty one, which has another name.

        Raises:
            OSError: There is no room, or what is there cannot be removed.
        """
        self.close(sync=False)
        if self._is_no_folder:
            self._folder.unlink()  # Through a link nothing is removed: what it leads to is somebody else's.
        elif self._folder.exists():
            shutil.rmtree(self._folder)
        self._open_files(boot)

    @property
    def _is_no_folder(self) -> bool:
        """Return whether the folder is replaced by a link or a file."""
        return self._folder.is_symlink() or (self._folder.exists() and not self._folder.is_dir())

    @property
    def name(self) -> int:
        """What tells it from every other index."""
        return self.slots.header.first_secret

    def _open_files(self, boot: str) -> bool:
        """Open all files; returns whether all of them were there."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        was_there = all((self._folder / name).exists() for name in _FILES)
        self._lane_of.clear()
        self.routes.clear()
        self.targets.clear()
        self._alone.clear()
        self._seal_entries = SEAL_ENTRIES
        self.slots = Slots(self._folder, self._make_room)
        header = self.slots.header
        self._was_closed, self.is_verified = header.is_closed == 1, False
        if not header.format:
            secrets = struct.unpack("qq", os.urandom(16))
            file, device = _identity(self._folder / "slots")
            header = Header(INDEX_FORMAT, _CHECKED, boot=_crc(boot), first_secret=secrets[0], second_secret=secrets[1])
            self.slots.write_header(header._replace(file=file, device=device))
            was_there = False
        elif header.format != INDEX_FORMAT or header.checked != _CHECKED:
            raise Damaged("it is of another format")
        secret = struct.pack("qq", header.first_secret, header.second_secret)
        self.names = Names(self._folder / "names", secret, self.slots, self._make_room)
        self.chains = Chains(self.slots, self.names, self.jobs)
        self.lanes = Lanes(self._folder, self.slots, self._make_room)
        for lane in self.lanes.by_key.values():
            self._note(lane)
        # All but those of waiting jobs are there from the beginning: a full disk is no time to need another one.
        for key in _FIXED:
            self.lanes.lane(key)
        self._forgotten = self.lanes.lane(FORGOTTEN)
        self._newest = {state: self.lanes.lane((NEWEST, str(state))) for state in ENDED}
        return was_there

    def _strangeness(self, epoch: int, commit: int, boot: str, name: int | None) -> str:
        """Return why the index is not the one that the last run left, if it is not."""
        header = self.slots.header
        if self.name != name:
            return "it is that of another store"
        self.ahead = max(header.commits - commit, 0)  # It is told of a commit when that is on stable storage.
        if header.epoch not in (epoch, epoch + 1) or header.commits not in (commit, commit - 1):  # A kill may come between.
            return "it is of another time than the records"
        if (header.file, header.device) != _identity(self._folder / "slots"):
            return "it is a copy, and may be of another moment than the records"
        if header.boot != _crc(boot) and not header.is_closed:
            return "the machine went down, and what was not synced is lost"
        return ""

    @property
    def is_sure(self) -> bool:
        """Whether damage that is found now can be no trace of a kill."""
        return self._was_closed or self.is_verified

    def begin(self, epoch: int, boot: str) -> None:
        """Let this run, of this epoch, change it from now on."""
        self.slots.write_header(self.slots.header._replace(is_closed=0, epoch=epoch, boot=_crc(boot)))

    def close(self, *, sync: bool) -> None:
        """Close the files; with `sync`, and everything sealed, they are good after a restart of the machine too."""
        if sync:
            for part in (self.names, self.lanes, self.slots):
                part.sync()
            self._write_header(is_closed=1)
            self.slots.sync()
        for name in ("names", "lanes", "slots"):
            if hasattr(self, name):  # Opening may have failed half-way.
                getattr(self, name).close()

    def _write_header(self, **changes: int) -> None:
        keys, runs = self.lanes.keys, self.lanes.runs
        self.slots.write_header(
            self.slots.header._replace(
                end=self.slots.end, keys_end=keys.end, keys_crc=keys.crc, generation=runs.generation, **changes
            )
        )

    def trim(self) -> None:
        """Give back the memory that the files are mapped into."""
        for part in (self.names, self.lanes, self.slots):
            part.trim()

    # Names.

    def of_id(self, job_id: bytes) -> int:
        """Return the hash of an id."""
        return self.names.hash(b"i" + job_id)

    def of_key(self, key: str) -> int:
        """Return the hash of a key."""
        return self.names.hash(b"k" + key.encode())

    def of_request(self, request: bytes) -> int:
        """Return the hash of a request that was not an enq."""
        return self.names.hash(b"r" + request)

    def slot_with(self, job: Job) -> int | None:
        """Return the slot of a job that was read, also if it is forgotten, as long as its records are there."""
        at = self.slots.at
        return next((slot for slot in self.names.slots(self.of_id(job.id)) if at[slot + SEQ] == job.seq), None)

    def has_seq(self, slot: int, seq: int) -> bool:
        """Return whether a slot that was written down is still that of this job."""
        if not self.slots.is_slot(slot):
            return False
        self.slots.ensure((slot,))
        return self.slots.at[slot + SEQ] == seq

    def version(self, slot: int) -> int:
        """Return the version of the job of a slot."""
        return self.slots.version(slot)

    def slot_of(self, job: Job, hashed: int | None = None) -> int | None:
        """Return the slot of a job that was read once; None if it is forgotten."""
        at = self.slots.at
        for slot in self.names.slots(self.of_id(job.id) if hashed is None else hashed):
            if at[slot + SEQ] == job.seq:
                return None if at[slot + LANE] == self._forgotten.number else slot
        return None

    def is_there(self, slot: int) -> bool:
        """Return whether the slot has a job that is not forgotten."""
        at = self.slots.at
        return at[slot + SEQ] != 0 and at[slot + LANE] != self._forgotten.number

    def is_past(self, slot: int) -> bool:
        """Return whether the slot's job has ended and has a key."""
        return self.slots.at[slot + PAST] != 0

    def ended_last(self, key: str, named: list[int]) -> int | None:
        """Return the slot of the job of this key that ended last; `named` are the slots that may have the key."""
        slot = self.chains.head(key, named) or 0
        for _ in range(self.slots.most + 1):
            if not slot:
                return None
            if self.is_there(slot):
                return slot
            slot = self.chains.older(slot)
        raise Damaged("the ended jobs of a key go round in a circle")

    # Lanes.

    def lane_of(self, job: Job) -> Lane:
        """Return the lane that a job belongs to, which is made if there is none.

        Raises:
            OSError: There is no room for it.
        """
        key: tuple[object, ...]
        if job.state is WAITING:
            key = (job.module, job.target_worker, job.specifier, job.priority, job.on_wall)
        else:
            key = (job.state, job.forget_at_us is None)
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
        if lane.is_due:
            _, _, module, target, _ = lane.key
            self.routes.setdefault(Route(module, target), []).append(lane)
            self.targets.setdefault(module, set()).add(target)

    def verify_rest(self) -> None:
        """Compare what is neither slots, nor shards, nor runs with what was written.

        Raises:
            Damaged: It is another.
        """
        self.slots.verify_header()
        self.slots.verify_total()
        self.names.verify_total()
        self.lanes.keys.verify()
        self.lanes.runs.verify_list()

    def end_round(self) -> None:
        """End a round of the scrub, which has seen the whole index."""
        self.is_verified = True
        self.lanes.end_round()
        if self.slots.cut():
            self.lanes.forget_behind(self.slots.end)
        self.names.cut()
        self.lanes.runs.cut()
        self._write_header()

    def free_lanes(self) -> None:
        """Let go of some of the lanes that hold no job."""
        for lane in self.lanes.free_unused(_LANES_AT_ONCE):
            _, _, module, target, _ = lane.key
            route = Route(module, target)
            self.routes[route].remove(lane)
            if not self.routes[route]:
                del self.routes[route]
                self.targets[module].discard(target)
                if not self.targets[module]:
                    del self.targets[module]
        self._lane_of.clear()
        if not self.lanes.unused:
            self.lanes.forget_freed()
            self._write_header()

    def thin_out(self, run: Run) -> int:
        """Drop a run, lay it together with another one or move it, if that makes the file smaller; returns how many are gone.

        Raises:
            Damaged: A run is not what was written.
            OSError: There is no room; all is as before.
        """
        gone = self.lanes.thin_out(run)
        if gone:
            self._write_header()  # Before another list is written: one that the header does not know of may be behind it.
        return gone

    def ended_lanes(self, states: Iterable[JobState]) -> list[Lane]:
        """Return the lanes of jobs that ended so and are to be forgotten one day."""
        lanes = (self.lanes.by_key.get(("ended", str(state))) for state in states)
        return [lane for lane in lanes if lane is not None]

    def newest(self, state: JobState) -> Lane:
        """Return the lane of all jobs that ended so, the last one first."""
        return self._newest[state]

    @property
    def forgotten(self) -> Lane:
        """The lane of jobs that are forgotten while their records are still there."""
        return self._forgotten

    def running_after(self, seq: int, limit: int) -> list[Entry]:
        """Return the next running jobs behind a seq, in the order of their seqs."""
        lane = self.lanes.by_key.get(RUNNING_LANE)
        return [] if lane is None else self.lanes.after(lane, (0, seq, FAR), limit)

    # Changes.

    def insert(
        self, job: Job, base: int, hashed_id: int | None = None, hashed_key: int | None = None, lane: Lane | None = None
    ) -> int:
        """Enter a new job, whose record is at `base`; returns its slot."""
        slot = self.slots.take()
        lane, when = lane or self.lane_of(job), _when(job)
        ended = job.state in ENDED
        self.slots.write(
            slot, job.seq, origin_of(job.seq, job.version, base), lane.number, when, 0, 0, job.ended_at_us if ended else 0
        )
        self.names.add(self.of_id(job.id) if hashed_id is None else hashed_id, slot)
        if job.key is not None:
            self._name_key(slot, job, self.of_key(job.key) if hashed_key is None else hashed_key)
        self._add_requests(slot, job)
        self.lanes.stand(slot, lane, when)
        if job.expires_at_us is not None or job.ended_at_us:
            self._stand_elsewhere(slot, job)
        return slot

    def _name_key(self, slot: int, job: Job, hashed: int) -> None:
        """Let the job of a slot be found by its key."""
        assert job.key is not None
        if job.state not in ENDED:
            self._add_key(hashed, slot, job.seq)
            return
        if self.slots.at[slot + PAST]:  # A kill may have come while it was linked.
            self.chains.unlink(slot, hashed)
        self._share(hashed)
        past = self.chains.link(slot, job.ended_at_us, job.key, hashed)
        if self.slots.at[slot + PAST] != past:
            self.slots.put(slot, PAST, past)

    def _add_key(self, hashed: int, slot: int, seq: int) -> None:
        """Let a live job be found by its key, and note whether no other job has that key."""
        if not self.names.add(hashed, slot):
            self._share(hashed)
            return
        if len(self._alone) >= _ALONE_MOST:
            self._alone.clear()
        self._alone[slot] = seq

    def _share(self, hashed: int) -> None:
        """Another job comes to have this key: when one of them ends, the others are looked for."""
        for slot in self.names.slots(hashed):
            self._alone.pop(slot, None)

    def place(self, job: Job, base: int) -> int:
        """Take a slot for a job and let it be found by its id, and by nothing else before `enter`; its version there is 0."""
        slot = self.slots.take()
        self.slots.write(slot, job.seq, origin_of(job.seq, 0, base), -1, 0, 0, 0, 0)
        self.names.add(self.of_id(job.id), slot)
        return slot

    def note(self, slot: int, version: int, place: int) -> None:
        """Write down that a placed job has a later record, at this place."""
        seq, base = self.slots.at[slot], self.slots.base(slot)
        self.slots.write(slot, seq, origin_of(seq, version, base), -1, 0, place, 0, 0)

    def enter(self, slot: int, job: Job) -> None:
        """Let a placed job be found by its key and its requests and in its lane."""
        lane, when = self.lane_of(job), _when(job)
        at = self.slots.at
        origin = origin_of(job.seq, job.version, self.slots.base(slot))
        ended_at = job.ended_at_us if job.state in ENDED else 0
        self.slots.write(slot, job.seq, origin, lane.number, when, at[slot + AT], at[slot + PAST], ended_at)
        if job.key is not None:
            self._name_key(slot, job, self.of_key(job.key))
        self._add_requests(slot, job)
        self._stand(slot, lane, when, job)

    def change(self, slot: int, was: Job, job: Job, place: int, lane: Lane | None = None) -> None:
        """Let the job of a slot be another than it was; its record is at `place`."""
        slots, at, key = self.slots, self.slots.at, job.key
        lane, when = lane or self.lane_of(job), _when(job)
        if at[slot + PAST]:
            # After a kill a job that was live may be in the chain that it is to come to.
            chained = was.key if was.state in ENDED else key
            self.chains.unlink(slot, None if chained is None else self.of_key(chained))
        if was.key is not None and was.key != key:
            self.names.remove(self.of_key(was.key), slot)
        past = ended_at = 0
        if job.state in ENDED:
            ended_at = job.ended_at_us
            if key is not None:
                is_alone = self._alone.pop(slot, 0) == job.seq and was.key == key
                if was.key != key:
                    self._share(self.of_key(key))
                past = LAST if is_alone else self.chains.link(slot, ended_at, key, self.of_key(key))
        elif key is not None and (was.key != key or was.state in ENDED):
            self._add_key(self.of_key(key), slot, job.seq)
        if was.answered is not job.answered:
            self._change_requests(slot, was, job)
        # In one go and last: a kill before this leaves what was, to be done again.
        origin = job.version << 16 | at[slot + ORIGIN] & 0xFFFF
        slots.write(slot, job.seq, origin, lane.number, when, place, past, ended_at)
        self.lanes.stand(slot, lane, when)
        if job.expires_at_us is not None or job.ended_at_us:
            self._stand_elsewhere(slot, job)

    def stand_again(self, slot: int, job: Job) -> None:
        """After a kill: file the entries of a job that were in memory only."""
        if job.key is not None and (job.state not in ENDED or self.chains.is_head(slot)):
            self._name_key(slot, job, self.of_key(job.key))
        self._add_requests(slot, job)
        self._stand(slot, self.lane_of(job), _when(job), job)

    def name_again(self, slot: int, job: Job) -> None:
        """After a kill: what the job was before may be lost, for the record of its enq is replaced when its params change."""
        if job.key is not None and job.state not in ENDED:
            self._add_key(self.of_key(job.key), slot, job.seq)

    def _add_requests(self, slot: int, job: Job) -> None:
        for past in job.answered:
            if past.request != job.id:
                self.names.add(self.of_request(past.request), slot)

    def _change_requests(self, slot: int, was: Job, job: Job) -> None:
        """Name the slot by the requests that are new; a job may remember a thousand, and each change adds one."""
        before, after = set(was.answered), set(job.answered)
        for past in after - before:
            if past.request != job.id:
                self.names.add(self.of_request(past.request), slot)
        for past in before - after:
            self.names.remove(self.of_request(past.request), slot)

    def _stand(self, slot: int, lane: Lane, when: int, job: Job) -> None:
        self.lanes.stand(slot, lane, when)
        self._stand_elsewhere(slot, job)

    def _stand_elsewhere(self, slot: int, job: Job) -> None:
        """File a job in the lanes beside the one that its slot names; most jobs that live are in none."""
        if job.expires_at_us is not None and job.state is WAITING:
            self.lanes.stand(slot, self._lane((EXPIRES, job.on_wall)), job.expires_at_us)
        if job.ended_at_us:
            self.lanes.stand(slot, self._newest[job.state], -job.ended_at_us)

    def forget(self, slot: int, place: int) -> None:
        """File a job as forgotten, which is written at `place`; until `drop` only the slot's records are known."""
        seq, origin, _, _, at, past, ended_at = self.slots.at[slot : slot + 7].tolist()
        self.slots.write(slot, seq, origin, self._forgotten.number, place, at, past, ended_at)
        self.lanes.stand(slot, self._forgotten, place)

    def unname(self, jobs: dict[int, Job]) -> None:
        """Take away the names of forgotten jobs: their records, which say what they are called, will be gone.

        Ids stay, for a restart looks for them.
        """
        for slot, job in jobs.items():
            if job.key is not None:
                hashed = self.of_key(job.key)
                if self.slots.at[slot + PAST]:
                    self.chains.unlink(slot, hashed)
                self.names.remove(hashed, slot)
            for past in job.answered:
                if past.request != job.id:
                    self.names.remove(self.of_request(past.request), slot)

    def drop(self, slot: int, job: Job | None) -> None:
        """Let the slot of an unnamed job be used again; without a job its records were gone before, by a kill."""
        if job is not None:
            self.names.remove(self.of_id(job.id), slot)
        self.slots.free(slot)

    def expect(self, seq: int) -> None:
        """Jobs from this seq on come in; they may be below those that came in before, and a restart has to look at them."""
        if seq <= min(self.lanes.runs.sealed_seq, self.slots.header.floor):
            self._write_header(floor=seq - 1)

    def is_whole(self, commit: int) -> bool:
        """Return whether all commits up to this one are in the index."""
        return self.slots.header.commits == commit

    def conclude(self, commit: int, last_at: int, last_seq: int) -> None:
        """Write down that a commit is whole in the index, whose last change and seq are these."""
        keys, runs = self.lanes.keys, self.lanes.runs
        self.slots.conclude(commit, keys.end, keys.crc, runs.generation)
        self.seal_if_many(last_at, last_seq)

    def seal_if_many(self, last_at: int, last_seq: int) -> None:
        """Seal, if there is enough for a run. On a full disk the entries stay in memory until there is room."""
        if self.lanes.loose >= self._seal_entries and self.names.is_whole:
            try:
                self.seal(last_at, last_seq)
            except OSError:
                self._make_room()
                self._seal_entries = self.lanes.loose + _SEAL_AGAIN

    def seal(self, last_at: int, last_seq: int) -> None:
        """Have the order of all jobs in the files, so that a restart need not look at what was before.

        Raises:
            OSError: There is no room; nothing has changed.
        """
        self.lanes.seal(last_at, last_seq)
        self._seal_entries = SEAL_ENTRIES
        self._write_header(floor=FAR)

    def trim_if_large(self) -> None:
        """Keep what this process is said to hold within bounds, where the system tells."""
        try:
            shared = int(_STATM.read_text().split()[2]) * mmap.PAGESIZE
        except OSError:
            return
        if shared > _MAPPED_MOST:
            self.trim()

    # Comparing it with the records.

    def owners(self, places: set[int], rows: set[int]) -> dict[int, int]:
        """Return the seqs of the jobs whose newest record is at one of these places or in one of these rows, with its place.

        What cannot be read of the index is left out: this is for an index that is about to be rebuilt.
        """
        found: dict[int, int] = {}
        with contextlib.suppress(AttributeError, Damaged, IndexError, ValueError):
            for page in range(self.slots.pages):
                with contextlib.suppress(Damaged):
                    self.slots.verify(page)
                    found.update(
                        (seq, place)
                        for seq, place in self.slots.newest_of(page)
                        if seq and place and (place >> 8 in places or place >> 16 in rows)
                    )
        return found

    def faults_of(self, slot: int, job: Job) -> list[str]:
        """Return in which ways a slot does not say of its job what is so."""
        slots, lane, when = self.slots, self.lane_of(job), _when(job)
        faults = []
        ended_at = job.ended_at_us if job.state in ENDED else 0
        told = (slots.version(slot), slots.at[slot + LANE], slots.at[slot + WHEN], slots.at[slot + ENDED_AT])
        if told != (job.version, lane.number, when, ended_at):
            faults.append("is not filed where it belongs")
        elif self.lanes.after(lane, (when, job.seq - 1, FAR), 1) != [(when, job.seq, slot)]:
            faults.append("is not found in the order of its lane")
        elif ended_at and self.lanes.after(self._newest[job.state], (-ended_at, job.seq - 1, FAR), 1) != [
            (-ended_at, job.seq, slot)
        ]:
            faults.append("is not found among the jobs that ended last")
        if job.key is not None and not self._is_named(slot, job):
            faults.append("is not found by its key")
        if any(slot not in self.names.slots(self.of_request(past.request)) for past in job.answered if past.request != job.id):
            faults.append("is not found by a request")
        return faults

    def _is_named(self, slot: int, job: Job) -> bool:
        assert job.key is not None
        if job.state in ENDED and not self.chains.is_head(slot):
            return self.chains.is_linked(slot)
        return slot in self.names.slots(self.of_key(job.key))


def _when(job: Job) -> int:
    if job.state is WAITING:
        return job.due_at_us
    return 0 if job.state is RUNNING or job.forget_at_us is None else job.forget_at_us


def _lane_key(job: Job) -> LaneKey:
    if job.state is WAITING:
        return "due", job.on_wall, job.module, job.target, job.rank
    if job.state is RUNNING:
        return RUNNING_LANE
    return "kept" if job.forget_at_us is None else "ended", str(job.state)


def _crc(boot: str) -> int:
    return zlib.crc32(boot.encode())


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_dev & 0x7FFF_FFFF_FFFF_FFFF
