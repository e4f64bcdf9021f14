"""The foreman: whatever server and processes send, in any order, each job is reported once and correctly."""

from __future__ import annotations

from itertools import pairwise

import pytest
from foreman_rig import APART, Rig

from givalia_core.printable import Formatter
from givalia_core.protocol.messages import Credit, FailReport, Progress, Release, Succeed
from givalia_core.worker.assignment import Verdict
from givalia_core.worker.foreman.foreman import ASK_S
from givalia_core.worker.link import FailAnswered, Follows, Lost
from givalia_core.worker.notes import ChildReported


def test_a_greenlet_job_goes_to_the_host_and_its_report_to_the_server() -> None:
    rig = Rig()
    job = rig.lend()
    assert rig.crew.told[-1] == job

    report = Succeed(job.id, job.fence, payload=b"\x01")
    rig.hear(report)
    rig.hear(report)

    assert rig.link.reports() == [report]
    assert rig.crew.job_count == 0


def test_a_host_is_asked_at_intervals_which_jobs_it_has_while_it_has_any() -> None:
    rig = Rig()
    rig.later(0)
    assert rig.crew.asked_s == []

    job = rig.lend()
    for tenth in range(100):
        rig.later(tenth / 10)
    intervals = [later - earlier for earlier, later in pairwise(rig.crew.asked_s)]
    assert len(intervals) == 4
    assert all(abs(interval - ASK_S) < 0.2 for interval in intervals)

    rig.hear(Succeed(job.id, job.fence))
    rig.later(20)
    assert len(rig.crew.asked_s) == 5


def test_credits_follow_what_can_be_run() -> None:
    rig = Rig(concurrency=7, processes=3)
    assert rig.link.credit == Credit(7, 3)

    rig.crew.host.blocked_s = 2.0
    rig.later(0)
    assert rig.link.credit == Credit(0, 3)

    rig.crew.host.blocked_s = 0.0
    rig.crew.die(Verdict(0, "died", "gone"))
    assert rig.link.credit == Credit(0, 0)
    assert rig.crew.serve()
    assert rig.link.credit == Credit(7, 3)


def test_what_comes_when_nobody_can_run_it_goes_back() -> None:
    rig = Rig()
    rig.crew.die(Verdict(0, "died", "gone"))

    job = rig.lend()

    assert rig.link.reports() == [Release(job.id, job.fence)]


def test_a_job_that_comes_again_while_it_is_being_stopped_is_another_attempt() -> None:
    rig = Rig()
    before = rig.lend(fence=1)
    rig.foreman.deliver(Lost(before.id, 1, "its lease is over"))
    again = rig.lend(fence=2)

    rig.hear(FailReport(before.id, 1, "died", "its lease is over"))
    rig.hear(Succeed(again.id, 2))

    assert [report.fence for report in rig.link.reports()] == [1, 2]
    assert rig.crew.job_count == 0


def test_progress_goes_on_and_that_of_nobody_does_not() -> None:
    rig = Rig()
    job = rig.lend()

    rig.foreman.reported(Progress(job.id, job.fence, 0.5))
    rig.foreman.reported(Progress(job.id, 99, 0.7))

    assert [message for message in rig.link.sent if isinstance(message, Progress)] == [Progress(job.id, job.fence, 0.5)]


def test_a_foreman_that_stops_gives_back_what_still_comes() -> None:
    rig = Rig(grace=0.0)
    rig.foreman._is_stopping = True

    job = rig.lend()

    assert rig.link.reports() == [Release(job.id, job.fence)]


def test_a_greenlet_that_its_process_gives_back_is_given_back() -> None:
    rig = Rig()
    job = rig.lend()

    rig.hear(Release(job.id, job.fence))

    assert rig.link.reports() == [Release(job.id, job.fence)]
    assert rig.crew.job_count == 0


def test_a_failed_attempt_is_logged_with_what_the_server_says_follows(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    job = rig.lend(key="cart-7")
    rig.hear(FailReport(job.id, job.fence, "failed", "Traceback (most recent call last):\n  File x\nValueError: boom"))
    assert "boom" not in caplog.text

    rig.foreman.deliver(FailAnswered(job.fence, Follows("dead", 1, None), is_taken=True))

    (record,) = [record for record in caplog.records if "boom" in record.getMessage()]
    assert (record.levelname, record.key) == ("ERROR", "cart-7")  # type: ignore[attr-defined]
    assert (
        Formatter()
        .format(record)
        .endswith(
            "ERROR givalia.worker: the job is dead: attempt 1 of 1 failed: ValueError: boom"
            " [module=Sample key=cart-7 id=6a6a6a6a-6a6a-6a6a-6a6a-6a6a6a6a6a6a attempt=1]\n"
            "    | Traceback (most recent call last):\n    |   File x\n    | ValueError: boom"
        )
    )


def test_a_failure_that_no_server_answers_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    job = rig.lend(APART)
    (held,) = rig.crew.running
    rig.foreman.apart.job_ended(held, ChildReported(False, list(FailReport(job.id, job.fence, "failed", "no such cart")), 0.1))

    rig.later(6)

    assert "attempt 1 failed, and the server has not answered the report yet: no such cart" in caplog.text
