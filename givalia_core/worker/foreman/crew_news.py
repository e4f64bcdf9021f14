"""Hears crews: their modules, the time from which they take jobs, and the ends of their hosts.

When a host ends, at most one of its jobs is to blame, and the others go back to the server.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from gevent.event import Event

from givalia_core.protocol.messages import Announce, FailReport, Release, Succeed
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.assignment import LogLines, Phase, Verdict
from givalia_core.worker.foreman.apart import Apart, after
from givalia_core.worker.foreman.stopping import failure
from givalia_core.worker.link import Connected, Disconnected
from givalia_core.worker.notes import Logged
from givalia_core.worker.processes.generations import Crew, Generations, Job
from givalia_core.worker.reasons import clipped


class NewsChief(Protocol):
    """The methods of the foreman for crews."""

    settings: WorkerSettings
    log: LogLines
    counts: Counter[str]
    jobs: dict[int, Job]
    apart: Apart
    generations: Generations

    def give_credit(self) -> None:
        """Tell the server the room for more jobs."""

    def report(self, job: Job, report: Succeed | FailReport | Release) -> None:
        """Forget a job, and send its report."""

    def forget(self, job: Job) -> None:
        """Forget a job."""


class CrewNews:
    """The listener of crews.

    Args:
        foreman: The foreman.
        send: Sends announcements and releases to the server.
    """

    def __init__(self, foreman: NewsChief, send: Callable[[list[Announce] | Release], None]) -> None:
        self._foreman = foreman
        self._send = send
        self._has_connected = False
        self.ready = Event()
        """Set once the first crew has its modules."""
        self.connected = Event()
        """Set while the link is up."""
        self.when_connected: Callable[[bool], None] = lambda _: None
        """Called when the link comes up or goes down."""
        self.has_told_counts = False
        """True if the present plugins know the counts."""

    # Its modules.

    def on_ready(self, crew: Crew) -> None:
        """Announce the modules of a crew; it takes jobs when its plugins know that the worker is connected."""
        self.ready.set()
        if crew is self._foreman.generations.present or not self._has_connected:
            self._announce(crew)
        if self._has_connected:
            crew.start()

    def on_started(self, crew: Crew) -> None:
        """Let a crew take over, unless a newer one has done so meanwhile."""
        if crew.is_retired:
            return
        if self._foreman.generations.take_over(crew):
            self._announce(crew)
        self.has_told_counts = False
        self._foreman.give_credit()

    def _announce(self, crew: Crew) -> None:
        self._send(list(crew.modules.values()))

    def on_disconnected(self, event: Disconnected) -> None:
        """Log the lost connection."""
        self.connected.clear()
        self.when_connected(False)
        when = f"in {event.retry_s:.1f} s" if event.retry_s else "now"
        self._foreman.log.warning("not connected to %s (%s); trying %s %s", event.address, event.why, event.next, when)

    def on_connected(self, event: Connected) -> None:
        """Tell crews that the worker is connected, and the addresses for clients that jobs make."""
        self.connected.set()
        self.when_connected(True)
        self._foreman.log.info("connected to %s as %s", event.address, self._foreman.settings.name)
        is_first, self._has_connected = not self._has_connected, True
        apart, crews = self._foreman.apart, self._foreman.generations.crews
        servers = ",".join(map(str, event.clients))
        if servers != apart.servers:
            apart.servers = servers
            for crew in crews:
                crew.tell_servers()
        first = next(iter(crews), None)  # None: the worker is stopping.
        if is_first and first is not None and first.host.state in ("ready", "blocked"):
            first.start()

    def outdated(self, job: Job) -> None:
        """Give a job back: packages have changed without a reload. A new crew announces the present modules."""
        crew, module = job.crew, job.dispatch.module
        self._foreman.forget(job)
        crew.withdraw(module, "its package has changed, and the worker does not run the new one yet")
        if crew is self._foreman.generations.present:
            self._announce(crew)
            self._foreman.give_credit()
            self._foreman.generations.reload(f"the package of {module} has changed")
        self._send(Release(job.dispatch.id, job.dispatch.fence))

    def logged(self, note: Logged) -> None:
        """Write a log line of a job apart, in the host, where plugins see it, if the host can take it."""
        crew = self._foreman.generations.present
        if crew is not None and crew.is_serving and not crew.is_behind:
            crew.tell(note)
        else:
            logging.getLogger(note.fields["name"]).handle(logging.makeLogRecord(note.fields))

    def on_gone(self, crew: Crew) -> None:
        """Forget a crew whose processes are gone."""
        self._foreman.generations.remove(crew)

    # Its host.

    def on_host_died(self, crew: Crew, verdict: Verdict) -> None:
        """Report the jobs of a host that is gone."""
        foreman = self._foreman
        foreman.give_credit()
        if not crew.is_retired or crew.job_count:
            foreman.counts["hosts_replaced"] += 1
        is_known = verdict.is_ours or verdict.culprit in foreman.jobs
        for job in [job for job in foreman.jobs.values() if job.crew is crew]:
            if job.is_apart:
                if job.phase in (Phase.PREPARING, Phase.ENDED):
                    foreman.apart.told(job)  # The plugins hear of it once at most; they may have heard already.
                continue
            report = _outcome(job, verdict)
            foreman.report(job, report)
            if isinstance(report, Release) and not is_known and verdict.may_be(job.dispatch.fence):
                foreman.apart.suspects.add(job.dispatch.id)  # The culprit is unknown: each runs apart next time.
            if "after_run" in crew.hooks:
                crew.owe(after(job, report))

    def on_host_stuck(self, crew: Crew, verdict: Verdict) -> None:
        """Fail the job to blame, because its host cannot be replaced."""
        job = self._foreman.jobs.get(verdict.culprit)
        if job is not None and job.crew is crew:
            self._foreman.report(job, _outcome(job, verdict))

    def on_host_clogged(self, crew: Crew, job_id: bytes) -> None:
        """Let another host take new jobs: the code of this job, which was reported, does not end. Its neighbours finish."""
        words = "the code of job %s does not end; its process takes no more jobs, and ends with its last one"
        self._foreman.log.error(words, text_id(job_id))
        self._reload(crew, "the code of a job does not end")

    def on_host_full(self, crew: Crew) -> None:
        """Replace a host that exceeds its memory limit."""
        if crew is self._foreman.generations.crews[-1]:
            self._reload(crew, f"the one with the greenlets has more than {self._foreman.settings.memory_per_process} MiB")

    def on_host_spoiled(self, crew: Crew, words: str) -> None:
        """Replace a host that a job has changed in a way that cannot be undone."""
        self._reload(crew, f"a job has changed the {words} of the one with the greenlets")

    def _reload(self, crew: Crew, why: str) -> None:
        if crew is self._foreman.generations.present:
            self._foreman.generations.reload(why)


def _outcome(job: Job, verdict: Verdict) -> FailReport | Release:
    """Return the report of a job whose host has ended."""
    if job.dispatch.fence == verdict.culprit:
        is_own_death = not job.why and verdict.kind == "died"
        return FailReport(job.dispatch.id, job.dispatch.fence, verdict.kind, clipped(verdict.words), child_died=is_own_death)
    if job.why:
        return failure(job, job.why)
    return Release(job.dispatch.id, job.dispatch.fence, replaced=True)
