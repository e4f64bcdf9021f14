"""The store seam: everything that a queue needs of a database, and nothing more.

A store keeps `Job` records, never looks inside `params` or `result`, and decides nothing. What the engine decided comes
as a list of `Change`, each saying which version it was decided on; a store applies those whose guard still holds, in one
atomic and durable commit, and names the others. Everything else is reading. Every store passes `givalia_core.store.suite`.

The words of the seam are in `routes` and `filters`; what only some stores have is in `shared` and `backups`.
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
    """The ended jobs to forget with a commit, at most `limit` of them, those nearest to being forgotten first.

    At most `keep_ended` done and cancelled jobs and `keep_dead` dead ones stay; yet what ended after `ended_before_us`
    stays even beyond that, because a client may still resend.
    """

    now_us: int
    ended_before_us: int
    keep_ended: int
    keep_dead: int
    limit: int


class Hold(NamedTuple):
    """Something outside this server that keeps a change from being stored for now, although its guard may hold."""

    name: str  # Of the key or job that is held; `hold_name_of_key` or `hold_name_of_id`.
    why: str  # Continues "key cart-7 is ...".
    since_us: int  # On the wall clock: when this store first met it.

    @property
    def words(self) -> str:
        """Return the hold as a sentence for a caller."""
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

    `held` has those of the refused places that are not worth another try before `SharedStore.freed` names their holds.
    """

    refused: tuple[int, ...] = ()
    forgotten: int = 0
    held: Mapping[int, Hold] = {}


class Opened(NamedTuple):
    """The opening of a store: a boot epoch that no earlier run had (durable), the clocks' mark, the last seq.

    `recovered` counts the pages of log that a run left behind which did not close the store. `is_new` says that there was no
    store, and that this opening made one.
    """

    epoch: int
    mark: Mark | None
    last_seq: int
    recovered: int = 0
    is_new: bool = False


class Claim(NamedTuple):
    """One question for jobs to lend: the first `limit` jobs of a route that are due, in order of dispatch.

    At least one of them; a store may leave out others once the claims of a question have brought `Wanted.claimed_bytes` of
    params.
    """

    route: Route
    limit: int


class Wanted(NamedTuple):
    """Jobs to read at once, by any of their names: the live jobs of `keys`, and of `past_keys` those that ended last.

    `claims` ask for jobs to lend, due at the time that `find` is told. `numbers` asks a shared store for numbers to use.
    `variants` are routes without a specifier; `Found.variants` says on which variants of each of them jobs wait.
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

    `ready` is in the order of dispatch: by priority, then due, then enq. A shared store names in it no job that another
    server is about to lend, and holds those that it names for this one until the commit, or `tidy`. The numbers above
    `floor`, a million of them, are this server's for seqs and fences, and larger than any used in what was found. `variants`
    are by the route that was asked about, in the order of their text, at most the first `VARIANTS_MAX` of each. `answers` are
    what a shared store keeps by request id (`Kept.answer`), read after all jobs. `cut` are the routes of claims for which
    `Wanted.claimed_bytes` left no room: they may have jobs that were not named. `learned` is the store's own: if it is not
    None, the commit of the same turn is given it.
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
    """Keeps the jobs. One server opens it; calls come from one greenlet at a time and may block it briefly.

    Every method may raise `StoreFailed` (the server must stop) and `StoreCorrupt` (a row is not what was written).
    """

    durability: str
    """The promise of `commit` when it returns, once open: `fsync` (on stable storage), `flush` (on its way there: a crash of
    the database or its machine may take the last moments) or `memory` (nothing survives a crash)."""

    is_shared: bool
    """Several servers may have it open, so that rows change without this one; it is a `SharedStore` then."""

    @property
    def is_full(self) -> bool:
        """Return whether the store has met a full disk since `has_room` last said that there is room."""

    def open(self, *, unsafe: bool = False) -> Opened:
        """Open, for this process alone unless the store is shared, and make a new boot epoch durable.

        With `unsafe` also if what holds the data is set to lose what it has acknowledged; `durability` then says so.

        Raises:
            StoreLocked, StoreCorrupt, StoreTooNew, StoreUnfit: Nothing was written.
            StoreAway: The database of a shared store does not answer.
        """

    def upgrade(self) -> tuple[int, int]:
        """While it is not open: bring the store to the format of this version; return from which, and to which.

        Raises:
            StoreMissing: There is no store.
            StoreError: As `open`. Nothing was changed, or some of several steps were, each whole: doing it again goes on.
        """

    def commit(
        self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None, learned: object = None
    ) -> Commit:
        """Apply every change whose guard holds, in the order given, in one transaction; durable on return.

        `learned` is that of the `find` for these changes. A store whose `Found.learned` is always None is never given it.

        Raises:
            StoreFull: Nothing of this commit is stored, and the store is as it was before.
            StoreFailed: Unknown what is stored. No answer may be given; the server must stop.
        """

    def find(self, wanted: Wanted, now: Now) -> Found:
        """Return the jobs of these names, and those to lend; names and routes without a job are absent from the answer."""

    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        """Return what is near on each of these routes."""

    def running(self) -> Iterable[Job]:
        """Return every running job; called once, at start."""

    def expired(self, now: Now, limit: int) -> list[Job]:
        """Return waiting jobs whose `expires_at_us` has passed, at most `limit`."""

    def forgettable(self, retention: Retention) -> bool:
        """Return whether a commit with this retention would forget anything."""

    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int = SCAN_MAX) -> Page:
        """Return a page of at most `limit` jobs; scans no more than `rows` rows, at most `SCAN_MAX`.

        Jobs that wait come in the order of their dues, unless they wait on more routes than the store can keep apart; those
        that have ended begin with the last one; all others come in the order of enq.

        A large job counts as several rows (`rows_of`), so that a page is bounded in bytes and in time.

        Raises:
            Busy: A shared store takes too long to answer; this goes for `counts`, `ready` and `describe`, too.
        """

    def counts(self) -> dict[tuple[str, JobState], int]:
        """Return the number of jobs by module and stored state, from stored counts: no scan."""

    def ready(self, now: Now) -> Iterator[Ready]:
        """Yield the routes on which jobs wait, some of them several times, and what is ready there.

        Jobs are counted up to `READY_COUNTED_TO` in all, but of each route at least up to `READY_COUNTED_LEAST`; then only the
        first `READY_ROUTES_MAX` routes are counted. Each step is short, however many routes there are, and between two of
        them the store may be changed. `by_module` sums the counts up.
        """

    def has_room(self) -> bool:
        """Return whether there is room for new jobs; called before each turn while `is_full`, or after `StoreFull`."""

    def raise_numbers(self, seq: int, fence: int) -> None:
        """From the next `open` on, every seq and fence this store gives out is above these. Durable on return.

        It never lowers a number; a store that was filled from another one is told here what that one gave out.

        Raises:
            StoreFull: Nothing was raised.
        """

    def tidy(self) -> None:
        """Do some housekeeping; called when the answers of a commit are out. Short."""

    def rest(self) -> None:
        """Do some housekeeping in a moment in which no caller waits; called about once a second. Some milliseconds."""

    def check(self) -> list[str]:
        """Read everything and say what is wrong, one sentence each; empty means sound. Slow: for tools and tests."""

    def describe(self) -> dict[str, Any]:
        """Return what a person wants to know of the store: its place, sizes, settings."""

    def close(self) -> None:
        """Leave nothing unsynced behind and let another process open it. Safe to call twice."""
