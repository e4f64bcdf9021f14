"""Reads the answers of a server, and checks each field first.

A result is the work of a worker, and no server looks into it: if it cannot be read, that is an answer. Everything else that is
not as `docs/protocol.md` has it comes from no server of this protocol, and the connection is of no use.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.errors import JobCancelled, JobFailed, ResultLost
from givalia_core.headline import headline
from givalia_core.model import JobState
from givalia_core.protocol import values
from givalia_core.protocol.caller import Broken
from givalia_core.protocol.checks import Check, is_any_text, is_bool, is_bytes, is_fraction, is_int, one_of, or_none
from givalia_core.protocol.messages import FOREVER_US
from givalia_core.times import to_datetime
from givalia_core.views import Status

Fields: TypeAlias = list[Any]

UNREADABLE: Final = "UNREADABLE"  # Why there is no result, if a worker has reported bytes that are no value.
_COUNT_MAX: Final = 1 << 62


class BackupPart(NamedTuple):
    """The answer to a backup: `docs/protocol.md` says what the fields are."""

    payload: bytes
    is_last: bool
    size_bytes: int
    format: int
    jobs: int
    made_us: int
    crc: int


class Enqueued(NamedTuple):
    """The answer to an enq."""

    id: bytes
    due_at_us: int
    durability: str


class Requeued(NamedTuple):
    """The answer to a requeue."""

    id: bytes
    due_at_us: int
    durability: str = ""


def _is_progress(value: Any) -> bool:
    return type(value) is list and len(value) == 2 and is_fraction(value[0]) and is_any_text(value[1])


_is_id: Final = is_bytes(16)
_is_instant: Final = is_int(-2 * FOREVER_US, 2 * FOREVER_US)
_is_count: Final = is_int(0, _COUNT_MAX)
_is_ended: Final = one_of(JobState.DONE, JobState.DEAD, JobState.CANCELLED)
_text_or_none: Final = or_none(is_any_text)
_STATUS: Final[dict[str, Check]] = {
    "id": _is_id, "key": _text_or_none, "module": is_any_text, "target_worker": is_any_text,
    "priority": is_int(-_COUNT_MAX, _COUNT_MAX), "state": one_of(*JobState), "due_us": _is_instant,
    "timeleft_us": or_none(_is_count), "attempts": _is_count, "max_attempts": _is_count, "worker": _text_or_none,
    "progress": or_none(_is_progress), "error": _text_or_none, "reason": _text_or_none, "result_error": _text_or_none,
    "stop_asked": is_bool, "why": is_any_text,
}  # fmt: skip
"""The parts of a status that every server tells."""


def enqueued(fields: Fields, _: bytes) -> Enqueued:
    """The answer to an enq."""
    # Nearly all are as they should be, and there are many; what is wrong is found out in words below.
    if len(fields) == 4:
        _, job_id, due_us, durability = fields
        is_told = type(job_id) is bytes and type(due_us) is int and type(durability) is str
        if is_told and len(job_id) == 16 and -FOREVER_US < due_us < FOREVER_US:
            return Enqueued(job_id, due_us, durability)
    return Enqueued(*_checked(fields, _is_id, _is_instant, is_any_text))


def word(fields: Fields, _: bytes) -> str:
    """The answer to a cancel."""
    (said,) = _checked(fields, is_any_text)
    return str(said)


def due(fields: Fields, _: bytes) -> datetime:
    """The answer to an ext."""
    return to_datetime(requeued(fields, b"").due_at_us)


def requeued(fields: Fields, _: bytes) -> Requeued:
    """The answer to a requeue."""
    return Requeued(*_checked(fields, _is_id, _is_instant))


def resumed(fields: Fields, _: bytes) -> bool:
    """Return whether there was a hold to end."""
    (did_hold,) = _checked(fields, is_bool)
    return bool(did_hold)


def content(_: Fields, payload: bytes) -> Any:
    """The answer that is one value."""
    try:
        return values.unpack(payload)
    except ValueError as error:
        raise Broken(f"the server answers what no server answers: {error or type(error).__name__}") from None


def stat(fields: Fields, payload: bytes) -> Status:
    """The answer to a stat."""
    (shown,) = _checked(fields, lambda value: type(value) is dict)
    if type(params_bytes := shown.get("params_bytes", 0)) is not int or not 0 <= params_bytes <= len(payload):
        raise Broken("the server tells a length of params that they do not have")
    middle = len(payload) - params_bytes
    return _status(shown, payload[:middle], payload[middle:])


def backup(fields: Fields, payload: bytes) -> BackupPart:
    """The answer to a backup."""
    return BackupPart(payload, *_checked(fields, is_bool, _is_count, _is_count, _is_count, _is_instant, _is_count))


def page(fields: Fields, payload: bytes) -> tuple[list[Status], tuple[int, ...]]:
    """The answer to a list: its jobs, and the numbers with which the next page begins."""
    listed, after = content(fields, payload), tuple(fields[1:])
    if type(listed) is not list or len(after) not in (0, 2) or not all(map(_is_count, after)):
        raise Broken("the server answers a list with what is none")
    return [_status(shown, b"", shown.get("params") if type(shown) is dict else None) for shown in listed], after


def acted(fields: Fields, _: bytes) -> tuple[dict[str, int], int, tuple[int, ...]]:
    """The answer to an act: how many jobs by outcome, the end of the run, and the numbers with which the next page begins."""
    counts, end_seq = _checked(fields, _are_counts, _is_count)
    after = tuple(fields[3:])
    if len(after) not in (0, 2) or not all(map(_is_count, after)):
        raise Broken("the server answers an act with what is none")
    return counts, end_seq, after


def _are_counts(value: Any) -> bool:
    return type(value) is dict and all(is_any_text(name) and _is_count(count) for name, count in value.items())


def _status(shown: Any, payload: bytes, params: Any = None) -> Status:
    """The record of a status map; `params` as they travel."""
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
        params=content([], params) if type(params) is bytes else None,
    )


def _instant(us: Any) -> datetime | None:
    """Return an instant that a server of an earlier version does not tell."""
    if us is None:
        return None
    if not _is_instant(us):
        raise Broken("the server tells an instant that is none")
    return to_datetime(us)


def end(fields: Fields, payload: bytes) -> Any:
    """The result of a job that has ended.

    Raises:
        JobFailed, JobCancelled, ResultLost: There is none.
    """
    (state,) = _checked(fields, _is_ended)
    if state == JobState.CANCELLED:
        raise JobCancelled("the job was cancelled")
    if state == JobState.DEAD:
        _, reason, error = _checked(fields, is_any_text, _text_or_none, _text_or_none)
        raise JobFailed(f"the job is dead ({reason}): {headline(error) or 'it has no error'}", reason=reason, error=error)
    _, why = _checked(fields, is_any_text, _text_or_none)
    result, unreadable = _result(payload)
    if why or unreadable:
        raise ResultLost(f"the job is done, but its result was not kept: {why or unreadable}", why=why or unreadable)
    return result


def _result(payload: bytes) -> tuple[Any, str | None]:
    """A job's result, or why there is none."""
    try:
        return values.unpack(payload), None
    except ValueError:
        return None, UNREADABLE


def _checked(fields: Fields, *checks: Check) -> Fields:
    """The fields behind the first, which is OK; a later server may say more.

    Raises:
        Broken: One is missing, or not what it should be.
    """
    said = fields[1 : 1 + len(checks)]
    if len(said) < len(checks):
        raise Broken(f"the server answers with {len(fields)} fields where there are {1 + len(checks)}")
    for number, (check, value) in enumerate(zip(checks, said, strict=True), 1):
        if not check(value):
            raise Broken(f"field {number} of an answer cannot be of type {type(value).__name__}")
    return said
