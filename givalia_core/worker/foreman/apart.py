"""Jobs that have a process of their own. The plugins hear of the start before it, and of the end before the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from givalia_core.clock import SECOND_US
from givalia_core.model import OutcomeKind
from givalia_core.printable import split
from givalia_core.protocol.messages import FailReport, Release, Succeed
from givalia_core.views import text_id
from givalia_core.worker.assignment import LogLines, Phase, Step
from givalia_core.worker.foreman.stopping import Stopping, failure
from givalia_core.worker.foreman.suspects import Suspects
from givalia_core.worker.notes import After, Before, ChildReported
from givalia_core.worker.processes.generations import Job
from givalia_core.worker.reasons import NOT_ENDED, Reason, clipped


class ApartChief(Protocol):
    """The methods of the foreman for these jobs."""

    log: LogLines
    counts: Counter[str]
    stopping: Stopping

    def may_say(self, kind: str) -> bool:
        """Count a log line that may repeat; return true if it is written, false if it is only counted."""

    def report(self, job: Job, report: Succeed | FailReport | Release) -> None:
        """Forget a job, and send its report."""

    def reported(self, note: Any) -> None:
        """Take progress or a log line of a job."""


class Apart:
    """The jobs with processes of their own; their pools report here.

    Args:
        foreman: The foreman.
        outdated: Gives back a job whose installed code is not the announced code.
    """

    def __init__(self, foreman: ApartChief, outdated: Callable[[Job], None]) -> None:
        self._foreman = foreman
        self.log = foreman.log
        self.servers = ""
        """The addresses for clients that jobs make."""
        self.may_say = foreman.may_say
        self.reported = foreman.reported
        self.job_outdated = outdated
        self.suspects: Suspects[Job] = Suspects()

    def begin(self, job: Job) -> None:
        """Tell the plugins of a job if they listen; the job starts after that."""
        if "before_run" in job.crew.hooks:
            job.act("prepare")
            job.crew.tell(Before(tuple(job.dispatch)))
        else:
            self.start(job)

    def told(self, job: Job) -> None:
        """Go on with a job: the plugins have heard of its start or end."""
        if job.phase is Phase.PREPARING:
            self.start(job)
        elif job.phase is Phase.ENDED:
            self._foreman.report(job, job.report)

    def start(self, job: Job) -> None:
        """Start a job, or report it if it has been stopped meanwhile."""
        if job.why is Reason.SHUTDOWN and not job.is_cancelled:
            self._settle(job, Release(job.dispatch.id, job.dispatch.fence))  # None of its code has run.
            return
        if job.why or job.is_cancelled:
            report = failure(job, job.why or Reason.CANCELLED)
            is_unstarted = job.why is Reason.CANCELLED
            self._settle(job, report._replace(error="cancelled: before it started") if is_unstarted else report)
            return
        if job.is_suspect and not self.suspects.may_run(job, time.monotonic()):
            job.act("wait")
            return
        job.act("start")
        if job.dispatch.timeout_us is not None:
            self._foreman.stopping.plan(job, job.dispatch.timeout_us / SECOND_US, Step.STOP, Reason.TIMEOUT)
        job.crew.run(job)

    def run_suspects(self, now_s: float) -> None:
        """Start the suspects whose turn has come."""
        while (job := self.suspects.following(now_s)) is not None:
            self.start(job)

    def job_ended(self, job: Job, note: ChildReported) -> None:
        """Take the end of a job."""
        self.suspects.clear(job.dispatch.id)
        job.seconds = note.seconds
        report = Succeed(*note.report) if note.is_success else FailReport(*note.report)
        self._settle(job, failure(job, Reason.LEASE) if job.why is Reason.LEASE else report)

    def job_not_started(self, job: Job, words: str) -> None:
        """Fail the attempt: no process could be made for the job."""
        if self.may_say(f"jobs of {job.dispatch.module} that could not be started"):
            self.log.error("job %s of %s: %s", text_id(job.dispatch.id), job.dispatch.module, words)
        self._settle(job, FailReport(job.dispatch.id, job.dispatch.fence, str(OutcomeKind.FAILED), clipped(words)))

    def child_died(self, job: Job, words: str) -> None:
        """Fail the attempt: the job's process is gone."""
        if job.why:
            ended = "" if job.why is Reason.OOM else f"{NOT_ENDED}, so its process was killed"
            self._settle(job, failure(job, job.why, ended))
            return
        self._foreman.counts["children_died"] += 1
        first, more = split(words)
        if self.may_say(f"jobs of {job.dispatch.module} that took their process with them"):
            line = "job %s of %s took its process with it: %s"
            self.log.warning(line, text_id(job.dispatch.id), job.dispatch.module, first, extra=more)
        died = str(OutcomeKind.DIED)
        self._settle(job, FailReport(job.dispatch.id, job.dispatch.fence, died, clipped(words), child_died=True))

    def _settle(self, job: Job, report: Succeed | FailReport | Release) -> None:
        """Tell the plugins, and then the server, how a job has ended."""
        self._foreman.stopping.forget(job)
        job.act("end")
        if "after_run" not in job.crew.hooks or job.crew.host.member is None:
            self._foreman.report(job, report)
            return
        job.report = report
        job.crew.tell(after(job, report))


def after(job: Job, report: Succeed | FailReport | Release) -> After:
    """Return the note that tells the plugins of the end of a job."""
    dispatch = tuple(job.dispatch)
    if isinstance(report, Succeed):
        return After(dispatch, str(OutcomeKind.SUCCEEDED), report.payload, None, job.seconds)
    if isinstance(report, Release):
        return After(dispatch, str(OutcomeKind.RELEASED), b"", None, job.seconds)
    return After(dispatch, report.kind, b"", report.error, job.seconds)
