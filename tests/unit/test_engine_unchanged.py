"""Answers of a batch that changed no job: recalled within the batch, from the store and from memory."""

from __future__ import annotations

import pytest
from engine_parts import NOW, found, job, new_batch, new_desk
from engine_rig import uid

from givalia_core.engine import remembered
from givalia_core.engine.batch import Batch
from givalia_core.engine.unchanged import recall, remember, standing
from givalia_core.protocol.answers import Cancelled
from givalia_core.protocol.messages import Kind
from givalia_core.store.shared import Kept

ANSWER = Cancelled("cancelled")


def test_an_answer_is_known_in_its_own_batch_and_whoever_is_told_of_it_depends_on_the_same_jobs() -> None:
    batch = new_batch(new_desk(), job(3))
    batch.see(job(3))
    assert remember(batch, uid(1), ANSWER, is_enq=False, since=0)
    batch.author = (4, 2)

    assert recall(batch, Kind.CANCEL, uid(1)) is ANSWER
    assert batch.touched[-2:] == [(-1, (4, 2)), (3, (4, 2))]
    assert recall(batch, Kind.CANCEL, uid(2)) is None


def test_only_jobs_that_the_command_saw_count() -> None:
    batch = new_batch(new_desk(), job(3), job(4))
    batch.see(job(3))
    since = len(batch.touched)
    batch.see(job(4))

    remember(batch, uid(1), ANSWER, is_enq=True, since=since)

    assert batch.unchanged[uid(1)] == (ANSWER, True, frozenset({4}), -1)


def test_answers_have_numbers_of_their_own_below_zero() -> None:
    batch = new_batch(new_desk())
    for number in (1, 2, 3):
        remember(batch, uid(number), ANSWER, is_enq=False, since=0)

    assert [each.number for each in batch.unchanged.values()] == [-1, -2, -3]


def test_what_the_store_has_kept_comes_before_memory() -> None:
    desk = new_desk()
    desk.remembered.add([Kept(uid(1), remembered.pack(Cancelled("stop_requested")), is_enq=False)], 0)
    kept = {uid(1): remembered.pack(ANSWER)}

    assert recall(Batch(desk, found(answers=kept), NOW), Kind.CANCEL, uid(1)) == ANSWER
    assert recall(Batch(desk, found(), NOW), Kind.CANCEL, uid(1)) == Cancelled("stop_requested")


def test_without_room_nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "BYTES_MAX", 0)
    batch = new_batch(new_desk())

    assert not remember(batch, uid(1), ANSWER, is_enq=False, since=0)
    assert batch.unchanged == {}


@pytest.mark.parametrize(("refused", "standing_ids"), [(set(), {1, 2}), ({3}, {2}), ({-2}, {1}), ({3, -2}, set())])
def test_answers_that_depend_on_refused_changes_do_not_stand(refused: set[int], standing_ids: set[int]) -> None:
    batch = new_batch(new_desk(), job(3))
    batch.see(job(3))
    remember(batch, uid(1), ANSWER, is_enq=False, since=0)
    remember(batch, uid(2), ANSWER, is_enq=True, since=len(batch.touched))

    assert {each.request for each in standing(batch, refused)} == {uid(number) for number in standing_ids}
