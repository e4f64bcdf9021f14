"""Processes that take one job each at a time, and are used again for the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import gevent

from givalia_core.clock import SECOND_US
from givalia_core.protocol.messages import Kind, Process, Progress, check
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.held import Held, Lines
from givalia_core.worker.notes import Begin, Ended, Logged, Outdated, Serve, Servers, Spoiled
from givalia_core.worker.processes.family import Member

CLOSE_S: Final = 1.0
MIB: Final = 1 << 20


class Pooled(Protocol):
    """What a pool tells whoever gave it a job."""

    log: Lines
    servers: str

    def may_say(self, kind: str) -> bool:
        """Count a line that every job may bring; return whether it is said."""

    def reported(self, note: Any) -> None:
        """A job says how far it is, or has logged something."""

    def job_ended(self, held: Any, note: Any) -> None:
        """A job has ended."""

    def job_outdated(self, held: Any) -> None:
        """The code of a job is another by now than that which was announced."""

    def job_not_started(self, held: Any, words: str) -> None:
        """There is no process for a job."""

    def child_died(self, held: Any, words: str) -> None:
        """A job's process is gone, and it did not say how the job ended."""


Origin: TypeAlias = tuple[str, str, float]
"""The distribution that brings a module, its version as it was announced, and since when that was known."""


class Child:
    """A process for one job at a time."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.held: Held[Any] | None = None
        self.source = ""
        self.origin: Origin = "", "", 0.0
        self.jobs = 0  # Those that have ended.
        self.last = ""  # The module of the last one.


class Pool:
    """As many processes as there are jobs for them, up to what is allowed: whoever gives the jobs counts.

    Args:
        foreman: Who gives the jobs.
        settings: Of the worker.
        fork: Makes the process of a member.
    """

    def __init__(self, foreman: Pooled, settings: WorkerSettings, fork: Callable[[Member], None]) -> None:
        self._foreman = foreman
        self._settings = settings
        self._fork = fork
        self._children: list[Child] = []

    @property
    def running(self) -> int:
        """How many jobs have a process now."""
        return sum(child.held is not None for child in self._children)

    def run(self, held: Held[Any], source: str, origin: Origin) -> None:
        """Run a job in a process that has none, best one that knows the module, else in a new one.

        It may still be looking for what its last job has left; that takes less time than a new process.

        Args:
            held: The job.
            source: Where its class is imported from.
            origin: What brings it.
        """
        idle = [child for child in self._children if child.held is None]
        child = next((each for each in idle if each.source == source), idle[0] if idle else None)
        try:
            child = child or self._new_child()
        except OSError as error:
            self._foreman.job_not_started(held, f"no process for it could be made: {error}")
            return
        child.held, child.source, child.origin = held, source, origin
        child.member.page.cancelled = held.dispatch.fence if held.is_cancelled else 0
        child.member.page.why = ""
        child.member.tell(Begin(tuple(held.dispatch), source, *origin))

    def tell(self, note: Any) -> None:
        """Say something to every process; one that runs a job hears it afterwards."""
        for child in self._children:
            child.member.tell(note)

    def member_of(self, held: Held[Any]) -> Member | None:
        """The process that a job has."""
        return next((child.member for child in self._children if child.held is held), None)

    def _new_child(self) -> Child:
        member = Member("job", lambda heard: self._hear_child(child, heard), lambda status: self._child_ended(child, status))
        child = Child(member)
        self._children.append(child)
        member.tell(Serve({"log_level": self._settings.log_level}, {}), Servers(self._foreman.servers))
        self._fork(member)
        return child

    def _hear_child(self, child: Child, heard: list[Any]) -> None:
        for note in heard:
            held = child.held
            if isinstance(note, Logged):
                self._foreman.reported(note)
            elif held is not None and isinstance(note, Outdated):
                child.held = None
                self._retire(child)
                self._foreman.job_outdated(held)
            elif isinstance(note, Spoiled) and child.jobs:
                self._be_spoiled(child, note)
            elif held is None or not isinstance(note, (Progress, Ended)):
                raise TypeError(f"a {type(note).__name__} from a job's own process")
            elif isinstance(note, Progress):
                check(Kind.PROGRESS, [held.dispatch.id, held.dispatch.fence, note.fraction, note.text])
                self._foreman.reported(note._replace(id=held.dispatch.id, fence=held.dispatch.fence))
            else:
                _check_report(note, held)
                self._end_job(child, held, note)

    def _end_job(self, child: Child, held: Held[Any], note: Ended) -> None:
        child.held, child.last = None, held.dispatch.module
        child.jobs += 1
        if held.why or 0 < self._settings.jobs_per_process <= child.jobs:
            self._retire(child)
        self._foreman.job_ended(held, note)

    def _be_spoiled(self, child: Child, note: Spoiled) -> None:
        if self._foreman.may_say(f"jobs of {child.last} that have left {note.words} behind"):
            words = "a job of %s has left %s behind; its process is used no more"
            self._foreman.log.info(words, child.last, note.words)
        self._retire(child)
        self._run_elsewhere(child)

    def _run_elsewhere(self, child: Child) -> None:
        """Run the job that a process was given and has not started, if there is one, in another process."""
        held, child.held = child.held, None
        if held is not None:
            self.run(held, child.source, child.origin)

    def _retire(self, child: Child) -> None:
        if child in self._children:
            self._children.remove(child)
        child.member.close()
        gevent.spawn_later(CLOSE_S, end_for_good, child.member)

    def _child_ended(self, child: Child, status: int) -> None:
        if child in self._children:
            self._children.remove(child)
        if child.jobs and child.held is not None and not child.held.why and not _has_begun(child, child.held):
            self._run_elsewhere(child)  # What the job before has left has ended the process.
        held, child.held = child.held, None
        if held is not None and not child.member.pid:
            self._foreman.job_not_started(held, child.member.words_for(status))
        elif held is not None:
            words = f"child_died: {child.member.words_for(status)}\n{child.member.stack()}".strip()
            self._foreman.child_died(held, words)

    def look(self) -> None:
        """End those that have more memory than they may."""
        limit_bytes = self._settings.memory_per_process * MIB
        for child in self._children if limit_bytes else ():
            if child.member.pid and memory_bytes(child.member.pid) > limit_bytes:
                held = child.held
                if held is not None and not held.why:
                    held.why = "oom"
                    self._foreman.log.warning(
                        "job %s of %s has taken too much memory", text_id(held.dispatch.id), held.dispatch.module
                    )
                child.member.signal(signal.SIGKILL)

    def processes(self) -> Iterator[Process]:
        """What is to be said of those that are born."""
        for child in [child for child in self._children if child.member.pid]:
            held = child.held
            yield Process(
                child.member.pid, "job", "idle" if held is None else "running", int(held is not None),
                round(child.member.since * SECOND_US), memory_bytes(child.member.pid), 0,
                held.dispatch.module if held else None, held.dispatch.id if held else None,
            )  # fmt: skip

    def close(self) -> None:
        """End those that wait for work now, and the others with their job."""
        for child in list(self._children):
            self._retire(child)


def _has_begun(child: Child, held: Held[Any]) -> bool:
    return held.dispatch.fence in child.member.page.recent()


def _check_report(note: Ended, held: Held[Any]) -> None:
    """A job's own process is believed what it says of its own job, and no more than a server would believe.

    Raises:
        BadRequest, ValueError: It says something else.
    """
    *fields, payload = (*note.report,) if note.is_success else (*note.report, b"")
    check(Kind.SUCCEED if note.is_success else Kind.FAIL, fields, payload)
    if (fields[0], fields[1]) != (held.dispatch.id, held.dispatch.fence):
        raise ValueError("a report of another job")


def end_for_good(member: Any) -> None:
    """Kill a process that has been told to end, if it is still there."""
    if member.is_open:
        member.signal(signal.SIGKILL)


def memory_bytes(pid: int) -> int:
    """The resident memory of a process; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


def is_waiting(pid: int) -> bool:
    """Return whether the main thread of a process waits in a call of the system; False where the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] in b"SD"
    except OSError:
        return False


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
