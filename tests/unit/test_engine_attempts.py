"""The ends of an attempt: lent, succeeded, failed, unreported, stopped or given back (T3 to T9)."""

from __future__ import annotations

import pytest
from engine_rig import EngineRig, beating, uid

from givalia_core.clock import SECOND_US
from givalia_core.errors import (
    Stale,
)
from givalia_core.model import (
    CANCELLED,
    CHILD_DEATHS_MAX,
    DEAD,
    RELEASES_MAX,
    RUNNING,
    TEN_YEARS_US,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


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
