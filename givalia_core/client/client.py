"""The blocking client: every verb, over one connection, for any number of threads or greenlets."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, TypeAlias, cast

from givalia_core.client import talk
from givalia_core.client.exchange import Exchange, Slot
from givalia_core.client.handle import JobHandle
from givalia_core.client.talk import Call
from givalia_core.errors import GivaliaError, PartlyRefused
from givalia_core.model import JobState
from givalia_core.protocol import addresses
from givalia_core.protocol.messages import LIST_LIMIT_MAX
from givalia_core.settings import CLIENT_PORT
from givalia_core.views import Status, text_id

IN_FLIGHT: Final = 8  # Frames of one enq_many that travel before the first is answered.


# `Client.list` is a verb, so inside the class the type needs other names.
Handles: TypeAlias = list[JobHandle]
Answers: TypeAlias = list[JobHandle | GivaliaError]
Keys: TypeAlias = list[str | None]


class Client:
    """Talks to one server, or to one of several that share a store; thread-safe, and good under gevent, patched or not.

    Args:
        host: `HOST` or `HOST:PORT` (an IPv6 host in brackets), or several: in a list, or separated by commas.
        port: For those that name none.
        resend: Seconds that a command is sent again over lost connections, at most 60; then `ConnectionLost`.

    Connecting happens at the first command. Of several servers it takes a random one, and the next at once when that cannot be
    reached, is lost, takes no connection or stops (`ShuttingDown`, which is raised only if all of them said so until the time
    to resend was over), or answers no command for ten seconds. Every verb may raise `ConnectionLost`, `BadRequest`,
    `Unauthorized`, `VersionMismatch` or `Busy` besides what it says itself.

    Raises:
        BadRequest: An address that is none.
    """

    def __init__(
        self, host: str | Iterable[str] = "127.0.0.1", port: int = CLIENT_PORT, *, resend: float = talk.RESEND_S
    ) -> None:
        self._exchange = Exchange(addresses.parse(host, port), min(resend, talk.RESEND_S))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls under way raise `ConnectionLost`; jobs are not touched."""
        self._exchange.close()

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
        on_their_way: deque[tuple[Slot, Keys]] = deque()
        for call, keys in talk.enq_many(jobs):
            if len(on_their_way) == IN_FLIGHT:
                self._collect(*on_their_way.popleft(), answers)
            on_their_way.append((self._exchange.begin(call, None), keys))
        while on_their_way:
            self._collect(*on_their_way.popleft(), answers)
        if any(isinstance(answer, GivaliaError) for answer in answers):
            count = sum(isinstance(answer, GivaliaError) for answer in answers)
            raise PartlyRefused(f"{count} of {len(answers)} jobs were refused; the others stand", answers=answers)
        return cast(Handles, answers)

    def _collect(self, slot: Slot, keys: Keys, answers: Answers) -> None:
        for answer, key in zip(self._exchange.finish(slot), keys, strict=True):
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
        (answer,) = self._exchange.finish(self._exchange.begin(call, timeout))
        if isinstance(answer, GivaliaError):
            raise answer
        return answer
