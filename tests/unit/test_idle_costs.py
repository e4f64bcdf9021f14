"""The cost of a turn depends on the peers with work, not on idle peers, nor on earlier peers.

Costs are counted in calls of functions, which are the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sized
from typing import Any

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine.records import Gone
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind


def calls(act: Callable[[], object]) -> int:
    """How many functions are called."""
    count = 0

    def counted(_frame: Any, event: str, _value: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def with_workers(count: int, modules: int = 5) -> EngineRig:
    """A rig with so many idle workers, each with a name of its own."""
    rig = EngineRig()
    for conn in range(10, 10 + count):
        rig.worker(conn, f"w{conn}", *(f"M{number}" for number in range(modules)), capacity=2)
    rig.tick(2)
    return rig


def near(rig: EngineRig) -> None:
    """An enq that falls due soon, and a turn later."""
    rig.enq("M1", delay_us=SECOND_US // 2)


def lent(rig: EngineRig) -> None:
    """A job that is lent at once, ends, and frees its worker."""
    rig.enq("M1", target_worker="w11")
    job = rig.dispatched[11][-1].job
    assert rig.ask(Kind.SUCCEED, m.Succeed(job.id, job.fence), conn=11) == [()]


def lent_to_any(rig: EngineRig) -> None:
    """A job that any of the workers may take."""
    rig.enq("M1")


def nothing(rig: EngineRig) -> None:
    rig.turn()


@pytest.mark.parametrize("act", [near, lent, lent_to_any, nothing])
def test_a_turn_costs_no_more_for_workers_that_have_nothing_to_do(act: Callable[[EngineRig], None]) -> None:
    few, many = with_workers(12), with_workers(300)
    for rig in (few, many):
        for _ in range(3):
            act(rig)

    costs = [min(calls(lambda each=rig: act(each)) for _ in range(5)) for rig in (few, many)]  # type: ignore[misc]

    assert costs[1] < 1.2 * costs[0] + 20


def test_a_turn_costs_no_more_for_workers_that_are_full_and_have_jobs_waiting() -> None:
    few, many = with_workers(12), with_workers(300)
    for rig, count in ((few, 12), (many, 300)):
        for conn in range(10, 10 + count):
            for _ in range(4):
                rig.enq("M2", target_worker=f"w{conn}")
        for _ in range(3):
            near(rig)

    costs = [min(calls(lambda each=rig: near(each)) for _ in range(5)) for rig in (few, many)]  # type: ignore[misc]

    assert costs[1] < 1.2 * costs[0] + 20


def test_a_full_worker_that_ends_a_job_gets_the_next_in_the_same_turn_however_many_others_wait() -> None:
    rig = with_workers(50)
    for conn in range(10, 60):
        for number in range(4):
            rig.enq("M2", id=uid(100 * conn + number), target_worker=f"w{conn}")
    job = rig.dispatched[20][0].job
    before = len(rig.dispatched[20])

    rig._turn_once(rig.frame(Kind.SUCCEED, m.Succeed(job.id, job.fence), conn=20))

    assert [each.job.id for each in rig.dispatched[20][before:]] == [uid(2002)]


def test_a_worker_joins_and_leaves_at_the_same_cost_however_many_there_are() -> None:
    def come_and_go(rig: EngineRig) -> None:
        rig.worker(5_000, "new", "M1", "Other")
        rig.turn(Gone(5_000))

    few, many = with_workers(12), with_workers(300)
    for rig in (few, many):
        come_and_go(rig)

    costs = [min(calls(lambda each=rig: come_and_go(each)) for _ in range(3)) for rig in (few, many)]  # type: ignore[misc]

    assert costs[1] < 1.2 * costs[0] + 50


def sizes(thing: object) -> dict[str, int]:
    """How many entries each collection of an object has."""
    return {name: len(value) for name, value in vars(thing).items() if isinstance(value, Sized) and not isinstance(value, str)}


def test_names_of_workers_modules_and_versions_that_were_there_once_leave_nothing_behind() -> None:
    rig = with_workers(1)
    rig.worker(11, "stays", "Mail")
    rig.tick(2)
    routing, desk = rig.engine.desk.routing, rig.engine.desk
    before = sizes(routing), sizes(desk), sizes(rig.engine)

    for number in range(500):
        rig.worker(100, f"once{number}", m.Announce(f"Once{number}", "d", f"1.{number}"))
        rig.enq(f"Once{number}", version=f"=={number}.0", key="k")
        rig.enq(f"Once{number}", target_worker=f"once{number}", delay_us=SECOND_US, id=uid(10**6 + number))
        rig.cancel("k")
        rig.cancel(id=uid(10**6 + number))
        rig.turn(Gone(100))
    rig.tick(2)

    after = sizes(routing), sizes(desk), sizes(rig.engine)
    for was, now in zip(before, after, strict=True):
        assert {name: count for name, count in now.items() if count > was.get(name, 0) + 50} == {}


def test_a_worker_that_holds_nothing_comes_and_goes_at_the_same_cost_however_many_jobs_run() -> None:
    def come_and_go(rig: EngineRig) -> None:
        worker = rig.worker(5_000, "new", "Other")
        worker.resume()
        worker.leave()

    few, many = with_workers(1), with_workers(1)
    for rig, count in ((few, 3), (many, 300)):
        rig.ask(Kind.CREDIT, m.Credit(count), conn=10)
        for _ in range(count):
            rig.enq("M1")
        come_and_go(rig)
        assert len(rig.engine.desk.leases) == count

    costs = [min(calls(lambda each=rig: come_and_go(each)) for _ in range(3)) for rig in (few, many)]  # type: ignore[misc]

    assert costs[1] < 1.2 * costs[0] + 50


@pytest.mark.parametrize("fields", [{}, {"target_worker": "w11"}, {"target_worker": "nobody"}, {"version": ">=7"}])
@pytest.mark.parametrize("module", ["M1", "Nobody"])
def test_why_a_job_waits_is_found_at_the_same_cost_however_many_workers_there_are(module: str, fields: dict[str, str]) -> None:
    few, many = with_workers(12), with_workers(300)
    for rig, count in ((few, 12), (many, 300)):
        for conn in range(10, 10 + count):
            rig.ask(Kind.CREDIT, m.Credit(0), conn=conn)
        rig.enq(module, key="k", **fields)
        assert rig.stat("k")["why"].startswith("due, but ")

    costs = [min(calls(lambda each=rig: each.stat("k")) for _ in range(3)) for rig in (few, many)]  # type: ignore[misc]

    assert costs[1] < 1.2 * costs[0] + 700  # What an explanation looks at is bounded.
