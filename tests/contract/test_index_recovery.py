"""Recovery: the index is brought in step with the records, whatever a kill or damage left of it."""

from __future__ import annotations

from collections import Counter

import pytest
from index_rig import BOOT, IndexRig, Killed, opened

from givalia_core.errors import StoreCorrupt
from givalia_core.model import DONE, RUNNING, WAITING, Job
from givalia_core.store.base import Found, Wanted
from givalia_core.store.sqlite.index import sealing
from givalia_core.store.sqlite.index.lane import START
from givalia_core.store.sqlite.index.names import NameTable
from givalia_core.store.sqlite.index.opening import Sealed, remake
from givalia_core.store.sqlite.index.slots import FIRST, SEQ, WHEN, WIDTH
from givalia_core.store.sqlite.index.upkeep.check import Check
from givalia_core.store.sqlite.index.upkeep.recovery import Rebuild, replay
from givalia_core.store.sqlite.places import Damaged, Place
from givalia_core.store.sqlite.records import Forgotten
from givalia_core.store.suite import changed, ended, job_id, waiting

pytestmark = pytest.mark.usefixtures("small_index")
rig = pytest.fixture(opened)


def rebuilt(rig: IndexRig) -> tuple[Counter[tuple[str, object]], list[tuple[Place, str]]]:
    bad: list[tuple[Place, str]] = []
    counts = Rebuild(rig.index, rig.records, lambda place, why: bad.append((place, why))).run(lambda: remake(rig.index, BOOT))
    return counts, bad  # type: ignore[return-value]


def faults(rig: IndexRig, counts: dict[tuple[str, object], int]) -> list[str]:
    return Check(rig.database, rig.records, rig.index, counts).run()  # type: ignore[arg-type]


def found(rig: IndexRig, *seqs: int) -> list[Job]:
    answer = Found({}, {}, {}, {}, {}, {})
    rig.index.find(Wanted(ids=frozenset(map(job_id, seqs))), answer, {})
    return sorted(answer.ids.values(), key=lambda job: job.seq)


def test_a_rebuilt_index_has_the_newest_record_of_each_job_and_none_that_is_forgotten(rig: IndexRig) -> None:
    jobs = [waiting(seq, key=f"k{seq % 3}", params=b"p") for seq in range(1, 21)]
    rig.write_jobs(jobs)
    new = [changed(job, state=RUNNING).job for job in jobs[:4]]
    over = ended(new[0]).job
    rig.write_changes([*new, over, Forgotten(6, 2, 640), changed(waiting(99)).job])
    rig.write_changes([changed(jobs[6], priority=3).job, new[1]])  # The later one says less.

    counts, bad = rebuilt(rig)

    assert bad == []
    assert counts == {("Mail", WAITING): 15, ("Mail", RUNNING): 3, ("Mail", DONE): 1}
    assert faults(rig, counts) == []
    expected = [over, *new[1:], jobs[4], changed(jobs[6], priority=3).job, *jobs[7:]]
    assert found(rig, *range(1, 100)) == expected
    assert rig.records.have_bases([5, 6, 7]) == {5, 7}  # What names a slot of the lost index is gone.


def test_jobs_with_bad_records_are_left_out_and_told_with_their_places(rig: IndexRig) -> None:
    jobs = [waiting(seq, key=f"key {seq}", params=b"params %d" % seq) for seq in range(1, 6)]
    bases = rig.write_jobs(jobs)
    places = rig.write_changes([changed(job, error=f"error {job.seq}").job for job in jobs[2:4]])
    rig.spoil("jobs", 1, b"params 1", b"params X")
    rig.spoil("changes", 1, b"error 3", b"error X")

    counts, bad = rebuilt(rig)

    assert [place for place, _ in bad] == [Place(1, bases[0] & ~0xFF, 0), Place(3, bases[2], places[0])]
    assert "checksum" in bad[0][1]
    assert [job.seq for job in found(rig, *range(1, 6))] == [2, 4, 5]
    assert counts == {("Mail", WAITING): 3}
    assert rig.index.names.slots(rig.index.names.of_key("key 3")) == []


def test_whose_a_record_is_that_cannot_be_read_at_all_is_known_from_the_old_index(rig: IndexRig) -> None:
    jobs = [waiting(seq) for seq in range(1, 4)]
    rig.enq(*jobs)
    rig.change(changed(jobs[1], priority=1))
    rig.change(changed(jobs[2], priority=1))
    rig.database.execute("UPDATE changes SET records = x'c1' WHERE number = 1")
    place = rig.index.slots.place(rig.slot(jobs[1]))

    _, bad = rebuilt(rig)

    assert [each for each, _ in bad] == [Place(0, 0, 1 << 16), place]
    assert [job.seq for job in found(rig, 1, 2, 3)] == [1, 3]  # And not as it was before a change that is lost.


@pytest.mark.parametrize("is_sealed", [False, True])
@pytest.mark.parametrize("is_filed", [False, True])
def test_after_a_kill_what_changed_since_the_last_seal_is_filed_once(rig: IndexRig, is_sealed: bool, is_filed: bool) -> None:
    jobs = [waiting(seq, key=f"k{seq}") for seq in range(1, 6)]
    rig.enq(*jobs)
    if is_sealed:
        sealing.seal(rig.index.lanes, 0, 5)
    lent, over = changed(jobs[0], state=RUNNING), ended(jobs[1], forget_in_us=-1)
    new = waiting(6, key="k6")
    if is_filed:
        rig.enq(new)
        rig.change(lent, over)
    else:  # The records alone.
        rig.write_jobs([new])
        rig.write_changes([lent.job, over.job])
        rig.commits += 1
    rig.write_changes([Forgotten(3, 2, rig.slot(jobs[2])), Forgotten(4, 2, rig.slot(jobs[4])), Forgotten(5, 2, 7)])

    for _ in range(2):
        sealed = rig.kill()
        assert sealed == Sealed(0, 5 if is_sealed else 0)
        replay(rig.index, rig.records, sealed)

        assert found(rig, *range(1, 7)) == [lent.job, over.job, jobs[3], jobs[4], new]
        lanes = rig.index.lanes
        assert [seq for _, seq, _ in lanes.walk(rig.index.lane_of(new))] == [4, 5, 6]
        assert [seq for _, seq, _ in lanes.walk(rig.index.running)] == [1]
        assert [seq for _, seq, _ in lanes.walk(rig.index.ended[DONE])] == [2]
        assert [seq for _, seq, _ in lanes.walk(rig.index.newest[DONE])] == [2]
        assert [seq for _, seq, _ in lanes.walk(rig.index.forgotten)] == [3]
        assert [len(rig.index.names.slots(rig.index.names.of_key(f"k{seq}"))) for seq in (1, 2, 4, 5, 6)] == [1] * 5


def test_a_job_that_a_kill_kept_from_being_named_has_one_slot_in_the_end(
    rig: IndexRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.enq(waiting(1))
    job = waiting(2, key="a")
    (base,) = rig.write_jobs([job])

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(NameTable, "add", killed)
        with pytest.raises(Killed):
            rig.index.insert(job, base, rig.index.lane_of(job))
    pending = rig.index.slots.pending
    assert rig.index.slots.at[pending + SEQ] == 2
    rig.commits += 1
    sealed = rig.kill()
    assert sealed is not None

    replay(rig.index, rig.records, sealed)

    at = rig.index.slots.at
    assert [slot for slot in range(FIRST, rig.index.slots.end, WIDTH) if at[slot + SEQ] == 2] == [rig.slot(job)]
    assert found(rig, 2) == [job]


def test_the_slot_of_a_job_whose_records_were_never_written_is_freed(rig: IndexRig) -> None:
    slot = rig.index.slots.take()
    rig.index.slots.write(slot, 9, 0, 0, 0, 0, 0, 0)
    sealed = rig.kill()
    assert sealed is not None

    replay(rig.index, rig.records, sealed)

    assert rig.index.slots.at[slot + SEQ] == 0


def test_a_replay_meets_damage_and_does_not_pass_it_over(rig: IndexRig) -> None:
    jobs = [waiting(seq, params=b"params %d" % seq) for seq in (1, 2)]
    slots = rig.enq(*jobs)
    rig.index.slots.at[slots[0] + WHEN] += 1
    sealed = rig.kill()
    assert sealed is not None
    with pytest.raises(Damaged):
        replay(rig.index, rig.records, sealed)
    remake(rig.index, BOOT)
    rig.spoil("jobs", 1, b"params 2", b"params X")

    with pytest.raises(StoreCorrupt):
        replay(rig.index, rig.records, Sealed(0, 0))


def test_a_large_rebuild_seals_what_it_has_filed(rig: IndexRig) -> None:
    jobs = [waiting(seq, due_at_us=1_000 - seq) for seq in range(1, 201)]
    rig.write_jobs(jobs)
    rig.write_changes([changed(job, priority=2).job for job in jobs[100:]])

    counts, _ = rebuilt(rig)

    assert len(rig.index.lanes.runs) > 2
    assert (rig.index.lanes.runs.sealed_at, rig.index.lanes.runs.sealed_seq) == (0, 0)  # A kill now begins at the first record.
    assert faults(rig, counts) == []
    lane = rig.index.lane_of(jobs[0])
    assert [seq for _, seq, _ in rig.index.lanes.after(lane, START, 999)] == list(range(100, 0, -1))
