"""The blocking client: every verb, over one connection, for any number of threads or greenlets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from givalia_core.client import acts, reading, talk, verbs
from givalia_core.client.acts import Acted, Run
from givalia_core.client.carrier import Carrier, OnProgress
from givalia_core.client.exchange import Exchange
from givalia_core.client.handle import JobHandle, waited_for
from givalia_core.client.many import Many
from givalia_core.client.servers import Located
from givalia_core.client.talk import Call
from givalia_core.client.ticket import Ticket
from givalia_core.client.verbs import Pages
from givalia_core.errors import GivaliaError, NotFound, WrongState
from givalia_core.times import Length
from givalia_core.views import Status

P = ParamSpec("P")
T = TypeVar("T")

Handles: TypeAlias = list[JobHandle]  # `Client.list` is a verb, so inside the class the type needs another name.


def _asks(verb: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method that waits for a verb's answer and returns it."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> T:
        return self._exchange.ask(verb(*args, **options))

    return verbs.as_method(method, verb)


def _makes(verb: Callable[P, Call[Ticket]]) -> Callable[Concatenate[Client, P], JobHandle]:
    """The same for one whose answer is a job: it returns a handle."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> JobHandle:
        return JobHandle(self._exchange, self._exchange.ask(verb(*args, **options)))

    return verbs.as_method(method, verb)


def _asks_many(verb: Callable[P, Many[T]]) -> Callable[Concatenate[Client, P], list[T | NotFound | WrongState]]:
    """The same for one of many commands: it returns an answer for each."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> list[T | NotFound | WrongState]:
        many = verb(*args, **options)
        return many.finish(self._exchange.several(many.calls))

    return verbs.as_method(method, verb)


def _lists(verb: Callable[P, Pages]) -> Callable[Concatenate[Client, P], Iterator[Status]]:
    """The same for a listing: it returns an iterator that asks for each page when it comes to it."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Iterator[Status]:
        return self._pages(verb(*args, **options))

    return verbs.as_method(method, verb)


def _runs(verb: Callable[P, Run]) -> Callable[Concatenate[Client, P], Acted]:
    """The same for an act by filter: it asks for page after page."""

    def method(self: Client, /, *args: P.args, **options: P.kwargs) -> Acted:
        return self._run(verb(*args, **options))

    return verbs.as_method(method, verb)


class Client(Located[Carrier]):
    """Talks to one server, or to one of several that share a store; thread-safe, and good under gevent, patched or not.

    Args:
        host: `HOST` or `HOST:PORT` (an IPv6 host in brackets), or several: in a list, or separated by commas. Without host and
            port: in a job the servers of its worker, else 127.0.0.1.
        port: For those that name none; None: 12322.
        resend: How long a command is sent again over lost connections, at most 60 s; then it raises `ConnectionLost`.

    In a fork it makes a connection of its own. What was under way is the parent's: in the child it raises `ConnectionLost`.

    Connecting happens at the first command. Of several servers it takes a random one, and the next at once when that cannot be
    reached, is lost, takes no connection or stops (`ShuttingDown`, which is raised only if all of them said so until the time
    to resend was over), or answers no command for ten seconds. Every verb may raise `ConnectionLost`, `BadRequest`,
    `Unauthorized`, `VersionMismatch` or `Busy` besides what it says itself.

    Raises:
        BadRequest: An address that is none, or `resend` is no length.
    """

    _make = Exchange

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Calls under way raise `ConnectionLost`; jobs are not touched."""
        self._exchange.close()

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

    def wait(
        self,
        id: str | None = None,
        timeout: Length | None = None,
        progress: OnProgress | None = None,
        *,
        key: str | None = None,
    ) -> Any:
        """The result of the job of this id, or of the job that `stat(key)` finds now; see `JobHandle.wait`."""
        job_id = id if key is None else (self.stat(key, id=id)).id
        return waited_for(self._exchange, job_id, timeout, progress)

    def enq_many(self, jobs: Iterable[Mapping[str, Any]]) -> Handles:
        """Enqueue many jobs at once, each a mapping with `module` and the options of `enq`; handles in the same order.

        Each part of up to 10,000 jobs or 1 MiB is one commit; the parts travel without waiting for each other.

        Raises:
            PartlyRefused: Some were refused; `.answers` holds a handle or an error for each. The others stand.
            BadRequest, TooLarge: One cannot be sent at all. Nothing was.
        """
        calls, keys = talk.enq_many(jobs)
        answers = self._exchange.several(calls)
        return talk.all_taken([self._handle(answer, key) for answer, key in zip(answers, keys, strict=True)])

    def _pages(self, pages: Pages) -> Iterator[Status]:
        while not pages.is_over:
            yield from pages.take(self._exchange.ask(pages.call()))

    def _handle(self, answer: reading.Enqueued | GivaliaError, key: str | None) -> JobHandle | GivaliaError:
        return answer if isinstance(answer, GivaliaError) else JobHandle(self._exchange, verbs.ticket(answer, key))

    def _run(self, run: Run) -> Acted:
        acted = Acted()
        run.tell()
        while not run.is_over:
            acted = run.take(self._exchange.ask(run.call()))
            run.tell()
        return acted

    list = _lists(verbs.list_)
    cancel_all = _runs(acts.cancel_all)
    ext_all = _runs(acts.ext_all)
    requeue_all = _runs(acts.requeue_all)
