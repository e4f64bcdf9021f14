"""Handles: a job that a client enqueued or named, with the verbs for it; and the methods of clients that return one.

A handle keeps its job's id and due as they came over the wire, and makes a text or a datetime of them when asked.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from givalia_core.client import commands
from givalia_core.client.commands import CANCEL, EXT, STAT, Command
from givalia_core.client.pending import AwaitedTransport, OnProgress, OnProgressAwaited, Transport
from givalia_core.protocol.answers import Enqueued, Moved
from givalia_core.protocol.messages import Stat
from givalia_core.times import Instant, Length, at_to_us, to_datetime
from givalia_core.views import Status, text_id

P = ParamSpec("P")
A = TypeVar("A", bound=Enqueued | Moved)
F = TypeVar("F", bound=Callable[..., Any])


class Handle:
    """A job that a client enqueued or named: `id`, `key`, and `due` as last heard."""

    def __init__(self, transport: Any, answer: Enqueued | Moved, key: str | None) -> None:
        self._transport = transport
        self._id, self._due_us = answer[:2]
        self.key = key
        self.durability = answer.durability if isinstance(answer, Enqueued) else ""
        """The promise of the answer: `fsync` (on stable storage) or `memory`."""

    @property
    def id(self) -> str:
        """The id of the job."""
        return text_id(self._id)

    @property
    def due(self) -> datetime:
        """The due, as an aware datetime in UTC."""
        return to_datetime(self._due_us)

    @due.setter
    def due(self, due: datetime) -> None:
        self._due_us = at_to_us(due)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} key={self.key!r} due={self.due.isoformat()}>"


class JobHandle(Handle):
    """A job that this client enqueued or named: `id`, `key`, `due` as last heard, and the verbs for it."""

    _transport: Transport

    def stat(self) -> Status:
        """Return the status of the job."""
        return self._transport.ask(STAT.ask(Stat(None, self._id)))

    def ext(self, time: Length | None = None, *, at: Instant | None = None) -> datetime:
        """Move the due of the job; see `Client.ext`."""
        self.due = self._transport.ask(EXT.ask(commands.ext(id=self.id, time=time, at=at)))
        return self.due

    def cancel(self, *, running: bool = False) -> str:
        """Cancel the job; see `Client.cancel`."""
        return self._transport.ask(CANCEL.ask(commands.cancel(id=self.id, running=running)))

    def wait(self, timeout: Length | None = None, progress: OnProgress | None = None) -> Any:
        """Return the result of the job as soon as there is one: the server pushes it, even after reconnects.

        A server that is too busy for another wait is asked again after the time that it names.

        Args:
            timeout: Seconds or a `timedelta` to wait; None is for ever. With 0 or less the server is only asked whether the job
                has ended, for five seconds at most.
            progress: Called in this thread as `progress(fraction, text)` when the running attempt reports its progress, and
                with the last report when the wait begins. A hint: of reports in quick succession some are left out, and
                after a reconnect one may come twice. The function may use the client; meanwhile only the newest report is
                kept. An exception that it raises ends the wait.

        Raises:
            WaitTimeout: `timeout` seconds have passed; the job goes on.
            JobFailed, JobCancelled, ResultLost, NotFound: There will be no result.
            ConnectionLost: No server could be reached for a minute.
        """
        result = None
        for request in commands.wait(self._id, timeout, progress=progress is not None):
            result = self._transport.ask(request, progress)
        return result


class AsyncJobHandle(Handle):
    """A job that this client enqueued or named: `id`, `key`, `due` as last heard, and the verbs for it as coroutines."""

    _transport: AwaitedTransport

    async def stat(self) -> Status:
        """Return the status of the job."""
        return await self._transport.ask(STAT.ask(Stat(None, self._id)))

    async def ext(self, time: Length | None = None, *, at: Instant | None = None) -> datetime:
        """Move the due of the job; see `AsyncClient.ext`."""
        self.due = await self._transport.ask(EXT.ask(commands.ext(id=self.id, time=time, at=at)))
        return self.due

    async def cancel(self, *, running: bool = False) -> str:
        """Cancel the job; see `AsyncClient.cancel`."""
        return await self._transport.ask(CANCEL.ask(commands.cancel(id=self.id, running=running)))

    async def wait(self, timeout: Length | None = None, progress: OnProgressAwaited | None = None) -> Any:
        """Return the result of the job, with the promises and the errors of `JobHandle.wait`.

        Args:
            timeout: As in `JobHandle.wait`.
            progress: Called in this task as `progress(fraction, text)`; if it is a coroutine function, it is awaited. While
                it runs, only the newest report is kept. An exception that it raises ends the wait.
        """
        result = None
        for request in commands.wait(self._id, timeout, progress=progress is not None):
            result = await self._transport.ask(request, progress)
        return result


# The methods of clients.


class _Blocking(Protocol):
    @property
    def _transport(self) -> Transport: ...


class _Async(Protocol):
    @property
    def _transport(self) -> AwaitedTransport: ...


def makes(command: Command[P, A]) -> Callable[Concatenate[_Blocking, P], JobHandle]:
    """Return a method that sends this command, whose answer is a job, and returns a handle of it."""

    def method(self: _Blocking, /, *args: P.args, **options: P.kwargs) -> JobHandle:
        message = command.make(*args, **options)
        answer = self._transport.ask(command.ask(message))
        key = None if isinstance(answer, Moved) and _is_id(message.key, answer.id) else message.key
        return JobHandle(self._transport, answer, key)

    return as_method(method, command.make)


def makes_async(
    command: Command[P, A],
) -> Callable[Concatenate[_Async, P], Coroutine[Any, Any, AsyncJobHandle]]:
    """Return the same method as a coroutine."""

    async def method(self: _Async, /, *args: P.args, **options: P.kwargs) -> AsyncJobHandle:
        message = command.make(*args, **options)
        answer = await self._transport.ask(command.ask(message))
        key = None if isinstance(answer, Moved) and _is_id(message.key, answer.id) else message.key
        return AsyncJobHandle(self._transport, answer, key)

    return as_method(method, command.make)


def _is_id(key: str | None, job_id: bytes) -> bool:
    """Return whether a text in the place of a key is the id of the job."""
    return key is not None and key.lower() == text_id(job_id)


def as_method(method: F, verb: Callable[..., Any]) -> F:
    """Give a client's method the name, the docstring and the arguments of its verb, for `help` and for editors."""
    signature = inspect.signature(verb)
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    name = verb.__name__.rstrip("_")  # One verb has the name of a type.
    method.__name__, method.__qualname__, method.__doc__ = name, name, verb.__doc__
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[myself, *signature.parameters.values()], return_annotation=inspect.Signature.empty
    )
    return method
