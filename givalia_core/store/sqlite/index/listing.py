"""The orders in which listings of the SQLite store go through its jobs: by enq, by due, by end."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import islice
from typing import Final

from givalia_core.clock import Now
from givalia_core.model import RUNNING, Job, JobState, split_target
from givalia_core.store.base import Cursor, Filter, Page, rows_of
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.lane import START, Lane
from givalia_core.store.sqlite.index.runs import Entry
from givalia_core.store.sqlite.index.slots import AT, FAR
from givalia_core.store.sqlite.tables import Records, jobs_of

LANES_MOST: Final = 2_000  # Lanes that a listing by due merges; each costs a microsecond in each page.
_READ_AT_ONCE: Final = 64  # Entries of a lane.
_READ_TOGETHER: Final = 16  # Jobs that may all be large.

Found = Iterator[tuple[Cursor, Job | None]]


class Listing:
    """A walk through jobs from a cursor on, one at a time. Nothing may be filed meanwhile.

    Args:
        index: The jobs that there are, and their places.
        records: The records of the jobs.
    """

    def __init__(self, index: Index, records: Records) -> None:
        self._index = index
        self._records = records

    def page(self, wanted: Filter, after: Cursor | None, limit: int, now: Now, rows: int) -> Page:
        """Return a page, as `Store.page`."""
        jobs: list[Job] = []
        cursors: list[Cursor] = []
        left = rows
        for cursor, job in self.walk(wanted, after or (0, 0), now, rows):
            if job is not None and wanted.admits(job, now):
                jobs.append(job)
                cursors.append(cursor)
            left -= 1 if job is None else rows_of(len(job.params), len(job.result or b""))
            if len(jobs) == limit or left <= 0:
                return Page(jobs, cursor, cursors)
        return Page(jobs, None, cursors)

    def walk(self, wanted: Filter, start: Cursor, now: Now, rows: int) -> Found:
        """Yield the jobs behind a cursor, at least `rows` of them if there are so many, each with the cursor behind it.

        Only the part of the filter that sets the order is applied, so the filter may refuse some jobs; None stands for a job
        that cannot be read.
        """
        if wanted.is_by_end:
            return self._with_jobs(self._by_end(wanted, start, now, rows))
        if wanted.is_by_due and (start == (0, 0) or start[0]) and (lanes := self._lanes_of(wanted)) is not None:
            return self._with_jobs(self._by_due(wanted, lanes, start, now, min(rows, _READ_AT_ONCE)))
        if wanted.state is RUNNING:
            running = self._index.lanes.after(self._index.running, (0, start[1], FAR), rows)
            return self._with_jobs(((0, seq), slot) for _, seq, slot in running)
        return (((0, job.seq), job) for job in self._all_after(start[1]))

    def _with_jobs(self, found: Iterator[tuple[Cursor, int]]) -> Found:
        while some := list(islice(found, _READ_TOGETHER)):
            jobs = self._index.jobs.of([slot for _, slot in some])
            yield from ((cursor, jobs.get(slot)) for cursor, slot in some)

    def _all_after(self, seq: int) -> Iterator[Job]:
        """Yield all jobs behind a seq, in the order of their seqs; those whose records are bad are left out."""
        at = self._index.slots.at
        for row in self._records.bases(self._records.first_at_or_before(seq) - 1):
            jobs = [
                (job, slot)
                for job in jobs_of(row, lambda *_: None)
                if job.seq > seq and (slot := self._index.jobs.slot_of(job)) is not None
            ]
            changed = self._index.jobs.of([slot for _, slot in jobs if at[slot + AT]])
            for job, slot in jobs:
                if not at[slot + AT]:
                    yield job
                elif slot in changed:
                    yield changed[slot]

    def _by_end(self, wanted: Filter, start: Cursor, now: Now, rows: int) -> Iterator[tuple[Cursor, int]]:
        assert wanted.state is not None
        first = (-start[0], start[1], FAR) if start[0] else START
        for when, seq, slot in self._index.lanes.after(self._index.newest[wanted.state], first, rows):
            if wanted.has_ended_before(-when, now):
                return
            yield (-when, seq), slot

    # By due.

    def _lanes_of(self, wanted: Filter) -> list[Lane] | None:
        """Return the lanes of waiting jobs that a filter may admit; None if they are too many to merge."""
        found: list[Lane] = []
        for route, lanes in self._index.routes.items():
            if wanted.module in (None, route.module) and wanted.target_worker in (None, split_target(route.target)[0]):
                found += [lane for lane in lanes if lane.low < FAR]
                if len(found) > LANES_MOST:
                    return None
        return found

    def _by_due(self, wanted: Filter, lanes: list[Lane], start: Cursor, now: Now, at_once: int) -> Iterator[tuple[Cursor, int]]:
        """Merge lanes by their dues on the timer clock, reading `at_once` entries of a lane at a time.

        A lane enters the heap with the least due that it may have, and is read when the order reaches that due.
        """
        heap: list[tuple[int, int, int, int]] = []  # Due, seq and slot of the next entry of a lane (0: unread), and which lane.
        parts: list[Iterator[Entry]] = []
        for place, lane in enumerate(lanes):
            shift_us = now.told_ahead_us if lane.on_wall else 0
            first, until_us = _stretch(wanted, start, now, on_wall=lane.on_wall, shift_us=shift_us)
            least_us = max(lane.low, first[0])
            if least_us <= until_us:
                heappush(heap, (least_us + shift_us, 0, 0, place))
            parts.append(self._entries(lane, first, until_us, shift_us, at_once))
        while heap:
            due_us, seq, slot, place = heappop(heap)
            if slot:
                yield (due_us + 1, seq), slot
            following = next(parts[place], None)
            if following is not None:
                heappush(heap, (*following, place))

    def _entries(self, lane: Lane, first: Entry, until_us: int, shift_us: int, at_once: int) -> Iterator[Entry]:
        """Yield the entries of a lane behind one, with their times on the timer clock."""
        while some := self._index.lanes.after(lane, first, at_once):
            for when, seq, slot in some:
                if when > until_us:
                    return
                yield when + shift_us, seq, slot
            first = some[-1]


def _stretch(wanted: Filter, start: Cursor, now: Now, *, on_wall: bool, shift_us: int) -> tuple[Entry, int]:
    """Return the entry of a lane behind which a listing by due begins, and its last due, both on the clock of the lane."""
    now_us = now.wall_us if on_wall else now.timer_us
    told_us = 0 if on_wall else now.told_ahead_us  # Added to what people are told.
    first: Entry = (start[0] - 1 - shift_us, start[1], FAR) if start[0] else START
    until_us = FAR
    if wanted.state is JobState.READY:
        until_us = now_us
    else:
        first = max(first, (now_us, FAR, FAR))
    if wanted.due_after_us is not None:
        first = max(first, (wanted.due_after_us + told_us, 0, 0))
    if wanted.due_before_us is not None:
        until_us = min(until_us, wanted.due_before_us - 1 + told_us)
    return first, until_us
