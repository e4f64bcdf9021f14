"""The foreman: knows each job that this worker holds, and which crew runs it.

It runs beside the link, on a hub that no job code shares. It passes jobs from the link to a crew, and reports from the crew to
the link. `Apart` handles jobs with processes of their own, `Stopping` jobs that must end, and `CrewNews` the crews themselves.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import gevent
from gevent.event import Event

from givalia_core.protocol.messages import PROCESSES_MAX, Credit, Dispatch, FailReport, Progress, Release, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.steady import AGAIN_S, quietly
from givalia_core.worker.assignment import Assignment, LogLines, Phase
from givalia_core.worker.foreman.apart import Apart
from givalia_core.worker.foreman.chores import Chore
from givalia_core.worker.foreman.crew_news import CrewNews
from givalia_core.worker.foreman.failures import Failures
from givalia_core.worker.foreman.stopping import Stopping
from givalia_core.worker.link import Connected, Disconnected, Dispatched, FailAnswered, Link, LinkEvent, Lost, StopAsked
from givalia_core.worker.notes import Counts, Logged, PluginBusy, PluginsTold
from givalia_core.worker.page import PULSE
from givalia_core.worker.processes.generations import BLOCKED_NS, Crew, Generations, Job
from givalia_core.worker.reasons import WORDS, Reason

TICK_S: Final = 0.1
END_S: Final = 10.0
AWAY_S: Final = 2.0  # A longer pause between ticks means that this process or the machine was suspended.
SHOW_S: Final = 1.0  # The shortest time between two reports on the processes.
SHOW_AGAIN_S: Final = 5.0  # The same while only jobs and numbers have changed: each report costs the server a turn.
ASK_S: Final = 2.0  # The time between two questions to a host about its jobs.

log = logging.getLogger("givalia.worker")
_REPORTS: Final = frozenset((Succeed, FailReport, Release))


class Foreman:
    """The foreman. Call all methods on the hub where it was made.

    Args:
        settings: The settings of the worker.
        link: Takes the reports.
        make_crew: Makes a new generation of processes.
        lines: Takes log lines; None: the log of the worker.
    """

    def __init__(
        self, settings: WorkerSettings, link: Link, make_crew: Callable[[Foreman], Crew], lines: LogLines | None = None
    ) -> None:
        self.settings = settings
        self.log: LogLines = lines or log
        self.counts: Counter[str] = Counter()
        """Counts of `hosts_replaced`, `children_died`, `blocked` and `crews`."""
        self._link = link
        self._make_crew = make_crew
        self.jobs: dict[int, Job] = {}
        """The jobs that the worker holds, by fence: a job can come again while its previous attempt is being stopped."""
        self._failures = Failures(self.log, lambda: self.settings.log_errors == "full")
        self.stopping = Stopping(self)
        self.news = CrewNews(self, link.send)
        self.apart: Apart = Apart(self, self.news.outdated)
        self.generations = Generations(self._add_crew, self.log)
        self._credit = Credit(0)
        self._is_stopping = False
        self._idle = Event()
        self._idle.set()
        self._ticked_s = time.monotonic()
        self._shown: list[Any] = []
        self._shown_s = 0.0
        self._told: dict[str, int] = {}
        self._was_away = False
        self._actions: dict[type, Callable[[Any], None]] = {
            StopAsked: self.stopping.cancel,
            Lost: self.stopping.lose,
            Connected: self.news.on_connected,
            Disconnected: self.news.on_disconnected,
            FailAnswered: lambda event: self._failures.answer(event, time.monotonic()),
        }
        self._chores = self._make_chores()

    def _make_chores(self) -> tuple[Chore, ...]:
        failures, generations, stopping, apart = self._failures, self.generations, self.stopping, self.apart
        return (
            Chore(TICK_S, lambda: stopping.timed, stopping.look),
            Chore(TICK_S, lambda: apart.suspects.waiting, apart.run_suspects),
            Chore(TICK_S, self._must_look_at_crews, self._look_at_crews),
            Chore(
                TICK_S,
                lambda: self.settings.memory_per_process,
                lambda _: generations.limit_memory(self.settings.memory_per_process),
            ),
            Chore(ASK_S, lambda: self.jobs, generations.ask_hosts),
            Chore(SHOW_S, lambda: True, self._show),
            Chore(SHOW_S, lambda: failures.reported or failures.repeats.counts, failures.look),
        )

    def _must_look_at_crews(self) -> bool:
        now_ns = time.monotonic_ns()
        return any(
            crew.host.state != "ready" or now_ns - crew.host.fields[PULSE] > BLOCKED_NS for crew in self.generations.crews
        )

    def open(self) -> None:
        """Start the first crew and the chores."""
        self.generations.begin()
        self._ticking = gevent.spawn(self._tick_forever)

    def may_say(self, kind: str) -> bool:
        """Count a log line that may repeat; return true if it is written. `kind` is its plural, in words."""
        return self._failures.may_say(kind, time.monotonic())

    def _add_crew(self) -> Crew:
        self.counts["crews"] += 1
        return self._make_crew(self)

    def reload(self, why: str) -> Event:
        """Start a new crew, with the packages that are installed now; running jobs stay where they are.

        Returns:
            An event, set when the new crew has taken over.
        """
        self.generations.reload(why)
        return self.generations.taken_over

    def use(self, settings: WorkerSettings) -> None:
        """Use these settings from now on."""
        self.settings = settings
        self.give_credit()

    def give_credit(self) -> None:
        """Tell the server the room for more jobs."""
        crew, credit = self.generations.present, Credit(0)
        if crew is not None and not self._is_stopping:
            can_host = crew.is_serving and not crew.host.blocked_s
            credit = Credit(self.settings.concurrency * can_host, self.settings.processes * bool(crew.apart & crew.takes))
        if credit != self._credit:
            self._credit = credit
            self._link.send(credit)

    # What the link brings.

    def deliver(self, event: LinkEvent) -> None:
        """Take an event of the link: jobs, most often."""
        if type(event) is not Dispatched:
            self._actions[type(event)](event)
            return
        crew, suspects = self.generations.present, self.apart.suspects.ids
        if crew is None or self._is_stopping:
            self._take_others(None, event.jobs)
            return
        hosted = [job for job in event.jobs if job.module in crew.hosted and job.id not in suspects]
        for dispatch in hosted:
            job = self.jobs[dispatch.fence] = Assignment(dispatch, crew, False)
            if dispatch.timeout_us is not None:  # Its process stops the job in time; this is for a job that does not end then.
                self.stopping.plan_kill(job, dispatch.timeout_us)
        if hosted:
            crew.job_count += len(hosted)
            self._idle.clear()
            crew.tell(*hosted)  # Before anything yields: no `End` may overtake its job.
        if len(hosted) < len(event.jobs):
            self._take_others(crew, [job for job in event.jobs if job.fence not in self.jobs])

    def _take_others(self, crew: Crew | None, jobs: list[Dispatch]) -> None:
        """Take jobs that have processes of their own, and give back those that no process can run."""
        suspects = self.apart.suspects.ids
        for dispatch in jobs:
            if crew is None or dispatch.module not in crew.takes:
                self._link.send(Release(dispatch.id, dispatch.fence))  # The job was on its way when the credits were withdrawn.
                continue
            crew.job_count += 1
            self._idle.clear()
            job = self.jobs[dispatch.fence] = Assignment(dispatch, crew, True, dispatch.id in suspects, Phase.NEW)
            self.apart.begin(job)

    # What crews report.

    def hear(self, crew: Crew, notes: list[Any]) -> None:
        """Take the notes of a crew's host: reports, most often."""
        crew.audit.heard_s = time.monotonic()
        reports: list[Any] = []
        for note in notes:
            if type(note) not in _REPORTS:
                if not crew.take(note):
                    self.reported(note)
            elif (job := self.jobs.get(note.fence)) is not None:
                self.forget(job)
                reports.append(note)
                if type(note) is FailReport:
                    self._failures.report(job.dispatch, note, time.monotonic())
        if reports:
            self._link.send(*reports)

    def report(self, job: Job, report: Succeed | FailReport | Release) -> None:
        """Forget a job, and send its report."""
        self.forget(job)
        if type(report) is FailReport:
            self._failures.report(job.dispatch, report, time.monotonic())
        self._link.send(report)

    def forget(self, job: Job) -> None:
        """Forget a job."""
        crew = job.crew
        del self.jobs[job.dispatch.fence]
        self.stopping.timed.discard(job)
        crew.job_count -= 1
        if job.hook:
            job.hook = ""
            crew.note_hook(job)
        if job.is_suspect:
            self.apart.suspects.leave(job)
            self.apart.run_suspects(time.monotonic())
        if crew.is_retired:
            crew.look_whether_done()
        if not self.jobs:
            self._idle.set()

    def reported(self, note: Any) -> None:
        """Take a note about progress or plugins, or a log line of a job."""
        if type(note) is Logged:
            self.news.logged(note)
        elif (job := self.jobs.get(note.fence)) is None:
            return
        elif type(note) is Progress:
            self._link.send(note)
        elif type(note) is PluginBusy:
            job.hook, job.hook_since_s = note.words, time.monotonic()
            job.crew.note_hook(job)
        elif type(note) is PluginsTold:
            self.apart.told(job)

    # Chores.

    def _tick_forever(self) -> None:
        while True:
            try:
                while True:
                    gevent.sleep(TICK_S)
                    self._tick(time.monotonic())
            except Exception as error:
                quietly(self.log.error, "looking after the processes: %s: %s", type(error).__name__, error)
                gevent.sleep(AGAIN_S)

    def _tick(self, now_s: float) -> None:
        self._was_away = now_s - self._ticked_s > AWAY_S
        self._ticked_s = now_s
        if self._was_away:
            for crew in self.generations.crews:
                crew.audit.begin_anew(now_s)
        for chore in self._chores:
            if now_s >= chore.due_s and chore.is_needed():
                chore.due_s = now_s + chore.period_s
                chore.act(now_s)

    def _look_at_crews(self, _: float) -> None:
        self.generations.look(is_fair=not self._was_away)
        self.give_credit()

    def _show(self, now_s: float) -> None:
        """Tell the server about the processes, and the plugins the counts."""
        shown = self.generations.processes()[:PROCESSES_MAX]
        # A new state, stack or process is news; the state of a job's own process is not.
        news = [
            (each.pid, each.role == "job" or each.state, each.restarts, bool(each.blocked_us), each.stack) for each in shown
        ]
        if shown and (news != self._shown or now_s - self._shown_s > SHOW_AGAIN_S):
            self._shown, self._shown_s = news, now_s
            self._link.send(shown)
        if self.generations.present is not None and (self.counts != self._told or not self.news.has_told_counts):
            self._told, self.news.has_told_counts = dict(self.counts), True
            self.generations.present.tell(Counts(self._told))

    # The end.

    def stop(self) -> None:
        """Take no more jobs, wait the time of grace for the running ones, stop the rest, and end all processes."""
        self._is_stopping = True
        self.give_credit()
        self.generations.drain()
        self._show(time.monotonic())  # At once, for people who ask why their jobs wait.
        if not self._idle.wait(self.settings.grace):
            running = list(self.jobs.values())
            self.log.warning("%d jobs have not ended in %g s and are stopped", len(running), self.settings.grace)
            for job in running:
                self.stopping.stop(job, Reason.SHUTDOWN, WORDS["shutdown"])
            self._idle.wait(self.settings.stop_grace + AWAY_S)
        self.generations.end()
        self.generations.over.wait(END_S)
        self._ticking.kill()

    def say_rest(self) -> None:
        """Log the failed attempts that are not logged yet; call it when the link has ended."""
        self._failures.close(time.monotonic())
