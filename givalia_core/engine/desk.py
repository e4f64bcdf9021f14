"""The engine's memory: leases, connected workers, near windows, and the waits for jobs.

After a restart it is rebuilt from the store and from the messages of workers. Nothing here decides.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from givalia_core.engine.acts import Acts
from givalia_core.engine.aside import Aside
from givalia_core.engine.losses import Losses
from givalia_core.engine.remembered import Remembered
from givalia_core.hooks import HOOKS
from givalia_core.model import (
    Job,
)
from givalia_core.policy import Policy
from givalia_core.routing import Routing
from givalia_core.store.base import FENCE_COUNTER_BITS, Claim, Route, Wanted
from givalia_core.takers import Room, WorkerSession

WAITS_MAX: Final = 50_000  # Of all connections.
WAITS_PER_CONNECTION: Final = 9_000  # Below the limit of unanswered commands: a client is refused, and its socket still read.
WAITS_ALWAYS: Final = 100  # For each connection, however many others there are.

Waiter = tuple[int, int]  # Connection and request.
NEAR_SHARED = 500  # Timers of a route that are read at once from a shared store, since each poll reads them again.


class BusyFor(Enum):
    """The owner of a reason to refuse new jobs for now."""

    MEMORY = "memory"  # The chores of the server: the process uses more memory than it may.
    SYNCS = "syncs"  # The loop of the queue: the store takes too long to sync.


@dataclass(slots=True, eq=False)
class Lease:
    """A worker's time-limited hold on one running job; `job.holder` is the worker process that it was granted to."""

    job: Job
    room: Room | None  # None while its worker is not connected.
    expires_mono_us: int
    progress: tuple[float, str] | None = None

    @property
    def session(self) -> WorkerSession | None:
        """The worker that holds the lease, while that worker is connected."""
        return None if self.room is None else self.room.session


class Leases(dict[bytes, Lease]):
    """The leases by the id of their job, and by the worker process that holds them."""

    def __init__(self) -> None:
        super().__init__()
        self._held: dict[bytes | None, dict[bytes, Lease]] = {}

    def __setitem__(self, job_id: bytes, lease: Lease) -> None:
        dict.__setitem__(self, job_id, lease)
        try:
            self._held[lease.job.holder][job_id] = lease
        except KeyError:
            self._held[lease.job.holder] = {job_id: lease}

    def __delitem__(self, job_id: bytes) -> None:
        holder = self.pop(job_id).job.holder
        held = self._held[holder]
        del held[job_id]
        if not held:
            del self._held[holder]

    def of_holder(self, instance: bytes) -> list[Lease]:
        """Return the leases of one worker process."""
        return [lease for job_id, lease in self._held.get(instance, {}).items() if self.get(job_id) is lease]


class Waits:
    """The waits of connections, by job and by connection."""

    def __init__(self) -> None:
        self.by_job: dict[bytes, dict[Waiter, bool]] = {}  # True: the waiter wants the job's progress.
        self._by_conn: dict[int, dict[int, bytes]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self.by_job

    def __iter__(self) -> Iterator[bytes]:
        """Iterate over the ids of the awaited jobs."""
        return iter(self.by_job)

    def add(self, job_id: bytes, conn: int, request: int, *, wants_progress: bool) -> bool:
        """Let a request wait for the end of a job; return false if this connection may wait for no more jobs."""
        own = self._by_conn.setdefault(conn, {})
        if request in own:
            self.drop(conn, request)
            own = self._by_conn.setdefault(conn, {})
        waits = len(own)
        if waits >= WAITS_ALWAYS and (waits >= WAITS_PER_CONNECTION or self._count >= WAITS_MAX):
            return False
        self.by_job.setdefault(job_id, {})[conn, request] = wants_progress
        own[request] = job_id
        self._count += 1
        return True

    def of(self, job_id: bytes) -> Mapping[Waiter, bool]:
        """Return the waiters of a job; true for those that want its progress."""
        return self.by_job.get(job_id, {})

    def end(self, job_id: bytes) -> Iterable[Waiter]:
        """Take out and return the waiters of a job that has ended."""
        waiters = self.by_job.pop(job_id, None)
        if not waiters:
            return ()
        self._count -= len(waiters)
        by_conn = self._by_conn
        for conn, request in waiters:
            own = by_conn[conn]
            del own[request]
            if not own:
                del by_conn[conn]
        return waiters

    def drop(self, conn: int, request: int) -> None:
        """Forget the wait of a request that is decided again."""
        job_id = self._by_conn.get(conn, {}).get(request)
        if job_id is not None:
            self._forget(conn, request)
            self._remove(job_id, (conn, request))

    def leave(self, conn: int) -> None:
        """Forget a connection that is gone, with all its waits."""
        for request, job_id in self._by_conn.pop(conn, {}).items():
            self._remove(job_id, (conn, request))

    def _remove(self, job_id: bytes, waiter: Waiter) -> None:
        waiters = self.by_job[job_id]
        del waiters[waiter]
        self._count -= 1
        if not waiters:
            del self.by_job[job_id]

    def _forget(self, conn: int, request: int) -> None:
        own = self._by_conn[conn]
        del own[request]
        if not own:
            del self._by_conn[conn]


class Desk:
    """The engine's memory; nothing in it decides by itself, and none of it needs to survive."""

    def __init__(self, policy: Policy, epoch: int, last_seq: int, rng: random.Random, *, is_shared: bool = False) -> None:
        self.policy = policy
        self.rng = rng
        self.is_shared = is_shared
        self.me = epoch if is_shared else 0  # The `keeper` of the jobs whose leases this server looks after.
        self.routing = Routing(NEAR_SHARED if is_shared else None)
        self.suspects: set[bytes] = set()  # Ids of leased and awaited jobs that another server may have changed.
        self.aside = Aside()
        self.acts = Acts()
        self.lapsed: set[bytes] = set()  # Ids of jobs that a listing found and whose `expires` has passed.
        self.others: list[dict[str, Any]] = []  # The other servers' descriptions of themselves.
        self.leases = Leases()
        self.waits = Waits()
        self.clogged: frozenset[int] = frozenset()  # The connections whose peers already have too much to read.
        self.listening = frozenset(HOOKS)  # The hooks that a plugin implements; the others cost nothing.
        self.tells_news = False  # Whether the log wants journal entries.
        self.remembered = Remembered()
        self.held_up_us = 0  # How long this process stood still within the last two minutes.
        self.is_full = False
        self.is_stuck = False  # Whether this batch may change nothing, since the reserve of a full disk is used up.
        self.is_draining = False
        self.is_holding = False  # Whether no job is lent until an operator says `resume`.
        self.busy: dict[BusyFor, str] = {}  # The reasons to refuse new jobs for now, in words, by owner.
        self.live = 0
        self.stale = 0
        self.losses = Losses()
        self.durability = ""
        self.client_port = 0  # This server's port for clients, which workers are told; 0: none.
        self.about: dict[str, Any] = {}  # The server's own part of `info`.
        self.peers: Mapping[int, dict[str, Any]] = {}  # The peers of workers' connections, as `workers` shows them.
        self.last_seq = last_seq
        self.last_fence = 0 if is_shared else epoch << FENCE_COUNTER_BITS
        self.last_end_us = 0

    def note_busy(self, owner: BusyFor, words: str) -> None:
        """Set one owner's reason to refuse new jobs for now; empty words remove it."""
        if words:
            self.busy[owner] = words
        else:
            self.busy.pop(owner, None)

    @property
    def why_busy(self) -> str:
        """The reason to refuse new jobs for now, in words; empty if there is none."""
        return next(iter(self.busy.values()), "") or self.all_taken

    def use_numbers(self, floor: int) -> None:
        """Give only seqs and fences above `floor` from now on: a shared store gives each batch numbers of its own."""
        self.last_seq = max(self.last_seq, floor)
        self.last_fence = max(self.last_fence, floor)

    @property
    def all_taken(self) -> str:
        """The words that refuse a new job because too many are live; empty while there is room."""
        most = self.policy.live_max
        return f"{self.live} jobs are live, and the server takes no more than {most}" if self.live >= most else ""

    @property
    def lends(self) -> bool:
        """Return whether jobs are lent to workers at all."""
        return not (self.is_draining or self.is_holding)

    def backoff_us(self, job: Job) -> int:
        """Return the delay after this failed attempt: doubled each time, bounded, with jitter of a fifth either way."""
        first_us, most_us = job.backoff_us or (self.policy.backoff_us, self.policy.backoff_max_us)
        delay_us = min(first_us << min(job.attempt - 1, 40), most_us)
        return min(round(delay_us * self.rng.uniform(0.8, 1.2)), most_us)

    def drop_hints(self) -> None:
        """Rebuild the hints that a batch without a commit may have spoiled; keep the leases, which it does not touch."""
        self.routing.forget_windows()
        for session in self.routing.sessions.values():
            for room in session.rooms.values():
                room.held = 0
        for lease in self.leases.values():
            if lease.room is not None:
                lease.room.held += 1


@dataclass(slots=True)
class Names:
    """The ids, keys and requests that a batch names. They are collected so that one read of the store finds all."""

    ids: set[bytes] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    past_keys: set[str] = field(default_factory=set)
    requests: set[bytes] = field(default_factory=set)
    requeued: set[bytes] = field(default_factory=set)  # Ids of jobs whose keys must be looked up as well.
    reporting: dict[int, int] = field(default_factory=dict)  # By connection: how many jobs it says have ended.
    has_enq: bool = False
    resumed: set[bytes] = field(default_factory=set)
    variants: set[Route] = field(default_factory=set)


LENT_TOGETHER_BYTES = 8 << 20  # Of params, lent to all workers in one batch, and read for one batch.


def wanted(names: Names, claims: tuple[Claim, ...] = (), *, may_lend: bool = False) -> Wanted:
    """Return one question to the store for everything in `names` and for jobs to lend."""
    return Wanted(
        frozenset(names.ids),
        frozenset(names.keys),
        frozenset(names.past_keys),
        frozenset(names.requests),
        claims,
        names.has_enq or may_lend or bool(claims),
        frozenset(names.variants),
        LENT_TOGETHER_BYTES,
    )
