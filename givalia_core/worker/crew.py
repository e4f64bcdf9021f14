"""A crew: the processes of one generation, which run what the foreman gives them.

One of them hosts jobs as greenlets, together with the plugins; beside it are as many as are wanted that take one job each. All
come from one nursery, started when the crew was, so a crew knows the packages that were installed then. To reload is to let
another crew take over while the old one finishes what it has.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import gevent

from givalia_core.clock import SECOND_US
from givalia_core.protocol.messages import STACK_BYTES_MAX, Announce, Dispatch, Kind, Process, Progress, check
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.family import Member, Nursery
from givalia_core.worker.notes import Begin, Drain, Ended, Importing, Logged, Ready, Serve, Spoiled, Start, Started
from givalia_core.worker.page import DUMP_SIGNAL, Page

START_S: Final = 60.0  # A process that has not its modules by then is stuck in importing one.
STEADY_S: Final = 10.0  # One that lived so long counts as one that worked.
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
BLOCKED_S: Final = 1.0  # So long without a sign of life is worth a word.
ASK_AGAIN_S: Final = 10.0
CLOSE_S: Final = 1.0
DRAIN_S: Final = 5.0


class Held:
    """A job that this worker holds, from its dispatch to its report.

    `phase` is where it is: `before` and `after` while plugins are told of one that has a process of its own, else `running`.
    `why` says why its code was made to end. At `at_s` (monotonic) the next `step` is due, `end` or `kill`, for `cause`.
    """

    __slots__ = ("at_s", "cause", "crew", "dispatch", "is_cancelled", "is_process", "phase", "report", "seconds", "step", "why")

    def __init__(self, dispatch: Dispatch, crew: Crew, *, is_process: bool) -> None:
        self.dispatch = dispatch
        self.crew = crew
        self.is_process = is_process
        self.phase = "running"
        self.is_cancelled = False
        self.why = ""
        self.at_s: float | None = None
        self.step = ""
        self.cause = ""
        self.report: Any = None
        self.seconds = 0.0


class Hosting(Protocol):
    """A process with greenlets, as far as a crew needs to know: one of its own, or the one that the crew is in."""

    pid: int
    since: float
    page: Page
    last_current: int
    is_open: bool

    def tell(self, *said: Any) -> None:
        """Say something to it."""

    def signal(self, number: int) -> None:
        """Send it a signal."""

    def stack(self) -> str:
        """What it has written of where it is, since this was last asked."""


class Verdict:
    """Why a host is put to death, and whose fault that is: a fence, or 0 for nobody's that is known."""

    def __init__(self, culprit: int, kind: str, words: str) -> None:
        self.culprit = culprit
        self.kind = kind
        self.words = words


class Lines(Protocol):
    """What a crew and its foreman need of a logger."""

    def info(self, words: str, *values: Any) -> None:
        """What is good to know."""

    def warning(self, words: str, *values: Any) -> None:
        """What somebody should look at."""

    def error(self, words: str, *values: Any) -> None:
        """What went wrong."""


class Crewed(Protocol):
    """What a crew tells its foreman."""

    settings: WorkerSettings
    log: Lines
    counts: Counter[str]

    def crew_is_ready(self, crew: Crew) -> None:
        """It has its modules and plugins."""

    def crew_has_started(self, crew: Crew) -> None:
        """Its plugins know that the worker is connected: jobs may come."""

    def reported(self, note: Any) -> None:
        """A job has ended, or says how far it is; or the plugins were told of one; or it has logged something."""

    def job_ended(self, held: Held, note: Any) -> None:
        """A job that had a process of its own has ended."""

    def job_not_started(self, held: Held, words: str) -> None:
        """There is no process of its own for a job."""

    def child_died(self, held: Held, words: str) -> None:
        """A job's own process is gone, and it did not say how the job ended."""

    def host_died(self, crew: Crew, verdict: Verdict) -> None:
        """The process with the greenlets is gone; another is on its way, unless the crew is over."""

    def host_is_stuck(self, crew: Crew, verdict: Verdict) -> None:
        """The process with the greenlets should be replaced and cannot be."""

    def host_is_spoiled(self, crew: Crew, words: str) -> None:
        """A job has changed these for the whole process with the greenlets, which cannot put them back."""

    def crew_is_over(self, crew: Crew) -> None:
        """All its processes are gone."""

    def by_fence(self, fence: int) -> Held | None:
        """The job with this fence, if it is held here."""


class Host:
    """The process that runs greenlets, and the one after it when it has to be replaced."""

    def __init__(self) -> None:
        self.member: Hosting | None = None
        self.state = "starting"
        self.starts = 0
        self.failures = 0  # Processes in a row that did not live long.
        self.importing: str | None = None
        self.verdict: Verdict | None = None
        self.asked_at = 0.0  # When it was last asked for its stack, while it is blocked.
        self.stack = ""

    @property
    def blocked_s(self) -> float:
        """For how long it has shown no sign of life, if that is long enough to be called blocked."""
        if self.member is None or self.state == "starting":
            return 0.0
        silence_s = self.member.page.silence_s()
        return silence_s if silence_s > BLOCKED_S else 0.0


class Child:
    """A process for one job at a time."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.held: Held | None = None
        self.source = ""
        self.jobs = 0
        self.is_full = False  # Over its memory.


class Crew:
    """The processes of one generation; lives on the hub of its foreman, and never waits there."""

    def __init__(self, foreman: Crewed, host: Hosting | None = None, *, environ: dict[str, str] | None = None) -> None:
        """Start it; with `host` the greenlets are in that process, which cannot be replaced."""
        self._foreman = foreman
        self._settings = foreman.settings
        self._environ = environ
        self._nursery: Nursery | None = None
        self.modules: dict[str, Announce] = {}
        self.sources: dict[str, str] = {}
        self.hooks: frozenset[str] = frozenset()
        self.host = Host()
        self.children: list[Child] = []
        self.held = 0  # Jobs that it has to see to the end.
        self.is_serving = False
        self.is_retired = False
        self._is_over = False
        self._is_draining = self._is_closing = False
        self._deadly: dict[str, str] = {}
        self._owed: list[Any] = []
        self._suspected = ""  # The module during whose import a process was killed, which may have been chance.
        self._is_local = host is not None
        if host is None:
            self._start_host()
        else:
            self.host.member = host

    # The host.

    def _start_host(self) -> None:
        host = self.host
        if self._is_over:
            return
        host.state, host.importing, host.verdict, host.asked_at, host.stack = "starting", None, None, 0.0, ""
        try:
            member = Member("greenlets", self.hear_host, lambda status: self._host_ended(member, status))
        except OSError as error:
            self._foreman.log.error("no process for the greenlets can be made: %s", error)
            gevent.spawn_later(BACKOFF_MAX_S, self._start_host)
            return
        host.member = member
        host.starts += 1
        member.tell(Serve(dataclasses.asdict(self._settings), self._deadly))
        self._fork(member)

    def _fork(self, member: Member) -> None:
        if self._nursery is None:
            self._nursery = Nursery(self._nursery_lost, self._environ)
        self._nursery.fork(member)

    def _nursery_lost(self) -> None:
        self._foreman.log.error("the nursery of the worker's processes is gone; a new one is started")
        self._nursery = None

    def tell(self, *said: Any) -> None:
        """Say something to the host; one that starts hears it when it is ready."""
        if self.host.member is not None:
            self.host.member.tell(*said)

    def owe(self, note: Any) -> None:
        """Say something to the next host, for this one is gone."""
        self._owed.append(note)

    def hear_host(self, heard: list[Any]) -> None:
        for note in heard:
            if isinstance(note, Importing):
                self.host.importing = note.module
            elif isinstance(note, Ready):
                self._be_ready(note)
            elif isinstance(note, Started):
                self.is_serving = True
                self._foreman.crew_has_started(self)
            elif isinstance(note, Spoiled):
                self._foreman.host_is_spoiled(self, note.words)
            else:
                self._foreman.reported(note)

    def _be_ready(self, note: Ready) -> None:
        self.host.state, self.host.importing = "ready", None
        self.modules = {fields[0]: Announce(*fields) for fields in note.announced}
        self.sources = note.sources
        self.hooks = frozenset(note.hooks)
        self._foreman.crew_is_ready(self)
        self.tell(*self._owed)
        self._owed = []

    def start(self) -> None:
        """The worker is connected: let the plugins know, and after that take jobs."""
        self.tell(Start())

    def is_apart(self, module: str) -> bool:
        """Whether jobs of this module have processes of their own."""
        return module in self.modules and self.modules[module].isolation == "process"

    def takes(self, module: str) -> bool:
        """Whether a job of this module could start now: somebody has to run it, or to tell the plugins of it."""
        if module not in self.modules or self.modules[module].broken is not None:
            return False
        return self.is_serving or (self.is_apart(module) and "before_run" not in self.hooks)

    def replace_host(self, verdict: Verdict) -> None:
        """Put the host to death and start another."""
        host = self.host
        if self._is_local:
            self._foreman.host_is_stuck(self, verdict)
        elif host.member is not None and host.verdict is None:
            host.verdict = verdict
            host.member.signal(signal.SIGKILL)

    def _host_ended(self, member: Member, status: int) -> None:
        host = self.host
        if host.member is not member:
            return
        host.member = None
        was_starting, self.is_serving = host.state == "starting", False
        words = member.stack()
        verdict = host.verdict or Verdict(
            member.last_current, "died", f"child_died: {member.words_for(status)}\n{words}".strip()
        )
        # A job that took its process with it says nothing about the next process, which can start at once.
        is_blamed = self._foreman.by_fence(verdict.culprit) is not None
        is_steady = is_blamed or time.time() - member.since > STEADY_S
        host.failures = 0 if is_steady else host.failures + 1
        host.state = "ended"
        if not self._is_over and not (self.is_retired and not self.held):
            if was_starting and host.importing is not None and not self._may_be_chance(host, status):
                self._deadly[host.importing] = f"importing it ended the process: {verdict.words}"
                self._foreman.log.error(
                    "module %s is not served: importing it ended the process: %s", host.importing, verdict.words
                )
                delay_s = 0.0
            else:
                self._foreman.log.error("the process %d with the greenlets is gone: %s", member.pid, verdict.words)
                delay_s = min(BACKOFF_FIRST_S * 2 ** (host.failures - 2), BACKOFF_MAX_S) if host.failures > 1 else 0.0
            gevent.spawn_later(delay_s, self._start_host)
        self._foreman.host_died(self, verdict)
        self._look_whether_over()

    def _may_be_chance(self, host: Host, status: int) -> bool:
        """Whether somebody else may have killed a process that was importing a module; not if it happens again."""
        is_first, self._suspected = self._suspected != host.importing, host.importing or ""
        return is_first and host.verdict is None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    # Children.

    def run(self, held: Held) -> None:
        """Run a job in a process of its own: one that waits for work, best one that knows the module, else a new one."""
        source = self.sources.get(held.dispatch.module, "")
        idle = [child for child in self.children if child.held is None]
        child = next((each for each in idle if each.source == source), idle[0] if idle else None)
        try:
            child = child or self._new_child()
        except OSError as error:
            self._foreman.job_not_started(held, f"no process for it could be made: {error}")
            return
        child.held, child.source = held, source
        child.member.page.cancelled = held.dispatch.fence if held.is_cancelled else 0
        child.member.page.why = ""
        child.member.tell(Begin(tuple(held.dispatch), source))

    def _new_child(self) -> Child:
        member = Member("job", lambda heard: self._hear_child(child, heard), lambda status: self._child_ended(child, status))
        child = Child(member)
        self.children.append(child)
        member.tell(Serve({"log_level": self._settings.log_level}, {}))
        self._fork(member)
        return child

    def _hear_child(self, child: Child, heard: list[Any]) -> None:
        for note in heard:
            held = child.held
            if isinstance(note, Logged):
                self._foreman.reported(note)
            elif held is None or not isinstance(note, (Progress, Ended)):
                raise TypeError(f"a {type(note).__name__} from a job's own process")
            elif isinstance(note, Progress):
                check(Kind.PROGRESS, [held.dispatch.id, held.dispatch.fence, note.fraction, note.text])
                self._foreman.reported(note._replace(id=held.dispatch.id, fence=held.dispatch.fence))
            else:
                _check_report(note, held)
                child.held = None
                child.jobs += 1
                if note.spoiled:
                    self._foreman.log.info(
                        "a job of %s has left %s behind; its process is used no more", held.dispatch.module, note.spoiled
                    )
                if note.spoiled or held.why or child.is_full or 0 < self._settings.jobs_per_process <= child.jobs:
                    self._retire(child)
                self._foreman.job_ended(held, note)

    def _retire(self, child: Child) -> None:
        if child in self.children:
            self.children.remove(child)
        child.member.close()
        gevent.spawn_later(CLOSE_S, _end_for_good, child.member)

    def _child_ended(self, child: Child, status: int) -> None:
        if child in self.children:
            self.children.remove(child)
        held, child.held = child.held, None
        if held is not None and not child.member.pid:
            self._foreman.job_not_started(held, child.member.words_for(status))
        elif held is not None:
            words = f"child_died: {child.member.words_for(status)}\n{child.member.stack()}".strip()
            self._foreman.child_died(held, words)
        self._look_whether_over()

    def child_of(self, held: Held) -> Child | None:
        """The process that a job has."""
        return next((child for child in self.children if child.held is held), None)

    # Looking after them.

    def look(self, *, is_fair: bool) -> None:
        """See how the processes are; `is_fair` is False when this process itself has just been away."""
        host = self.host
        if host.member is None or not is_fair:
            return
        if host.state == "starting":
            if time.time() - host.member.since > START_S:
                self.replace_host(Verdict(0, "died", f"it did not get ready in {START_S:g} s"))
            return
        blocked_s = host.blocked_s
        if blocked_s:
            self._look_at_blocked(host, host.member, blocked_s)
        elif host.asked_at:
            self._foreman.log.warning("the process %d with the greenlets shows signs of life again", host.member.pid)
            host.asked_at, host.stack, host.state = 0.0, "", "ready"

    def _look_at_blocked(self, host: Host, member: Hosting, blocked_s: float) -> None:
        if host.state != "blocked":
            host.state = "blocked"
            self._foreman.counts["blocked"] += 1
        if stack := member.stack():
            is_news, host.stack = not host.stack, stack[-STACK_BYTES_MAX:]
            if is_news:
                self._foreman.log.warning("%s (process %d); it is here:\n%s", self.blocker_words(), member.pid, stack)
        if blocked_s > self._settings.block_limit:
            words = f"timeout: blocked, it has not given way for {blocked_s:.1f} s\n{host.stack}".strip()
            self._foreman.log.error("%s; its process is replaced", self.blocker_words())
            self.replace_host(Verdict(member.page.current, "timeout", words))
        elif time.monotonic() - host.asked_at > ASK_AGAIN_S:
            host.asked_at = time.monotonic()
            member.signal(DUMP_SIGNAL)

    def is_blocked_by(self, held: Held) -> bool:
        """Whether this job is the one that keeps all others from running."""
        member = self.host.member
        return member is not None and bool(self.host.blocked_s) and member.page.current == held.dispatch.fence

    def blocker(self) -> Held | None:
        """The job that does not give way, if it is one and known."""
        member = self.host.member
        return None if member is None else self._foreman.by_fence(member.page.current)

    def blocker_words(self) -> str:
        """Who does not give way, and for how long, in words."""
        held = self.blocker()
        who = f"job {text_id(held.dispatch.id)} of {held.dispatch.module}" if held is not None else "something that is no job"
        return f"{who} has blocked the greenlets of its worker for {self.host.blocked_s:.1f} s"

    def processes(self) -> Iterator[Process]:
        """What is to be said of the processes that have been born: pid 0 would be the whole group of whoever signals it."""
        host = self.host
        if host.member is not None and host.member.pid:
            blocked_s = host.blocked_s
            held = self.blocker() if blocked_s else None
            state = "draining" if self.is_retired and not blocked_s else host.state
            yield Process(
                host.member.pid, "greenlets", state, self.held - sum(child.held is not None for child in self.children),
                round(host.member.since * SECOND_US), memory_bytes(host.member.pid), host.starts - 1,
                held.dispatch.module if held else None, held.dispatch.id if held else None, round(blocked_s * SECOND_US),
                host.stack,
            )  # fmt: skip
        for child in [child for child in self.children if child.member.pid]:
            held = child.held
            yield Process(
                child.member.pid, "job", "idle" if held is None else "running", int(held is not None),
                round(child.member.since * SECOND_US), memory_bytes(child.member.pid), 0,
                held.dispatch.module if held else None, held.dispatch.id if held else None,
            )  # fmt: skip

    # The end.

    def drain(self) -> None:
        """The plugins are to know that the worker stops."""
        if not self._is_draining:
            self._is_draining = True
            self.tell(Drain())

    def retire(self) -> None:
        """Another crew has taken over: tell the plugins, who may have to let go of a port, and end when the jobs have."""
        self.is_retired = True
        self.drain()
        self.look_whether_done()

    def look_whether_done(self) -> None:
        """A retired crew ends when it has no more jobs."""
        if self.is_retired and not self.held:
            self.end()

    def end(self) -> None:
        """End all processes: the host may tell its plugins first."""
        if self._is_over:
            return
        self._is_over = True
        for child in list(self.children):
            self._retire(child)
        member = self.host.member
        if member is not None:
            self.drain()
            member.tell(Drain(is_over=True))
            if self._is_local:
                self.host.member = None
            else:
                gevent.spawn_later(DRAIN_S, _end_for_good, member)
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self._is_over and self.host.member is None and not self._is_closing:
            self._is_closing = True
            gevent.spawn(self._close)

    def _close(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
        self._foreman.crew_is_over(self)


def _check_report(note: Ended, held: Held) -> None:
    """A job's own process is believed what it says of its own job, and no more than a server would believe.

    Raises:
        BadRequest, ValueError: It says something else.
    """
    *fields, payload = (*note.report,) if note.is_success else (*note.report, b"")
    check(Kind.SUCCEED if note.is_success else Kind.FAIL, fields, payload)
    if (fields[0], fields[1]) != (held.dispatch.id, held.dispatch.fence):
        raise ValueError("a report of another job")


def _end_for_good(member: Hosting) -> None:
    if member.is_open:
        member.signal(signal.SIGKILL)


def memory_bytes(pid: int) -> int:
    """The resident memory of a process; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
