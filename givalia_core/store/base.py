"""The store seam: everything a queue asks of a database, and nothing more.

A store keeps `Job` records, never looks inside `params` or `result`, and decides nothing. What the engine decided comes
as a list of `Change`, each saying which version it was decided on; a store applies those whose guard still holds, in one
atomic and durable commit, and names the others. Everything else is reading. Every store passes `givalia_core.store.suite`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from givalia_core.clock import SECOND_US, Mark, Now, Timekeeper
from givalia_core.model import ENDED, Job, JobState, split_target
from givalia_core.views import text_id

SCAN_MAX: Final = 5_000  # Rows that one page may look at.
ROW_BYTES: Final = 16 << 10  # Params and result that count as another row.
READY_COUNTED_TO: Final = 10_000  # Ready jobs in all,
READY_COUNTED_LEAST: Final = 100  # and of each route that is looked at;
READY_ROUTES_MAX: Final = 5_000  # beyond so many routes nothing is looked at once all are counted.
VARIANTS_MAX: Final = 50  # Of one route: each costs a little in every batch, so an enq that needs another is refused.
FENCE_COUNTER_BITS: Final = 40  # The rest of 63 bits is the boot epoch: eight million boots, a trillion leases in each.


class Change(NamedTuple):
    """One guarded write: insert (`was` is None) or update (guarded by the version of `was`).

    An insert is refused if the id exists or its key is held by a live job.
    """

    was: Job | None
    job: Job


class Kept(NamedTuple):
    """An answer that changed no job, which a shared store keeps by its request id for `REMEMBERED_AT_LEAST_US`.

    With `is_enq` the request id could be a job's: no job gets it while the answer is kept.
    """

    request: bytes
    answer: bytes
    is_enq: bool


class Share:
    """What the claims of one question may bring: bytes of params that are used up job by job."""

    def __init__(self, claimed_bytes: int) -> None:
        self._left = claimed_bytes
        self.cut: set[Route] = set()

    def take(self, route: Route, jobs: list[Job], more: Iterable[Job]) -> bool:
        """Add the next jobs of a route to those that it has, as far as there is room; False if there is none."""
        more = list(more)
        count = sum([len(job.params) for job in more])
        if count <= self._left:
            self._left -= count
            jobs += more
            return True
        for job in more:
            if jobs and self._left <= 0:
                self.cut.add(route)
                return False
            self._left -= len(job.params)
            jobs.append(job)
        return True


class Retention(NamedTuple):
    """Which ended jobs to forget with a commit, at most `limit` of them, those nearest to being forgotten first.

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
    """What a commit did: the places in `changes` that were refused, and how many ended jobs were forgotten.

    `held` has those of the refused places that are not worth another try before `SharedStore.freed` names their holds.
    """

    refused: tuple[int, ...] = ()
    forgotten: int = 0
    held: Mapping[int, Hold] = {}


class Opened(NamedTuple):
    """What a store knows when it opens: a boot epoch no earlier run had (durable), the clocks' mark, the last seq.

    `recovered` counts the pages of log that a run left behind which did not close the store. `is_new` says that there was no
    store, and that this opening made one.
    """

    epoch: int
    mark: Mark | None
    last_seq: int
    recovered: int = 0
    is_new: bool = False


class Route(NamedTuple):
    """Where a job may go: jobs of this module with this `Job.target`.

    A *variant* of a route is the same one with a specifier. In the order of a store's texts (that of their code points) the
    variants of a route stand together, directly behind it.
    """

    module: str
    target: str

    @property
    def specifier(self) -> str | None:
        """What the version of the module's distribution must satisfy; None: any will do."""
        return split_target(self.target)[1]

    @property
    def plain(self) -> Route:
        """The same route without a specifier."""
        return Route(self.module, split_target(self.target)[0])


class Timer(NamedTuple):
    """What the near window keeps of one waiting job that is not due yet; sorts by due, then in the order of enq."""

    due_us: int  # On the timer clock.
    seq: int


class Span(NamedTuple):
    """One question for what is near on a route: the next `limit` jobs to fall due."""

    route: Route
    limit: int


class Near(NamedTuple):
    """The answer to a `Span`: whether a job is due already, the next timers in order, and whether there are more of them."""

    is_ready: bool
    timers: list[Timer]
    more: bool


class Ready(NamedTuple):
    """How many jobs of a route are ready, and since when the first of them is, on the timer clock; None if there is none."""

    route: Route
    jobs: int
    since_us: int | None


class ReadyBudget:
    """How many ready jobs `Store.ready` may still count, and on how many routes it looks."""

    def __init__(self) -> None:
        self._left = READY_COUNTED_TO
        self._routes = 0

    @property
    def is_spent(self) -> bool:
        """Return whether to look at no further route."""
        return not self._left and self._routes >= READY_ROUTES_MAX

    @property
    def limit(self) -> int:
        """The most jobs to count on the next route."""
        return max(self._left, READY_COUNTED_LEAST)

    def count(self, jobs: int) -> None:
        """Take note of a route that was looked at."""
        self._routes += 1
        self._left = max(self._left - jobs, 0)


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
    `variants` are routes without a specifier; it is asked on which variants of each of them jobs wait.
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


def _has_ended_since(ended_us: int | None, since_us: int) -> bool:
    return ended_us is not None and ended_us >= since_us


class Filter(NamedTuple):
    """Which jobs a listing shows; None means any. `state` is a stored state, or `READY` (waiting and due).

    Instants are those of the wall clock that people are told, and a lower bound belongs to what it admits.
    """

    state: JobState | None = None
    module: str | None = None
    target_worker: str | None = None
    key_prefix: str | None = None
    due_before_us: int | None = None
    due_after_us: int | None = None
    ended_after_us: int | None = None
    error: str | None = None  # A part of what the last failed attempt raised, its case folded.
    by_enq: bool = False  # In the order of enq, in which no job ever moves, whatever the state.

    def admits(self, job: Job, now: Now) -> bool:
        """Return whether the listing shows this job."""
        return (
            self.admits_head(job, now)
            and (self.key_prefix is None or (job.key is not None and job.key.startswith(self.key_prefix)))
            and (self.error is None or (job.error is not None and self.error in job.error.casefold()))
        )

    def admits_head(self, job: Job, now: Now) -> bool:
        """Return whether the listing shows this job as far as state, route and instants tell."""
        return (
            (self.state is None or job.shown_state(now) is self.state)
            and (self.module is None or job.module == self.module)
            and (self.target_worker is None or job.target_worker == self.target_worker)
            and (self.due_before_us is None or job.due_on_wall_us(now) < self.due_before_us)
            and (self.due_after_us is None or job.due_on_wall_us(now) >= self.due_after_us)
            and (self.ended_after_us is None or _has_ended_since(job.ended_on_wall_us(now), self.ended_after_us))
        )

    @property
    def is_by_due(self) -> bool:
        """Whether the listing is in the order of the dues."""
        return not self.by_enq and self.state in (JobState.WAITING, JobState.READY)

    @property
    def is_by_end(self) -> bool:
        """Whether the listing begins with what ended last."""
        return not self.by_enq and self.state in ENDED

    def has_ended_before(self, ended_at_us: int, now: Now) -> bool:
        """Return whether a listing by end is over at a job that ended then, on the timer clock."""
        return self.ended_after_us is not None and ended_at_us - now.told_ahead_us < self.ended_after_us


def rows_of(params_bytes: int, result_bytes: int) -> int:
    """How many rows a job counts as in a page."""
    return 1 + (params_bytes + result_bytes) // ROW_BYTES


Cursor: TypeAlias = tuple[int, int]
"""A place in a listing, behind a job: its seq, and before that what the listing is in the order of: for jobs that have ended
`ended_at_us`, for those that wait the due on the timer clock and one, else 0."""


class Page(NamedTuple):
    """A page of a listing; `after` continues it and is None at the end. A page may be short, even empty, before that.

    `cursors` has for each job the place behind it, from which the listing goes on if the page is cut there.
    """

    jobs: list[Job]
    after: Cursor | None
    cursors: list[Cursor] = []


class CopyPart(NamedTuple):
    """A part of a copy of a store that is sent while the store is written; see `Copyable`."""

    payload: bytes  # Entries of rows, as `givalia_core.store.sqlite.copying` packs them.
    is_last: bool  # With it the copy is the store as it was when this part was made.
    size_bytes: int  # About how many bytes the whole copy has.
    format: int  # Of the store.
    jobs: int  # How many jobs the store has.
    made_us: int  # When the part was made, on the wall clock.
    crc: int  # The CRC-32 of all payloads up to this one.


class AlreadyDecided(Exception):
    """A commit met the answer of another server to one of its commands; nothing is known of the rest. Decide it again."""


class Store(Protocol):
    """What keeps the jobs. One server opens it; calls come from one greenlet at a time and may block it briefly.

    Every method may raise `StoreFailed` (the server must stop) and `StoreCorrupt` (a row is not what was written).
    """

    durability: str
    """What `commit` returning means, once open: `fsync` (on stable storage), `flush` (on its way there: a crash of the
    database or its machine may take the last moments) or `memory` (nothing survives a crash)."""

    is_shared: bool
    """Whether several servers may have it open, so that rows change without this one; it is a `SharedStore` then."""

    @property
    def is_full(self) -> bool:
        """Whether the store has met a full disk, in whatever it did, since `has_room` last said that there is room."""

    def open(self, *, unsafe: bool = False) -> Opened:
        """Open, for this process alone unless the store is shared, and make a new boot epoch durable.

        With `unsafe` also if what holds the data is set to lose what it has acknowledged; `durability` then says so.

        Raises:
            StoreLocked, StoreCorrupt, StoreTooNew, StoreUnfit: Nothing was written.
            StoreAway: The database of a shared store does not answer.
        """

    def upgrade(self) -> tuple[int, int]:
        """While it is not open: bring what is stored to the format of this version; from which, and to which.

        Raises:
            StoreMissing: There is no store.
            StoreError: As `open`. Nothing was changed, or some of several steps were, each whole: doing it again goes on.
        """

    def commit(
        self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None, learned: object = None
    ) -> Commit:
        """Apply every change whose guard holds, in the order given, in one transaction; durable on return.

        `learned` is that of what was found for these changes. A store whose `Found.learned` is always None is never given it.

        Raises:
            StoreFull: Nothing of this commit is stored, and the store is as it was before.
            StoreFailed: Unknown what is stored. No answer may be given; the server must stop.
        """

    def find(self, wanted: Wanted, now: Now) -> Found:
        """The jobs of these names, and those to lend; names and routes that nothing has are absent from the answer."""

    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        """What is near on each of these routes."""

    def running(self) -> Iterable[Job]:
        """Every running job; asked once, at start."""

    def expired(self, now: Now, limit: int) -> list[Job]:
        """Waiting jobs whose `expires_at_us` has passed, at most `limit`."""

    def forgettable(self, retention: Retention) -> bool:
        """Whether a commit with this retention would forget anything."""

    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int = SCAN_MAX) -> Page:
        """A page of at most `limit` jobs; looks at no more than `rows` rows, at most `SCAN_MAX`.

        Jobs that wait come in the order of their dues, unless they wait on more routes than the store can keep apart; those
        that have ended begin with the last one; all others come in the order of enq.

        A large job counts as several rows (`rows_of`), so that a page is bounded in bytes and in time.

        Raises:
            Busy: A shared store takes too long to answer; this goes for `counts`, `ready` and `describe`, too.
        """

    def counts(self) -> dict[tuple[str, JobState], int]:
        """How many jobs there are by module and stored state, from stored counts: no scan."""

    def ready(self, now: Now) -> Iterator[Ready]:
        """Yield the routes on which jobs wait, some of them several times, and what is ready there.

        Jobs are counted up to `READY_COUNTED_TO` in all, but of each route at least up to `READY_COUNTED_LEAST`; then only the
        first `READY_ROUTES_MAX` routes are looked at. Each step is short, however many routes there are, and between two of
        them the store may be changed. `by_module` sums the counts up.
        """

    def has_room(self) -> bool:
        """Whether there is room for new jobs; asked before each turn while `is_full`, or after `StoreFull`."""

    def raise_numbers(self, seq: int, fence: int) -> None:
        """From the next `open` on, every seq and fence this store gives out is above these. Durable on return.

        It never lowers a number; a store that was filled from another one is told here what that one gave out.

        Raises:
            StoreFull: Nothing was raised.
        """

    def tidy(self) -> None:
        """Housekeeping the store wants, called when the answers of a commit are out; short."""

    def rest(self) -> None:
        """Housekeeping for a moment in which nobody waits, called about once a second; some milliseconds."""

    def check(self) -> list[str]:
        """Read everything and say what is wrong, one sentence each; empty means sound. Slow: for tools and tests."""

    def describe(self) -> dict[str, Any]:
        """What a person wants to know of it: its place, sizes, settings."""

    def close(self) -> None:
        """Leave nothing unsynced behind and let another process open it. Safe to call twice."""


def by_module(found: Iterable[Ready]) -> dict[str, int]:
    """Sum up the ready jobs of each module; modules without any are left out."""
    sums: dict[str, int] = {}
    for (module, _), jobs, _ in found:
        if jobs:
            sums[module] = sums.get(module, 0) + jobs
    return sums


class Event(NamedTuple):
    """A call of a hook that a change in somebody's own transaction owes; it is this server's to make."""

    hook: str
    job: Job
    running: bool | None  # What `on_cancel` is told; None for the other hooks.


class News(NamedTuple):
    """What other servers say of a shared store. All of it is a hint: some may be lost, and `watch` finds it out later."""

    changed: frozenset[bytes] = frozenset()  # Ids of jobs that this server may look after or be asked to wait for.
    ready: frozenset[Route] = frozenset()  # Where jobs are due.
    nearing: dict[Route, int] = {}  # Where jobs came to wait, and when the first of them is due, on the timer clock.
    must_watch: bool = False  # Something wants `watch` now.
    is_deaf: bool = False  # No news arrives for now.


class Keeping(NamedTuple):
    """The requests whose answers `keep` did not keep: another server has decided those of `decided`, so they are decided again.

    Those of `busy` cannot be kept for now; nobody may be told the answers.
    """

    decided: frozenset[bytes] = frozenset()
    busy: frozenset[bytes] = frozenset()


class Watched(NamedTuple):
    """What `watch` found that no news may have told."""

    own: list[Job]  # Running jobs that this server looks after: those that were asked to stop, or all of them.
    strayed: list[tuple[Job, int]]  # Running jobs of servers that are gone, and how long a lease each of those granted.
    looked_after: int | None  # How many running jobs name this server as their keeper; None: not counted this time.
    has_lapsed: bool  # This server was silent for so long that others may have taken over what it looked after.
    live: int  # How many jobs wait or run.
    has_expired: bool  # Whether `expired` would name any.
    others: list[bytes]  # What the other servers say about themselves.
    events: list[Event]


class SharedStore(Store, Protocol):
    """What several servers need besides, to share one queue.

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
        """What arrived since it was last asked; reads nothing."""

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> Watched | None:
        """Say that this server is alive, grants leases of this length and is as in `about`; find what needs care.

        A server that has not called it for `ALIVE_US` is gone as far as the others are concerned. None if that could not be
        written for now, although the store answers.
        """

    def freed(self, names: frozenset[str]) -> frozenset[str]:
        """Return those of these names of holds that may be free by now; costs one read and waits for no lock."""

    def follow(self, ids: Iterable[bytes]) -> None:
        """Ask to be told in `news` when another server ends one of these jobs; sent soon, and not waited for."""


class Copyable(Store, Protocol):
    """A store of which a copy can be sent while it is open."""

    def copy_part(self, backup: bytes, part: int) -> CopyPart:
        """Return a part of the copy that has this name, counted from 0; short. The one before can be had once more.

        Raises:
            Busy: Another copy is under way.
            NotFound: The copy was given up.
            BadRequest: There is no such part.
        """


ALIVE_US: Final = 10_000_000


def as_copyable(store: Store) -> Copyable | None:
    """The same store with what sends copies of it; None if it has a way of its own to be backed up."""
    return cast(Copyable, store) if hasattr(store, "copy_part") else None


def as_shared(store: Store) -> SharedStore | None:
    """The same store with what a shared one has besides; None if it is not shared."""
    return cast(SharedStore, store) if store.is_shared else None
