"""A crew: the processes of one generation, which run the jobs that the foreman gives them.

One process, the host, runs jobs as greenlets together with the plugins; beside it are processes that take one job each. All
come from one nursery, which starts with the crew, so a crew has the packages that were installed then. A reload starts another
crew, which takes over while this one finishes its jobs.
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

STEADY_S: Final = 10.0  # A host that lived so long counts as one that worked.
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
DRAIN_S: Final = 5.0
BACKLOG_MAX: Final = 1_000


class CrewListener(Protocol):
    """The listener of a crew."""

    def on_ready(self, crew: Crew) -> None:
        """Note that the crew has its modules and plugins."""

    def on_started(self, crew: Crew) -> None:
        """Note that its plugins know of the connection, so that jobs may come."""

    def on_host_died(self, crew: Crew, verdict: Verdict) -> None:
        """Note that its host is gone; another one will follow, unless the crew has ended."""

    def on_host_stuck(self, crew: Crew, verdict: Verdict) -> None:
        """Note that its host should be replaced and cannot be."""

    def on_host_spoiled(self, crew: Crew, words: str) -> None:
        """Note that a job has changed the things in `words` for the host, which cannot restore them."""

    def on_host_clogged(self, crew: Crew, job_id: bytes) -> None:
        """Note that the code of this job, which was reported, does not end."""

    def on_host_full(self, crew: Crew) -> None:
        """Note that its host exceeds the memory limit."""

    def on_gone(self, crew: Crew) -> None:
        """Note that all its processes are gone."""


class Crewed(Protocol):
    """The foreman, as far as a crew knows it."""

    settings: WorkerSettings
    counts: Counter[str]
    log: LogLines
    jobs: dict[int, Job]

    @property
    def apart(self) -> Pooled:
        """The listener for jobs that have processes of their own."""

    @property
    def news(self) -> CrewListener:
        """The listener for crews."""

    def hear(self, crew: Crew, notes: list[Any]) -> None:
        """Take the notes of the host."""


class Crew:
    """The processes of one generation; the crew runs on the hub of its foreman, and never blocks that hub."""

    def __init__(self, foreman: Crewed, host: Hosting | None = None, *, environ: dict[str, str] | None = None) -> None:
        """Start the crew; `host` is a process that hosts the greenlets already, and cannot be replaced."""
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
        """The modules whose jobs can start now: the process that runs them, or tells the plugins, must be ready."""
        self.hosted: frozenset[str] = frozenset()
        """The modules in `takes` whose jobs run in the host."""
        self.tell: Callable[..., None] = _say_nothing
        """The function that sends notes to the host; a starting host reads them when it is ready."""
        self.host = HostWatch(foreman.jobs.get, foreman.log, foreman.counts)
        self.pool = Pool(foreman.apart, foreman.settings, self._fork)
        self.audit = Audit()
        self.job_count = 0  # The number of jobs that the crew has not finished.
        self.is_serving = False
        self.is_retired = False
        self.has_stuck = False  # The code of a reported job goes on in the host.
        self._is_over = False
        self.is_draining = self._is_closing = False
        self._deadly: dict[str, str] = {}
        self._owed: list[Any] = []
        self._known_since = 0.0
        self._suspected = ""  # The module whose import was interrupted by a kill, which may have been chance.
        self._is_local = host is not None
        self._actions: dict[type, Callable[[Any], None]] = {  # All other notes are about jobs.
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
        except OSError as error:  # No descriptors, no memory, or no interpreter, while its folder is replaced.
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
        """True while the host has a long backlog, and notes of less importance should not join it."""
        return self.host.member is None or self.host.member.backlog > BACKLOG_MAX

    def tell_servers(self) -> None:
        """Tell all processes the servers for clients that jobs make."""
        note = JobServers(self._foreman.apart.servers)
        self.tell(note)
        self.pool.tell(note)

    def owe(self, note: Any) -> None:
        """Keep a note for the next host, because this one is gone."""
        self._owed.append(note)

    def take(self, note: Any) -> bool:
        """Take a note of the host; return whether the note was about the crew, and not about jobs."""
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

    def _be_serving(self, note: Started) -> None:  # noqa: ARG002 - All of one table take the same.
        self.is_serving = True
        self._know_what_it_takes()
        self._foreman.news.on_started(self)

    def _be_spoiled(self, note: Spoiled) -> None:
        self._foreman.news.on_host_spoiled(self, note.words)

    def _be_stuck(self, note: Stuck) -> None:
        self.has_stuck = True
        self._foreman.news.on_host_clogged(self, note.id)

    def _check_held(self, note: Holding) -> None:
        """Replace the host if it has lost attempts; the culprit is unknown, so all its jobs go back."""
        missing = self.audit.answered(note.fences, time.monotonic())
        lost = [fence for fence in self._hosted() if fence in missing]
        if not lost:
            return
        words = f"the process with the greenlets has lost {len(lost)} of its jobs"
        self._foreman.log.error("%s", words)
        for culprit in lost if self._is_local else (0,):
            self.replace_host(Verdict(culprit, "died", words))

    def _hosted(self) -> list[int]:
        """Return the fences of the jobs that the host has not reported."""
        return [fence for fence, job in self._foreman.jobs.items() if job.crew is self and not job.is_apart]

    def ask_host(self, now_s: float) -> None:
        """Ask the host for its jobs, unless it is blocked; replace it if it has fallen silent."""
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
        """Tell the plugins that the worker is connected; the crew takes jobs after that."""
        self.tell(Start())

    def _know_what_it_takes(self) -> None:
        whole = frozenset(name for name, module in self.modules.items() if module.broken is None)
        self.apart = frozenset(name for name, module in self.modules.items() if module.isolation == "process")
        needs_no_host = frozenset() if "before_run" in self.hooks else self.apart
        self.takes = whole if self.is_serving else whole & needs_no_host
        self.hosted = self.takes - self.apart

    def withdraw(self, module: str, why: str) -> None:
        """Take no more jobs of a module."""
        self.modules[module] = self.modules[module]._replace(broken=why)
        self._know_what_it_takes()

    def give_up(self) -> None:
        """Kill the host of a retired crew; its running jobs go back."""
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
        # A job may have ended a host that ran jobs: the next host can start at once.
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
                if host.verdict is None:  # Else it is logged already.
                    first, more = split(verdict.words)
                    self._foreman.log.error("the process %d with the greenlets is gone: %s", member.pid, first, extra=more)
                delay_s = self._backoff_s
            gevent.spawn_later(delay_s, self._start_host)
        self._foreman.news.on_host_died(self, verdict)
        self._look_whether_over()

    def _may_be_chance(self, host: HostWatch, status: int) -> bool:
        """Return whether the kill of a process during an import may be chance; a second one is not."""
        is_first, self._suspected = self._suspected != host.importing, host.importing or ""
        return is_first and host.verdict is None and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

    def note_hook(self, job: Job) -> None:
        """Note that a plugin has been busy with a job for a while; an empty `job.hook`: it has returned."""
        self.host.in_hooks = [each for each in self.host.in_hooks if each.hook and each is not job]
        if job.hook:
            self.host.in_hooks.append(job)

    # Jobs apart, and limits.

    def run(self, job: Job) -> None:
        """Run a job in a process of its own."""
        name = job.dispatch.module
        announced = self.modules[name]
        version = "" if self._is_local else announced.version
        self.pool.run(job, self.sources.get(name, ""), (announced.distribution, version, self._known_since))

    def look(self, *, is_fair: bool) -> None:
        """Check the host; `is_fair` is False when this process itself has just been suspended."""
        verdict = self.host.look(self._settings) if is_fair else None
        if verdict is not None:
            self.replace_host(verdict)

    def limit_memory(self, limit_bytes: int) -> None:
        """End jobs' own processes that exceed the memory limit, and have a host that exceeds it replaced."""
        member = self.host.member
        self.pool.limit_memory(limit_bytes)
        is_old = member is not None and time.monotonic() - member.started_s > STEADY_S  # A new host may be no smaller.
        if member is not None and is_old and not self._is_local and member.memory_bytes > limit_bytes:
            self._foreman.news.on_host_full(self)

    # The end.

    def drain(self) -> None:
        """Tell the plugins that the worker stops."""
        if not self.is_draining:
            self.is_draining = True
            self.tell(Drain())

    def retire(self) -> None:
        """Finish the jobs and end, because another crew has taken over; tell the plugins, which may have to free a port."""
        self.is_retired = True
        self.drain()
        self.look_whether_done()

    def look_whether_done(self) -> None:
        """End a retired crew when it has no more jobs."""
        if self.is_retired and not self.job_count:
            self.end()

    def end(self) -> None:
        """End all processes; the host tells its plugins first."""
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
    """Drop notes while there is no host."""


Job: TypeAlias = Assignment[Crew]
