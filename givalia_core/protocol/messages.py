"""Every message of the framed protocol: one record each, one table of codes.

A message is the fields of one item (a msgpack array, in the order of the record, trailing defaults left out) and, for the
records that have `payload`, the bytes behind it. `decode` is the boundary: what it lets through has the right types and
is within the limits of CONTRACT 1.7, so nobody behind it checks again. Fields are plain values only, never nested.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, GivaliaError, TooLarge, from_wire
from givalia_core.model import TEN_YEARS_US, JobState
from givalia_core.protocol.checks import (
    Check,
    is_any_bytes,
    is_bool,
    is_bytes,
    is_fraction,
    is_instant,
    is_int,
    is_key,
    is_length,
    is_long_text,
    is_name,
    is_text,
    one_of,
    or_none,
    refusal_of,
)
from givalia_core.protocol.frames import PARAMS_BYTES_MAX, RESULT_BYTES_MAX, Item, unpack_fields
from givalia_core.specifiers import is_specifier
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
    """The first frame of a connection. `auth` and `proof` are room for later; both are empty today."""

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


class Clock(NamedTuple):
    """Ask for the server's uptime; what changes something and comes behind is not decided after `until_us` on that clock."""

    until_us: int | None = None


class Stat(NamedTuple):
    """Ask about a job, by key or id; with `params`, also for what it was enqueued with."""

    key: str | None = None
    id: bytes | None = None
    params: bool = False


class Wait(NamedTuple):
    """Answer when the job has ended, which may be at once; with `progress`, tell meanwhile how far it is."""

    key: str | None = None
    id: bytes | None = None
    progress: bool = False


class Cancel(NamedTuple):
    """Call a job off; with `running`, also ask it to stop if it has started."""

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
    """A page of jobs; `after_a` and `after_b` are the two numbers that the page before ended with.

    `params` asks also for what each job was enqueued with.
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

    `delta_us` and `at_us` are those of the act. `end_seq`, `after_a` and `after_b` are what the page before ended with.
    `run` is one for all pages of a run; a job knows by it that the run has acted on it already. None: each page is a run.
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
    """What the server is, holds and allows."""


class Modules(NamedTuple):
    """What modules the connected workers announced."""


class Workers(NamedTuple):
    """Which workers are connected."""


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
    """One module this worker has, with its defaults; `broken` says why it is not served. A frame replaces what was said."""

    name: str
    distribution: str
    version: str
    isolation: str = "greenlet"
    max_attempts: int | None = None
    timeout_us: int | None = None
    backoff_us: int | None = None
    backoff_max_us: int | None = None
    broken: str | None = None


class Hold(NamedTuple):
    """A lease this worker believes to have; asked once after joining, and with each beat."""

    id: bytes
    fence: int


class Credit(NamedTuple):
    """How many jobs this worker can hold at once from now on, of modules of either isolation; 0 while it drains."""

    capacity: int
    processes: int = 0


class Succeed(NamedTuple):
    """The attempt is over and its effect happened. `payload` is the result unless `result_error` says why there is none."""

    id: bytes
    fence: int
    result_error: str | None = None
    payload: bytes = b""


class Fail(NamedTuple):
    """The attempt is over without success. `after_us` sets the wait before the next; `permanent`: there is none.

    `child_died`: it took its process with it, which a job may do only so often.
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
    """One process of this worker. A frame of them replaces what was said before; a hint for people, nothing durable.

    `blocked_us` is for how long it has not answered because the job named here does not yield; `stack` shows where.
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
    """The first item of a dispatch: the newest message of the worker that the lease is counted from, and its length."""

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
    """The running job was cancelled: let it see so. Told `again` with each beat until it ends, then without a hook."""

    id: bytes
    fence: int
    again: bool = False


class Progressed(NamedTuple):
    """How far the job is that the WAIT of this request number waits for; a hint, some of which may be left out."""

    request: int
    fraction: float
    text: str = ""


Message: TypeAlias = (
    Hello | Clock | Enq | Stat | Wait | Cancel | Ext | Requeue | List | Act | ResumeLending | Info | Modules | Workers | Backup
    | Join | Announce | Hold | Credit | Succeed | Fail | Release | Progress | Process
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


_ID = is_bytes(16)
_KEY_OR_NONE, _ID_OR_NONE = or_none(is_key), or_none(_ID)
_DELAY = is_length(0, TEN_YEARS_US)
_AT = or_none(is_instant(FOREVER_US))
_FENCE = is_int(0, (1 << 63) - 1)
_LENGTH = or_none(is_length(SECOND_US, DAY_US))
_NAMED = {"key": _KEY_OR_NONE, "id": _ID_OR_NONE}
_HELD = {"id": _ID, "fence": _FENCE}
_FILTER: Final[dict[str, Check]] = {
    "state": or_none(one_of(*JobState)), "module": or_none(is_name), "target_worker": or_none(is_name),
    "key_prefix": _KEY_OR_NONE, "due_before_us": _AT, "due_after_us": _AT, "ended_after_us": _AT,
    "error": or_none(is_text(255)),
}  # fmt: skip
_PAGE: Final[dict[str, Check]] = {
    "limit": is_int(1, LIST_LIMIT_MAX), "after_a": or_none(is_int(0, 1 << 62)), "after_b": or_none(is_int(0, 1 << 62)),
}  # fmt: skip

_CHECKS: Final[dict[type, dict[str, Check]]] = {
    Hello: {
        "version_min": is_int(0, 1 << 16), "version_max": is_int(0, 1 << 16),
        "agent": is_text(255), "auth": is_text(255), "proof": is_any_bytes,
    },
    Clock: {"until_us": or_none(is_int(0, 1 << 62))},
    Enq: {
        "id": _ID, "module": is_name, "delay_us": _DELAY, "key": _KEY_OR_NONE, "target_worker": is_name, "at_us": _AT,
        "if_exists": one_of(*IF_EXISTS), "priority": is_int(-9, 9), "max_attempts": or_none(is_int(1, 100)),
        "timeout_us": _LENGTH, "expires_us": or_none(_DELAY), "retain_us": or_none(_DELAY),
        "version": or_none(is_specifier),
    },
    Stat: {**_NAMED, "params": is_bool},
    Wait: {**_NAMED, "progress": is_bool},
    Cancel: {"request": _ID, **_NAMED, "running": is_bool},
    Ext: {"request": _ID, **_NAMED, "delta_us": or_none(is_length(-TEN_YEARS_US, TEN_YEARS_US)), "at_us": _AT},
    Requeue: {"request": _ID, **_NAMED, "delay_us": _DELAY, "at_us": _AT},
    List: {**_FILTER, **_PAGE, "params": is_bool},
    Act: {
        "request": _ID, "act": one_of("cancel", "ext", "requeue"), **_FILTER, "dry_run": is_bool, "running": is_bool,
        "delta_us": or_none(is_length(-TEN_YEARS_US, TEN_YEARS_US)), "at_us": _AT, **_PAGE,
        "end_seq": or_none(is_int(0, 1 << 62)), "run": _ID_OR_NONE,
    },
    ResumeLending: {"request": _ID},
    Info: {}, Modules: {}, Workers: {},
    Backup: {"backup": _ID, "part": is_int(0, 1 << 62)},
    Join: {"name": is_name, "instance": _ID, "only_targeted": is_bool, "pid": is_int(0, 1 << 32)},
    Announce: {
        "name": is_name, "distribution": is_text(255), "version": is_text(255), "isolation": is_text(32),
        "max_attempts": or_none(is_int(1, 100)), "timeout_us": _LENGTH, "backoff_us": or_none(_DELAY),
        "backoff_max_us": or_none(_DELAY), "broken": or_none(is_long_text(ERROR_BYTES_MAX)),
    },
    Hold: _HELD,
    Credit: {"capacity": is_int(0, CAPACITY_MAX), "processes": is_int(0, CAPACITY_MAX)},
    Succeed: {**_HELD, "result_error": or_none(one_of("TOO_LARGE", "UNSERIALIZABLE"))},
    Fail: {
        **_HELD, "kind": one_of("failed", "timeout", "stopped", "died"), "error": is_long_text(ERROR_BYTES_MAX),
        "after_us": or_none(_DELAY), "permanent": is_bool, "child_died": is_bool,
    },
    Release: {**_HELD, "replaced": is_bool},
    Progress: {**_HELD, "fraction": is_fraction, "text": is_text(255)},
    Heard: {"request": is_int(0, (1 << 32) - 1), "lease_us": is_length(1, FOREVER_US)},
    Dispatch: {
        **_HELD, "module": is_name, "attempt": is_int(1, 1 << 62), "due_us": is_instant(2 * FOREVER_US),
        "key": _KEY_OR_NONE, "target_worker": is_name, "priority": is_int(-9, 9), "timeout_us": _LENGTH,
        "version": or_none(is_specifier),
    },
    Stop: {**_HELD, "again": is_bool},
    Progressed: {"request": is_int(0, (1 << 32) - 1), "fraction": is_fraction, "text": is_text(255)},
    Process: {
        "pid": is_int(0, 1 << 32), "role": is_text(32), "state": is_text(32), "jobs": is_int(0, 1 << 32),
        "since_us": is_length(0, FOREVER_US), "memory_bytes": is_int(0, 1 << 62), "restarts": is_int(0, 1 << 32),
        "module": or_none(is_name), "job": or_none(_ID), "blocked_us": is_length(0, FOREVER_US),
        "stack": is_long_text(STACK_BYTES_MAX),
    },
}  # fmt: skip

_PAYLOADS: Final = {Enq: "params", Succeed: "a result", Dispatch: "params"}
_PAYLOAD_BYTES_MAX: Final = {Enq: PARAMS_BYTES_MAX, Succeed: RESULT_BYTES_MAX, Dispatch: PARAMS_BYTES_MAX}


class _Shape(NamedTuple):
    name: str  # In words for people.
    record: type
    checks: tuple[tuple[str, Check], ...]
    required: int
    payload_bytes_max: int


def _shape(name: str, record: type) -> _Shape:
    fields: Sequence[str] = record._fields  # type: ignore[attr-defined]
    defaults = record._field_defaults  # type: ignore[attr-defined]
    named = [name for name in fields if name != "payload"]
    checks = tuple((name, _CHECKS[record][name]) for name in named)
    return _Shape(name, record, checks, sum(name not in defaults for name in named), _PAYLOAD_BYTES_MAX.get(record, 0))


_RECORDS: Final[dict[Kind, type]] = {
    Kind.HELLO: Hello,
    Kind.ENQ: Enq,
    Kind.STAT: Stat,
    Kind.WAIT: Wait,
    Kind.CLOCK: Clock,
    Kind.CANCEL: Cancel,
    Kind.EXT: Ext,
    Kind.REQUEUE: Requeue,
    Kind.LIST: List,
    Kind.ACT: Act,
    Kind.RESUME_LENDING: ResumeLending,
    Kind.INFO: Info,
    Kind.MODULES: Modules,
    Kind.WORKERS: Workers,
    Kind.BACKUP: Backup,
    Kind.JOIN: Join,
    Kind.ANNOUNCE: Announce,
    Kind.RESUME: Hold,
    Kind.CREDIT: Credit,
    Kind.BEAT: Hold,
    Kind.SUCCEED: Succeed,
    Kind.FAIL: Fail,
    Kind.RELEASE: Release,
    Kind.PROGRESS: Progress,
    Kind.PROCESSES: Process,
}
TABLE: Final[dict[Kind, _Shape]] = {kind: _shape(kind.name, record) for kind, record in _RECORDS.items()}
_TOLD: Final[dict[type, _Shape]] = {
    record: _shape(record.__name__.upper(), record) for record in (Heard, Dispatch, Stop, Progressed)
}
CHANGING: Final = frozenset({Kind.ENQ, Kind.CANCEL, Kind.EXT, Kind.REQUEUE, Kind.ACT, Kind.RESUME_LENDING})
"""The commands of clients that change something; each carries a request id."""
CLIENT_KINDS: Final = frozenset(kind for kind in TABLE if Kind.ENQ <= kind < Kind.JOIN)
WORKER_KINDS: Final = frozenset(kind for kind in TABLE if Kind.JOIN <= kind <= Kind.PROCESSES)


def decode(kind: Kind, packed: bytes, payload: bytes) -> Any:
    """The message of one item.

    Raises:
        BadRequest: A field is missing, of the wrong type or outside its limits; the message names it.
        TooLarge: The payload is over its limit.
    """
    return _check(TABLE[kind], unpack_fields(packed), payload)


def check(kind: Kind, fields: list[Any], payload: bytes = b"") -> Any:
    """As `decode`, for fields that are unpacked already."""
    return _check(TABLE[kind], fields, payload)


def checked(kind: Kind, message: Any) -> Item:
    """Return a message as it travels; it is checked as the server will check it.

    Raises:
        BadRequest, TooLarge: The server would refuse it.
    """
    packed = fields, payload = item(message)
    _check(TABLE[kind], fields, payload)
    return packed


def told(record: type, fields: list[Any], payload: bytes = b"") -> Any:
    """The record of an item that a server sends unasked; fields that only a later server knows are left out.

    Raises:
        BadRequest, TooLarge: No server of this protocol sends this.
    """
    shape = _TOLD[record]
    return _check(shape, fields[: len(shape.checks)], payload)


def _check(shape: _Shape, fields: Sequence[Any], payload: bytes) -> Any:
    name_of_kind, record, checks, required, payload_bytes_max = shape
    if not required <= len(fields) <= len(checks):
        raise BadRequest(f"{name_of_kind} has {required} to {len(checks)} fields, not {len(fields)}")
    for (name, is_legal), value in zip(checks, fields, strict=False):
        if not is_legal(value):
            raise refusal_of(name, is_legal, value)
    if len(payload) > payload_bytes_max:
        raise TooLarge(f"{_PAYLOADS.get(record, 'a payload')} of {len(payload)} bytes; at most {payload_bytes_max} are taken")
    return record(*fields, payload=payload) if payload_bytes_max else record(*fields)


def item(message: Any) -> Item:
    """What `decode` reads: the fields without trailing defaults, and the payload."""
    kind = type(message)
    shape = _TRIM.get(kind)
    if shape is None:
        named = [name for name in message._fields if name != "payload"]
        shape = _TRIM[kind] = (len(named), [message._field_defaults.get(name, _REQUIRED) for name in named])
    last, defaults = shape
    payload = message[last] if len(message) > last else b""
    while last and message[last - 1] == defaults[last - 1]:
        last -= 1
    return message[:last], payload


_REQUIRED: Final = object()
_TRIM: Final[dict[type, tuple[int, list[Any]]]] = {}  # For each record: how many fields it has, and their defaults.


def refusal(error: GivaliaError) -> Item:
    """The answer that carries an error: its code, its words, its named values."""
    fields: tuple[Any, ...] = (error.code, str(error)[:1000])
    return ((*fields, error.details) if error.details else fields), b""


def answer_error(fields: Sequence[Any]) -> GivaliaError | None:
    """The error that an answer carries; None if it is a success."""
    if fields and fields[0] == OK:
        return None
    code, message, details = (*fields, *("GIVALIA_ERROR", "an answer without a code", {})[len(fields) :])[:3]
    return from_wire(str(code), str(message), details if isinstance(details, dict) else {})
