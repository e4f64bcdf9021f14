"""Which ended jobs are forgotten, and how jobs whose records are damaged are set aside."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from index_rig import IndexRig, opened

from givalia_core.model import CANCELLED, DEAD, DONE, Job, JobState
from givalia_core.store.base import Retention
from givalia_core.store.sqlite.index.slots import SEQ, WHEN
from givalia_core.store.sqlite.index.upkeep import forgetting
from givalia_core.store.sqlite.index.upkeep.sweeper import Sweeper
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.sqlite.records import Forgotten
from givalia_core.store.suite import NOW, changed, ended, waiting

rig = pytest.fixture(opened)
ALL = 1_000_000
BY_TIME = Retention(NOW.timer_us, 0, ALL, ALL, 100)


def over(seq: int, forget_in_us: int, ago_us: int = 50, state: JobState = DONE) -> Job:
    return ended(waiting(seq), state, ago_us, forget_in_us).job


def seqs(rig: IndexRig, retention: Retention) -> list[int]:
    in_state = dict.fromkeys((DONE, CANCELLED, DEAD), 0)
    for (_, state), count in rig.counts.items():
        in_state[state] = in_state.get(state, 0) + count
    found = forgetting.to_forget(rig.index, retention, in_state)
    assert all(record == Forgotten(job.seq, job.version + 1, rig.slot(job)) and job.seq == record.seq for record, job in found)
    return [record.seq for record, _ in found]


def test_jobs_whose_time_is_over_are_forgotten_the_earliest_first(rig: IndexRig) -> None:
    rig.enq(over(1, 0), over(2, -9), over(3, 1), over(4, -5, state=CANCELLED), over(5, -1, state=DEAD), waiting(6))
    rig.enq(over(7, -9).changed(forget_at_us=None))  # It is never forgotten.

    assert seqs(rig, BY_TIME) == [2, 4, 1, 5]
    assert seqs(rig, BY_TIME._replace(limit=2)) == [2, 4]
    assert seqs(rig, BY_TIME._replace(now_us=NOW.timer_us - 10)) == []


def test_beyond_those_kept_jobs_are_forgotten_that_did_not_end_too_recently(rig: IndexRig) -> None:
    rig.enq(over(1, 40, ago_us=9), over(2, 20), over(3, 30), over(4, 10, state=CANCELLED), over(5, 50))
    rig.enq(over(6, 10, state=DEAD), over(7, 20, state=DEAD))
    keep = Retention(NOW.timer_us, NOW.timer_us - 10, 5, 2, 100)

    assert seqs(rig, keep) == []
    assert seqs(rig, keep._replace(keep_ended=3)) == [4, 2]
    assert seqs(rig, keep._replace(keep_ended=0)) == [4, 2, 3, 5]  # Not the first, which a client may still ask for.
    assert seqs(rig, keep._replace(keep_dead=1)) == [6]


def test_a_search_for_jobs_beyond_those_kept_ends_after_many_that_ended_too_recently(
    rig: IndexRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.enq(*(over(seq, 10 + seq, ago_us=0) for seq in range(1, 4)), over(4, 90))
    keep = Retention(NOW.timer_us, NOW.timer_us - 10, 0, 0, 100)
    assert seqs(rig, keep) == [4]

    monkeypatch.setattr(forgetting, "_PASSED_OVER", 3)

    assert seqs(rig, keep) == []


def test_a_job_whose_own_record_does_not_allow_it_is_not_forgotten(rig: IndexRig) -> None:
    live, later = waiting(1), over(2, 1_000)
    first, second = rig.enq(live, later)
    for slot, lane in ((first, rig.index.ended[DONE]), (second, rig.index.ended[DONE])):
        when = NOW.timer_us - 1
        words = rig.index.slots.at[slot : slot + 7].tolist()
        words[2:4] = lane.number, when
        rig.index.slots.write(slot, *words)
        rig.index.lanes.stand(slot, lane, when)
        with pytest.raises(Damaged, match="says otherwise"):
            seqs(rig, BY_TIME)
        rig.index.slots.put(slot, WHEN, 0)


def test_forgotten_jobs_are_no_longer_there_and_the_sweeper_knows_their_records(rig: IndexRig) -> None:
    jobs = [over(seq, -1) for seq in (1, 2)]
    slots = rig.enq(*jobs)
    sweeper = Sweeper(rig.index, rig.records, 0, 0)
    sweeper.is_behind = False
    gone = [Forgotten(job.seq, 3, slot) for job, slot in zip(jobs, slots, strict=True)]
    places = rig.write_changes(gone)

    forgetting.forget(rig.index, sweeper, gone, places)

    assert not any(map(rig.index.jobs.is_there, slots))
    assert [rig.index.slots.at[slot + WHEN] for slot in slots] == places
    assert sweeper.is_behind
    assert sweeper.written == [(places, [1, 2])]
    assert sorted(slot for slot, _ in sweeper.write().jobs) == slots
    assert [row.number for row in rig.records.bases(0)] == []


def test_bad_jobs_are_told_once_with_their_lane_and_dropped(rig: IndexRig) -> None:
    first, second = waiting(1, priority=3), waiting(2)
    rig.enq(first, second)
    slot, other = rig.slot(first), rig.slot(second)
    rig.change(changed(first, priority=4))
    rig.index.jobs.clear()
    place = rig.index.slots.place(slot)
    rig.spoil("changes", 1, first.id, bytes(16))
    assert rig.index.jobs.of([slot, other]) == {other: second}
    free = rig.index.slots.take()
    rig.index.slots.write(free, 0, 0, -1, 0, 0, 0, 0)
    rig.index.jobs.bad[free] = "set aside before"
    rig.index.jobs.by_slot[slot] = Mock(id=first.id)

    (bad,) = forgetting.take_bad(rig.index)

    rank = rig.index.lane_of(first.changed(priority=4)).rank
    assert (bad.slot, bad.place, bad.lane) == (slot, place, f"due False Mail any {rank}")
    assert "checksum" in bad.why
    assert forgetting.take_bad(rig.index) == []
    forgetting.drop_bad(rig.index, bad)
    assert rig.index.slots.at[slot + SEQ] == 0
    assert slot not in rig.index.jobs.by_slot
