"""Runs attempts in greenlets, in a process of many jobs.

The runner takes notes and sends notes. To the shared page it writes the pulse of the loop and, at each switch between
greenlets, the attempt whose code runs; so the supervisor can name the job that does not yield.

Short attempts share greenlets, because a new greenlet costs more than a short attempt. A greenlet goes on with the
next attempt if the previous one never yielded and has left nothing in it. No other code has run meanwhile, so anything that
could reach the next attempt (a pending exception, a timer, a waiter for the greenlet, a local, a context) is absent or shows as
one of the `_marks`. An attempt that waits for something has its greenlet for itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from logging import getLogger
from os import getpid
from sys import getrefcount
from typing import Any, Final, Generic, TypeVar
from weakref import getweakrefcount

from gevent import Greenlet, get_hub
from greenlet import gettrace

from givalia_core import job_servers
from givalia_core.frozen import BUILTINS, OwnClock
from givalia_core.hooks import Hooks
from givalia_core.modules import FoundModule, Stopped, announcement
from givalia_core.protocol.messages import Dispatch
from givalia_core.steady import quietly
from givalia_core.worker.attempt.collector import Collector
from givalia_core.worker.attempt.hosted import Endings, Hosted
from givalia_core.worker.attempt.pipeline import classify, execute, report
from givalia_core.worker.attempt.telling import HOOKS_OF_JOBS, Telling
from givalia_core.worker.attempt.whose import FENCE, Whose
from givalia_core.worker.notes import AskHeld, End, Holding, HostReady, JobServers
from givalia_core.worker.page import CURRENT, NOTHING, PULSE, SharedPage

__builtins__ = BUILTINS

PULSE_S: Final = 0.2
TURN_S: Final = 0.005  # The longest time for starting attempts before the loop polls its sockets and timers again.

log = getLogger("givalia.worker")
T = TypeVar("T")


class Running(Greenlet):  # type: ignore[type-arg]
    """The greenlet of an attempt; it does not record the place of its start, which is always the same."""

    spawning_stack_limit = 0


class Starter(Generic[T]):
    """A queue that calls `run` for each attempt, in order, in a greenlet that is as good as new.

    Args:
        run: Never raises.
    """

    def __init__(self, run: Callable[[T, Running], None]) -> None:
        self._run = run
        self._waiting: deque[T] = deque()
        self._is_due = False  # The loop will call `_start`, or is in it.
        self._starting: Running | None = None
        self._until_s = 0.0
        self._again: Any = None

    def begin(self, *attempts: T) -> None:
        """Run attempts at the next turn of the loop."""
        self._waiting.extend(attempts)
        if not self._is_due:
            self._is_due = True
            get_hub().loop.run_callback(self._start)

    def forget(self) -> None:
        """Drop the attempts that have not started."""
        self._waiting.clear()

    def _start(self) -> None:
        if self._again is not None:
            self._again.close()
            self._again = None
        self._until_s = OwnClock.monotonic() + TURN_S
        try:
            while self._waiting:
                self._starting = Running(self._run_in_a_row)
                self._starting.switch()  # Returns when an attempt yields, or when its greenlet has ended.
                self._starting = None
                if OwnClock.monotonic() >= self._until_s:
                    break
        finally:  # A trace function of a job may raise here; the waiting attempts start all the same.
            self._starting = None
            self._is_due = bool(self._waiting)
            if self._is_due:
                # A callback would run at once: the loop runs dozens of them before it polls.
                self._again = get_hub().loop.timer(0)
                self._again.start(self._start)

    def _run_in_a_row(self) -> None:
        running = self._starting
        assert running is not None
        marks = _marks(running)
        while self._waiting:
            self._run(self._waiting.popleft(), running)
            if self._starting is not running or _marks(running) != marks or OwnClock.monotonic() >= self._until_s:
                return


def _marks(running: Running) -> tuple[Any, ...]:
    """Return the marks that show whether an attempt has left something in its greenlet.

    Code that would raise in the greenlet, wake it or wait for it must refer to it or be linked to it; so must its locals.
    """
    return (
        getrefcount(running),
        getweakrefcount(running),
        running.has_links(),
        len(running.__dict__),
        len(running.gr_context or ()),
    )


def _end_early(attempt: Hosted, error: BaseException) -> None:
    quietly(log.warning, "an attempt of %s ended early: %s", attempt.dispatch.module, type(error).__name__)
    if attempt.raised is None:
        attempt.raised = error
    classify(attempt)
    attempt.send(report(attempt))  # `execute` sends last, so no report was sent; without one the job would be held for ever.


class Runner:
    """The runner of attempts.

    Args:
        modules: The modules that can run, by name.
        hooks: The plugins.
        say: Takes notes and messages for the supervisor.
        page: The shared page of this process.
        worker: The `worker` for plugins, with settings and counts.
    """

    def __init__(
        self, modules: dict[str, FoundModule], hooks: Hooks, say: Callable[[Any], None], page: SharedPage, worker: Any
    ) -> None:
        self._modules = modules
        self._works = {name: found.work for name, found in modules.items()}
        self._hooks = hooks
        self._job_hooks = hooks if any(map(hooks.listens, HOOKS_OF_JOBS)) else None
        self.say = say
        self.whose = Whose(page)
        self.attempts: dict[int, Hosted] = {}
        """The attempts that are under way, by fence."""
        self._starter: Starter[Hosted] = Starter(self._run)
        self._endings = Endings(self.attempts, say, lambda: float(worker.settings.stop_grace))
        self.telling = Telling(self.attempts, self.whose, say, modules, hooks, worker)
        self._servers = ""
        self._has_to_tidy = False
        self._actions: dict[type, Callable[[Any], None]] = {
            **self.telling.actions,
            End: self._end,
            AskHeld: lambda _: self.say(Holding(list(self.attempts))),
            JobServers: self._know_servers,
        }

    def open(
        self,
        tidy: Callable[[], None] = lambda: None,
        collector: Collector | None = None,
        started: Callable[[], None] = lambda: None,
        restore_logs: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the pulse, and announce the modules.

        Args:
            tidy: Called at each pulse, and when jobs have ended.
            collector: Collects the cycles of ended jobs; None in a process that is not for jobs alone.
            started: Called when the plugins know that the worker is connected, before the first job.
            restore_logs: Called before each call of a plugin, and before a line of another process is written.
        """
        self._tidy = tidy
        self._collector = collector
        if collector is None:
            job_servers.tell_jobs(self._servers_of_job)
        self._loop, self._pid = get_hub().loop, getpid()
        self._beat()
        self._pulse = self._loop.timer(PULSE_S, PULSE_S)
        self._pulse.start(self._beat)
        self.whose.begin(self._tracer())
        self.telling.open(started, restore_logs)
        announced = [tuple(announcement(found)) for found in self._modules.values()]
        sources = {found.name: found.source for found in self._modules.values()}
        self.say(HostReady(announced, sources, list(filter(self._hooks.listens, HOOKS_OF_JOBS)), self._hooks.names))

    def close(self) -> None:
        """Stop the pulse."""
        self.whose.end()
        self._pulse.close()
        job_servers.forget(self._servers_of_job)

    def _beat(self) -> None:
        """Note on the page that the loop turns."""
        page = self.whose.page
        page.fields[PULSE] = OwnClock.monotonic_ns()
        part, page.turn = next(page.parts)
        page.fields[part] = NOTHING
        if self.telling.in_hooks:
            self.telling.look()
        self._tidy_up()

    def _tracer(self) -> Callable[[str, tuple[Any, Any]], None]:
        """Return the function that notes whose code runs; greenlet calls it at each switch, which is often.

        If there are many switches between two pulses, the last ones are kept.
        """
        page, fences = self.whose.page, self.whose.fences
        fields = page.fields

        def trace(event: str, switch: tuple[Any, Any]) -> None:  # noqa: ARG001 - The caller gives it.
            fence = fences.get(switch[1])
            if fence is None:  # As `Whose.inherited` says, in one call instead of two.
                inherited = getattr(switch[1], "spawn_tree_locals", None)
                fence = inherited.get(FENCE, 0) if inherited else 0
            fields[CURRENT] = fields[page.turn()] = fence

        return trace

    def after_fork(self) -> None:
        """In a fork: let no attempt go on except the one that forked, if any."""
        self._pulse.stop()
        self._starter.forget()
        self.whose.after_fork()

    # Jobs.

    def take(self, *notes: Any) -> None:
        """Act on notes, without waiting for a job or a plugin."""
        begun: list[Hosted] = []
        for note in notes:
            if type(note) is Dispatch:
                attempt = self.attempts[note.fence] = Hosted(note, self._works.get(note.module), self._job_hooks, self.say)
                attempt.endings, attempt.pid = self._endings, self._pid
                begun.append(attempt)
            else:
                self._heed(note)
        if begun:
            self._starter.begin(*begun)

    def _heed(self, note: Any) -> None:
        try:
            self._actions[type(note)](note)
        except Exception as error:  # A lost attempt shows when the supervisor asks for all attempts.
            quietly(log.error, "a %s was not heeded: %s", type(note).__name__, type(error).__name__)

    def _run(self, attempt: Hosted, running: Running) -> None:
        attempt.greenlet, fence, whose = running, attempt.dispatch.fence, self.whose
        whose.fences[running] = fence
        running.spawn_tree_locals = {FENCE: fence}  # Inherited by threads and greenlets that the job starts.
        if gettrace() is whose.trace:  # The function ran at the switch to this greenlet, perhaps some attempts ago.
            whose.page.fields[CURRENT] = whose.page.fields[whose.page.turn()] = fence
        try:
            execute(attempt)
        except BaseException as error:  # Raised from outside between two steps.
            _end_early(attempt, error)
        finally:
            attempt.greenlet = None
            self.attempts.pop(fence, None)
            whose.fences.pop(running, None)
            if not self._has_to_tidy:  # Once for all jobs that end in one turn of the loop.
                self._has_to_tidy = True
                self._loop.run_callback(self._tidy_up)
            if self._collector is not None:
                self._collector.note(is_bad=attempt.raised is not None)
            attempt.let_go()

    def _tidy_up(self) -> None:
        self._has_to_tidy = False
        self._tidy()
        if self._collector is not None:
            self._collector.run(OwnClock.monotonic())

    def end_all(self, why: str, words: str) -> None:
        """Stop all attempts."""
        for attempt in list(self.attempts.values()):
            attempt.end_by(Stopped(why, words))

    def _end(self, note: End) -> None:
        attempt = self.attempts.get(note.fence)
        if attempt is not None:
            self._endings.stop(attempt, Stopped(note.why, note.words))

    def _know_servers(self, note: JobServers) -> None:
        self._servers = note.servers
        if self._collector is not None:  # This process is for jobs alone.
            job_servers.tell_process(note.servers)

    def _servers_of_job(self) -> str:
        return (
            self._servers if self.whose.current in self.attempts else ""
        )  # Else it is a job of another worker in this program.
