"""Many jobs in one call: `enq_many`, `cancel_many`, `ext_many`, `requeue_many` and `stat_many`, their frames and their answers.

A frame is one commit at the server. Every command is made and checked before the first is sent, with an id of its own, so a
frame can be sent any number of times (docs/delivery.md). Nothing here knows how a request travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from inspect import signature
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from givalia_core.client import commands
from givalia_core.client.commands import CANCEL, ENQ, EXT, REQUEUE, STAT, Command
from givalia_core.client.handles import Handle
from givalia_core.client.pending import Pending
from givalia_core.clock import new_id
from givalia_core.errors import BadRequest, DuplicateKey, GivaliaError, NotFound, PartlyRefused, TooLarge, WrongState
from givalia_core.protocol.answers import Enqueued
from givalia_core.protocol.codec import checked
from givalia_core.protocol.frames import FRAME_BYTES_MAX, ITEMS_MAX, Item
from givalia_core.protocol.messages import STATS_PER_FRAME, Cancel, Enq, Ext, Requeue, Stat
from givalia_core.times import Instant, Length
from givalia_core.views import Status, wire_id

T = TypeVar("T")
H = TypeVar("H", bound=Handle)
Named: TypeAlias = str | Handle | Status  # A job by its key, or by an object that has its id.
Name: TypeAlias = tuple[str | None, bytes | None]  # As messages have it: the key, or the id.

EXPECTED: Final = (NotFound, WrongState, DuplicateKey)  # Expected in bulk calls, so they are returned, not raised.
FIELDS_BYTES: Final = 64  # The most bytes of one cancel or ext in a frame, without its key,
ENQ_BYTES: Final = 96  # and of one enq, without its params, key and names.
FRAME_ROOM_BYTES: Final = FRAME_BYTES_MAX - 64  # For items.


class Many(NamedTuple, Generic[T]):
    """The frames of one call, and the function that turns their answers into the caller's; it may raise `PartlyRefused`."""

    requests: Iterator[Pending[T]]
    finish: Callable[[list[T | GivaliaError]], list[T | NotFound | WrongState]]


class ManyEnq(NamedTuple):
    """The frames of one call of `enq_many`, and the keys of its jobs."""

    requests: Iterator[Pending[Enqueued]]
    keys: list[str | None]

    def handles(self, kind: type[H], transport: object, answers: Sequence[Enqueued | GivaliaError]) -> list[H]:
        """Return a handle for each job.

        Raises:
            PartlyRefused: Some were refused; the error has all the answers.
        """
        made = [
            kind(transport, answer, key) if isinstance(answer, Enqueued) else answer
            for answer, key in zip(answers, self.keys, strict=True)
        ]
        refused = [answer for answer in made if isinstance(answer, GivaliaError)]
        if refused:
            words = f"{len(refused)} of {len(made)} jobs were refused; the others stand. The first: {refused[0]}"
            raise PartlyRefused(words, answers=made)
        return cast("list[H]", made)


def enq_many(jobs: Iterable[Mapping[str, Any]]) -> ManyEnq:
    """Make many jobs; see `Client.enq_many`.

    Raises:
        BadRequest, TooLarge: One of the jobs cannot be sent, and the error names its place; nothing was.
    """
    sized: list[tuple[Item, int]] = []
    keys: list[str | None] = []
    for place, job in enumerate(jobs):
        try:
            message = enq_of(job)
            sized.append((checked(ENQ.kind, message), _enq_bytes(message)))
        except (BadRequest, TooLarge) as error:
            raise type(error)(f"jobs[{place}]: {error}") from None
        keys.append(message.key)
    return ManyEnq(_in_frames(ENQ, sized), keys)


def enq_of(job: Mapping[str, Any]) -> Enq:
    """Return the message of a job that is given as a mapping with its module and the options of `enq`.

    Raises:
        BadRequest, TooLarge: The job cannot be sent.
    """
    if not isinstance(job, Mapping):
        raise BadRequest(f"a job is a mapping with its module and the options of enq, not {type(job).__name__}")
    if not job.keys() <= _OPTIONS:
        raise BadRequest(f"enq has no option {', '.join(sorted(map(str, job.keys() - _OPTIONS)))}")
    if "module" not in job:
        raise BadRequest("a job names its module")
    return commands.enq(**job)


_OPTIONS: Final = frozenset(signature(commands.enq).parameters)


def _enq_bytes(message: Enq) -> int:
    names = len(message.module) + len(message.target_worker) + len(message.version or "")
    return len(message.payload) + ENQ_BYTES + _key_bytes(message.key) + names


def _key_bytes(key: str | None) -> int:
    """Return the bytes of a key in a frame; its characters are up to four bytes each."""
    return 0 if key is None else len(key.encode())


def _in_frames(command: Command[..., T], sized: Iterable[tuple[Item, int]], most: int = ITEMS_MAX) -> Iterator[Pending[T]]:
    """Yield as few frames as the limits allow, in order; `sized` has each item with the most bytes that it takes."""
    batch: list[Item] = []
    room_bytes = FRAME_ROOM_BYTES
    for packed, size_bytes in sized:
        if batch and (size_bytes > room_bytes or len(batch) == most):
            yield Pending(command.kind, batch, command.read)
            batch, room_bytes = [], FRAME_ROOM_BYTES
        batch.append(packed)
        room_bytes -= size_bytes
    if batch:
        yield Pending(command.kind, batch, command.read)


def cancel_many(jobs: Iterable[Named] | None = None, *, ids: Iterable[str] | None = None, running: bool = False) -> Many[str]:
    """Cancel many jobs at once; return for each, in order, the answer of `cancel`, or its `NotFound` or `WrongState`.

    A job that has started or is gone is an answer among others. Each part of up to 10,000 jobs or 1 MiB is one commit, and on
    return all parts are durable; the parts travel without waiting for each other.

    Args:
        jobs: Keys, handles or `Status` records; the last two stand for their ids. The same job twice gets the same answer.
        ids: Ids instead.
        running: Also ask those that have started to stop.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has an answer or an error for each. The others stand.
        BadRequest: One cannot be sent at all. Nothing was sent.
    """
    return _each(CANCEL, jobs, ids, lambda name: Cancel(new_id(), *name, running))


def requeue_many(
    jobs: Iterable[Named] | None = None, *, ids: Iterable[str] | None = None, time: Length = 0, at: Instant | None = None
) -> Many[datetime]:
    """Give many dead or cancelled jobs another life; return for each, in order, its due, or the error of `requeue`.

    Parts, commits and durability are as in `cancel_many`.

    Args:
        jobs: Keys, handles or `Status` records; the last two stand for their ids. The same job twice gets the same answer.
        ids: Ids instead.
        time: Seconds from now until they are due.
        at: The instant at which they are due instead.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has a due or an error for each. The others stand.
        BadRequest: One cannot be sent at all. Nothing was sent.
    """
    delay_us, at_us = commands.when(time, at)
    return _each(REQUEUED, jobs, ids, lambda name: Requeue(new_id(), *name, delay_us, at_us))


def stat_many(jobs: Iterable[Named] | None = None, *, ids: Iterable[str] | None = None, params: bool = False) -> Many[Status]:
    """Return what is known of many jobs: for each, in order, the answer of `stat` or its `NotFound`.

    Args:
        jobs: Keys, handles or `Status` records; the last two stand for their ids.
        ids: Ids instead.
        params: Also return the params of each.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has an answer or an error for each.
        BadRequest: One cannot be sent at all. Nothing was sent.
    """
    return _each(STAT, jobs, ids, lambda name: Stat(*name, params), STATS_PER_FRAME)


REQUEUED: Final = Command(REQUEUE.kind, REQUEUE.make, EXT.read)
"""As `REQUEUE`, but the answer is read as the new due only."""


def _each(
    command: Command[..., T],
    jobs: Iterable[Named] | None,
    ids: Iterable[str] | None,
    make: Callable[[Name], Any],
    most: int = ITEMS_MAX,
) -> Many[T]:
    """Return the same command for many jobs, made once for each."""
    given, name_of = _given(jobs, ids)
    asked: dict[Name, int] = {}
    sized: list[tuple[Item, int]] = []
    places: list[int] = []
    for name in map(name_of, given):
        place = asked.setdefault(name, len(asked))
        if place == len(sized):
            sized.append(_sized(command, make(name)))
        places.append(place)

    def finish(answers: list[T | GivaliaError]) -> list[T | NotFound | WrongState]:
        return _none_refused([answers[place] for place in places])

    return Many(_in_frames(command, sized, most), finish)


def ext_many(
    jobs: Iterable[Named] | Mapping[Any, Length] | None = None,
    time: Length | None = None,
    *,
    at: Instant | None = None,
    ids: Iterable[str] | Mapping[str, Length] | None = None,
) -> Many[datetime]:
    """Move the dues of many jobs at once; return for each, in order, its new due, or the `NotFound` or `WrongState` of `ext`.

    Parts, commits and durability are as in `cancel_many`. Handles that are given get their new due.

    Args:
        jobs: Keys, handles or `Status` records, each once; or a mapping of them to the `time` that each is moved by.
        time: Seconds to add to the due of each, as in `ext`; not with a mapping.
        at: The new due of all; not with a mapping.
        ids: Ids instead, or a mapping of ids.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has a due or an error for each. The others stand.
        BadRequest: One cannot be sent at all, or is named twice. Nothing was sent.
    """
    given, name_of = _given(jobs, ids)
    moved: dict[Name, Named] = {}
    sized: list[tuple[Item, int]] = []
    for job, move in _moves(given, time, at):
        name = name_of(job)
        # Two moves of one job in one call are more likely a mistake than a wish.
        if name in moved:
            raise BadRequest(f"each job is moved once, and {job!r:.300} is named twice")
        moved[name] = job
        sized.append(_sized(EXT, Ext(new_id(), *name, *move)))

    def finish(answers: list[datetime | GivaliaError]) -> list[datetime | NotFound | WrongState]:
        for job, answer in zip(moved.values(), answers, strict=True):
            if isinstance(job, Handle) and isinstance(answer, datetime):
                job.due = answer
        return _none_refused(answers)

    return Many(_in_frames(EXT, sized), finish)


def _given(jobs: Any, ids: Any) -> tuple[Iterable[Any], Callable[[Any], Name]]:
    """Return the jobs, and the function that names one of them on the wire."""
    if (jobs is None) == (ids is None):
        raise BadRequest("name the jobs by their keys or by their ids, and by one of them only")
    given, name_of = (jobs, _name) if ids is None else (ids, _by_id)
    # A text is iterable too, and its letters would be keys.
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise BadRequest(f"many jobs are named in a list or another iterable, not by one {type(given).__name__}")
    return given, name_of


def _name(job: Any) -> Name:
    if isinstance(job, str):
        return job, None
    if isinstance(job, (Handle, Status)):
        return _by_id(job.id)
    raise BadRequest(f"a job is named by its key, or is a handle or a Status, and not a {type(job).__name__}")


def _by_id(job_id: Any) -> Name:
    return None, wire_id(job_id)


def _moves(given: Iterable[Any], time: Length | None, at: Instant | None) -> Iterator[tuple[Any, commands.Move]]:
    """Yield each job and its move."""
    if isinstance(given, Mapping):
        if time is not None or at is not None:
            raise BadRequest("a mapping has each job's own time, so no other can be given")
        return ((job, commands.move(own, None)) for job, own in given.items())
    move = commands.move(time, at)
    return ((job, move) for job in given)


def _sized(command: Command[..., Any], message: Any) -> tuple[Item, int]:
    """Return the message as it is sent, and the most bytes that it takes."""
    return checked(command.kind, message), FIELDS_BYTES + _key_bytes(message.key)


def _none_refused(answers: list[T | GivaliaError]) -> list[T | NotFound | WrongState]:
    """Return the answers.

    Raises:
        PartlyRefused: Some are refusals that are not `EXPECTED`; the error has all the answers.
    """
    refused = [answer for answer in answers if isinstance(answer, GivaliaError) and not isinstance(answer, EXPECTED)]
    if refused:
        words = f"{len(refused)} of {len(answers)} commands were refused; the others stand. The first: {refused[0]}"
        raise PartlyRefused(words, answers=answers)
    return cast("list[T | NotFound | WrongState]", answers)
