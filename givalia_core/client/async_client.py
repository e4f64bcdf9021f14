"""The client for asyncio: the same verbs as coroutines, over one connection, for any number of tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from inspect import isawaitable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from givalia_core.client import acts, reading, talk, verbs
from givalia_core.client.acts import Acted, Run
from givalia_core.client.async_exchange import AsyncExchange, OnProgress
from givalia_core.client.many import Many
from givalia_core.client.servers import Located
from givalia_core.client.talk import Call
from givalia_core.client.ticket import Handle, Ticket
from givalia_core.client.verbs import Pages
from givalia_core.errors import GivaliaError, NotFound, WrongState
from givalia_core.times import Instant, Length
from givalia_core.views import Status

P = ParamSpec("P")
T = TypeVar("T")


class AsyncJobHandle(Handle):
    """A job that this client enqueued or named: `id`, `key`, `due` as last heard, and the verbs for it as coroutines."""

    def __init__(self, exchange: AsyncExchange, ticket: Ticket) -> None:
        super().__init__(ticket)
        self._exchange = exchange

    async def stat(self) -> Status:
        """Ask about it."""
        return await self._exchange.ask(verbs.stat(id=self.id))

    async def ext(self, time: Length | None = None, *, at: Instant | None = None) -> datetime:
        """Move its due; see `AsyncClient.ext`."""
        self.due = await self._exchange.ask(verbs.ext(id=self.id, time=time, at=at))
        return self.due

    async def cancel(self, *, running: bool = False) -> str:
        """Call it off; see `AsyncClient.cancel`."""
        return await self._exchange.ask(verbs.cancel(id=self.id, running=running))

    async def wait(self, timeout: Length | None = None, progress: OnProgress | None = None) -> Any:
        """The job's result, with the promises and the errors of `JobHandle.wait`.

        Args:
            timeout: As in `JobHandle.wait`.
            progress: Called in this task as `progress(fraction, text)`; if it is a coroutine function, it is awaited. While
                it takes its time, only the newest report is kept. What it raises ends the waiting.
        """
        return await _waited_for(self._exchange, self.id, timeout, progress)


async def _waited_for(exchange: AsyncExchange, job_id: str | None, timeout: Length | None, progress: OnProgress | None) -> Any:
    if talk.is_poll(timeout):
        talk.check_ended(await exchange.ask(talk.stat(None, job_id), talk.POLL_S))
        timeout = talk.POLL_S
    return await exchange.ask(talk.wait(job_id, progress=progress is not None), timeout, progress)


Handles: TypeAlias = list[AsyncJobHandle]  # `AsyncClient.list` is a verb, so inside the class the type needs another name.


async def _heard(answer: object) -> None:
    """Await what a caller's function has returned, if it can be."""
    if isawaitable(answer):
        await answer


def _asks(verb: Callable[P, Call[T]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A coroutine method that waits for a verb's answer and returns it."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._exchange.ask(verb(*args, **options))

    return verbs.as_method(method, verb)


def _makes(verb: Callable[P, Call[Ticket]]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncJobHandle]]:
    """The same for one whose answer is a job: it returns a handle."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> AsyncJobHandle:
        return AsyncJobHandle(self._exchange, await self._exchange.ask(verb(*args, **options)))

    return verbs.as_method(method, verb)


def _asks_many(
    verb: Callable[P, Many[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, list[T | NotFound | WrongState]]]:
    """The same for one of many commands: it returns an answer for each."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> list[T | NotFound | WrongState]:
        many = verb(*args, **options)
        return many.finish([answer async for part in self._exchange.several(many.calls) for answer in part])

    return verbs.as_method(method, verb)


def _lists(verb: Callable[P, Pages]) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[Status]]:
    """The same for a listing: it returns an asynchronous iterator that asks for each page when it comes to it."""

    def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> AsyncIterator[Status]:
        return self._pages(verb(*args, **options))

    return verbs.as_method(method, verb)


def _runs(verb: Callable[P, Run]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Acted]]:
    """The same for an act by filter: it asks for page after page."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> Acted:
        return await self._run(verb(*args, **options))

    return verbs.as_method(method, verb)


class AsyncClient(Located[AsyncExchange]):
    """Talks to one server, or to one of several that share a store, for the tasks of one event loop.

    It takes the arguments of `Client`, and makes the same promises: one connection, made at the first command; lost answers
    are asked for again with the same ids for at most 60 s, then `ConnectionLost`; of several servers the next when one is
    lost, silent or stops. A task that is cancelled while it awaits a verb leaves the others alone; whether its command took
    effect is then unknown. Close it, best by `async with`, before its event loop ends.

    Raises:
        BadRequest: An address that is none, or `resend` is no length.
    """

    _make = AsyncExchange

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls under way raise `ConnectionLost`; jobs are not touched."""
        await self._exchange.close()

    # What each takes, means and raises is said in `verbs`.

    enq = _makes(verbs.enq)
    stat = _asks(verbs.stat)
    cancel = _asks(verbs.cancel)
    ext = _asks(verbs.ext)
    stat_many = _asks_many(verbs.stat_many)
    cancel_many = _asks_many(verbs.cancel_many)
    ext_many = _asks_many(verbs.ext_many)
    requeue = _makes(verbs.requeue)
    requeue_many = _asks_many(verbs.requeue_many)
    resume = _asks(verbs.resume)
    info = _asks(verbs.info)
    modules = _asks(verbs.modules)
    workers = _asks(verbs.workers)

    async def wait(
        self,
        id: str | None = None,
        timeout: Length | None = None,
        progress: OnProgress | None = None,
        *,
        key: str | None = None,
    ) -> Any:
        """The result of the job of this id, or of the job that `stat(key)` finds now; see `AsyncJobHandle.wait`."""
        job_id = id if key is None else (await self.stat(key, id=id)).id
        return await _waited_for(self._exchange, job_id, timeout, progress)

    async def enq_many(self, jobs: Iterable[Mapping[str, Any]]) -> Handles:
        """Enqueue many jobs at once; see `Client.enq_many`."""
        calls, keys = talk.enq_many(jobs)
        answers = [answer async for part in self._exchange.several(calls) for answer in part]
        return talk.all_taken([self._handle(answer, key) for answer, key in zip(answers, keys, strict=True)])

    def _handle(self, answer: reading.Enqueued | GivaliaError, key: str | None) -> AsyncJobHandle | GivaliaError:
        return answer if isinstance(answer, GivaliaError) else AsyncJobHandle(self._exchange, verbs.ticket(answer, key))

    async def _pages(self, pages: Pages) -> AsyncIterator[Status]:
        while not pages.is_over:
            for status in pages.take(await self._exchange.ask(pages.call())):
                yield status

    async def _run(self, run: Run) -> Acted:
        acted = Acted()
        await _heard(run.tell())
        while not run.is_over:
            acted = run.take(await self._exchange.ask(run.call()))
            await _heard(run.tell())
        return acted

    list = _lists(verbs.list_)
    cancel_all = _runs(acts.cancel_all)
    ext_all = _runs(acts.ext_all)
    requeue_all = _runs(acts.requeue_all)
