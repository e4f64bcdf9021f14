"""The worker: takes what the link brings, runs each attempt in a greenlet of its own, and hands back what came of it.

The order of stopping: take no more (credit 0); give back what has not started; let running jobs end for the time of grace;
stop the rest, which are reported as failed; then end the link, once the server has answered every report.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from givalia_core import hooks as hooks_room
from givalia_core import modules as modules_room
from givalia_core.hooks import Hooks
from givalia_core.modules import FoundModule
from givalia_core.protocol.messages import Announce, Credit, Join, Release
from givalia_core.settings import WorkerSettings
from givalia_core.views import text_id
from givalia_core.worker.link import Connected, Disconnected, Dispatched, Event_, Link, Lost, Stopped
from givalia_core.worker.pipeline import Attempt, LeaseLost, WorkerStopping, execute, view

STOP_S: Final = 5.0

log = logging.getLogger("givalia.worker")


class Worker:
    """A Givalia worker in this process; use `start` and `stop`, or `work_forever`.

    Args:
        settings: See `docs/settings.md`.
        plugins: Plugin objects besides the installed ones.
        modules: The WorkModules to serve, by name; None: those that are installed.
    """

    def __init__(
        self,
        settings: WorkerSettings | None = None,
        *,
        plugins: Sequence[object] = (),
        modules: dict[str, FoundModule] | None = None,
    ) -> None:
        self.settings = settings or WorkerSettings()
        installed = [found.plugin for found in hooks_room.discover(self.settings.plugins) if found.plugin is not None]
        self.hooks = Hooks([*installed, *plugins])
        self.modules = modules_room.discover() if modules is None else modules
        for found in self.modules.values():
            if found.broken:
                log.warning("module %s of %s is not served: %s", found.name, found.distribution, found.broken.splitlines()[-1])
        self._attempts: dict[bytes, Attempt] = {}
        self._arrived: deque[Event_] = deque()
        self._thread: ThreadPool | None = None
        self._rung = Event()
        self._actions: dict[type, Callable[[Any], None]] = {
            Dispatched: self._begin,
            Stopped: self._pass_stop,
            Lost: self._end_lost,
            Connected: self._note_connected,
            Disconnected: self._note_disconnected,
        }
        self._is_stopping = False
        self._has_told_start = False
        self._idle = Event()
        self._idle.set()
        self._ended = Event()
        self.connected = Event()
        """Set while the link is up."""

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.settings.name

    def start(self) -> None:
        """Start the link; returns at once. Jobs run as soon as the server sends some."""
        settings = self.settings
        join = Join(settings.name, uuid.uuid4().bytes, settings.only_targeted, os.getpid())
        self._bell = gevent.get_hub().loop.async_()
        self._bell.start(self._rung.set)
        self._taking = gevent.spawn(self._take_forever)
        announced = [_announcement(found) for found in self.modules.values()]
        self._link = Link(settings.servers(), join, announced, self._deliver)
        self._thread = ThreadPool(1)
        self._linked = self._thread.spawn(self._link.run)

    def _deliver(self, event: Event_) -> None:
        """Called by the link's thread: leave the event for this one, and wake it."""
        self._arrived.append(event)
        self._bell.send()

    def _take_forever(self) -> None:
        """Act on what the link brings; nothing here waits for a job or a plugin."""
        while True:
            self._rung.wait()
            self._rung.clear()
            while self._arrived:
                event = self._arrived.popleft()
                self._actions[type(event)](event)

    def _begin(self, event: Dispatched) -> None:
        dispatch = event.job
        if self._is_stopping:
            self._link.send(Release(dispatch.id, dispatch.fence))
            return
        attempt = Attempt(dispatch, self.modules.get(dispatch.module), self.hooks, self._link.send)
        self._attempts[dispatch.id] = attempt
        self._idle.clear()
        attempt.greenlet = gevent.spawn(self._run, attempt)

    def _run(self, attempt: Attempt) -> None:
        try:
            execute(attempt)
        except BaseException as error:  # Only what is thrown in from outside in the moment between two steps.
            log.warning("an attempt of %s ended early: %s", attempt.dispatch.module, type(error).__name__)
        finally:
            if self._attempts.get(attempt.dispatch.id) is attempt:
                del self._attempts[attempt.dispatch.id]
            if not self._attempts:
                self._idle.set()

    def _held(self, event: Stopped | Lost) -> Attempt | None:
        attempt = self._attempts.get(event.id)
        return attempt if attempt is not None and attempt.dispatch.fence == event.fence else None

    def _pass_stop(self, event: Stopped) -> None:
        attempt = self._held(event)
        if attempt is not None and attempt.ask_stop() and not event.again:
            gevent.spawn(self.hooks.call, "on_cancel", job=attempt.job or view(attempt.dispatch), running=True)

    def _end_lost(self, event: Lost) -> None:
        attempt = self._held(event)
        if attempt is not None:
            log.warning("job %s of %s is stopped: %s", text_id(event.id), attempt.dispatch.module, event.why)
            attempt.end_by(LeaseLost(event.why))

    def _note_connected(self, event: Connected) -> None:
        self.connected.set()
        log.info("connected to %s as %s", event.address, self.settings.name)
        if not self._has_told_start:
            self._has_told_start = True
            gevent.spawn(self._begin_work)

    def _begin_work(self) -> None:
        """Tell the plugins before the first job can come, and then take jobs."""
        self.hooks.call("worker_started", worker=self)
        if not self._is_stopping:
            self._link.send(Credit(self.settings.concurrency))

    def _note_disconnected(self, event: Disconnected) -> None:
        self.connected.clear()
        when = f"in {event.retry_s:.1f} s" if event.retry_s else "now"
        log.warning("not connected to %s (%s); trying %s %s", event.address, event.why, event.next, when)

    def work_forever(self) -> None:
        """Work until `stop` is called from another greenlet; call after `start`."""
        self._ended.wait()

    def stop(self) -> None:
        """Stop as the module says. Safe to call twice; the second call returns when the first has done its work."""
        if self._is_stopping:
            self._ended.wait()
            return
        self._is_stopping = True
        self.hooks.call("worker_stopping", worker=self)
        self._link.send(Credit(0))
        if not self._idle.wait(self.settings.grace):
            running = list(self._attempts.values())
            log.warning("%d jobs have not ended in %g s and are stopped", len(running), self.settings.grace)
            for attempt in running:
                attempt.end_by(WorkerStopping("shutdown"))
            self._idle.wait(STOP_S)
        self._link.stop()
        self._linked.wait(STOP_S)
        self._taking.kill()
        self._bell.close()
        self._ended.set()


def _announcement(found: FoundModule) -> Announce:
    return Announce(
        found.name,
        found.distribution[:255],
        found.version[:255],
        found.isolation,
        found.max_attempts,
        found.timeout_us,
        found.backoff_us,
        found.backoff_max_us,
        found.broken,
    )
