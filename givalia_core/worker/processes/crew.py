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
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import gevent

from givalia_core.printable import split
from givalia_core.protocol.messages import Announce
from givalia_core.settings import WorkerSettings
from givalia_core.worker.assignment import Assignment, LogLines, Verdict
from givalia_core.worker.notes import (
    AskHeld,
    Drain,
    Holding,
    HostReady,
    Importing,
    JobServers,
    Serve,
    Spoiled,
    Start,
    Started,
    Stuck,
)
from givalia_core.worker.processes.audit import Audit
from givalia_core.worker.processes.family import Member, NurseryHandle
from givalia_core.worker.processes.pool import Pool, Pooled, end_for_good
from givalia_core.worker.processes.watchdog import Hosting, HostWatch

STEADY_S: Final = 10.0  # One that lived so long counts as one that worked.
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
DRAIN_S: Final = 5.0
BACKLOG_MAX: Final = 1_000


class CrewListener(Protocol):
    """Hears what a crew says of itself."""

    def on_ready(self, crew: Crew) -> None:
        """It has its modules and plugins."""

    def on_started(self, crew: Crew) -> None:
        """Its plugins know that the worker is connected: jobs may come."""

    def on_host_died(self, crew: Crew, verdict: Verdict) -> None:
        """The process with the greenlets is gone; another is on its way, unless the crew is over."""

    def on_host_stuck(self, crew: Crew, verdict: Verdict) -> None:
        """The process with the greenlets should be replaced and cannot be."""

    def on_host_spoiled(self, crew: Crew, words: str) -> None:
        """A job has changed these for the whole process with the greenlets, which cannot put them back."""

    def on_host_clogged(self, crew: Crew, job_id: bytes) -> None:
        """Code of this job, which was reported, does not end in the process with the greenlets."""

    def on_host_full(self, crew: Crew) -> None:
        """The process with the greenlets has more memory than it may."""

    def on_gone(self, crew: Crew) -> None:
        """All its processes are gone."""


class Crewed(Protocol):
    """What a crew needs of its foreman."""

    settings: WorkerSettings
    counts: Counter[str]
    log: LogLines
    jobs: dict[int, Job]

    @property
    def apart(self) -> Pooled:
        """Hears of the jobs that have processes of their own."""

    @property
    def news(self) -> CrewListener:
        """Hears of the crew."""

    def hear(self, crew: Crew, notes: list[Any]) -> None:
        """Take what the process with the greenlets says."""


class Crew:
    """The processes of one generation; lives on the hub of its foreman, and never waits there."""

    def __init__(self, foreman: Crewed, host: Hosting | None = None, *, environ: dict[str, str] | None = None) -> None:
        """Start it; with `host` the greenlets are in that process, which cannot be replaced."""
        self._foreman = foreman
        self._settings = foreman.settings
        self._environ = environ
        self._nursery: NurseryHandle | None = None
        self.modules: dict[str, Announce] = {}
        self.sources: dict[str, str] = {}
        self.hooks: frozenset[str] = frozenset()
        self.apart: frozenset[str] = frozenset()
        """The modules whose jobs have processes of their own."""
        self.takes: frozenset[str] = frozenset()
        """The modules a job of which could start now: somebody has to run it, or to tell the plugins of it."""
        self.tell: Callable[..., None] = _say_nothing
        """Says something to the host; one that starts hears it when it is ready."""
        self.host = HostWatch(foreman.jobs.get, foreman.log, foreman.counts)
        self.pool = Pool(foreman.apart, foreman.settings, self._fork)
        self.audit = Audit()
        self.job_count = 0  # Those that it has to see to the end.
        self.is_serving = False
        self.is_retired = False
        self.has_stuck = False  # Code of a job that was reported goes on in the process with the greenlets.
        self._is_over = False
        self.is_draining = self._is_closing = False
        self._deadly: dict[str, str] = {}
        self._owed: list[Any] = []
        self._known_since = 0.0
        self._suspected = ""  # The module during whose import a process was killed, which may have been chance.
        self._is_local = host is not None
        self._actions: dict[type, Callable[[Any], None]] = {  # What else the host says, it says of jobs.
            Importing: self._note_import,
            HostReady: self._be_ready,
            Started: self._be_serving,
            Spoiled: self._be_spoiled,
            Stuck: self._be_stuck,
            Holding: self._check_held,
        }
        if host is None:
            self._start_host()
        else:
            self.host.begin(host)
            self.tell = host.tell

    # The host.

    def _start_host(self) -> None:
        if self._is_over:
            return
        try:
            if self._nursery is None:
                self._nursery = NurseryHandle(self._nursery_lost, self._environ)
            hear = partial(self._foreman.hear, self)
            member = Member("greenlets", hear, lambda status: self._host_ended(member, status))
        except OSError as error:  # No descriptors, no memory, or no interpreter: its folder is being replaced, perhaps.
            self.host.failures += 1
            self._foreman.log.error("no process for the greenlets can be made: %s", error)
            gevent.spawn_later(self._backoff_s, self._start_host)
            return
        self.host.begin(member)
        self.tell = member.tell
        member.tell(Serve(dataclasses.asdict(self._settings), self._deadly), JobServers(self._foreman.apart.servers))
        self._fork(member)

    @property
    def _backoff_s(self) -> float:
        failures = self.host.failures
        return min(BACKOFF_FIRST_S * 2 ** (failures - 2), BACKOFF_MAX_S) if failures > 1 else 0.0

    def _fork(self, member: Member) -> None:
        if self._nursery is None:
            self._nursery = NurseryHandle(self._nursery_lost, self._environ)
        self._nursery.fork(member)

    def _nursery_lost(self) -> None:
        self._foreman.log.error("the nursery of the worker's processes is gone; a new one is started")
        self._nursery = None

    @property
    def is_behind(self) -> bool:
        """Whether the host has so much to hear yet that what is of less importance had better not wait for it."""
        return self.host.member is None or self.host.member.backlog > BACKLOG_MAX

    def tell_servers(self) -> None:
        """Let all processes know where clients go that are made in jobs."""
        note = JobServers(self._foreman.apart.servers)
        self.tell(note)
        self.pool.tell(note)

    def owe(self, note: Any) -> None:
        """Say something to the next host, for this one is gone."""
        self._owed.append(note)

    def take(self, note: Any) -> bool:
        """Take what the host says; return whether it was about the crew, and not about jobs."""
        act = self._actions.get(type(note))
        if act is not None:
            act(note)
        return act is not None

    def _note_import(self, note: Importing) -> None:
        self.host.importing = note.module

    def _be_ready(self, note: HostReady) -> None:
        self.host.state, self.host.importing = "ready", None
        self.modules = {fields[0]: Announce(*fields) for fields in note.announced}
        self.sources = note.sources
        self.host.plugins = note.plugins
        self._known_since = self.host.member.since if self.host.member is not None else 0.0
        self.hooks = frozenset(note.hooks)
        self._know_what_it_takes()
        self._foreman.news.on_ready(self)
        self.tell(*self._owed)
        self._owed = []

    def _be_serving(self, note: Started) -> None:
        self.is_serving = True
        self._know_what_it_takes()
        self._foreman.news.on_started(self)

    def _be_spoiled(self, note: Spoiled) -> None:
        self._foreman.news.on_host_spoiled(self, note.words)

    def _be_stuck(self, note: Stuck) -> None:
        self.has_stuck = True
        self._foreman.news.on_host_clogged(self, note.id)

    def _check_held(self, note: Holding) -> None:
        """Replace the host if it has lost attempts; it is unknown which job is to blame, so all its jobs are given back."""
        missing = self.audit.answered(note.fences, time.monotonic())
        lost = [fence for fence in self._hosted() if fence in missing]
        if not lost:
            return
        words = f"the process with the greenlets has lost {len(lost)} of its jobs"
        self._foreman.log.error("%s", words)
        for culprit in lost if self._is_local else (0,):
            self.replace_host(Verdict(culprit, "died", words))

    def _hosted(self) -> list[int]:
        """Return the fences of the jobs that the host was given and has not reported."""
        return [fence for fence, job in self._foreman.jobs.items() if job.crew is self and not job.is_apart]

    def ask_host(self, now_s: float) -> None:
        """Ask the host which jobs it has, unless it is blocked; replace it if it says nothing any more."""
        if self.host.state != "ready" or self.host.blocked_s:
            self.audit.begin_anew(now_s)
        elif self.audit.is_deaf(now_s):
            words = "the process with the greenlets says nothing though its loop turns"
            self._foreman.log.error("%s", words)
            self.replace_host(Verdict(0, "died", words))
            self.audit.begin_anew(now_s)
        elif not self.audit.is_open and (fences := self._hosted()):
            self.audit.ask(fences, now_s)
            self.tell(AskHeld())

    def start(self) -> None:
        """The worker is connected: let the plugins know, and after that take jobs."""
        self.tell(Start())

    def _know_what_it_takes(self) -> None:
        whole = frozenset(name for name, module in self.modules.items() if module.broken is None)
        self.apart = frozenset(name for name, module in self.modules.items() if module.isolation == "process")
        needs_no_host = frozenset() if "before_run" in self.hooks else self.apart
        self.takes = whole if self.is_serving else whole & needs_no_host

    def withdraw(self, module: str, why: str) -> None:
        """Take no more jobs of this module."""
        self.modules[module] = self.modules[module]._replace(broken=why)
        self._know_what_it_takes()

    def give_up(self) -> None:
        """Kill the host of a retired crew: its jobs that still run are given back."""
        words = "there are too many processes with jobs that do not end"
        self._foreman.log.error("the oldest is ended: %s", words)
        self.replace_host(Verdict(0, "died", words, is_ours=True))

    def replace_host(self, verdict: Verdict) -> None:
        """Kill the host and start another; the caller logs the verdict."""
        host = self.host
        if self._is_local:
            self._foreman.news.on_host_stuck(self, verdict)
        elif host.member is not None and host.verdict is None:
            host.verdict = verdict
            host.member.signal(signal.SIGKILL)

    def _host_ended(self, member: Member, status: int) -> None:
        host = self.host
        if host.member is not member:
            return
        host.member = None
        was_starting, self.is_serving = host.state == "starting", False
        self.tell = _say_nothing
        self._know_what_it_takes()
        words = member.stack()
        plugin = host.plugin(member.last_current)
        ended = member.words_for(status) + (f" in plugin {plugin}" if plugin else "")
        is_ours = member.is_orphan or bool(plugin)
        verdict = host.verdict or Verdict(
            member.last_current, "died", f"child_died: {ended}\n{words}".strip(), is_ours=is_ours, suspects=member.recent
        )
        # One that was running jobs may have ended for what one of them did: the next process can start at once.
        has_run = bool(member.recent) or self._foreman.jobs.get(verdict.culprit) is not None
        is_steady = has_run or time.monotonic() - member.started_s > STEADY_S
        host.failures = 0 if is_steady else host.failures + 1
        host.state = "ended"
        if not self._is_over and not (self.is_retired and not self.job_count):
            if was_starting and host.importing is not None and not self._may_be_chance(host, status):
                self._deadly[host.importing] = f"importing it ended the process: {verdict.words}"
                first, more = split(verdict.words)
                self._foreman.log.error(
                    "module %s is not served: importing it ended the process: %s", host.importing, first, extra=more
                )
                delay_s = 0.0
            else:
                if host.verdict is None:  # Else the one that gave it has logged it.
                    first, more = split(verdict.words)
                    self._foreman.log.error("the process %d with the greenlets is gone: %s", member.pid, first, extra=more)
                delay_s = self._backoff_s
            gevent.spawn_later(delay_s, self._start_host)
        self._foreman.news.on_host_died(self, verdict)
        self._look_whether_over()

    def _may_be_chance(self, host: HostWatch, status: int) -> bool:
        """Whether somebody else may have killed a process that was importing a module; not if it happens again."""
        is_first, self._suspected = self._suspected != host.importing, host.importing or ""
        return is_first and host.verdict is None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def note_hook(self, job: Job) -> None:
        """Note that a plugin has been busy with this job for a while, or, if its `hook` is empty, that none is any more."""
        self.host.in_hooks = [each for each in self.host.in_hooks if each.hook and each is not job]
        if job.hook:
            self.host.in_hooks.append(job)

    # Looking after them.

    def run(self, job: Job) -> None:
        """Run a job in a process of its own."""
        name = job.dispatch.module
        announced = self.modules[name]
        version = "" if self._is_local else announced.version
        self.pool.run(job, self.sources.get(name, ""), (announced.distribution, version, self._known_since))

    def look(self, *, is_fair: bool) -> None:
        """See how the host is; `is_fair` is False when this process itself has just been away."""
        verdict = self.host.look(self._settings) if is_fair else None
        if verdict is not None:
            self.replace_host(verdict)

    def limit_memory(self, limit_bytes: int) -> None:
        """End processes that have more memory than they may, and let another host take over."""
        member = self.host.member
        self.pool.limit_memory(limit_bytes)
        is_old = member is not None and time.monotonic() - member.started_s > STEADY_S  # A new one need not be any smaller.
        if member is not None and is_old and not self._is_local and member.memory_bytes > limit_bytes:
            self._foreman.news.on_host_full(self)

    # The end.

    def drain(self) -> None:
        """The plugins are to know that the worker stops."""
        if not self.is_draining:
            self.is_draining = True
            self.tell(Drain())

    def retire(self) -> None:
        """Another crew has taken over: tell the plugins, who may have to let go of a port, and end when the jobs have."""
        self.is_retired = True
        self.drain()
        self.look_whether_done()

    def look_whether_done(self) -> None:
        """A retired crew ends when it has no more jobs."""
        if self.is_retired and not self.job_count:
            self.end()

    def end(self) -> None:
        """End all processes: the host may tell its plugins first."""
        if self._is_over:
            return
        self._is_over = True
        self.pool.close()
        member = self.host.member
        if member is not None:
            self.drain()
            member.tell(Drain(is_over=True))
            if self._is_local:
                self.host.member = None
            else:
                gevent.spawn_later(DRAIN_S, end_for_good, member)
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self._is_over and self.host.member is None and not self._is_closing:
            self._is_closing = True
            gevent.spawn(self._close)

    def _close(self) -> None:
        if self._nursery is not None:
            self._nursery.close()
        self._foreman.news.on_gone(self)


def _say_nothing(*_: Any) -> None:
    """There is no host."""


Job: TypeAlias = Assignment[Crew]
