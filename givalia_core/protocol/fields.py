"""The check of every field of every message, with its limits (docs/protocol.md), and the record of each kind."""

from __future__ import annotations

from typing import Final

from givalia_core.clock import SECOND_US
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
)  # fmt: skip
from givalia_core.protocol.frames import PARAMS_BYTES_MAX, RESULT_BYTES_MAX
from givalia_core.protocol.messages import (
    CAPACITY_MAX,
    DAY_US,
    ERROR_BYTES_MAX,
    FOREVER_US,
    IF_EXISTS,
    LIST_LIMIT_MAX,
    STACK_BYTES_MAX,
    Act,
    Announce,
    Backup,
    Cancel,
    ClockAsked,
    Credit,
    Dispatch,
    Enq,
    Ext,
    FailReport,
    Heard,
    Hello,
    Info,
    Join,
    Kind,
    List,
    Modules,
    NamedLease,
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

CHECKS: Final[dict[type, dict[str, Check]]] = {
    Hello: {
        "version_min": is_int(0, 1 << 16), "version_max": is_int(0, 1 << 16),
        "agent": is_text(255), "auth": is_text(255), "proof": is_any_bytes,
    },
    ClockAsked: {"until_us": or_none(is_int(0, 1 << 62))},
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
    NamedLease: _HELD,
    Credit: {"capacity": is_int(0, CAPACITY_MAX), "processes": is_int(0, CAPACITY_MAX)},
    Succeed: {**_HELD, "result_error": or_none(one_of("TOO_LARGE", "UNSERIALIZABLE"))},
    FailReport: {
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

PAYLOADS: Final = {Enq: "params", Succeed: "a result", Dispatch: "params"}
PAYLOAD_BYTES_MAX: Final = {Enq: PARAMS_BYTES_MAX, Succeed: RESULT_BYTES_MAX, Dispatch: PARAMS_BYTES_MAX}


RECORDS: Final[dict[Kind, type]] = {
    Kind.HELLO: Hello, Kind.ENQ: Enq, Kind.STAT: Stat, Kind.WAIT: Wait, Kind.CLOCK: ClockAsked, Kind.CANCEL: Cancel,
    Kind.EXT: Ext, Kind.REQUEUE: Requeue, Kind.LIST: List, Kind.ACT: Act, Kind.RESUME_LENDING: ResumeLending, Kind.INFO: Info,
    Kind.MODULES: Modules, Kind.WORKERS: Workers, Kind.BACKUP: Backup, Kind.JOIN: Join, Kind.ANNOUNCE: Announce,
    Kind.RESUME: NamedLease, Kind.CREDIT: Credit, Kind.BEAT: NamedLease, Kind.SUCCEED: Succeed, Kind.FAIL: FailReport,
    Kind.RELEASE: Release, Kind.PROGRESS: Progress, Kind.PROCESSES: Process,
}  # fmt: skip
