"""The batch that is being decided: one unit of work over jobs that were read.

The batch shows every job as the earlier commands in it left the job. It becomes at most one change for each job, however often
the job was touched.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from givalia_core.clock import SECOND_US, Now
from givalia_core.engine.desk import Desk
from givalia_core.engine.records import Close, Effect, JournalEntry, Refusal, Tell, hook_of
from givalia_core.errors import Busy
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
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.codec import item
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Kind, Progressed
from givalia_core.store.base import VARIANTS_MAX, Change, Found, Route
from givalia_core.takers import Room, WorkerSession
from givalia_core.views import id_in

Author = tuple[int, int]
NOBODY: Author = (-1, 0)  # The engine itself.
LAST = frozenset({"cancel", "ask_stop"})  # The acts that end a life of a job: no act follows that needs room in its memory.


class Unchanged(NamedTuple):
    """The answer of one command that changed no job, and the seqs of the jobs that the answer depends on.

    `number` is used like a seq, but is below 0: if the answer is refused, the commands that got it are decided again.
    """

    answer: Answer
    is_enq: bool
    seqs: frozenset[int]
    number: int


class Batch:
    """One unit of work over jobs that were read; becomes the changes of one commit and the effects that follow it."""

    def __init__(self, desk: Desk, found: Found, now: Now) -> None:
        self.desk = desk
        self.found = found
        self.now = now
        # The moment that users see, on the wall clock: each new job and each claim needs it.
        self.told_us = now.wall_us if now.steady_ahead_us is None else now.timer_us - now.steady_ahead_us
        self.jobs: dict[int, Job] = {}  # seq -> the job as decided so far
        self.was: dict[int, Job | None] = {}  # seq -> the job as stored
        self.ids: dict[bytes, int] = {}
        self._live: dict[str, int | None] = {}
        self._ended: dict[str, int] = {}
        self.requests: dict[bytes, int] = {}
        self.unchanged: dict[bytes, Unchanged] = {}  # By request id; remembered if the commit lets them stand.
        self.effects: list[tuple[int, Effect]] = []  # Each with the seq of the job it depends on (0: none).
        self.claims: dict[int, Room] = {}  # seq -> the room that got the job in this batch
        self.freed: dict[int, Room] = {}  # seq -> the room whose credit the job gave back in this batch
        # seq -> the worker, if connected, whose lease this server takes over; and the length of that lease, in microseconds
        self.taken: dict[int, tuple[WorkerSession | None, int]] = {}
        self.resumed: list[WorkerSession] = []  # The workers that have named the leases they hold.
        self.progressed: dict[tuple[int, int], tuple[float, str]] = {}  # (conn, request) of a waiter -> the newest progress
        self.ends_hold = False  # Whether this batch ends the server's hold.
        self.followed: set[bytes] = set()  # Ids of jobs that a client waits for here and another server may end.
        self._variants: dict[Route, set[Route]] = {}  # By route without a specifier: those read, and those new in this batch.
        self.author = NOBODY  # The places of the input that is being decided and of the command in it.
        self.touched: list[tuple[int, Author]] = []  # Seqs, each with the author that saw or changed the job.

    # Finding: every job is seen as this batch has left it. If that is refused, the commands that saw it are decided again.

    def see(self, job: Job) -> Job:
        """Return a job that was read, as this batch has left it."""
        job = self.jobs.get(job.seq, job)
        self.touched.append((job.seq, self.author))
        return job

    def unexpired(self, job: Job) -> Job:
        """Return the same job; or, if its `expires` has passed, the job ended for that (T14: durable before it is read).

        A held job is returned as it is stored, since its end could not be stored.
        """
        if not job.is_expired(self.now) or self.desk.aside.hold_of(job) is not None:
            return job
        return self.expire(job)

    def by_id(self, job_id: bytes) -> Job | None:
        """Return the job of this id, whatever its state."""
        seq = self.ids.get(job_id)
        job = self.found.ids.get(job_id) if seq is None else self.jobs[seq]
        if job is not None:
            self.touched.append((job.seq, self.author))
        return job

    def live(self, key: str) -> Job | None:
        """Return the live job of a key."""
        if key in self._live:
            seq = self._live[key]
            return None if seq is None else self.see(self.jobs[seq])
        job = self.found.live.get(key)
        if job is not None:
            job = self.unexpired(self.see(job))
        return job if job is not None and job.state not in ENDED else None

    def ended(self, key: str) -> Job | None:
        """Return the job of a key that ended last; call `live` first."""
        seq = self._ended.get(key)
        job = self.found.ended.get(key) if seq is None else self.jobs[seq]
        return None if job is None else self.see(job)

    def by_request(self, request: bytes) -> Job | None:
        """Return the job that this request changed."""
        seq = self.requests.get(request)
        job = self.found.requests.get(request) if seq is None else self.jobs[seq]
        return None if job is None else self.see(job)

    def is_new(self, request: bytes) -> bool:
        """Return whether no known job was made or changed by this request."""
        found = self.found
        return not (request in found.ids or request in self.ids or request in found.requests or request in self.requests)

    def of_key(self, key: str) -> tuple[Job | None, Job | None]:
        """Return the live job of this key, and the one that ended last.

        A key in the form of an id means the job of that id if no live job has the key.
        """
        live = self.live(key)
        if live is None and (meant := id_in(key)) is not None and (job := self.by_id(meant)) is not None:
            return self.unexpired(job), None
        return live, self.ended(key)

    def has_room(self, route: Route) -> bool:
        """Return whether another job may wait on this route. A new specifier is refused once the route has `VARIANTS_MAX`."""
        if route.specifier is None or route in self.desk.routing.windows:
            return True
        plain = route.plain
        variants = self._variants.setdefault(plain, set(self.found.variants.get(plain, ())))
        if route not in variants and len(variants) >= VARIANTS_MAX:
            return False
        variants.add(route)
        return True

    # Changing: each job once, as decided.

    def insert(self, job: Job) -> None:
        """Add a new job, which waits."""
        seq = job.seq
        self.was[seq] = None
        self.jobs[seq] = job
        self.ids[job.id] = seq
        self.touched.append((seq, self.author))
        if job.key is not None:
            self._live[job.key] = seq
        self.desk.routing.offer(job, self.now)

    def put(self, was: Job, job: Job) -> None:
        """Replace `was` by `job`."""
        seq, desk = job.seq, self.desk
        self.was.setdefault(seq, was)
        self.jobs[seq], self.ids[job.id] = job, seq
        self.touched.append((seq, self.author))
        if was.state is WAITING:
            desk.routing.discard(was)
        elif was.state is RUNNING and job.state is not RUNNING and (lease := desk.leases.get(job.id)) and lease.room:
            lease.room.give_back()  # Its worker may take another job in this very batch.
            self.freed[seq] = lease.room
        if job.key is not None and job.state not in ENDED:
            self._live[job.key] = seq
        elif job.key is not None and self._live.get(job.key, seq) == seq:
            self._live[job.key], self._ended[job.key] = None, seq
        if job.state is WAITING:
            desk.routing.offer(job, self.now)

    def expire(self, job: Job) -> Job:
        """End a job whose `expires` has passed before an attempt started."""
        ended = evolve(job, "expire")
        ended.reason = "expired"
        return self.end(job, ended)

    def end(self, job: Job, ended: Job) -> Job:
        """Replace `job` by `ended`: stamped, remembered for its retention, its key free again."""
        desk, retain_us = self.desk, job.retain_us
        if retain_us is None:
            retain_us = desk.policy.retain_dead_us if ended.state is DEAD else desk.policy.retain_us
        # Strictly increasing, so that we know which of two jobs of one key ended last.
        desk.last_end_us = ended.ended_at_us = ended_at_us = max(self.now.timer_us, desk.last_end_us + 1)
        ended.forget_at_us = ended_at_us + max(retain_us, REMEMBERED_AT_LEAST_US)
        ended.expires_at_us = None
        self.put(job, ended)
        if ended.state is DEAD:
            self.hook("on_dead", ended)
            self.news("dead", ended, ended.seq)
        elif ended.state is DONE and self.desk.listening:
            self.hook("on_done", ended)
        return ended

    def answered(self, job: Job, request: bytes, act: str, due_at_us: int) -> tuple[Answered, ...]:
        """Return the job's memory of commands with this one added, and without those that are old enough.

        Raises:
            Refusal: So many commands changed the job within two minutes that another cannot be remembered.
        """
        now_us = self.now.timer_us
        past = still_remembered(job.answered, now_us - REMEMBERED_AT_LEAST_US - self.desk.held_up_us)
        if len(past) >= REQUESTS_MOST and act not in LAST:
            words = f"{len(past)} commands changed this job within two minutes, as many as it remembers"
            wait_us = past[0].at_us + REMEMBERED_AT_LEAST_US - now_us
            raise Refusal(Busy(words, retry_after=max(wait_us / SECOND_US, 1.0)))
        self.requests[request] = job.seq
        return (*past, Answered(request, act, due_at_us, now_us))

    def hook(self, name: str, job: Job, **extra: Any) -> None:
        """Call this hook of the server's plugins once the job is stored."""
        if name in self.desk.listening:
            self.effects.append((job.seq, hook_of(name, job, **extra)))

    def news(self, act: str, subject: Any, seq: int = 0, *, jobs: int = 0, why: str = "") -> None:
        """Log a line once the job (0: none) is stored; see `JournalEntry`."""
        if self.desk.tells_news:
            self.effects.append((seq, JournalEntry(act, subject, jobs, why)))

    def follow(self, job: Job) -> None:
        """Follow a job that a client waits for, unless this server will see the job's end itself."""
        if self.desk.is_shared and job.id not in self.desk.leases:
            self.followed.add(job.id)
            self.desk.suspects.add(job.id)  # The job may end before the other servers know that a client waits for it.

    def tell_progress(self, job_id: bytes, waiter: tuple[int, int]) -> None:
        """Tell a waiter the job's progress after the batch, if it is known here; of several reports only the newest."""
        lease = self.desk.leases.get(job_id)
        if lease is not None and lease.progress is not None and waiter[0] not in self.desk.clogged:
            self.progressed[waiter] = lease.progress

    def progress(self) -> list[Tell]:
        """Return the progress to tell the waiters, as one frame for each connection."""
        told: dict[int, list[Item]] = {}
        for (conn, request), progress in self.progressed.items():
            told.setdefault(conn, []).append(item(Progressed(request, *progress)))
        return [Tell(conn, Kind.PROGRESSED, items) for conn, items in told.items()]

    def tell(self, seq: int, conn: int, kind: Kind, told: Item) -> None:
        """Send a connection something it did not ask for, once the job (0: none) is stored."""
        self.effects.append((seq, Tell(conn, kind, [told])))

    def close(self, conn: int, why: str) -> None:
        """End a connection."""
        self.effects.append((0, Close(conn, why)))

    def take_back_credits(self, seq: int) -> None:
        """Restore the credits of the workers of a job whose change was not stored."""
        if seq in self.claims:
            self.claims[seq].give_back()
        if seq in self.freed:
            self.freed[seq].held += 1

    def changes(self) -> list[Change]:
        """Return one change for each job that was changed, inserts in the order of enq."""
        stored = self.was
        return [
            _make(Change, (was, job))
            for seq, job in self.jobs.items()
            if (was := stored[seq]) is None or was.version != job.version
        ]


_make: Final = tuple.__new__  # The constructor of a named tuple takes twice as long.
