"""The lifetime and the memory of jobs: expiry, forgetting, request ids, names and fences (T13, T14, C1 to C7)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import EngineRig, beating, bring, uid

from givalia_core.clock import SECOND_US
from givalia_core.errors import (
    BadRequest,
    NotFound,
    Stale,
    WrongState,
)
from givalia_core.model import (
    DONE,
    WAITING,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


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
