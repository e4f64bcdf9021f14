"""A worker inside a program of your own: jobs and plugins run in the program, link and foreman in a native thread beside it.

Unlike `givalia-worker`, it cannot replace its process: a greenlet that never yields blocks all other jobs of the program. Their
leases are still renewed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Final

import gevent
from gevent.event import Event
from gevent.threadpool import ThreadPool

from givalia_core import forks
from givalia_core import hooks as hooks_room
from givalia_core import modules as modules_room
from givalia_core.headline import headline
from givalia_core.hooks import Hooks
from givalia_core.modules import FoundModule
from givalia_core.protocol.messages import Join
from givalia_core.settings import WorkerSettings
from givalia_core.threads import thread_now
from givalia_core.worker.attempt.runner import Runner
from givalia_core.worker.foreman import Foreman
from givalia_core.worker.link import Bell, Link
from givalia_core.worker.page import ASIDE_SIGNAL, DUMP_SIGNAL, SharedPage
from givalia_core.worker.processes.generations import Crew

STOP_S: Final = 5.0

log = logging.getLogger("givalia.worker")


class Relayed:
    """A log in another thread: logging takes locks, and the link's thread must not wait for one."""

    def __init__(self, outbox: Bell) -> None:
        self.info = partial(outbox.ring_call, log.info)
        self.warning = partial(outbox.ring_call, log.warning)
        self.error = partial(outbox.ring_call, log.error)


class Here:
    """This process, as its crew sees it: the process that runs the greenlets."""

    def __init__(self, inbox: Bell) -> None:
        self.pid = os.getpid()
        self.since = time.time()
        self.started_s = time.monotonic()
        self.page = SharedPage()
        self.last_current = 0
        self.memory_bytes = 0
        self.is_open = True
        self.tell = inbox.ring
        """The function that leaves notes for the thread of the jobs."""
        self._inbox = inbox
        self._thread = threading.main_thread().ident
        self._stack = ""

    @property
    def backlog(self) -> int:
        """The number of notes that wait for the thread of the jobs."""
        return self._inbox.waiting

    def signal(self, number: int) -> None:
        """Note the stack for a signal that asks for it; ignore all other signals."""
        if number in (DUMP_SIGNAL, ASIDE_SIGNAL) and self._thread is not None:
            self._stack = "".join(traceback.format_stack(sys._current_frames().get(self._thread)))  # noqa: SLF001 - The one way to the stacks of other threads.

    def stack(self) -> str:
        """Return the stack that was noted last, and forget it."""
        stack, self._stack = self._stack, ""
        return stack


class Worker:
    """A Givalia worker in this process; use `start` and `stop`, or `work_forever`.

    Args:
        settings: See `docs/settings.md`.
        plugins: Plugin objects besides the installed ones.
        modules: The WorkModules to serve, by name; None: the installed ones.
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
                log.warning("module %s of %s is not served: %s", found.name, found.distribution, headline(found.broken))
        self.counts: dict[str, int] = {}
        """Counts of events in the worker's processes."""
        self._home = forks.Home("worker")
        self._is_stopping = False
        self._ended = Event()
        self.connected = Event()
        """Set while the link is up."""

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.settings.name

    def start(self) -> None:
        """Start the link and return at once. Jobs run as soon as the server sends some.

        Raises:
            WrongProcess: The worker was started in the parent of this process.
        """
        self._home.check()
        self._home = forks.Home("worker")  # The worker may have been made before this process was forked.
        self._thread = thread_now()
        self._inbox = Bell(lambda notes: self._runner.take(*notes))
        here = Here(self._inbox)
        self._runner = Runner(self.modules, self.hooks, lambda note: self._outbox.ring(note), here.page, self)
        self._linked = ThreadPool(1).spawn(self._run_link, here)
        forks.register(self)

    def after_fork(self) -> None:
        """In a fork: run no job, and send nothing to the link, the server or the processes of jobs."""
        self._home.leave()
        if thread_now() == self._thread:  # Else the fork does not have the thread of the jobs.
            self._runner.after_fork()
            self._inbox.leave()
            if (outbox := getattr(self, "_outbox", None)) is not None:  # Else the link's thread has not made it yet.
                outbox.fall_silent()
            self.connected.clear()
            self._ended.set()

    def _run_link(self, here: Here) -> None:
        """Run link and foreman in the native thread, on its own hub, until the worker stops."""
        settings = self.settings
        join = Join(settings.name, uuid.uuid4().bytes, settings.only_targeted, os.getpid())
        link = Link(settings.servers(), join, [], lambda event: foreman.deliver(event))
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        foreman = Foreman(settings, link, lambda foreman: Crew(foreman, here, environ=environ), Relayed(self._inbox))
        foreman.news.when_connected = self._note_connection
        foreman.open()
        self._outbox: Bell = Bell(partial(foreman.hear, foreman.generations.crews[0]))
        self._asked_to_stop = Event()
        self._inbox.ring_call(self._runner.open)
        linked = gevent.spawn(link.run)
        self._asked_to_stop.wait()
        foreman.stop()
        link.stop()
        linked.join(STOP_S)
        foreman.say_rest()
        self._outbox.close()

    def _note_connection(self, is_up: bool) -> None:
        self._inbox.ring_call(self.connected.set if is_up else self.connected.clear)

    def work_forever(self) -> None:
        """Work until `stop` is called from another greenlet; call after `start`.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        self._ended.wait()
        self._home.check()

    def stop(self) -> None:
        """Take no more jobs, wait the time of grace for the running ones, stop and report the rest, and end the link.

        A second call waits for the first one. In a fork the call does nothing, and the log says so once.
        """
        if self._home.is_left:
            self._home.warn()
            return
        if self._is_stopping:
            self._ended.wait()
            return
        self._is_stopping = True
        self._outbox.ring_call(self._asked_to_stop.set)
        self._linked.wait()
        self._runner.telling.over.wait(STOP_S)
        self._runner.close()
        self._inbox.close()
        self._ended.set()
        forks.unregister(self)
