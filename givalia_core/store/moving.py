"""Moves a queue from one store to another: every job, live and ended, as it is, by way of an export.

Only the timer clocks differ: times on them move by the difference between the clocks of the two stores, so each job stays due
at the same instant. Running jobs stay running with their fences: the next server gives them a whole lease, and their workers
report to it. The move keeps both stores open, so no server has either of them open.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from givalia_core.clock import SECOND_US, Clock, Now, Timekeeper, TimerClock
from givalia_core.errors import GivaliaError, StoreAway, StoreCorrupt, StoreLocked, StoreUnfit
from givalia_core.model import Job
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Filter, Opened, Store, Wanted
from givalia_core.store.export_stream import RECORD_BYTES, RECORD_JOBS, ExportReader, ExportWriter, Footer, Header
from givalia_core.store.shared import ALIVE_US, as_shared
from givalia_core.store.sqlite import copies

MOVED_WITHIN_US: Final = 3_600 * SECOND_US  # An older export is a backup.
FIRST_PAGE_JOBS: Final = 16  # Jobs may be large; pages grow while they are small.


def export(store: Store, opened: Opened, clock: Clock, file: BinaryIO, page_jobs: int = RECORD_JOBS) -> Footer:
    """Write every job of a store to a file, page by page, at most `page_jobs` in a page and in a record.

    Changes nothing in the store. The file is not flushed.

    Raises:
        StoreLocked: The store is shared, and other servers have it open; nothing was written.
        StoreCorrupt: A row is damaged, or the rows are not those that were counted; the export has no footer and is worthless.
        StoreFailed, OSError: The store cannot be read, or the file cannot be written.
    """
    now = _timer(store, opened, clock).now(clock.read())
    _refuse_company(store, now)
    header = Header(now.timer_us, now.wall_us, opened.mark, store.counts())
    writer = ExportWriter(file, header, page_jobs)
    for job in _every(store, now, page_jobs):
        writer.add(job)
    # Forgotten jobs had numbers too, perhaps higher ones.
    if store.is_shared:
        floor = store.find(Wanted(numbers=True), now).floor  # Above every seq and fence that any of its servers gave out.
        return writer.end(max(opened.last_seq, floor), floor)
    return writer.end(opened.last_seq, opened.epoch << FENCE_COUNTER_BITS)  # This run's epoch: above all fences before it.


def _timer(store: Store, opened: Opened, clock: Clock) -> Timekeeper:
    shared = as_shared(store)
    return TimerClock.start(clock, opened.mark) if shared is None else shared.timer


def _refuse_company(store: Store, now: Now) -> None:
    """Refuse a shared store that other servers have open; an embedded one refuses at `open`."""
    shared = as_shared(store)
    if shared is None:
        return
    watched = shared.watch(now, 0, b"", all_own=False)
    if watched is None:
        raise StoreAway("the store cannot be written for now, so nobody can tell whether other servers have it open")
    if watched.others:
        raise StoreLocked(f"other servers have the store open, or had within the last {ALIVE_US // SECOND_US} s: stop them")


def _every(store: Store, now: Now, page_jobs: int) -> Iterator[Job]:
    """Yield all jobs by seq; pages get shorter while their jobs are large."""
    after: tuple[int, int] | None = None
    limit = min(FIRST_PAGE_JOBS, page_jobs)
    while True:
        page = store.page(Filter(), after, limit, now)
        yield from page.jobs
        if page.after is None:
            return
        after = page.after
        size = sum(len(job.params) + len(job.result or b"") for job in page.jobs)
        limit = max(limit // 2, 1) if size > RECORD_BYTES else min(limit * 2, page_jobs)


def import_(store: Store, opened: Opened, clock: Clock, reader: ExportReader) -> Footer:
    """Put the jobs of an export into an empty store, record by record; each is durable before the next is read.

    On return all jobs are durable, and from the next `open` on the store gives out only numbers above those of the export.

    Raises:
        StoreUnfit, StoreLocked: The store holds jobs, or is shared and open elsewhere; nothing was written.
        GivaliaError: The export is damaged, or the store failed or is full: the import is incomplete, and its message says so.
    """
    held = sum(store.counts().values())
    if held:
        raise StoreUnfit(f"the store holds {held} jobs; an import needs one that holds none. Nothing was written")
    timer = _timer(store, opened, clock)
    _refuse_company(store, timer.now(clock.read()))
    shift = Shift.between(reader.header, timer.now(clock.read()))
    # A server that starts on this store waits for the leases that the old server granted.
    lease_us = reader.header.mark.lease_us if reader.header.mark else 0
    try:
        for jobs in reader.records():
            _insert(store, [shift.moved(job) for job in jobs], timer, timer.now(clock.read()), lease_us)
        store.raise_numbers(reader.footer.seq, _fence(store, reader, clock))
    except GivaliaError as error:
        raise type(error)(f"{error}. The import is incomplete: throw its target away", **error.details) from error
    return reader.footer


def _fence(store: Store, reader: ExportReader, clock: Clock) -> int:
    """Return the fence above which the store begins: that of the export, or for an old export one above all granted since.

    A queue is moved after its last server has stopped. An old export is a backup, whose store may have granted more fences.
    """
    header, fence = reader.header, reader.footer.fence
    now_us = clock.read().wall_us
    if store.is_shared or now_us - header.wall_us < MOVED_WITHIN_US:
        return fence
    epoch = copies.first_epoch(header.wall_us, (fence >> FENCE_COUNTER_BITS) + copies.STARTS, now_us)
    return epoch << FENCE_COUNTER_BITS


def _insert(store: Store, jobs: list[Job], timer: Timekeeper, now: Now, lease_us: int) -> None:
    refused = store.commit([Change(None, job) for job in jobs], timer.mark(now, lease_us)).refused
    if refused:
        raise StoreCorrupt(f"job {jobs[refused[0]].seq} has the id or the key of another job of the export")
    store.tidy()


class Shift(NamedTuple):
    """The microseconds by which times on the timer clock move from one store to the other."""

    due_us: int
    end_us: int

    @classmethod
    def between(cls, header: Header, now: Now) -> Shift:
        """Return the shift from the clocks at the export to those of the target."""
        due_us = now.timer_ahead_us - (header.timer_us - header.wall_us)
        # Ends must lie in the past even if the target's wall clock is behind: else later ends of a key would seem earlier.
        return cls(due_us, min(due_us, now.timer_us - header.timer_us))

    def moved(self, job: Job) -> Job:
        """Return the job with the same instants on the other timer clock; no server of the target is its keeper yet."""
        due_us = 0 if job.on_wall else self.due_us
        return job.changed(
            due_at_us=job.due_at_us + due_us,
            expires_at_us=None if job.expires_at_us is None else job.expires_at_us + due_us,
            ended_at_us=job.ended_at_us if job.is_live else job.ended_at_us + self.end_us,
            keeper=0,
            forget_at_us=None if job.forget_at_us is None else job.forget_at_us + self.end_us,
        )
