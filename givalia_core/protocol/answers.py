"""Every answer of the framed protocol: one record for each, and the table of which message each one answers.

An answer is one item, as a message is: the word OK, the fields of the record in its order (trailing defaults left out) and, for
the records that have `payload`, the bytes behind them. A refusal is an error in place of a record, and travels as its code,
its words and its named values. `codec.read_answer` is the boundary of the connecting side: the records that it returns have the
right types. A later server may add fields at the end; `codec.read_answer` leaves them out.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.errors import GivaliaError
from givalia_core.model import JobState
from givalia_core.protocol.checks import Check, is_any_text, is_bool, is_bytes, is_int, one_of, or_none
from givalia_core.protocol.messages import FOREVER_US, OK, Kind

COUNT_MAX: Final = 1 << 62


class Greeting(NamedTuple):
    """The answer to `Hello`: the version of the protocol that this connection speaks, and what the server is."""

    version: int
    agent: str
    release: str = ""


class Uptime(NamedTuple):
    """The answer to `ClockAsked`."""

    uptime_us: int


class Enqueued(NamedTuple):
    """The answer to `Enq`: the job that has the key now, its due on the wall clock, and how durable it is."""

    id: bytes
    due_us: int
    durability: str


class Moved(NamedTuple):
    """The answer to `Ext` and `Requeue`: the job, and its new due on the wall clock."""

    id: bytes
    due_us: int


class Cancelled(NamedTuple):
    """The answer to `Cancel`: `cancelled`, or `stop_requested` for a job that runs."""

    outcome: str


class Shown(NamedTuple):
    """The answer to `Stat`: a map; the payload is the result, followed by the params if they were asked for."""

    status: dict[str, Any]
    payload: bytes = b""


class EndedDone(NamedTuple):
    """The answer to `Wait` for a job that is done. `payload` is the result unless `result_error` says why there is none."""

    result_error: str | None
    payload: bytes = b""


class EndedDead(NamedTuple):
    """The answer to `Wait` for a job that is dead: why, in a word, and what its last attempt raised."""

    reason: str | None
    error: str | None


class EndedCancelled(NamedTuple):
    """The answer to `Wait` for a job that was cancelled."""


class Listed(NamedTuple):
    """The answer to `List`: an array of maps, and the two numbers with which the next page begins; None at the end."""

    after_a: int | None = None
    after_b: int | None = None
    payload: bytes = b""


class ActedPage(NamedTuple):
    """The answer to `Act`: how many jobs by outcome, the end of the run, and the numbers with which the next page begins."""

    counts: dict[str, int]
    end_seq: int
    after_a: int | None = None
    after_b: int | None = None


class LendingResumed(NamedTuple):
    """The answer to `ResumeLending`: whether there was a hold to end."""

    did_hold: bool


class Described(NamedTuple):
    """The answer to `Info` (a map), and to `Modules` and `Workers` (an array of maps)."""

    payload: bytes


class BackupPart(NamedTuple):
    """The answer to `Backup`; `docs/protocol.md` says what the fields are."""

    is_last: bool
    size_bytes: int
    format: int
    jobs: int
    made_us: int
    crc: int
    payload: bytes


class Joined(NamedTuple):
    """The answer to `Join`: the length of a lease, and the port for clients of this server; 0 if it has none."""

    lease_us: int
    client_port: int = 0


class Failed(NamedTuple):
    """The answer to `FailReport`: the job's state, the most attempts it gets, and how long it waits; None for no wait."""

    state: str
    max_attempts: int
    wait_us: int | None = None


class Taken(NamedTuple):
    """The answer to each other message of a worker: the server has taken the message."""


Record: TypeAlias = (
    Greeting | Uptime | Enqueued | Moved | Cancelled | Shown | EndedDone | EndedDead | EndedCancelled | Listed | ActedPage
    | LendingResumed | Described | BackupPart | Joined | Failed | Taken
)  # fmt: skip
Answer: TypeAlias = Record | GivaliaError

TAKEN: Final = Taken()
_SAID_FIRST: Final[dict[type, tuple[str, ...]]] = {
    EndedDone: (OK, "done"), EndedDead: (OK, "dead"), EndedCancelled: (OK, "cancelled"),
}  # fmt: skip
"""Records whose answer names the job's state in the field after OK."""

OF: Final[dict[Kind, type]] = {
    Kind.HELLO: Greeting,
    Kind.CLOCK: Uptime,
    Kind.ENQ: Enqueued,
    Kind.STAT: Shown,
    Kind.CANCEL: Cancelled,
    Kind.EXT: Moved,
    Kind.REQUEUE: Moved,
    Kind.LIST: Listed,
    Kind.ACT: ActedPage,
    Kind.RESUME_LENDING: LendingResumed,
    Kind.INFO: Described,
    Kind.MODULES: Described,
    Kind.WORKERS: Described,
    Kind.BACKUP: BackupPart,
    Kind.JOIN: Joined,
    Kind.ANNOUNCE: Taken,
    Kind.RESUME: Taken,
    Kind.CREDIT: Taken,
    Kind.BEAT: Taken,
    Kind.SUCCEED: Taken,
    Kind.FAIL: Failed,
    Kind.RELEASE: Taken,
    Kind.PROGRESS: Taken,
    Kind.PROCESSES: Taken,
}
"""The record that answers each kind of message; `Wait` has three, one for each state in which a job can end."""
ENDS: Final[dict[str, type]] = {"done": EndedDone, "dead": EndedDead, "cancelled": EndedCancelled}


def _is_map(value: Any) -> bool:
    return type(value) is dict


def _are_counts(value: Any) -> bool:
    return type(value) is dict and all(is_any_text(name) and _is_count(count) for name, count in value.items())


_is_id: Final = is_bytes(16)
is_instant: Final = is_int(-2 * FOREVER_US, 2 * FOREVER_US)
_is_count: Final = is_int(0, COUNT_MAX)
_is_text_or_none: Final = or_none(is_any_text)
_is_cursor: Final = or_none(_is_count)
_is_state: Final = one_of(*JobState)
_CHECKS: Final[dict[type, tuple[Check, ...]]] = {
    Greeting: (_is_count, is_any_text, is_any_text),
    Uptime: (is_int(0, COUNT_MAX),),
    Enqueued: (_is_id, is_instant, is_any_text),
    Moved: (_is_id, is_instant),
    Cancelled: (is_any_text,),
    Shown: (_is_map,),
    EndedDone: (_is_text_or_none,),
    EndedDead: (_is_text_or_none, _is_text_or_none),
    EndedCancelled: (),
    Listed: (_is_cursor, _is_cursor),
    ActedPage: (_are_counts, _is_count, _is_cursor, _is_cursor),
    LendingResumed: (is_bool,),
    Described: (),
    BackupPart: (is_bool, _is_count, _is_count, _is_count, is_instant, _is_count),
    Joined: (is_int(1, FOREVER_US), is_int(0, (1 << 16) - 1)),
    Failed: (_is_state, _is_count, _is_cursor),
    Taken: (),
}


class Shape(NamedTuple):
    """The form in which a record travels."""

    said_first: tuple[str, ...]
    checks: tuple[Check, ...]
    defaults: tuple[Any, ...]  # Of the last fields before the payload.
    has_payload: bool


def _shape(record: Any) -> Shape:
    named = [name for name in record._fields if name != "payload"]
    defaults = tuple(record._field_defaults[name] for name in named if name in record._field_defaults)
    return Shape(_SAID_FIRST.get(record, (OK,)), _CHECKS[record], defaults, "payload" in record._fields)


SHAPES: Final[dict[type, Shape]] = {record: _shape(record) for record in {*OF.values(), *ENDS.values()}}
