"""Ends jobs that must end, in steps.

A cancelled job first sees `self.cancelled`; then `Stopped` is raised inside its code (in a process of its own by SIGTERM); then
its process is killed. A greenlet that takes its process with it costs its neighbours nothing but time: they are released, their
attempt given back.
"""

from __future__ import annotations

import math
import signal
import time
from typing import Final, Protocol

from givalia_core.model import OutcomeKind
from givalia_core.printable import split
from givalia_core.protocol.messages import Fail
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.assignment import HAS_CODE, LogLines, Phase, Step, Verdict
from givalia_core.worker.link import Lost, StopAsked
from givalia_core.worker.notes import CancelAsked, End
from givalia_core.worker.processes.generations import Job
from givalia_core.worker.reasons import HOOK_LEFT_S, NOT_ENDED, WORDS, Reason, clipped, timed_out

AGAIN_S: Final = 0.1  # Until the next try to find out whether it is this job that holds up its process.
PROMISE_S: Final = 2.0  # For a process to report an end that is due, without the time that its plugins may take.
_KINDS: Final = {
    Reason.TIMEOUT: OutcomeKind.TIMEOUT, Reason.CANCELLED: OutcomeKind.STOPPED, Reason.SHUTDOWN: OutcomeKind.STOPPED,
    Reason.LEASE: OutcomeKind.DIED, Reason.OOM: OutcomeKind.FAILED,
}  # fmt: skip


class Starts(Protocol):
    """Starts the jobs that have processes of their own."""

    def start(self, job: Job) -> None:
        """Start a job, unless there is nothing left to start."""


class StoppingChief(Protocol):
    """What this needs of the foreman."""

    settings: WorkerSettings
    log: LogLines
    jobs: dict[int, Job]

    @property
    def apart(self) -> Starts:
        """The jobs that have processes of their own."""

    def may_say(self, kind: str) -> bool:
        """Count a line that every job may bring; return whether it is said."""


class Stopping:
    """Knows which step of which job is due when."""

    def __init__(self, foreman: StoppingChief) -> None:
        self._foreman = foreman
        self.timed: set[Job] = set()
        """The jobs of which a step may be due."""

    def plan(self, job: Job, seconds: float, step: Step, cause: Reason) -> None:
        """Let a step follow in so many seconds, unless another comes before it."""
        due_s = time.monotonic() + seconds
        if due_s < job.due_s:
            job.due_s, job.step, job.cause = due_s, step, cause
            self.timed.add(job)

    def forget(self, job: Job) -> None:
        """Take no more steps."""
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
        """Let a job see that it was cancelled, and stop it if it takes no notice."""
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
        """Make the job's code end, by raising `Stopped` in it."""
        if job.why or job.phase is Phase.ENDED:
            return
        job.why, job.due_s = why, math.inf
        if job.phase is Phase.WAITING:
            self._foreman.apart.start(job)  # That is, report it: it does not start.
            return
        if job.phase not in HAS_CODE:
            return  # It does not start when the plugins have been told.
        job.act("stop")
        if not job.is_apart:
            job.crew.tell(End(job.dispatch.id, job.dispatch.fence, why, words))
        elif (member := job.crew.pool.member_of(job)) is not None:
            member.page.why = why
            member.signal(signal.SIGTERM)
        self.plan(job, self._foreman.settings.stop_grace, Step.KILL, why)

    def _kill(self, job: Job, cause: Reason) -> None:
        """It has not ended, so its process must."""
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
            self.plan(job, AGAIN_S, Step.KILL, cause)  # Another job holds it up: that one is looked after elsewhere.
        else:
            # The process reports the end by itself, with that or without; plugins that it may be with have their own limit.
            job.act("trust")
            self.plan(job, self._promise_s(job), Step.PROMISE, cause)

    def _promise_s(self, job: Job) -> float:
        """Return the seconds in which the process must report an end; each plugin may use up its limit in each hook."""
        calls = len(job.crew.hooks & {"before_run", "after_run"}) * len(job.crew.host.plugins)
        return PROMISE_S + calls * (self._foreman.settings.hook_limit + HOOK_LEFT_S)

    def _break_promise(self, job: Job, cause: Reason) -> None:
        """The process was to report the end of this job long ago, and shows signs of life: it is not to be believed."""
        if job.crew.host.blocked_s:
            job.act("trust")  # It was held up meanwhile.
            self.plan(job, self._promise_s(job), Step.PROMISE, cause)
        else:
            self._replace_host(job, cause)

    def _replace_host(self, job: Job, cause: Reason) -> None:
        """A greenlet does not end: its process has to."""
        job.why = job.why or cause
        job.act("kill")
        host = job.crew.host
        words = f"{words_of(job, job.why)}; {NOT_ENDED}, so its process was replaced\n{host.stack}".strip()
        first, more = split(words)
        self._foreman.log.error("job %s of %s: %s", text_id(job.dispatch.id), job.dispatch.module, first, extra=more)
        job.crew.replace_host(Verdict(job.dispatch.fence, str(_KINDS[job.why]), words, is_ours=True))


def words_of(job: Job, why: Reason) -> str:
    """Return in words why a job was made to end."""
    return timed_out(job.dispatch) if why is Reason.TIMEOUT else WORDS[why]


def failure(job: Job, why: Reason, more: str = "") -> Fail:
    """Return the report of a job that was made to end."""
    job.why = why
    words = clipped(f"{words_of(job, why)}\n{more}".strip())
    return Fail(job.dispatch.id, job.dispatch.fence, str(_KINDS[why]), words)
