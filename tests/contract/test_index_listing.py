"""The orders in which listings go through the jobs, from a cursor on."""

from __future__ import annotations

import pytest
from index_rig import IndexRig, opened

from givalia_core.clock import Now
from givalia_core.model import DONE, RUNNING, WAITING, Job, JobState
from givalia_core.store.base import ROW_BYTES, Cursor, Filter
from givalia_core.store.sqlite.index import listing, sealing
from givalia_core.store.sqlite.index.listing import Listing
from givalia_core.store.sqlite.index.slots import AT
from givalia_core.store.sqlite.index.upkeep import filing
from givalia_core.store.suite import NOW, changed, ended, waiting

pytestmark = pytest.mark.usefixtures("small_index")
rig = pytest.fixture(opened)
TIMER, WALL = NOW.timer_us, NOW.wall_us
BY_DUE = Filter(state=WAITING)


def seqs(rig: IndexRig, wanted: Filter, limit: int = 2, now: Now = NOW, rows: int = 1_000) -> list[int]:
    """All seqs of a listing, page by page."""
    found: list[int] = []
    after: Cursor | None = None
    for _ in range(1_000):
        page = Listing(rig.index, rig.records).page(wanted, after, limit, now, rows)
        assert len(page.jobs) == len(page.cursors) <= limit
        found += [job.seq for job in page.jobs]
        if (after := page.after) is None:
            return found
    raise AssertionError("a listing without an end")


def test_all_jobs_come_in_the_order_of_enq_as_they_are_now_without_those_that_are_forgotten(rig: IndexRig) -> None:
    jobs = [waiting(seq) for seq in (1, 2, 3, 7, 8)]
    rig.enq(*jobs)
    lent = changed(jobs[1], state=RUNNING)
    rig.change(lent, ended(jobs[2]), ended(jobs[3]))
    filing.forget(rig.index, rig.slot(jobs[3]), 1 << 16)

    assert seqs(rig, Filter()) == [1, 2, 3, 8]
    page = Listing(rig.index, rig.records).page(Filter(), (0, 1), 1, NOW, 9)
    assert (page.jobs, page.after, page.cursors) == ([lent.job], (0, 2), [(0, 2)])
    assert seqs(rig, Filter(state=DONE, by_enq=True)) == [3]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_waiting_jobs_of_all_routes_and_clocks_come_in_one_order_of_dues(rig: IndexRig, is_sealed: bool) -> None:
    dues = ((1, 30), (2, 10), (3, 20), (4, 10))
    rig.enq(*(waiting(seq, due_at_us=TIMER + ahead, priority=seq, module=f"M{seq % 2}") for seq, ahead in dues))
    rig.enq(waiting(5, on_wall=True, due_at_us=WALL + 15), waiting(6, due_at_us=TIMER), waiting(7, state=RUNNING))
    if is_sealed:
        sealing.seal(rig.index.lanes, 0, 0)

    assert seqs(rig, BY_DUE) == [2, 4, 5, 3, 1]
    assert seqs(rig, BY_DUE, limit=1) == [2, 4, 5, 3, 1]
    assert seqs(rig, BY_DUE._replace(module="M0")) == [2, 4]
    assert seqs(rig, BY_DUE._replace(target_worker="w1")) == []
    assert seqs(rig, Filter(state=JobState.READY)) == [6]
    later = NOW._replace(timer_us=TIMER + 15, wall_us=WALL + 15)
    assert seqs(rig, Filter(state=JobState.READY), now=later) == [6, 2, 4, 5]
    between = BY_DUE._replace(due_after_us=WALL + 15, due_before_us=WALL + 30)
    assert seqs(rig, between) == [5, 3]


def test_the_cursor_of_a_waiting_job_is_its_due_on_the_timer_clock_plus_one(rig: IndexRig) -> None:
    rig.enq(waiting(1, on_wall=True, due_at_us=WALL + 15), waiting(2, due_at_us=TIMER + 15), waiting(3, due_at_us=TIMER + 9))

    page = Listing(rig.index, rig.records).page(BY_DUE, None, 9, NOW, 9)

    assert page.cursors == [(TIMER + 10, 3), (TIMER + 16, 1), (TIMER + 16, 2)]
    assert page.after is None


def test_jobs_on_more_lanes_than_can_be_merged_come_in_the_order_of_enq(rig: IndexRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.enq(*(waiting(seq, due_at_us=TIMER + 99 - seq, module=f"M{seq}") for seq in range(1, 5)))
    monkeypatch.setattr(listing, "LANES_MOST", 4)
    assert seqs(rig, BY_DUE) == [4, 3, 2, 1]
    in_between = Listing(rig.index, rig.records).page(BY_DUE, None, 2, NOW, 9)

    monkeypatch.setattr(listing, "LANES_MOST", 3)

    assert seqs(rig, BY_DUE) == [1, 2, 3, 4]
    assert seqs(rig, BY_DUE._replace(module="M2")) == [2]
    begun = Listing(rig.index, rig.records).page(BY_DUE, None, 2, NOW, 9).after
    monkeypatch.setattr(listing, "LANES_MOST", 4)
    rest = Listing(rig.index, rig.records).page(BY_DUE, begun, 9, NOW, 9)
    assert [job.seq for job in rest.jobs] == [3, 4]  # A listing that began in one order ends in it.
    assert [job.seq for job in in_between.jobs] == [4, 3]


def test_ended_jobs_begin_with_the_last_to_end_and_stop_at_those_that_ended_before(rig: IndexRig) -> None:
    jobs = [ended(waiting(seq), ago_us=ago_us).job for seq, ago_us in ((1, 30), (2, 10), (3, 20), (4, 40))]
    rig.enq(*jobs[:3], jobs[3].changed(forget_at_us=None))

    assert seqs(rig, Filter(state=DONE)) == [2, 3, 1, 4]
    assert seqs(rig, Filter(state=DONE, ended_after_us=WALL - 30)) == [2, 3, 1]
    assert seqs(rig, Filter(state=JobState.DEAD)) == []
    page = Listing(rig.index, rig.records).page(Filter(state=DONE), (TIMER - 10, 2), 1, NOW, 9)
    assert (page.jobs, page.cursors) == ([jobs[2]], [(TIMER - 20, 3)])


def test_running_jobs_come_in_the_order_of_enq(rig: IndexRig) -> None:
    rig.enq(*(waiting(seq, state=RUNNING if seq % 3 else WAITING) for seq in range(1, 40)))

    assert seqs(rig, Filter(state=RUNNING), rows=5) == [seq for seq in range(1, 40) if seq % 3]


def test_a_page_ends_after_so_many_rows_and_large_jobs_are_several(rig: IndexRig) -> None:
    jobs = [waiting(seq, params=bytes(2 * ROW_BYTES if seq == 2 else 1)) for seq in range(1, 6)]
    rig.enq(*jobs)

    def page(wanted: Filter, rows: int) -> tuple[list[int], Cursor | None]:
        found = Listing(rig.index, rig.records).page(wanted, None, 9, NOW, rows)
        return [job.seq for job in found.jobs], found.after

    assert page(Filter(), 4) == ([1, 2], (0, 2))
    assert page(Filter(), 5) == ([1, 2, 3], (0, 3))
    assert page(Filter(module="None"), 2) == ([], (0, 2))
    assert page(BY_DUE, 4) == ([1, 2], (TIMER + 1_001, 2))
    assert page(Filter(), 99) == ([1, 2, 3, 4, 5], None)


@pytest.mark.parametrize("wanted", [Filter(), BY_DUE, Filter(state=RUNNING), Filter(state=DONE)])
def test_a_job_that_cannot_be_read_is_left_out_and_the_others_are_listed(rig: IndexRig, wanted: Filter) -> None:
    jobs: list[Job] = [waiting(seq) for seq in range(1, 4)]
    if wanted.state is not None and wanted.state is not WAITING:
        jobs = [(ended(job, ago_us=job.seq) if wanted.state is DONE else changed(job, state=RUNNING)).job for job in jobs]
    rig.enq(*jobs)
    rig.change(changed(jobs[1], error="x"))
    assert rig.index.slots.at[rig.slot(jobs[1]) + AT]
    rig.spoil("changes", 1, jobs[1].id, bytes(16))
    rig.index.jobs.clear()

    assert seqs(rig, wanted) == [1, 3]
    assert list(rig.index.jobs.bad) == [rig.slot(jobs[1])]
