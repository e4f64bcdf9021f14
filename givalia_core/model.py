"""The record of a job, its states, and the one table of its transitions.

`TRANSITIONS` is the truth about states: `evolve` is the only function that gives a job another state, and
`docs/lifecycle.md` is generated from the table. A record holds no connection and cannot save itself.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, NamedTuple

from givalia_core.clock import SECOND_US, Now
from givalia_core.errors import IllegalTransition

TEN_YEARS_US: Final = 10 * 365 * 86_400 * SECOND_US
REMEMBERED_AT_LEAST_US: Final = 120 * SECOND_US  # Longer than any client resends, so that a resend finds its answer.
REQUESTS_KEPT: Final = 4  # A job keeps at least so many answers, those to its newest commands, however old,
REQUESTS_MOST: Final = 1_000  # and never more than this: a further command that would change the job is refused.
RELEASES_MAX: Final = 1_000
CHILD_DEATHS_MAX: Final = 3
STORY_ACTS: Final = 20


class JobState(StrEnum):
    """The state of a job."""

    WAITING = "waiting"  # Its due is ahead: put there by enq, ext, a retry or requeue; claim, cancel, expire take it out.
    READY = "ready"  # Waiting, and the due is reached. Derived when asked, never written.
    RUNNING = "running"  # A worker holds its lease: put there by claim; the worker's report or the lease's end take it out.
    DONE = "done"  # Its process returned. Final; forgotten after its retention.
    DEAD = "dead"  # Out of attempts, failed for good, or expired. Only requeue takes it out.
    CANCELLED = "cancelled"  # Called off before it was done. Only requeue takes it out.


WAITING, RUNNING = JobState.WAITING, JobState.RUNNING
DONE, DEAD, CANCELLED = JobState.DONE, JobState.DEAD, JobState.CANCELLED
STORED_STATES: Final = (WAITING, RUNNING, DONE, DEAD, CANCELLED)  # A store writes the index in this tuple.
ENDED: Final = frozenset({DONE, DEAD, CANCELLED})


class OutcomeKind(StrEnum):
    """The end of one attempt."""

    SUCCEEDED = "succeeded"  # process returned; the job is done.
    FAILED = "failed"  # process raised; the job is retried, or dead.
    TIMEOUT = "timeout"  # The attempt ran out of its time; counts as a failure.
    STOPPED = "stopped"  # It ended unsuccessfully after a stop was asked; the job is cancelled.
    DIED = "died"  # The lease ended with no report; counts as a failure.
    RELEASED = "released"  # Given back unstarted; the attempt does not count.


TRANSITIONS: Final[dict[tuple[JobState, str], JobState]] = {
    (WAITING, "claim"): RUNNING,
    (WAITING, "ext"): WAITING,
    (WAITING, "replace"): WAITING,
    (WAITING, "reschedule"): WAITING,
    (WAITING, "cancel"): CANCELLED,
    (WAITING, "expire"): DEAD,
    (RUNNING, "ask_stop"): RUNNING,
    (RUNNING, "adopt"): RUNNING,
    (RUNNING, "succeed"): DONE,
    (RUNNING, "fail"): WAITING,  # Attempts are left: a retry is only a wait with a later due time.
    (RUNNING, "die"): DEAD,
    (RUNNING, "stop"): CANCELLED,
    (RUNNING, "release"): WAITING,
    (DEAD, "requeue"): WAITING,
    (CANCELLED, "requeue"): WAITING,
}


class Answered(NamedTuple):
    """The answer to one command that changed the job, kept in the job's record so that a resend gets the same answer."""

    request: bytes
    act: str
    due_at_us: int  # Wall clock, as the client was told.
    at_us: int = 0  # Timer clock, when it was decided; 0 in records of versions that did not keep it.


def still_remembered(answered: tuple[Answered, ...], since_us: int) -> tuple[Answered, ...]:
    """Return the answers, oldest first, without those decided before `since_us`; keep at least `REQUESTS_KEPT - 1`."""
    passed = 0
    while len(answered) - passed >= REQUESTS_KEPT and answered[passed].at_us < since_us:
        passed += 1
    return answered[passed:]


def join_target(target_worker: str, specifier: str | None) -> str:
    """Return a job's target as one text: the worker's name, and behind a blank, which no name has, the specifier if any."""
    return target_worker if specifier is None else f"{target_worker} {specifier}"


def split_target(target: str) -> tuple[str, str | None]:
    """Return the worker name and the specifier of a target."""
    target_worker, _, specifier = target.partition(" ")
    return target_worker, specifier or None


JOB_FIELDS: Final = (
    "seq", "id", "key", "state", "module", "target_worker", "priority", "on_wall", "due_at_us", "expires_at_us",
    "ended_at_us", "forget_at_us", "version", "enq_at_us", "attempt", "max_attempts", "timeout_us", "expires_us",
    "retain_us", "backoff_us", "fence", "worker", "holder", "stop_asked", "releases", "replacements", "deaths", "reason",
    "error", "result_error", "answered", "keeper", "started_at_us", "result", "specifier", "params",
)  # fmt: skip
"""The fields of a job in the order in which stores and exports write them. New ones go before `result`."""


class Job:
    """One durable record. Times are integer microseconds; the due is on the wall clock if `on_wall`, else the timer clock.

    A job is never changed once a batch or a store has it: `evolve` returns a copy, and only its caller sets the copy's fields.
    """

    __slots__ = JOB_FIELDS

    seq: int  # The order of enq; given by the engine, unique in a store.
    id: bytes  # The 16 bytes of a UUID made by the client.
    key: str | None
    state: JobState
    module: str
    target_worker: str
    priority: int
    on_wall: bool
    due_at_us: int
    expires_at_us: int | None  # On the clock of the due; None once an attempt has started.
    ended_at_us: int  # Timer clock, strictly increasing over the jobs of a store; 0 while live.
    forget_at_us: int | None  # Timer clock; set when ended.
    version: int  # Grows with every change; a store refuses a change that was decided on an older one.
    # From here to `result` a store of rows keeps the fields as one packed value and never looks inside.
    enq_at_us: int  # Wall clock.
    attempt: int
    max_attempts: int | None  # None until the first claim fills in the module's or the server's default.
    timeout_us: int | None
    expires_us: int | None
    retain_us: int | None
    backoff_us: tuple[int, int] | None  # First delay and longest delay.
    fence: int
    worker: str | None
    holder: bytes | None  # The instance of the worker process that holds, or last held, the lease.
    stop_asked: bool
    releases: int
    replacements: int
    deaths: int
    reason: str | None  # Why it is dead, in a word.
    error: str | None  # What the last failed attempt raised.
    result_error: str | None  # Why a done job has no result.
    answered: tuple[Answered, ...]
    keeper: int  # The boot epoch of the server that looks after the lease, where several share the store.
    started_at_us: int  # Wall clock: when the last attempt was lent; 0 if none was.
    result: bytes | None
    # Kept by stores in the `target`, so that it is part of the route.
    specifier: str | None  # What the version of the module's distribution must satisfy; None: any will do.
    params: bytes  # Last, since they seldom change: a store that appends each state of a job leaves them out.

    def __init__(
        self,
        seq: int, id: bytes, key: str | None, state: JobState, module: str, target_worker: str, priority: int,
        on_wall: bool, due_at_us: int, expires_at_us: int | None = None, ended_at_us: int = 0,
        forget_at_us: int | None = None, version: int = 1, enq_at_us: int = 0, attempt: int = 0,
        max_attempts: int | None = None, timeout_us: int | None = None, expires_us: int | None = None,
        retain_us: int | None = None, backoff_us: tuple[int, int] | None = None, fence: int = 0, worker: str | None = None,
        holder: bytes | None = None, stop_asked: bool = False, releases: int = 0, replacements: int = 0, deaths: int = 0,
        reason: str | None = None, error: str | None = None, result_error: str | None = None,
        answered: tuple[Answered, ...] = (), keeper: int = 0, started_at_us: int = 0, result: bytes | None = None,
        specifier: str | None = None, params: bytes = b"",
    ) -> None:  # fmt: skip
        self.seq, self.id, self.key = seq, id, key
        self.state, self.module, self.target_worker = state, module, target_worker
        self.priority, self.on_wall, self.due_at_us = priority, on_wall, due_at_us
        self.expires_at_us, self.ended_at_us, self.forget_at_us = expires_at_us, ended_at_us, forget_at_us
        self.version, self.enq_at_us, self.attempt = version, enq_at_us, attempt
        self.max_attempts, self.timeout_us, self.expires_us = max_attempts, timeout_us, expires_us
        self.retain_us, self.backoff_us, self.fence = retain_us, backoff_us, fence
        self.worker, self.holder, self.stop_asked = worker, holder, stop_asked
        self.releases, self.replacements, self.deaths = releases, replacements, deaths
        self.reason, self.error, self.result_error = reason, error, result_error
        self.answered, self.keeper, self.started_at_us = answered, keeper, started_at_us
        self.result, self.specifier, self.params = result, specifier, params

    def copy(self) -> Job:
        """Return a job with the same fields. The copying is written out since every change needs a copy."""
        job = _new(Job)
        job.seq, job.id, job.key = self.seq, self.id, self.key
        job.state, job.module, job.target_worker = self.state, self.module, self.target_worker
        job.priority, job.on_wall, job.due_at_us = self.priority, self.on_wall, self.due_at_us
        job.expires_at_us, job.ended_at_us, job.forget_at_us = self.expires_at_us, self.ended_at_us, self.forget_at_us
        job.version, job.enq_at_us, job.attempt = self.version, self.enq_at_us, self.attempt
        job.max_attempts, job.timeout_us, job.expires_us = self.max_attempts, self.timeout_us, self.expires_us
        job.retain_us, job.backoff_us, job.fence = self.retain_us, self.backoff_us, self.fence
        job.worker, job.holder, job.stop_asked = self.worker, self.holder, self.stop_asked
        job.releases, job.replacements, job.deaths = self.releases, self.replacements, self.deaths
        job.reason, job.error, job.result_error = self.reason, self.error, self.result_error
        job.answered, job.keeper, job.started_at_us = self.answered, self.keeper, self.started_at_us
        job.result, job.specifier, job.params = self.result, self.specifier, self.params
        return job

    def front(self) -> tuple[Any, ...]:
        """Return all fields but the params, in the order in which stores write them."""
        return (
            self.seq, self.id, self.key, self.state, self.module, self.target_worker, self.priority, self.on_wall,
            self.due_at_us, self.expires_at_us, self.ended_at_us, self.forget_at_us, self.version, self.enq_at_us,
            self.attempt, self.max_attempts, self.timeout_us, self.expires_us, self.retain_us, self.backoff_us, self.fence,
            self.worker, self.holder, self.stop_asked, self.releases, self.replacements, self.deaths, self.reason,
            self.error, self.result_error, self.answered, self.keeper, self.started_at_us, self.result, self.specifier,
        )  # fmt: skip

    def changed(self, **changes: Any) -> Job:
        """Return a copy with other values of these fields."""
        job = self.copy()
        for name, value in changes.items():
            setattr(job, name, value)
        return job

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Job):
            return NotImplemented
        return self.front() == other.front() and self.params == other.params

    def __lt__(self, other: Job) -> bool:
        return self.seq < other.seq

    def __hash__(self) -> int:
        return hash((self.seq, self.version))

    def __repr__(self) -> str:
        shown = zip(JOB_FIELDS, (*self.front(), self.params), strict=True)
        return f"Job({', '.join(f'{name}={value!r}' for name, value in shown)})"

    @property
    def is_live(self) -> bool:
        """Return whether the job waits, is ready or runs: it may still run, and holds its key."""
        return self.state not in ENDED

    @property
    def rank(self) -> int:
        """The priority with its sign changed, so that the jobs that go first sort first."""
        return -self.priority

    @property
    def target(self) -> str:
        """The worker name and the specifier as one text: what a worker must be to take the job."""
        return join_target(self.target_worker, self.specifier)

    def due_on_timer_us(self, now: Now) -> int:
        """Return the due on the timer clock, as the clocks stand now."""
        return self.due_at_us + now.timer_ahead_us if self.on_wall else self.due_at_us

    def due_on_wall_us(self, now: Now) -> int:
        """Return the due on the wall clock as users see it: the same at each call unless a step of the clock was noticed."""
        return self.due_at_us if self.on_wall else self.due_at_us - now.told_ahead_us

    def ended_on_wall_us(self, now: Now) -> int | None:
        """Return when the job ended, on the wall clock; None while it lives."""
        return None if self.is_live else self.ended_at_us - now.told_ahead_us

    def is_due(self, now: Now) -> bool:
        """Return whether the job may start, judged on the clock of its due."""
        return self.due_at_us <= (now.wall_us if self.on_wall else now.timer_us)

    def is_expired(self, now: Now) -> bool:
        """Return whether `expires` has passed before a first attempt started."""
        return (
            self.expires_at_us is not None
            and self.state is WAITING
            and self.expires_at_us <= (now.wall_us if self.on_wall else now.timer_us)
        )

    def shown_state(self, now: Now) -> JobState:
        """Return the state that users see: a waiting job whose due is reached is ready."""
        return JobState.READY if self.state is WAITING and self.is_due(now) else self.state

    def story(self) -> str:
        """Return the known past of the job, for the message of a bug."""
        acts = ", ".join(past.act for past in self.answered[-STORY_ACTS:]) or "nothing asked"
        return f"seq {self.seq}, {self.state}, version {self.version}, attempt {self.attempt}, fence {self.fence}, {acts}"


def evolve(job: Job, act: str) -> Job:
    """Return a copy of the job after `act`: its state by the table, its version one higher. The caller sets the other fields.

    A job that does not run has no keeper.

    Raises:
        IllegalTransition: The table has no such act for the job's state; the message tells the job's story.
    """
    state = TRANSITIONS.get((job.state, act))
    if state is None:
        raise IllegalTransition(f"{act} of a job that is {job.state} ({job.story()})")
    after = job.copy()
    after.state = state
    after.version = job.version + 1
    if state is not RUNNING:
        after.keeper = 0
    return after


_new: Final = object.__new__
JOB_REQUIRED: Final = JOB_FIELDS.index("expires_at_us")  # The number of fields that every record has.
JOB_DEFAULTS: Final[tuple[Any, ...]] = (*(None,) * JOB_REQUIRED, *(Job.__init__.__defaults__ or ()))
"""The value of each field in records that are older than the field; None for fields that every record has."""
