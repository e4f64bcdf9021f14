"""Callers that wait for the end of a job."""

from __future__ import annotations

from typing import Any

import pytest
from engine_rig import EngineRig, bring, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine.records import Gone, Hook, Reply, Tell
from givalia_core.errors import (
    NotFound,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


def wait(rig: EngineRig, key: str | None = None, conn: int = 5, **fields: Any) -> Asked:
    frame = rig.frame(Kind.WAIT, m.Wait(key, **fields), conn=conn)
    rig.turn(frame)
    return frame


def test_a_wait_is_answered_when_the_job_is_done_and_not_before(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), key="k")
    first, second = wait(rig, "k"), wait(rig, id=uid(1), conn=6)
    assert (first.conn, first.request) not in rig.replies

    worker.succeed(result=b"42")

    for frame in (first, second):
        assert rig.replies[frame.conn, frame.request] == [(("OK", "done", None), b"42")]


def test_a_wait_tells_of_every_kind_of_end(rig: EngineRig) -> None:
    for number, key in enumerate(("dead", "cancelled", "expired"), 1):
        rig.enq(
            "Unknown" if key == "expired" else "Mail", id=uid(number), key=key, expires_us=SECOND_US if number == 3 else None
        )
    frames = [wait(rig, key) for key in ("dead", "cancelled", "expired")]
    rig.cancel("cancelled")

    worker = rig.worker()
    worker.fail(permanent=True, error="why")
    rig.tick(3)

    answers = [rig.answers(frame)[0] for frame in frames]
    assert answers == [("dead", "failed", "why"), ("cancelled",), ("dead", "expired", None)]


def test_a_wait_for_a_job_that_has_ended_is_answered_at_once(rig: EngineRig) -> None:
    bring(rig, "done")

    assert rig.answers(wait(rig, "k")) == [("done", None)]
    assert isinstance(rig.answers(wait(rig, "none"))[0], NotFound)


def test_a_wait_asked_with_its_enq_in_one_batch_is_pushed(rig: EngineRig) -> None:
    worker = rig.worker()
    frame = rig.frame(Kind.WAIT, m.Wait(None, uid(1)))

    rig.turn(rig.frame(Kind.ENQ, m.Enq(uid(1), "Mail")), frame)
    worker.succeed()

    assert rig.answers(frame) == [("done", None)]


def test_whoever_waits_and_leaves_is_forgotten(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    gone, stays = wait(rig, id=uid(1), conn=5), wait(rig, id=uid(1), conn=6)

    rig.turn(Gone(5))
    worker.succeed()

    assert (gone.conn, gone.request) not in rig.replies
    assert rig.answers(stays) == [("done", None)]
    assert not list(rig.engine.desk.waits)


def test_progress_is_told_to_those_who_wait_and_want_to_hear_of_it(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    wants, other, does_not = (
        wait(rig, id=uid(1), conn=5, progress=True), wait(rig, id=uid(1), conn=5, progress=True), wait(rig, id=uid(1), conn=6)
    )  # fmt: skip

    worker.progress(0.5, "half")

    assert rig.progressed == [(5, m.Progressed(wants.request, 0.5, "half")), (5, m.Progressed(other.request, 0.5, "half"))]
    assert (does_not.conn, does_not.request) not in rig.replies


def test_of_progress_in_one_batch_only_the_newest_is_told(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    frame = wait(rig, id=uid(1), progress=True)

    effects = rig.turn(*[rig.frame(Kind.PROGRESS, m.Progress(uid(1), worker.last.fence, n / 10), conn=10) for n in range(10)])

    assert rig.progressed == [(5, m.Progressed(frame.request, 0.9))]
    assert sum(isinstance(effect, Tell) for effect in effects) == 1


def test_progress_of_the_batch_in_which_a_job_ends_is_told_before_the_end(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    frame = wait(rig, id=uid(1), progress=True)

    effects = rig.turn(
        rig.frame(Kind.PROGRESS, m.Progress(uid(1), worker.last.fence, 1.0), conn=10),
        rig.frame(Kind.SUCCEED, m.Succeed(uid(1), worker.last.fence), conn=10),
    )

    heard = [effect for effect in effects if not isinstance(effect, Hook) and effect.conn == frame.conn]
    assert [type(effect) for effect in heard] == [Tell, Reply]


def test_the_last_known_progress_is_told_when_a_wait_begins(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    wait(rig, id=uid(1), progress=True)
    assert rig.progressed == [], "nothing was said yet"
    worker.progress(0.5, "half")

    late = wait(rig, id=uid(1), conn=6, progress=True)

    assert rig.progressed[1:] == [(6, m.Progressed(late.request, 0.5, "half"))]


def test_progress_of_the_attempt_before_is_not_told(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.progress(0.5, "half")
    worker.fail()
    rig.tick(2)

    wait(rig, id=uid(1), progress=True)

    assert rig.progressed == []


def test_progress_is_not_piled_up_for_one_who_does_not_read(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    frame = wait(rig, id=uid(1), progress=True)

    rig.engine.desk.clogged = frozenset({frame.conn})
    worker.progress(0.25)
    rig.engine.desk.clogged = frozenset()
    worker.progress(0.5)

    assert rig.progressed == [(5, m.Progressed(frame.request, 0.5))]


def test_a_wait_goes_on_over_a_retry(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    frame = wait(rig, id=uid(1))
    worker.fail()
    rig.tick(2)

    worker.succeed()

    assert rig.answers(frame) == [("done", None)]
