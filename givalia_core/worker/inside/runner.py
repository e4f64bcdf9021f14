"""Runs attempts in greenlets and tells the plugins: what a process full of jobs does, whoever it talks to.

It takes notes and says notes. Beside the jobs it keeps the shared page: the loop's pulse, and whose code is running, which it
learns at each switch between greenlets; so the supervisor can name the job that does not yield.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from logging import getLogger, makeLogRecord
from traceback import format_stack
from typing import Any, Final
from uuid import UUID

from gevent import Greenlet, get_hub, spawn, spawn_later
from gevent.event import Event
from greenlet import getcurrent, gettrace, settrace

from givalia_core import job_servers
from givalia_core.clock import SECOND_US
from givalia_core.frozen import BUILTINS, Clock
from givalia_core.hooks import Hooks
from givalia_core.model import OutcomeKind
from givalia_core.modules import FoundModule, Stopped, WorkModule, announcement
from givalia_core.protocol.messages import Dispatch, Release
from givalia_core.protocol.values import unpack
from givalia_core.steady import quietly
from givalia_core.views import Outcome
from givalia_core.worker.inside.collector import Collector
from givalia_core.worker.inside.pipeline import Attempt, classify, execute, report, report_left, view
from givalia_core.worker.inside.starter import Running, Starter
from givalia_core.worker.notes import (
    After,
    Asked,
    Before,
    Cancelled,
    Counts,
    Drain,
    End,
    Holding,
    InHook,
    Logged,
    Ready,
    Servers,
    Start,
    Started,
    Stuck,
    Told,
)
from givalia_core.worker.page import Page
from givalia_core.worker.reasons import HOOK_LEFT_S, timed_out

__builtins__ = BUILTINS

PULSE_S: Final = 0.2
HOOK_SAID_S: Final = 1.0  # A plugin that takes longer is shown.
STACK_LINES_MAX: Final = 12

log = getLogger("givalia.worker")


class _Held(Attempt):
    """An attempt in a greenlet of this process; `stop` is called with it when its time is over."""

    greenlet: Running | None = None  # While it is taken through the steps.
    _limit: Any = None

    def __init__(
        self,
        dispatch: Dispatch,
        found: FoundModule | None,
        hooks: Hooks,
        send: Callable[[Any], None],
        stop: Callable[[_Held, Stopped], None],
    ) -> None:
        super().__init__(dispatch, None if found is None else found.work, hooks, send)
        self._stop = stop

    def begin(self) -> None:
        """Start the time that the attempt may take."""
        limit_us = self.dispatch.timeout_us
        if limit_us is not None:
            self._limit = get_hub().loop.timer(limit_us / SECOND_US)
            self._limit.start(self._stop, self, Stopped("timeout", timed_out(self.dispatch)))

    def finish(self) -> None:
        """Its time counts no more."""
        if self._limit is not None:
            self._limit.close()

    def end_by(self, stopped: Stopped) -> None:
        """End the attempt from outside: raised inside the job's code, and only there, so that no plugin swallows it."""
        is_news, self.stopped = self.stopped is None, self.stopped or stopped
        if is_news and self.is_in_process and self.greenlet is not None:
            self.greenlet.kill(stopped, block=False)


class HookLate(BaseException):
    """Raised inside a plugin that takes longer than `hook_limit`; the job goes on without it."""


class _InHook:
    """A call of a plugin that is under way."""

    def __init__(self, hook: str, plugin: str, job: Any, fence: int | None) -> None:
        self.hook = hook
        self.plugin = plugin
        self.job = job
        self.fence = fence  # Of the greenlet before, if it had one.
        self.since_s = Clock.monotonic()
        self.is_said = False


class Runner:
    """The jobs of one process.

    Args:
        modules: What is served, by name.
        hooks: The plugins.
        say: Takes notes on their way to the foreman.
        page: What is shared with the supervisor.
        worker: What the hooks `worker_started` and `worker_stopping` are handed.
    """

    def __init__(
        self, modules: Mapping[str, FoundModule], hooks: Hooks, say: Callable[[Any], None], page: Page, worker: Any
    ) -> None:
        self._modules = modules
        self._hooks = hooks
        self._say = say
        self._page = page
        self._worker = worker
        self._attempts: dict[int, _Held] = {}  # By fence.
        self._fences: dict[Any, int] = {}  # By greenlet.
        self._starter: Starter[_Held] = Starter(self._run)
        self._in_hooks: dict[Any, _InHook] = {}  # By greenlet.
        self._behind_hooks: dict[Any, Callable[[], None]] = {}  # By greenlet that tells plugins something: what follows.
        self._pulse: Any = None
        self._servers = ""
        self._has_to_tidy = False
        self._draining: Greenlet[..., Any] | None = None
        self.over = Event()
        """Set when no more jobs will come and the plugins know."""
        self._actions: dict[type, Callable[[Any], None]] = {
            Dispatch: self._begin,
            End: self._end,
            Cancelled: self._cancelled,
            Before: self._before,
            After: self._after,
            Start: self._start,
            Drain: self._drain,
            Asked: self._tell_held,
            Counts: self._count,
            Logged: self._log,
            Servers: self._know_servers,
        }

    def open(
        self,
        tidy: Callable[[], None] = lambda: None,
        collector: Collector | None = None,
        started: Callable[[], None] = lambda: None,
        restore_logs: Callable[[], None] = lambda: None,
    ) -> None:
        """Begin to show signs of life, and say what is served.

        Args:
            tidy: Called with each sign of life, and when jobs have ended.
            collector: Collects what they have left; None where the process is not only there for jobs.
            started: Called when the plugins know that the worker is connected, before the first job.
            restore_logs: Called before a plugin is called, or a line of another process is written.
        """
        self._started = started
        self._restore_logs = restore_logs
        self._collector = collector
        if collector is None:
            job_servers.tell_jobs(self._servers_of_job)

        def clean_up() -> None:
            tidy()
            if collector is not None:
                collector.run(Clock.monotonic())

        def pulse() -> None:
            self._page.beat()
            if self._in_hooks:
                self._look_at_hooks()
            clean_up()

        self._tidy = clean_up

        self._loop = get_hub().loop
        pulse()
        self._pulse = self._loop.timer(PULSE_S, PULSE_S)
        self._pulse.start(pulse)
        self._fences[get_hub()] = 0
        self._trace = self._page.tracer(self._fence_of)
        if gettrace() is None:
            settrace(self._trace)
        self._hooks.watch = self
        announced = [announcement(found) for found in self._modules.values()]
        sources = {found.name: found.source for found in self._modules.values()}
        self._say(
            Ready(
                [tuple(each) for each in announced],
                sources,
                [name for name in HOOKS_OF_JOBS if self._hooks.listens(name)],
                self._hooks.names,
            )
        )

    def close(self) -> None:
        """Show no more signs of life."""
        if gettrace() is self._trace:
            settrace(None)
        self._pulse.close()
        job_servers.forget(self._servers_of_job)

    def restore_trace(self) -> None:
        """Note again whose code runs if a job has removed what does so; call it from the loop, which is nobody's code."""
        if self._page.current:
            settrace(self._trace)
            self._page.current = 0

    def _fence_of(self, running: Any) -> int:
        """The fence of the attempt whose code this greenlet runs, or that has started it; 0: of none."""
        fence = self._fences.get(running)
        if fence is None:
            inherited: dict[str, int] = getattr(running, "spawn_tree_locals", None) or {}
            return inherited.get(_FENCE, 0)
        return fence

    def after_fork(self) -> None:
        """In a fork: no attempt goes on but the one that forked, if one did.

        The others are never resumed, not even to end them: what they would clean up is the parent's, a transaction perhaps.
        """
        self._page = Page()
        self._pulse.stop()
        self._starter.forget()
        forker = self.current

        def guard(event: str, switch: tuple[Any, Any]) -> None:
            while (self._fences.get(switch[1]) or forker) != forker:
                get_hub().switch()

        settrace(guard)

    @property
    def holds(self) -> bool:
        """Whether any attempt is under way."""
        return bool(self._attempts)

    @property
    def current(self) -> int:
        """The fence of the attempt whose code runs now; 0 for none."""
        return self._fence_of(getcurrent())

    def take(self, note: Any) -> None:
        """Act on a note; nothing here waits for a job or a plugin."""
        self._actions[type(note)](note)

    # Jobs.

    def _begin(self, dispatch: Dispatch) -> None:
        attempt = _Held(dispatch, self._modules.get(dispatch.module), self._hooks, self._say, self._stop)
        self._attempts[dispatch.fence] = attempt
        self._starter.begin(attempt)

    def _run(self, attempt: _Held, running: Running) -> None:
        attempt.greenlet, fence = running, attempt.dispatch.fence
        self._fences[running] = fence
        running.spawn_tree_locals = {_FENCE: fence}  # Threads and greenlets that the job starts have that, too.
        if gettrace() is self._trace:
            self._page.current = fence  # The trace looked when this greenlet was switched to, which may be some attempts ago.
        try:
            execute(attempt)
        except BaseException as error:  # Only what is thrown in from outside in the moment between two steps.
            quietly(log.warning, "an attempt of %s ended early: %s", attempt.dispatch.module, type(error).__name__)
            if attempt.raised is None:
                attempt.raised = error
            classify(attempt)
            report(attempt)  # The last step, so it cannot have been taken: without it the job would be held for ever.
        finally:
            attempt.greenlet = None
            self._attempts.pop(fence, None)
            self._fences.pop(running, None)
            if not self._has_to_tidy:  # Once for all jobs that end in one turn of the loop.
                self._has_to_tidy = True
                self._loop.run_callback(self._tidy_up)
            if self._collector is not None:
                self._collector.note(is_bad=attempt.raised is not None)
            attempt.let_go()

    def _tidy_up(self) -> None:
        self._has_to_tidy = False
        self._tidy()

    def _stop(self, attempt: _Held, stopped: Stopped) -> None:
        """Raise `stopped` in the job's code; if that has not ended `stop_grace` later, report the attempt without it."""
        attempt.end_by(stopped)
        spawn_later(self._worker.settings.stop_grace, self._leave, attempt)

    def _leave(self, attempt: _Held) -> None:
        """Report an attempt that has not ended though it was told to, without waiting for the rest of its clean-up."""
        if not attempt.is_in_process or attempt.is_left:
            return
        attempt.is_left = True
        frame = attempt.greenlet.gr_frame if attempt.greenlet is not None else None
        attempt.words = "".join(format_stack(frame)[-STACK_LINES_MAX:]) if frame is not None else ""
        report_left(attempt)
        self._attempts.pop(attempt.dispatch.fence, None)
        if attempt.greenlet is not None and attempt.stopped is not None:
            attempt.greenlet.kill(attempt.stopped, block=False)
        spawn_later(self._worker.settings.stop_grace, self._look_whether_ended, attempt)

    def _look_whether_ended(self, attempt: _Held) -> None:
        if attempt.is_in_process:
            self._say(Stuck(attempt.dispatch.id, attempt.dispatch.fence))

    def end_all(self, why: str, words: str) -> None:
        """End everything that runs."""
        for attempt in list(self._attempts.values()):
            attempt.end_by(Stopped(why, words))

    def _end(self, note: End) -> None:
        attempt = self._attempts.get(note.fence)
        if attempt is not None:
            self._stop(attempt, Stopped(note.why, note.words))

    def _know_servers(self, note: Servers) -> None:
        self._servers = note.servers
        if self._collector is not None:  # This process is only there for jobs.
            job_servers.tell_process(note.servers)

    def _servers_of_job(self) -> str:
        return self._servers if self.current in self._attempts else ""  # It may be that of another worker in this program.

    def _tell_held(self, _: Asked) -> None:
        self._say(Holding(list(self._attempts)))

    def _cancelled(self, note: Cancelled) -> None:
        dispatch = Dispatch(*note.job)
        attempt = self._attempts.get(dispatch.fence)
        if attempt is not None:
            attempt.is_cancelled = True
        if note.is_news and self._hooks.listens("on_cancel"):
            job = attempt.job if attempt is not None else view(dispatch)
            spawn(self._hooks.call, "on_cancel", job=job, running=True)

    # Plugins: how long they take, and what happens meanwhile is theirs.

    def enter(self, hook: str, plugin: int, job: Any) -> _InHook:
        """Note that a plugin is called: until it returns, what this greenlet does is its doing and not that of a job."""
        self._restore_logs()
        running = getcurrent()
        entered = self._in_hooks[running] = _InHook(hook, self._hooks.names[plugin], job, self._fences.get(running))
        self._set_fence(running, -1 - plugin)
        return entered

    def leave(self, entered: _InHook) -> None:
        """Note that it has returned."""
        running = getcurrent()
        self._in_hooks.pop(running, None)
        self._set_fence(running, entered.fence)
        if entered.is_said:
            self._say(InHook(*_named(entered.job), ""))

    def _set_fence(self, running: Any, fence: int | None) -> None:
        if fence is None:
            self._fences.pop(running, None)
        else:
            self._fences[running] = fence
        if gettrace() is self._trace:
            self._page.current = fence or 0

    def _look_at_hooks(self) -> None:
        now_s = Clock.monotonic()
        for running, entered in list(self._in_hooks.items()):
            age_s = now_s - entered.since_s
            if age_s > HOOK_SAID_S and not entered.is_said and entered.job is not None:
                entered.is_said = True
                self._say(InHook(*_named(entered.job), f"{entered.hook} of plugin {entered.plugin}"))
            if age_s > self._worker.settings.hook_limit + HOOK_LEFT_S:
                self._leave_hook(running, entered)
            elif age_s > self._worker.settings.hook_limit:
                self._loop.run_callback(self._break_off, running, entered)

    def _break_off(self, running: Any, entered: _InHook) -> None:
        if self._in_hooks.get(running) is entered:  # Else it has returned meanwhile.
            running.throw(HookLate(f"it took longer than {self._worker.settings.hook_limit:g} s; the job goes on without it"))

    def _leave_hook(self, running: Any, entered: _InHook) -> None:
        """Go on with what a plugin was called for, which takes no notice of being broken off; its greenlet stays behind."""
        del self._in_hooks[running]
        self._hooks.silence(entered.plugin)
        if entered.is_said:
            self._say(InHook(*_named(entered.job), ""))
        if running in self._behind_hooks:
            self._behind_hooks.pop(running)()
        for attempt in [attempt for attempt in self._attempts.values() if attempt.greenlet is running]:
            self._attempts.pop(attempt.dispatch.fence)
            attempt.is_left = True
            if attempt.has_run or attempt.stopped is not None:
                attempt.raised = attempt.raised if attempt.has_run else attempt.stopped
                classify(attempt)
                report(attempt)
            else:
                self._say(Release(attempt.dispatch.id, attempt.dispatch.fence))  # It comes again, and finds the plugin silent.

    def _tell_plugins(self, hook: str, follows: Callable[[], None], **arguments: Any) -> None:
        """Call a hook, and do what follows once that is done or given up."""
        running = getcurrent()
        self._behind_hooks[running] = follows
        self._hooks.call(hook, **arguments)
        if self._behind_hooks.pop(running, None) is not None:
            follows()

    # Plugins: for jobs in processes of their own, and for the worker.

    def _before(self, note: Before) -> None:
        spawn(self._tell, note, "before_run")

    def _after(self, note: After) -> None:
        result = unpack(note.result)
        spawn(self._tell, note, "after_run", outcome=Outcome(OutcomeKind(note.kind), result, note.error, note.seconds))

    def _tell(self, note: Before | After, hook: str, **extra: Any) -> None:
        dispatch = Dispatch(*note.job)
        try:
            params = unpack(dispatch.payload)
        except Exception:
            params = None  # The attempt fails for it, and says so.
        found = self._modules.get(dispatch.module)
        module = (found.work if found is not None else None) or WorkModule
        told = partial(self._say, Told(dispatch.id, dispatch.fence))
        self._tell_plugins(hook, told, job=view(dispatch, params), module=module, **extra)

    def _start(self, note: Start) -> None:
        spawn(self._start_now)

    def _start_now(self) -> None:
        self._tell_plugins("worker_started", self._be_started, worker=self._worker)

    def _be_started(self) -> None:
        self._started()
        self._say(Started())

    def _drain(self, note: Drain) -> None:
        if note.is_over:
            spawn(self._be_over)
        else:
            self._draining = spawn(self._hooks.call, "worker_stopping", worker=self._worker)

    def _be_over(self) -> None:
        if self._draining is not None:
            self._draining.join()
        self.over.set()

    def _count(self, note: Counts) -> None:
        self._worker.counts = note.counts

    def _log(self, note: Logged) -> None:
        self._restore_logs()
        quietly(_write, note.fields)  # A job may have closed the stream, or replaced a part of `logging`.


def _write(fields: dict[str, Any]) -> None:
    record = makeLogRecord(fields)
    logger = getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _named(job: Any) -> tuple[bytes, int]:
    """Return the id and the fence of a job as plugins see it."""
    return UUID(job.id).bytes, job.fence


_FENCE: Final = "givalia fence"
HOOKS_OF_JOBS: Final = ("before_run", "after_run", "on_cancel")
