"""The store seam for several servers that share one queue: the added methods of a shared store, and its servers' news."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, cast

from givalia_core.clock import Now, Timekeeper
from givalia_core.model import Job
from givalia_core.store.base import Store
from givalia_core.store.routes import Route

ALIVE_US: Final = 10_000_000  # The other servers count a server as gone that was silent for so long.


class Kept(NamedTuple):
    """An answer that changed no job; a shared store keeps it by its request id for `REMEMBERED_AT_LEAST_US`.

    `is_enq`: the request id could be a job's, so no job gets it while the answer is kept.
    """

    request: bytes
    answer: bytes
    is_enq: bool


class AlreadyDecided(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """Another server has answered a command of this commit; the outcome of the rest is unknown. Decide it again."""


class Event(NamedTuple):
    """A hook call that this server makes for a change in an application's own transaction."""

    hook: str
    job: Job
    running: bool | None  # The argument of `on_cancel`; None for the other hooks.


class News(NamedTuple):
    """News from other servers of a shared store. Each is a hint: some may be lost, and `watch` finds the change later."""

    changed: frozenset[bytes] = frozenset()  # Ids of jobs that this server may be the keeper of or wait for.
    ready: frozenset[Route] = frozenset()  # Routes on which jobs are due.
    nearing: dict[Route, int] = {}  # Routes on which jobs came to wait, with their first due on the timer clock.  # noqa: RUF012 - A default of a named tuple, which nobody changes.
    must_watch: bool = False  # The server should call `watch` now.
    is_deaf: bool = False  # No news arrives for now.


class Keeping(NamedTuple):
    """The requests whose answers `keep` did not keep: another server has decided those in `decided`, so they are decided again.

    The answers to those in `busy` cannot be kept for now; no caller may get them.
    """

    decided: frozenset[bytes] = frozenset()
    busy: frozenset[bytes] = frozenset()


class Watched(NamedTuple):
    """The findings of `watch`, which the news may have missed."""

    own: list[Job]  # Running jobs whose keeper this server is: those that were asked to stop, or all of them.
    strayed: list[tuple[Job, int]]  # Running jobs of servers that are gone, each with the lease length of its server.
    looked_after: int | None  # How many running jobs name this server as their keeper; None: not counted this time.
    has_lapsed: bool  # This server was silent for so long that others may have adopted its jobs.
    live: int  # How many jobs wait or run.
    has_expired: bool  # Whether `expired` would name any.
    others: list[bytes]  # The `about` of each other server.
    events: list[Event]


class SharedStore(Store, Protocol):
    """A store that several servers may have open, to share one queue.

    Any method may raise `StoreAway`: its outcome is unknown, and it may be called again.
    """

    timer: Timekeeper
    """The only clock by which jobs fall due, once open: that of the database."""

    wake: Callable[[], None]
    """The function that the store's own greenlet calls when there is news; the server sets it."""

    def keep(self, answers: Sequence[Kept]) -> Keeping:
        """Keep these answers, durable on return, so that no server decides the same commands in another way.

        `commit` in turn raises `AlreadyDecided` if an answer to one of its commands is kept.
        """

    def news(self) -> News:
        """Return the news since the last call; reads nothing."""

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> Watched | None:
        """Tell the others that this server is alive, its lease length and its `about`; return what needs care.

        The others count a server as gone that has not called `watch` for `ALIVE_US`. Return None if that cannot be written
        for now, although the store answers.
        """

    def freed(self, names: frozenset[str]) -> frozenset[str]:
        """Return the names of those holds that may be free by now; costs one read and waits for no lock."""

    def follow(self, ids: Iterable[bytes]) -> None:
        """Ask for `news` when another server ends one of these jobs; the request is sent soon, without waiting."""


def as_shared(store: Store) -> SharedStore | None:
    """Return the store as a `SharedStore`; None if it is not shared."""
    return cast(SharedStore, store) if store.is_shared else None
