"""The blocking client: every verb, over one connection, for any number of threads or greenlets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from givalia_core.client import commands, filters, listing, many
from givalia_core.client.commands import Command
from givalia_core.client.filters import Acted, PagedAct
from givalia_core.client.handles import JobHandle, as_method, makes
from givalia_core.client.listing import PagedList
from givalia_core.client.many import Many
from givalia_core.client.pending import OnProgress, Transport
from givalia_core.client.servers import Located
from givalia_core.client.transport import BlockingTransport
from givalia_core.errors import NotFound, WrongState
from givalia_core.protocol.answers import Moved
from givalia_core.times import Length
from givalia_core.views import Status, wire_id

P = ParamSpec("P")
T = TypeVar("T")

Handles: TypeAlias = list[JobHandle]  # `Client.list` is a verb, so inside the class the type needs another name.


def _asks(command: Command[P, T]) -> Callable[Concatenate[Client, P], T]:
    """Return a method that sends this command and returns the answer."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> T:
        return self._transport.ask(command.ask(command.make(*args, **options)))

    return as_method(method, command.make)


def _asks_many(verb: Callable[P, Many[T]]) -> Callable[Concatenate[Client, P], list[T | NotFound | WrongState]]:
    """Return a method that sends many commands and returns an answer for each."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> list[T | NotFound | WrongState]:
        asked = verb(*args, **options)
        return asked.finish(self._transport.several(asked.requests))

    return as_method(method, verb)


def _lists(verb: Callable[P, PagedList]) -> Callable[Concatenate[Client, P], Iterator[Status]]:
    """Return a method that returns an iterator, which asks for each page when it comes to it."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Iterator[Status]:
        return self._pages(verb(*args, **options))

    return as_method(method, verb)


def _acts(verb: Callable[P, PagedAct]) -> Callable[Concatenate[Client, P], Acted]:
    """Return a method that acts by filter, page after page."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Acted:
        return self._act(verb(*args, **options))

    return as_method(method, verb)


class Client(Located[Transport]):
    """Talks to one server, or to one of several that share a store; thread-safe, and good under gevent, patched or not.

    Args:
        host: `HOST` or `HOST:PORT` (an IPv6 host in brackets), or several: in a list, or separated by commas. Without host and
            port: in a job the servers of its worker, else 127.0.0.1.
        port: The port of hosts that name none; None: 12322.
        resend: How long a command is sent again over lost connections, at most 60 s; then it raises `ConnectionLost`.

    In a fork the client makes its own connection. Calls under way are the parent's: in the child they raise `ConnectionLost`.

    The client connects at the first command. With several servers it takes a random one, and the next at once when that one
    cannot be reached, is lost, takes no connection, stops, or answers no command for ten seconds. It raises `ShuttingDown` only
    if all servers stop until the time to resend is over. Every verb may raise `ConnectionLost`, `BadRequest`, `Unauthorized`,
    `VersionMismatch` or `Busy` besides the errors that it names.

    Raises:
        BadRequest: An address is invalid, or `resend` is no length.
    """

    _make = BlockingTransport

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls under way raise `ConnectionLost`; jobs are not touched."""
        self._transport.close()

    # `commands`, `many` and `filters` say what each takes, means and raises.

    enq = makes(commands.ENQ)
    stat = _asks(commands.STAT)
    cancel = _asks(commands.CANCEL)
    ext = _asks(commands.EXT)
    stat_many = _asks_many(many.stat_many)
    cancel_many = _asks_many(many.cancel_many)
    ext_many = _asks_many(many.ext_many)
    requeue = makes(commands.REQUEUE)
    requeue_many = _asks_many(many.requeue_many)
    resume = _asks(commands.RESUME)
    info = _asks(commands.INFO)
    modules = _asks(commands.MODULES)
    workers = _asks(commands.WORKERS)

    def wait(
        self,
        id: str | None = None,
        timeout: Length | None = None,
        progress: OnProgress | None = None,
        *,
        key: str | None = None,
    ) -> Any:
        """Return the result of the job of this id, or of the job that `stat(key)` finds now; see `JobHandle.wait`."""
        job = commands.id_of(id) if key is None else wire_id(self.stat(key, id=id).id)
        return JobHandle(self._transport, Moved(job, 0), None).wait(timeout, progress)

    def enq_many(self, jobs: Iterable[Mapping[str, Any]]) -> Handles:
        """Enqueue many jobs at once, each a mapping with `module` and the options of `enq`; return handles in the same order.

        Each part of up to 10,000 jobs or 1 MiB is one commit; the parts travel without waiting for each other.

        Raises:
            PartlyRefused: Some were refused; `.answers` holds a handle or an error for each. The others are enqueued.
            BadRequest, TooLarge: One cannot be sent at all. Nothing was sent.
        """
        enqueued = many.enq_many(jobs)
        return enqueued.handles(JobHandle, self._transport, self._transport.several(enqueued.requests))

    def _pages(self, pages: PagedList) -> Iterator[Status]:
        while not pages.is_over:
            yield from pages.take(self._transport.ask(pages.ask()))

    def _act(self, act: PagedAct) -> Acted:
        acted = Acted()
        act.tell()
        while not act.is_over:
            acted = act.take(self._transport.ask(act.ask()))
            act.tell()
        return acted

    list = _lists(listing.list_)
    cancel_all = _acts(filters.cancel_all)
    ext_all = _acts(filters.ext_all)
    requeue_all = _acts(filters.requeue_all)
