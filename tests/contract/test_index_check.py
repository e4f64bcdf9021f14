"""The check: a sound store has no fault, and each fault is told in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from index_rig import IndexRig, opened

from givalia_core.model import RUNNING, WAITING, Answered, Job
from givalia_core.store.sqlite.index import sealing
from givalia_core.store.sqlite.index.slots import ENDED_AT, LANE, PAST, WHEN
from givalia_core.store.sqlite.index.upkeep import check, filing
from givalia_core.store.sqlite.index.upkeep.check import Check
from givalia_core.store.sqlite.records import Forgotten
from givalia_core.store.suite import changed, ended, request_id, waiting

pytestmark = pytest.mark.usefixtures("small_index")
rig = pytest.fixture(opened)

LIVE = waiting(1, key="a")
REMEMBERS = waiting(2).changed(answered=(Answered(request_id(2), "ext", 1),))
OLDER, NEWER = (ended(waiting(seq, key="b"), ago_us=-seq).job for seq in (3, 4))
MOVED = waiting(5)


@pytest.fixture
def lived(rig: IndexRig) -> IndexRig:
    rig.enq(*(waiting(seq, due_at_us=10_000 - seq, module="Fax") for seq in range(10, 60)))
    rig.enq(LIVE, REMEMBERS, OLDER, NEWER, MOVED)
    rig.change(changed(MOVED, state=RUNNING))
    return rig


def faults(rig: IndexRig) -> list[str]:
    return Check(rig.database, rig.records, rig.index, rig.counts).run()


def put(job: Job, word: int, value: int) -> Callable[[IndexRig], None]:
    return lambda rig: rig.index.slots.put(rig.slot(job), word, value)


def unnamed(job: Job, name: Callable[[IndexRig], int]) -> Callable[[IndexRig], None]:
    return lambda rig: rig.index.names.remove(name(rig), rig.slot(job))


def forgotten_in_the_index(rig: IndexRig) -> None:
    rig.index.slots.put(rig.slot(LIVE), LANE, rig.index.forgotten.number)


def forgotten_in_the_records(rig: IndexRig) -> None:
    rig.write_changes([Forgotten(1, 2, 0)])


def changed_in_the_records(rig: IndexRig) -> None:
    rig.write_changes([changed(LIVE, priority=1).job])


def without_a_record(rig: IndexRig) -> None:
    rig.records.drop_jobs([(1, [1])])


def bad_record(rig: IndexRig) -> None:
    rig.spoil("jobs", 1, LIVE.id, bytes(16))


def bad_change(rig: IndexRig) -> None:
    rig.spoil("changes", 1, MOVED.id, bytes(16))


def not_in_its_lane(rig: IndexRig) -> None:
    lane = rig.index.lane_of(LIVE)
    lane.loose, lane.front, lane.bound = [], [], None


def not_among_the_newest(rig: IndexRig) -> None:
    lane = rig.index.newest[NEWER.state]
    lane.loose, lane.front, lane.bound = [], [], None


def leads_nowhere(rig: IndexRig) -> None:
    rig.index.names.add(7 << 54, rig.index.slots.end + 8)


def changed_slot(rig: IndexRig) -> None:
    rig.index.slots.at[rig.slot(LIVE) + WHEN] ^= 1


def changed_name(rig: IndexRig) -> None:
    place = rig.index.names.places[rig.index.names.of_key("a") >> 54] >> 6
    rig.index.names.words.at[place + 1] ^= 8


def changed_run(rig: IndexRig) -> None:
    rig.index.lanes.runs._words.at[rig.index.lanes.runs.all()[0].place] ^= 1


def without_a_table(rig: IndexRig) -> None:
    rig.database.execute("DROP TABLE changes")


def miscounted(rig: IndexRig) -> None:
    rig.counts["Mail", WAITING] += 1


@pytest.mark.parametrize("is_sealed", [False, True])
def test_a_sound_store_has_no_fault(lived: IndexRig, is_sealed: bool) -> None:
    gone = ended(waiting(70, key="b"), forget_in_us=-1).job
    lived.enq(gone)
    (place,) = lived.write_changes([Forgotten(70, 3, lived.slot(gone))])
    filing.forget(lived.index, lived.slot(gone), place)
    lived.counts[gone.module, gone.state] -= 1
    if is_sealed:
        sealing.seal(lived.index.lanes, lived.last_number, lived.last_seq)

    assert faults(lived) == []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (unnamed(LIVE, lambda rig: rig.index.names.of_id(LIVE.id)), "job 1 is not found by its id"),
        (unnamed(LIVE, lambda rig: rig.index.names.of_key("a")), "job 1 is not found by its key"),
        (unnamed(NEWER, lambda rig: rig.index.names.of_key("b")), "job 4 is not found by its key"),
        (put(NEWER, PAST, 1), "job 3 is not found by its key"),
        (unnamed(REMEMBERS, lambda rig: rig.index.names.of_request(request_id(2))), "job 2 is not found by a request"),
        (put(LIVE, WHEN, 5), "job 1 is not filed where it belongs"),
        (put(NEWER, ENDED_AT, 5), "job 4 is not filed where it belongs"),
        (forgotten_in_the_index, "job 1 is forgotten in the index alone"),
        (forgotten_in_the_records, "job 1 is forgotten, and the index has it"),
        (changed_in_the_records, "the index has job 1 as it was at another time"),
        (without_a_record, "the index has job 1, of which there is no record"),
        (bad_record, "row 1 of jobs, record 0: a record does not match its checksum"),
        (bad_change, "row 1 of changes, record 0: a record does not match its checksum"),
        (not_in_its_lane, "job 1 is not found in the order of its lane"),
        (not_among_the_newest, "job 4 is not found among the jobs that ended last"),
        (leads_nowhere, "shard 7 of the names leads to slots that do not exist"),
        (changed_slot, "the index is damaged: slot "),
        (changed_name, "the index is damaged: shard"),
        (changed_run, "the index is damaged: the run at"),
        (without_a_table, "no such table: changes"),
        (miscounted, "the stored counts"),
    ],
)
def test_each_fault_is_told(lived: IndexRig, damage: Callable[[IndexRig], None], told: str) -> None:
    damage(lived)

    lines = faults(lived)

    assert [line for line in lines if line.startswith(told)] != []


def test_a_lane_with_another_number_of_jobs_than_are_filed_there_is_told(lived: IndexRig) -> None:
    slot = lived.index.slots.take()
    lived.index.slots.write(slot, 99, 0, lived.index.running.number, 0, 0, 0, 0)

    assert f"lane {lived.index.running.key} has 2 jobs, and 1 are found in its order" in faults(lived)


def test_faults_beyond_a_limit_are_summed_up(lived: IndexRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_LINES_MOST", 3)
    for seq in range(10, 20):
        job = waiting(seq)
        lived.index.names.remove(lived.index.names.of_id(job.id), lived.slot(job))

    lines = faults(lived)

    assert len(lines) == 4
    assert lines[-1] == "there is more"
    assert lines[:3] == [f"job {seq} is not found by its id" for seq in (10, 11, 12)]
