"""Jobs with processes of their own: plugins learn of their start and their end, and suspects run a few at a time."""

from __future__ import annotations

import pytest
from foreman_rig import APART, Rig

from givalia_core.protocol.messages import FailReport, Release, Succeed
from givalia_core.worker.assignment import Verdict
from givalia_core.worker.link import Lost, StopAsked
from givalia_core.worker.notes import After, Before, ChildReported, PluginsTold
from givalia_core.worker.reasons import Reason


def test_a_job_apart_waits_for_the_plugins_before_and_after() -> None:
    rig = Rig("before_run", "after_run")
    job = rig.lend(APART)
    assert rig.crew.told[-1] == Before(tuple(job))
    assert not rig.crew.running

    rig.foreman.reported(PluginsTold(job.id, job.fence))
    (held,) = rig.crew.running
    report = Succeed(job.id, job.fence, payload=b"\x01")
    rig.foreman.apart.job_ended(held, ChildReported(True, report, 0.5))
    assert rig.crew.told[-1] == After(tuple(job), "succeeded", b"\x01", None, 0.5)
    assert rig.link.reports() == []
    rig.foreman.reported(PluginsTold(job.id, job.fence))

    assert rig.link.reports() == [report]


def test_a_host_that_dies_while_plugins_are_told_holds_up_no_job_apart() -> None:
    rig = Rig("before_run", "after_run")
    first, second = rig.lend(APART, 1), rig.lend(APART, 2)
    rig.foreman.reported(PluginsTold(first.id, first.fence))
    rig.foreman.apart.job_ended(rig.crew.running[0], ChildReported(True, Succeed(first.id, first.fence), 0.1))

    rig.crew.die(Verdict(0, "died", "gone"))

    assert rig.link.reports() == [Succeed(first.id, first.fence)]
    assert [held.dispatch for held in rig.crew.running] == [first, second]


def test_a_job_apart_that_is_cancelled_before_it_starts_never_does() -> None:
    rig = Rig("before_run")
    job = rig.lend(APART)

    rig.foreman.deliver(StopAsked(job.id, job.fence, False))
    rig.foreman.reported(PluginsTold(job.id, job.fence))

    assert not rig.crew.running
    assert rig.link.reports() == [FailReport(job.id, job.fence, "stopped", "cancelled: before it started")]


def test_a_job_that_ends_well_after_it_was_stopped_has_ended_well() -> None:
    rig = Rig()
    job = rig.lend(APART)
    rig.foreman.deliver(StopAsked(job.id, job.fence, False))
    rig.later(1.1)

    report = Succeed(job.id, job.fence)
    rig.foreman.apart.job_ended(rig.crew.running[0], ChildReported(True, report, 1.0))

    assert rig.link.reports() == [report]


def test_a_job_apart_whose_lease_is_over_has_failed_whatever_it_says() -> None:
    rig = Rig()
    job = rig.lend(APART)
    rig.foreman.deliver(Lost(job.id, job.fence, "the server gave it to another"))
    assert rig.crew.children[0].member.signals == [15]

    rig.foreman.apart.job_ended(rig.crew.running[0], ChildReported(True, Succeed(job.id, job.fence), 1.0))

    (report,) = rig.link.reports()
    assert (type(report), report.kind) == (FailReport, "died")


def test_those_that_were_in_a_process_that_died_of_nobody_knows_what_are_tried_apart_a_few_at_a_time() -> None:
    rig = Rig()
    jobs = [rig.lend(fence=fence, id=bytes([fence]) * 16) for fence in range(1, 8)]
    rig.crew.die(Verdict(0, "died", "child_died: SIGSEGV"))
    assert [(type(report), report.replaced) for report in rig.link.reports()] == [(Release, True)] * 7
    rig.crew.serve()

    again = [rig.lend(fence=100 + number, id=job.id) for number, job in enumerate(jobs)]

    assert [held.dispatch for held in rig.crew.running] == again[:4]
    rig.foreman.apart.child_died(rig.crew.running[0], "child_died: SIGSEGV")
    rig.foreman.apart.job_ended(rig.crew.running[1], ChildReported(True, Succeed(again[1].id, again[1].fence), 1.0))
    assert [held.dispatch for held in rig.crew.running] == again[:6]
    third, guilty = rig.lend(fence=200, id=jobs[1].id), rig.lend(fence=201, id=jobs[0].id)
    assert third in rig.crew.told  # It has harmed nobody, so it runs beside the others again.
    assert guilty not in rig.crew.told


def test_only_those_that_have_run_shortly_before_are_tried_apart() -> None:
    rig = Rig()
    ran, slept = rig.lend(fence=1), rig.lend(fence=2, id=b"s" * 16)
    rig.crew.die(Verdict(0, "died", "child_died: SIGSEGV", suspects=frozenset({ran.fence, 77})))
    rig.crew.serve()

    again, other = rig.lend(fence=3, id=ran.id), rig.lend(fence=4, id=slept.id)

    assert [held.dispatch for held in rig.crew.running] == [again]
    assert other in rig.crew.told


def test_suspects_that_take_long_make_room_for_the_next_and_those_that_wait_can_be_cancelled() -> None:
    rig = Rig()
    jobs = [rig.lend(fence=fence, id=bytes([fence]) * 16) for fence in range(1, 31)]
    rig.crew.die(Verdict(0, "died", "child_died: SIGSEGV"))
    rig.crew.serve()
    again = [rig.lend(fence=100 + number, id=job.id) for number, job in enumerate(jobs)]
    running = rig.crew.running
    assert [held.dispatch for held in running] == again[:4]

    rig.foreman.deliver(StopAsked(again[4].id, again[4].fence, False))
    rig.later(2.5)
    assert [held.dispatch for held in running] == [*again[:4], *again[5:9]]
    assert [report.kind for report in rig.link.reports() if report.fence == again[4].fence] == ["stopped"]
    rig.crew.die(Verdict(9, "died", "another process", is_ours=True))  # It is nothing to those that wait.
    rig.crew.serve()
    for seconds in (4.6, 6.7, 8.8, 10.9):
        rig.later(seconds)

    assert [held.dispatch for held in running] == [*again[:4], *again[5:21]]


def test_those_that_were_in_a_process_that_was_killed_here_are_no_suspects() -> None:
    rig = Rig()
    job = rig.lend()
    rig.crew.die(Verdict(9, "timeout", "blocked", is_ours=True))
    rig.crew.serve()

    assert rig.lend(fence=2, id=job.id) in rig.crew.told


def test_a_foreman_that_stops_gives_back_what_has_not_started() -> None:
    rig = Rig("before_run", "after_run", grace=0.0, stop_grace=0.1)
    told = rig.lend(APART, fence=1)  # Its plugins are being told.

    rig.foreman.stopping.stop(rig.foreman.jobs[1], Reason.SHUTDOWN, "the worker stops")
    rig.foreman.reported(PluginsTold(told.id, told.fence))

    assert not rig.crew.running
    assert rig.crew.told[-1] == After(tuple(told), "released", b"", None, 0.0)
    rig.foreman.reported(PluginsTold(told.id, told.fence))
    assert rig.link.reports() == [Release(told.id, told.fence)]


def test_a_foreman_that_stops_gives_back_the_suspects_that_wait() -> None:
    rig = Rig(grace=0.0, stop_grace=0.1)
    jobs = [rig.lend(fence=fence, id=bytes([fence]) * 16) for fence in range(1, 6)]
    rig.crew.die(Verdict(0, "died", "child_died: SIGSEGV"))
    rig.crew.serve()
    again = [rig.lend(fence=100 + number, id=job.id) for number, job in enumerate(jobs)]
    waits = again[-1]
    assert waits not in [held.dispatch for held in rig.crew.running]

    rig.foreman.stopping.stop(rig.foreman.jobs[waits.fence], Reason.SHUTDOWN, "the worker stops")

    assert rig.link.reports()[5:] == [Release(waits.id, waits.fence)]


def test_jobs_that_take_their_processes_with_them_are_reported_each_and_logged_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    for fence in range(1, 31):
        rig.lend(APART, fence, id=fence.to_bytes(16, "big"))
        rig.foreman.apart.child_died(rig.crew.running[-1], "child_died: SIGSEGV\na stack")

    assert {report.error for report in rig.link.reports()} == {"child_died: SIGSEGV\na stack"}
    assert caplog.text.count("took its process with it: child_died: SIGSEGV") == 10
