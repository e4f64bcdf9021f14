"""Reads the records of answers for users: a `Status`, a page of a listing, the error of a job without a result.

A worker writes the result, and no server reads it: an unreadable result is an answer. Anything else that differs from
`docs/protocol.md` comes from no server of this protocol, and the connection is of no use.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeVar

from givalia_core.errors import GivaliaError, JobCancelled, JobFailed, ResultLost
from givalia_core.headline import headline
from givalia_core.model import JobState
from givalia_core.protocol import values
from givalia_core.protocol.answers import (
    COUNT_MAX,
    Cancelled,
    Described,
    EndedDead,
    EndedDone,
    LendingResumed,
    Listed,
    Moved,
    Shown,
    is_instant,
)
from givalia_core.protocol.caller import Broken
from givalia_core.protocol.checks import Check, is_any_text, is_bool, is_bytes, is_fraction, is_int, one_of, or_none
from givalia_core.times import to_datetime
from givalia_core.views import Status

A = TypeVar("A")

UNREADABLE: Final = "UNREADABLE"  # Why there is no result, if a worker reported bytes that are no value.


def _is_progress(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and is_fraction(value[0]) and is_any_text(value[1])


_is_count: Final = is_int(0, COUNT_MAX)
_is_text_or_none: Final = or_none(is_any_text)
_STATUS: Final[dict[str, Check]] = {
    "id": is_bytes(16), "key": _is_text_or_none, "module": is_any_text, "target_worker": is_any_text,
    "priority": is_int(-COUNT_MAX, COUNT_MAX), "state": one_of(*JobState), "due_us": is_instant,
    "timeleft_us": or_none(_is_count), "attempts": _is_count, "max_attempts": _is_count, "worker": _is_text_or_none,
    "progress": or_none(_is_progress), "error": _is_text_or_none, "reason": _is_text_or_none,
    "result_error": _is_text_or_none, "stop_asked": is_bool, "why": is_any_text,
}  # fmt: skip
"""The parts of a status that servers of every version tell."""


def record(_: type[A]) -> Callable[[Any], A]:
    """Return a reader of answers whose record is used as it is."""
    return lambda answer: answer


def outcome(answer: Cancelled) -> str:
    """Return the outcome of a cancel."""
    return answer.outcome


def due(answer: Moved) -> datetime:
    """Return the new due of a job."""
    return to_datetime(answer.due_us)


def did_hold(answer: LendingResumed) -> bool:
    """Return whether there was a hold to end."""
    return answer.did_hold


def described(answer: Described) -> Any:
    """Return the value that the answer carries."""
    return _value(answer.payload)


def _value(payload: bytes) -> Any:
    try:
        return values.unpack(payload)
    except ValueError as error:
        raise Broken(f"the server answers what no server answers: {error or type(error).__name__}") from None


def status(answer: Shown) -> Status:
    """Return the status of a job."""
    shown, payload = answer
    if type(params_bytes := shown.get("params_bytes", 0)) is not int or not 0 <= params_bytes <= len(payload):
        raise Broken("the server tells a length of params that they do not have")
    middle = len(payload) - params_bytes
    return _status(shown, payload[:middle], payload[middle:])


def page(answer: Listed) -> tuple[list[Status], tuple[int, ...]]:
    """Return the jobs of a page, and the numbers with which the next page begins."""
    listed = _value(answer.payload)
    if type(listed) is not list:
        raise Broken("the server answers a list with what is none")
    after = next_page(answer.after_a, answer.after_b)
    return [_status(shown, b"", shown.get("params") if type(shown) is dict else None) for shown in listed], after


def next_page(after_a: int | None, after_b: int | None) -> tuple[int, ...]:
    """Return the numbers with which the next page begins; none if there is no next."""
    if (after_a is None) != (after_b is None):
        raise Broken("the server says only half of where the next page begins")
    return () if after_a is None or after_b is None else (after_a, after_b)


def _status(shown: Any, payload: bytes, params: Any = None) -> Status:
    """Return the record of a status map; `params` as they travel."""
    if type(shown) is not dict or not all(name in shown and check(shown[name]) for name, check in _STATUS.items()):
        raise Broken("the server tells the status of a job in a way in which no server does")
    timeleft_us, progress = shown["timeleft_us"], shown["progress"]
    result, unreadable = _result(payload)
    enq_at, started_at, ended_at = (_instant(shown.get(name)) for name in ("enq_at_us", "started_at_us", "ended_at_us"))
    return Status(
        id=str(uuid.UUID(bytes=shown["id"])),
        key=shown["key"],
        module=shown["module"],
        target_worker=shown["target_worker"],
        priority=shown["priority"],
        state=JobState(shown["state"]),
        due=to_datetime(shown["due_us"]),
        timeleft=None if timeleft_us is None else timeleft_us / 1e6,
        attempts=shown["attempts"],
        max_attempts=shown["max_attempts"],
        worker=shown["worker"],
        progress=None if progress is None else (progress[0], progress[1]),
        result=result,
        error=shown["error"],
        reason=shown["reason"],
        result_error=shown["result_error"] or unreadable,
        stop_asked=shown["stop_asked"],
        why=shown["why"],
        version=shown.get("version"),  # A server of an earlier version does not know it.
        enq_at=enq_at,
        started_at=started_at,
        ended_at=ended_at,
        params=_value(params) if type(params) is bytes else None,
    )


def _instant(us: Any) -> datetime | None:
    """Return an instant; None from a server of an earlier version, which does not tell it."""
    if us is None:
        return None
    if not is_instant(us):
        raise Broken("the server tells an instant that is none")
    return to_datetime(us)


def no_result(answer: Any) -> GivaliaError:
    """Return the error of a job that ended without a readable result."""
    if isinstance(answer, EndedDead):
        words = f"the job is dead ({answer.reason}): {headline(answer.error) or 'it has no error'}"
        return JobFailed(words, reason=answer.reason, error=answer.error)
    if not isinstance(answer, EndedDone):
        return JobCancelled("the job was cancelled")
    why = answer.result_error or UNREADABLE
    return ResultLost(f"the job is done, but its result was not kept: {why}", why=why)


def _result(payload: bytes) -> tuple[Any, str | None]:
    """Return a job's result, or why there is none."""
    try:
        return values.unpack(payload), None
    except ValueError:
        return None, UNREADABLE
