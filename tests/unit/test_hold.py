"""A server on hold answers everything and lends nothing, until `resume`."""

from __future__ import annotations

import pytest
from engine_rig import EngineRig, uid

from givalia_core.engine.records import JournalEntry
from givalia_core.engine.words import HOLDS
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.testing import Queue


@pytest.fixture
def held() -> EngineRig:
    rig = EngineRig()
    rig.engine.desk.is_holding = True
    rig.engine.desk.tells_news = True
    return rig


def resume(rig: EngineRig, request: bytes = uid(1)) -> bool:
    """Say `resume`; return whether there was a hold."""
    (answer,) = rig.ask(Kind.RESUME_LENDING, m.ResumeLending(request))
    return bool(answer[0])


def test_server_that_holds_takes_commands_and_lends_nothing(held: EngineRig) -> None:
    worker = held.worker(10, "any", "Mail", capacity=9)
    held.enq(key="now")
    held.enq(key="later", delay_us=2_000_000)
    held.enq(key="gone")

    held.tick(5)

    assert worker.jobs == []
    assert held.cancel("gone") == ("cancelled",)
    assert [held.state(key) for key in ("now", "later")] == ["ready", "ready"]
    assert held.info()["holding"] is True


def test_explain_says_that_the_server_holds(held: EngineRig) -> None:
    held.worker(10, "any", "Mail")
    held.enq(key="now")
    held.enq(key="later", delay_us=60_000_000)

    assert held.stat("now")["why"] == f"due, but {HOLDS}"
    assert held.stat("later")["why"] == f"not due for 60 s; {HOLDS}"


def test_resume_lends_at_once_what_has_become_ready_in_order(held: EngineRig) -> None:
    worker = held.worker(10, "any", "Mail", capacity=9)
    held.enq(id=uid(2), delay_us=2_000_000)
    held.enq(id=uid(3))
    held.enq(id=uid(4), priority=9)
    held.tick(5)

    assert resume(held)

    held.turn()
    assert worker.ids == [uid(4), uid(3), uid(2)]
    assert held.info()["holding"] is False
    held.enq(id=uid(5))
    assert worker.ids[-1] == uid(5)


def test_job_that_ran_before_the_hold_is_reported_and_its_retry_waits() -> None:
    rig = EngineRig()
    worker = rig.worker(10, "any", "Mail", capacity=9)
    rig.enq(key="a")
    rig.enq(key="b")
    rig.engine.desk.is_holding = True

    worker.succeed(worker.jobs[0])
    worker.fail(worker.jobs[1])
    rig.tick(5)

    assert rig.state("a") == "done"
    assert rig.state("b") == "ready"
    assert len(worker.jobs) == 2


def test_engine_that_holds_comes_to_rest(held: EngineRig) -> None:
    held.worker(10, "any", "Mail")
    held.enq()
    held.tick(3)

    assert held.engine.wake_in_us(held.now) > 0


def test_resume_that_is_sent_again_gets_the_same_answer_and_ends_no_later_hold(held: EngineRig) -> None:
    assert resume(held, uid(1))
    assert resume(held, uid(1))
    assert not resume(held, uid(2))

    held.engine.desk.is_holding = True
    assert resume(held, uid(1))

    assert held.engine.desk.is_holding


def test_end_of_a_hold_is_news_once(held: EngineRig) -> None:
    resume(held, uid(1))
    resume(held, uid(2))

    assert [each for each in held.closed if isinstance(each, JournalEntry)] == [JournalEntry("resumed", 1)]


def test_queue_of_the_test_kit_never_holds() -> None:
    assert Queue({}).resume() is False
