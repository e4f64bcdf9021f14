"""Jobs that must end are ended in steps, and a job that does not end costs its own process, and no other."""

from __future__ import annotations

import pytest
from foreman_rig import APART, Rig

from givalia_core.worker.link import Lost, StopAsked
from givalia_core.worker.notes import CancelAsked, End


def test_a_timeout_apart_is_a_signal_and_then_a_kill() -> None:
    rig = Rig()
    job = rig.lend(APART, timeout_us=2_000_000)
    child = rig.crew.children[0]

    rig.later(1.9)
    assert child.member.signals == []
    rig.later(2.1)
    assert (child.member.signals, child.member.page.why) == ([15], "timeout")
    rig.later(4.2)
    assert child.member.signals == [15, 9]
    rig.foreman.apart.child_died(rig.crew.running[0], "child_died: SIGKILL")

    (report,) = rig.link.reports()
    assert (report.kind, report.child_died) == ("timeout", False)
    assert report.error.startswith("timeout: it ran longer than 2 s")
    assert report.id == job.id


def test_a_cancelled_job_apart_sees_it_and_is_made_to_end_later() -> None:
    rig = Rig()
    job = rig.lend(APART)
    child = rig.crew.children[0]

    for again in (False, True, True):
        rig.foreman.deliver(StopAsked(job.id, job.fence, again))
    assert child.member.page.cancelled == job.fence
    assert [note for note in rig.crew.told if isinstance(note, CancelAsked)] == [CancelAsked(tuple(job), is_news=True)]
    assert child.member.signals == []

    rig.later(1.1)
    assert (child.member.signals, child.member.page.why) == ([15], "cancelled")


def test_a_process_that_does_not_report_an_end_when_it_must_is_replaced() -> None:
    rig = Rig("after_run", hook_limit=3.0)
    job = rig.lend()
    rig.foreman.deliver(StopAsked(job.id, job.fence, False))
    rig.later(1.1)
    assert End(job.id, job.fence, "cancelled", "cancelled: it was asked to stop, and went on") in rig.crew.told
    rig.later(2.5)
    rig.later(5.5)
    assert rig.crew.verdicts == []  # It may report the end by itself, and a plugin may have its time.

    rig.later(6.1)

    (verdict,) = rig.crew.verdicts
    assert (verdict.culprit, verdict.kind) == (job.fence, "stopped")


def test_a_process_may_report_an_end_as_late_as_all_its_plugins_together_may_take() -> None:
    rig = Rig("after_run", plugins=3, hook_limit=3.0)
    job = rig.lend()
    rig.foreman.deliver(StopAsked(job.id, job.fence, False))
    rig.later(1.1)
    rig.later(2.5)

    rig.later(13.5)
    assert rig.crew.verdicts == []

    rig.later(14.1)
    assert [verdict.culprit for verdict in rig.crew.verdicts] == [job.fence]


def test_a_greenlet_that_does_not_give_way_beyond_its_time_costs_its_process_and_no_other_does() -> None:
    rig = Rig()
    spinner, neighbour = rig.lend(fence=1, timeout_us=3_000_000), rig.lend(fence=2, timeout_us=1_000_000)
    rig.crew.blocking, rig.crew.host.blocked_s = spinner.fence, 3.0

    rig.later(2.5)
    assert rig.crew.verdicts == []  # The neighbour's time is over, but it is not to blame.
    rig.later(4.1)

    assert [verdict.culprit for verdict in rig.crew.verdicts] == [spinner.fence]
    assert neighbour.fence not in [report.fence for report in rig.link.reports()]


def test_lost_leases_are_logged_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    for fence in range(1, 31):
        job = rig.lend(fence=fence, id=fence.to_bytes(16, "big"))
        rig.foreman.deliver(Lost(job.id, job.fence, "its lease could not be renewed in time"))
    assert caplog.text.count("is stopped: its lease could not be renewed in time") == 10

    rig.foreman.say_rest()

    assert "20 more jobs of Sample that are stopped: its lease could not be renewed in time, within 10 s" in caplog.text
