"""Jobs that ask for versions of their module: the workers that take them, the order, and the words while no worker does."""

from __future__ import annotations

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US
from givalia_core.errors import Busy
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import VARIANTS_MAX


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


def mail(version: str, name: str = "Mail") -> m.Announce:
    return m.Announce(name, "dist", version)


def test_a_job_goes_only_to_workers_whose_version_it_asks_for(rig: EngineRig) -> None:
    old, new = rig.worker(10, "old", mail("1.4"), capacity=9), rig.worker(11, "new", mail("2.0"), capacity=9)

    rig.enq(id=uid(1), version=">=2")
    rig.enq(id=uid(2), version="==1.*")
    rig.enq(id=uid(3), version=" <3 , >= 2 ")
    rig.enq(id=uid(4), version="")

    assert (old.ids[:1], new.ids[:2]) == ([uid(2)], [uid(1), uid(3)])
    assert uid(4) in old.ids + new.ids
    assert [job.version for job in new.jobs[:2]] == [">=2", "<3,>=2"]


def test_a_job_waits_for_a_worker_with_its_version_and_stat_says_so(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1", mail("1.4"), capacity=9)
    rig.enq(id=uid(1), version=">=2")
    rig.enq(id=uid(2))

    status = rig.stat(id=uid(1))
    assert (status["state"], status["version"], status["target_worker"]) == ("ready", ">=2", "any")
    assert status["why"] == "due, but no worker has Mail >=2; connected: w1 with 1.4"
    assert worker.ids == [uid(2)], "it holds up nobody"

    upgraded = rig.worker(11, "w2", mail("2.1"))
    assert upgraded.ids == [uid(1)]


def test_a_worker_that_announces_a_new_version_takes_what_it_now_satisfies(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1", mail("1.4"), capacity=9)
    rig.enq(id=uid(1), version=">=2")
    rig.enq(id=uid(2), version="<2", delay_us=SECOND_US)

    worker.ask(Kind.ANNOUNCE, mail("2.0"))
    rig.tick(2)

    assert worker.ids == [uid(1)]
    assert "no worker has Mail <2; connected: w1 with 2.0" in rig.stat(id=uid(2))["why"]


def test_jobs_with_and_without_a_version_leave_in_one_order(rig: EngineRig) -> None:
    worker = rig.worker(10, "w", mail("2.0"), mail("2.0", "Fax"), capacity=0)
    asked = (None, ">=2", "<3", "==1.*", ">=1,<3")
    expected = []
    for number in range(60):
        priority, version = number * 7 % 5, asked[number % 5]
        rig.enq(("Mail", "Fax")[number % 2], id=uid(number), priority=priority, version=version)
        if version != "==1.*":
            expected.append((-priority, number))
    worker.credit(1)
    while len(worker.ids) < len(expected):
        worker.succeed()

    assert worker.ids == [uid(number) for _, number in sorted(expected)]


def test_a_worker_that_comes_to_a_backlog_begins_with_the_most_urgent_whatever_its_version(rig: EngineRig) -> None:
    rig.enq(id=uid(1))
    rig.enq(id=uid(2), version=">=2", priority=5)
    rig.enq(id=uid(3), version=">=9", priority=9)

    worker = rig.worker(10, "any", mail("2.0"))

    assert worker.ids == [uid(2)]


def test_what_comes_together_with_a_worker_does_not_overtake_what_waited_for_its_version(rig: EngineRig) -> None:
    rig.worker(10, "old", mail("1.0"), capacity=0)
    rig.enq(id=uid(1), version=">=2", priority=5)

    rig.turn(
        rig.frame(Kind.JOIN, m.Join("any", uid(11)), conn=11),
        rig.frame(Kind.ANNOUNCE, mail("2.0"), conn=11),
        rig.frame(Kind.CREDIT, m.Credit(1), conn=11),
        rig.frame(Kind.ENQ, m.Enq(uid(2), "Mail")),
    )

    assert [each.job.id for each in rig.dispatched[11]] == [uid(1)]


def test_a_restart_forgets_no_version(rig: EngineRig) -> None:
    rig.worker(10, "w1", mail("1.0"))
    rig.enq(id=uid(1), version=">=2", delay_us=3 * SECOND_US)
    rig.restart()

    worker = rig.worker(10, "w1", mail("2.0"))
    assert worker.ids == []
    rig.tick(4)

    assert worker.ids == [uid(1)]
    assert rig.stored(uid(1)).specifier == ">=2"


def test_a_named_worker_must_have_the_version_too(rig: EngineRig) -> None:
    one, two = rig.worker(10, "w1", mail("1.0")), rig.worker(11, "w2", mail("2.0"))

    rig.enq(id=uid(1), version=">=2", target_worker="w1")
    rig.enq(id=uid(2), version=">=2", target_worker="w2")

    assert (one.ids, two.ids) == ([], [uid(2)])
    assert rig.stat(id=uid(1))["why"] == "due, but no worker w1 has Mail >=2; connected: w1 with 1.0"
    assert [job["id"] for job in rig.listed(target_worker="w1")] == [uid(1)]


def test_a_version_that_is_none_satisfies_nothing_and_takes_the_rest(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1", mail("built on tuesday"), capacity=9)

    rig.enq(id=uid(1), version=">=0")
    rig.enq(id=uid(2))

    assert worker.ids == [uid(2)]
    assert "connected: w1 with built on tuesday" in rig.stat(id=uid(1))["why"]


@pytest.mark.parametrize(("version", "is_taken"), [(">=2", False), (">=2.0rc1", True), ("<2", False), (">1", True)])
def test_a_pre_release_counts_by_its_place_in_the_order(rig: EngineRig, version: str, is_taken: bool) -> None:
    worker = rig.worker(10, "w1", mail("2.0rc1"))

    rig.enq(id=uid(1), version=version)

    assert bool(worker.ids) is is_taken


def test_replace_changes_the_version_and_reschedule_leaves_it(rig: EngineRig) -> None:
    old, new = rig.worker(10, "old", mail("1.0")), rig.worker(11, "new", mail("2.0"))
    rig.enq(id=uid(1), key="k", version="<2", delay_us=SECOND_US)
    rig.enq(id=uid(2), key="j", version="<2", delay_us=SECOND_US)

    rig.enq(id=uid(3), key="k", version=">=2", delay_us=2 * SECOND_US, if_exists="replace")
    rig.enq(id=uid(4), key="j", version=">=2", delay_us=2 * SECOND_US, if_exists="reschedule")

    assert (rig.stat("k")["version"], rig.stat("j")["version"]) == (">=2", "<2")
    rig.tick(3)
    assert (old.ids, new.ids) == ([uid(2)], [uid(1)])


def test_a_requeued_or_retried_job_asks_for_the_same_version_again(rig: EngineRig) -> None:
    old, new = rig.worker(10, "old", mail("1.0"), capacity=9), rig.worker(11, "new", mail("2.0"))
    rig.enq(id=uid(1), key="k", version=">=2")
    new.fail()
    rig.tick(2)
    assert new.ids == [uid(1), uid(1)]
    new.fail(permanent=True)

    rig.requeue("k")

    assert (len(new.ids), old.ids) == (3, [])


def test_stat_names_a_few_workers_and_counts_the_others(rig: EngineRig) -> None:
    for number in range(8):
        rig.worker(10 + number, f"w{number}", mail(f"1.{number}"))
    rig.enq(id=uid(1), version=">=2")

    assert rig.stat(id=uid(1))["why"].endswith("w0 with 1.0, w1 with 1.1, w2 with 1.2, w3 with 1.3, w4 with 1.4 and 3 more")


def test_workers_say_which_versions_they_have(rig: EngineRig) -> None:
    rig.worker(10, "w1", mail("1.4"), m.Announce("Fax", "dist", "1.4", broken="ImportError: x"))

    (shown,) = rig.info(Kind.WORKERS)

    assert (shown["modules"], shown["versions"], shown["broken"]) == (["Mail"], {"Mail": "1.4"}, ["Fax"])


def test_hooks_are_told_of_the_version(rig: EngineRig) -> None:
    rig.enq(id=uid(1), version=">=2")

    assert rig.hooks[-1].job.specifier == ">=2"


# Many different versions.


@pytest.mark.parametrize("served_by", ["9", None, "1"])
def test_too_many_different_versions_are_refused_and_hold_up_nobody(rig: EngineRig, served_by: str | None) -> None:
    worker = rig.worker(10, "w1", mail(served_by), capacity=1) if served_by else None
    rig.enq(id=uid(1))
    frame = rig.frame(Kind.ENQ, *(m.Enq(uid(100 + n), "Mail", version=f">=2.{n}") for n in range(VARIANTS_MAX + 5)))

    (answers,) = rig.batch(frame)
    refused = rig.enq(version=">=3")
    known = rig.enq(id=uid(2), version=">=2.3")
    other = rig.enq("Fax", version=">=3")
    plain = rig.enq(id=uid(3), priority=1)

    assert [isinstance(answer, Busy) for answer in answers] == [False] * VARIANTS_MAX + [True] * 5
    assert isinstance(refused, Busy)
    assert "different versions of Mail" in str(refused)
    assert not any(isinstance(answer, Busy) for answer in (known, other, plain))
    assert len(rig.engine.desk.routing.windows) <= 2 + VARIANTS_MAX
    if worker:
        worker.succeed()
        assert worker.ids == [uid(1), uid(3)]


def test_windows_of_versions_do_not_pile_up(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1", mail("9"), capacity=99)

    for number in range(3 * VARIANTS_MAX):
        rig.enq(id=uid(number), version=f">=1.{number}")
        worker.succeed()

    assert len(worker.ids) == 3 * VARIANTS_MAX
    assert len(rig.engine.desk.routing.windows) <= 3


def test_what_comes_back_beyond_the_bound_is_lent_when_others_have_gone(rig: EngineRig) -> None:
    """A requeue is refused for no version, so more can come together than have windows."""
    count = 2 * VARIANTS_MAX + 10
    for number in range(count):
        rig.enq(id=uid(number), version=f">=1.{number}")
        rig.cancel(id=uid(number))
    for number in range(count):
        rig.requeue(id=uid(number))

    worker = rig.worker(10, "w1", mail("9"), capacity=count)
    rig.tick(5)

    assert sorted(worker.ids) == [uid(number) for number in range(count)]
