"""Plain records, a desk and a batch, for tests of single modules of the engine."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from engine_rig import CLIENT, uid

from givalia_core.clock import SECOND_US, ManualClock, Now, Timekeeper, TimerClock
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Lease
from givalia_core.engine.records import Effect
from givalia_core.model import ENDED, RUNNING, WAITING, Job
from givalia_core.policy import Policy
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Announce, Join, Kind
from givalia_core.store.base import Change, Commit, Found, Hold, Near, Wanted
from givalia_core.store.memory import Memory
from givalia_core.store.shared import Keeping, Kept, News, Watched
from givalia_core.takers import WorkerSession

NOW = Now(10_000 * SECOND_US, 20_000 * SECOND_US, 500 * SECOND_US)
ME = 7  # The epoch of the server under test.


def later(seconds: float = 0.0, us: int = 0) -> Now:
    """The moment so long after `NOW`."""
    passed_us = round(seconds * SECOND_US) + us
    return Now(NOW.timer_us + passed_us, NOW.wall_us + passed_us, NOW.mono_us + passed_us)


def job(seq: int = 1, **fields: Any) -> Job:
    """A job that waits and is due, unless the fields say otherwise."""
    values = {
        "id": uid(seq), "key": None, "state": WAITING, "module": "Mail", "target_worker": "any", "priority": 0,
        "on_wall": False, "due_at_us": NOW.timer_us,
    }  # fmt: skip
    return Job(seq, **{**values, **fields})


def running(seq: int = 1, **fields: Any) -> Job:
    """A job in its first attempt, held by worker process 10."""
    values = {"attempt": 1, "max_attempts": 5, "fence": 50 + seq, "holder": uid(10), "worker": "any"}
    return job(seq, **{**values, "state": RUNNING, **fields})


def found(*jobs: Job, floor: int = 0, answers: Mapping[bytes, bytes] | None = None) -> Found:
    """What a store would find of these jobs by all their names."""
    return Found(
        ids={each.id: each for each in jobs},
        live={each.key: each for each in jobs if each.key is not None and each.state not in ENDED},
        ended={each.key: each for each in jobs if each.key is not None and each.state in ENDED},
        requests={past.request: each for each in jobs for past in each.answered},
        ready={},
        variants={},
        floor=floor,
        answers=answers or {},
    )


def new_desk(*, is_shared: bool = False, **policy: Any) -> Desk:
    return Desk(Policy(**policy), ME, 100, random.Random(1), is_shared=is_shared)


def new_batch(desk: Desk, *jobs: Job, now: Now = NOW) -> Batch:
    """A batch for which these jobs were read, in the hands of the command at (0, 0)."""
    batch = Batch(desk, found(*jobs), now)
    batch.author = 0, 0
    return batch


def connect(desk: Desk, conn: int = 10, *modules: str, capacity: int = 1, instance: int = 0, now: Now = NOW) -> WorkerSession:
    """A worker that has joined and announced; its process has the number of its connection, unless another is given."""
    session = WorkerSession(conn, Join("any", uid(instance or conn)), now)
    desk.routing.join(session)
    desk.routing.announce(session, [Announce(module, "dist", "1.0") for module in modules or ("Mail",)])
    session.rooms["greenlet"].capacity = capacity
    for window in desk.routing.windows.values():
        window.fill(Near(False, [], more=False))
    return session


def lend(desk: Desk, job: Job, session: WorkerSession | None = None, seconds: float = 30) -> Lease:
    """A lease of the job for so long; without a session its worker is not connected."""
    room = None if session is None else session.room(job.module)
    if room is not None:
        room.held += 1
    lease = desk.leases[job.id] = Lease(job, room, NOW.mono_us + round(seconds * SECOND_US))
    return lease


def asked(kind: Kind, *messages: Any, conn: int = CLIENT, request: int = 1, **fields: Any) -> Asked:
    return Asked(conn, request, kind, list(messages), **fields)


def said(batch: Batch) -> list[Effect]:
    """The effects of a batch so far."""
    return [effect for _, effect in batch.effects]


def changed(batch: Batch) -> list[Job]:
    """The jobs that a batch changes, as it leaves them."""
    return [change.job for change in batch.changes()]


def hold(name: str, why: str = "held") -> Hold:
    return Hold(name, why, NOW.wall_us)


class Watching(NamedTuple):
    """A call of `watch`."""

    lease_us: int
    all_own: bool


class SharedMemory(Memory):
    """A store that other servers could have open; what they say and do is set by the test."""

    is_shared = True

    def __init__(self, url: str = "memory:") -> None:
        super().__init__(url)
        self.told = News()
        self.watched: Watched | None = None
        self.free: frozenset[str] = frozenset()
        self.keeping = Keeping()
        self.fails: dict[str, Exception] = {}  # By method: what its next call raises.
        self.refuses: tuple[int, ...] = ()  # Places of the next commit.
        self.holds: dict[int, Hold] = {}
        self.floor = 0
        self.timer: Timekeeper = TimerClock.start(ManualClock(), None)
        self.wake: Callable[[], None] = lambda: None
        self.watchings: list[Watching] = []
        self.commits: list[list[Change]] = []
        self.kept: list[Kept] = []
        self.asked_free: list[frozenset[str]] = []
        self.followed: list[set[bytes]] = []

    def _fail(self, name: str) -> None:
        if (error := self.fails.pop(name, None)) is not None:
            raise error

    def find(self, wanted: Wanted, now: Now) -> Found:
        self._fail("find")
        self.floor += 1_000_000 * wanted.numbers
        return super().find(wanted, now)._replace(floor=self.floor if wanted.numbers else 0)

    def commit(self, changes: Any, *others: Any) -> Commit:
        self._fail("commit")
        refused = tuple(sorted({*self.refuses, *self.holds}))
        held, self.refuses, self.holds = self.holds, (), {}
        self.commits.append(list(changes))
        super().commit([change for place, change in enumerate(changes) if place not in refused], *others)
        return Commit(refused, 0, held)

    def keep(self, answers: Any) -> Keeping:
        self._fail("keep")
        self.kept += answers
        return self.keeping

    def news(self) -> News:
        told, self.told = self.told, News()
        return told

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> Watched | None:
        self._fail("watch")
        self.watchings.append(Watching(lease_us, all_own))
        return self.watched

    def freed(self, names: frozenset[str]) -> frozenset[str]:
        self.asked_free.append(names)
        return self.free & names

    def follow(self, ids: Any) -> None:
        self.followed.append(set(ids))


def watched(**fields: Any) -> Watched:
    """What a watch finds where nothing needs care."""
    values: dict[str, Any] = {
        "own": [], "strayed": [], "looked_after": None, "has_lapsed": False, "live": 0, "has_expired": False, "others": [],
        "events": [],
    }  # fmt: skip
    return Watched(**{**values, **fields})
