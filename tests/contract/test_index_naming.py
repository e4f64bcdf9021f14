"""Changes of names: a key or a request that a job gets or loses."""

from __future__ import annotations

import pytest
from index_rig import IndexRig, Killed, opened

from givalia_core.model import Answered, Job
from givalia_core.store.sqlite.index.naming import Naming
from givalia_core.store.sqlite.index.slots import PAST
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.suite import ended, request_id, waiting

rig = pytest.fixture(opened)


def naming_of(rig: IndexRig) -> Naming:
    index = rig.index
    return Naming(index.slots, index.names, index.chains, index.jobs)


def with_key(rig: IndexRig, key: str) -> list[int]:
    return sorted(rig.index.names.slots(rig.index.names.of_key(key)))


def with_request(rig: IndexRig, number: int) -> list[int]:
    return rig.index.names.slots(rig.index.names.of_request(request_id(number)))


def answered(job: Job, *numbers: int) -> Job:
    return job.changed(answered=(*job.answered[:1], *(Answered(request_id(number), "ext", 1) for number in numbers)))


def test_a_job_is_alone_with_its_key_until_another_one_gets_it(rig: IndexRig) -> None:
    naming = naming_of(rig)
    first, second = rig.enq(waiting(1), waiting(2))

    assert naming.add_key(first, "a")
    rig.index.jobs.by_slot[first].is_alone = True
    assert not naming.add_key(second, "a")

    assert not rig.index.jobs.by_slot[first].is_alone
    assert with_key(rig, "a") == [first, second]
    assert not naming.add_key(second, "a")  # As after a kill: once is enough.
    assert with_key(rig, "a") == [first, second]


def test_a_job_that_has_ended_when_it_comes_in_is_in_its_chain_however_often_it_is_named(rig: IndexRig) -> None:
    naming, hashed = naming_of(rig), rig.index.names.of_key("a")
    jobs = [ended(waiting(seq), ago_us=ago_us).job for seq, ago_us in ((1, 10), (2, 30), (3, 20))]
    slots = rig.enq(*jobs)
    named = [job.changed(key="a") for job in jobs]
    for slot, job in zip(slots, named, strict=True):
        rig.index.jobs.keep(slot, job)
    rig.index.jobs.by_slot[slots[0]].is_alone = True

    for _ in range(2):
        for slot, job in zip(slots, named, strict=True):
            naming.name_ended(slot, job, hashed)
        chains = rig.index.chains
        assert with_key(rig, "a") == [slots[0]]
        assert [chains.older(slots[0]), chains.older(slots[2]), chains.older(slots[1])] == [slots[2], slots[1], 0]
    assert not rig.index.jobs.by_slot[slots[0]].is_alone


def test_a_job_with_another_key_loses_the_old_one_and_an_ended_one_shares_the_new_one(rig: IndexRig) -> None:
    naming = naming_of(rig)
    was, holder = waiting(1, key="a"), waiting(2, key="b")
    slot, other = rig.enq(was, holder)
    rig.index.jobs.by_slot[other].is_alone = True

    naming.rename(slot, was, was.changed(key="b"))
    assert with_key(rig, "a") == []
    assert rig.index.jobs.by_slot[other].is_alone  # `add_key` sees to the key of a live job.
    naming.rename(slot, was, ended(was).job.changed(key="b"))
    assert not rig.index.jobs.by_slot[other].is_alone
    naming.rename(other, holder, holder.changed(key=None))
    assert with_key(rig, "b") == []


def test_a_job_whose_naming_a_kill_cut_short_is_named_again(rig: IndexRig, monkeypatch: pytest.MonkeyPatch) -> None:
    naming, hashed = naming_of(rig), rig.index.names.of_key("a")
    older, newer, middle = (ended(waiting(seq, key="a"), ago_us=ago_us).job for seq, ago_us in ((1, 30), (2, 10), (3, 20)))
    first, last = rig.enq(older, newer)
    (slot,) = rig.enq(middle.changed(key=None))
    rig.index.jobs.keep(slot, middle)
    real, done = rig.index.slots.write, 0

    def write(*words: int) -> None:
        nonlocal done
        if done == 2:
            raise Killed
        done += 1
        real(*words)

    with monkeypatch.context() as patched:
        patched.setattr(rig.index.slots, "write", write)
        with pytest.raises(Killed):
            naming.name_ended(slot, middle, hashed)
    with pytest.raises(Damaged):
        rig.index.chains.older(last)  # Its older neighbour knows the new one already.

    naming.name_ended(slot, middle, hashed)

    assert with_key(rig, "a") == [last]
    assert [rig.index.chains.older(each) for each in (last, slot, first)] == [slot, first, 0]


@pytest.mark.parametrize("was_ended", [True, False])
def test_a_job_leaves_the_chain_of_the_key_it_had_or_after_a_kill_of_the_one_it_gets(rig: IndexRig, was_ended: bool) -> None:
    jobs = [ended(waiting(seq, key="a"), ago_us=-seq).job for seq in (1, 2)]
    first, second = rig.enq(*jobs)
    assert with_key(rig, "a") == [second]
    was = jobs[1] if was_ended else waiting(2, key="other")
    job = waiting(2, key="other") if was_ended else jobs[1]

    naming_of(rig).unchain(second, was, job)

    assert with_key(rig, "a") == [first]
    assert rig.index.slots.at[second + PAST] == 0
    assert rig.index.chains.is_head(first)
    assert rig.index.chains.older(first) == 0


def test_a_job_is_found_by_the_requests_that_it_remembers_and_by_no_other(rig: IndexRig) -> None:
    naming, job = naming_of(rig), waiting(1)
    (slot,) = rig.enq(job)
    before, after = answered(job, 1, 2), answered(job, 2, 3)

    naming.add_requests(slot, before)
    assert [with_request(rig, number) for number in (1, 2, 3)] == [[slot], [slot], []]
    for _ in range(2):
        naming.change_requests(slot, before, after)
        assert [with_request(rig, number) for number in (1, 2, 3)] == [[], [slot], [slot]]
    # The id of the job is that of its enq, by which it is found anyway.
    naming.change_requests(slot, after.changed(answered=()), job)
    assert rig.index.names.slots(rig.index.names.of_request(job.id)) == []
