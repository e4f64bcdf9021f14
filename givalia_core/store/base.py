"""The store seam: everything that a queue needs from a database, and nothing more.

A store keeps `Job` records, never looks inside `params` or `result`, and decides nothing. The engine's decisions come
as a list of `Change`, each with the version that it was decided on; a store applies those whose guard still holds, in one
atomic and durable commit, and names the others. Everything else is reading. Every store passes `givalia_core.store.suite`.

The types of the seam are in `routes` and `filters`; those that only some stores need are in `shared` and `backups`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

from givalia_core.clock import SECOND_US, Mark, Now
from givalia_core.model import Job, JobState
from givalia_core.store.filters import ROW_BYTES, SCAN_MAX, Cursor, Filter, Page, rows_of
from givalia_core.store.routes import (
    READY_COUNTED_TO,
    VARIANTS_MAX,
    Near,
    Ready,
    ReadyBudget,
    Route,
    Share,
    Span,
    Timer,
    by_module,
)  # fmt: skip
from givalia_core.views import text_id

__all__ = [
    "FENCE_COUNTER_BITS", "READY_COUNTED_TO", "ROW_BYTES", "SCAN_MAX", "VARIANTS_MAX", "Change", "Claim", "Commit", "Cursor",
    "Filter", "Found", "Hold", "Near", "Opened", "Page", "Ready", "ReadyBudget", "Retention", "Route", "Share", "Span", "Store",
    "Timer", "Wanted", "by_module", "hold_name_of_id", "hold_name_of_key", "rows_of",
]  # fmt: skip

FENCE_COUNTER_BITS: Final = 40  # The rest of 63 bits is the boot epoch: eight million boots, a trillion leases in each.


class Change(NamedTuple):
    """One guarded write: insert (`was` is None) or update (guarded by the version of `was`).

    An insert is refused if the id exists or its key is held by a live job.
    """

    was: Job | None
    job: Job


class Retention(NamedTuple):
    """The ended jobs to forget with a commit: at most `limit`, by `forget_at_us`, of equals by seq.

    At most `keep_ended` done and cancelled jobs and `keep_dead` dead jobs stay; beyond that, jobs that ended after
    `ended_before_us` stay too, since a client may still resend.
    """

    now_us: int
    ended_before_us: int
    keep_ended: int
    keep_dead: int
    limit: int


class Hold(NamedTuple):
    """A reason outside this server why a change cannot be stored for now, although its guard may hold."""

    name: str  # The held key or job, as `hold_name_of_key` or `hold_name_of_id` names it.
    why: str  # Continues "key cart-7 is ...".
    since_us: int  # On the wall clock: when this store first met the hold.

    @property
    def words(self) -> str:
        """The hold as a sentence for a caller."""
        since = datetime.fromtimestamp(self.since_us / SECOND_US, UTC).isoformat(timespec="milliseconds")
        return f"{self.name} is {self.why}, since {since}"


def hold_name_of_key(key: str) -> str:
    """Name a key in a `Hold`."""
    return f"key {key}"


def hold_name_of_id(job_id: bytes) -> str:
    """Name a job's id in a `Hold`."""
    return f"id {text_id(job_id)}"


class Commit(NamedTuple):
    """The outcome of a commit: the places in `changes` that were refused, and the number of ended jobs that were forgotten.

    `held` has the refused places that should not be tried again before `SharedStore.freed` names their holds.
    """

    refused: tuple[int, ...] = ()
    forgotten: int = 0
    held: Mapping[int, Hold] = {}


class Opened(NamedTuple):
    """The opening of a store: a boot epoch that no earlier run had (durable), the clocks' mark, the last seq.

    `recovered` counts the log pages left by a run that did not close the store. `is_new`: this opening made the store.
    """

    epoch: int
    mark: Mark | None
    last_seq: int
    recovered: int = 0
    is_new: bool = False


class Claim(NamedTuple):
    """One question for jobs to lend: the first `limit` jobs of a route that are due, in order of dispatch.

    A store returns at least one of them; it may omit others once the claims of a `find` reach `Wanted.claimed_bytes` of params.
    """

    route: Route
    limit: int


class Wanted(NamedTuple):
    """Jobs to read at once, by any of their names: the live jobs of `keys`, and for each of `past_keys` the last to end.

    `claims` ask for jobs to lend that are due at the `now` of `find`. `numbers` asks a shared store for numbers to use.
    `variants` are routes without a specifier; `Found.variants` names the variants of each on which jobs wait.
    """

    ids: frozenset[bytes] = frozenset()
    keys: frozenset[str] = frozenset()
    past_keys: frozenset[str] = frozenset()
    requests: frozenset[bytes] = frozenset()
    claims: tuple[Claim, ...] = ()
    numbers: bool = False
    variants: frozenset[Route] = frozenset()
    claimed_bytes: int = 1 << 40


class Found(NamedTuple):
    """The jobs that `Wanted` names; `live` and `ended` are by key, `requests` by request id, `ready` by route.

    `ready` is in the order of dispatch: by priority, then due, then enq. A shared store leaves out jobs that another server
    is about to lend, and holds the jobs in `ready` for this server until the commit, or `tidy`. The million numbers above
    `floor` are this server's for seqs and fences; all are larger than any number in the jobs found. `variants` are by the
    plain route in `Wanted`, in the order of their texts, at most the first `VARIANTS_MAX` of each. `answers` are those that
    a shared store keeps by request id (`Kept.answer`), read after all jobs. `cut` are the routes of claims for which
    `Wanted.claimed_bytes` left no room: more of their jobs may be due. `learned` is private to the store: if it is not None,
    the commit of the same turn gets it.
    """

    ids: dict[bytes, Job]
    live: dict[str, Job]
    ended: dict[str, Job]
    requests: dict[bytes, Job]
    ready: dict[Route, list[Job]]
    variants: dict[Route, list[Route]]
    floor: int = 0
    answers: Mapping[bytes, bytes] = MappingProxyType({})
    cut: frozenset[Route] = frozenset()
    learned: object = None


class Store(Protocol):
    """The contract of a store. One server opens the store; calls come from one greenlet at a time and may block it briefly.

    Every method may raise `StoreFailed` (the server must stop) and `StoreCorrupt` (a row is not what was written).
    """

    durability: str
    """The promise of `commit` when it returns, once open: `fsync` (on stable storage), `flush` (on its way there: a crash of
    the database or its machine may lose the last moments) or `memory` (nothing survives a crash)."""

    is_shared: bool
    """True for a `SharedStore`: several servers may have the store open, and each changes rows without the others."""

    @property
    def is_full(self) -> bool:
        """Return whether the store has met a full disk since `has_room` last said that there is room."""

    def open(self, *, unsafe: bool = False) -> Opened:
        """Open, for this process alone unless the store is shared, and make a new boot epoch durable.

        With `unsafe`, also open a database that is set to lose acknowledged data; `durability` then says so.

        Raises:
            StoreLocked, StoreCorrupt, StoreTooNew, StoreUnfit: Nothing was written.
            StoreAway: The database of a shared store does not answer.
        """

    def upgrade(self) -> tuple[int, int]:
        """Bring the store, while it is not open, to the format of this version; return the formats before and after.

        Raises:
            StoreMissing: There is no store.
            StoreError: As `open`. Nothing was changed, or some of several steps are complete: a second call does the rest.
        """

    def commit(
        self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None, learned: object = None
    ) -> Commit:
        """Apply every change whose guard holds, in the order given, in one transaction; durable on return.

        `learned` is the `Found.learned` of the `find` for these changes; a store that always leaves it None never gets one.

        Raises:
            StoreFull: Nothing of this commit is stored, and the store is as it was before.
            StoreFailed: It is unknown what was stored: the server must give no answer, and stop.
        """

    def find(self, wanted: Wanted, now: Now) -> Found:
        """Return the named jobs and the jobs to lend; names and routes without a job are absent from the answer."""

    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        """Return the next dues on each of these routes."""

    def running(self) -> Iterable[Job]:
        """Return every running job; called once, at start."""

    def expired(self, now: Now, limit: int) -> list[Job]:
        """Return waiting jobs whose `expires_at_us` has passed, at most `limit`."""

    def forgettable(self, retention: Retention) -> bool:
        """Return whether a commit with this retention would forget anything."""

    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int = SCAN_MAX) -> Page:
        """Return a page of at most `limit` jobs; scans no more than `rows` rows, at most `SCAN_MAX`.

        Waiting jobs come in the order of their dues, unless they wait on more routes than the store can keep apart; ended jobs
        come with the last end first; all others come in the order of enq.

        A large job counts as several rows (`rows_of`), so that a page is bounded in bytes and in time.

        Raises:
            Busy: A shared store takes too long to answer; `counts`, `ready` and `describe` may raise it too.
        """

    def counts(self) -> dict[tuple[str, JobState], int]:
        """Return the number of jobs by module and stored state, from stored counts: no scan."""

    def ready(self, now: Now) -> Iterator[Ready]:
        """Yield the routes on which jobs wait, some of them several times, each with its ready jobs.

        Jobs are counted up to `READY_COUNTED_TO` in all; after that, each of the first `READY_ROUTES_MAX` routes is still
        counted up to `READY_COUNTED_LEAST`. Each step is short, however many routes there are, and the store may change
        between two steps. `by_module` sums the counts up.
        """

    def has_room(self) -> bool:
        """Return whether there is room for new jobs; called before each turn while `is_full`, or after `StoreFull`."""

    def raise_numbers(self, seq: int, fence: int) -> None:
        """Make every seq and fence that this store gives out from the next `open` on larger than these. Durable on return.

        Call it on a store that was filled from another one, with the numbers that the other one gave out. It lowers none.

        Raises:
            StoreFull: Nothing was raised.
        """

    def tidy(self) -> None:
        """Do a little housekeeping; called when the answers of a commit are out. Short."""

    def rest(self) -> None:
        """Do some milliseconds of housekeeping while no caller waits; called about once a second."""

    def check(self) -> list[str]:
        """Read everything and return a sentence about each fault; empty means sound. Slow: for tools and tests."""

    def describe(self) -> dict[str, Any]:
        """Describe the store for a person: its place, sizes, settings."""

    def close(self) -> None:
        """Sync everything and let another process open the store. Safe to call twice."""
