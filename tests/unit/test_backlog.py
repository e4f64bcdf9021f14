"""The part of `info` for operators: each module, and the attempts lost with workers."""

from __future__ import annotations

from typing import Any

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import backlog
from givalia_core.engine.records import Gone
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


def test_jobs_of_a_module_without_a_worker_are_untaken_and_grow_old(rig: EngineRig) -> None:
    rig.worker(10, "any", "Fax")
    for number in range(5):
        rig.enq("Mail", id=uid(number + 1), delay_us=number * SECOND_US)

    rig.tick(2.5)

    assert rig.info()["modules"] == {
        "Fax": {"workers": 1, "ready_age_us": 0, "untaken": 0},
        "Mail": {"workers": 0, "ready_age_us": 2_500_000, "untaken": 3},
    }


def test_jobs_that_wait_for_a_full_worker_grow_old_but_can_be_taken(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", "Mail", capacity=1)
    for number in range(3):
        rig.enq("Mail", id=uid(number + 1))

    for _ in range(4):
        rig.tick(10)
        worker.beat(worker.last)
    assert rig.info()["modules"]["Mail"] == {"workers": 1, "ready_age_us": 40_000_000, "untaken": 0}

    for _ in range(3):
        worker.succeed()
    assert rig.info()["modules"]["Mail"] == {"workers": 1, "ready_age_us": 0, "untaken": 0}


@pytest.mark.parametrize(("asked", "untaken"), [({"version": ">=2"}, 1), ({"target_worker": "w9"}, 1), ({"version": "<2"}, 0)])
def test_a_worker_with_another_version_or_name_takes_no_job(rig: EngineRig, asked: dict[str, Any], untaken: int) -> None:
    rig.worker(10, "w1", "Mail", capacity=0)
    rig.enq("Mail", id=uid(1), **asked)

    assert rig.info()["modules"]["Mail"]["untaken"] == untaken


def test_jobs_that_a_worker_of_another_server_takes_are_not_untaken(rig: EngineRig) -> None:
    rig.engine.desk.routing.elsewhere.tell(
        [{"name": "w2", "instance": "00", "only_targeted": False, "modules": ["Mail"], "versions": {"Mail": "1.0"}}]
    )
    rig.enq("Mail", id=uid(1))
    rig.enq("Mail", id=uid(2), version=">=2")

    told = rig.info()["modules"]["Mail"]

    assert (told["workers"], told["untaken"]) == (1, 1)


def test_a_module_that_is_broken_everywhere_is_told_with_no_worker(rig: EngineRig) -> None:
    rig.worker(10, "w1", m.Announce("Mail", "dist", "1.0", broken="it does not import"))

    assert rig.info()["modules"] == {"Mail": {"workers": 0, "ready_age_us": 0, "untaken": 0}}


def test_made_up_modules_do_not_make_the_answer_grow_without_end(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backlog, "MODULES_MAX", 3)
    rig.worker(10, "any", "Zebra")
    for number in range(9):
        rig.enq(f"M{number}", id=uid(number + 1))

    assert list(rig.info()["modules"]) == ["Zebra", "M0", "M1"]


def lost(rig: EngineRig) -> tuple[int, int]:
    told = rig.info()
    return told["leases_lost"], told["workers_lost"]


def test_a_worker_that_is_gone_for_a_lease_is_lost_and_so_is_its_lease(rig: EngineRig) -> None:
    rig.worker(10)
    rig.enq(id=uid(1))
    rig.turn(Gone(10))
    for _ in range(27):
        rig.tick(1)
    assert lost(rig) == (0, 0)

    for _ in range(5):
        rig.tick(1)

    assert lost(rig) == (1, 1)


def test_a_worker_that_comes_back_or_has_drained_is_not_lost(rig: EngineRig) -> None:
    rig.worker(10, instance=uid(1))
    rig.worker(11, instance=uid(2))
    rig.turn(rig.frame(Kind.CREDIT, m.Credit(0), conn=11))
    rig.turn(Gone(10), Gone(11))

    rig.worker(12, instance=uid(1), capacity=0)
    for _ in range(40):
        rig.tick(1)

    assert lost(rig) == (0, 0)
