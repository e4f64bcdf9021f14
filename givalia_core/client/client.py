"""The blocking client: one connection, any number of threads or greenlets.

There is no thread of its own. Whoever waits for an answer reads for everybody: the first to come takes the reading, hands
each answer to the one it is for, and when it has its own, leaves the reading to the next. A lost connection is made anew and
everything unanswered is sent again with the same ids, so nothing happens twice; after a minute without an answer the outcome
is unknown and says so.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time as clock
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, TypeAlias, cast

from givalia_core.client import talk
from givalia_core.client.talk import Call
from givalia_core.client.wire import Wire
from givalia_core.errors import ConnectionLost, GivaliaError, PartlyRefused, WaitTimeout
from givalia_core.model import JobState
from givalia_core.protocol.caller import Answer, refused
from givalia_core.protocol.messages import LIST_LIMIT_MAX
from givalia_core.settings import CLIENT_PORT
from givalia_core.views import Status, text_id

AGENT: Final = "givalia-client"
RETRY_FIRST_S: Final = 0.05
RETRY_MAX_S: Final = 2.0
IN_FLIGHT: Final = 8  # Frames of one enq_many that travel before the first is answered.


class JobHandle:
    """A job that this client enqueued or named: `id`, `key`, `due` as last heard, and the verbs for it."""

    def __init__(self, client: Client, job_id: str, key: str | None, due: datetime, durability: str) -> None:
        self._client = client
        self.id = job_id
        self.key = key
        self.due = due
        """When it is due, as an aware datetime in UTC."""
        self.durability = durability
        """What the answer promised: `fsync` (on stable storage) or `memory`."""

    def __repr__(self) -> str:
        return f"<JobHandle {self.id} key={self.key!r} due={self.due.isoformat()}>"

    def stat(self) -> Status:
        """Ask about it."""
        return self._client.stat(id=self.id)

    def ext(self, time: float | timedelta | None = None, *, at: float | datetime | None = None) -> datetime:
        """Move its due; see `Client.ext`."""
        self.due = self._client.ext(id=self.id, time=time, at=at)
        return self.due

    def cancel(self, *, running: bool = False) -> str:
        """Call it off; see `Client.cancel`."""
        return self._client.cancel(id=self.id, running=running)

    def wait(self, timeout: float | None = None) -> Any:
        """The job's result, as soon as there is one: the server pushes it, over reconnects too.

        Raises:
            WaitTimeout: `timeout` seconds have passed; the job goes on.
            JobFailed, JobCancelled, ResultLost, NotFound: There will be no result.
            ConnectionLost: The server has been out of reach for a minute.
        """
        return self._client.wait(self.id, timeout)


class _Slot:
    """One call on its way: what was sent, and the answers once they are there."""

    __slots__ = ("answers", "call", "deadline", "error", "unsent_since", "wire")

    def __init__(self, call: Call, deadline: float | None) -> None:
        self.call = call
        self.deadline = deadline
        self.answers: list[Any] | None = None
        self.error: GivaliaError | None = None
        self.wire: Wire | None = None  # The connection that has carried it.
        self.unsent_since = clock.monotonic()  # Since when no connection has carried it.

    @property
    def is_over(self) -> bool:
        return self.answers is not None or self.error is not None

    def left(self) -> float | None:
        """Seconds until the caller will wait no longer; None if for ever."""
        return None if self.deadline is None else max(self.deadline - clock.monotonic(), 0.0)

    def give_up(self) -> GivaliaError:
        """What a caller is told that has waited in vain."""
        if self.call.waits:
            return WaitTimeout("the job has not ended in the time given; it goes on")
        return ConnectionLost("no answer in time; whether the command took effect is unknown")


# `Client.list` is a verb, so inside the class the type needs other names.
Handles: TypeAlias = list[JobHandle]
Answers: TypeAlias = list[JobHandle | GivaliaError]
Keys: TypeAlias = list[str | None]
Values: TypeAlias = list[Any]


class Client:
    """Talks to one server; thread-safe, and good under gevent, patched or not.

    Args:
        host, port: The server's address.
        resend: Seconds that a command is sent again over lost connections, at most 60; then `ConnectionLost`.

    Connecting happens at the first command. Every verb may raise `ConnectionLost`, `BadRequest`, `Unauthorized`,
    `VersionMismatch` or `Busy` besides what it says itself.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = CLIENT_PORT, *, resend: float = talk.RESEND_S) -> None:
        self._address = (host, port)
        self._resend_s = min(resend, talk.RESEND_S)
        self._changed = threading.Condition()  # Guards everything below.
        self._sending = threading.Lock()  # Held while a frame is sent, so that frames do not mix.
        self._is_reading = False
        self._calls: dict[_Slot, None] = {}  # Every call without its answers, in order.
        self._numbered: dict[int, _Slot] = {}  # Those that the present connection has carried.
        self._wire: Wire | None = None
        self._is_closed = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls under way raise `ConnectionLost`; jobs are not touched."""
        with self._changed:
            self._is_closed = True
            if self._wire is not None:
                self._drop(self._wire)
            self._changed.notify_all()

    # The verbs.

    def enq(
        self,
        module: str,
        *,
        time: float | timedelta = 0,
        at: float | datetime | None = None,
        params: Any = None,
        key: str | None = None,
        target_worker: str = "any",
        if_exists: str = "refuse",
        priority: int = 0,
        max_attempts: int | None = None,
        timeout: float | timedelta | None = None,
        expires: float | timedelta | None = None,
        retain: float | timedelta | None = None,
        id: str | None = None,
    ) -> JobHandle:
        """Run `module` with `params` in `time` seconds or `at` an instant. On return the job is as durable as the handle says.

        Args:
            module: The name of a WorkModule.
            time: Seconds from now, 0 to ten years.
            at: Epoch seconds or an aware datetime instead; the past means now.
            params: Any value msgpack can carry, at most 512 KiB packed.
            key: Names the job while it lives; 1 to 255 bytes.
            target_worker: The name of the worker that is to run it.
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
            "time": time, "at": at, "params": params, "key": key, "target_worker": target_worker, "if_exists": if_exists,
            "priority": priority, "max_attempts": max_attempts, "timeout": timeout, "expires": expires, "retain": retain,
            "id": id,
        }  # fmt: skip
        return self._handle(self._one(talk.enq(module, **options)), key)

    def enq_many(self, jobs: Iterable[Mapping[str, Any]]) -> Handles:
        """Enqueue many jobs at once, each a mapping with `module` and the options of `enq`; handles in the same order.

        Each part of up to 10,000 jobs or 1 MiB is one commit; the parts travel without waiting for each other.

        Raises:
            PartlyRefused: Some were refused; `.answers` holds a handle or an error for each. The others stand.
            BadRequest, TooLarge: One cannot be sent at all. Nothing was.
        """
        answers: Answers = []
        on_their_way: deque[tuple[_Slot, Keys]] = deque()
        for call, keys in talk.enq_many(jobs):
            if len(on_their_way) == IN_FLIGHT:
                self._collect(*on_their_way.popleft(), answers)
            on_their_way.append((self._begin(call, None), keys))
        while on_their_way:
            self._collect(*on_their_way.popleft(), answers)
        if any(isinstance(answer, GivaliaError) for answer in answers):
            count = sum(isinstance(answer, GivaliaError) for answer in answers)
            raise PartlyRefused(f"{count} of {len(answers)} jobs were refused; the others stand", answers=answers)
        return cast(Handles, answers)

    def _collect(self, slot: _Slot, keys: Keys, answers: Answers) -> None:
        for answer, key in zip(self._finish(slot), keys, strict=True):
            answers.append(answer if isinstance(answer, GivaliaError) else self._handle(answer, key))

    def stat(self, key: str | None = None, *, id: str | None = None) -> Status:
        """What is known of a job: the live one of the key, else the one that ended last.

        Raises:
            NotFound: None is live or remembered.
        """
        return cast(Status, self._one(talk.stat(key, id)))

    def cancel(self, key: str | None = None, *, id: str | None = None, running: bool = False) -> str:
        """Call a job off. `cancelled` means it will not start (again).

        With `running`, a job that has started is asked to stop and never retried; the answer is then `stop_requested`.

        Raises:
            NotFound: There is none.
            WrongState: It is running (and `running` is False), done or dead; `.state` says which.
        """
        return cast(str, self._one(talk.cancel(key, id, running=running)))

    def ext(
        self,
        key: str | None = None,
        time: float | timedelta | None = None,
        *,
        at: float | datetime | None = None,
        id: str | None = None,
    ) -> datetime:
        """Move the due of a job that has not started, and return the new one.

        Args:
            key: The live job of this key.
            time: Seconds to add to its due, or to now if that has passed; negative brings it forward, never before now.
            at: The new due itself.
            id: Names the job instead of `key`.

        Raises:
            NotFound: There is none.
            WrongState: It runs or has ended.
        """
        return cast(datetime, self._one(talk.ext(key, id, time, at)))

    def requeue(
        self,
        key: str | None = None,
        *,
        id: str | None = None,
        time: float | timedelta = 0,
        at: float | datetime | None = None,
    ) -> JobHandle:
        """Give a dead or cancelled job another life, with all its attempts, due in `time` seconds or `at`.

        Raises:
            NotFound: There is none.
            WrongState: It is live or done.
            DuplicateKey: Its key has a live job.
        """
        job_id, due = self._one(talk.requeue(key, id, time, at))
        return JobHandle(self, text_id(job_id), key, due, "")

    def requeue_all(
        self,
        state: JobState | str = JobState.DEAD,
        *,
        module: str | None = None,
        time: float | timedelta = 0,
        at: float | datetime | None = None,
    ) -> Handles:
        """Requeue every job that a listing of `state` (dead or cancelled) and `module` shows; those refused are left out."""
        handles: Handles = []
        for status in list(self.list(state, module=module)):
            with contextlib.suppress(GivaliaError):
                handle = self.requeue(id=status.id, time=time, at=at)
                handle.key = status.key
                handles.append(handle)
        return handles

    def list(
        self, state: JobState | str | None = None, *, module: str | None = None, target_worker: str | None = None
    ) -> Iterator[Status]:
        """Jobs, a page at a time as you go on; jobs that change meanwhile may be missed or shown as they were."""
        after: tuple[int, ...] = ()
        while True:
            call = talk.list_(None if state is None else str(state), module, target_worker, LIST_LIMIT_MAX, after)
            page, after = self._one(call)
            yield from page
            if not after:
                return

    def info(self) -> dict[str, Any]:
        """What the server is, holds and allows; `docs/protocol.md` names the parts."""
        return cast(dict[str, Any], self._one(talk.info()))

    def modules(self) -> Iterable[dict[str, Any]]:
        """Every module of every connected worker, the broken ones with their error."""
        return cast(Iterable[dict[str, Any]], self._one(talk.modules()))

    def workers(self) -> Iterable[dict[str, Any]]:
        """Every connected worker."""
        return cast(Iterable[dict[str, Any]], self._one(talk.workers()))

    def wait(self, id: str, timeout: float | None = None) -> Any:
        """The result of the job of this id; see `JobHandle.wait`."""
        return self._one(talk.wait(id), timeout)

    # Calls.

    def _handle(self, enqueued: talk.Enqueued, key: str | None) -> JobHandle:
        return JobHandle(self, text_id(enqueued.id), key, enqueued.due, enqueued.durability)

    def _one(self, call: Call, timeout: float | None = None) -> Any:
        (answer,) = self._finish(self._begin(call, timeout))
        if isinstance(answer, GivaliaError):
            raise answer
        return answer

    def _begin(self, call: Call, timeout: float | None) -> _Slot:
        """Send a call on its way; what goes wrong with the connection is for `_finish`."""
        if timeout is None and not call.waits:
            timeout = self._resend_s
        slot = _Slot(call, None if timeout is None else clock.monotonic() + timeout)
        with self._changed:
            self._check_open()
            self._calls[slot] = None
            wire = self._wire
        if wire is not None:
            self._transmit(wire, slot)
        return slot

    def _finish(self, slot: _Slot) -> Values:
        """Wait for a call's answers, reading for everybody whenever nobody else does."""
        try:
            while True:
                with self._changed:
                    while not slot.is_over and self._is_reading and slot.left() != 0:
                        self._changed.wait(slot.left())
                    if slot.error is not None:
                        raise slot.error
                    if slot.answers is not None:
                        return slot.answers
                    self._check_open()
                    if slot.left() == 0:
                        raise slot.give_up()
                    self._is_reading = True
                try:
                    self._read_for_all(slot)
                finally:
                    with self._changed:
                        self._is_reading = False
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._calls.pop(slot, None)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConnectionLost("the client is closed; whether the command took effect is unknown")

    def _read_for_all(self, slot: _Slot) -> None:
        """Read until this slot is over or out of time, connecting and sending again as often as it takes."""
        retry_s = RETRY_FIRST_S
        while not slot.is_over and slot.left() != 0:
            wire = self._wire
            if wire is None:
                try:
                    self._connect()
                except OSError as error:
                    self._pause(slot, error, retry_s)
                    retry_s = min(retry_s * 2, RETRY_MAX_S)
                continue
            retry_s = RETRY_FIRST_S
            try:
                if wire.wait(slot.left()):
                    self._receive(wire)
            except (OSError, ValueError, GivaliaError):
                self._drop(wire)

    def _pause(self, slot: _Slot, error: OSError, retry_s: float) -> None:
        """Wait before connecting again, or give up."""
        self._check_open()
        if clock.monotonic() + retry_s - slot.unsent_since > self._resend_s:
            host, port = self._address
            raise ConnectionLost(f"no server at {host}:{port} ({error}); whether the command took effect is unknown")
        left = slot.left()
        pause_s = random.uniform(retry_s / 2, retry_s)
        clock.sleep(pause_s if left is None else min(pause_s, left))

    def _connect(self) -> None:
        """Connect, and send again whatever has no answer."""
        wire = Wire(self._address, AGENT)
        with self._changed:
            self._wire, self._numbered = wire, {}
            unanswered = list(self._calls)
        for slot in unanswered:
            self._transmit(wire, slot)

    def _transmit(self, wire: Wire, slot: _Slot) -> None:
        """Number a call and send it; a connection that breaks here is found broken by whoever reads."""
        with self._sending:
            with self._changed:
                if wire is not self._wire or slot.is_over or slot.wire is wire:
                    return
                number, data = wire.caller.ask(slot.call.kind, slot.call.items)
                self._numbered[number], slot.wire = slot, wire
            try:
                left = memoryview(data)
                while left := left[wire.send(left) :]:
                    self._make_room(wire)
            except (OSError, ValueError):
                self._drop(wire)

    def _make_room(self, wire: Wire) -> None:
        """The socket takes no more for now. Unless somebody else reads, do so: the server may wait for just that."""
        with self._changed:
            somebody_reads, self._is_reading = self._is_reading, True
        try:
            if wire.wait(0.05 if somebody_reads else self._resend_s, to_send=True) and not somebody_reads:
                self._receive(wire)
        finally:
            with self._changed:
                self._is_reading = somebody_reads
                self._changed.notify_all()

    def _receive(self, wire: Wire) -> None:
        """Read once, and hand out the answers."""
        data = wire.receive()
        if data is None:
            return
        arrived = wire.caller.feed(data)
        with self._changed:
            for answer in arrived:
                if isinstance(answer, Answer):
                    self._hand_out(answer)
            self._changed.notify_all()

    def _hand_out(self, answer: Answer) -> None:
        slot = self._numbered.pop(answer.request, None)
        if slot is None:
            return
        if len(answer.items) == len(slot.call.items):
            slot.answers = [talk.read_answer(slot.call, fields, payload) for fields, payload in answer.items]
        else:
            slot.error = refused(answer) or GivaliaError("the server answered another number of commands than it was sent")

    def _drop(self, wire: Wire) -> None:
        """Forget a connection that is of no use any more; unanswered calls are sent again on the next."""
        with self._changed:
            wire.close()
            if self._wire is wire:
                self._wire, self._numbered = None, {}
                now = clock.monotonic()
                for slot in self._calls:
                    slot.unsent_since = now
