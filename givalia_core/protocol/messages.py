"""Every message of the framed protocol: one record each, one table of codes.

A message is the fields of one item (a msgpack array, in the order of the record, trailing defaults left out) and, for the
records that have `payload`, the bytes behind it. Fields are plain values only, never nested. `codec` checks them.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple, TypeAlias

from givalia_core.clock import SECOND_US
from givalia_core.times import INSTANT_REACH_US

VERSION: Final = 1
ANY: Final = "any"
ISOLATIONS: Final = ("greenlet", "process")
IF_EXISTS: Final = ("refuse", "keep", "replace", "reschedule")
FOREVER_US: Final = INSTANT_REACH_US
DAY_US: Final = 86_400 * SECOND_US
ERROR_BYTES_MAX: Final = 16 << 10
STACK_BYTES_MAX: Final = 4 << 10
PROCESSES_MAX: Final = 64  # Of one worker, in one frame.
LIST_LIMIT_MAX: Final = 500
STATS_PER_FRAME: Final = 4  # Each may answer with a whole result, and the answer is one frame.
CAPACITY_MAX: Final = 8_000  # What a worker holds must fit into one frame of RESUME.
OK: Final = "OK"


class Hello(NamedTuple):
    """The first frame of a connection. `auth` and `proof` are reserved for later; both are empty today."""

    version_min: int
    version_max: int
    agent: str = ""
    auth: str = ""
    proof: bytes = b""


class Enq(NamedTuple):
    """Make a job. `id` is the request id and the job's; due in `delay_us`, or at `at_us` on the wall clock if given.

    `version` is a specifier for the distribution that brings the module.
    """

    id: bytes
    module: str
    delay_us: int = 0
    key: str | None = None
    target_worker: str = ANY
    at_us: int | None = None
    if_exists: str = "refuse"
    priority: int = 0
    max_attempts: int | None = None
    timeout_us: int | None = None
    expires_us: int | None = None
    retain_us: int | None = None
    version: str | None = None
    payload: bytes = b""


class ClockAsked(NamedTuple):
    """Ask for the server's uptime. Later commands that change something are not decided after `until_us` on that clock."""

    until_us: int | None = None


class Stat(NamedTuple):
    """Ask about a job, by key or id; with `params`, also for its params."""

    key: str | None = None
    id: bytes | None = None
    params: bool = False


class Wait(NamedTuple):
    """Answer when the job has ended, which may be at once; with `progress`, tell meanwhile how far it is."""

    key: str | None = None
    id: bytes | None = None
    progress: bool = False


class Cancel(NamedTuple):
    """Cancel a job; with `running`, also ask it to stop if it has started."""

    request: bytes
    key: str | None = None
    id: bytes | None = None
    running: bool = False


class Ext(NamedTuple):
    """Move the due: by `delta_us` from the due (or from now, if that has passed), or to `at_us` on the wall clock."""

    request: bytes
    key: str | None = None
    id: bytes | None = None
    delta_us: int | None = None
    at_us: int | None = None


class Requeue(NamedTuple):
    """Give a dead or cancelled job another life."""

    request: bytes
    key: str | None = None
    id: bytes | None = None
    delay_us: int = 0
    at_us: int | None = None


class List(NamedTuple):
    """A page of jobs; `after_a` and `after_b` are the two numbers at the end of the page before.

    `params` also asks for the params of each job.
    """

    state: str | None = None
    module: str | None = None
    target_worker: str | None = None
    limit: int = 100
    after_a: int | None = None
    after_b: int | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None
    params: bool = False


class Act(NamedTuple):
    """A page of `cancel`, `ext` or `requeue` for all jobs that a filter admits; `dry_run` only counts them.

    `delta_us` and `at_us` are those of the act. `end_seq`, `after_a` and `after_b` are those at the end of the page before.
    All pages of a run have the same `run`, by which a job knows that the run has already acted on it. None: each page is a run.
    """

    request: bytes
    act: str
    state: str | None = None
    module: str | None = None
    target_worker: str | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None
    dry_run: bool = False
    running: bool = False
    delta_us: int | None = None
    at_us: int | None = None
    limit: int = LIST_LIMIT_MAX
    end_seq: int | None = None
    after_a: int | None = None
    after_b: int | None = None
    run: bytes | None = None


class ResumeLending(NamedTuple):
    """End the hold with which the server was started: from now on it lends jobs."""

    request: bytes


class Info(NamedTuple):
    """Ask for the description of the server: what it is, holds and allows."""


class Modules(NamedTuple):
    """Ask for the modules that connected workers have announced."""


class Workers(NamedTuple):
    """Ask for the connected workers."""


class Backup(NamedTuple):
    """A part of a copy of the server's store, counted from 0; `backup` is a name that its caller makes up."""

    backup: bytes
    part: int


class Join(NamedTuple):
    """A worker process introduces itself; `instance` names this process for as long as it lives."""

    name: str
    instance: bytes
    only_targeted: bool = False
    pid: int = 0


class Announce(NamedTuple):
    """One module of this worker, with its defaults; `broken` says why it is not served. A frame replaces the one before."""

    name: str
    distribution: str
    version: str
    isolation: str = "greenlet"
    max_attempts: int | None = None
    timeout_us: int | None = None
    backoff_us: int | None = None
    backoff_max_us: int | None = None
    broken: str | None = None


class NamedLease(NamedTuple):
    """A lease that this worker believes it has; sent once after joining, and with each beat."""

    id: bytes
    fence: int


class Credit(NamedTuple):
    """The number of jobs that this worker can hold at once from now on, of either isolation; 0 while it drains."""

    capacity: int
    processes: int = 0


class Succeed(NamedTuple):
    """The attempt is over and its effect happened. `payload` is the result unless `result_error` says why there is none."""

    id: bytes
    fence: int
    result_error: str | None = None
    payload: bytes = b""


class FailReport(NamedTuple):
    """The attempt is over without success. `after_us` sets the wait before the next; `permanent`: there is none.

    `child_died`: its process died with it, which is allowed to a job only a few times.
    """

    id: bytes
    fence: int
    kind: str
    error: str
    after_us: int | None = None
    permanent: bool = False
    child_died: bool = False


class Release(NamedTuple):
    """The job's attempt is given back: it was not started, or (`replaced`) its process ended for another job's fault."""

    id: bytes
    fence: int
    replaced: bool = False


class Progress(NamedTuple):
    """A hint of how far the attempt is; nothing durable."""

    id: bytes
    fence: int
    fraction: float
    text: str = ""


class Process(NamedTuple):
    """One process of this worker. A frame of processes replaces the one before; a hint for people, nothing durable.

    `blocked_us` tells for how long it has not answered because the job named here does not yield; `stack` shows where.
    """

    pid: int
    role: str
    state: str
    jobs: int = 0
    since_us: int = 0
    memory_bytes: int = 0
    restarts: int = 0
    module: str | None = None
    job: bytes | None = None
    blocked_us: int = 0
    stack: str = ""


class Heard(NamedTuple):
    """The first item of a dispatch: the worker's newest message, from which the leases count, and the length of a lease."""

    request: int
    lease_us: int


class Dispatch(NamedTuple):
    """A lease: run this attempt. `payload` is the params."""

    id: bytes
    fence: int
    module: str
    attempt: int
    due_us: int
    key: str | None = None
    target_worker: str = ANY
    priority: int = 0
    timeout_us: int | None = None
    version: str | None = None
    payload: bytes = b""


class Stop(NamedTuple):
    """The running job was cancelled: tell it so. Sent with each beat until the job ends; a repeat (`again`) calls no hook."""

    id: bytes
    fence: int
    again: bool = False


class Progressed(NamedTuple):
    """The progress of the job that the WAIT of this request number waits for; a hint, of which some may be left out."""

    request: int
    fraction: float
    text: str = ""


Message: TypeAlias = (
    Hello | ClockAsked | Enq | Stat | Wait | Cancel | Ext | Requeue | List | Act | ResumeLending | Info | Modules | Workers
    | Backup | Join | Announce | NamedLease | Credit | Succeed | FailReport | Release | Progress | Process
)  # fmt: skip


class Kind(IntEnum):
    """The code of each kind of frame."""

    ANSWER = 0
    HELLO = 1
    ENQ = 2
    STAT = 3
    CANCEL = 4
    EXT = 5
    REQUEUE = 6
    LIST = 7
    INFO = 8
    MODULES = 9
    WORKERS = 10
    WAIT = 11
    CLOCK = 12
    ACT = 13
    RESUME_LENDING = 14
    BACKUP = 24
    JOIN = 32
    ANNOUNCE = 33
    RESUME = 34
    CREDIT = 35
    BEAT = 36
    SUCCEED = 37
    FAIL = 38
    RELEASE = 39
    PROGRESS = 40
    PROCESSES = 41
    DISPATCH = 64
    STOP = 65
    PROGRESSED = 66


CHANGING: Final = frozenset({Kind.ENQ, Kind.CANCEL, Kind.EXT, Kind.REQUEUE, Kind.ACT, Kind.RESUME_LENDING})
"""The commands of clients that change something; each carries a request id."""
CLIENT_KINDS: Final = frozenset(kind for kind in Kind if Kind.ENQ <= kind < Kind.JOIN)
WORKER_KINDS: Final = frozenset(kind for kind in Kind if Kind.JOIN <= kind <= Kind.PROCESSES)
