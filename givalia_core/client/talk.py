"""What a client says and how it understands the answers, without a socket: shared by every kind of client.

Each verb makes a `Call`: the frame's kind, its items, and how to read one answer. A call can be sent any number of times: the
ids in it are made once, so the server knows a resend for what it is (CONTRACT C1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from givalia_core.client import reading
from givalia_core.client.reading import Enqueued, Fields
from givalia_core.clock import new_id
from givalia_core.errors import (
    BadRequest,
    Busy,
    GivaliaError,
    PartlyRefused,
    ShuttingDown,
    StoreFull,
    TooLarge,
    WaitTimeout,
)
from givalia_core.model import ENDED
from givalia_core.protocol import frames, messages, values
from givalia_core.protocol.caller import Broken
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Backup, Cancel, Enq, Ext, Info, Kind, Modules, Requeue, Stat, Wait, Workers, item
from givalia_core.times import Instant, Length, any_length_to_us, at_to_us, length_to_seconds, length_to_us
from givalia_core.views import Status, wire_id

RESEND_S: Final = 60.0
POLL_S: Final = 5.0  # How long a wait that is for no time may take to hear whether the job has ended.
IN_FLIGHT: Final = 8  # Frames of one call that travel before the first is answered.
FRAME_ROOM_BYTES: Final = frames.FRAME_BYTES_MAX - 64  # For items.

Move: TypeAlias = tuple[int | None, int | None]  # By how many microseconds, or to which instant of the wall clock.
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


def resend_s(resend: Length) -> float:
    """The seconds that a client resends, of those it was given.

    Raises:
        BadRequest: Not a number or `timedelta`, or not above 0.
    """
    seconds = length_to_seconds(resend, "resend")
    if seconds <= 0:
        raise BadRequest(f"resend is more than 0, not {resend!r:.40}: within it a server has to answer")
    return min(seconds, RESEND_S)


class Call(NamedTuple, Generic[T_co]):
    """One frame to send, as often as it takes, and the reading of each of its answers."""

    kind: Kind
    items: list[Item]
    read: Callable[[Fields, bytes], T_co]
    waits: bool = False  # Whether the answer comes when a job has ended, and not at once.


def read_answers(call: Call[Any], items: list[tuple[Fields, bytes]]) -> list[Any]:
    """What the answers to a frame mean: a value or an error (returned, not raised) for each command, or one for them all.

    Raises:
        Broken: No server of this protocol answers so.
    """
    if len(items) == len(call.items):
        return [read_answer(call, fields, payload) for fields, payload in items]
    error = messages.answer_error(items[0][0]) if len(items) == 1 else None
    if error is None:
        raise Broken(f"the server gives {len(items)} answers to {len(call.items)} commands")
    return [error]


def read_answer(call: Call[Any], fields: Fields, payload: bytes) -> Any:
    """What one answer means to the caller, or the error it carries (returned, not raised).

    Raises:
        Broken: No server of this protocol answers so.
    """
    if not fields or type(fields[0]) is not str:
        raise Broken("the server gives an answer without a code")
    error = messages.answer_error(fields)
    if error is not None:
        return error
    try:
        return call.read(fields, payload)
    except GivaliaError as ended:
        return ended


def only(call: Call[T], answers: Sequence[Any]) -> T:
    """The answer to a call of one command.

    Raises:
        GivaliaError: The answer is an error.
    """
    (answer,) = answers
    if isinstance(answer, GivaliaError):
        raise answer
    return cast(T, answer)


def all_taken(answers: Sequence[T | GivaliaError]) -> list[T]:
    """The answers to many commands, if every one was taken.

    Raises:
        PartlyRefused: Some were refused; it has all the answers.
    """
    refused = [answer for answer in answers if isinstance(answer, GivaliaError)]
    if refused:
        words = f"{len(refused)} of {len(answers)} jobs were refused; the others stand. The first: {refused[0]}"
        raise PartlyRefused(words, answers=answers)
    return cast(list[T], answers)


def ask_next(answers: Sequence[Any]) -> bool:
    """Whether another server is to be asked, if there is one: this one stops, and has not done all that it was asked.

    The whole frame is then sent again. What was refused was not done; for the rest the ids are known, and the answers the same.
    """
    return any(isinstance(answer, ShuttingDown) for answer in answers)


def ask_later(call: Call[Any], answers: Sequence[Any], *, may_be_done: bool = False) -> GivaliaError | None:
    """The refusal after whose `retry_after` the same server is to be asked again, unheard by the caller.

    A wait is asked again whenever the server is busy, since the time to wait is the caller's own. A command is asked again if
    it came too late to be decided; any other `Busy` is for the caller to hear, unless an earlier copy of it may be done: a
    server that decides nothing does not know.
    """
    undecided = (answer for answer in answers if isinstance(answer, Busy) or (may_be_done and isinstance(answer, StoreFull)))
    return next((answer for answer in undecided if call.waits or may_be_done or is_late(answer)), None)


def is_late(answer: Any) -> bool:
    """Return whether a command was refused as older than its client waits; nothing was decided."""
    return isinstance(answer, Busy) and bool(answer.details.get("late"))


# The verbs.


def enq(module: str, **options: Any) -> Call[Enqueued]:
    """Make one job."""
    return Call(Kind.ENQ, [item(_enq_message(module, options))], reading.enqueued)


def enq_many(jobs: Iterable[Mapping[str, Any]]) -> tuple[Iterator[Call[Enqueued]], list[str | None]]:
    """Make many jobs: as few frames as the limits allow, and the keys of the jobs.

    Raises:
        BadRequest, TooLarge: One of the jobs cannot be sent, and the error names its place; nothing was.
    """
    made: list[Enq] = []
    for place, job in enumerate(jobs):
        try:
            made.append(_enq_message(*_split(job)))
        except (BadRequest, TooLarge) as error:
            raise type(error)(f"jobs[{place}]: {error}") from None
    return _enq_frames(made), [message.key for message in made]


def _enq_frames(made: Iterable[Enq]) -> Iterator[Call[Enqueued]]:
    return in_frames(Kind.ENQ, ((item(message), _enq_bytes(message)) for message in made), reading.enqueued)


def _enq_bytes(message: Enq) -> int:
    names = len(message.module) + len(message.target_worker) + len(message.version or "")
    return len(message.payload) + 96 + key_bytes(message.key) + names


def key_bytes(key: str | None) -> int:
    """What a key takes in a frame; its characters are up to four bytes each."""
    return 0 if key is None else len(key.encode())


def in_frames(
    kind: Kind, sized: Iterable[tuple[Item, int]], read: Callable[[Fields, bytes], T], most: int = frames.ITEMS_MAX
) -> Iterator[Call[T]]:
    """Return as few frames as the limits allow, in order; `sized` has with each item how many bytes it takes at most."""
    batch: list[Item] = []
    room = FRAME_ROOM_BYTES
    for packed, size in sized:
        if batch and (size > room or len(batch) == most):
            yield Call(kind, batch, read)
            batch, room = [], FRAME_ROOM_BYTES
        batch.append(packed)
        room -= size
    if batch:
        yield Call(kind, batch, read)


def _split(job: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if not isinstance(job, Mapping):
        raise BadRequest(f"a job is a mapping with its module and the options of enq, not {type(job).__name__}")
    options = dict(job)
    try:
        return options.pop("module"), options
    except KeyError:
        raise BadRequest("a job names its module") from None


def _enq_message(module: str, options: dict[str, Any]) -> Enq:
    given = {**_ENQ_DEFAULTS, **options}
    if len(given) != len(_ENQ_DEFAULTS):
        unknown = ", ".join(sorted(set(given) - set(_ENQ_DEFAULTS)))
        raise BadRequest(f"enq has no option {unknown}")
    delay_us, at_us = when(given["time"], given["at"])
    job_id = given["id"]
    payload = pack_params(given["params"])
    fields: list[Any] = [
        new_id() if job_id is None else wire_id(job_id), module, delay_us or 0, given["key"], given["target_worker"], at_us,
        given["if_exists"], given["priority"], given["max_attempts"], _length(given, "timeout"), _length(given, "expires"),
        _length(given, "retain"), given["version"],
    ]  # fmt: skip
    made: Enq = messages.check(Kind.ENQ, fields, payload)
    return made


_ENQ_DEFAULTS: Final[dict[str, Any]] = {
    "time": 0,
    "at": None,
    "params": None,
    "key": None,
    "target_worker": messages.ANY,
    "version": None,
    "if_exists": "refuse",
    "priority": 0,
    "max_attempts": None,
    "timeout": None,
    "expires": None,
    "retain": None,
    "id": None,
}


def pack_params(params: Any) -> bytes:
    """Params as they travel; empty for None.

    Raises:
        BadRequest: Not plain data; the message names the value and its place.
        TooLarge: Over 512 KiB when packed.
    """
    if params is None:
        return b""
    try:
        packed = values.pack(params, "params")
    except values.CannotPack as error:
        raise BadRequest(str(error)) from None
    if len(packed) > frames.PARAMS_BYTES_MAX:
        raise TooLarge(f"params of {len(packed)} bytes; at most {frames.PARAMS_BYTES_MAX} are taken")
    return packed


def _length(given: dict[str, Any], name: str) -> int | None:
    return None if given[name] is None else any_length_to_us(given[name], name)


def when(seconds: Length | None, at: Instant | None) -> tuple[int | None, int | None]:
    """Return the delay or the instant of a due, in microseconds.

    Raises:
        BadRequest: Both are given, or what is given cannot be.
    """
    if at is None:
        return None if seconds is None else length_to_us(seconds, "time"), None
    if seconds not in (None, 0):
        raise BadRequest("give a time or an at, not both")
    return None, at_to_us(at)


def _named(key: str | None, job_id: str | None) -> tuple[str | None, bytes | None]:
    if (key is None) == (job_id is None):
        raise BadRequest("name the job by its key or by its id, and by one of them only")
    return key, None if job_id is None else wire_id(job_id)


def _call(kind: Kind, message: Any, read: Callable[[Fields, bytes], T], *, waits: bool = False) -> Call[T]:
    return Call(kind, [checked(kind, message)], read, waits)


def checked(kind: Kind, message: Any) -> Item:
    """A message as it is sent, checked here as the server will check it.

    Raises:
        BadRequest, TooLarge: The server would refuse it.
    """
    fields, payload = item(message)
    messages.check(kind, list(fields), payload)
    return fields, payload


def stat(key: str | None, job_id: str | None, *, params: bool = False) -> Call[Status]:
    """Ask about a job, and with `params` also for what it was enqueued with."""
    return _call(Kind.STAT, Stat(*_named(key, job_id), params), reading.stat)


def wait(job_id: str | None, *, progress: bool = False) -> Call[Any]:
    """Be told when a job has ended, and with `progress` also how far it is."""
    return _call(Kind.WAIT, Wait(*_named(None, job_id), progress), reading.end, waits=True)


def is_poll(timeout: Length | None) -> bool:
    """Return whether a wait is for no time at all: then the caller wants to know whether the job has ended.

    Raises:
        BadRequest: It is no number or `timedelta`.
    """
    return timeout is not None and length_to_seconds(timeout, "timeout") <= 0


def check_ended(status: Status) -> None:
    """Check that there is something to be waited for without waiting.

    Raises:
        WaitTimeout: The job has not ended.
    """
    if status.state not in ENDED:
        raise WaitTimeout("the job has not ended in the time given; it goes on")


def cancel(key: str | None, job_id: str | None, *, running: bool) -> Call[str]:
    """Call a job off."""
    return _call(Kind.CANCEL, Cancel(new_id(), *_named(key, job_id), running), reading.word)


def ext(key: str | None, job_id: str | None, seconds: Length | None, at: Instant | None) -> Call[datetime]:
    """Move a job's due."""
    return _call(Kind.EXT, Ext(new_id(), *_named(key, job_id), *move(seconds, at)), reading.due)


def move(seconds: Length | None, at: Instant | None) -> Move:
    """How far an `ext` moves a due, or to where.

    Raises:
        BadRequest: Both are given or none, or what is given cannot be.
    """
    if (seconds is None) == (at is None):
        raise BadRequest("ext takes either a time or an at")
    delta_us = None if seconds is None else length_to_us(seconds, "time", negative=True)
    return delta_us, None if at is None else at_to_us(at)


def requeue(key: str | None, job_id: str | None, seconds: Length, at: Instant | None) -> Call[tuple[bytes, datetime]]:
    """Give a dead or cancelled job another life."""
    delay_us, at_us = when(seconds, at)
    return _call(Kind.REQUEUE, Requeue(new_id(), *_named(key, job_id), delay_us or 0, at_us), reading.requeued)


class Filter(NamedTuple):
    """Which jobs a listing shows, or an act is for, as messages have it; None: any."""

    state: str | None = None
    module: str | None = None
    target_worker: str | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None


def filter_of(
    state: Any, module: Any, target_worker: Any, key_prefix: Any, due_before: Any, due_after: Any, ended_after: Any, error: Any
) -> Filter:
    """Read a filter as callers give it.

    Raises:
        BadRequest: An instant is none, or a text is empty: whoever computes one and finds none does not mean all jobs.
    """
    texts = {"module": module, "target_worker": target_worker, "key_prefix": key_prefix, "error": error}
    for name, text in texts.items():
        if text is not None and (type(text) is not str or not text or not _is_utf8(text)):
            raise BadRequest(f"{name} is text of one character or more, not {text!r:.80}")
    instants = {"due_before": due_before, "due_after": due_after, "ended_after": ended_after}
    before, after, ended = (None if at is None else at_to_us(at, name) for name, at in instants.items())
    named = None if state is None else str(state)
    return Filter(named, module, target_worker, key_prefix, before, after, ended, error)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def act(message: messages.Act) -> Call[tuple[dict[str, int], int, tuple[int, ...]]]:
    """A page of an act by filter: how many jobs by outcome, the end of the run, and where the next page begins."""
    return _call(Kind.ACT, message, reading.acted)


def list_(
    wanted: Filter, limit: int, after: Sequence[int], *, params: bool = False
) -> Call[tuple[list[Status], tuple[int, ...]]]:
    """A page of jobs, and the numbers with which the next begins; none if it is the last."""
    after_a, after_b = after or (None, None)
    message = messages.List(limit=limit, after_a=after_a, after_b=after_b, params=params, **wanted._asdict())
    return _call(Kind.LIST, message, reading.page)


def resume() -> Call[bool]:
    """End the hold of the server; whether there was one."""
    return _call(Kind.RESUME_LENDING, messages.ResumeLending(new_id()), reading.resumed)


def info() -> Call[dict[str, Any]]:
    """What the server is, holds and allows."""
    return Call(Kind.INFO, [item(Info())], reading.content)


def modules() -> Call[list[dict[str, Any]]]:
    """What modules the connected workers announced."""
    return Call(Kind.MODULES, [item(Modules())], reading.content)


def backup(name: bytes, part: int) -> Call[reading.BackupPart]:
    """A part of a copy of the server's store."""
    return _call(Kind.BACKUP, Backup(name, part), reading.backup)


def workers() -> Call[list[dict[str, Any]]]:
    """Which workers are connected."""
    return Call(Kind.WORKERS, [item(Workers())], reading.content)
