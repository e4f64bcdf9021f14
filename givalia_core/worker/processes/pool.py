"""Processes that run one job at a time, and are reused for the next."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import gevent

from givalia_core.clock import SECOND_US
from givalia_core.protocol.codec import check
from givalia_core.protocol.messages import Kind, Process, Progress
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.assignment import Assignment, LogLines
from givalia_core.worker.notes import Begin, ChildReported, JobServers, Logged, Outdated, Serve, Spoiled
from givalia_core.worker.processes.family import Member
from givalia_core.worker.reasons import Reason

CLOSE_S: Final = 1.0


class Pooled(Protocol):
    """The listener for jobs that a pool runs."""

    log: LogLines
    servers: str

    def may_say(self, kind: str) -> bool:
        """Count a log line that may repeat; return true if it is written, false if it is only counted."""

    def reported(self, note: Any) -> None:
        """Take progress or a log line of a job."""

    def job_ended(self, job: Any, note: Any) -> None:
        """Take the end of a job."""

    def job_outdated(self, job: Any) -> None:
        """Note that the installed code of a job is not the announced code."""

    def job_not_started(self, job: Any, words: str) -> None:
        """Note that no process could be made for a job."""

    def child_died(self, job: Any, words: str) -> None:
        """Note that a job's process is gone without a report."""


Origin: TypeAlias = tuple[str, str, float]
"""The distribution of a module, its announced version, and the time at which the version was looked up."""


class PoolProcess:
    """A process for one job at a time."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.job: Assignment[Any] | None = None
        self.source = ""
        self.origin: Origin = "", "", 0.0
        self.jobs = 0  # The number of jobs that have ended.
        self.last = ""  # The module of the last job.


class Pool:
    """The processes: as many as there are jobs; the caller limits the jobs.

    Args:
        foreman: Hears of the jobs.
        settings: The settings of the worker.
        fork: Makes the process of a member.
    """

    def __init__(self, foreman: Pooled, settings: WorkerSettings, fork: Callable[[Member], None]) -> None:
        self._foreman = foreman
        self._settings = settings
        self._fork = fork
        self.children: list[PoolProcess] = []
        """The processes."""

    def run(self, job: Assignment[Any], source: str, origin: Origin) -> None:
        """Run a job in an idle process, preferably one that has the module; else in a new process.

        An idle process may still check what its last job has left; that takes less time than a new process.

        Args:
            job: The job.
            source: The place to import its class from.
            origin: The distribution of its module.
        """
        idle = [child for child in self.children if child.job is None]
        child = next((each for each in idle if each.source == source), idle[0] if idle else None)
        try:
            child = child or self._new_child()
        except OSError as error:
            self._foreman.job_not_started(job, f"no process for it could be made: {error}")
            return
        child.job, child.source, child.origin = job, source, origin
        child.member.page.cancelled = job.dispatch.fence if job.is_cancelled else 0
        child.member.page.why = ""
        child.member.tell(Begin(tuple(job.dispatch), source, *origin))

    def tell(self, note: Any) -> None:
        """Send a note to every process; a process that runs a job reads the note afterwards."""
        for child in self.children:
            child.member.tell(note)

    def member_of(self, job: Assignment[Any]) -> Member | None:
        """Return the process of a job."""
        return next((child.member for child in self.children if child.job is job), None)

    def _new_child(self) -> PoolProcess:
        member = Member("job", lambda heard: self._hear_child(child, heard), lambda status: self._child_ended(child, status))
        child = PoolProcess(member)
        self.children.append(child)
        member.tell(Serve({"log_level": self._settings.log_level}, {}), JobServers(self._foreman.servers))
        self._fork(member)
        return child

    def _hear_child(self, child: PoolProcess, heard: list[Any]) -> None:
        for note in heard:
            job = child.job
            if isinstance(note, Logged):
                self._foreman.reported(note)
            elif job is not None and isinstance(note, Outdated):
                child.job = None
                self._retire(child)
                self._foreman.job_outdated(job)
            elif isinstance(note, Spoiled) and child.jobs:
                self._be_spoiled(child, note)
            elif job is None or not isinstance(note, (Progress, ChildReported)):
                raise TypeError(f"a {type(note).__name__} from a job's own process")
            elif isinstance(note, Progress):
                check(Kind.PROGRESS, [job.dispatch.id, job.dispatch.fence, note.fraction, note.text])
                self._foreman.reported(note._replace(id=job.dispatch.id, fence=job.dispatch.fence))
            else:
                _check_report(note, job)
                self._end_job(child, job, note)

    def _end_job(self, child: PoolProcess, job: Assignment[Any], note: ChildReported) -> None:
        child.job, child.last = None, job.dispatch.module
        child.jobs += 1
        if job.why or 0 < self._settings.jobs_per_process <= child.jobs:
            self._retire(child)
        self._foreman.job_ended(job, note)

    def _be_spoiled(self, child: PoolProcess, note: Spoiled) -> None:
        if self._foreman.may_say(f"jobs of {child.last} that have left {note.words} behind"):
            words = "a job of %s has left %s behind; its process is used no more"
            self._foreman.log.info(words, child.last, note.words)
        self._retire(child)
        self._run_elsewhere(child)

    def _run_elsewhere(self, child: PoolProcess) -> None:
        """Run the job that a process was given but has not started, if any, in another process."""
        job, child.job = child.job, None
        if job is not None:
            self.run(job, child.source, child.origin)

    def _retire(self, child: PoolProcess) -> None:
        if child in self.children:
            self.children.remove(child)
        child.member.close()
        gevent.spawn_later(CLOSE_S, end_for_good, child.member)

    def _child_ended(self, child: PoolProcess, status: int) -> None:
        if child in self.children:
            self.children.remove(child)
        if child.jobs and child.job is not None and not child.job.why and not _has_begun(child, child.job):
            self._run_elsewhere(child)  # Something that the previous job left has ended the process.
        job, child.job = child.job, None
        if job is not None and not child.member.pid:
            self._foreman.job_not_started(job, child.member.words_for(status))
        elif job is not None:
            words = f"child_died: {child.member.words_for(status)}\n{child.member.stack()}".strip()
            self._foreman.child_died(job, words)

    def limit_memory(self, limit_bytes: int) -> None:
        """Kill processes that exceed the memory limit."""
        for child in self.children:
            if child.member.memory_bytes > limit_bytes:
                job = child.job
                if job is not None and not job.why:
                    job.why = Reason.OOM
                    job.act("kill")
                    self._foreman.log.warning(
                        "job %s of %s has taken too much memory", text_id(job.dispatch.id), job.dispatch.module
                    )
                child.member.signal(signal.SIGKILL)

    def processes(self) -> list[Process]:
        """Return the records of the processes that exist."""
        return [_process(child.member, child.job) for child in self.children if child.member.pid]

    def close(self) -> None:
        """End idle processes now, and the others after their job."""
        for child in list(self.children):
            self._retire(child)


def _process(member: Member, job: Assignment[Any] | None) -> Process:
    state, since_us = "idle" if job is None else "running", round(member.since * SECOND_US)
    lent = (job.dispatch.module, job.dispatch.id) if job is not None else (None, None)
    return Process(member.pid, "job", state, int(job is not None), since_us, member.memory_bytes, 0, *lent)


def _has_begun(child: PoolProcess, job: Assignment[Any]) -> bool:
    return job.dispatch.fence in child.member.page.recent()


def _check_report(note: ChildReported, job: Assignment[Any]) -> None:
    """Check a report of a job's own process as strictly as a server would; the report must be about the job that it runs.

    Raises:
        BadRequest, ValueError: The report is illegal, or about another job.
    """
    *fields, payload = (*note.report,) if note.is_success else (*note.report, b"")
    check(Kind.SUCCEED if note.is_success else Kind.FAIL, fields, payload)
    if (fields[0], fields[1]) != (job.dispatch.id, job.dispatch.fence):
        raise ValueError("a report of another job")


def end_for_good(member: Any) -> None:
    """Kill a process that should have ended, if it still exists."""
    if member.is_open:
        member.signal(signal.SIGKILL)


def is_waiting(pid: int) -> bool:
    """Return whether the main thread of a process waits in a system call; False where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] in b"SD"
    except OSError:
        return False
