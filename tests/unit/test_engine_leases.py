"""The choice of worker and job in lending: order, names and credits."""

from __future__ import annotations

import pytest
from engine_rig import EngineRig, WorkerRig, uid

from givalia_core.clock import SECOND_US
from givalia_core.errors import (
    BadRequest,
    Stale,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


# Order (1.4).


def order(worker: WorkerRig, count: int) -> list[bytes]:
    """In what order a worker with one credit gets everything."""
    worker.credit(1)
    for _ in range(count - 1):
        worker.succeed()
    return worker.ids


def test_ready_jobs_go_by_priority_then_due_then_enq_over_both_clocks_and_routes(rig: EngineRig) -> None:
    worker = rig.worker(10, "w", "Mail", "Fax", capacity=0)
    wall_us = rig.now.wall_us
    rig.clock.step_wall(100)
    wall_us += 100 * SECOND_US
    rig.enq(id=uid(1), delay_us=SECOND_US)
    rig.enq(id=uid(2), at_us=wall_us + SECOND_US // 2)
    rig.enq("Fax", id=uid(3), delay_us=SECOND_US // 4)
    rig.enq(id=uid(4), delay_us=SECOND_US, priority=1)
    rig.enq("Fax", id=uid(5), at_us=wall_us + SECOND_US, priority=1, target_worker="w")
    rig.enq(id=uid(6), delay_us=SECOND_US, target_worker="w")
    rig.enq(id=uid(7), delay_us=0, priority=-9)
    rig.enq(id=uid(8), at_us=wall_us + SECOND_US, priority=9)
    rig.tick(1)

    assert order(worker, 8) == [uid(number) for number in (8, 4, 5, 3, 2, 1, 6, 7)]


def test_the_order_is_kept_however_long_the_backlog(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("givalia_core.timers.PREFIX_TIMERS", 3)
    worker = rig.worker(10, "w", "Mail", "Fax", capacity=0)
    expected = []
    for number in range(60):
        priority, route = number * 7 % 5, number % 4
        rig.enq(("Mail", "Fax")[route % 2], id=uid(number), priority=priority, target_worker=("any", "w")[route // 2])
        expected.append((-priority, number))

    assert order(worker, 60) == [uid(number) for _, number in sorted(expected)]


def test_a_credit_that_comes_with_a_lesser_job_goes_to_the_greater_one(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", "Mail", "Fax", capacity=0)
    rig.enq(id=uid(1), priority=9)

    rig.turn(
        rig.frame(Kind.CREDIT, m.Credit(1), conn=worker.conn),
        rig.frame(Kind.ENQ, m.Enq(uid(2), "Fax", priority=0)),
    )

    assert worker.ids == [uid(1)]


def test_a_cancel_that_comes_with_a_credit_lets_the_next_in_order_go(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", "Mail", "Fax", capacity=1)
    rig.enq(id=uid(1))
    for number, module in ((2, "Mail"), (3, "Mail"), (4, "Fax")):
        rig.enq(module, id=uid(number), priority=5 - number)

    rig.turn(
        rig.frame(Kind.CANCEL, m.Cancel(uid(50), None, uid(2))),
        rig.frame(Kind.SUCCEED, m.Succeed(uid(1), worker.last.fence), conn=worker.conn),
    )

    assert worker.ids == [uid(1), uid(3)]


# Names and credits.


def test_a_job_for_a_name_goes_to_that_worker_only(rig: EngineRig) -> None:
    one, two = rig.worker(10, "w1", capacity=9), rig.worker(11, "w2", capacity=9)

    rig.enq(id=uid(1), target_worker="w2")
    rig.enq(id=uid(2), target_worker="w3")

    assert (one.ids, two.ids) == ([], [uid(1)])
    assert "w3 is not connected" in rig.stat(id=uid(2))["why"]


def test_workers_of_one_name_compete_and_each_job_goes_to_one(rig: EngineRig) -> None:
    workers = [rig.worker(10 + number, "w", capacity=2) for number in range(3)]

    for number in range(1, 9):
        rig.enq(id=uid(number), target_worker="w")

    given = [job_id for worker in workers for job_id in worker.ids]
    assert [len(worker.ids) for worker in workers] == [2, 2, 2]
    assert sorted(given) == [uid(number) for number in range(1, 7)]


def test_an_only_targeted_worker_takes_just_its_own(rig: EngineRig) -> None:
    worker = rig.worker(10, "w", capacity=5, only_targeted=True)

    rig.enq(id=uid(1))
    rig.enq(id=uid(2), target_worker="w")

    assert worker.ids == [uid(2)]
    assert "only jobs for its own name" in rig.stat(id=uid(1))["why"]


def test_credits_are_never_exceeded_whatever_happens(rig: EngineRig) -> None:
    worker = rig.worker(capacity=3)
    for number in range(1, 40):
        rig.enq(id=uid(number))
    held: list[m.Dispatch] = []
    seen = 0

    def take() -> None:
        nonlocal seen
        held.extend(worker.jobs[seen:])
        seen = len(worker.jobs)
        assert len(held) <= 3

    take()
    for act in ["succeed", "fail", "release", "succeed", "lease", "succeed", "fail", "release"] * 2:
        if act == "lease":
            for _ in range(32):
                rig.tick(1)
                worker.beat(*held[1:])
            held.pop(0)
        else:
            getattr(worker, act)(held.pop(0))
        take()
        assert len(held) == 3


def test_a_freed_credit_is_used_in_the_same_turn(rig: EngineRig) -> None:
    worker = rig.worker(capacity=1)
    rig.enq(id=uid(1))
    rig.enq(id=uid(2))

    worker.succeed()

    assert worker.ids == [uid(1), uid(2)]


@pytest.mark.parametrize("how", ["cancel", "lease"])
def test_a_credit_freed_by_the_end_of_a_lease_is_used_soon(rig: EngineRig, how: str) -> None:
    worker = rig.worker(capacity=1)
    rig.enq(id=uid(1), max_attempts=1)
    rig.enq(id=uid(2))

    if how == "cancel":
        rig.cancel(id=uid(1), running=True)
        worker.fail()
    else:
        for _ in range(32):
            rig.tick(1)
            worker.beat()

    assert worker.ids == [uid(1), uid(2)]


def test_a_smaller_credit_takes_nothing_back(rig: EngineRig) -> None:
    worker = rig.worker(capacity=2)
    for number in (1, 2, 3):
        rig.enq(id=uid(number))
    worker.credit(1)

    worker.succeed(worker.jobs[0])
    assert len(worker.jobs) == 2
    worker.succeed(worker.jobs[1])

    assert worker.ids == [uid(1), uid(2), uid(3)]


def test_nothing_is_lent_before_a_worker_announced_and_gave_credit(rig: EngineRig) -> None:
    rig.enq(id=uid(1))

    rig.ask(Kind.JOIN, m.Join("w", uid(1)), conn=10)
    rig.ask(Kind.ANNOUNCE, m.Announce("Mail", "d", "1"), conn=10)

    assert rig.dispatched == {}
    rig.ask(Kind.CREDIT, m.Credit(1), conn=10)
    assert len(rig.dispatched[10]) == 1


@pytest.mark.parametrize("kind", [Kind.ANNOUNCE, Kind.CREDIT, Kind.BEAT, Kind.RESUME])
def test_a_worker_joins_first(rig: EngineRig, kind: Kind) -> None:
    message = {Kind.ANNOUNCE: m.Announce("Mail", "d", "1"), Kind.CREDIT: m.Credit(1)}.get(kind, m.NamedLease(uid(1), 1))

    assert isinstance(rig.ask(kind, message, conn=10)[0], BadRequest)


def test_a_worker_that_joins_again_takes_the_place_of_its_old_connection(rig: EngineRig) -> None:
    old = rig.worker(10, "w")
    rig.enq(id=uid(1))
    held = old.last

    new = rig.worker(11, "w", instance=uid(10))

    assert [close.conn for close in rig.closed] == [10]
    assert new.resume(held) == [()]
    assert len(rig.info(Kind.WORKERS)) == 1
    assert new.succeed(held) == ()


def test_a_worker_that_joins_twice_on_one_connection_serves_what_it_announced_last(rig: EngineRig) -> None:
    worker = rig.worker(10, "w", capacity=1)
    rig.ask(Kind.JOIN, m.Join("w", uid(10)), conn=10)

    rig.enq(id=uid(1))

    assert worker.jobs == []
    assert rig.state(id=uid(1)) == "ready"


def test_a_report_may_come_over_any_connection_of_the_worker(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.leave()

    other = rig.worker(11, "any", "Mail", capacity=0, instance=uid(10))

    assert other.succeed(worker.jobs[0] if worker.jobs else None) == ()
    assert rig.state(id=uid(1)) == "done"


@pytest.mark.parametrize("has_left", [False, True])
@pytest.mark.parametrize("verb", ["beat", "resume", "succeed", "fail", "release"])
def test_a_job_is_settled_by_the_worker_that_holds_it_and_by_no_other(rig: EngineRig, verb: str, has_left: bool) -> None:
    worker = rig.worker(10)
    rig.enq(id=uid(1))
    held = worker.last
    stranger = rig.worker(11, "any", "Mail", capacity=0)
    if has_left:
        worker.leave()

    answer = getattr(stranger, verb)(held)

    assert isinstance(answer[0] if verb in ("beat", "resume") else answer, Stale)
    assert rig.state(id=uid(1)) == "running"
    if has_left:
        rig.tick(35)  # What the stranger said has not made the lease any longer.
        assert rig.state(id=uid(1)) != "running"
    else:
        assert worker.succeed(held) == ()


def test_a_stranger_says_nothing_of_the_progress_of_a_job(rig: EngineRig) -> None:
    held = rig.worker(10)
    rig.enq(id=uid(1))
    stranger = rig.worker(11, "any", "Mail", capacity=0)

    assert isinstance(rig.ask(Kind.PROGRESS, m.Progress(held.last.id, held.last.fence, 0.5), conn=stranger.conn)[0], Stale)
    assert rig.stat(id=uid(1))["progress"] is None
