"""The reading half of the store: every read is a statement or two for all names at once."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, cast

from givalia_core.clock import SECOND_US, Now
from givalia_core.engine import remembered
from givalia_core.errors import Busy, StoreAway, StoreCorrupt, StoreError, StoreFull
from givalia_core.model import RUNNING, STORED_STATES, Job, JobState
from givalia_core.store.base import (
    READY_COUNTED_TO,
    SCAN_MAX,
    VARIANTS_MAX,
    Cursor,
    Filter,
    Found,
    Near,
    Page,
    Ready,
    ReadyBudget,
    Retention,
    Route,
    Span,
    Timer,
    Wanted,
    rows_of,
)
from givalia_core.store.packing import NUMBER, choose, has_state
from givalia_core.views import text_id

from givalia_postgres import statements as sql
from givalia_postgres.checksums import unsealed
from givalia_postgres.clock import DatabaseClock
from givalia_postgres.connection import Again, Connection, Held, Rows, Statement, TooLong
from givalia_postgres.doubts import Doubts, names_of
from givalia_postgres.floors import Floors
from givalia_postgres.promise import Promise
from givalia_postgres.quarantine import Quarantine
from givalia_postgres.rows import RECORD, int8s, texts, to_job, uuids

READY_ROUTES_FIRST: Final = 8  # Routes whose ready jobs one statement counts at first,
READY_ROUTES_MOST: Final = 256  # and at most, if they have few ready jobs.


@contextmanager
def surveying() -> Iterator[None]:
    """Run a read of many rows, or one that may wait for a table: if it takes too long, that is no outage of the store."""
    try:
        yield
    except (Held, TooLong) as error:
        raise Busy(f"the database takes too long to answer this: {error}", retry_after=1.0) from error
    except (Again, StoreFull) as error:
        raise StoreAway(str(error)) from error


Part = tuple[Statement, Callable[[Rows], None]]
"""A statement, and the function that takes in its answer."""


FULL_S: Final = 2.0  # How long a full disk counts as full.
FULL_CLAIMS: Final = 8  # Jobs that are lent at once meanwhile: perhaps only a few fit.
DOUBTED_MAX: Final = 1_000
PASSED_BYTES_MAX: Final = 64 << 20  # Params of held jobs that a claim reads besides those of lendable jobs.
HOPS_MAX: Final = 1_000  # Ranks of routes that a listing visits on each clock; with more, the listing scans all jobs.
READY: Final = JobState.READY
ON_ITS_WAY_US: Final = 30 * SECOND_US  # The longest time from the reads to the commit of new jobs; no client waits longer.
NEVER_US: Final = 1 << 62
DAMAGED_ANSWER: Final = remembered.pack(
    StoreCorrupt("the answer that this command was given is damaged in the database; it changed nothing")
)

log = logging.getLogger("givalia.server")


class Reads:
    """The reading half of the store; see `givalia_core.store.base.Store` for what each method promises."""

    timer: DatabaseClock

    def __init__(self, url: str, connection: Connection) -> None:
        self._connection = connection
        self._promise = Promise(connection)
        self._quarantine = Quarantine(url)
        self._must_look = False  # Rows were set aside, so the near jobs must be read again.
        self._last_seq = 0
        # Jobs that this server has locked until the transaction ends, each with its route and due.
        self._held: dict[int, tuple[Route, int]] = {}
        self._unread: dict[Route, int] = {}  # Routes with locked jobs that were not read, and a lower bound of their dues.
        self._passed_bytes: dict[Route, int] = {}  # Params of ready jobs that cannot be written for now.
        self._floors = Floors()
        self._doubts = Doubts()
        self._full_since: float | None = None
        self._new_until_us = NEVER_US  # Deadline for storing new jobs that were decided from the last reads.

    @property
    def _is_full(self) -> bool:
        """True if the database's disk was full a moment ago."""
        if self._full_since is not None and time.monotonic() - self._full_since > FULL_S:
            self._full_since = None
        return self._full_since is not None

    def _read(self, *statements: Statement) -> list[Rows]:
        try:
            return self._connection.ask(*statements)
        except (Again, StoreFull) as error:
            raise StoreAway(str(error)) from error

    def _survey(self, *statements: Statement) -> list[Rows]:
        with surveying():
            return self._connection.ask(*statements)

    def _jobs(self, words: str, *values: object) -> list[Job]:
        jobs = self._quarantine.sound(self._read((words, values))[0])
        self._set_aside()
        return jobs

    def _set_aside(self) -> None:
        """Move the noted damaged rows, if no transaction is open; a row that cannot be moved now is met again."""
        if self._quarantine.is_due and not self._connection.in_transaction:
            with suppress(Again, StoreAway, StoreFull):
                self._quarantine.set_aside(self._connection)
                self._must_look = True

    def find(self, wanted: Wanted, now: Now) -> Found:
        found = Found({}, {}, {}, {}, {}, {}, answers={})
        cut: set[Route] = set()
        sound = self._quarantine.sound
        parts = [*named(wanted, found, sound), *variants(wanted, found), *self._claimed(wanted, found, now, cut)]
        if not parts and not wanted.numbers:
            return found
        # Locks last as long as their transaction.
        begin: list[Statement] = [(sql.BEGIN, ())] if wanted.claims and not self._connection.in_transaction else []
        # The numbers come after the rows, so they are above all that other servers have used in those rows.
        numbers: list[Statement] = [(sql.NUMBERS_AND_MORE, ())] if wanted.numbers else []
        sent_us = time.monotonic_ns() // 1000
        with self._noting(claim.route for claim in wanted.claims):
            answers = self._read(*begin, *(statement for statement, _ in parts), *numbers)
        self._connection.in_transaction = self._connection.in_transaction or bool(begin)
        for (_, take), rows in zip(parts, answers[len(begin) :], strict=False):
            take(rows)
        found = found._replace(cut=frozenset(cut))
        if not numbers:
            self._set_aside()
            return found
        ((floor, database_us, *seen),) = answers[-1]
        self.timer.sample(database_us, sent_us, time.monotonic_ns() // 1000)
        self._new_until_us = database_us + ON_ITS_WAY_US
        self._promise.note(floor, tuple(seen))
        self._set_aside()
        return found._replace(floor=floor)

    @contextmanager
    def _noting(self, routes: Iterable[Route]) -> Iterator[None]:
        """Note how long a read of these routes takes, if it reads everything."""
        is_full = not all(map(self._floors.knows, routes))
        began = time.monotonic()
        yield
        if is_full:
            self._floors.looked(time.monotonic() - began)

    def _claimed(self, wanted: Wanted, found: Found, now: Now, cut: set[Route]) -> Iterable[Part]:
        for claim in wanted.claims:
            most = min(claim.limit, FULL_CLAIMS) if self._is_full else claim.limit
            # Jobs that cannot be written for now must not crowd out the others.
            limit = most + min(len(self._doubts), DOUBTED_MAX)
            most_bytes = wanted.claimed_bytes + self._passed_bytes.get(claim.route, 0)

            def take(
                rows: Rows, route: Route = claim.route, most: int = most, limit: int = limit, most_bytes: int = most_bytes
            ) -> None:
                ready = self._looked_at(route, rows, limit, most_bytes, now)
                if free := self._writable(route, ready)[:most]:
                    found.ready[route] = free
                    if route in self._unread:
                        cut.add(route)

            floors = int8s(self._floors.of(claim.route))
            yield (sql.CLAIM, [now.timer_us, now.wall_us, *claim.route, limit, most_bytes, floors]), take

    def _looked_at(self, route: Route, rows: Rows, limit: int, most_bytes: int, now: Now) -> list[Job]:
        """Return the jobs of a read with these limits on jobs and bytes; note what it shows of the route."""
        ready = self._quarantine.sound(rows)
        self._held.update((job.seq, (route, job.due_at_us)) for job in ready)
        is_cut = sum(len(row[RECORD + 1]) for row in rows) >= most_bytes
        is_all = len(rows) < limit and not is_cut
        if ready or is_all:
            self._floors.found(route, ready, limit if is_all else len(ready), now)
        self._unread.pop(route, None)
        if is_cut:
            self._unread[route] = min(self._floors.of(route))
        return ready

    def _writable(self, route: Route, jobs: list[Job]) -> list[Job]:
        """Return the jobs that no known hold affects: any other would be lent, and refused, again and again."""
        self._passed_bytes.pop(route, None)
        if not self._doubts:
            return jobs
        free = self._doubts.freed((name for job in jobs for name in names_of(job)), time.monotonic())
        writable = [job for job in jobs if free.issuperset(names_of(job))]
        if len(writable) < len(jobs):
            passed_bytes = sum(len(job.params) for job in jobs) - sum(len(job.params) for job in writable)
            self._passed_bytes[route] = min(passed_bytes, PASSED_BYTES_MAX)
        return writable

    def upcoming(self, spans: Sequence[Span], now: Now) -> list[Near]:
        if not spans:
            return []
        columns = [
            texts([span.route.module for span in spans]),
            texts([span.route.target for span in spans]),
            int8s([span.limit for span in spans]),
        ]
        floors = int8s([floor for span in spans for floor in self._floors.of(span.route)])
        near = [Near(False, [], False) for _ in spans]
        with self._noting(span.route for span in spans):
            rows = self._read((sql.UPCOMING, [now.timer_us, now.wall_us, *columns, floors]))[0]
        for place, is_ready, due_us, seq in rows:
            if not is_ready:
                self._floors.found(spans[place - 1].route, (), 1, now)
            known = near[place - 1]
            if due_us is None or len(known.timers) == spans[place - 1].limit:
                near[place - 1] = Near(is_ready, known.timers, due_us is not None)
            else:
                known.timers.append(Timer(due_us, seq))
                near[place - 1] = Near(is_ready, known.timers, False)
        return near

    def running(self) -> Iterable[Job]:
        return self._jobs(sql.RUNNING)

    def expired(self, now: Now, limit: int) -> list[Job]:
        return self._jobs(sql.EXPIRED, now.timer_us, now.wall_us, limit)

    def forgettable(self, retention: Retention) -> bool:
        for is_dead, forget_at_us, ended_at_us, count in self._read((sql.FORGETTABLE, ()))[0]:
            over = count > (retention.keep_dead if is_dead else retention.keep_ended)
            if forget_at_us <= retention.now_us or (over and ended_at_us <= retention.ended_before_us):
                return True
        return False

    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int = SCAN_MAX) -> Page:
        if wanted.is_by_due and (after is None or after[0]):
            page = self._page_waiting(wanted, after or (1, 0), min(limit, rows), now, rows)
            if page is not None:
                return page
            after = None
        return self._page_scanned(wanted, after, limit, now, rows)

    def _page_waiting(self, wanted: Filter, after: Cursor, limit: int, now: Now, rows: int) -> Page | None:
        """Return a page of waiting jobs, by due, without a walk over other jobs; None if they wait on too many routes."""
        words = sql.PAGE_WAITING if wanted.module is None else sql.PAGE_WAITING_OF
        named = [wanted.module, wanted.target_worker, wanted.state is READY]
        told_us = now.told_ahead_us
        least_us = -NEVER_US if wanted.due_after_us is None else wanted.due_after_us + told_us
        most_us = NEVER_US if wanted.due_before_us is None else wanted.due_before_us + told_us
        place = [now.timer_us, now.wall_us, *named, after[0] - 1, after[1], limit, HOPS_MAX, least_us, most_us]
        heads = self._survey((words, place))[0]
        if heads[0][0] is not None and heads[0][0] >= HOPS_MAX:
            return None
        found: list[Cursor] = []
        for _, due_us, seq, size_bytes in heads:
            if seq is None or rows <= 0:
                break
            found.append((due_us + 1, seq))
            rows -= rows_of(size_bytes or 0, 0)
        return self._shown(wanted, found, found[-1] if len(found) == limit or rows <= 0 else None, now)

    def _shown(self, wanted: Filter, found: list[Cursor], after: Cursor | None, now: Now) -> Page:
        """Return a page of those of these jobs that the filter admits."""
        jobs = {job.seq: job for job in self._jobs(sql.BY_SEQ, int8s([seq for _, seq in found]))} if found else {}
        # A job may have been forgotten or set aside since, or have changed.
        cursors = [cursor for cursor in found if cursor[1] in jobs and wanted.admits(jobs[cursor[1]], now)]
        return Page([jobs[seq] for _, seq in cursors], after, cursors)

    def _page_scanned(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int) -> Page:
        """Return a page of the jobs among the next rows that the filter admits."""
        major, minor = after or (0, 0)
        if wanted.is_by_end:
            assert wanted.state is not None
            scan: Statement = (sql.PAGE_ENDED, [NUMBER[wanted.state], major or NEVER_US, minor, rows])
        else:
            scan = (sql.PAGE_RUNNING if wanted.state is RUNNING else sql.PAGE, [minor, rows])
        heads = self._survey(scan)[0]
        for seq, _, state, *_ in heads:
            if not has_state(state):
                self._quarantine.note(seq)
        chosen, end = choose(heads, wanted, limit, now, rows)
        return self._shown(wanted, chosen, end, now)

    def counts(self) -> dict[tuple[str, JobState], int]:
        rows = self._survey((sql.COUNTS, ()))[0]
        return {(module, STORED_STATES[state]): count for module, state, count in rows if has_state(state)}

    def ready(self, now: Now) -> Iterator[Ready]:
        budget, most = ReadyBudget(), READY_ROUTES_FIRST
        at: Sequence[object] = (False, "", "", -100)  # Before all routes.
        while rows := self._survey((sql.READY, [now.timer_us, now.wall_us, budget.limit, *at, most]))[0]:
            before = tuple(at)
            for *at, counted, since_us in rows:
                shift_us = now.timer_ahead_us if at[0] else 0
                count = min(counted, budget.limit)
                budget.count(count)
                yield Ready(Route(str(at[1]), str(at[2])), count, None if since_us is None else since_us + shift_us)
                if budget.is_spent:
                    return
            if tuple(at) <= before:
                return  # The place did not advance: a damaged row returned another module than the one it is sorted by.
            # A later route may have as many ready jobs as one statement counts.
            is_light = sum(row[-2] for row in rows) < READY_COUNTED_TO // 4
            most = min(2 * most, READY_ROUTES_MOST) if is_light else READY_ROUTES_FIRST

    def check(self) -> list[str]:
        wrong: list[str] = []
        try:
            # One snapshot, whatever other servers do meanwhile.
            end: list[Statement] = [(sql.COMMIT, ())] if self._connection.in_transaction else []
            self._read(*end, ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", ()), (sql.PATIENT, ()))
            self._connection.in_transaction = True
            wrong += self._wrong_rows()
            for job_id, key, at, why in self._read((sql.QUARANTINED, ()))[0]:
                wrong.append(f"job {text_id(job_id)} (key {key!r}) is in quarantine since {at}: {why}")
            self._read((sql.COMMIT, ()))
            self._connection.in_transaction = False
        except (StoreError, Busy) as error:
            wrong.append(str(error))
        return wrong

    def _wrong_rows(self) -> list[str]:
        """Return the faults of the rows of jobs; if there are none, those of their counts."""
        wrong: list[str] = []
        counts: Counter[tuple[str, JobState]] = Counter()
        last = -(2**63)
        while rows := self._read((sql.CHECK, [last, SCAN_MAX]))[0]:
            for row in rows:
                last = row[0]
                try:
                    job = to_job(row)
                    counts[job.module, job.state] += 1
                except StoreCorrupt as error:
                    wrong.append(str(error))
        if not wrong and counts != self.counts():
            wrong.append(f"the stored counts {self.counts()} are not those of the rows {dict(counts)}")
        return wrong


def named(wanted: Wanted, found: Found, sound: Callable[[Iterable[Sequence[Any]]], list[Job]]) -> Iterable[Part]:
    """Yield the statements for the wanted names, with what puts their answers into `found`; `sound` makes jobs of rows.

    `found` must have a dict of its own for `answers`.
    """
    answers = cast("dict[bytes, bytes]", found.answers)

    def by_id(rows: Rows) -> None:
        found.ids.update((job.id, job) for job in sound(rows))

    def by_key(rows: Rows) -> None:
        found.live.update((job.key, job) for job in sound(rows) if job.key is not None)

    def by_past_key(rows: Rows) -> None:
        found.ended.update((job.key, job) for job in sound(rows) if job.key is not None)

    def by_request(rows: Rows) -> None:
        for request, answer, *row in rows:
            if answer is not None:
                answers[request] = _kept_answer(request, answer)
                continue
            # The job itself holds the answer.
            found.requests.update(
                (request, job) for job in sound([row]) if any(request == past.request for past in job.answered)
            )

    if wanted.ids:
        yield (sql.BY_ID, [uuids(list(wanted.ids))]), by_id
    if wanted.keys:
        yield (sql.BY_KEY, [texts(list(wanted.keys))]), by_key
    if wanted.past_keys:
        yield (sql.BY_PAST_KEY, [texts(list(wanted.past_keys))]), by_past_key
    # Last: a change that any statement above has seen has left its request here.
    if wanted.requests:
        yield (sql.BY_REQUEST, [uuids(list(wanted.requests))]), by_request


def _kept_answer(request: bytes, sealed: bytes) -> bytes:
    """Return the kept answer; if it is damaged, an error that says so, since the command must not be decided again."""
    answer = unsealed(sealed)
    if answer is None:
        log.error("the answer to the command %s is damaged in givalia.requests", text_id(request))
    return answer or DAMAGED_ANSWER


def variants(wanted: Wanted, found: Found) -> Iterable[Part]:
    """Yield the statement for the wanted variants, with what puts them into `found`."""

    def take(rows: Rows) -> None:
        found.variants.clear()
        for module, plain, target in rows:
            some = found.variants.setdefault(Route(module, plain), [])
            if len(some) < VARIANTS_MAX:
                some.append(Route(module, target))

    if wanted.variants:
        modules, targets = zip(*wanted.variants, strict=True)
        yield (sql.VARIANTS, [texts(modules), texts(targets), VARIANTS_MAX]), take
