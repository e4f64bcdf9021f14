"""Messages as they travel: the checks of their fields, and the way from a record to an item and back.

`decode` is the boundary: a message that it returns has fields of the right types and within the limits of CONTRACT 1.7, so the
code behind it does not check again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

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
from givalia_core.protocol.messages import (
    CAPACITY_MAX,
    DAY_US,
    ERROR_BYTES_MAX,
    FOREVER_US,
    IF_EXISTS,
    LIST_LIMIT_MAX,
    OK,
    STACK_BYTES_MAX,
    Act,
    Announce,
    Backup,
    Cancel,
    Clock,
    Credit,
    Dispatch,
    Enq,
    Ext,
    Fail,
    Heard,
    Hello,
    Hold,
    Info,
    Join,
    Kind,
    List,
    Modules,
    Process,
    Progress,
    Progressed,
    Release,
    Requeue,
    ResumeLending,
    Stat,
    Stop,
    Succeed,
    Wait,
    Workers,
)  # fmt: skip
from givalia_core.specifiers import is_specifier

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
    Kind.HELLO: Hello, Kind.ENQ: Enq, Kind.STAT: Stat, Kind.WAIT: Wait, Kind.CLOCK: Clock, Kind.CANCEL: Cancel, Kind.EXT: Ext,
    Kind.REQUEUE: Requeue, Kind.LIST: List, Kind.ACT: Act, Kind.RESUME_LENDING: ResumeLending, Kind.INFO: Info,
    Kind.MODULES: Modules, Kind.WORKERS: Workers, Kind.BACKUP: Backup, Kind.JOIN: Join, Kind.ANNOUNCE: Announce,
    Kind.RESUME: Hold, Kind.CREDIT: Credit, Kind.BEAT: Hold, Kind.SUCCEED: Succeed, Kind.FAIL: Fail, Kind.RELEASE: Release,
    Kind.PROGRESS: Progress, Kind.PROCESSES: Process,
}  # fmt: skip
TABLE: Final[dict[Kind, _Shape]] = {kind: _shape(kind.name, record) for kind, record in _RECORDS.items()}
_TOLD: Final[dict[type, _Shape]] = {
    record: _shape(record.__name__.upper(), record) for record in (Heard, Dispatch, Stop, Progressed)
}


def decode(kind: Kind, packed: bytes, payload: bytes) -> Any:
    """Return the message of one item.

    Raises:
        BadRequest: A field is missing, of the wrong type or outside its limits; the message names it.
        TooLarge: The payload is over its limit.
    """
    return _check(TABLE[kind], unpack_fields(packed), payload)


def check(kind: Kind, fields: list[Any], payload: bytes = b"") -> Any:
    """Return the message of fields that are unpacked already; otherwise as `decode`."""
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
    """Return the record of an item that a server sends unasked; fields that only a later server knows are left out.

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
    """Return a message as `decode` reads it: the fields without trailing defaults, and the payload."""
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
    """Return the answer that carries an error: its code, its words, its named values."""
    fields: tuple[Any, ...] = (error.code, str(error)[:1000])
    return ((*fields, error.details) if error.details else fields), b""


def answer_error(fields: Sequence[Any]) -> GivaliaError | None:
    """Return the error that an answer carries; None if it is a success."""
    if fields and fields[0] == OK:
        return None
    code, message, details = (*fields, *("GIVALIA_ERROR", "an answer without a code", {})[len(fields) :])[:3]
    return from_wire(str(code), str(message), details if isinstance(details, dict) else {})


ERRORS_MAX: Final = 16  # That a frame keeps words for; whatever else is wrong in it shares them.


def decoded_items(kind: Kind, items: list[tuple[bytes, bytes]]) -> list[Any]:
    """Return a message, or the error that decoding gave, for each item."""
    found: list[Any] = []
    errors: dict[str, GivaliaError] = {}
    shape = TABLE[kind]
    for packed, payload in items:
        try:
            found.append(_check(shape, unpack_fields(packed), payload))
        except GivaliaError as error:
            found.append(_kept(error, errors))
    return found


def _kept(error: GivaliaError, errors: dict[str, GivaliaError]) -> GivaliaError:
    """An error as it is kept for its answer: one of those that the frame has already, if that says the same."""
    words = str(error)
    if words not in errors:
        if len(errors) >= ERRORS_MAX:
            return errors.setdefault(error.code, type(error)("one of many items of this frame that cannot be taken"))
        # Without what Python remembers of its way here, which is a thousand bytes each.
        error.__traceback__ = error.__context__ = None
        errors[words] = error
    return errors[words]
