"""The ways to file jobs that only a recovery and the forgetting of jobs need; each may be done twice."""

from __future__ import annotations

import pytest
from index_rig import IndexRig, opened

from givalia_core.model import DONE, RUNNING, Answered, Job
from givalia_core.store.sqlite.index.lane import START
from givalia_core.store.sqlite.index.slots import AT, LANE, PAST, SEQ
from givalia_core.store.sqlite.index.upkeep import filing
from givalia_core.store.sqlite.places import Place
from givalia_core.store.suite import changed, ended, request_id, waiting

rig = pytest.fixture(opened)


def slots_of(rig: IndexRig, job: Job) -> dict[str, list[int]]:
    names = rig.index.names
    return {
        "id": names.slots(names.of_id(job.id)),
        "key": names.slots(names.of_key(job.key)) if job.key else [],
        "requests": [slot for past in job.answered[1:] for slot in names.slots(names.of_request(past.request))],
    }


def a_job(seq: int) -> Job:
    job = waiting(seq, key=f"k{seq}", expires_at_us=5)
    return job.changed(answered=(*job.answered, Answered(request_id(seq), "ext", 1)))


def in_order(rig: IndexRig, job: Job) -> list[int]:
    return [slot for _, _, slot in rig.index.lanes.after(rig.index.lane_of(job), START, 9)]


def test_a_job_is_filed_under_its_due_or_when_it_is_forgotten_or_under_no_time(rig: IndexRig) -> None:
    job = waiting(1, due_at_us=77)
    over = ended(job, forget_in_us=5).job

    assert filing.when_of(rig.index.lane_of(job), job) == 77
    assert filing.when_of(rig.index.lane_of(over), over) == over.forget_at_us
    for other in (over.changed(forget_at_us=None), job.changed(state=RUNNING, forget_at_us=9)):
        assert filing.when_of(rig.index.lane_of(other), other) == 0


@pytest.mark.parametrize("is_over", [False, True])
def test_a_placed_job_is_found_by_its_id_alone_until_it_is_entered(rig: IndexRig, is_over: bool) -> None:
    job = ended(a_job(1)).job if is_over else changed(a_job(1), priority=1).job
    (base,) = rig.write_jobs([job])

    slot = filing.place(rig.index, job, base)
    assert slots_of(rig, job) == {"id": [slot], "key": [], "requests": []}
    assert (rig.index.slots.version(slot), rig.index.slots.at[slot + LANE]) == (0, -1)
    filing.note(rig.index, slot, 5, 1 << 16)
    assert rig.index.slots.version(slot) == 5
    assert rig.index.slots.place(slot) == Place(1, base, 1 << 16)
    assert in_order(rig, job) == []
    for _ in range(2):
        filing.enter(rig.index, slot, job)

        assert slots_of(rig, job) == {"id": [slot], "key": [slot], "requests": [slot]}
        assert in_order(rig, job) == [slot]
        assert (rig.index.slots.version(slot), rig.index.slots.at[slot + AT]) == (2, 1 << 16)
        assert rig.index.slots.is_past(slot) is is_over
    expiring = rig.index.lanes.after(rig.index.expiring[False], START, 9)
    newest = rig.index.lanes.after(rig.index.newest[DONE], START, 9)
    assert ([slot for _, _, slot in expiring], [slot for _, _, slot in newest]) == (([], [slot]) if is_over else ([slot], []))


def test_the_entries_that_were_in_memory_alone_are_filed_again_and_a_job_within_a_chain_gets_no_name(rig: IndexRig) -> None:
    live, older, newer = a_job(1), ended(waiting(2, key="a"), ago_us=2).job, ended(waiting(3, key="a"), ago_us=1).job
    first, second, third = rig.enq(live, older, newer)
    assert rig.kill() is not None
    assert in_order(rig, live) == []
    names = rig.index.names
    for hashed, slot in ((names.of_key("k1"), first), (names.of_request(request_id(1)), first), (names.of_key("a"), third)):
        names.remove(hashed, slot)  # As if there had been no room for it.

    for _ in range(2):
        for slot, job in ((first, live), (second, older), (third, newer)):
            filing.stand_again(rig.index, slot, job)

        assert in_order(rig, live) == [first]
        assert in_order(rig, older) == [second, third]
        assert slots_of(rig, live) == {"id": [first], "key": [first], "requests": [first]}
        assert slots_of(rig, newer)["key"] == [third]
        assert rig.index.chains.older(third) == second
    assert len(rig.index.lanes.after(rig.index.expiring[False], START, 9)) == 1
    assert [slot for _, _, slot in rig.index.lanes.after(rig.index.newest[DONE], START, 9)] == [third, second]


def test_only_a_live_job_with_a_key_is_named_again(rig: IndexRig) -> None:
    (slot,) = rig.enq(waiting(1))

    for job in (waiting(1), ended(waiting(1, key="a")).job):
        filing.name_again(rig.index, slot, job)
    assert slots_of(rig, waiting(1, key="a"))["key"] == []
    for _ in range(2):
        filing.name_again(rig.index, slot, waiting(1, key="a"))
        assert slots_of(rig, waiting(1, key="a"))["key"] == [slot]


def test_a_job_is_forgotten_in_steps_and_its_id_is_the_last_to_go(rig: IndexRig) -> None:
    older, job = ended(waiting(1, key="k2"), ago_us=9).job, ended(a_job(2)).job
    other, slot = rig.enq(older, job)
    place = rig.index.slots.place(slot)

    for _ in range(2):
        filing.forget(rig.index, slot, 3 << 16)
        assert not rig.index.jobs.is_there(slot)
        assert slot not in rig.index.jobs.by_slot
        assert rig.index.slots.place(slot) == place  # For the sweeper.
        assert in_order(rig, job) == [other]
        assert rig.index.lanes.after(rig.index.forgotten, START, 9) == [(3 << 16, 2, slot)]
    for _ in range(2):
        filing.unname(rig.index, {slot: job})
        assert slots_of(rig, job) == {"id": [slot], "key": [other], "requests": []}
        assert rig.index.slots.at[slot + PAST] == 0
    for dropped in (job, None):
        filing.drop(rig.index, slot, dropped)
        assert slots_of(rig, job)["id"] == []
        assert rig.index.slots.at[slot + SEQ] == 0
    assert rig.index.lanes.after(rig.index.forgotten, START, 9) == []


def test_a_live_job_that_is_unnamed_loses_its_key_too(rig: IndexRig) -> None:
    job = a_job(1)
    (slot,) = rig.enq(job)

    filing.unname(rig.index, {slot: job})

    assert slots_of(rig, job) == {"id": [slot], "key": [], "requests": []}


def test_a_slot_that_was_written_down_may_be_that_of_another_job_now(rig: IndexRig) -> None:
    first, second = rig.enq(waiting(1), waiting(2))

    assert filing.has_seq(rig.index, first, 1)
    assert not filing.has_seq(rig.index, first, 2)
    for number in (0, first + 1, second + 8):
        assert not filing.has_seq(rig.index, number, 0)
