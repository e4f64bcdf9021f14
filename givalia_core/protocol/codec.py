"""Messages and answers as they travel: from a record to an item and back, with the check of each field.

`decode` and `decoded_items` are the boundary: a message that they return has fields of the right types and within the limits
of `fields`, so the code behind them does not check again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from givalia_core.errors import BadRequest, GivaliaError, TooLarge, from_wire
from givalia_core.model import TEN_YEARS_US
from givalia_core.protocol.answers import ENDS, OF, SHAPES, TAKEN, Answer, EndedDone, Enqueued
from givalia_core.protocol.checks import (
    Check,
    is_name,
    refusal_of,
)  # fmt: skip
from givalia_core.protocol.fields import CHECKS, PAYLOAD_BYTES_MAX, PAYLOADS, RECORDS
from givalia_core.protocol.frames import PARAMS_BYTES_MAX, RESULT_BYTES_MAX, Item, unpack_fields
from givalia_core.protocol.messages import (
    FOREVER_US,
    OK,
    Dispatch,
    Enq,
    Heard,
    Kind,
    Progressed,
    Stop,
    Succeed,
)  # fmt: skip


class _Shape(NamedTuple):
    name: str  # In words for people.
    record: type
    checks: tuple[tuple[str, Check], ...]
    required: int
    payload_bytes_max: int
    defaults: tuple[Any, ...]  # Of all fields but the payload; None for the required ones.


def _shape(name: str, record: type) -> _Shape:
    fields: Sequence[str] = record._fields  # type: ignore[attr-defined]
    defaults = record._field_defaults  # type: ignore[attr-defined]
    named = [name for name in fields if name != "payload"]
    checks = tuple((name, CHECKS[record][name]) for name in named)
    required, of_fields = sum(name not in defaults for name in named), tuple(defaults.get(name) for name in named)
    return _Shape(name, record, checks, required, PAYLOAD_BYTES_MAX.get(record, 0), of_fields)


TABLE: Final[dict[Kind, _Shape]] = {kind: _shape(kind.name, record) for kind, record in RECORDS.items()}
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
    """Return a message as it travels, after the checks that the server will make.

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
    name_of_kind, record, checks, required, payload_bytes_max, defaults = shape
    if not required <= len(fields) <= len(checks):
        raise BadRequest(f"{name_of_kind} has {required} to {len(checks)} fields, not {len(fields)}")
    for (name, is_legal), value in zip(checks, fields, strict=False):
        if not is_legal(value):
            raise refusal_of(name, is_legal, value)
    if len(payload) > payload_bytes_max:
        raise TooLarge(f"{PAYLOADS.get(record, 'a payload')} of {len(payload)} bytes; at most {payload_bytes_max} are taken")
    whole = (*fields, *defaults[len(fields) :])
    return _make(record, (*whole, payload) if payload_bytes_max else whole)


def _plain(kind: Kind, fields: list[Any], payload: bytes) -> Any:
    """Return the message of an ordinary enq or success; None: `_check` must decide, which takes three times as long."""
    if kind is Kind.ENQ and len(fields) == 4:
        job_id, module, delay_us, key = fields
        if (
            type(job_id) is bytes and len(job_id) == 16 and type(module) is str and _is_module(module)
            and type(delay_us) is int and 0 <= delay_us <= TEN_YEARS_US and len(payload) <= PARAMS_BYTES_MAX
            and (key is None or (type(key) is str and 0 < len(key) <= 255 and key.isascii() and key.isprintable()))
        ):  # fmt: skip
            return _make(Enq, (*fields, *_ENQ_REST, payload))
    elif kind is Kind.SUCCEED and len(fields) == 2:
        job_id, fence = fields
        if type(job_id) is bytes and len(job_id) == 16 and type(fence) is int and 0 <= fence < 1 << 63:
            return _make(Succeed, (job_id, fence, None, payload)) if len(payload) <= RESULT_BYTES_MAX else None
    return None


_make: Final = tuple.__new__  # The constructor of a named tuple takes longer, and one by keywords twice as long.
_ENQ_REST: Final = tuple(Enq._field_defaults.values())[2:-1]
_is_module: Final = lru_cache(1_024)(is_name)


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


class UnreadableAnswer(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """The reason why an answer comes from no server of this protocol."""


def answer_item(answer: Answer) -> Item:
    """Return the fields and the payload of an answer as they travel."""
    if answer is TAKEN:
        return _TAKEN
    if type(answer) is Enqueued:
        return (OK, *answer), b""
    if isinstance(answer, GivaliaError):
        return refusal(answer)
    said_first, checks, defaults, has_payload = SHAPES[type(answer)]
    said: tuple[Any, ...] = answer
    last = len(checks)
    required = last - len(defaults)
    while last > required and said[last - 1] == defaults[last - 1 - required]:
        last -= 1
    return (*said_first, *said[:last]), said[-1] if has_payload else b""


_TAKEN: Final[Item] = ((OK,), b"")


def read_answer(kind: Kind, fields: Sequence[Any], payload: bytes = b"") -> Answer:
    """Return the answer to a message of this kind; raise `UnreadableAnswer` if a field is missing, or not of its type."""
    if not fields or fields[0] != OK:
        error = answer_error(fields)
        assert error is not None
        return error
    if kind is Kind.ENQ and len(fields) == 4:  # A fast path for nearly all of many answers; the rest continues below.
        _, job_id, due_us, durability = fields
        is_told = type(job_id) is bytes and type(due_us) is int and type(durability) is str
        if is_told and len(job_id) == 16 and -FOREVER_US < due_us < FOREVER_US:
            return Enqueued(job_id, due_us, durability)
    if kind is not Kind.WAIT:
        return _made(kind, OF.get(kind), fields[1:], payload)
    state = fields[1] if len(fields) > 1 else None
    if state == "done" and len(fields) == 3 and fields[2] is None:
        return EndedDone(None, payload)
    return _made(kind, ENDS.get(state) if type(state) is str else None, fields[2:], payload)


def _made(kind: Kind, record: type | None, said: Sequence[Any], payload: bytes) -> Answer:
    """Return the record of checked fields; fields that only a later server knows are left out."""
    if record is None:
        raise UnreadableAnswer(f"the server answers {kind.name} with what is no answer to it")
    _, checks, defaults, has_payload = SHAPES[record]
    if len(said) < len(checks) - len(defaults):
        raise UnreadableAnswer(f"the server answers with {1 + len(said)} fields where there are {1 + len(checks)}")
    said = said[: len(checks)]
    for number, (check, value) in enumerate(zip(checks, said, strict=False), 1):
        if not check(value):
            raise UnreadableAnswer(f"field {number} of an answer cannot be of type {type(value).__name__}")
    answer: Answer = record(*said, payload=payload) if has_payload else record(*said)
    return answer


ERRORS_MAX: Final = 16  # The most words of errors that a frame keeps; further errors share words.


def decoded_items(kind: Kind, items: list[tuple[bytes, bytes]]) -> list[Any]:
    """Return a message or a decoding error for each item."""
    found: list[Any] = []
    errors: dict[str, GivaliaError] = {}
    shape = TABLE[kind]
    for packed, payload in items:
        try:
            fields = unpack_fields(packed)
            found.append(_plain(kind, fields, payload) or _check(shape, fields, payload))
        except GivaliaError as error:
            found.append(_kept(error, errors))
    return found


def _kept(error: GivaliaError, errors: dict[str, GivaliaError]) -> GivaliaError:
    """Return the error to keep for the answer: one with the same words, if the frame has one already."""
    words = str(error)
    if words not in errors:
        if len(errors) >= ERRORS_MAX:
            return errors.setdefault(error.code, type(error)("one of many items of this frame that cannot be taken"))
        # Drop the traceback and the context, which take a thousand bytes per error.
        error.__traceback__ = error.__context__ = None
        errors[words] = error
    return errors[words]
