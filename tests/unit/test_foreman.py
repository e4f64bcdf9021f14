"""The foreman: whatever server and processes say, in whatever order, each job is reported once and for what it was."""

from __future__ import annotations

import dataclasses
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from givalia_core.printable import Formatter
from givalia_core.protocol.messages import Announce, Credit, Dispatch, Fail, Progress, Release, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.worker.assignment import Assignment, Verdict
from givalia_core.worker.foreman import Foreman
from givalia_core.worker.foreman.foreman import ASK_S
from givalia_core.worker.link import Connected, Dispatched, FailAnswered, Follows, Lost, StopAsked
from givalia_core.worker.notes import After, Before, CancelAsked, Drain, End, JobEnded, PluginsTold, Start
from givalia_core.worker.processes.audit import Audit
from givalia_core.worker.reasons import Reason

GREENLET, APART = "Sample", "Apart"


class FakeLink:
    """Keeps what is sent to the server."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, *said: Any) -> None:
        self.sent += said

    def reports(self) -> list[Any]:
        return [message for message in self.sent if isinstance(message, (Succeed, Fail, Release))]

    @property
    def credit(self) -> Credit:
        return next(message for message in reversed(self.sent) if isinstance(message, Credit))


class FakeCrew:
    """A generation of processes, as far as the foreman looks at it."""

    def __init__(self, foreman: Foreman, hooks: frozenset[str], plugins: int) -> None:
        self.foreman = foreman
        self.modules = {GREENLET: Announce(GREENLET, "d", "1"), APART: Announce(APART, "d", "1", "process")}
        self.hooks = hooks
        self.job_count = 0
        self.audit = Audit()
        self.is_serving = self.is_retired = self.is_over = self.has_stuck = self.is_given_up = False
        self.children: list[Any] = []
        self.running: list[Assignment[Any]] = []
        self.told: list[Any] = []
        self.owed: list[Any] = []
        self.verdicts: list[Verdict] = []
        self.blocking = 0  # The fence of the job that does not yield.
        self.pool = SimpleNamespace(member_of=self._member_of, children=[])
        self.asked_s: list[float] = []
        self.host = SimpleNamespace(
            state="ready", member=SimpleNamespace(pid=0), fields=(0,) * 4, blocked_s=0.0, stack="", failures=0,
            is_blocked_by=self._is_blocked_by, plugins=[f"plugin {number}" for number in range(plugins)],
        )  # fmt: skip

    def tell(self, *said: Any) -> None:
        self.told += said

    def owe(self, note: Any) -> None:
        self.owed.append(note)

    def start(self) -> None:
        self.told.append(Start())

    def serve(self) -> FakeCrew:
        self.foreman.news.on_ready(self)  # type: ignore[arg-type]
        self.is_serving = True
        self.foreman.news.on_started(self)  # type: ignore[arg-type]
        return self

    apart = frozenset({APART})

    @property
    def takes(self) -> frozenset[str]:
        return frozenset(self.modules) if self.is_serving else frozenset()

    def take(self, note: Any) -> bool:
        return False

    def run(self, held: Assignment[Any]) -> None:
        page = SimpleNamespace(cancelled=0, why="")
        signals: list[int] = []
        member = SimpleNamespace(pid=1, page=page, signal=signals.append, signals=signals)
        self.running.append(held)
        self.children.append(SimpleNamespace(held=held, member=member))

    def _member_of(self, held: Assignment[Any]) -> Any:
        return next((child.member for child in self.children if child.held is held), None)

    def _is_blocked_by(self, held: Assignment[Any]) -> bool:
        return held.dispatch.fence == self.blocking

    def withdraw(self, module: str, why: str) -> None:
        self.modules[module] = self.modules[module]._replace(broken=why)

    def give_up(self) -> None:
        self.is_given_up = True

    def replace_host(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)

    def die(self, verdict: Verdict) -> None:
        self.is_serving = False
        self.foreman.news.on_host_died(self, verdict)  # type: ignore[arg-type]

    def look(self, *, is_fair: bool) -> None:
        pass

    def ask_host(self, now_s: float) -> None:
        self.asked_s.append(now_s)

    def drain(self) -> None:
        self.told.append(Drain())

    def retire(self) -> None:
        self.is_retired = True
        self.drain()
        self.look_whether_done()

    def look_whether_done(self) -> None:
        self.is_over = self.is_over or (self.is_retired and not self.job_count)

    def end(self) -> None:
        self.is_over = True


class Rig:
    def __init__(self, *hooks: str, plugins: int = 1, **settings: Any) -> None:
        self.plugins = plugins
        self.link = FakeLink()
        self.crews: list[FakeCrew] = []
        self.foreman = Foreman(
            dataclasses.replace(WorkerSettings(stop_grace=1.0), **settings),
            self.link,  # type: ignore[arg-type]
            lambda foreman: self._crew(foreman, hooks),  # type: ignore[arg-type, return-value]
        )
        self.foreman.generations.begin()
        self.foreman.deliver(Connected(("there", 1), 30_000_000))  # type: ignore[arg-type]
        self.crew = self.crews[0].serve()

    def _crew(self, foreman: Foreman, hooks: tuple[str, ...]) -> FakeCrew:
        self.crews.append(FakeCrew(foreman, frozenset(hooks), self.plugins))
        return self.crews[-1]

    def lend(self, module: str = GREENLET, fence: int = 1, *, id: bytes = b"j" * 16, **fields: Any) -> Dispatch:
        job = Dispatch(id, fence, module, 1, 0, **fields)
        self.foreman.deliver(Dispatched([job]))
        return job

    def hear(self, *notes: Any) -> None:
        """Let the process with the greenlets say something."""
        self.foreman.hear(self.crew, list(notes))  # type: ignore[arg-type]

    def later(self, seconds: float) -> None:
        """A look at everything, so much later; what is planned from then on is planned from now."""
        self.foreman._ticked_s = time.monotonic() + seconds
        self.foreman._tick(time.monotonic() + seconds)


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


def test_a_job_apart_waits_for_the_plugins_before_and_after() -> None:
    rig = Rig("before_run", "after_run")
    job = rig.lend(APART)
    assert rig.crew.told[-1] == Before(tuple(job))
    assert not rig.crew.running

    rig.foreman.reported(PluginsTold(job.id, job.fence))
    (held,) = rig.crew.running
    report = Succeed(job.id, job.fence, payload=b"\x01")
    rig.foreman.apart.job_ended(held, JobEnded(True, report, 0.5))
    assert rig.crew.told[-1] == After(tuple(job), "succeeded", b"\x01", None, 0.5)
    assert rig.link.reports() == []
    rig.foreman.reported(PluginsTold(job.id, job.fence))

    assert rig.link.reports() == [report]


def test_a_host_that_dies_while_plugins_are_told_holds_up_no_job_apart() -> None:
    rig = Rig("before_run", "after_run")
    first, second = rig.lend(APART, 1), rig.lend(APART, 2)
    rig.foreman.reported(PluginsTold(first.id, first.fence))
    rig.foreman.apart.job_ended(rig.crew.running[0], JobEnded(True, Succeed(first.id, first.fence), 0.1))

    rig.crew.die(Verdict(0, "died", "gone"))

    assert rig.link.reports() == [Succeed(first.id, first.fence)]
    assert [held.dispatch for held in rig.crew.running] == [first, second]


def test_the_job_to_blame_fails_and_its_neighbours_go_back() -> None:
    rig = Rig("after_run")
    culprit, neighbour, stopped = rig.lend(fence=1), rig.lend(fence=2), rig.lend(fence=3)
    rig.foreman.deliver(Lost(stopped.id, stopped.fence, "its lease is over"))

    rig.crew.die(Verdict(culprit.fence, "died", "child_died: SIGSEGV"))

    assert rig.link.reports() == [
        Fail(culprit.id, 1, "died", "child_died: SIGSEGV", child_died=True),
        Release(neighbour.id, 2, replaced=True),
        Fail(stopped.id, 3, "died", "its lease is over"),
    ]
    assert [(each.job[1], each.kind) for each in rig.crew.owed] == [(1, "died"), (2, "released"), (3, "died")]
    assert rig.crew.job_count == 0


def test_a_job_that_comes_again_while_it_is_being_stopped_is_another_attempt() -> None:
    rig = Rig()
    before = rig.lend(fence=1)
    rig.foreman.deliver(Lost(before.id, 1, "its lease is over"))
    again = rig.lend(fence=2)

    rig.hear(Fail(before.id, 1, "died", "its lease is over"))
    rig.hear(Succeed(again.id, 2))

    assert [report.fence for report in rig.link.reports()] == [1, 2]
    assert rig.crew.job_count == 0


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


def test_a_job_apart_that_is_cancelled_before_it_starts_never_does() -> None:
    rig = Rig("before_run")
    job = rig.lend(APART)

    rig.foreman.deliver(StopAsked(job.id, job.fence, False))
    rig.foreman.reported(PluginsTold(job.id, job.fence))

    assert not rig.crew.running
    assert rig.link.reports() == [Fail(job.id, job.fence, "stopped", "cancelled: before it started")]


def test_a_job_that_ends_well_after_it_was_stopped_has_ended_well() -> None:
    rig = Rig()
    job = rig.lend(APART)
    rig.foreman.deliver(StopAsked(job.id, job.fence, False))
    rig.later(1.1)

    report = Succeed(job.id, job.fence)
    rig.foreman.apart.job_ended(rig.crew.running[0], JobEnded(True, report, 1.0))

    assert rig.link.reports() == [report]


def test_a_job_apart_whose_lease_is_over_has_failed_whatever_it_says() -> None:
    rig = Rig()
    job = rig.lend(APART)
    rig.foreman.deliver(Lost(job.id, job.fence, "the server gave it to another"))
    assert rig.crew.children[0].member.signals == [15]

    rig.foreman.apart.job_ended(rig.crew.running[0], JobEnded(True, Succeed(job.id, job.fence), 1.0))

    (report,) = rig.link.reports()
    assert (type(report), report.kind) == (Fail, "died")


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


def test_a_process_with_code_that_does_not_end_takes_no_more_and_its_neighbours_finish() -> None:
    rig = Rig()
    neighbour, stuck = rig.lend(fence=1), rig.lend(fence=2)
    before = rig.crew
    rig.hear(Fail(stuck.id, stuck.fence, "timeout", "timeout"))

    rig.foreman.news.on_host_clogged(before, stuck.id)  # type: ignore[arg-type]

    rig.crews[-1].serve()
    assert before.is_retired
    assert not before.is_over
    rig.hear(Succeed(neighbour.id, neighbour.fence))
    assert before.is_over
    assert before.verdicts == []


def test_of_too_many_processes_with_code_that_does_not_end_the_oldest_is_given_up() -> None:
    rig = Rig()
    for fence in range(1, 6):
        rig.lend(fence=fence)
        crew = rig.crews[-1]
        crew.has_stuck = True
        rig.foreman.news.on_host_clogged(crew, bytes(16))  # type: ignore[arg-type]
        if fence < 5:
            rig.crews[-1].serve()

    assert [crew.is_given_up for crew in rig.crews] == [True, False, False, False, False]


def test_those_that_were_in_a_process_that_died_of_nobody_knows_what_are_tried_apart_a_few_at_a_time() -> None:
    rig = Rig()
    jobs = [rig.lend(fence=fence, id=bytes([fence]) * 16) for fence in range(1, 8)]
    rig.crew.die(Verdict(0, "died", "child_died: SIGSEGV"))
    assert [(type(report), report.replaced) for report in rig.link.reports()] == [(Release, True)] * 7
    rig.crew.serve()

    again = [rig.lend(fence=100 + number, id=job.id) for number, job in enumerate(jobs)]

    assert [held.dispatch for held in rig.crew.running] == again[:4]
    rig.foreman.apart.child_died(rig.crew.running[0], "child_died: SIGSEGV")
    rig.foreman.apart.job_ended(rig.crew.running[1], JobEnded(True, Succeed(again[1].id, again[1].fence), 1.0))
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


def test_a_greenlet_that_does_not_give_way_beyond_its_time_costs_its_process_and_no_other_does() -> None:
    rig = Rig()
    spinner, neighbour = rig.lend(fence=1, timeout_us=3_000_000), rig.lend(fence=2, timeout_us=1_000_000)
    rig.crew.blocking, rig.crew.host.blocked_s = spinner.fence, 3.0

    rig.later(2.5)
    assert rig.crew.verdicts == []  # The neighbour's time is over, but it is not to blame.
    rig.later(4.1)

    assert [verdict.culprit for verdict in rig.crew.verdicts] == [spinner.fence]
    assert neighbour.fence not in [report.fence for report in rig.link.reports()]


def test_a_reload_lets_the_new_crew_take_over_and_the_old_one_finish() -> None:
    rig = Rig()
    job = rig.lend()
    taken_over = rig.foreman.reload("packages have changed")
    assert len(rig.crews) == 2
    rig.foreman.reload("again")  # While one is on its way another waits.
    assert len(rig.crews) == 2

    new = rig.crews[1].serve()
    assert not taken_over.is_set()  # Another was asked for meanwhile, and is on its way.
    assert len(rig.crews) == 3
    rig.crews[2].serve()
    assert taken_over.is_set()

    assert (rig.crew.is_retired, rig.crew.is_over, new.is_over) == (True, False, True)
    later = rig.lend(fence=2)
    assert rig.crews[2].told[-1] == later
    rig.hear(Succeed(job.id, job.fence))
    assert rig.crew.is_over
    assert rig.link.reports() == [Succeed(job.id, job.fence)]


def test_a_crew_that_does_not_get_ready_is_given_up_when_packages_change_again() -> None:
    rig = Rig()
    rig.foreman.reload("packages have changed")
    rig.crews[1].host.failures = 3

    rig.foreman.reload("packages have changed")

    assert rig.crews[1].is_over
    assert len(rig.crews) == 3


def test_a_retired_crew_whose_host_comes_back_takes_no_jobs() -> None:
    rig = Rig()
    rig.lend(APART)
    rig.foreman.reload("")
    rig.crews[1].serve()
    rig.crew.die(Verdict(0, "died", "gone"))

    rig.crew.serve()

    assert rig.lend(fence=2) in rig.crews[1].told


def test_a_job_whose_code_has_changed_goes_back_and_the_worker_reloads() -> None:
    rig = Rig()
    job = rig.lend(APART)

    rig.foreman.news.outdated(rig.crew.running[0])

    *_, announced, released = [each for each in rig.link.sent if isinstance(each, (list, Release))]
    assert released == Release(job.id, job.fence)
    assert [each.name for each in announced if each.broken] == [APART]
    assert len(rig.crews) == 2


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


def test_a_failed_attempt_is_logged_with_what_the_server_says_follows(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    job = rig.lend(key="cart-7")
    rig.hear(Fail(job.id, job.fence, "failed", "Traceback (most recent call last):\n  File x\nValueError: boom"))
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
    rig.foreman.apart.job_ended(held, JobEnded(False, list(Fail(job.id, job.fence, "failed", "no such cart")), 0.1))

    rig.later(6)

    assert "attempt 1 failed, and the server has not answered the report yet: no such cart" in caplog.text


def test_lost_leases_are_logged_a_few_times(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    for fence in range(1, 31):
        job = rig.lend(fence=fence, id=fence.to_bytes(16, "big"))
        rig.foreman.deliver(Lost(job.id, job.fence, "its lease could not be renewed in time"))
    assert caplog.text.count("is stopped: its lease could not be renewed in time") == 10

    rig.foreman.say_rest()

    assert "20 more jobs of Sample that are stopped: its lease could not be renewed in time, within 10 s" in caplog.text


def test_jobs_that_take_their_processes_with_them_are_reported_each_and_logged_a_few_times(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = Rig()
    for fence in range(1, 31):
        rig.lend(APART, fence, id=fence.to_bytes(16, "big"))
        rig.foreman.apart.child_died(rig.crew.running[-1], "child_died: SIGSEGV\na stack")

    assert {report.error for report in rig.link.reports()} == {"child_died: SIGSEGV\na stack"}
    assert caplog.text.count("took its process with it: child_died: SIGSEGV") == 10


def test_a_worker_that_was_told_to_stop_before_it_is_connected_ends_without_an_error() -> None:
    rig = Rig()
    rig.foreman.news._has_connected = False
    rig.foreman.generations.crews.clear()

    rig.foreman.deliver(Connected(("there", 1), 30_000_000))  # type: ignore[arg-type]

    assert rig.foreman.news.connected.is_set()
