"""The commands of clients: enq and its due, cancel, ext, replace, reschedule and requeue (T1, T2, T10 to T12)."""

from __future__ import annotations

import pytest
from engine_rig import EngineRig, bring, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import sharing
from givalia_core.engine.records import Hook
from givalia_core.errors import (
    BadRequest,
    DuplicateKey,
    NotFound,
    TooLarge,
    WrongState,
)
from givalia_core.model import (
    TEN_YEARS_US,
    WAITING,
)
from givalia_core.protocol import codec
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.shared import Event
from givalia_core.views import text_id


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


# T1: enq.


def test_t1_an_enqueued_job_waits_and_is_stored_before_the_answer(rig: EngineRig) -> None:
    job_id, due_us, durability = rig.enq(id=uid(1), key="k", delay_us=10 * SECOND_US, params=b"p")

    assert (job_id, due_us, durability) == (uid(1), rig.now.wall_us + 10 * SECOND_US, rig.store.durability)
    assert rig.stored(uid(1)).state is WAITING
    assert rig.stored(uid(1)).params == b"p"
    assert rig.stat("k")["timeleft_us"] == 10 * SECOND_US
    assert [hook.name for hook in rig.hooks] == ["on_enq"]


def test_t1_an_absolute_time_in_the_past_means_now(rig: EngineRig) -> None:
    _, due_us, _ = rig.enq(at_us=rig.now.wall_us - 10**12)

    assert due_us == rig.now.wall_us


def test_an_absolute_time_over_ten_years_ahead_is_refused(rig: EngineRig) -> None:
    assert isinstance(rig.enq(at_us=rig.now.wall_us + TEN_YEARS_US + 1), BadRequest)
    assert isinstance(rig.enq(at_us=rig.now.wall_us + TEN_YEARS_US), tuple)


def test_a_message_that_could_not_be_decoded_is_answered_in_its_place(rig: EngineRig) -> None:
    answers = rig.ask(Kind.ENQ, m.Enq(uid(1), "Mail"), BadRequest("no"), m.Enq(uid(2), "Mail"))

    assert [type(answer) for answer in answers] == [tuple, BadRequest, tuple]


NOT_MANY = (Kind.HELLO, Kind.CLOCK, Kind.INFO, Kind.MODULES, Kind.WORKERS)


@pytest.mark.parametrize("kind", [kind for kind in codec.TABLE if kind not in NOT_MANY])
def test_whatever_could_not_be_decoded_is_refused_and_harms_nothing(rig: EngineRig, kind: Kind) -> None:
    worker = rig.worker(10, "any", "Mail", capacity=1)
    rig.enq(id=uid(1))
    conn = worker.conn if kind in m.WORKER_KINDS else 1

    answers = rig.ask(kind, TooLarge("a result too large"), conn=conn)

    assert [type(answer) for answer in answers] == [TooLarge]
    assert rig.state(id=uid(1)) == "running"


def test_an_empty_frame_is_answered_empty(rig: EngineRig) -> None:
    for kind in (Kind.ENQ, Kind.STAT, Kind.CANCEL):
        assert rig.ask(kind) == []


# T2: due.


def test_t2_a_job_is_ready_at_its_due_with_nothing_written(rig: EngineRig) -> None:
    rig.enq(id=uid(1), delay_us=2 * SECOND_US)
    version = rig.stored(uid(1)).version
    rig.tick(1.999999)
    before = rig.state(id=uid(1))
    rig.tick(0.000001)

    assert (before, rig.state(id=uid(1))) == ("waiting", "ready")
    assert rig.stat(id=uid(1))["timeleft_us"] == 0
    assert rig.stored(uid(1)).version == version


def test_a_stall_of_the_loop_holds_up_a_job_and_never_loses_it(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), delay_us=SECOND_US)

    rig.clock.advance(5)
    rig.turn()

    assert worker.ids == [uid(1)]


# T10: cancel.


@pytest.mark.parametrize("delay_us", [0, 10 * SECOND_US])
def test_t10_a_cancelled_job_never_starts(rig: EngineRig, delay_us: int) -> None:
    rig.enq(id=uid(1), key="k", delay_us=delay_us)

    assert rig.cancel("k") == ("cancelled",)

    worker = rig.worker()
    rig.tick(12)
    assert worker.jobs == []
    assert rig.state("k") == "cancelled"
    assert [(hook.name, hook.extra) for hook in rig.hooks][-1] == ("on_cancel", {"running": False})


def test_a_cancel_after_an_ext_finds_the_job_and_it_never_runs(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(key="k", delay_us=2 * SECOND_US)
    rig.ext("k", delta_us=2 * SECOND_US)

    assert rig.cancel("k") == ("cancelled",)

    rig.tick(6)
    assert worker.jobs == []


def test_a_job_cancelled_in_the_batch_that_made_it_never_starts(rig: EngineRig) -> None:
    worker = rig.worker()

    rig.batch(
        rig.frame(Kind.ENQ, m.Enq(uid(1), "Mail", key="k")),
        rig.frame(Kind.CANCEL, m.Cancel(uid(2), "k")),
    )

    assert worker.jobs == []
    assert rig.state("k") == "cancelled"


def test_a_cancelled_job_cancelled_again_answers_the_same(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k")
    rig.cancel("k")

    assert rig.cancel("k") == rig.cancel(id=uid(1)) == ("cancelled",)


def test_what_has_ended_otherwise_cannot_be_cancelled(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.succeed()

    error = rig.cancel(id=uid(1))

    assert isinstance(error, WrongState)
    assert error.state == "done"


def test_c3_a_running_job_answers_running_and_goes_on(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    error = rig.cancel(id=uid(1))

    assert isinstance(error, WrongState)
    assert error.state == "running"
    assert rig.stops == []
    worker.succeed()
    assert rig.state(id=uid(1)) == "done"


def test_c3_a_stop_is_told_at_once_and_with_each_beat(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    rig.cancel(id=uid(1), running=True)
    told = list(rig.stops)
    worker.beat(worker.last)

    assert told == [(worker.conn, m.Stop(uid(1), worker.last.fence))]
    assert rig.stops == [*told, (worker.conn, m.Stop(uid(1), worker.last.fence, again=True))]
    assert rig.stat(id=uid(1))["stop_asked"] is True
    assert rig.stored(uid(1)).stop_asked


def test_c3_a_stop_survives_a_restart_and_is_told_when_the_worker_is_back(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    held = worker.last
    rig.cancel(id=uid(1), running=True)
    rig.restart()
    rig.stops.clear()

    again = rig.worker(11, "any", "Mail", instance=uid(10))
    again.resume(held)

    assert rig.stops == [(11, m.Stop(uid(1), held.fence, again=True))]
    again.fail(held)
    assert rig.state(id=uid(1)) == "cancelled"


# T11: ext, replace, reschedule.


def test_t11_ext_adds_to_the_due_and_no_attempt_starts_before_it(rig: EngineRig) -> None:
    worker = rig.worker()
    _, due_us, _ = rig.enq(id=uid(1), key="k", delay_us=2 * SECOND_US)

    assert rig.ext("k", delta_us=3 * SECOND_US) == (uid(1), due_us + 3 * SECOND_US)

    rig.tick(4.9)
    assert worker.jobs == []
    rig.tick(0.2)
    assert worker.ids == [uid(1)]
    assert [hook.name for hook in rig.hooks] == ["on_enq", "on_ext"]


def test_c4_ext_of_a_ready_job_counts_from_now(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k")
    rig.tick(5)

    _, due_us = rig.ext("k", delta_us=3 * SECOND_US)

    assert due_us == rig.now.wall_us + 3 * SECOND_US
    assert rig.state("k") == "waiting"


def test_ext_brings_forward_but_never_before_now(rig: EngineRig) -> None:
    _, due_us, _ = rig.enq(key="k", delay_us=10 * SECOND_US)

    assert rig.ext("k", delta_us=-4 * SECOND_US)[1] == due_us - 4 * SECOND_US
    assert rig.ext("k", delta_us=-60 * SECOND_US)[1] == rig.now.wall_us


def test_ext_to_an_instant_makes_the_job_absolute(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=10 * SECOND_US)
    at_us = rig.now.wall_us + 100 * SECOND_US

    assert rig.ext("k", at_us=at_us) == (uid(1), at_us)

    assert rig.stored(uid(1)).on_wall
    rig.ext("k", delta_us=SECOND_US)
    assert rig.stored(uid(1)).on_wall


@pytest.mark.parametrize("fields", [{}, {"delta_us": 1, "at_us": 1}])
def test_ext_takes_a_time_or_an_instant(rig: EngineRig, fields: dict[str, int]) -> None:
    rig.enq(key="k", delay_us=SECOND_US)

    assert isinstance(rig.ext("k", **fields), BadRequest)


def test_ext_over_ten_years_ahead_is_refused(rig: EngineRig) -> None:
    rig.enq(key="k", delay_us=TEN_YEARS_US)

    assert isinstance(rig.ext("k", delta_us=1), BadRequest)
    assert isinstance(rig.ext("k", at_us=rig.now.wall_us + TEN_YEARS_US + 1), BadRequest)


@pytest.mark.parametrize("state", ["running", "done", "cancelled", "dead"])
def test_ext_of_what_has_started_or_ended_is_refused(rig: EngineRig, state: str) -> None:
    bring(rig, state)

    error = rig.ext(id=uid(1), delta_us=1)

    assert isinstance(error, WrongState)
    assert error.state == state


@pytest.mark.parametrize("state", ["waiting", "ready", "running"])
def test_if_exists_refuse_names_the_live_job_and_changes_nothing(rig: EngineRig, state: str) -> None:
    bring(rig, state)
    before = rig.stored(uid(1))

    error = rig.enq(id=uid(2), key="k")

    assert isinstance(error, DuplicateKey)
    assert error.id == text_id(uid(1))
    assert rig.stored(uid(1)) == before
    assert isinstance(rig.stat(id=uid(2)), NotFound)


@pytest.mark.parametrize("state", ["waiting", "ready", "running"])
def test_if_exists_keep_answers_with_the_live_job_and_changes_nothing(rig: EngineRig, state: str) -> None:
    bring(rig, state)
    before = rig.stored(uid(1))

    job_id, due_us, _ = rig.enq(id=uid(2), key="k", if_exists="keep", delay_us=99 * SECOND_US)

    assert (job_id, due_us) == (uid(1), rig.stat("k")["due_us"])
    assert rig.stored(uid(1)) == before


@pytest.mark.parametrize("state", ["waiting", "ready"])
def test_if_exists_replace_changes_the_job_in_place(rig: EngineRig, state: str) -> None:
    bring(rig, state, params=b"old", priority=5)

    job_id, due_us, _ = rig.enq(
        "Fax", id=uid(2), key="k", if_exists="replace", delay_us=30 * SECOND_US, params=b"new", target_worker="w",
        max_attempts=2, expires_us=SECOND_US, retain_us=5,
    )  # fmt: skip

    job = rig.stored(uid(1))
    assert (job_id, due_us) == (uid(1), rig.now.wall_us + 30 * SECOND_US)
    assert (job.module, job.params, job.priority, job.target_worker, job.max_attempts) == ("Fax", b"new", 0, "w", 2)
    assert (job.retain_us, job.expires_at_us) == (5, job.due_at_us + SECOND_US)
    assert rig.store.counts() == {("Fax", WAITING): 1}


def test_if_exists_reschedule_changes_the_due_only(rig: EngineRig) -> None:
    bring(rig, "waiting", params=b"old", priority=5)
    before = rig.stored(uid(1))

    rig.enq("Fax", id=uid(2), key="k", if_exists="reschedule", delay_us=30 * SECOND_US, params=b"new")

    after = rig.stored(uid(1))
    assert after.due_at_us == rig.now.timer_us + 30 * SECOND_US
    assert after == before.changed(due_at_us=after.due_at_us, version=before.version + 1, answered=after.answered)


@pytest.mark.parametrize("if_exists", ["replace", "reschedule"])
def test_a_running_job_is_neither_replaced_nor_rescheduled(rig: EngineRig, if_exists: str) -> None:
    bring(rig, "running")

    error = rig.enq(id=uid(2), key="k", if_exists=if_exists)

    assert isinstance(error, WrongState)
    assert error.state == "running"


@pytest.mark.parametrize("if_exists", m.IF_EXISTS)
@pytest.mark.parametrize("state", ["done", "cancelled", "dead"])
def test_a_key_whose_job_has_ended_is_free_whatever_if_exists_says(rig: EngineRig, state: str, if_exists: str) -> None:
    worker = bring(rig, state)
    worker.credit(0)

    assert rig.enq(id=uid(2), key="k", if_exists=if_exists)[0] == uid(2)
    assert rig.stat("k")["id"] == uid(2)


@pytest.mark.parametrize("if_exists", ["replace", "reschedule"])
def test_c1_a_resent_replace_or_reschedule_changes_nothing_more(rig: EngineRig, if_exists: str) -> None:
    bring(rig, "waiting")
    first = rig.enq(id=uid(2), key="k", if_exists=if_exists, delay_us=30 * SECOND_US)
    rig.tick(3)

    again = rig.enq(id=uid(2), key="k", if_exists=if_exists, delay_us=30 * SECOND_US)

    assert again == first


# T12: requeue.


@pytest.mark.parametrize("state", ["dead", "cancelled"])
def test_t12_a_requeued_job_has_all_its_attempts_and_its_fence_goes_on(rig: EngineRig, state: str) -> None:
    worker = bring(rig, state)
    fence = rig.stored(uid(1)).fence

    assert rig.requeue("k", delay_us=2 * SECOND_US) == (uid(1), rig.now.wall_us + 2 * SECOND_US)
    worker.credit(1)
    rig.tick(2)

    assert worker.last.attempt == 1
    assert worker.last.fence > fence
    assert worker.succeed() == ()


@pytest.mark.parametrize("state", ["waiting", "ready", "running", "done"])
def test_c8_nothing_else_can_be_requeued(rig: EngineRig, state: str) -> None:
    bring(rig, state)

    error = rig.requeue(id=uid(1))

    assert isinstance(error, WrongState)
    assert (error.state, rig.stat(id=uid(1))["state"]) == (state, state)


def test_a_requeue_by_key_of_a_key_that_is_taken_is_refused(rig: EngineRig) -> None:
    bring(rig, "cancelled")
    rig.enq(id=uid(2), key="k", delay_us=SECOND_US)

    error = rig.requeue("k")

    assert isinstance(error, DuplicateKey)
    assert error.id == text_id(uid(2))


def test_a_requeue_by_id_of_a_job_whose_key_is_taken_is_refused(rig: EngineRig) -> None:
    bring(rig, "cancelled")
    rig.enq(id=uid(2), key="k", delay_us=SECOND_US)

    error = rig.requeue(id=uid(1))

    assert isinstance(error, DuplicateKey)
    assert error.id == text_id(uid(2))
    assert rig.state(id=uid(1)) == "cancelled"


def test_a_requeue_by_key_takes_the_job_that_ended_last(rig: EngineRig) -> None:
    for number in (1, 2, 3):
        rig.enq(id=uid(number), key="k", delay_us=SECOND_US)
        rig.cancel("k")

    assert rig.requeue("k")[0] == uid(3)


def test_c1_a_resent_requeue_answers_the_same(rig: EngineRig) -> None:
    bring(rig, "cancelled")
    first = rig.requeue("k", request=uid(9))
    rig.tick(2)

    assert rig.requeue("k", request=uid(9)) == first


def test_a_requeue_is_told_once_however_often_it_is_sent(rig: EngineRig) -> None:
    bring(rig, "cancelled")
    rig.hooks.clear()

    rig.requeue("k", request=uid(9))
    rig.requeue("k", request=uid(9))

    assert [(hook.name, hook.job.attempt) for hook in rig.hooks] == [("on_requeue", 0)]


def test_a_success_is_told_once_however_often_it_is_reported(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    rig.hooks.clear()

    worker.succeed()
    worker.succeed()

    assert [(hook.name, hook.job.id) for hook in rig.hooks] == [("on_done", uid(1))]


def test_a_hook_that_nobody_listens_to_makes_no_effect(rig: EngineRig) -> None:
    rig.engine.desk.listening = frozenset({"on_dead"})
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.succeed()

    assert rig.hooks == []


def test_a_death_that_another_decided_is_told_with_its_reason(rig: EngineRig) -> None:
    rig.enq(id=uid(1), max_attempts=1)
    rig.worker().fail(error="why")

    (hook,) = sharing.hooks(rig.engine.desk, [Event("on_dead", rig.stored(uid(1)), None)])

    assert isinstance(hook, Hook)
    assert hook.extra == {"reason": "exhausted", "error": "why"}
