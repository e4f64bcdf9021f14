"""The line protocol of 2012: one JSON object a line asks, one JSON object a line answers.

    {"action": "enq", "job": {"time": 10, "module": "Sample", "params": "...", "key": "k", "target_worker": "any"}}
    {"response": "success", "desc": "enque successfull.", "id": "..."}

`LineReader` turns bytes into lines, `decode` a line into the message that a framed client would have sent, `encode` its answer
into a line. What `decode` lets through has passed `codec.check`, so a line can ask for nothing that a frame cannot.
Nothing here touches a socket, and no byte of a user's text reaches a client's terminal other than as printable ASCII.

A line names a job by `key` or `id`; with both, the key counts, as in 2012. Unknown names are ignored, and a null counts as
absent.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final, NamedTuple

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, DuplicateKey, GivaliaError, NotFound, TooLarge, WrongState
from givalia_core.model import ENDED, JobState
from givalia_core.protocol import codec, values
from givalia_core.protocol.answers import Answer, Cancelled, Enqueued, Moved, Shown
from givalia_core.protocol.messages import ANY, Kind
from givalia_core.times import length_to_us
from givalia_core.views import text_id, wire_id

LINE_BYTES_MAX: Final = 64 << 10  # Without the LF or CRLF that ends it.
DEPTH_MAX: Final = 32
NUMBER_CHARS_MAX: Final = 255  # No key is longer, and no time needs as many.

MakeId = Callable[[], bytes]


class Request(NamedTuple):
    """The command of a line, as a framed client would have sent it."""

    kind: Kind
    message: Any

    @property
    def is_of_live_key(self) -> bool:
        """True if the command acts only on the live job of a key, as in 2012; the key of an ended job names nothing."""
        return self.kind in (Kind.CANCEL, Kind.EXT) and getattr(self.message, "key", None) is not None


class LineReader:
    """Turns bytes into lines, without their ends and the blanks around them; holds at most one line of bytes."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self.is_overlong = False  # A line passed the limit: nothing is taken any more.

    @property
    def is_mid_line(self) -> bool:
        """True while a line has begun and not ended."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the bytes that arrived; return the complete lines without the empty ones.

        Whole lines before one that is too long are still returned, so that they can be answered: then `is_overlong` is
        true, and the next call raises.

        Raises:
            TooLarge: A line is over 64 KiB, and was not kept. Close the connection.
        """
        *ended, begun = data.split(b"\n")
        lines: list[bytes] = []
        for piece in ended:
            self._keep(piece)
            line = bytes(self._pending).strip(b" \t\r")
            self._pending.clear()
            if line:
                lines.append(line)
        self._keep(begun)
        if self.is_overlong and not lines:
            raise TooLarge(f"a line is over {LINE_BYTES_MAX} bytes")
        return lines

    def _keep(self, piece: bytes) -> None:
        # A CR at the end may turn out to be half of the line's end, so it is not counted yet.
        is_cr_last = (piece or self._pending).endswith(b"\r")
        self.is_overlong = self.is_overlong or len(self._pending) + len(piece) - is_cr_last > LINE_BYTES_MAX
        if self.is_overlong:
            self._pending.clear()
        else:
            self._pending += piece


def decode(line: bytes, make_id: MakeId) -> Request:
    """Return the command of one line; `make_id` gives the 16 bytes of the request id that lines do not carry.

    Raises:
        BadRequest: The line is not one JSON object, or asks for the impossible: `is_malformed` tells which.
        TooLarge: The params are over their limit.
    """
    asked = _parse(line)
    action, job = asked.get("action"), asked.get("job")
    if type(action) is not str or action not in _ACTIONS:
        raise BadRequest(f"unknown action {_shown(action)}; there are {', '.join(_ACTIONS)}")
    if type(job) is not dict:
        raise BadRequest(f"{action}: job must be an object")
    return _ACTIONS[action](job, make_id)


def is_malformed(error: GivaliaError) -> bool:
    """Return whether the line is no JSON object that can be read; False if it is one that asks for the impossible."""
    return error.details.get("malformed") is True


def _enq(job: dict[str, Any], make_id: MakeId) -> Request:
    delay_us = length_to_us(_needed(job, "time", "enq"), "time")
    module = _needed(job, "module", "enq")
    target_worker = ANY if job.get("target_worker") is None else job["target_worker"]
    return _request(Kind.ENQ, [make_id(), module, delay_us, _key(job), target_worker], _packed(job.get("params")))


def _stat(job: dict[str, Any], make_id: MakeId) -> Request:  # noqa: ARG001 - All of one table take the same.
    return _request(Kind.STAT, _names(job, "stat"))


def _cancel(job: dict[str, Any], make_id: MakeId) -> Request:
    return _request(Kind.CANCEL, [make_id(), *_names(job, "cancel")])


def _ext(job: dict[str, Any], make_id: MakeId) -> Request:
    names = _names(job, "ext")
    return _request(Kind.EXT, [make_id(), *names, length_to_us(_needed(job, "time", "ext"), "time", negative=True)])


_ACTIONS: Final[dict[str, Callable[[dict[str, Any], MakeId], Request]]] = {
    "enq": _enq,
    "stat": _stat,
    "cancel": _cancel,
    "ext": _ext,
}


def _request(kind: Kind, fields: list[Any], payload: bytes = b"") -> Request:
    return Request(kind, codec.check(kind, fields, payload))


def _needed(job: dict[str, Any], name: str, action: str) -> Any:
    value = job.get(name)
    if value is None:
        raise BadRequest(f"{action} needs a {name}")
    return value


def _names(job: dict[str, Any], action: str) -> list[Any]:
    key = _key(job)
    if key is not None:
        return [key, None]
    if job.get("id") is None:
        raise BadRequest(f"{action} needs a key or an id")
    return [None, wire_id(job["id"])]


def _key(job: dict[str, Any]) -> Any:
    key = job.get("key")
    if type(key) is int:
        return str(key)
    return format(Decimal(repr(key)), "f") if type(key) is float else key


def _packed(params: Any) -> bytes:
    try:
        return values.pack(params, "params")
    except values.CannotPack as error:
        raise BadRequest(str(error)) from None


def _shown(value: Any) -> str:
    text = ascii(value) if isinstance(value, str) else type(value).__name__
    return text if len(text) <= 64 else text[:61] + "..."


# From bytes to plain values. Depth and numbers are limited before Python builds anything from them.


def _malformed(why: str) -> BadRequest:
    return BadRequest(f"bad JSON: {why}", malformed=True)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        _refuse_depth(text)
        value = _JSON.decode(text)
        if _SURROGATE(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _malformed(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise _malformed("half of a surrogate pair stands alone") from None
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at character {error.pos}") from None
    if type(value) is not dict:
        raise _malformed("a line must be one object")
    return value


def _refuse_depth(text: str) -> None:
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return
    depth = 0
    for bracket in _NO_BRACKETS("", text):
        depth += 1 if bracket in "[{" else -1
        if depth > DEPTH_MAX:
            raise _malformed(f"nested deeper than {DEPTH_MAX}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise _malformed(f"the name {_shown(twice)} stands twice in one object")
    return value


def _int(digits: str) -> int:
    return int(_short(digits))


def _float(digits: str) -> float:
    value = float(_short(digits))
    if math.isinf(value):
        raise _malformed(f"the number {digits[:64]} is out of reach")
    return value


def _short(digits: str) -> str:
    if len(digits) > NUMBER_CHARS_MAX:
        raise _malformed(f"a number has more than {NUMBER_CHARS_MAX} characters")
    return digits


def _constant(name: str) -> Any:
    raise _malformed(f"{name} is not a JSON number")


_JSON: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_int, parse_float=_float, parse_constant=_constant)
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]").search
# Strings, and all else but brackets. An unfinished string extends to the end: else each quote in it starts a new search.
_NO_BRACKETS: Final = re.compile(r'"(?:[^"\\]+|\\.)*+(?:"|\\?\Z)|[^"\[\]{}]+', re.DOTALL).sub


def encode(kind: Kind, answer: Answer, *, is_of_live_key: bool = False) -> bytes:
    """Return the line that answers a request of this kind; see `Request.is_of_live_key`."""
    if not isinstance(answer, GivaliaError):
        return _line("success", **_SUCCESS[type(answer)](answer))
    if is_of_live_key and isinstance(answer, WrongState) and answer.details.get("state") in ENDED:
        return fail(NotFound("no live job has the key"))
    if kind is Kind.STAT and isinstance(answer, NotFound):
        return _line("success", desc={"que": False})
    return fail(answer)


def fail(error: GivaliaError) -> bytes:
    """Return the line for a refusal, including one by `decode` or the `LineReader`."""
    return _line("fail", desc=_WORDS_OF_2012.get(type(error)) or str(error)[:1000])


def _line(response: str, **rest: Any) -> bytes:
    # Written although it is the default, since it is a promise: other than printable ASCII leaves escaped.
    return json.dumps({"response": response, **rest}, ensure_ascii=True, separators=(",", ":")).encode() + b"\n"


_WORDS_OF_2012: Final[dict[type[GivaliaError], str]] = {
    DuplicateKey: "Key already exists.",
    NotFound: "Key was not found.",
}


def _enqueued(answer: Enqueued) -> dict[str, Any]:
    return {"desc": "enque successfull.", "id": text_id(answer.id)}


def _shown_status(answer: Shown) -> dict[str, Any]:
    status = answer.status
    is_queued = status["state"] in (JobState.WAITING, JobState.READY)
    timeleft = {"timeleft": status["timeleft_us"] // SECOND_US} if is_queued else {}
    shown = {name: status[name] for name in ("state", "attempts", "worker", "error", "why")}
    return {"desc": {"que": is_queued, **timeleft, "id": text_id(status["id"]), **shown}}


def _cancelled(answer: Cancelled) -> dict[str, Any]:
    is_cancelled = answer.outcome == "cancelled"
    return {"desc": "Cancel successfull." if is_cancelled else "The job runs; it was asked to stop."}


def _moved(_: Moved) -> dict[str, Any]:
    return {"desc": "Extend successfull."}


_SUCCESS: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    Enqueued: _enqueued,
    Shown: _shown_status,
    Cancelled: _cancelled,
    Moved: _moved,
}
