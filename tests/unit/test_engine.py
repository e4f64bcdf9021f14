"""Every decision, driven as the server drives it: T1 to T14, C1 to C8, K1 to K5, order, credits, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgpack
import pytest
from engine_rig import EngineRig, WorkerRig, uid

from givalia_core.clock import SECOND_US, Mark, Now
from givalia_core.engine import sharing
from givalia_core.engine.records import Asked, Gone, Hook, Reply, Tell
from givalia_core.errors import (
    BadRequest,
    Busy,
    DuplicateKey,
    GivaliaError,
    NotFound,
    ShuttingDown,
    Stale,
    StoreFull,
    TooLarge,
    WrongState,
)
from givalia_core.model import (
    CANCELLED,
    CHILD_DEATHS_MAX,
    DEAD,
    DONE,
    RELEASES_MAX,
    RUNNING,
    TEN_YEARS_US,
    WAITING,
    Answered,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Change, Commit, Event, Found, Retention, Wanted
from givalia_core.store.memory import Memory
from givalia_core.views import text_id


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


def beating(rig: EngineRig, worker: WorkerRig, seconds: int) -> None:
    """Let time pass while the worker beats for all it ever got."""
    for _ in range(seconds):
        rig.tick(1)
        worker.beat(*worker.jobs)


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


@pytest.mark.parametrize("kind", [kind for kind in m.TABLE if kind not in NOT_MANY])
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


# T3: claim.


def test_t3_a_due_job_goes_to_a_free_worker_in_the_very_turn_of_its_enq(rig: EngineRig) -> None:
    worker = rig.worker()

    rig.enq(id=uid(1), key="k", params=b"p", priority=3, timeout_us=5 * SECOND_US)

    given = m.Dispatch(uid(1), worker.last.fence, "Mail", 1, rig.now.wall_us, "k", "any", 3, 5 * SECOND_US, payload=b"p")
    assert worker.last == given
    stored = rig.stored(uid(1))
    assert (stored.state, stored.attempt, stored.fence, stored.worker) == ("running", 1, worker.last.fence, "any")


def test_t3_a_timer_goes_out_when_it_falls_due(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), delay_us=1_500_000)
    assert rig.engine.wake_in_us(rig.now) == SECOND_US

    rig.clock.advance(1)
    rig.turn()
    assert rig.engine.wake_in_us(rig.now) == SECOND_US // 2
    assert worker.jobs == []
    rig.clock.advance(0.5)
    rig.turn()

    assert worker.ids == [uid(1)]


def test_no_wait_is_longer_than_a_second(rig: EngineRig) -> None:
    rig.worker()
    rig.enq(delay_us=TEN_YEARS_US)

    assert rig.engine.wake_in_us(rig.now) == SECOND_US


def test_what_enq_left_open_is_filled_in_by_the_module_and_then_the_server(rig: EngineRig) -> None:
    announced = m.Announce(
        "Mail", "dist", "1", max_attempts=9, timeout_us=3 * SECOND_US, backoff_us=2 * SECOND_US, backoff_max_us=7 * SECOND_US
    )
    rig.worker(10, "any", announced, "Fax", capacity=9)

    rig.enq(id=uid(1))
    rig.enq(id=uid(2), max_attempts=2, timeout_us=8 * SECOND_US)
    rig.enq("Fax", id=uid(3))

    one, two, three = (rig.stored(uid(number)) for number in (1, 2, 3))
    assert (one.max_attempts, one.timeout_us, one.backoff_us) == (9, 3 * SECOND_US, (2 * SECOND_US, 7 * SECOND_US))
    assert (two.max_attempts, two.timeout_us) == (2, 8 * SECOND_US)
    assert (three.max_attempts, three.timeout_us, three.backoff_us) == (5, None, (SECOND_US, 600 * SECOND_US))


def test_a_job_whose_module_nobody_has_waits_and_holds_up_nobody(rig: EngineRig) -> None:
    worker = rig.worker(capacity=2)

    rig.enq("Unknown", id=uid(1), priority=9)
    rig.enq(id=uid(2))

    assert worker.ids == [uid(2)]
    assert rig.state(id=uid(1)) == "ready"
    assert "no worker has module Unknown" in rig.stat(id=uid(1))["why"]
    rig.worker(11, "any", "Unknown")
    assert rig.state(id=uid(1)) == "running"


# T4: succeed.


def test_t4_a_job_that_succeeds_is_done_with_its_result(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), key="k")

    assert worker.succeed(result=b"42") == ()

    frame = rig.frame(Kind.STAT, m.Stat("k"))
    rig.turn(frame)
    assert rig.replies[frame.conn, frame.request][0][1] == b"42"
    assert rig.state("k") == "done"
    assert rig.stored(uid(1)).forget_at_us == rig.stored(uid(1)).ended_at_us + rig.policy.retain_us


def test_t4_a_success_after_a_stop_was_asked_is_done(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    rig.cancel(id=uid(1), running=True)

    worker.succeed()

    assert rig.state(id=uid(1)) == "done"


def test_a_result_that_was_lost_is_said_and_the_job_is_done(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    worker.succeed(result=b"ignored", result_error="TOO_LARGE")

    assert rig.stat(id=uid(1))["result_error"] == "TOO_LARGE"
    assert rig.stored(uid(1)).result is None


# T5: fail and try again.


def test_t5_a_failed_attempt_is_tried_again_after_a_doubled_wait_with_jitter(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), max_attempts=5)
    waits = []
    for attempt in range(1, 5):
        assert worker.last.attempt == attempt
        worker.fail(error=f"no {attempt}")
        waits.append(rig.stat(id=uid(1))["timeleft_us"] / SECOND_US / 2 ** (attempt - 1))
        rig.tick(20)
        worker.beat()

    assert all(0.8 <= wait <= 1.2 for wait in waits)
    assert len(set(waits)) == 4
    assert [hook.name for hook in rig.hooks if hook.name == "on_retry"] == ["on_retry"] * 4
    retry = next(hook for hook in rig.hooks if hook.name == "on_retry")
    assert (retry.extra["outcome"].kind, retry.extra["outcome"].error) == ("failed", "no 1")


def test_a_wait_between_attempts_is_bounded() -> None:
    rig = EngineRig(backoff_us=SECOND_US, backoff_max_us=4 * SECOND_US)
    worker = rig.worker()
    rig.enq(id=uid(1), max_attempts=100)

    for _ in range(70):
        worker.fail()
        assert rig.stat(id=uid(1))["timeleft_us"] <= 4.8 * SECOND_US
        beating(rig, worker, 6)

    assert worker.last.attempt == 71


def test_a_worker_may_say_how_long_to_wait(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    worker.fail(after_us=123_000_000)

    assert rig.stat(id=uid(1))["timeleft_us"] == 123_000_000


def test_a_retry_of_an_absolute_job_runs_on_the_timer_clock(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), at_us=rig.now.wall_us)
    worker.fail(after_us=2 * SECOND_US)

    rig.clock.step_wall(-3_600)
    rig.tick(2)

    assert worker.last.attempt == 2


# T6: the lease ends.


def test_t6_a_lease_that_nobody_renewed_ends_and_the_attempt_counts(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.leave()

    fence = worker.last.fence
    rig.tick(29)
    before = rig.state(id=uid(1))
    rig.tick(3)

    assert before == "running"
    assert "its lease ended with no report" in rig.stat(id=uid(1))["error"]
    again = rig.worker(11)
    assert again.last.attempt == 2
    assert again.last.fence > fence


def test_a_lease_lives_as_long_as_its_worker_beats(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    for _ in range(12):
        rig.tick(10)
        assert worker.beat(worker.last) == [()]

    assert rig.state(id=uid(1)) == "running"


def test_a_lease_runs_from_the_workers_last_message_and_says_which_that_was(rig: EngineRig) -> None:
    worker = rig.worker()
    worker.beat()
    newest = rig._request
    rig.tick(15)

    rig.enq(id=uid(1))

    dispatched = rig.dispatched[worker.conn][0]
    assert dispatched.heard == newest
    assert dispatched.lease_us == rig.policy.lease_us
    worker.leave()
    rig.tick(14)
    before = rig.state(id=uid(1))
    rig.tick(2)
    assert before == "running"
    assert rig.state(id=uid(1)) != "running"


def test_a_worker_that_misses_two_beats_is_disconnected_and_gets_nothing_more(rig: EngineRig) -> None:
    worker = rig.worker()

    rig.tick(25)

    assert [close.conn for close in rig.closed] == [worker.conn]
    rig.enq(id=uid(1))
    assert worker.jobs == []


def test_a_worker_that_lets_go_of_a_job_at_the_leases_end_is_told_stale(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    for _ in range(32):
        rig.tick(1)
        worker.beat()  # It lives, but does not name the job.

    assert isinstance(worker.beat(worker.jobs[0])[0], Stale)
    assert isinstance(worker.succeed(worker.jobs[0]), Stale)


# T7: dead.


def test_t7_the_last_attempt_that_fails_ends_the_job(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), max_attempts=2)
    worker.fail(error="one")
    rig.tick(2)

    worker.fail(error="two")

    status = rig.stat(id=uid(1))
    assert (status["state"], status["reason"], status["error"], status["attempts"]) == ("dead", "exhausted", "two", 2)
    assert rig.hooks[-1].name == "on_dead"
    assert rig.hooks[-1].extra == {"reason": "exhausted", "error": "two"}
    assert rig.stored(uid(1)).forget_at_us == rig.stored(uid(1)).ended_at_us + rig.policy.retain_dead_us


def test_t7_a_permanent_failure_ends_the_job_at_once(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    worker.fail(permanent=True)

    assert rig.stat(id=uid(1))["reason"] == "failed"


def test_t7_the_lease_of_the_last_attempt_ends_the_job(rig: EngineRig) -> None:
    rig.worker()
    rig.enq(id=uid(1), max_attempts=1)

    rig.tick(33)

    assert rig.stat(id=uid(1))["reason"] == "exhausted"


def test_c6_attempts_lost_to_crashes_count(rig: EngineRig) -> None:
    rig.enq(id=uid(1), max_attempts=3)
    for number in range(3):
        rig.worker(20 + number)
        rig.restart()
        rig.tick(35)

    assert rig.stat(id=uid(1))["state"] == "dead"
    assert rig.stat(id=uid(1))["attempts"] == 3


def test_the_answer_to_a_failure_says_what_follows(rig: EngineRig) -> None:
    worker = rig.worker(capacity=3)
    rig.enq(id=uid(1), max_attempts=2)
    state, most, delay_us = worker.fail()
    assert (state, most) == ("waiting", 2)
    assert 0.8 * SECOND_US <= delay_us <= 1.2 * SECOND_US
    rig.tick(2)
    assert worker.fail() == ("dead", 2)

    rig.enq(id=uid(2))
    assert worker.fail(after_us=90 * SECOND_US) == ("waiting", 5, 90 * SECOND_US)
    rig.enq(id=uid(3))
    assert worker.fail(permanent=True) == ("dead", 5)

    rig.enq(id=uid(4))
    rig.cancel(id=uid(4), running=True)
    assert worker.fail(kind="stopped") == ("cancelled", 5)


# T8: stopped.


@pytest.mark.parametrize("how", ["fail", "permanent", "timeout", "release", "lease"])
def test_t8_a_stopped_job_that_does_not_succeed_is_cancelled_and_never_retried(rig: EngineRig, how: str) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    assert rig.cancel(id=uid(1), running=True) == ("stop_requested",)

    if how == "lease":
        rig.tick(35)
    elif how == "release":
        worker.release()
    else:
        worker.fail(kind="timeout" if how == "timeout" else "stopped", permanent=how == "permanent")

    assert rig.state(id=uid(1)) == "cancelled"
    rig.tick(5)
    assert len(worker.jobs) == 1


# T9: release.


def test_t9_a_released_job_goes_back_with_its_attempt_and_its_due(rig: EngineRig) -> None:
    first = rig.worker()
    rig.enq(id=uid(1))
    due_us = rig.stat(id=uid(1))["due_us"]
    first.credit(0)

    assert first.release() == ()

    status = rig.stat(id=uid(1))
    assert (status["state"], status["attempts"], status["due_us"]) == ("ready", 0, due_us)
    again = rig.worker(11)
    assert again.last.attempt == 1
    assert again.last.fence > first.last.fence


def test_t9_a_job_that_is_released_too_often_counts_as_failed(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), max_attempts=2)

    for _ in range(RELEASES_MAX):
        assert worker.release() == ()
    before = rig.stat(id=uid(1))
    worker.release()

    assert (before["state"], before["attempts"]) == ("running", 1)
    assert len(worker.jobs) == RELEASES_MAX + 1
    assert rig.state(id=uid(1)) == "waiting"
    rig.tick(2)
    assert worker.last.attempt == 2


def test_t9_a_job_whose_process_was_replaced_gets_its_attempt_back_however_often(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.ask(Kind.ENQ, m.Enq(uid(1), "Mail", max_attempts=1))

    for _ in range(20):
        worker.release(replaced=True)

    assert (rig.stored(uid(1)).attempt, rig.stored(uid(1)).replacements) == (1, 20)
    worker.succeed()
    assert rig.state(id=uid(1)) == "done"


def test_t9_a_job_that_has_started_does_not_expire_any_more_though_its_attempt_was_given_back(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), expires_us=SECOND_US)
    worker.release(replaced=True)
    worker.credit(0)
    worker.release()

    rig.tick(5)

    assert rig.state(id=uid(1)) == "ready"


def test_t8_a_job_that_was_asked_to_stop_is_cancelled_when_its_process_is_replaced(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.ask(Kind.ENQ, m.Enq(uid(1), "Mail"))
    rig.ask(Kind.CANCEL, m.Cancel(uid(2), id=uid(1), running=True))

    worker.release(replaced=True)

    assert rig.stored(uid(1)).state is CANCELLED


def test_t7_a_job_that_takes_its_process_with_it_three_times_is_dead(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", m.Announce("Mail", "d", "1", "greenlet", 9, None, 0))
    rig.ask(Kind.ENQ, m.Enq(uid(1), "Mail"))
    for _ in range(CHILD_DEATHS_MAX):
        assert rig.stored(uid(1)).state is RUNNING
        worker.fail(kind="died", error="child_died: SIGSEGV", child_died=True)

    job = rig.stored(uid(1))
    assert (job.state, job.reason, job.attempt, job.deaths) == (DEAD, "child_died", 3, 3)


def test_t9_a_released_job_can_expire_again(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), expires_us=5 * SECOND_US)
    worker.credit(0)
    worker.release()

    rig.tick(5)

    assert rig.stat(id=uid(1))["reason"] == "expired"


def test_t9_a_worker_that_comes_back_gives_back_what_never_reached_it(rig: EngineRig) -> None:
    worker = rig.worker(10, "w", "Mail", capacity=2)
    rig.enq(id=uid(1))
    rig.enq(id=uid(2))
    reached, lost = worker.jobs
    worker.leave()

    again = rig.worker(11, "w", "Mail", capacity=0, instance=uid(10))
    assert again.resume(reached) == [()]

    assert rig.state(id=reached.id) == "running"
    assert (rig.state(id=lost.id), rig.stat(id=lost.id)["attempts"]) == ("ready", 0)
    assert again.succeed(reached) == ()


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


def bring(rig: EngineRig, state: str, **fields: Any) -> WorkerRig:
    """Job 1 of key k in this state."""
    worker = rig.worker(capacity=0 if state in ("waiting", "ready", "cancelled") else 1)
    rig.enq(id=uid(1), key="k", delay_us=10 * SECOND_US if state in ("waiting", "cancelled") else 0, **fields)
    if state == "done":
        worker.succeed()
    elif state == "dead":
        worker.fail(permanent=True)
    elif state == "cancelled":
        rig.cancel("k")
    assert rig.state(id=uid(1)) == state
    return worker


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
    assert after == before._replace(due_at_us=after.due_at_us, version=before.version + 1, answered=after.answered)


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


# T13: forgetting.


def test_t13_an_ended_job_is_forgotten_after_its_retention() -> None:
    rig = EngineRig(retain_us=300 * SECOND_US)
    worker = rig.worker()
    rig.enq(id=uid(1), key="k")
    worker.succeed()

    rig.tick(299)
    before = rig.state("k")
    rig.tick(3)

    assert before == "done"
    assert isinstance(rig.stat("k"), NotFound)
    assert isinstance(rig.stat(id=uid(1)), NotFound)
    assert rig.store.counts() == {}


def test_t13_a_job_may_set_its_own_retention_yet_is_remembered_two_minutes(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), retain_us=0)
    worker.succeed()

    rig.tick(119)
    before = rig.state(id=uid(1))
    rig.tick(3)

    assert before == "done"
    assert isinstance(rig.stat(id=uid(1)), NotFound)


def test_t13_the_newest_stay_when_there_are_too_many() -> None:
    rig = EngineRig(retain_max=3)
    worker = rig.worker(capacity=1)
    for number in range(1, 9):
        rig.enq(id=uid(number))
        worker.succeed()
        rig.tick(1)
    at_once = [rig.state(id=uid(number)) for number in range(1, 9)]

    rig.tick(130)

    assert at_once == ["done"] * 8
    left = [number for number in range(1, 9) if isinstance(rig.stat(id=uid(number)), dict)]
    assert left == [6, 7, 8]


# T14: expires.


def test_t14_a_job_that_nobody_started_in_time_is_dead(rig: EngineRig) -> None:
    rig.enq("Unknown", id=uid(1), key="k", delay_us=2 * SECOND_US, expires_us=3 * SECOND_US)

    rig.tick(4.9)
    before = rig.state("k")
    rig.clock.advance(0.1)
    status = rig.stat("k")

    assert before == "ready"
    assert (status["state"], status["reason"]) == ("dead", "expired")
    assert rig.hooks[-1].extra == {"reason": "expired", "error": None}


@pytest.mark.parametrize(
    "reads",
    [
        lambda rig: rig.stat("k")["state"] == "dead",
        lambda rig: rig.stat(id=uid(1))["state"] == "dead",
        lambda rig: rig.listed()[0]["state"] == "dead",
        lambda rig: isinstance(rig.cancel("k"), NotFound | WrongState),
        lambda rig: isinstance(rig.ext("k", delta_us=1), NotFound | WrongState),
        lambda rig: isinstance(rig.enq(key="k"), tuple),
        lambda rig: isinstance(rig.requeue("k"), tuple),
    ],
)
def test_t14_expiry_is_seen_by_every_read_and_frees_the_key(rig: EngineRig, reads: Callable[[EngineRig], bool]) -> None:
    rig.enq("Unknown", id=uid(1), key="k", expires_us=SECOND_US // 2)
    rig.clock.advance(0.6)

    assert reads(rig)


def test_t14_an_expired_job_is_never_lent(rig: EngineRig) -> None:
    rig.enq(id=uid(1), expires_us=SECOND_US // 2)
    rig.clock.advance(0.6)

    worker = rig.worker()

    assert worker.jobs == []
    assert rig.stat(id=uid(1))["reason"] == "expired"


def test_t14_expiry_is_found_by_the_sweep_though_nobody_asks(rig: EngineRig) -> None:
    rig.enq(id=uid(1), expires_us=SECOND_US // 2)

    rig.tick(3)

    assert rig.stored(uid(1)).reason == "expired"


def test_expires_moves_with_ext_and_ends_with_the_first_attempt(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US, expires_us=SECOND_US)
    rig.ext("k", delta_us=5 * SECOND_US)
    rig.tick(6.5)
    before = rig.state("k")
    worker = rig.worker()
    worker.fail(after_us=100 * SECOND_US)
    beating(rig, worker, 20)

    assert before == "ready"
    assert rig.state("k") == "waiting"
    assert rig.stored(uid(1)).expires_at_us is None


def test_a_requeued_job_expires_anew(rig: EngineRig) -> None:
    rig.enq("Unknown", id=uid(1), key="k", expires_us=SECOND_US)
    rig.tick(2)

    rig.requeue("k")
    before = rig.state("k")
    rig.tick(2)

    assert before == "ready"
    assert rig.stat("k")["reason"] == "expired"


# C1: request ids.


def test_c1_the_same_id_enqueued_twice_is_one_job_whatever_the_second_says(rig: EngineRig) -> None:
    first = rig.enq(id=uid(1), key="k", delay_us=10 * SECOND_US, params=b"one")
    rig.tick(2)

    again = rig.enq("Fax", id=uid(1), key="other", params=b"two")

    assert again == first
    assert rig.stored(uid(1)).params == b"one"
    assert rig.store.counts() == {("Mail", WAITING): 1}


def test_c1_one_id_twice_in_one_frame_is_one_job(rig: EngineRig) -> None:
    one, two = rig.ask(Kind.ENQ, m.Enq(uid(1), "Mail", key="k"), m.Enq(uid(1), "Mail", key="k"))

    assert one == two
    assert rig.store.counts() == {("Mail", WAITING): 1}


def test_c1_an_enq_resent_after_the_job_ended_or_the_server_restarted_makes_no_second(rig: EngineRig) -> None:
    worker = rig.worker()
    first = rig.enq(id=uid(1))
    worker.succeed()
    rig.restart()

    assert rig.enq(id=uid(1))[0] == first[0]
    assert rig.store.counts() == {("Mail", DONE): 1}


def test_c1_an_ext_sent_twice_adds_once(rig: EngineRig) -> None:
    rig.enq(key="k", delay_us=10 * SECOND_US)
    first = rig.ext("k", delta_us=5 * SECOND_US, request=uid(9))
    rig.tick(2)
    rig.restart()

    assert rig.ext("k", delta_us=5 * SECOND_US, request=uid(9)) == first


def test_c1_an_ext_resent_after_the_job_has_run_gets_its_old_answer(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(key="k", delay_us=10 * SECOND_US)
    first = rig.ext("k", delta_us=-10 * SECOND_US, request=uid(9))
    rig.tick()
    worker.succeed()

    assert rig.ext("k", delta_us=-10 * SECOND_US, request=uid(9)) == first


def test_c1_a_cancel_resent_when_the_key_has_a_new_job_leaves_that_alone(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US)
    first = rig.cancel("k", request=uid(9))
    rig.enq(id=uid(2), key="k", delay_us=100 * SECOND_US)

    assert rig.cancel("k", request=uid(9)) == first
    assert rig.state(id=uid(2)) == "waiting"


def test_c1_a_resent_stop_answers_the_same_after_the_job_has_ended(rig: EngineRig) -> None:
    worker = bring(rig, "running")
    first = rig.cancel("k", running=True, request=uid(9))
    worker.fail()

    assert rig.cancel("k", running=True, request=uid(9)) == first == ("stop_requested",)


def test_c1_a_row_keeps_the_last_four_commands_however_old_they_are(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=3_600 * SECOND_US)
    for number in range(1, 7):
        rig.ext("k", delta_us=SECOND_US, request=uid(100 + number))
        rig.tick(121)

    assert [past.request for past in rig.stored(uid(1)).answered] == [uid(100 + number) for number in (3, 4, 5, 6)]
    assert isinstance(rig.enq(id=uid(1)), tuple)
    assert rig.store.counts() == {("Mail", WAITING): 1}


def test_a_job_that_had_started_does_not_expire_although_it_is_replaced(rig: EngineRig) -> None:
    # given a job whose attempt was given back, for its process was replaced
    worker = rig.worker()
    rig.enq(id=uid(1), key="k", delay_us=0)
    worker.credit(0)
    worker.release(replaced=True)

    # when
    rig.enq(key="k", delay_us=SECOND_US, expires_us=SECOND_US, if_exists="replace")
    rig.tick(5)

    # then
    assert rig.state("k") == "ready"


# C5 and names.


def test_a_key_in_stat_means_the_live_job_else_the_one_that_ended_last(rig: EngineRig) -> None:
    for number in (1, 2):
        rig.enq(id=uid(number), key="k", delay_us=SECOND_US)
        rig.cancel("k")
    ended = rig.stat("k")["id"]
    rig.enq(id=uid(3), key="k", delay_us=SECOND_US)

    assert ended == uid(2)
    assert rig.stat("k")["id"] == uid(3)


@pytest.mark.parametrize("verb", ["stat", "cancel", "ext", "requeue"])
def test_an_unknown_name_is_not_found_and_two_names_or_none_are_refused(rig: EngineRig, verb: str) -> None:
    extra = {"delta_us": 1} if verb == "ext" else {}

    assert isinstance(getattr(rig, verb)("none", **extra), NotFound)
    assert isinstance(getattr(rig, verb)(id=uid(9), **extra), NotFound)
    assert isinstance(getattr(rig, verb)("k", id=uid(9), **extra), BadRequest)
    assert isinstance(getattr(rig, verb)(**extra), BadRequest)


def test_one_batch_sees_every_job_as_the_commands_before_left_it(rig: EngineRig) -> None:
    answers = rig.batch(
        rig.frame(Kind.ENQ, m.Enq(uid(1), "Mail", delay_us=SECOND_US, key="k")),
        rig.frame(Kind.ENQ, m.Enq(uid(2), "Mail", key="k"), conn=2),
        rig.frame(Kind.EXT, m.Ext(uid(3), "k", delta_us=SECOND_US)),
        rig.frame(Kind.STAT, m.Stat("k"), conn=2),
        rig.frame(Kind.CANCEL, m.Cancel(uid(4), "k")),
        rig.frame(Kind.ENQ, m.Enq(uid(5), "Mail", delay_us=SECOND_US, key="k")),
        rig.frame(Kind.CANCEL, m.Cancel(uid(6), "k")),
        rig.frame(Kind.REQUEUE, m.Requeue(uid(7), None, uid(1))),
        rig.frame(Kind.REQUEUE, m.Requeue(uid(8), None, uid(5))),
        rig.frame(Kind.STAT, m.Stat("k"), conn=2),
    )

    kinds = [type(answer[0]).__name__ for answer in answers]
    assert kinds == ["tuple", "DuplicateKey", "tuple", "tuple", "tuple", "tuple", "tuple", "tuple", "DuplicateKey", "tuple"]
    assert answers[3][0][0]["timeleft_us"] == 2 * SECOND_US
    assert answers[9][0][0]["id"] == uid(1)
    assert rig.store.check() == []


# C7: fences.


@pytest.mark.parametrize("report", ["succeed", "fail", "release", "beat", "progress"])
def test_c7_a_report_with_another_fence_changes_nothing_and_is_counted(rig: EngineRig, report: str) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    before = rig.stored(uid(1))
    wrong = worker.last._replace(fence=worker.last.fence - 1)
    rig.dispatched[worker.conn][-1] = rig.dispatched[worker.conn][-1]._replace(job=wrong)

    answer = worker.beat(wrong)[0] if report == "beat" else getattr(worker, report)(*[0.5] * (report == "progress"))

    assert isinstance(answer, Stale)
    assert rig.stored(uid(1)) == before
    assert report == "beat" or rig.info()["stale_reports"] == 1


def test_c7_a_success_reported_twice_is_ok_twice_and_keeps_its_first_result(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    assert worker.succeed(result=b"one") == ()
    assert worker.succeed(result=b"two") == ()
    rig.restart()
    again = rig.worker(11)
    assert again.succeed(m.Dispatch(uid(1), rig.stored(uid(1)).fence, "Mail", 1, 0)) == ()

    assert rig.stored(uid(1)).result == b"one"


def test_c7_a_success_twice_in_one_frame_is_ok_twice(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    report = m.Succeed(uid(1), worker.last.fence)

    assert worker.ask(Kind.SUCCEED, report, report) == [(), ()]


def test_c7_a_late_report_of_a_lost_attempt_cannot_settle_the_next_one(rig: EngineRig) -> None:
    paused = rig.worker(10)
    rig.enq(id=uid(1))
    lost = paused.last
    rig.tick(35)
    other = rig.worker(11)
    rig.tick(2)
    assert other.last.attempt == 2

    assert isinstance(paused.succeed(lost), Stale)
    assert rig.state(id=uid(1)) == "running"
    assert other.succeed() == ()


@pytest.mark.parametrize("late", ["fail", "release"])
def test_c8_done_is_final_whatever_arrives_later(rig: EngineRig, late: str) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.succeed(result=b"r")
    before = rig.stored(uid(1))

    assert isinstance(getattr(worker, late)(), Stale)
    assert isinstance(rig.cancel(id=uid(1), running=True), WrongState)
    assert isinstance(rig.requeue(id=uid(1)), WrongState)
    rig.tick(60)

    assert rig.stored(uid(1)) == before


def test_fences_grow_over_restarts_and_claims(rig: EngineRig) -> None:
    fences = []
    for number in range(4):
        worker = rig.worker(10 + number)
        for _ in range(3):
            rig.enq()
            fences.append(worker.last.fence)
            worker.succeed()
        rig.restart()

    assert fences == sorted(set(fences))


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
    message = {Kind.ANNOUNCE: m.Announce("Mail", "d", "1"), Kind.CREDIT: m.Credit(1)}.get(kind, m.Hold(uid(1), 1))

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


# K: clocks.


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

    def noting(changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        marks.append(mark)
        return commit(changes, mark, retention)

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


# When the store is full, the server drains, or there is too much.


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
        rig.frame(Kind.FAIL, m.Fail(uid(2), worker.jobs[1].fence, "failed", "no"), conn=worker.conn),
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
    fail = rig.frame(Kind.FAIL, m.Fail(uid(2), worker.jobs[1].fence, "failed", "no"), conn=worker.conn)

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


# wait.


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

    rig.engine.desk.is_clogged = lambda conn: conn == frame.conn
    worker.progress(0.25)
    rig.engine.desk.is_clogged = lambda conn: False
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


# What is said.


def why(rig: EngineRig) -> str:
    return str(rig.stat(id=uid(1))["why"])


def test_why_a_waiting_job_has_not_run(rig: EngineRig) -> None:
    rig.enq(id=uid(1), delay_us=10 * SECOND_US)

    assert why(rig) == "not due for 10 s"


def test_why_a_job_that_failed_has_not_run_again(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    worker.fail(error="Traceback (most recent call last):\nValueError: no", after_us=60 * SECOND_US)

    assert why(rig) == "attempt 1 of 5 failed: ValueError: no; next try in 60 s"


def test_why_a_ready_job_has_not_run(rig: EngineRig) -> None:
    rig.enq(id=uid(1))
    nobody = why(rig)
    rig.worker(capacity=0)

    assert nobody == "due, but no worker has module Mail"
    assert why(rig) == "due, but every worker that could take it is full"


DRAINING = [m.Process(77, "job", "ready"), m.Process(78, "greenlets", "draining")]


def test_why_during_a_drain_of_the_worker_or_of_the_server_says_so(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1")
    rig.enq(id=uid(1))
    rig.enq(id=uid(2))
    worker.credit(0)
    worker.ask(Kind.PROCESSES, *DRAINING)

    assert why(rig) == "attempt 1 is running on worker w1, which drains"
    assert rig.stat(id=uid(2))["why"] == "due, but every worker that could take it drains"
    rig.engine.desk.is_draining = True
    assert rig.stat(id=uid(2))["why"].startswith("due, but this server drains")


def test_a_worker_that_reloads_does_not_drain(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1", capacity=3)
    worker.ask(Kind.PROCESSES, *DRAINING, m.Process(79, "greenlets", "ready"))

    (shown,) = rig.info(Kind.WORKERS)
    assert shown["draining"] is False


def test_workers_are_told_with_what_they_run_and_what_is_known_of_their_connection(rig: EngineRig) -> None:
    rig.engine.desk.peer = {10: {"address": "10.0.0.7:5"}}.get  # type: ignore[assignment]
    worker = rig.worker(10, "w1", "Mail", "Fax", capacity=3)
    for number, module in enumerate(("Mail", "Mail", "Fax"), 1):
        rig.enq(id=uid(number), module=module)
    worker.succeed(next(job for job in worker.jobs if job.id == uid(1)))

    (shown,) = rig.info(Kind.WORKERS)
    assert (shown["runs"], shown["address"]) == ({"Mail": 1, "Fax": 1}, "10.0.0.7:5")


def test_why_of_a_job_that_runs_and_whose_worker_is_gone(rig: EngineRig) -> None:
    worker = rig.worker(10, "w1")
    rig.enq(id=uid(1))
    here = why(rig)
    rig.cancel(id=uid(1), running=True)
    stopping = why(rig)
    worker.leave()

    assert here == "attempt 1 is running on worker w1"
    assert stopping == "attempt 1 is running on worker w1; it was asked to stop"
    rig.clock.advance(2)
    assert why(rig) == (
        "attempt 1 is running on worker w1, which is not connected; its lease ends in 28 s; it was asked to stop"
    )


@pytest.mark.parametrize(("state", "expected"), [("done", "it is done"), ("cancelled", "it was cancelled")])
def test_why_of_a_job_that_has_ended(rig: EngineRig, state: str, expected: str) -> None:
    bring(rig, state)

    assert why(rig) == expected


def test_why_of_a_job_that_expired(rig: EngineRig) -> None:
    rig.enq(id=uid(1), expires_us=0)

    assert why(rig) == "it expired before a worker could start it (2025-06-15 15:06:40+00:00)"


def test_why_of_a_dead_job_tells_attempts_instant_and_error(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), max_attempts=1)
    rig.clock.advance(5)
    worker.fail(error="Traceback (most recent call last):\nValueError: no such cart")

    assert why(rig) == "its last attempt failed (attempt 1 of 1, 2025-06-15 15:06:45+00:00): ValueError: no such cart"


def test_a_status_tells_when_the_job_was_enqueued_began_and_ended(rig: EngineRig) -> None:
    rig.enq(id=uid(1), delay_us=10 * SECOND_US)
    enqueued_us = rig.now.wall_us
    waiting = rig.stat(id=uid(1))
    worker = rig.worker()
    rig.tick(10)
    running = rig.stat(id=uid(1))
    rig.clock.advance(3)
    worker.succeed()
    done = rig.stat(id=uid(1))

    told = [[each[name] for name in ("enq_at_us", "started_at_us", "ended_at_us")] for each in (waiting, running, done)]
    began_us, ended_us = enqueued_us + 10 * SECOND_US, enqueued_us + 13 * SECOND_US
    assert told == [[enqueued_us, None, None], [enqueued_us, began_us, None], [enqueued_us, began_us, ended_us]]


def test_a_due_is_told_as_far_from_the_enq_as_was_asked_whatever_the_readings_of_the_clock(rig: EngineRig) -> None:
    rig.worker()
    rig.enq(id=uid(1))  # Here the wall clock is first read.
    rig.clock.step_wall(0.000_003)

    for number, delay_us in ((2, 0), (3, 600 * SECOND_US)):
        rig.enq(id=uid(number), delay_us=delay_us)

    told = [rig.stat(id=uid(number)) for number in (2, 3)]
    assert [each["due_us"] - each["enq_at_us"] for each in told] == [0, 600 * SECOND_US]
    assert told[0]["started_at_us"] in (None, told[0]["enq_at_us"])


def test_a_job_that_is_requeued_has_not_begun(rig: EngineRig) -> None:
    bring(rig, "dead")

    rig.requeue(id=uid(1), delay_us=SECOND_US)

    status = rig.stat(id=uid(1))
    assert (status["started_at_us"], status["ended_at_us"]) == (None, None)


def test_stat_tells_the_params_behind_the_result_only_if_asked(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), params=b"\xa5hello")
    worker.succeed(result=b"\x07")
    plain, whole = (rig.frame(Kind.STAT, m.Stat(id=uid(1), params=wanted)) for wanted in (False, True))

    rig.turn(plain, whole)

    told = [rig.replies[each.conn, each.request][0] for each in (plain, whole)]
    assert [(fields[1].get("params_bytes"), payload) for fields, payload in told] == [(None, b"\x07"), (6, b"\x07\xa5hello")]


def test_progress_is_shown_while_the_attempt_runs_and_no_longer(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    before = rig.stored(uid(1))

    assert worker.progress(0.5, "half") == ()
    shown = rig.stat(id=uid(1))["progress"]
    worker.fail()
    rig.tick(2)

    assert shown == (0.5, "half")
    assert rig.stat(id=uid(1))["progress"] is None
    assert before.version + 2 <= rig.stored(uid(1)).version  # Neither beat nor progress wrote anything.


def test_a_listing_shows_every_job_with_its_state(rig: EngineRig) -> None:
    rig.worker(capacity=1)
    rig.enq(id=uid(1))
    rig.enq(id=uid(2))
    rig.enq("Fax", id=uid(3), delay_us=SECOND_US)

    assert [job["state"] for job in rig.listed()] == ["running", "ready", "waiting"]
    assert [job["id"] for job in rig.listed(module="Fax")] == [uid(3)]
    assert [job["id"] for job in rig.listed(state="ready")] == [uid(2)]


def test_a_listing_tells_whole_errors_and_params_only_if_asked(rig: EngineRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1), params=b"\xa5hello")
    worker.fail(error="ValueError: " + "x" * 10_000, permanent=True)

    (plain,), (whole,) = rig.listed(error="VALUEERROR: X"), rig.listed(params=True)

    assert len(plain["error"]) == 10_012
    assert ("params" in plain, whole["params"]) == (False, b"\xa5hello")
    assert rig.listed(error="typeerror") == []


def test_pages_of_large_jobs_are_about_a_mebibyte_and_nothing_is_left_out(rig: EngineRig) -> None:
    for number in range(1, 8):
        rig.enq(id=uid(number), params=bytes(400_000))
    seen: list[bytes] = []
    sizes: list[int] = []
    after: tuple[Any, ...] = ()
    while not sizes or after:
        frame = rig.frame(Kind.LIST, m.List(limit=100, **dict(zip(("after_a", "after_b"), after, strict=False)), params=True))
        rig.turn(frame)
        after = rig.answers(frame)[0]
        payload = rig.replies[frame.conn, frame.request][0][1]
        sizes.append(len(payload))
        seen += [job["id"] for job in msgpack.unpackb(payload)]

    assert seen == [uid(number) for number in range(1, 8)]
    assert max(sizes) < 2 << 20


def test_pages_of_a_listing_go_on_where_the_one_before_ended(rig: EngineRig) -> None:
    for number in range(1, 8):
        rig.enq(id=uid(number))
    seen: list[bytes] = []
    after: tuple[Any, ...] = ()
    for _ in range(3):
        frame = rig.frame(Kind.LIST, m.List(None, None, None, 3, *after))
        rig.turn(frame)
        after = rig.answers(frame)[0]
        seen += [job["id"] for job in msgpack.unpackb(rig.replies[frame.conn, frame.request][0][1])]

    assert seen == [uid(number) for number in range(1, 8)]
    assert after == ()


def test_info_counts_jobs_and_says_the_limits(rig: EngineRig) -> None:
    rig.worker(10, "w1", "Mail", m.Announce("Broken", "d", "2", broken="ImportError: x"))
    rig.enq(id=uid(1))
    rig.enq(id=uid(2))
    rig.enq("Fax", delay_us=SECOND_US)

    info, modules, (worker,) = rig.info(), rig.info(Kind.MODULES), rig.info(Kind.WORKERS)

    assert info["jobs"] == {"Mail": {"running": 1, "waiting": 1, "ready": 1}, "Fax": {"waiting": 1}}
    assert (info["live"], info["running"], info["workers"], info["ready"]) == (3, 1, 1, "1")
    assert info["limits"]["frame_bytes"] == 1 << 20
    assert {each["module"]: each["broken"] for each in modules} == {"Mail": None, "Broken": "ImportError: x"}
    assert (worker["name"], worker["capacity"], worker["running"], worker["broken"]) == ("w1", 1, 1, ["Broken"])


def test_a_damaged_announcement_is_told_so(rig: EngineRig) -> None:
    rig.worker(10, "w")

    answers = rig.ask(Kind.ANNOUNCE, m.Announce("Mail", "d", "1"), BadRequest("no"), conn=10)

    assert [type(answer) for answer in answers] == [tuple, BadRequest]


def test_hooks_are_told_once_for_each_change_and_never_for_a_resend(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US)
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US)
    rig.ext("k", delta_us=SECOND_US, request=uid(8))
    rig.ext("k", delta_us=SECOND_US, request=uid(8))
    rig.enq(id=uid(2), key="k", if_exists="reschedule")
    rig.enq(id=uid(3), key="k", if_exists="keep")
    rig.cancel("k", request=uid(9))
    rig.cancel("k", request=uid(9))

    assert [hook.name for hook in rig.hooks] == ["on_enq", "on_ext", "on_ext", "on_cancel"]


def test_a_job_whose_row_remembers_a_strange_request_is_still_one_job(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=SECOND_US)
    rig.ext("k", delta_us=SECOND_US, request=uid(1))  # A client that uses one id for two commands.

    assert rig.stored(uid(1)).answered[-1] == Answered(uid(1), "ext", rig.now.wall_us + 2 * SECOND_US, rig.now.timer_us)
    assert rig.enq(id=uid(1), key="k")[0] == uid(1)
    assert rig.store.check() == []


def noted_commits(rig: EngineRig) -> list[int]:
    """The number of changes of each commit from now on."""
    commits = []
    commit = rig.store.commit

    def noting(changes: Sequence[Change], mark: Mark, retention: Retention | None = None) -> Commit:
        commits.append(len(changes))
        return commit(changes, mark, retention)

    rig.store.commit = noting  # type: ignore[method-assign]
    return commits


def test_ten_thousand_jobs_in_one_batch_are_one_commit(rig: EngineRig) -> None:
    commits = noted_commits(rig)

    answers = rig.ask(Kind.ENQ, *(m.Enq(uid(number), "Mail", SECOND_US) for number in range(10_000)))

    assert len(answers) == 10_000
    assert commits == [10_000]


def a_thousand(rig: EngineRig, kind: Kind) -> list[Any]:
    """A command for each of a thousand waiting jobs, every other one by its id."""
    rig.ask(Kind.ENQ, *(m.Enq(uid(number), "Mail", 600 * SECOND_US, f"k{number}") for number in range(1_000)))
    names = [(None, uid(number)) if number % 2 else (f"k{number}", None) for number in range(1_000)]
    if kind is Kind.CANCEL:
        return [m.Cancel(rig.fresh_id(), *name) for name in names]
    return [m.Ext(rig.fresh_id(), *name, SECOND_US) for name in names]


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.EXT], ids=lambda kind: kind.name)
def test_a_thousand_commands_in_one_frame_are_one_commit(rig: EngineRig, kind: Kind) -> None:
    asked = a_thousand(rig, kind)
    commits = noted_commits(rig)

    answers = rig.ask(kind, *asked)

    assert not [answer for answer in answers if isinstance(answer, GivaliaError)]
    assert [changes for changes in commits if changes] == [1_000]


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.EXT], ids=lambda kind: kind.name)
def test_c1_a_frame_that_is_sent_again_is_answered_the_same_and_changes_nothing(rig: EngineRig, kind: Kind) -> None:
    asked = a_thousand(rig, kind)
    answers = rig.ask(kind, *asked)
    rig.restart()
    commits = noted_commits(rig)

    again = rig.ask(kind, *asked)

    assert again == answers
    assert sum(commits) == 0


def test_a_command_that_cannot_be_spoils_no_other_of_its_frame(rig: EngineRig) -> None:
    rig.enq(key="a", delay_us=SECOND_US)
    rig.enq(key="b", delay_us=SECOND_US)

    answers = rig.ask(
        Kind.CANCEL, m.Cancel(rig.fresh_id(), "a"), m.Cancel(rig.fresh_id(), "nobody"), BadRequest("no key is that long"),
        m.Cancel(rig.fresh_id(), "b"),
    )  # fmt: skip

    assert [getattr(answer, "code", answer) for answer in answers] == [
        ("cancelled",),
        "NOT_FOUND",
        "BAD_REQUEST",
        ("cancelled",),
    ]


def test_a_hundred_jobs_due_at_once_wake_no_more_claims_than_there_are_credits(rig: EngineRig) -> None:
    workers = [rig.worker(10 + number, "any", "Mail", capacity=7) for number in range(4)]
    for number in range(100):
        rig.enq(id=uid(number), delay_us=SECOND_US)

    rig.tick(1)

    given = [job_id for worker in workers for job_id in worker.ids]
    assert [len(worker.ids) for worker in workers] == [7, 7, 7, 7]
    assert sorted(given) == [uid(number) for number in range(28)]


@pytest.mark.parametrize("report", ["succeed", "fail", "release"])
def test_a_beat_behind_the_report_costs_no_credit_and_is_stale_unless_the_job_is_done(rig: EngineRig, report: str) -> None:
    first = rig.worker(10, "w", capacity=1)
    rig.enq(id=uid(1), max_attempts=1)
    held = first.last
    first.leave()
    worker = rig.worker(11, "w", capacity=0, instance=uid(10))
    message = {
        "succeed": (Kind.SUCCEED, m.Succeed(held.id, held.fence)),
        "fail": (Kind.FAIL, m.Fail(held.id, held.fence, "failed", "no")),
        "release": (Kind.RELEASE, m.Release(held.id, held.fence)),
    }[report]

    reported, beaten = rig.batch(
        rig.frame(message[0], message[1], conn=11),
        rig.frame(Kind.BEAT, m.Hold(held.id, held.fence), conn=11),
    )
    worker.credit(1)
    rig.enq(id=uid(2), priority=9)

    assert reported == [("dead", 1) if report == "fail" else ()]
    assert beaten == [()] if report == "succeed" else isinstance(beaten[0], Stale)
    assert len(worker.jobs) == 1


def test_jobs_with_large_params_are_lent_a_megabyte_at_a_time_and_none_to_a_worker_that_does_not_read(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", "Mail", capacity=100)
    rig.engine.desk.is_clogged = lambda conn: True
    for number in range(1, 13):
        rig.ask(Kind.ENQ, m.Enq(uid(number), "Mail", payload=bytes(400 << 10)))
    assert rig.engine.desk.routing.sessions[worker.conn].rooms["greenlet"].held == 0

    session = rig.engine.desk.routing.sessions[worker.conn]
    room = session.rooms["greenlet"]
    rig.engine.desk.is_clogged = lambda conn: room.held >= 3
    rig.tick()
    assert room.held == 3

    rig.engine.desk.is_clogged = lambda conn: False
    rig.tick()
    assert room.held == 12


def test_jobs_with_large_params_are_read_and_lent_a_few_at_a_time_and_all_of_them_in_their_order(rig: EngineRig) -> None:
    for number in range(1, 101):
        rig.ask(Kind.ENQ, m.Enq(uid(number), "Mail", payload=bytes(500 << 10)))
    read: list[int] = []
    find = rig.store.find

    def noted(wanted: Wanted, now: Now) -> Found:
        found = find(wanted, now)
        read.append(sum(len(job.params) for jobs in found.ready.values() for job in jobs))
        return found

    rig.store.find = noted  # type: ignore[method-assign]
    worker = rig.worker(capacity=100)
    rig.tick()

    assert max(read) < 10 << 20
    assert worker.ids == [uid(number) for number in range(1, 101)]


def test_awaited_jobs_are_read_again_a_few_at_a_time_and_all_of_them_and_leased_ones_at_once(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", "Fax", capacity=30)
    for number in range(1, 101):
        rig.ask(Kind.ENQ, m.Enq(uid(number), "Mail", payload=bytes(500 << 10)))
    leased = {rig.enq("Fax", id=uid(1_000 + number))[0] for number in range(30)}
    assert set(worker.ids) == leased
    read: list[frozenset[bytes]] = []
    find = rig.store.find

    def noted(wanted: Wanted, now: Now) -> Found:
        read.append(wanted.ids)
        return find(wanted, now)

    rig.store.find = noted  # type: ignore[method-assign]
    rig.engine.desk.suspects = {*map(uid, range(1, 101)), *leased}
    rig.turn()

    assert leased <= read[0]
    assert max(len(ids - leased) for ids in read) < 40
    assert frozenset().union(*read) >= {*map(uid, range(1, 101)), *leased}
    assert not rig.engine.desk.suspects
