"""Many `cancel`, `ext`, `requeue` or `stat` in one call: how jobs are named, their frames, and what the answers come to.

A frame is one commit at the server. Every command is made and checked before the first is sent, with an id of its own, so a
frame can be sent any number of times (CONTRACT C1). Nothing here knows how a call travels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar, cast

from givalia_core.client import reading, talk
from givalia_core.client.talk import Call
from givalia_core.client.ticket import Handle
from givalia_core.clock import new_id
from givalia_core.errors import BadRequest, DuplicateKey, GivaliaError, NotFound, PartlyRefused, WrongState
from givalia_core.protocol.frames import ITEMS_MAX, Item
from givalia_core.protocol.messages import STATS_PER_FRAME, Cancel, Ext, Kind, Requeue, Stat
from givalia_core.views import Status, wire_id

T = TypeVar("T")
Named: TypeAlias = str | Handle | Status  # A job by its key, or by what has its id.
Length: TypeAlias = float | timedelta
Name: TypeAlias = tuple[str | None, bytes | None]  # As messages have it: the key, or the id.

EXPECTED: Final = (NotFound, WrongState, DuplicateKey)  # Of many jobs some are always gone, or otherwise than was thought.
FIELDS_BYTES: Final = 64  # What one cancel or ext takes in a frame at most, its key apart.


class Many(NamedTuple, Generic[T]):
    """The frames of one call, and what makes of the answers to their commands what the caller gets.

    `finish` may raise `PartlyRefused`.
    """

    calls: Iterator[Call[T]]
    finish: Callable[[list[T | GivaliaError]], list[T | NotFound | WrongState]]


def cancel(jobs: Iterable[Named] | None, ids: Iterable[str] | None, *, running: bool) -> Many[str]:
    """Call many jobs off. One that is named twice is asked for once, and its answer stands in both places.

    Raises:
        BadRequest: One of them cannot be sent; nothing was.
    """
    return _each(jobs, ids, Kind.CANCEL, lambda name: Cancel(new_id(), *name, running), reading.word)


def requeue(
    jobs: Iterable[Named] | None, ids: Iterable[str] | None, time: Length, at: float | datetime | None
) -> Many[datetime]:
    """Give many jobs another life. One that is named twice is asked for once, and its answer stands in both places.

    Raises:
        BadRequest: One of them cannot be sent; nothing was.
    """
    delay_us, at_us = talk.when(time, at)
    return _each(jobs, ids, Kind.REQUEUE, lambda name: Requeue(new_id(), *name, delay_us or 0, at_us), reading.due)


def stat(jobs: Iterable[Named] | None, ids: Iterable[str] | None, *, params: bool) -> Many[Status]:
    """Ask about many jobs.

    Raises:
        BadRequest: One of them cannot be sent; nothing was.
    """
    return _each(jobs, ids, Kind.STAT, lambda name: Stat(*name, params), reading.stat, STATS_PER_FRAME)


def _each(
    jobs: Iterable[Named] | None,
    ids: Iterable[str] | None,
    kind: Kind,
    make: Callable[[Name], Any],
    read: Callable[[reading.Fields, bytes], T],
    most: int = ITEMS_MAX,
) -> Many[T]:
    """The same command for many jobs, made once for each."""
    given, name_of = _given(jobs, ids)
    asked: dict[Name, int] = {}
    sized: list[tuple[Item, int]] = []
    places: list[int] = []
    for name in map(name_of, given):
        place = asked.setdefault(name, len(asked))
        if place == len(sized):
            sized.append(_sized(kind, make(name)))
        places.append(place)

    def finish(answers: list[T | GivaliaError]) -> list[T | NotFound | WrongState]:
        return _none_refused([answers[place] for place in places])

    return Many(talk.in_frames(kind, sized, read, most), finish)


def ext(
    jobs: Iterable[Named] | Mapping[Any, Length] | None,
    time: Length | None,
    at: float | datetime | None,
    ids: Iterable[str] | Mapping[str, Length] | None,
) -> Many[datetime]:
    """Move the dues of many jobs, all alike or each by its own length. Handles among them hear of their new due.

    Raises:
        BadRequest: One of them cannot be sent; nothing was.
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
        sized.append(_sized(Kind.EXT, Ext(new_id(), *name, *move)))

    def finish(answers: list[datetime | GivaliaError]) -> list[datetime | NotFound | WrongState]:
        for job, answer in zip(moved.values(), answers, strict=True):
            if isinstance(job, Handle) and isinstance(answer, datetime):
                job.due = answer
        return _none_refused(answers)

    return Many(talk.in_frames(Kind.EXT, sized, reading.due), finish)


def _given(jobs: Any, ids: Any) -> tuple[Iterable[Any], Callable[[Any], Name]]:
    """The jobs, and how to name one of them on the wire."""
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


def _moves(given: Iterable[Any], time: Length | None, at: float | datetime | None) -> Iterator[tuple[Any, talk.Move]]:
    """Each job, and how it is to be moved."""
    if isinstance(given, Mapping):
        if time is not None or at is not None:
            raise BadRequest("a mapping has each job's own time, so no other can be given")
        return ((job, talk.move(own, None)) for job, own in given.items())
    move = talk.move(time, at)
    return ((job, move) for job in given)


def _sized(kind: Kind, message: Any) -> tuple[Item, int]:
    """The message as it is sent, and how many bytes it takes at most."""
    return talk.checked(kind, message), FIELDS_BYTES + talk.key_bytes(message.key)


def _none_refused(answers: list[T | GivaliaError]) -> list[T | NotFound | WrongState]:
    """The answers, unless the server would not decide on some of the jobs.

    That one is not there any more, or has started, is what a caller of many has to expect: it is an answer.

    Raises:
        PartlyRefused: It would not; the error has all the answers.
    """
    refused = [answer for answer in answers if isinstance(answer, GivaliaError) and not isinstance(answer, EXPECTED)]
    if refused:
        words = f"{len(refused)} of {len(answers)} commands were refused; the others stand. The first: {refused[0]}"
        raise PartlyRefused(words, answers=answers)
    return cast("list[T | NotFound | WrongState]", answers)
