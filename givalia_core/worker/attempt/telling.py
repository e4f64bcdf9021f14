"""Calls the plugins of a worker's process, for jobs and for the worker, within a time limit.

Until a plugin returns, code in its greenlet counts as the plugin's, not as the job's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from logging import getLogger, makeLogRecord
from typing import Any, Final
from uuid import UUID

from gevent import Greenlet, get_hub, spawn
from gevent.event import Event
from greenlet import getcurrent

from givalia_core.frozen import BUILTINS, OwnClock
from givalia_core.hooks import Hooks
from givalia_core.model import OutcomeKind
from givalia_core.modules import FoundModule, WorkModule
from givalia_core.protocol.messages import Dispatch, Release
from givalia_core.protocol.values import unpack
from givalia_core.steady import quietly
from givalia_core.views import Outcome
from givalia_core.worker.attempt.hosted import Hosted
from givalia_core.worker.attempt.pipeline import classify, report, view
from givalia_core.worker.attempt.whose import Whose
from givalia_core.worker.notes import After, Before, CancelAsked, Counts, Drain, Logged, PluginBusy, PluginsTold, Start, Started
from givalia_core.worker.reasons import HOOK_LEFT_S

__builtins__ = BUILTINS

HOOK_SAID_S: Final = 1.0  # A plugin that takes longer shows in the list of processes.
HOOKS_OF_JOBS: Final = ("before_run", "after_run", "on_cancel")


class HookLate(BaseException):
    """Raised inside a plugin that takes longer than `hook_limit`; the job goes on without it."""


class _HookCall:
    """A call of a plugin."""

    def __init__(self, hook: str, plugin: str, job: Any, fence: int | None) -> None:
        self.hook = hook
        self.plugin = plugin
        self.job = job
        self.fence = fence  # The fence of the attempt in whose greenlet the plugin is called, if any.
        self.since_s = OwnClock.monotonic()
        self.is_said = False


class Telling:
    """The caller of the hooks of jobs and of the worker.

    Args:
        attempts: The attempts that are under way, by fence.
        whose: Notes whose code runs.
        say: Takes notes for the supervisor.
        modules: The modules that are served, by name.
        hooks: The plugins.
        worker: The `worker` for plugins.
    """

    def __init__(
        self,
        attempts: dict[int, Hosted],
        whose: Whose,
        say: Callable[[Any], None],
        modules: dict[str, FoundModule],
        hooks: Hooks,
        worker: Any,
    ) -> None:
        self._attempts = attempts
        self._whose = whose
        self._say = say
        self._modules = modules
        self._hooks = hooks
        self._worker = worker
        self.in_hooks: dict[Any, _HookCall] = {}  # By greenlet.
        self._behind_hooks: dict[Any, Callable[[], None]] = {}  # By greenlet: the act that follows the call of its plugins.
        self._draining: Greenlet[..., Any] | None = None
        self.over = Event()
        """Set when no more jobs will come and the plugins have heard that."""
        self.actions: dict[type, Callable[[Any], None]] = {
            Before: self._before,
            After: self._after,
            CancelAsked: self._cancelled,
            Start: self._start,
            Drain: self._drain,
            Counts: self._count,
            Logged: self._log,
        }

    def open(self, started: Callable[[], None], restore_logs: Callable[[], None]) -> None:
        """Take the functions `started` and `restore_logs` of `Runner.open`."""
        self._started = started
        self._restore_logs = restore_logs
        self._hooks.watch = self

    # The time that plugins take.

    def enter(self, hook: str, plugin: int, job: Any) -> _HookCall:
        """Note that a plugin is called."""
        self._restore_logs()
        running = getcurrent()
        entered = self.in_hooks[running] = _HookCall(hook, self._hooks.names[plugin], job, self._whose.fences.get(running))
        self._whose.note(running, -1 - plugin)
        return entered

    def leave(self, entered: _HookCall) -> None:
        """Note that a plugin has returned."""
        running = getcurrent()
        self.in_hooks.pop(running, None)
        self._whose.note(running, entered.fence)
        if entered.is_said:
            self._say(PluginBusy(*_named(entered.job), ""))

    def look(self) -> None:
        """Report plugins that take long, and interrupt those that exceed the limit."""
        now_s = OwnClock.monotonic()
        limit_s = self._worker.settings.hook_limit
        for running, entered in list(self.in_hooks.items()):
            age_s = now_s - entered.since_s
            if age_s > HOOK_SAID_S and not entered.is_said and entered.job is not None:
                entered.is_said = True
                self._say(PluginBusy(*_named(entered.job), f"{entered.hook} of plugin {entered.plugin}"))
            if age_s > limit_s + HOOK_LEFT_S:
                self._leave_hook(running, entered)
            elif age_s > limit_s:
                get_hub().loop.run_callback(self._break_off, running, entered)

    def _break_off(self, running: Any, entered: _HookCall) -> None:
        if self.in_hooks.get(running) is entered:  # Else it has returned meanwhile.
            running.throw(HookLate(f"it took longer than {self._worker.settings.hook_limit:g} s; the job goes on without it"))

    def _leave_hook(self, running: Any, entered: _HookCall) -> None:
        """Go on without a plugin that ignores the interruption; its greenlet stays behind."""
        del self.in_hooks[running]
        self._hooks.silence(entered.plugin)
        if entered.is_said:
            self._say(PluginBusy(*_named(entered.job), ""))
        if running in self._behind_hooks:
            self._behind_hooks.pop(running)()
        for attempt in [attempt for attempt in self._attempts.values() if attempt.greenlet is running]:
            self._attempts.pop(attempt.dispatch.fence)
            attempt.is_left = True
            if attempt.has_run or attempt.stopped is not None:
                attempt.raised = attempt.raised if attempt.has_run else attempt.stopped
                classify(attempt)
                attempt.send(report(attempt))
            else:  # The job comes again, and the plugin is not called then.
                self._say(Release(attempt.dispatch.id, attempt.dispatch.fence))

    def _call(self, hook: str, follows: Callable[[], None], **arguments: Any) -> None:
        """Call a hook, and then `follows`, even if the hook is given up."""
        running = getcurrent()
        self._behind_hooks[running] = follows
        self._hooks.call(hook, **arguments)
        if self._behind_hooks.pop(running, None) is not None:
            follows()

    # For jobs.

    def _before(self, note: Before) -> None:
        spawn(self._tell, note, "before_run")

    def _after(self, note: After) -> None:
        result = unpack(note.result)
        spawn(self._tell, note, "after_run", outcome=Outcome(OutcomeKind(note.kind), result, note.error, note.seconds))

    def _tell(self, note: Before | After, hook: str, **extra: Any) -> None:
        """Tell the plugins of a job that has a process of its own, or whose process is gone."""
        dispatch = Dispatch(*note.job)
        try:
            params = unpack(dispatch.payload)
        except Exception:
            params = None  # The attempt fails for the same reason.
        found = self._modules.get(dispatch.module)
        module = (found.work if found is not None else None) or WorkModule
        told = partial(self._say, PluginsTold(dispatch.id, dispatch.fence))
        self._call(hook, told, job=view(dispatch, params), module=module, **extra)

    def _cancelled(self, note: CancelAsked) -> None:
        dispatch = Dispatch(*note.job)
        attempt = self._attempts.get(dispatch.fence)
        if attempt is not None:
            attempt.is_stop_asked = True
        if note.is_news and self._hooks.listens("on_cancel"):
            job = attempt.job if attempt is not None else view(dispatch)
            spawn(self._hooks.call, "on_cancel", job=job, running=True)

    # For the worker.

    def _start(self, _: Start) -> None:
        spawn(self._call, "worker_started", self._be_started, worker=self._worker)

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
