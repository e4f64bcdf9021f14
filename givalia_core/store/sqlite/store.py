"""The default store: one SQLite file with one connection, one synced commit a batch, and an index beside the file.

New jobs and changes are appended (`tables`), so a commit writes as many pages as its bytes fill, with ten jobs waiting or with
ten million. The index that finds a job by name or time is derived from them, and not synced (`index`). The index outlives the
process; the store rebuilds it after a crash of the machine, and when it is damaged. Opening takes the same time whatever a
store holds.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from operator import attrgetter
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from givalia_core import forks
from givalia_core.clock import Mark, Now
from givalia_core.model import CANCELLED, DEAD, DONE, Job, JobState
from givalia_core.store import base
from givalia_core.store.backups import CopyPart
from givalia_core.store.base import Change, Commit, Found, Retention, Wanted
from givalia_core.store.sqlite import about, chores, commits, disk, mending, opening
from givalia_core.store.sqlite.commits import Admission, Rows, refuse_moved, write
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index import Lane, Learned, Listing, Update, questions, to_forget
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.sqlite.records import base_rows, change_rows, pack

_SEQ: Final = attrgetter("seq")

P = ParamSpec("P")
R = TypeVar("R")


class Unfiled(NamedTuple):
    """A durable commit that is not in the index yet: filing waits until the answers have left, or a read needs the index."""

    jobs: Sequence[Job]
    bases: Sequence[int]
    updates: Sequence[Update]
    places: list[int]
    lanes: Sequence[Lane]  # Of the jobs, then of the updates.
    absent: dict[bytes | str, int]


def guarded(work: Callable[Concatenate[SQLite, P], R]) -> Callable[Concatenate[SQLite, P], R]:
    """Wrap a method: file the last commit first, raise our errors, and run the method again once damage is mended."""

    @wraps(work)
    def guarding(self: SQLite, /, *values: P.args, **named: P.kwargs) -> R:
        try:
            if self._unfiled is not None:
                self._file()
            if self._core.database is None or os.getpid() != self._core.pid:
                self._core.refuse()
            return work(self, *values, **named)
        except (Damaged, IndexError) as error:
            return begin_again(self, error, *values, **named)
        except (sqlite3.Error, OSError) as error:
            self._core.fail(error)

    def begin_again(self: SQLite, error: Exception, /, *values: P.args, **named: P.kwargs) -> R:
        with self._core.failing():
            mending.mend(self._core, error)
            return work(self, *values, **named)

    return guarding


class SQLite:
    """A store in one file; `givalia_core.store.base.Store` says what each method promises."""

    is_shared = False

    def __init__(self, url: str, *, allow_network: bool = False, create: bool = True, may_upgrade: bool = False) -> None:
        """Take `sqlite:///absolute/path` (repeated slashes are one) or `sqlite:relative/path`; nothing is opened yet.

        Args:
            url: The URL of the store.
            allow_network: Whether its folder may lie on a network file system.
            create: Whether `open` may make a store where there is none.
            may_upgrade: Whether `open` may bring a store of an earlier format to this one.
        """
        self.path = disk.path_of(url)
        self.durability = "fsync"
        self.may_create = create
        self.may_upgrade = may_upgrade
        self.allow_network = allow_network
        self.is_full = False
        self._core = Core(self.path, self._note_full)
        self._unfiled: Unfiled | None = None

    # The path of every job.

    @guarded
    def find(self, wanted: Wanted, now: Now) -> Found:
        index = self._core.index
        learned = Learned(index.stamp, {})
        found = Found({}, {}, {}, {}, {}, {}, learned=learned)
        index.find(wanted, found, learned.absent)
        if wanted.past_keys:
            found.ended.update(questions.ended_last(index, wanted.past_keys.difference(learned.absent)))
        for plain in wanted.variants:
            if variants := questions.variants(index, plain):
                found.variants[plain] = variants
        cut = index.lend(wanted, now, found) if wanted.claims else None
        return found._replace(cut=cut) if cut else found

    @guarded
    def commit(
        self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None, learned: object = None
    ) -> Commit:
        core, index = self._core, self._core.index
        absent = learned.absent if isinstance(learned, Learned) and learned.stamp == index.stamp else {}
        admission = Admission(index, absent, changes)
        jobs, updates = sorted(admission.inserts.values(), key=_SEQ), list(admission.updates.values())
        lanes = index.prepare(jobs, updates)
        rows, bases = base_rows(jobs)
        more, places = change_rows([pack(job.front()) for _, _, job in updates], core.last_number)
        replaced = [(index.base_of(known), job) for known, was, job in updates if was.params != job.params]
        refuse_moved(core)
        write(core, Rows(rows, more, admission.counts, jobs[-1].seq if jobs else 0, replaced), mark)
        self._unfiled = Unfiled(jobs, bases, updates, places, lanes, absent)
        index.touched += len(changes)
        return Commit(tuple(admission.refused), 0 if retention is None else self._retire(retention, mark))

    def _file(self) -> None:
        """Enter the last commit in the index. After a kill before that, the next start does it: it reads all since the seal."""
        assert self._unfiled is not None
        (jobs, bases, updates, places, lanes, absent), self._unfiled = self._unfiled, None
        core = self._core
        index = core.index
        try:
            if updates:
                core.sweeper.written.append((places, [was.seq for _, was, _ in updates]))
            for job, base, lane in zip(jobs, bases, lanes, strict=False):
                index.insert(job, base, lane, absent)
            for (known, was, job), place, lane in zip(updates, places, lanes[len(jobs) :], strict=True):
                index.change(known, was, job, place, lane)
            index.conclude(core.commits, core.last_number, core.last_seq)
        except (Damaged, IndexError) as error:
            mending.mend(core, error)  # From the records, which have this commit.

    @guarded
    def expired(self, now: Now, limit: int) -> list[Job]:
        index = self._core.index
        if index.expiring[False].low > now.timer_us and index.expiring[True].low > now.wall_us:
            return []
        return questions.expired(index, now, limit)

    @guarded
    def forgettable(self, retention: Retention) -> bool:
        core = self._core
        in_state, now_us, ended = core.in_state, retention.now_us, core.index.ended
        if (
            in_state[DONE] + in_state[CANCELLED] <= retention.keep_ended
            and in_state[DEAD] <= retention.keep_dead
            and ended[DONE].low > now_us
            and ended[CANCELLED].low > now_us
            and ended[DEAD].low > now_us
        ):
            return False
        return bool(to_forget(core.index, retention._replace(limit=1), in_state))

    @guarded
    def tidy(self) -> None:
        core = self._core
        index, sweeper = core.index, core.sweeper
        if (
            sweeper.is_behind
            or len(index.replaced) + len(sweeper.written) >= sweeper.notes_most
            or time.monotonic() >= core.chore_due_s
            or core.rows_since_checkpoint * core.pages_per_row >= chores.CHECKPOINT_PAGES
            or index.touched >= chores.TRIM_TOUCHED
            or index.jobs.bad
        ):
            chores.do(core)

    @guarded
    def rest(self) -> None:
        if time.monotonic() >= self._core.scrub.rest_until_s:
            self._core.scrub.step(is_quiet=True)

    # Everything else.

    def _retire(self, retention: Retention, mark: Mark) -> int:
        try:
            self._file()
            return mending.mending(self._core, lambda: commits.retire(self._core, retention, mark))
        except (Damaged, IndexError) as error:
            self._core.fail(error)  # The changes are on disk: the commit must not begin again.

    def open(self, *, unsafe: bool = False) -> base.Opened:  # noqa: ARG002 - As of every store.
        forks.register(self)
        try:
            with self._core.failing():
                opened = opening.open_core(self._core, self._allowed())
        except BaseException:
            forks.unregister(self)
            raise
        self.durability = self._core.durability
        chores.begin(self._core)
        return opened

    def _allowed(self) -> opening.Allowed:
        return opening.Allowed(self.may_create, self.may_upgrade, self.allow_network)

    def upgrade(self) -> tuple[int, int]:
        with self._core.failing():
            return opening.upgrade(self._core, self._allowed())

    def close(self) -> None:
        try:
            if self._unfiled is not None:
                self._file()
            opening.close_core(self._core)
        finally:
            self.abandon()

    def after_fork(self) -> None:
        """Close every file in a fork, without writing to it."""
        self._unfiled = None
        opening.after_fork(self._core)
        forks.unregister(self)

    def abandon(self) -> None:
        """Close every file as it is, as a kill does."""
        self._unfiled = None
        opening.abandon(self._core)
        forks.unregister(self)

    @guarded
    def raise_numbers(self, seq: int, fence: int) -> None:
        commits.raise_numbers(self._core, seq, fence)

    @guarded
    def upcoming(self, spans: Sequence[base.Span], now: Now) -> list[base.Near]:
        index = self._core.index
        index.touched += sum(span.limit for span in spans)
        return [questions.near(index, span, now) for span in spans]

    @guarded
    def running(self) -> Iterable[Job]:
        return list(questions.running(self._core.index))

    @guarded
    def page(
        self, wanted: base.Filter, after: base.Cursor | None, limit: int, now: Now, rows: int = base.SCAN_MAX
    ) -> base.Page:
        return Listing(self._core.index, self._core.records).page(wanted, after, limit, now, rows)

    def counts(self) -> dict[tuple[str, JobState], int]:
        return {name: count for name, count in self._core.counted.items() if count}

    def ready(self, now: Now) -> Iterator[base.Ready]:
        budget = base.ReadyBudget()
        for route in self._routes():
            found = self._ready_on(route, now, budget.limit)
            budget.count(found.jobs)
            yield found
            if budget.is_spent:
                return

    @guarded
    def _routes(self) -> list[base.Route]:
        return list(self._core.index.routes)

    @guarded
    def _ready_on(self, route: base.Route, now: Now, limit: int) -> base.Ready:
        return questions.ready_on(self._core.index, route, now, limit)

    def _note_full(self, is_full: bool) -> None:
        self.is_full = is_full

    def has_room(self) -> bool:
        return self._core.room.take()

    @guarded
    def describe(self) -> dict[str, Any]:
        return about.describe(self._core)

    @guarded
    def check(self) -> list[str]:
        """Read every page and every record, and compare records and index in both directions.

        Slow: some seconds for each hundred thousand jobs.
        """
        return about.check(self._core)

    @guarded
    def copy_part(self, backup: bytes, part: int) -> CopyPart:
        return self._core.copies.part(self._core.connection(), backup, part, sum(self._core.counted.values()))
