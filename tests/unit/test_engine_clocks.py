"""Steps of the clocks, also across a restart (K1 to K5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US, Mark
from givalia_core.store.base import Change, Commit


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


@pytest.mark.parametrize("step_s", [3_600.0, -3_600.0, 50 * 365 * 86_400.0, -50 * 365 * 86_400.0])
def test_k1_a_step_of_the_wall_starts_no_relative_job_early_or_late(rig: EngineRig, step_s: float) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), delay_us=5 * SECOND_US)
    rig.tick(2)

    rig.clock.step_wall(step_s)
    rig.tick(2.9)
    before = worker.ids
    rig.tick(0.1)

    assert before == []
    assert worker.ids == [uid(1)]


def test_k1_a_step_is_stored_before_the_next_answer(rig: EngineRig) -> None:
    marks: list[Mark] = []
    commit = rig.store.commit

    def noting(changes: Sequence[Change], mark: Mark, *rest: Any) -> Commit:
        marks.append(mark)
        return commit(changes, mark, *rest)

    rig.store.commit = noting  # type: ignore[method-assign]
    rig.stat("none")
    rig.stat("none")
    assert len(marks) == 1  # The first turn after a start.

    rig.clock.step_wall(77)
    rig.stat("none")

    assert len(marks) == 2
    assert marks[1].wall_us - marks[1].timer_us == 77 * SECOND_US


def test_k2_a_forward_step_makes_absolute_jobs_due_and_a_backward_one_postpones_them(rig: EngineRig) -> None:
    worker = rig.worker(capacity=5)
    at_us = rig.now.wall_us + 3_600 * SECOND_US
    rig.enq(id=uid(1), at_us=at_us)
    rig.enq(id=uid(2), at_us=at_us + 3_600 * SECOND_US)
    rig.enq(id=uid(3), at_us=rig.now.wall_us + 2 * SECOND_US)

    rig.clock.step_wall(-10)
    rig.tick(5)
    postponed = worker.ids
    rig.clock.step_wall(10 + 3_600)
    rig.tick(0.1)

    assert postponed == []
    assert sorted(worker.ids) == [uid(1), uid(3)]
    assert rig.stat(id=uid(2))["due_us"] == at_us + 3_600 * SECOND_US


def test_k2_a_wall_clock_that_is_slewed_makes_absolute_jobs_due_in_time(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), at_us=rig.now.wall_us + 20 * SECOND_US)

    for _ in range(160):  # Half as fast again: 50 ms for each 100 ms, as no step at all.
        rig.clock.advance(0.1)
        rig.clock.step_wall(0.05)
        rig.turn()
        worker.beat()
        if rig.now.wall_us >= rig.stat(id=uid(1))["due_us"] + SECOND_US:
            break

    assert worker.ids == [uid(1)]


def test_k2_a_wall_clock_that_is_slewed_back_starts_no_absolute_job_early(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), at_us=rig.now.wall_us + 10 * SECOND_US)

    for _ in range(150):
        rig.clock.advance(0.1)
        rig.clock.step_wall(-0.05)
        worker.beat()

    assert worker.jobs == []
    assert rig.state(id=uid(1)) == "waiting"


def test_answers_show_wall_time_whatever_the_distance(rig: EngineRig) -> None:
    rig.clock.step_wall(500)

    _, due_us, _ = rig.enq(key="k", delay_us=10 * SECOND_US)

    assert due_us == rig.now.wall_us + 10 * SECOND_US
    assert rig.stat("k")["timeleft_us"] == 10 * SECOND_US
    assert rig.ext("k", delta_us=SECOND_US)[1] == due_us + SECOND_US


def test_k3_a_step_of_the_wall_ends_no_lease(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    rig.clock.step_wall(10**8)
    rig.tick(5)

    assert rig.state(id=uid(1)) == "running"
    assert worker.succeed() == ()


def test_k5_a_pause_of_the_server_ends_no_lease_and_no_session(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    rig.tick(5)

    rig.clock.advance(3_600)
    rig.turn()

    assert rig.state(id=uid(1)) == "running"
    assert rig.closed == []
    assert worker.beat(worker.last) == [()]
    for _ in range(32):
        rig.tick(1)
        worker.beat()
    assert rig.stat(id=uid(1))["attempts"] == 2


def test_after_a_restart_running_jobs_have_a_whole_lease_to_be_heard_of(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    held = worker.last
    rig.clock.advance(1_000)
    rig.restart()

    rig.tick(29)
    again = rig.worker(11, "any", "Mail", instance=uid(10))

    assert again.resume(held) == [()]
    assert again.succeed(held) == ()
