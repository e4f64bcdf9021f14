"""The verbs of every client, once: their arguments, their promises, and the call that each of them is.

A client makes methods of these functions, blocking ones or coroutines, which send the call and return what it was answered.
So whatever a verb takes and means is said here, and nothing here knows how a call travels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from givalia_core.client import many, reading, talk
from givalia_core.client.many import Many, Named
from givalia_core.client.talk import Call
from givalia_core.client.ticket import Ticket
from givalia_core.model import JobState
from givalia_core.protocol.messages import LIST_LIMIT_MAX
from givalia_core.times import Instant, Length
from givalia_core.views import Status, text_id

F = TypeVar("F", bound=Callable[..., Any])


def as_method(method: F, verb: Callable[..., Any]) -> F:
    """Give a client's method the name, the words and the arguments of its verb, for `help` and for editors."""
    signature = inspect.signature(verb)
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    name = verb.__name__.rstrip("_")  # One verb has the name of a type.
    method.__name__, method.__qualname__, method.__doc__ = name, name, verb.__doc__
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[myself, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    return method


def enq(
    module: str,
    *,
    time: Length = 0,
    at: Instant | None = None,
    params: Any = None,
    key: str | None = None,
    target_worker: str = "any",
    version: str | None = None,
    if_exists: str = "refuse",
    priority: int = 0,
    max_attempts: int | None = None,
    timeout: Length | None = None,
    expires: Length | None = None,
    retain: Length | None = None,
    id: str | None = None,
) -> Call[Ticket]:
    """Run `module` with `params` in `time` seconds or `at` an instant. On return the job is as durable as the handle says.

    Args:
        module: The name of a WorkModule.
        time: Seconds or a `timedelta` from now, 0 to ten years; so are all lengths.
        at: Epoch seconds, an aware datetime or ISO text with its zone instead; the past means now.
        params: Any value msgpack can carry, at most 512 KiB packed.
        key: Names the job while it lives; 1 to 255 bytes.
        target_worker: The name of the worker that is to run it.
        version: Which versions of the module's distribution may run it, as pip has it: `>=2,<3`; None for any.
        if_exists: What to do if the key is taken: `refuse`, `keep`, `replace` or `reschedule`.
        priority: -9 to 9, higher first.
        max_attempts: 1 to 100.
        timeout: Seconds an attempt may take, 1 s to 24 h.
        expires: Seconds after its due in which a first attempt must start, or it is dead.
        retain: Seconds to remember it after its end.
        id: A UUID of your own making; the same id twice is one job.

    Raises:
        DuplicateKey: A live job has the key; `.id` names it. Only with `if_exists="refuse"`.
        WrongState: It runs. Only with `replace` and `reschedule`.
        StoreFull, Busy, TooLarge: No job was made.
    """
    options = {
        "time": time, "at": at, "params": params, "key": key, "target_worker": target_worker, "version": version,
        "if_exists": if_exists, "priority": priority, "max_attempts": max_attempts, "timeout": timeout,
        "expires": expires, "retain": retain, "id": id,
    }  # fmt: skip
    call = talk.enq(module, **options)
    return Call(call.kind, call.items, lambda fields, payload: ticket(call.read(fields, payload), key))


def ticket(enqueued: reading.Enqueued, key: str | None) -> Ticket:
    """The ticket of a job that was enqueued under this key."""
    return Ticket(text_id(enqueued.id), key, enqueued.due, enqueued.durability)


def stat(key: str | None = None, *, id: str | None = None, params: bool = False) -> Call[Status]:
    """Return what is known of a job: the live one of the key, else the one that ended last.

    Args:
        key: The job of this key.
        id: Names the job instead of `key`.
        params: Tell also what it was enqueued with, up to 512 KiB.

    Raises:
        NotFound: None is live or remembered.
    """
    return talk.stat(key, id, params=params)


def stat_many(jobs: Iterable[Named] | None = None, *, ids: Iterable[str] | None = None, params: bool = False) -> Many[Status]:
    """Return what is known of many jobs; for each, in order, what `stat` returns or the `NotFound` it raises.

    Args:
        jobs: Keys, handles or `Status` records; the last two stand for their ids.
        ids: Ids instead.
        params: Tell also what each was enqueued with.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has an answer or an error for each.
        BadRequest: One cannot be sent at all. Nothing was.
    """
    return many.stat(jobs, ids, params=params)


def cancel(key: str | None = None, *, id: str | None = None, running: bool = False) -> Call[str]:
    """Call a job off. `cancelled` means it will not start (again).

    With `running`, a job that has started is asked to stop and never retried; the answer is then `stop_requested`.

    Raises:
        NotFound: There is none.
        WrongState: It is running (and `running` is False), done or dead; `.state` says which.
    """
    return talk.cancel(key, id, running=running)


def cancel_many(jobs: Iterable[Named] | None = None, *, ids: Iterable[str] | None = None, running: bool = False) -> Many[str]:
    """Call many jobs off at once; for each, in order, what `cancel` answers or the `NotFound` or `WrongState` it raises.

    So a job that has started or is gone is an answer among others. Each part of up to 10,000 jobs or 1 MiB is one commit, and
    on return all of them are durable; the parts travel without waiting for each other.

    Args:
        jobs: Keys, handles or `Status` records; the last two stand for their ids. Two of the same are answered alike.
        ids: Ids instead.
        running: Also ask those that have started to stop.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has an answer or an error for each. The others stand.
        BadRequest: One cannot be sent at all. Nothing was.
    """
    return many.cancel(jobs, ids, running=running)


def ext(
    key: str | None = None,
    time: Length | None = None,
    *,
    at: Instant | None = None,
    id: str | None = None,
) -> Call[datetime]:
    """Move the due of a job that has not started, and return the new one.

    Args:
        key: The live job of this key.
        time: Seconds to add to its due, or to now if that has passed; negative brings it forward, never before now.
        at: The new due itself, as in `enq`.
        id: Names the job instead of `key`.

    Raises:
        NotFound: There is none.
        WrongState: It runs or has ended.
    """
    return talk.ext(key, id, time, at)


def ext_many(
    jobs: Iterable[Named] | Mapping[Any, Length] | None = None,
    time: Length | None = None,
    *,
    at: Instant | None = None,
    ids: Iterable[str] | Mapping[str, Length] | None = None,
) -> Many[datetime]:
    """Move the dues of many jobs at once; for each, in order, its new due, or the `NotFound` or `WrongState` of `ext`.

    Parts, commits and durability are as in `cancel_many`. Handles that are given hear of their new due.

    Args:
        jobs: Keys, handles or `Status` records, each once; or a mapping of them to the `time` that each is moved by.
        time: Seconds to add to the due of each, as in `ext`; not with a mapping.
        at: The new due of all; not with a mapping.
        ids: Ids instead, or a mapping of ids.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has a due or an error for each. The others stand.
        BadRequest: One cannot be sent at all, or is named twice. Nothing was.
    """
    return many.ext(jobs, time, at, ids)


def requeue(
    key: str | None = None,
    *,
    id: str | None = None,
    time: Length = 0,
    at: Instant | None = None,
) -> Call[Ticket]:
    """Give a dead or cancelled job another life, with all its attempts, due in `time` seconds or `at`.

    Raises:
        NotFound: There is none.
        WrongState: It is live or done.
        DuplicateKey: Its key has a live job.
    """
    call = talk.requeue(key, id, time, at)

    def read(fields: reading.Fields, payload: bytes) -> Ticket:
        job_id, due = call.read(fields, payload)
        found = text_id(job_id)
        return Ticket(found, None if key is not None and key.lower() == found else key, due)

    return Call(call.kind, call.items, read)


def requeue_many(
    jobs: Iterable[Named] | None = None,
    *,
    ids: Iterable[str] | None = None,
    time: Length = 0,
    at: Instant | None = None,
) -> Many[datetime]:
    """Give many dead or cancelled jobs another life; for each, in order, its due, or what `requeue` raises for it.

    Parts, commits and durability are as in `cancel_many`.

    Args:
        jobs: Keys, handles or `Status` records; the last two stand for their ids. Two of the same are answered alike.
        ids: Ids instead.
        time: Seconds from now until they are due.
        at: The instant at which they are due instead.

    Raises:
        PartlyRefused: Some were refused for another reason; `.answers` has a due or an error for each. The others stand.
        BadRequest: One cannot be sent at all. Nothing was.
    """
    return many.requeue(jobs, ids, time, at)


def resume() -> Call[bool]:
    """End the hold with which the server was started: jobs that are due are lent from now on.

    Of servers that share a store each has a hold of its own; this ends that of the server which answers.

    Returns:
        False if the server did not hold.
    """
    return talk.resume()


def info() -> Call[dict[str, Any]]:
    """What the server is, holds and allows; `docs/protocol.md` names the parts."""
    return talk.info()


def modules() -> Call[list[dict[str, Any]]]:
    """Every module of every connected worker, the broken ones with their error."""
    return talk.modules()


def workers() -> Call[list[dict[str, Any]]]:
    """Every connected worker."""
    return talk.workers()


def list_(
    state: JobState | str | None = None,
    *,
    module: str | None = None,
    target_worker: str | None = None,
    key_prefix: str | None = None,
    due_before: Instant | None = None,
    due_after: Instant | None = None,
    ended_after: Instant | None = None,
    error: str | None = None,
    params: bool = False,
) -> Pages:
    """List jobs, a page at a time as you go on; jobs that change meanwhile may be missed or shown as they were.

    Jobs that wait come in the order of their dues, those that have ended with the last one first (both if `state` says so), all
    others in the order of `enq`. No status has a result.

    Args:
        state: `waiting`, `ready`, `running`, `done`, `dead` or `cancelled`; None for any, as with what follows.
        module: Only jobs of this module.
        target_worker: Only jobs for this worker.
        key_prefix: Only jobs whose key begins so.
        due_before: Only jobs due before this instant, given as `at` in `enq`.
        due_after: Only jobs due then or later.
        ended_after: Only jobs that ended then or later.
        error: Only jobs whose last error has this text in it, whatever its case; at most 255 characters.
        params: Tell also what each job was enqueued with.
    """
    wanted = talk.filter_of(state, module, target_worker, key_prefix, due_before, due_after, ended_after, error)
    return Pages(wanted, params=params)


class Pages:
    """A listing, a page at a time: send `call`, give the answer to `take`, and go on until it `is_over`."""

    def __init__(self, wanted: talk.Filter, *, params: bool) -> None:
        self._filter = wanted
        self._params = params
        self._after: tuple[int, ...] = ()
        self.is_over = False

    def call(self) -> Call[tuple[list[Status], tuple[int, ...]]]:
        """What asks for the next page."""
        return talk.list_(self._filter, LIST_LIMIT_MAX, self._after, params=self._params)

    def take(self, answer: tuple[list[Status], tuple[int, ...]]) -> list[Status]:
        """The jobs of the page that this is."""
        page, self._after = answer
        self.is_over = not self._after
        return page
