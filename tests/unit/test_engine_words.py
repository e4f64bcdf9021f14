"""The words about a job, and the reasons why it has not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from engine_rig import EngineRig, bring, uid

from givalia_core.clock import SECOND_US, Mark, Now
from givalia_core.errors import (
    BadRequest,
    GivaliaError,
    Stale,
)
from givalia_core.model import (
    Answered,
)
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Change, Commit, Found, Wanted


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


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
    rig.engine.desk.peers = {10: {"address": "10.0.0.7:5"}}
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

    def noting(changes: Sequence[Change], mark: Mark, *rest: Any) -> Commit:
        commits.append(len(changes))
        return commit(changes, mark, *rest)

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
        "fail": (Kind.FAIL, m.FailReport(held.id, held.fence, "failed", "no")),
        "release": (Kind.RELEASE, m.Release(held.id, held.fence)),
    }[report]

    reported, beaten = rig.batch(
        rig.frame(message[0], message[1], conn=11),
        rig.frame(Kind.BEAT, m.NamedLease(held.id, held.fence), conn=11),
    )
    worker.credit(1)
    rig.enq(id=uid(2), priority=9)

    assert reported == [("dead", 1) if report == "fail" else ()]
    assert beaten == [()] if report == "succeed" else isinstance(beaten[0], Stale)
    assert len(worker.jobs) == 1


def test_jobs_with_large_params_are_lent_a_megabyte_at_a_time_and_none_to_a_worker_that_does_not_read(rig: EngineRig) -> None:
    worker = rig.worker(10, "any", "Mail", capacity=100)
    rig.engine.desk.clogged = frozenset({10})
    for number in range(1, 13):
        rig.ask(Kind.ENQ, m.Enq(uid(number), "Mail", payload=bytes(400 << 10)))
    assert rig.engine.desk.routing.sessions[worker.conn].rooms["greenlet"].held == 0

    session = rig.engine.desk.routing.sessions[worker.conn]
    room = session.rooms["greenlet"]
    rig.engine.desk.clogged = frozenset()
    rig._turn_once()
    rig.engine.desk.clogged = frozenset({10})
    rig.tick()
    assert room.held == 3

    rig.engine.desk.clogged = frozenset()
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
