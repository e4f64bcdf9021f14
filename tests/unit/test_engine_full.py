"""A turn whose commit met a full disk: what is stored all the same, what is refused, and what is kept."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import SharedMemory, job, new_batch, new_desk
from engine_rig import EngineRig, items_of, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import full
from givalia_core.engine.again import STUCK_US
from givalia_core.engine.answers import VERBS
from givalia_core.engine.records import Close, Effect, Input, Reply, Tell
from givalia_core.engine.steps import NOTHING_UNKEPT, Arrived, Decided
from givalia_core.errors import NotFound, StoreAway, StoreFailed, StoreFull
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import answer_error
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Commit
from givalia_core.store.memory import Memory
from givalia_core.store.shared import Keeping


class Full(Memory):
    """A store whose next commits meet a full disk."""

    refuses = 0

    def commit(self, *given: Any) -> Commit:
        if self.refuses:
            self.refuses -= 1
            raise StoreFull("no room")
        return super().commit(*given)


class FullRig(EngineRig):
    """A rig on whose disk there is no room for a turn."""

    def __init__(self) -> None:
        self.full = Full()
        super().__init__(self.full)

    def decided(self, *inputs: Input) -> Decided:
        arrived = Arrived(self.engine, inputs, self.now)
        arrived.fill(self.store.upcoming(arrived.spans, self.now))
        return arrived.read(self.store).decide()

    def meet(self, *inputs: Input, reserve: bool = True) -> list[Effect]:
        """A turn of these inputs that meets the full disk, whose reserve may be used up, too."""
        refused = self.decided(*inputs)
        self.full.refuses = 1 if reserve else 2
        with pytest.raises(StoreFull):
            refused.store(self.store, self.timer)
        return full.without_new_jobs(refused, self.store, self.timer)


@pytest.fixture
def rig() -> FullRig:
    return FullRig()


def replies(effects: list[Effect]) -> dict[int, list[str]]:
    """For each request the codes of its answers: OK or an error's."""
    return {
        effect.request: ["OK" if (error := answer_error(fields)) is None else error.code for fields, _ in items_of(effect)]
        for effect in effects
        if isinstance(effect, Reply)
    }


def enq(rig: FullRig, number: int) -> Asked:
    return rig.frame(Kind.ENQ, m.Enq(uid(number), "Mail"))


def succeed(rig: FullRig) -> Asked:
    """The report of job 1, which runs."""
    worker = rig.worker()
    rig.enq(id=uid(1))
    return rig.frame(Kind.SUCCEED, m.Succeed(worker.last.id, worker.last.fence), conn=worker.conn)


def test_every_command_that_may_change_a_job_is_refused_or_kept() -> None:
    assert full.COMMANDS.isdisjoint(full.CHANGES_NOTHING)
    assert VERBS.keys() - full.COMMANDS - full.CHANGES_NOTHING == {Kind.SUCCEED, Kind.FAIL, Kind.RELEASE, Kind.RESUME}
    assert VERBS.keys() >= full.COMMANDS | full.CHANGES_NOTHING


def test_only_new_jobs_are_refused_while_the_rest_fits_into_the_reserve(rig: FullRig) -> None:
    rig.enq(id=uid(1), delay_us=SECOND_US)
    new, cancel = enq(rig, 2), rig.frame(Kind.CANCEL, m.Cancel(uid(9), None, uid(1)))

    effects = rig.meet(new, cancel)

    assert replies(effects) == {new.request: ["STORE_FULL"], cancel.request: ["OK"]}
    assert rig.engine.desk.is_full
    assert rig.stored(uid(1)).state == "cancelled"
    assert rig.engine.again.inputs == []


def test_a_connection_that_the_refused_turn_ended_is_ended_once(rig: FullRig) -> None:
    rig.worker(10, instance=uid(5))

    effects = rig.meet(rig.frame(Kind.JOIN, m.Join("any", uid(5)), conn=11), enq(rig, 1))

    assert [effect.conn for effect in effects if isinstance(effect, Close)] == [10]


@pytest.mark.parametrize("reserve", [True, False])
def test_credits_that_the_refused_turn_lent_on_are_free_again(rig: FullRig, reserve: bool) -> None:
    worker = rig.worker(capacity=0)
    rig.enq(id=uid(1))

    rig._turn_once(rig.frame(Kind.CREDIT, m.Credit(1), conn=worker.conn))

    effects = rig.meet(reserve=reserve)

    assert [effect.kind for effect in effects if isinstance(effect, Tell)] == [Kind.DISPATCH] * reserve
    assert rig.engine.desk.routing.sessions[worker.conn].rooms["greenlet"].held == int(reserve)
    assert (uid(1) in rig.engine.desk.leases) is reserve


def test_without_a_reserve_questions_are_answered_commands_refused_and_reports_kept(rig: FullRig) -> None:
    report, command, question = succeed(rig), enq(rig, 2), rig.frame(Kind.STAT, m.Stat(id=uid(1)))

    effects = rig.meet(report, command, question, reserve=False)

    assert replies(effects) == {command.request: ["STORE_FULL"], question.request: ["OK"]}
    assert rig.engine.again.inputs == [report]
    assert (rig.engine.again.is_stuck, rig.engine.again.pause_us) == (True, STUCK_US)
    assert rig.stored(uid(1)).state == "running"
    rig.turn()
    assert rig.stored(uid(1)).state == "done"


def test_each_command_of_a_frame_is_told_that_nothing_can_be_changed(rig: FullRig) -> None:
    frame = rig.frame(Kind.CANCEL, *(m.Cancel(uid(number), "k") for number in range(3)))
    other = enq(rig, 1)

    effects = rig.meet(frame, other, reserve=False)

    told: list[Answer] = [each for effect in effects if isinstance(effect, Reply) for each in effect.answers]
    assert replies(effects) == {frame.request: ["STORE_FULL"] * 3, other.request: ["STORE_FULL"]}
    assert {str(error) for error in told} == {full.FULL}


def test_a_frame_of_which_a_part_took_effect_is_kept_and_not_refused(rig: FullRig) -> None:
    frame = rig.frame(Kind.ENQ, m.Enq(uid(1), "Mail"), m.Enq(uid(2), "Mail"))
    rig.engine.again.standing = {(frame.conn, frame.request): {0: NotFound("as if")}}

    effects = rig.meet(frame, reserve=False)

    assert replies(effects) == {}
    assert rig.engine.again.inputs == [frame]


def test_without_a_reserve_the_mark_of_the_clocks_is_still_to_be_stored(rig: FullRig) -> None:
    rig.engine.must_mark = True

    rig.meet(enq(rig, 1), reserve=False)

    assert rig.engine.must_mark
    assert not rig.engine.desk.is_stuck


def test_without_a_reserve_no_lease_ends(rig: FullRig) -> None:
    succeed(rig)
    rig.clock.advance(31)
    rig.engine.desk.leases[uid(1)].expires_mono_us = rig.now.mono_us - 10 * SECOND_US
    rig.engine.now = rig.now

    rig.meet(enq(rig, 2), reserve=False)

    assert rig.stored(uid(1)).state == "running"
    assert uid(1) in rig.engine.desk.leases


def test_a_shared_store_without_a_reserve_is_away(rig: FullRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig.full, "is_shared", True)

    with pytest.raises(StoreAway, match="reserve is used up"):
        rig.meet(enq(rig, 1), reserve=False)


def test_a_question_that_would_change_something_stops_the_server_with_nothing_lost(
    rig: FullRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, command = succeed(rig), rig.frame(Kind.RELEASE, m.Release(uid(8), 1), conn=10)
    monkeypatch.setattr(full, "CHANGES_NOTHING", full.CHANGES_NOTHING | {Kind.SUCCEED})

    with pytest.raises(StoreFailed):
        rig.meet(report, command, reserve=False)
    assert rig.engine.again.inputs == [command]


def two_refusals() -> tuple[Decided, list[bytes]]:
    """A cancel that found nothing, and one that found job 1 cancelled by the change that comes first."""
    rig = EngineRig()
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US)
    frame = rig.frame(
        Kind.CANCEL, m.Cancel(uid(31), "none"), m.Cancel(uid(32), "k"), m.Cancel(uid(33), None, uid(1))
    )  # fmt: skip
    arrived = Arrived(rig.engine, [frame], rig.now)
    return arrived.read(rig.store).decide(), [uid(31), uid(33)]


@pytest.mark.parametrize(("refused", "kept"), [((), 2), ((0,), 1)])
def test_a_shared_store_keeps_the_answers_that_depend_on_nothing_refused(refused: tuple[int, ...], kept: int) -> None:
    store = SharedMemory()
    store.keeping = Keeping(busy=frozenset({uid(31)}))
    decided, requests = two_refusals()

    assert full.kept(decided, store, Commit(refused)) is store.keeping
    assert [each.request for each in store.kept] == requests[:kept]


def test_nothing_is_kept_where_nothing_is_shared_or_every_answer_changed_something() -> None:
    decided, _ = two_refusals()
    assert full.kept(decided, Memory(), Commit()) is NOTHING_UNKEPT

    decided.batch = new_batch(new_desk(), job())
    store = SharedMemory()
    store.fails = {"keep": AssertionError("it has nothing to keep")}
    assert full.kept(decided, store, Commit()) is NOTHING_UNKEPT
