"""The store seam for several servers that share one queue: what a shared store has besides, and the news of its servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol, cast

from givalia_core.clock import Now, Timekeeper
from givalia_core.model import Job
from givalia_core.store.base import Store
from givalia_core.store.routes import Route

ALIVE_US: Final = 10_000_000  # A server that has said nothing for so long is gone as far as the others are concerned.


class Kept(NamedTuple):
    """An answer that changed no job, which a shared store keeps by its request id for `REMEMBERED_AT_LEAST_US`.

    With `is_enq` the request id could be a job's: no job gets it while the answer is kept.
    """

    request: bytes
    answer: bytes
    is_enq: bool


class AlreadyDecided(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """A commit met the answer of another server to one of its commands; nothing is known of the rest. Decide it again."""


class Event(NamedTuple):
    """A hook call that a change in an application's own transaction owes; this server makes it."""

    hook: str
    job: Job
    running: bool | None  # What `on_cancel` is told; None for the other hooks.


class News(NamedTuple):
    """News from other servers of a shared store. Each is a hint: some may be lost, and `watch` finds it out later."""

    changed: frozenset[bytes] = frozenset()  # Ids of jobs that this server may look after or be asked to wait for.
    ready: frozenset[Route] = frozenset()  # Where jobs are due.
    nearing: dict[Route, int] = {}  # Where jobs came to wait, and when the first of them is due, on the timer clock.  # noqa: RUF012 - A default of a named tuple, which nobody changes.
    must_watch: bool = False  # Something wants `watch` now.
    is_deaf: bool = False  # No news arrives for now.


class Keeping(NamedTuple):
    """The requests whose answers `keep` did not keep: another server has decided those of `decided`, so they are decided again.

    Those of `busy` cannot be kept for now; no caller may get the answers.
    """

    decided: frozenset[bytes] = frozenset()
    busy: frozenset[bytes] = frozenset()


class Watched(NamedTuple):
    """The findings of `watch`, which no news may have told."""

    own: list[Job]  # Running jobs that this server looks after: those that were asked to stop, or all of them.
    strayed: list[tuple[Job, int]]  # Running jobs of servers that are gone, and how long a lease each of those granted.
    looked_after: int | None  # How many running jobs name this server as their keeper; None: not counted this time.
    has_lapsed: bool  # This server was silent for so long that others may have taken over what it looked after.
    live: int  # How many jobs wait or run.
    has_expired: bool  # Whether `expired` would name any.
    others: list[bytes]  # What the other servers say about themselves.
    events: list[Event]


class SharedStore(Store, Protocol):
    """A store that several servers may have open, to share one queue.

    Any method may raise `StoreAway`: nothing is known of what it was to do, and it may be called again.
    """

    timer: Timekeeper
    """The only clock by which jobs fall due, once open: that of the database."""

    wake: Callable[[], None]
    """Called from the store's own greenlet when there is news; the server sets it."""

    def keep(self, answers: Sequence[Kept]) -> Keeping:
        """Keep these answers, durable on return, so that no server decides the same commands in another way.

        `commit` in turn raises `AlreadyDecided` if an answer to one of its commands is kept.
        """

    def news(self) -> News:
        """Return the news since the last call; reads nothing."""

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> Watched | None:
        """Say that this server is alive, grants leases of this length and is as in `about`; find what needs care.

        A server that has not called it for `ALIVE_US` is gone as far as the others are concerned. None if that could not be
        written for now, although the store answers.
        """

    def freed(self, names: frozenset[str]) -> frozenset[str]:
        """Return those of these names of holds that may be free by now; costs one read and waits for no lock."""

    def follow(self, ids: Iterable[bytes]) -> None:
        """Ask to be told in `news` when another server ends one of these jobs; sent soon, and not waited for."""


def as_shared(store: Store) -> SharedStore | None:
    """Return the same store with what a shared one has besides; None if it is not shared."""
    return cast(SharedStore, store) if store.is_shared else None
