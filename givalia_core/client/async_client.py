"""The client for asyncio: the same verbs as coroutines, over one connection, for any number of tasks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from inspect import isawaitable
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from givalia_core.client import commands, filters, listing, many
from givalia_core.client.async_transport import AsyncTransport
from givalia_core.client.commands import Command
from givalia_core.client.filters import Acted, PagedAct
from givalia_core.client.handles import AsyncJobHandle, as_method, makes_async
from givalia_core.client.listing import PagedList
from givalia_core.client.many import Many
from givalia_core.client.pending import OnProgressAwaited
from givalia_core.client.servers import Located
from givalia_core.errors import NotFound, WrongState
from givalia_core.protocol.answers import Moved
from givalia_core.times import Length
from givalia_core.views import Status, wire_id

P = ParamSpec("P")
T = TypeVar("T")

Handles: TypeAlias = list[AsyncJobHandle]  # `AsyncClient.list` is a verb, so inside the class the type needs another name.


async def _heard(answer: object) -> None:
    """Await the value that a caller's function has returned, if it can be awaited."""
    if isawaitable(answer):
        await answer


def _asks(command: Command[P, T]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """Return a coroutine method that sends this command and returns the answer."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> T:
        return await self._transport.ask(command.ask(command.make(*args, **options)))

    return as_method(method, command.make)


def _asks_many(
    verb: Callable[P, Many[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, list[T | NotFound | WrongState]]]:
    """Return a coroutine method that sends many commands and returns an answer for each."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> list[T | NotFound | WrongState]:
        asked = verb(*args, **options)
        return asked.finish([answer async for part in self._transport.several(asked.requests) for answer in part])

    return as_method(method, verb)


def _lists(verb: Callable[P, PagedList]) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[Status]]:
    """Return a method that returns an asynchronous iterator, which asks for each page when it comes to it."""

    def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> AsyncIterator[Status]:
        return self._pages(verb(*args, **options))

    return as_method(method, verb)


def _acts(verb: Callable[P, PagedAct]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, Acted]]:
    """Return a coroutine method that acts by filter, page after page."""

    async def method(self: AsyncClient, /, *args: P.args, **options: P.kwargs) -> Acted:
        return await self._act(verb(*args, **options))

    return as_method(method, verb)


class AsyncClient(Located[AsyncTransport]):
    """Talks to one server, or to one of several that share a store, for the tasks of one event loop.

    It takes the arguments of `Client`, and makes the same promises: one connection, made at the first command; commands with
    lost answers are sent again with the same ids for at most 60 s, then `ConnectionLost`; the next of several servers when one
    is lost, silent or stops. A task that is cancelled while it awaits a verb leaves the others alone; whether its command took
    effect is then unknown. Close the client, best by `async with`, before its event loop ends.

    Raises:
        BadRequest: An address is invalid, or `resend` is no length.
    """

    _make = AsyncTransport

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Calls under way raise `ConnectionLost`; jobs are not touched."""
        await self._transport.close()

    # `commands`, `many` and `filters` say what each takes, means and raises.

    enq = makes_async(commands.ENQ)
    stat = _asks(commands.STAT)
    cancel = _asks(commands.CANCEL)
    ext = _asks(commands.EXT)
    stat_many = _asks_many(many.stat_many)
    cancel_many = _asks_many(many.cancel_many)
    ext_many = _asks_many(many.ext_many)
    requeue = makes_async(commands.REQUEUE)
    requeue_many = _asks_many(many.requeue_many)
    resume = _asks(commands.RESUME)
    info = _asks(commands.INFO)
    modules = _asks(commands.MODULES)
    workers = _asks(commands.WORKERS)

    async def wait(
        self,
        id: str | None = None,
        timeout: Length | None = None,
        progress: OnProgressAwaited | None = None,
        *,
        key: str | None = None,
    ) -> Any:
        """Return the result of the job of this id, or of the job that `stat(key)` finds now; see `AsyncJobHandle.wait`."""
        job = commands.id_of(id) if key is None else wire_id((await self.stat(key, id=id)).id)
        return await AsyncJobHandle(self._transport, Moved(job, 0), None).wait(timeout, progress)

    async def enq_many(self, jobs: Iterable[Mapping[str, Any]]) -> Handles:
        """Enqueue many jobs at once; see `Client.enq_many`."""
        enqueued = many.enq_many(jobs)
        answers = [answer async for part in self._transport.several(enqueued.requests) for answer in part]
        return enqueued.handles(AsyncJobHandle, self._transport, answers)

    async def _pages(self, pages: PagedList) -> AsyncIterator[Status]:
        while not pages.is_over:
            for status in pages.take(await self._transport.ask(pages.ask())):
                yield status

    async def _act(self, act: PagedAct) -> Acted:
        acted = Acted()
        await _heard(act.tell())
        while not act.is_over:
            acted = act.take(await self._transport.ask(act.ask()))
            await _heard(act.tell())
        return acted

    list = _lists(listing.list_)
    cancel_all = _acts(filters.cancel_all)
    ext_all = _acts(filters.ext_all)
    requeue_all = _acts(filters.requeue_all)
