"""Reads of the index beside the path of a job, on both clocks, in memory and in the files."""

from __future__ import annotations

import pytest
from index_rig import IndexRig, opened

from givalia_core.model import DEAD, DONE, RUNNING, WAITING, Job
from givalia_core.store.base import VARIANTS_MAX, Near, Ready, Route, Span, Timer
from givalia_core.store.sqlite.index import questions, sealing
from givalia_core.store.sqlite.index.chains import LAST
from givalia_core.store.sqlite.index.slots import PAST
from givalia_core.store.sqlite.index.upkeep import filing
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.suite import NOW, ROUTE, changed, ended, job_id, waiting

pytestmark = pytest.mark.usefixtures("small_index")
rig = pytest.fixture(opened)
TIMER, WALL = NOW.timer_us, NOW.wall_us


def forget(rig: IndexRig, job: Job) -> None:
    slot = rig.slot(job)
    filing.forget(rig.index, slot, 1 << 16)


def test_the_job_that_ended_last_with_a_key_is_found_and_none_that_is_forgotten(rig: IndexRig) -> None:
    jobs = [ended(waiting(seq, key="a"), ago_us=ago_us).job for seq, ago_us in ((1, 30), (2, 10), (3, 20))]
    rig.enq(*jobs, waiting(4, key="a"), waiting(5, key="live"))

    assert questions.ended_last(rig.index, ["a", "live", "none"]) == {"a": jobs[1]}
    forget(rig, jobs[1])
    assert questions.ended_last(rig.index, ["a"]) == {"a": jobs[2]}
    forget(rig, jobs[2])
    forget(rig, jobs[0])
    assert questions.ended_last(rig.index, ["a"]) == {}


def test_a_chain_that_goes_round_in_a_circle_is_damage(rig: IndexRig) -> None:
    jobs = [ended(waiting(seq, key="a"), ago_us=-seq).job for seq in (1, 2)]
    first, second = rig.enq(*jobs)
    for job in jobs:
        forget(rig, job)
    rig.index.slots.put(first, PAST, second >> 3 << 34 | second)
    rig.index.slots.put(second, PAST, first >> 3 << 34 | first)

    with pytest.raises(Damaged, match="circle"):
        questions.ended_last(rig.index, ["a"])
    rig.index.slots.put(first, PAST, LAST)
    with pytest.raises(Damaged, match="neighbours"):
        questions.ended_last(rig.index, ["a"])


def test_a_key_is_held_by_its_live_job_and_an_id_by_any_job_that_is_there(rig: IndexRig) -> None:
    live, over, other = waiting(2, key="a"), ended(waiting(1, key="a")).job, waiting(3, key="b")
    rig.enq(over, live, other)
    assert (questions.holder(rig.index, "a"), questions.holder(rig.index, "none")) == (2, None)
    assert questions.has_id(rig.index, job_id(1))
    assert not questions.has_id(rig.index, job_id(9))

    rig.change(ended(live))
    forget(rig, over)

    assert questions.holder(rig.index, "a") is None
    assert not questions.has_id(rig.index, job_id(1))
    # A name is only a hint: the job is compared.
    rig.index.names.add(rig.index.names.of_key("c"), rig.slot(other))
    rig.index.names.add(rig.index.names.of_id(job_id(9)), rig.slot(other))
    assert questions.holder(rig.index, "c") is None
    assert not questions.has_id(rig.index, job_id(9))


def test_the_variants_of_a_route_are_those_on_which_jobs_wait_in_the_order_of_their_texts(rig: IndexRig) -> None:
    some = [waiting(1, specifier=">=2"), waiting(2, specifier="<2"), waiting(3, specifier="==1")]
    others = [waiting(4), waiting(5, target_worker="any2", specifier=">=2"), waiting(6, module="Fax", specifier=">=3")]
    rig.enq(*some, *others)
    rig.change(changed(some[2], state=RUNNING))

    assert questions.variants(rig.index, ROUTE) == [Route("Mail", "any <2"), Route("Mail", "any >=2")]
    assert questions.variants(rig.index, Route("None", "any")) == []
    rig.enq(*(waiting(seq, specifier=f">={seq}") for seq in range(100, 102 + VARIANTS_MAX)))
    assert len(questions.variants(rig.index, ROUTE)) == VARIANTS_MAX


@pytest.mark.parametrize("is_sealed", [False, True])
def test_the_next_dues_of_a_route_are_told_on_the_timer_clock_with_whether_there_are_more(
    rig: IndexRig, is_sealed: bool
) -> None:
    dues = ((1, 30, 0), (2, 10, 5), (3, 20, 0), (4, 50, 0))
    rig.enq(*(waiting(seq, due_at_us=TIMER + ahead, priority=priority) for seq, ahead, priority in dues))
    rig.enq(waiting(5, due_at_us=WALL + 25, on_wall=True), waiting(6, module="Fax", due_at_us=TIMER - 1))
    if is_sealed:
        sealing.seal(rig.index.lanes, 0, 0)
    timers = [Timer(TIMER + ahead, seq) for ahead, seq in ((10, 2), (20, 3), (25, 5), (30, 1), (50, 4))]

    assert questions.near(rig.index, Span(ROUTE, 4), NOW) == Near(False, timers[:4], True)
    assert questions.near(rig.index, Span(ROUTE, 5), NOW) == Near(False, timers, False)
    assert questions.near(rig.index, Span(Route("Fax", "any"), 5), NOW) == Near(True, [], False)
    assert questions.near(rig.index, Span(Route("None", "any"), 5), NOW) == Near(False, [], False)
    at_due = NOW._replace(timer_us=TIMER + 20, wall_us=WALL + 20)
    assert questions.near(rig.index, Span(ROUTE, 5), at_due) == Near(True, timers[2:], False)


def test_ready_jobs_are_counted_up_to_a_limit_wherever_they_are_and_each_once(rig: IndexRig) -> None:
    jobs = [waiting(seq, due_at_us=TIMER - 1_000 + seq * 7 % 50) for seq in range(1, 61)]
    for first in range(0, 60, 15):
        rig.enq(*jobs[first : first + 15])
    rig.enq(waiting(99, due_at_us=WALL - 2_000, on_wall=True), waiting(98, due_at_us=TIMER + 1))
    rig.change(*(changed(job, state=RUNNING) for job in jobs[:20]))
    rig.change(*(changed(job, priority=3) for job in jobs[50:]))
    lane = rig.index.lane_of(jobs[20])
    for job in jobs[20:25]:  # As after a kill.
        rig.index.lanes.stand(rig.slot(job), lane, job.due_at_us)
    route = Ready(ROUTE, 41, TIMER - 2_000)

    assert len(rig.index.lanes.runs) > 2
    assert questions.ready_on(rig.index, ROUTE, NOW, 1_000) == route
    assert questions.ready_on(rig.index, ROUTE, NOW, 7) == route._replace(jobs=7)
    assert questions.ready_on(rig.index, Route("None", "any"), NOW, 7) == Ready(Route("None", "any"), 0, None)
    until = TIMER - 1_000 + 25
    assert questions.count_until(rig.index.lanes, lane, until, 100) == sum(job.due_at_us <= until for job in jobs[20:50])
    assert questions.count_until(rig.index.lanes, lane, lane.low - 1, 100) == 0


def test_running_jobs_are_all_those_that_run(rig: IndexRig) -> None:
    jobs = [waiting(seq) for seq in range(1, 51)]
    rig.enq(*jobs)
    lent = [changed(job, state=RUNNING) for job in jobs[5:45]]
    rig.change(*lent)
    rig.change(changed(lent[3].job, state=WAITING))

    assert list(questions.running(rig.index)) == [job for _, job in lent[:3] + lent[4:]]


def test_expired_jobs_are_those_that_still_wait_past_their_time_on_its_own_clock(rig: IndexRig) -> None:
    past = [waiting(seq, expires_at_us=TIMER - seq) for seq in range(1, 6)]
    on_wall = [waiting(seq, on_wall=True, expires_at_us=expires_us) for seq, expires_us in ((6, WALL), (7, WALL + 1))]
    ahead = waiting(8, expires_at_us=TIMER + 1)
    rig.enq(*past, *on_wall, ahead)
    rig.change(changed(past[0], expires_at_us=TIMER + 50), changed(past[1], state=RUNNING), ended(past[2]))

    assert questions.expired(rig.index, NOW, 10) == [past[4], past[3], on_wall[0]]
    assert questions.expired(rig.index, NOW, 1) == [past[4]]
    later = NOW._replace(timer_us=TIMER + 50)
    assert [job.seq for job in questions.expired(rig.index, later, 10)] == [5, 4, 8, 1, 6]


def test_the_jobs_of_several_lanes_come_in_one_order_and_those_without_records_not_at_all(rig: IndexRig) -> None:
    jobs = [ended(waiting(seq), DONE if seq % 2 else DEAD, forget_in_us=seq * 7 % 80).job for seq in range(1, 80)]
    rig.enq(*jobs)
    rig.records.drop_jobs([(1, [5])])
    rig.index.jobs.clear()

    found = list(questions.in_order(rig.index, [rig.index.ended[DONE], rig.index.ended[DEAD]]))

    left = sorted(jobs[:4] + jobs[5:], key=lambda job: job.forget_at_us or 0)
    assert [job for _, job in found] == left
    assert [entry for entry, _ in found] == [(job.forget_at_us, job.seq, rig.slot(job)) for job in left]
