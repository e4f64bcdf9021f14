"""The engine when the store is full, the server drains, or there is too much."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US, Mark
from givalia_core.errors import (
    Busy,
    NotFound,
    ShuttingDown,
    StoreFull,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Change, Commit, Retention
from givalia_core.store.memory import Memory


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


class Full(Memory):
    """A memory store whose disk can be full: then it takes no insert."""

    is_full = False
    refuses = 0

    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        if self.is_full and any(change.was is None for change in changes):
            raise StoreFull("no space left")
        return super().commit(changes, mark, retention)

    def has_room(self) -> bool:
        return not self.is_full


def test_on_a_full_store_enq_is_refused_and_all_else_goes_on() -> None:
    store = Full()
    rig = EngineRig(store)
    worker = rig.worker(capacity=3)
    for number in (1, 2, 3):
        rig.enq(id=uid(number))
    rig.enq(id=uid(4), key="k", delay_us=50 * SECOND_US)
    store.is_full = True

    answers = rig.batch(
        rig.frame(Kind.ENQ, m.Enq(uid(9), "Mail", key="new"), m.Enq(uid(4), "Mail")),
        rig.frame(Kind.SUCCEED, m.Succeed(uid(1), worker.jobs[0].fence), conn=worker.conn),
        rig.frame(Kind.FAIL, m.FailReport(uid(2), worker.jobs[1].fence, "failed", "no"), conn=worker.conn),
        rig.frame(Kind.RELEASE, m.Release(uid(3), worker.jobs[2].fence), conn=worker.conn),
        rig.frame(Kind.CANCEL, m.Cancel(uid(50), "k")),
        rig.frame(Kind.STAT, m.Stat("new")),
    )

    assert [type(answer) for answer in answers[0]] == [StoreFull, tuple]
    assert [answer[0][:1] for answer in answers[1:5]] == [(), ("waiting",), (), ("cancelled",)]
    assert isinstance(answers[5][0], NotFound)
    assert rig.info()["store_full"] is True
    assert isinstance(rig.enq(id=uid(10)), StoreFull)
    store.is_full = False
    assert isinstance(rig.enq(id=uid(10)), tuple)


class UsedUp(Full):
    """A memory store whose disk is full, reserve and all: it takes no change."""

    is_used_up = False

    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        if self.is_used_up:
            raise StoreFull("no space left")
        return super().commit(changes, mark, retention)

    def has_room(self) -> bool:
        return not self.is_used_up


def test_when_the_reserve_is_used_up_questions_are_answered_commands_refused_and_reports_kept() -> None:
    store = UsedUp()
    rig = EngineRig(store)
    worker = rig.worker(capacity=3)
    for number in (1, 2):
        rig.enq(id=uid(number))
    rig.enq(id=uid(4), key="k", delay_us=50 * SECOND_US)
    rig.enq(id=uid(5), key="due", delay_us=3 * SECOND_US)
    store.is_used_up = True
    succeed = rig.frame(Kind.SUCCEED, m.Succeed(uid(1), worker.jobs[0].fence), conn=worker.conn)
    fail = rig.frame(Kind.FAIL, m.FailReport(uid(2), worker.jobs[1].fence, "failed", "no"), conn=worker.conn)

    commands = [
        rig.frame(Kind.ENQ, m.Enq(uid(9), "Mail", key="new")),
        rig.frame(Kind.CANCEL, m.Cancel(uid(50), "k")),
        rig.frame(Kind.EXT, m.Ext(uid(51), "k", delta_us=SECOND_US)),
    ]
    stat = rig.frame(Kind.STAT, m.Stat("k"))
    rig.turn(*commands, succeed, fail, stat)

    assert [type(answer) for frame in commands for answer in rig.answers(frame)] == [StoreFull] * 3
    assert rig.state(id=uid(1)) == rig.state(id=uid(2)) == "running"
    for _ in range(40):  # Longer than a lease: nobody's is ended, and beats are answered.
        rig.tick(1)
        worker.beat(*worker.jobs)
    assert (succeed.conn, succeed.request) not in rig.replies
    assert rig.state("k") == "waiting"
    assert len(rig.listed()) == 4

    store.is_used_up = False
    rig.tick(1)

    assert rig.answers(succeed) == [()]
    assert rig.answers(fail)[0][0] == "waiting"
    assert rig.state(id=uid(1)) == "done"
    assert rig.state("due") == "running"  # The tries that came to nothing have cost no credit.
    assert rig.cancel("k") == ("cancelled",)
    assert isinstance(rig.enq(id=uid(9)), tuple)
    assert rig.closed == []


def test_a_worker_that_joins_while_the_store_is_full_serves_all_the_same() -> None:
    store = Full()
    rig = EngineRig(store)
    rig.enq(id=uid(1))
    store.is_full = True
    join = m.Join("w", uid(10))

    rig.turn(
        rig.frame(Kind.ENQ, m.Enq(uid(9), "Mail")),
        rig.frame(Kind.JOIN, join, conn=10),
        rig.frame(Kind.ANNOUNCE, m.Announce("Mail", "d", "1"), conn=10),
        rig.frame(Kind.CREDIT, m.Credit(1), conn=10),
    )

    assert [each.job.id for each in rig.dispatched[10]] == [uid(1)]


def test_what_is_closed_while_the_store_is_full_is_closed() -> None:
    store = Full()
    rig = EngineRig(store)
    rig.worker(10, "w")
    store.is_full = True

    rig.turn(
        rig.frame(Kind.ENQ, m.Enq(uid(9), "Mail")),
        rig.frame(Kind.JOIN, m.Join("w", uid(10)), conn=11),
    )

    assert [close.conn for close in rig.closed] == [10]


def test_credits_are_right_after_a_full_store() -> None:
    store = Full()
    rig = EngineRig(store)
    worker = rig.worker(capacity=2)
    rig.enq(id=uid(1))
    store.is_full = True
    for number in range(20, 25):
        assert isinstance(rig.enq(id=uid(number)), StoreFull)
        store.is_full = False
        rig.turn()
        store.is_full = True
    store.is_full = False

    rig.enq(id=uid(2))
    rig.enq(id=uid(3))

    assert worker.ids == [uid(1), uid(2)]


def test_a_draining_server_takes_and_lends_nothing_and_settles_everything(rig: EngineRig) -> None:
    worker = rig.worker(capacity=2)
    rig.enq(id=uid(1))
    rig.enq(id=uid(2), key="k", delay_us=SECOND_US)
    rig.engine.desk.is_draining = True

    refused = rig.enq()
    rig.tick(3)

    assert isinstance(refused, ShuttingDown)
    assert refused.retry_after > 0
    assert worker.ids == [uid(1)]
    assert worker.succeed() == ()
    assert rig.cancel("k") == ("cancelled",)
    assert isinstance(rig.requeue("k"), ShuttingDown)
    assert isinstance(rig.enq(id=uid(1)), tuple)


def test_more_live_jobs_than_the_limit_are_refused_until_some_have_ended() -> None:
    rig = EngineRig(live_max=2)
    worker = rig.worker()
    rig.enq(id=uid(1))
    rig.enq(id=uid(2), delay_us=SECOND_US)

    refused, told = rig.enq(), rig.engine.desk.all_taken
    worker.succeed()

    assert isinstance(refused, Busy)
    assert str(refused) == told == "2 jobs are live, and the server takes no more than 2"
    assert refused.retry_after > 0
    assert isinstance(rig.enq(delay_us=SECOND_US), tuple)
    assert isinstance(rig.enq(), Busy)
    rig.restart()
    assert isinstance(rig.enq(), Busy)


class Refusing(Memory):
    """A memory store that refuses the changes of one commit, as if another server had changed the rows."""

    refuse_next = False

    def commit(self, changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        if self.refuse_next and changes:
            self.refuse_next = False
            super().commit([], mark, retention)
            return Commit(tuple(range(len(changes))))
        return super().commit(changes, mark, retention)


def test_what_the_store_refused_is_decided_anew_and_answered_once() -> None:
    store = Refusing()
    rig = EngineRig(store)
    worker = rig.worker(capacity=1)
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US)

    store.refuse_next = True
    _, due_us = rig.ext("k", delta_us=SECOND_US)
    store.refuse_next = True
    rig.enq(id=uid(2))
    store.refuse_next = True
    answer = worker.succeed()

    assert due_us == rig.now.wall_us + 2 * SECOND_US
    assert worker.ids == [uid(2)]
    assert answer == ()
    assert rig.state(id=uid(2)) == "done"
    assert rig.enq(id=uid(3))[0] == uid(3)
    assert worker.ids == [uid(2), uid(3)]


def test_a_claim_that_the_store_refused_costs_no_credit_and_loses_no_job() -> None:
    store = Refusing()
    rig = EngineRig(store)
    rig.enq(id=uid(1))
    worker = rig.worker(capacity=0)
    store.refuse_next = True

    worker.credit(1)
    rig.tick(2)

    assert worker.ids == [uid(1)]
