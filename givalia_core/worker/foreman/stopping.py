"""Ends jobs that must end, in steps.

A cancelled job first sees `self.cancelled`. Then `Stopped` is raised in its code (by SIGTERM in a process of its own). Then its
process is killed. If other jobs share that process, they are released and do not lose the attempt.
"""

from __future__ import annotations

import math
import signal
import time
from typing import Final, Protocol

from givalia_core.clock import SECOND_US
from givalia_core.model import OutcomeKind
from givalia_core.printable import split
from givalia_core.protocol.messages import FailReport
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.assignment import HAS_CODE, LogLines, Phase, Step, Verdict
from givalia_core.worker.link import Lost, StopAsked
from givalia_core.worker.notes import CancelAsked, End
from givalia_core.worker.processes.generations import Job
from givalia_core.worker.reasons import HOOK_LEFT_S, NOT_ENDED, WORDS, Reason, clipped, timed_out

AGAIN_S: Final = 0.1  # Time to the next check whether this job blocks its process.
PROMISE_S: Final = 2.0  # Time for a process to report an end, without the time for its plugins.
_KINDS: Final = {
    Reason.TIMEOUT: OutcomeKind.TIMEOUT, Reason.CANCELLED: OutcomeKind.STOPPED, Reason.SHUTDOWN: OutcomeKind.STOPPED,
    Reason.LEASE: OutcomeKind.DIED, Reason.OOM: OutcomeKind.FAILED,
}  # fmt: skip


class Starts(Protocol):
    """The starter of jobs that have processes of their own."""

    def start(self, job: Job) -> None:
        """Start a job, or report it if it has been stopped meanwhile."""


class StoppingChief(Protocol):
    """The methods of the foreman for jobs that must end."""

    settings: WorkerSettings
    log: LogLines
    jobs: dict[int, Job]

    @property
    def apart(self) -> Starts:
        """The jobs that have processes of their own."""

    def may_say(self, kind: str) -> bool:
        """Count a log line that may repeat; return true if it is written, false if it is only counted."""


class Stopping:
    """The steps that are due, by job."""

    def __init__(self, foreman: StoppingChief) -> None:
        self._foreman = foreman
        self.timed: set[Job] = set()
        """The jobs that a step may be due for."""

    def plan(self, job: Job, seconds: float, step: Step, cause: Reason) -> None:
        """Plan a step, unless an earlier one is planned."""
        due_s = time.monotonic() + seconds
        if due_s < job.due_s:
            job.due_s, job.step, job.cause = due_s, step, cause
            self.timed.add(job)

    def plan_kill(self, job: Job, timeout_us: int) -> None:
        """Plan the kill of a job whose process stops it in time, in case the job does not end then."""
        self.plan(job, timeout_us / SECOND_US + self._foreman.settings.stop_grace, Step.KILL, Reason.TIMEOUT)

    def forget(self, job: Job) -> None:
        """Cancel the steps of a job."""
        job.due_s = math.inf
        self.timed.discard(job)

    def look(self, now_s: float) -> None:
        """Take the steps that are due."""
        for job in [job for job in self.timed if job.due_s <= now_s]:
            job.due_s = math.inf
            if job.step is Step.STOP:
                self.stop(job, job.cause, words_of(job, job.cause))
            elif job.step is Step.KILL:
                self._kill(job, job.cause)
            else:
                self._break_promise(job, job.cause)

    def cancel(self, event: StopAsked) -> None:
        """Show a job that it was cancelled, and plan to stop it if it goes on."""
        job = self._foreman.jobs.get(event.fence)
        if job is None or job.is_cancelled:
            return
        job.is_cancelled = True
        job.crew.tell(CancelAsked(tuple(job.dispatch), is_news=not event.again))
        if (member := job.crew.pool.member_of(job)) is not None:
            member.page.cancelled = job.dispatch.fence
        if not job.why:
            self.plan(job, self._foreman.settings.stop_grace, Step.STOP, Reason.CANCELLED)

    def lose(self, event: Lost) -> None:
        """Stop a job whose lease is over."""
        job = self._foreman.jobs.get(event.fence)
        if job is not None:
            if self._foreman.may_say(f"jobs of {job.dispatch.module} that are stopped: {event.why}"):
                self._foreman.log.warning("job %s of %s is stopped: %s", text_id(event.id), job.dispatch.module, event.why)
            self.stop(job, Reason.LEASE, event.why)

    def stop(self, job: Job, why: Reason, words: str) -> None:
        """Raise `Stopped` in the job's code, and plan the kill."""
        if job.why or job.phase is Phase.ENDED:
            return
        job.why, job.due_s = why, math.inf
        if job.phase is Phase.WAITING:
            self._foreman.apart.start(job)  # It does not start; it is reported.
            return
        if job.phase not in HAS_CODE:
            return  # When the plugins have heard of it, the job is reported and not started.
        job.act("stop")
        if not job.is_apart:
            job.crew.tell(End(job.dispatch.id, job.dispatch.fence, why, words))
        elif (member := job.crew.pool.member_of(job)) is not None:
            member.page.why = why
            member.signal(signal.SIGTERM)
        self.plan(job, self._foreman.settings.stop_grace, Step.KILL, why)

    def _kill(self, job: Job, cause: Reason) -> None:
        """Kill a job's own process, or replace the host if this job blocks it; else plan the next step."""
        if job.phase not in HAS_CODE:
            return
        if job.is_apart:
            job.why = job.why or cause
            job.act("kill")
            if (member := job.crew.pool.member_of(job)) is not None:
                member.signal(signal.SIGKILL)
        elif job.crew.host.is_blocked_by(job):
            self._replace_host(job, cause)
        elif job.crew.host.blocked_s:
            self.plan(job, AGAIN_S, Step.KILL, cause)  # Another job blocks the process, and is handled elsewhere.
        else:
            # The process will report the end, even if the code does not end; plugins have limits of their own.
            job.act("trust")
            self.plan(job, self._promise_s(job), Step.PROMISE, cause)

    def _promise_s(self, job: Job) -> float:
        """Return the seconds for the process to report an end; each plugin may take its full limit in each hook."""
        calls = len(job.crew.hooks & {"before_run", "after_run"}) * len(job.crew.host.plugins)
        return PROMISE_S + calls * (self._foreman.settings.hook_limit + HOOK_LEFT_S)

    def _break_promise(self, job: Job, cause: Reason) -> None:
        """Replace a process that is alive but has not reported the end of this job in time."""
        if job.crew.host.blocked_s:
            job.act("trust")  # Another job blocked the process meanwhile.
            self.plan(job, self._promise_s(job), Step.PROMISE, cause)
        else:
            self._replace_host(job, cause)

    def _replace_host(self, job: Job, cause: Reason) -> None:
        """Replace the process of a greenlet that does not end."""
        job.why = job.why or cause
        job.act("kill")
        host = job.crew.host
        words = f"{words_of(job, job.why)}; {NOT_ENDED}, so its process was replaced\n{host.stack}".strip()
        first, more = split(words)
        self._foreman.log.error("job %s of %s: %s", text_id(job.dispatch.id), job.dispatch.module, first, extra=more)
        job.crew.replace_host(Verdict(job.dispatch.fence, str(_KINDS[job.why]), words, is_ours=True))


def words_of(job: Job, why: Reason) -> str:
    """Return the words for the reason that ends a job."""
    return timed_out(job.dispatch) if why is Reason.TIMEOUT else WORDS[why]


def failure(job: Job, why: Reason, more: str = "") -> FailReport:
    """Return the report of a job that had to end."""
    job.why = why
    words = clipped(f"{words_of(job, why)}\n{more}".strip())
    return FailReport(job.dispatch.id, job.dispatch.fence, str(_KINDS[why]), words)
