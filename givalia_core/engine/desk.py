"""What the engine holds in memory, and the batch that is being decided.

`Desk` is memory: leases, connected workers, near windows, who waits for which job. After a restart it is built anew from
the store and from what workers say. `Batch` is one unit of work: it shows every job as the commands before it in the same
batch left it, and ends as at most one change for each job, however often the job was touched.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from givalia_core.clock import SECOND_US, Now
from givalia_core.engine import remembered
from givalia_core.engine.acts import Acts
from givalia_core.engine.aside import Aside
from givalia_core.engine.losses import Losses
from givalia_core.engine.records import Close, Effect, News, Refusal, Tell, hook_of
from givalia_core.engine.remembered import Remembered
from givalia_core.engine.waits import Waits
from givalia_core.errors import Busy
from givalia_core.hooks import HOOKS
from givalia_core.model import (
    DEAD,
    DONE,
    ENDED,
    REMEMBERED_AT_LEAST_US,
    REQUESTS_MOST,
    RUNNING,
    WAITING,
    Answered,
    Job,
    evolve,
    still_remembered,
)
from givalia_core.policy import Policy
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Kind
from givalia_core.routing import Routing
from givalia_core.store.base import FENCE_COUNTER_BITS, VARIANTS_MAX, Change, Found, Kept, Route
from givalia_core.takers import Room, Session
from givalia_core.views import id_in

Author = tuple[int, int]
NOBODY: Author = (-1, 0)  # The engine itself.
LAST = frozenset({"cancel", "ask_stop"})  # The acts that end a life of a job, so that none follows for which it must have room.
NEAR_SHARED = 500  # Timers of a route that are read at once from a shared store, for they are read anew at each poll.


class BusyFor(Enum):
    """Who says that no new job is taken for now."""

    MEMORY = "memory"  # The chores of the server: the process uses more than it may.
    SYNCS = "syncs"  # The loop of the queue: the store takes too long to sync.


class Lease:
    """A worker's time-limited hold on one running job."""

    __slots__ = ("expires_mono_us", "holder", "job", "progress", "room")

    def __init__(self, job: Job, room: Room | None, expires_mono_us: int) -> None:
        self.job = job
        self.holder = job.holder  # The worker process it was granted to.
        self.room = room  # None while its worker is not connected.
        self.expires_mono_us = expires_mono_us
        self.progress: tuple[float, str] | None = None

    @property
    def session(self) -> Session | None:
        """The worker that holds it, while that is connected."""
        return None if self.room is None else self.room.session


class Leases(dict[bytes, Lease]):
    """The leases by the id of their job, and besides by the worker process that holds them."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[bytes | None, dict[bytes, Lease]] = {}

    def __setitem__(self, job_id: bytes, lease: Lease) -> None:
        dict.__setitem__(self, job_id, lease)
        try:
            self._held[lease.holder][job_id] = lease
        except KeyError:
            self._held[lease.holder] = {job_id: lease}

    def __delitem__(self, job_id: bytes) -> None:
        holder = self.pop(job_id).holder
        held = self._held[holder]
        del held[job_id]
        if not held:
            del self._held[holder]

    def of_holder(self, instance: bytes) -> list[Lease]:
        """The leases of one worker process."""
        return [lease for job_id, lease in self._held.get(instance, {}).items() if self.get(job_id) is lease]


class Desk:
    """The engine's memory; nothing in it decides by itself, and none of it needs to survive."""

    def __init__(self, policy: Policy, epoch: int, last_seq: int, rng: random.Random, *, is_shared: bool = False) -> None:
        self.policy = policy
        self.rng = rng
        self.is_shared = is_shared
        self.me = epoch if is_shared else 0  # How a job names this server as the one that looks after its lease.
        self.routing = Routing(NEAR_SHARED if is_shared else None)
        self.suspects: set[bytes] = set()  # Ids of leased and awaited jobs that another server may have changed.
        self.aside = Aside()
        self.acts = Acts()
        self.lapsed: set[bytes] = set()  # Ids of jobs that a listing came upon and whose `expires` has passed.
        self.others: list[dict[str, Any]] = []  # What the other servers say about themselves.
        self.leases = Leases()
        self.waits = Waits()
        self.clogged: frozenset[int] = frozenset()  # The connections whose peers have too much to read already.
        self.listening = frozenset(HOOKS)  # The hooks that somebody implements; the others cost nothing.
        self.tells_news = False  # Whether somebody wants to know what is worth a line in the log.
        self.remembered = Remembered()
        self.held_up_us = 0  # How long this process stood still within the last two minutes.
        self.is_full = False
        self.is_stuck = False  # Whether this batch may change nothing, for the reserve of a full disk is used up.
        self.is_draining = False
        self.is_holding = False  # Whether no job is lent until somebody says `resume`.
        self.busy: dict[BusyFor, str] = {}  # Why no new job is taken for now, in words, by the reason's owner.
        self.live = 0
        self.stale = 0
        self.losses = Losses()
        self.durability = ""
        self.client_port = 0  # Where this server takes clients, which workers are told; 0: nowhere.
        self.about: dict[str, Any] = {}  # The server's own part of `info`.
        self.peers: Mapping[int, dict[str, Any]] = {}  # The peers of workers' connections, as `workers` shows them.
        self.last_seq = last_seq
        self._fence = 0 if is_shared else epoch << FENCE_COUNTER_BITS
        self._last_end_us = 0

    def note_busy(self, owner: BusyFor, words: str) -> None:
        """Say for one owner why no new job is taken for now; without words it has no reason any more."""
        if words:
            self.busy[owner] = words
        else:
            self.busy.pop(owner, None)

    @property
    def why_busy(self) -> str:
        """Return why no new job is taken for now, in words; empty if one is."""
        return next(iter(self.busy.values()), "") or self.all_taken

    def use_numbers(self, floor: int) -> None:
        """From here on seqs and fences are above `floor`: a shared store gives each batch numbers of its own."""
        self.last_seq = max(self.last_seq, floor)
        self._fence = max(self._fence, floor)

    @property
    def all_taken(self) -> str:
        """Why no new job is taken because so many live; empty: one is."""
        most = self.policy.live_max
        return f"{self.live} jobs are live, and the server takes no more than {most}" if self.live >= most else ""

    @property
    def lends(self) -> bool:
        """Whether jobs are given to workers at all."""
        return not (self.is_draining or self.is_holding)

    def next_seq(self) -> int:
        """A place in the order of enq that no job had before."""
        self.last_seq += 1
        return self.last_seq

    def next_fence(self) -> int:
        """A number larger than that of any lease before, over all restarts of this store."""
        self._fence += 1
        return self._fence

    def next_end_us(self, now: Now) -> int:
        """The instant of an end: strictly increasing, so that of two jobs of one key it is known which ended last."""
        self._last_end_us = max(now.timer_us, self._last_end_us + 1)
        return self._last_end_us

    def backoff_us(self, job: Job) -> int:
        """How long to wait after this failed attempt: doubled each time, bounded, with jitter of a fifth either way."""
        first_us, most_us = job.backoff_us or (self.policy.backoff_us, self.policy.backoff_max_us)
        delay_us = min(first_us << min(job.attempt - 1, 40), most_us)
        return min(round(delay_us * self.rng.uniform(0.8, 1.2)), most_us)

    def drop_hints(self) -> None:
        """Forget what a batch that came to nothing may have spoiled; the leases, which it does not touch, stay."""
        self.routing.forget_windows()
        for session in self.routing.sessions.values():
            for room in session.rooms.values():
                room.held = 0
        for lease in self.leases.values():
            if lease.room is not None:
                lease.room.held += 1


class Unchanged(NamedTuple):
    """The answer of one command that changed no job, and the seqs of the jobs that the answer depends on.

    It has a number like a seq, below 0: who was told of it is told anew if it comes to nothing.
    """

    answer: Answer
    is_enq: bool
    seqs: frozenset[int]
    number: int


class Facts:
    """What was read from the store for one batch."""

    __slots__ = ("expired", "forgettable", "found")

    def __init__(self, found: Found) -> None:
        self.found = found
        self.expired: list[Job] = []
        self.forgettable = False


class Batch:
    """One unit of work over jobs that were read; becomes the changes of one commit and the effects that follow it."""

    def __init__(self, desk: Desk, facts: Facts, now: Now) -> None:
        self.desk = desk
        self.facts = facts
        self.now = now
        self.told_us = now.told_us  # Here, for each new job and each claim asks.
        self.jobs: dict[int, Job] = {}  # seq -> the job as decided so far
        self._was: dict[int, Job | None] = {}  # seq -> the job as stored
        self._ids: dict[bytes, int] = {}
        self._live: dict[str, int | None] = {}
        self._ended: dict[str, int] = {}
        self._requests: dict[bytes, int] = {}
        self.unchanged: dict[bytes, Unchanged] = {}  # By request id; to be remembered if the commit lets them stand.
        self.effects: list[tuple[int, Effect]] = []  # The seq of the job each depends on (0: none).
        self.claims: dict[int, Room] = {}  # seq -> who was given the job in this batch
        self.freed: dict[int, Room] = {}  # seq -> whose credit the job gave back in this batch
        # seq -> the worker, if connected, whose lease this server takes over; and for how long it is granted, in microseconds
        self.taken: dict[int, tuple[Session | None, int]] = {}
        self.resumed: list[Session] = []  # Who has named the leases it holds.
        self.progressed: dict[tuple[int, int], tuple[float, str]] = {}  # (conn, request) of a waiter -> the newest it may hear
        self.ends_hold = False  # Whether the hold is over once the batch is.
        self.followed: set[bytes] = set()  # Jobs that somebody waits for here and another server may end.
        self._variants: dict[Route, set[Route]] = {}  # By the route without a specifier: as read, and what came in this batch.
        self.author = NOBODY  # The place of the input that is being decided, and of the command in it.
        self.touched: list[tuple[int, Author]] = []  # Seqs, and who was told of the job or changed it.

    # Finding: every job is seen as this batch has left it.

    def is_unheard(self, request: bytes) -> bool:
        """Return whether no job is known that this request has made or changed; asked for each new job."""
        found = self.facts.found
        return not (request in self._ids or request in self._requests or request in found.ids or request in found.requests)

    def by_id(self, job_id: bytes) -> Job | None:
        seq = self._ids.get(job_id)
        return self._told(self.jobs[seq]) if seq is not None else self._fresh(self.facts.found.ids.get(job_id))

    def live(self, key: str) -> Job | None:
        """The live job of a key."""
        if key in self._live:
            seq = self._live[key]
            return None if seq is None else self._told(self.jobs[seq])
        job = self._unexpired(self._fresh(self.facts.found.live.get(key)))
        return job if job is not None and job.is_live else None

    def ended(self, key: str) -> Job | None:
        """The job of a key that ended last; ask for the live one first."""
        seq = self._ended.get(key)
        return self._told(self.jobs[seq]) if seq is not None else self._fresh(self.facts.found.ended.get(key))

    def by_request(self, request: bytes) -> Job | None:
        """The job that this request changed."""
        seq = self._requests.get(request)
        return self._told(self.jobs[seq]) if seq is not None else self._fresh(self.facts.found.requests.get(request))

    def named(self, key: str | None, job_id: bytes | None) -> tuple[Job | None, Job | None]:
        """The job of this id, whatever its state; or the live job of this key, and the one that ended last.

        A key in the form of an id means the job of that id if no live job has the key.
        """
        if job_id is not None:
            return self._unexpired(self.by_id(job_id)), None
        assert key is not None
        live = self.live(key)
        if live is None and (meant := id_in(key)) is not None and (job := self._unexpired(self.by_id(meant))) is not None:
            return job, None
        return live, self.ended(key)

    def _told(self, job: Job) -> Job:
        """Whoever is told of a job is told anew if what it was told comes to nothing."""
        self.touched.append((job.seq, self.author))
        return job

    def _fresh(self, job: Job | None) -> Job | None:
        return None if job is None else self._told(self.jobs.get(job.seq, job))

    def seen(self, job: Job) -> Job:
        """A job that was read, as this batch has left it."""
        return self._unexpired(self._fresh(job)) or job

    def _unexpired(self, job: Job | None) -> Job | None:
        """The same job; or, if its `expires` has passed, what that made of it (T14: durable before it is read).

        A job that is held is shown as it is stored: its end could not be stored.
        """
        if job is None or not job.is_expired(self.now) or self.desk.aside.hold_of(job) is not None:
            return job
        return self.expire(job)

    def has_room(self, route: Route) -> bool:
        """Whether another job may wait here: unless it has a specifier that no job of its route has, and too many others do."""
        if route.specifier is None or route in self.desk.routing.windows:
            return True
        plain = route.plain
        variants = self._variants.setdefault(plain, set(self.facts.found.variants.get(plain, ())))
        if route not in variants and len(variants) >= VARIANTS_MAX:
            return False
        variants.add(route)
        return True

    # Changing: the job as decided, once.

    def insert(self, job: Job) -> None:
        """Add a new job."""
        self._was[job.seq] = None
        self._ids[job.id] = job.seq
        self._keep(job)

    def put(self, was: Job, job: Job) -> Job:
        """Let `job` stand where `was` stood."""
        self._was.setdefault(was.seq, was)
        if was.state is WAITING:
            self.desk.routing.discard(was)
        elif was.state is RUNNING and job.state is not RUNNING:
            self._free_credit(was)
        self._keep(job)
        return job

    def _free_credit(self, job: Job) -> None:
        """The worker that held the job can take another, in this very batch."""
        lease = self.desk.leases.get(job.id)
        if lease is not None and lease.room is not None:
            lease.room.give_back()
            self.freed[job.seq] = lease.room

    def _keep(self, job: Job) -> None:
        seq = job.seq
        self.jobs[seq] = job
        self._ids[job.id] = seq
        self.touched.append((seq, self.author))
        if job.key is not None:
            if job.state not in ENDED:
                self._live[job.key] = seq
            elif self._live.get(job.key, seq) == seq:
                self._live[job.key] = None
                self._ended[job.key] = seq
        if job.state is WAITING:
            self.desk.routing.offer(job, self.now)

    def expire(self, job: Job) -> Job:
        """End a job whose `expires` has passed before an attempt started."""
        ended = evolve(job, "expire")
        ended.reason = "expired"
        return self.end(job, ended)

    def end(self, job: Job, ended: Job) -> Job:
        """Let `ended` stand where `job` stood: stamped, remembered for its time, its key free again."""
        policy, retain_us = self.desk.policy, job.retain_us
        if retain_us is None:
            retain_us = policy.retain_dead_us if ended.state is DEAD else policy.retain_us
        ended.ended_at_us = ended_at_us = self.desk.next_end_us(self.now)
        ended.forget_at_us = ended_at_us + max(retain_us, REMEMBERED_AT_LEAST_US)
        ended.expires_at_us = None
        self.put(job, ended)
        if ended.state is DONE:
            self.hook("on_done", ended)
        elif ended.state is DEAD:
            self.hook("on_dead", ended)
            self.news("dead", ended, ended.seq)
        return ended

    def answered(self, job: Job, request: bytes, act: str, due_at_us: int) -> tuple[Answered, ...]:
        """The job's memory of commands with this one added, those that are old enough gone.

        Raises:
            Refusal: So many commands changed the job within two minutes that another cannot be remembered.
        """
        now_us = self.now.timer_us
        past = still_remembered(job.answered, now_us - REMEMBERED_AT_LEAST_US - self.desk.held_up_us)
        if len(past) >= REQUESTS_MOST and act not in LAST:
            words = f"{len(past)} commands changed this job within two minutes, as many as it remembers"
            wait_us = past[0].at_us + REMEMBERED_AT_LEAST_US - now_us
            raise Refusal(Busy(words, retry_after=max(wait_us / SECOND_US, 1.0)))
        self._requests[request] = job.seq
        return (*past, Answered(request, act, due_at_us, now_us))

    # Answers that changed nothing.

    def has_changed(self, request: bytes, *, is_enq: bool) -> bool:
        """Whether this request has made or changed a job in this batch, so that the job remembers it."""
        return (is_enq and request in self._ids) or request in self._requests

    @property
    def may_recall(self) -> bool:
        """Return whether `recall` can find anything, which it seldom can."""
        return bool(self.unchanged or self.desk.remembered.bytes or self.facts.found.answers)

    def recall(self, kind: Kind, request: bytes) -> Answer | None:
        """The answer that this request was given without changing a job; None if it is not known."""
        if self.unchanged and (here := self.unchanged.get(request)) is not None:
            self.touched += [(seq, self.author) for seq in (here.number, *here.seqs)]
            return here.answer
        kept = self.facts.found.answers
        if kept and (packed := kept.get(request)) is not None:
            return remembered.unpack(kind, packed)
        return self.desk.remembered.get(kind, request)

    def remember(self, request: bytes, answer: Answer, *, is_enq: bool, since: int) -> bool:
        """Remember the answer of a command that changed no job; False if there is no room for it.

        Args:
            request: The id of the command.
            answer: What it is answered.
            is_enq: Whether the id could become that of a job.
            since: The length of `touched` before the command was decided.
        """
        if not self.desk.remembered.has_room(len(self.unchanged)):
            return False
        seqs = frozenset(seq for seq, _ in self.touched[since:])
        number = -1 - len(self.unchanged)
        self.unchanged[request] = Unchanged(answer, is_enq, seqs, number)
        self.touched.append((number, self.author))
        return True

    def standing(self, refused: set[int]) -> list[Kept]:
        """The answers that changed no job, but for those that depend on what was refused."""
        return [
            Kept(request, remembered.pack(each.answer), each.is_enq)
            for request, each in self.unchanged.items()
            if each.number not in refused and refused.isdisjoint(each.seqs)
        ]

    def hook(self, name: str, job: Job, **extra: Any) -> None:
        """Tell the server's plugins, once the job is stored."""
        if name in self.desk.listening:
            self.effects.append((job.seq, hook_of(name, job, **extra)))

    def news(self, act: str, subject: Any, seq: int = 0, *, jobs: int = 0, why: str = "") -> None:
        """Have a line logged, once the job (0: none) is stored; see `News`."""
        if self.desk.tells_news:
            self.effects.append((seq, News(act, subject, jobs, why)))

    def follow(self, job: Job) -> None:
        """Somebody waits for this job: unless its end will be seen here, be told of it."""
        if self.desk.is_shared and job.id not in self.desk.leases:
            self.followed.add(job.id)
            self.desk.suspects.add(job.id)  # It may end before the others know that it is waited for.

    def tell_progress(self, job_id: bytes, waiter: tuple[int, int]) -> None:
        """Tell one who waits how far the job is, if that is known here; after the batch, and of several only the newest."""
        lease = self.desk.leases.get(job_id)
        if lease is not None and lease.progress is not None and waiter[0] not in self.desk.clogged:
            self.progressed[waiter] = lease.progress

    def tell(self, seq: int, conn: int, kind: Kind, told: Item) -> None:
        """Send a connection something it did not ask for, once the job (0: none) is stored."""
        self.effects.append((seq, Tell(conn, kind, [told])))

    def close(self, conn: int, why: str) -> None:
        """End a connection."""
        self.effects.append((0, Close(conn, why)))

    def changes(self) -> list[Change]:
        """One change for each job that was touched, inserts in order of enq."""
        stored = self._was
        return [
            Change(was, job) for seq, job in self.jobs.items() if (was := stored[seq]) is None or was.version != job.version
        ]
