"""Server hooks, off the path of every answer: a bounded queue and one native thread that calls the plugins.

A plugin that blocks delays other plugins' calls and nothing else; when the queue is full, new calls are dropped and counted.
A crash between a commit and its call loses the call: work that must not be lost belongs in a job.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Final

from givalia_core.clock import Now
from givalia_core.engine.records import Hook
from givalia_core.hooks import Hooks

QUEUE_MAX: Final = 10_000


class HookRunner:
    """Calls the server's hooks in the order of what happened."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._queue: deque[tuple[str, dict[str, Any]]] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self.dropped = 0
        """The number of dropped calls, which `Troubles` reports."""
        self._thread: threading.Thread | None = None

    def tell(self, hook: Hook, now: Now) -> None:
        """Queue the call for an event of a job, if a plugin listens."""
        if self._hooks.listens(hook.name):
            self.call(hook.name, **hook.arguments(now))

    def call(self, name: str, **arguments: Any) -> None:
        """Queue a call, if a plugin listens."""
        if not self._hooks.listens(name):
            return
        with self._changed:
            if len(self._queue) >= QUEUE_MAX:
                self.dropped += 1
                return
            self._queue.append((name, arguments))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="givalia-hooks", daemon=True)
                self._thread.start()
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    if self._is_stopping:
                        return
                    self._changed.wait()
                name, arguments = self._queue.popleft()
            self._hooks.call(name, **arguments)

    def leave(self) -> None:
        """Call nothing more, in a fork: the thread is the parent's and may hold the lock, or has made this fork."""
        self._changed = threading.Condition()
        self._queue.clear()
        self._is_stopping = True

    def stop(self, seconds: float) -> None:
        """Make the queued calls, for at most `seconds`; a plugin that blocks longer is left behind."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(seconds)
