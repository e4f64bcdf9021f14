"""A commit that is refused in part: what memory believes of the refused changes, and which effects are true."""

from __future__ import annotations

import pytest
from engine_parts import asked
from engine_rig import EngineRig, uid

from givalia_core.engine.records import Close, Reply, Tell
from givalia_core.engine.refusals import may_be_said
from givalia_core.engine.steps import Arrived, Decided
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Commit, Hold
from givalia_core.store.memory import Memory


@pytest.mark.parametrize(
    ("seq", "effect", "is_said"),
    [
        (0, Reply(1, 5, []), True), (3, Reply(1, 5, []), False), (0, Reply(1, 6, []), False), (0, Tell(1, Kind.STOP, []), True),
        (3, Tell(1, Kind.STOP, []), False), (0, Close(1, "why"), True),
    ],
)  # fmt: skip
def test_what_depends_on_a_refused_job_or_answers_a_frame_that_is_decided_again_is_not_said(
    seq: int, effect: Reply | Tell | Close, is_said: bool
) -> None:
    assert may_be_said(seq, effect, {3}, {(1, 6)}) is is_said


def enq(number: int, key: str | None = None) -> m.Enq:
    return m.Enq(uid(number), "Mail", 0, key)


def decided(rig: EngineRig, *frames: tuple[int, m.Enq]) -> Decided:
    inputs = [asked(Kind.ENQ, message, request=request) for request, message in frames]
    return Arrived(rig.engine, inputs, rig.engine.now).read(rig.store).decide()


def test_a_refused_insert_is_decided_again_with_its_key_and_the_rest_is_answered() -> None:
    rig = EngineRig(Memory())
    turn = decided(rig, (1, enq(1, "k")), (2, enq(2)))

    effects = turn.committed(Commit((0,), 0, {}))

    assert [effect.request for effect in effects if isinstance(effect, Reply)] == [2]
    assert rig.engine.also_keys == {"k"}
    assert [each.request for each in rig.engine.again.inputs] == [1]
    assert rig.engine.desk.live == 1


def test_the_keys_of_refused_changes_are_read_until_a_commit_stands_whole() -> None:
    rig = EngineRig(Memory())
    decided(rig, (1, enq(1, "k"))).committed(Commit((0,), 0, {}))

    decided(rig, (2, enq(2))).committed(Commit((), 0, {}))

    assert rig.engine.also_keys == frozenset()


def test_a_held_insert_waits_aside_and_names_no_key_to_read() -> None:
    rig = EngineRig(Memory())
    turn = decided(rig, (1, enq(1, "k")))
    hold = Hold("key k", "held by a transaction", rig.engine.now.wall_us)

    effects = turn.committed(Commit((0,), 0, {0: hold}))

    assert [effect for effect in effects if isinstance(effect, Reply)] == []
    assert rig.engine.also_keys == frozenset()
    assert rig.engine.desk.aside.waiting
