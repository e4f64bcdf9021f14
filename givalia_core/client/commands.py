"""Every command, once: its options, the message that they make, and the reading of the answer.

A client makes methods of these commands, blocking ones or coroutines. The docstrings here are those of the methods. Each
message gets its id when it is made, so that a request can be sent any number of times; nothing here knows how it travels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, ParamSpec, TypeAlias, TypeVar

from givalia_core.client import readings
from givalia_core.client.pending import Pending
from givalia_core.clock import SECOND_US, new_id
from givalia_core.errors import BadRequest, TooLarge, WaitTimeout
from givalia_core.model import ENDED, TEN_YEARS_US
from givalia_core.protocol import codec, values
from givalia_core.protocol.answers import EndedCancelled, EndedDead, EndedDone, Enqueued, Moved, Shown
from givalia_core.protocol.frames import PARAMS_BYTES_MAX
from givalia_core.protocol.messages import Cancel, Enq, Ext, Info, Kind, Modules, Requeue, ResumeLending, Stat, Wait, Workers
from givalia_core.times import Instant, Length, any_length_to_us, at_to_us, length_to_seconds, length_to_us
from givalia_core.views import wire_id

P = ParamSpec("P")
T_co = TypeVar("T_co", covariant=True)

POLL_S: Final = 5.0  # How long a wait with a timeout of 0 waits for the server's answer.

Move: TypeAlias = tuple[int | None, int | None]  # By how many microseconds, or to which instant of the wall clock.


@dataclass(frozen=True, slots=True)
class Command(Generic[P, T_co]):
    """One verb: the message that its options make, and the reading of the answer."""

    kind: Kind
    make: Callable[P, Any]
    """Makes the message of the verb's options."""
    read: Callable[[Any], T_co]
    """Turns the answer into the value for the caller."""

    def ask(self, message: Any) -> Pending[T_co]:
        """Return the request with this message.

        Raises:
            BadRequest, TooLarge: The server would refuse it.
        """
        return Pending(self.kind, [codec.checked(self.kind, message)], self.read)


def enq(
    module: str, *, time: Length = 0, at: Instant | None = None, params: Any = None, key: str | None = None,
    target_worker: str = "any", version: str | None = None, if_exists: str = "refuse", priority: int = 0,
    max_attempts: int | None = None, timeout: Length | None = None, expires: Length | None = None,
    retain: Length | None = None, id: str | None = None,
) -> Enq:  # fmt: skip
    """Run `module` with `params` in `time` seconds or `at` an instant. On return the job is as durable as the handle says.

    Args:
        module: The name of a WorkModule.
        time: Seconds or a `timedelta` from now, 0 to ten years; all lengths are given so.
        at: Epoch seconds, an aware datetime or ISO text with its zone instead; the past means now.
        params: Any value msgpack can carry, at most 512 KiB packed.
        key: Names the job while it lives; 1 to 255 bytes.
        target_worker: The name of the worker that must run the job.
        version: The versions of the module's distribution that may run the job, as pip has them: `>=2,<3`; None for any.
        if_exists: What to do if the key is taken: `refuse`, `keep`, `replace` or `reschedule`.
        priority: -9 to 9, higher first.
        max_attempts: 1 to 100.
        timeout: Seconds an attempt may take, 1 s to 24 h.
        expires: Seconds after the due in which a first attempt must start, or the job is dead.
        retain: Seconds to remember the job after its end.
        id: A UUID that you make; the same id twice is one job.

    Raises:
        DuplicateKey: A live job has the key; `.id` names it. Only with `if_exists="refuse"`.
        WrongState: The job of the key runs. Only with `replace` and `reschedule`.
        StoreFull, Busy, TooLarge: No job was made.
    """
    seconds: Any = time
    is_plain = at is None and type(seconds) in (int, float) and 0 <= seconds * SECOND_US <= TEN_YEARS_US  # As nearly always.
    delay_us, at_us = (round(seconds * SECOND_US), None) if is_plain else when(time, at)
    return Enq(
        new_id() if id is None else wire_id(id), module, delay_us, key, target_worker, at_us, if_exists, priority, max_attempts,
        None if timeout is None else any_length_to_us(timeout, "timeout"),
        None if expires is None else any_length_to_us(expires, "expires"),
        None if retain is None else any_length_to_us(retain, "retain"),
        version, b"" if params is None else pack_params(params),
    )  # fmt: skip


def pack_params(params: Any) -> bytes:
    """Return params as they travel; empty for None.

    Raises:
        BadRequest: The params are not plain data; the message names the value and its place.
        TooLarge: The params are over 512 KiB when packed.
    """
    if params is None:
        return b""
    try:
        packed = values.pack(params, "params")
    except values.CannotPack as error:
        raise BadRequest(str(error)) from None
    if len(packed) > PARAMS_BYTES_MAX:
        raise TooLarge(f"params of {len(packed)} bytes; at most {PARAMS_BYTES_MAX} are taken")
    return packed


def stat(key: str | None = None, *, id: str | None = None, params: bool = False) -> Stat:
    """Return what is known of a job: the live one of the key, else the one that ended last.

    Args:
        key: The job of this key.
        id: Names the job instead of `key`.
        params: Also return the job's params, up to 512 KiB.

    Raises:
        NotFound: No such job is live or remembered.
    """
    return Stat(*_named(key, id), params)


def wait(job_id: bytes, timeout: Length | None, *, progress: bool) -> list[Pending[Any]]:
    """Return the requests to make one after the other until a job has ended; the last answer is the job's result.

    A wait with a timeout of 0 first asks whether the job has ended, since its caller wants to know just that.

    Raises:
        BadRequest: The timeout is no number or `timedelta`.
    """
    is_plain = type(timeout) in (int, float) and timeout > 0  # type: ignore[operator]
    timeout_s: Any = timeout if timeout is None or is_plain else length_to_seconds(timeout, "timeout")
    item = codec.item(Wait(None, job_id, progress))
    if timeout_s is None or timeout_s > 0:
        return [Pending(Kind.WAIT, [item], _ended, waits=True, timeout_s=timeout_s)]
    polling: Pending[Any] = Pending(Kind.STAT, [codec.item(Stat(None, job_id))], _check_ended, timeout_s=POLL_S)
    return [polling, Pending(Kind.WAIT, [item], _ended, waits=True, timeout_s=POLL_S)]


def _ended(answer: EndedDone | EndedDead | EndedCancelled) -> Any:
    """Return the result of a job that has ended.

    Raises:
        JobFailed, JobCancelled, ResultLost: There is none.
    """
    if isinstance(answer, EndedDone) and answer.result_error is None:
        with contextlib.suppress(ValueError):
            return values.unpack(answer.payload)
    raise readings.no_result(answer)


def _check_ended(answer: Shown) -> None:
    if readings.status(answer).state not in ENDED:
        raise WaitTimeout("the job has not ended in the time given; it goes on")


def cancel(key: str | None = None, *, id: str | None = None, running: bool = False) -> Cancel:
    """Cancel a job. The answer `cancelled` means that the job will not start (again).

    With `running`, a job that has started is asked to stop and never retried; the answer is then `stop_requested`.

    Raises:
        NotFound: There is no such job.
        WrongState: The job is running (and `running` is False), done or dead; `.state` says which.
    """
    return Cancel(new_id(), *_named(key, id), running)


def ext(key: str | None = None, time: Length | None = None, *, at: Instant | None = None, id: str | None = None) -> Ext:
    """Move the due of a job that has not started, and return the new one.

    Args:
        key: The live job of this key.
        time: Seconds to add to its due, or to now if that has passed; negative brings it forward, never before now.
        at: The new due itself, as in `enq`.
        id: Names the job instead of `key`.

    Raises:
        NotFound: There is no such job.
        WrongState: The job runs or has ended.
    """
    return Ext(new_id(), *_named(key, id), *move(time, at))


def requeue(key: str | None = None, *, id: str | None = None, time: Length = 0, at: Instant | None = None) -> Requeue:
    """Give a dead or cancelled job another life, with all its attempts, due in `time` seconds or `at`.

    Raises:
        NotFound: There is no such job.
        WrongState: The job is live or done.
        DuplicateKey: Its key has a live job.
    """
    return Requeue(new_id(), *_named(key, id), *when(time, at))


def resume() -> ResumeLending:
    """End the hold with which the server was started: jobs that are due are lent from now on.

    Servers that share a store have a hold each; this ends the hold of the server that answers.

    Returns:
        False if the server did not hold.
    """
    return ResumeLending(new_id())


def info() -> Info:
    """Describe the server: what it is, holds and allows; `docs/protocol.md` names the parts."""
    return Info()


def modules() -> Modules:
    """Return every module of every connected worker, the broken ones with their error."""
    return Modules()


def workers() -> Workers:
    """Return every connected worker."""
    return Workers()


def when(time: Length | None, at: Instant | None) -> tuple[int, int | None]:
    """Return the delay and the instant of a due, in microseconds.

    Raises:
        BadRequest: Both are given, or a value is invalid.
    """
    if at is None:
        return 0 if time is None else length_to_us(time, "time"), None
    if time not in (None, 0):
        raise BadRequest("give a time or an at, not both")
    return 0, at_to_us(at)


def move(time: Length | None, at: Instant | None) -> Move:
    """Return how far an `ext` moves a due, or the new due itself.

    Raises:
        BadRequest: Both are given or none, or a value is invalid.
    """
    if (time is None) == (at is None):
        raise BadRequest("ext takes either a time or an at")
    delta_us = None if time is None else length_to_us(time, "time", negative=True)
    return delta_us, None if at is None else at_to_us(at)


def id_of(job_id: str | None) -> bytes:
    """Return the id of a job as it goes over the wire.

    Raises:
        BadRequest: Not an id.
    """
    named: Any = _named(None, job_id)[1]
    return bytes(named)


def _named(key: str | None, job_id: str | None) -> tuple[str | None, bytes | None]:
    if (key is None) == (job_id is None):
        raise BadRequest("name the job by its key or by its id, and by one of them only")
    return key, None if job_id is None else wire_id(job_id)


ENQ: Final = Command(Kind.ENQ, enq, readings.record(Enqueued))
STAT: Final = Command(Kind.STAT, stat, readings.status)
CANCEL: Final = Command(Kind.CANCEL, cancel, readings.outcome)
EXT: Final = Command(Kind.EXT, ext, readings.due)
REQUEUE: Final = Command(Kind.REQUEUE, requeue, readings.record(Moved))
RESUME: Final = Command(Kind.RESUME_LENDING, resume, readings.did_hold)
INFO: Final[Command[[], dict[str, Any]]] = Command(Kind.INFO, info, readings.described)
MODULES: Final[Command[[], list[dict[str, Any]]]] = Command(Kind.MODULES, modules, readings.described)
WORKERS: Final[Command[[], list[dict[str, Any]]]] = Command(Kind.WORKERS, workers, readings.described)
