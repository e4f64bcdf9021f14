"""Starts attempts in greenlets, no more of them than it takes: to make one and to end it costs more than a short attempt.

A greenlet goes on with the next attempt if the one before never yielded and has left nothing in it. Nobody else has run
meanwhile, so whatever could reach the next attempt (an exception on its way, a timer, somebody who waits for the greenlet, a
local, a context) either is not there or shows as one of the `_marks`. An attempt that waits for something has its greenlet for
itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from sys import getrefcount
from typing import Any, Final, Generic, TypeVar
from weakref import getweakrefcount

from gevent import Greenlet, get_hub

from givalia_core.frozen import BUILTINS, Clock

__builtins__ = BUILTINS

TURN_S: Final = 0.005  # So long are attempts started before the loop looks after its sockets and timers again.

T = TypeVar("T")


class Running(Greenlet):  # type: ignore[type-arg]
    """The greenlet of an attempt; where it was started from is always the same, and not worth being looked up."""

    spawning_stack_limit = 0


class Starter(Generic[T]):
    """What `begin` is given, `run` is called with, in the order it came, each in a greenlet that is as good as new.

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

    def begin(self, attempt: T) -> None:
        """Have it run when the loop next comes to it."""
        self._waiting.append(attempt)
        if not self._is_due:
            self._is_due = True
            get_hub().loop.run_callback(self._start)

    def forget(self) -> None:
        """Start nothing of what was left to start."""
        self._waiting.clear()

    def _start(self) -> None:
        if self._again is not None:
            self._again.close()
            self._again = None
        self._until_s = Clock.monotonic() + TURN_S
        try:
            while self._waiting:
                self._starting = Running(self._run_in_a_row)
                self._starting.switch()  # Comes back when an attempt yields, or when its greenlet has ended.
                self._starting = None
                if Clock.monotonic() >= self._until_s:
                    break
        finally:  # A switch raises what a trace function of a job raises; the attempts that wait start all the same.
            self._starting = None
            self._is_due = bool(self._waiting)
            if self._is_due:
                # Another callback would be run at once: the loop runs dozens of them before it looks at the time.
                self._again = get_hub().loop.timer(0)
                self._again.start(self._start)

    def _run_in_a_row(self) -> None:
        running = self._starting
        assert running is not None
        marks = _marks(running)
        while self._waiting:
            self._run(self._waiting.popleft(), running)
            if self._starting is not running or _marks(running) != marks or Clock.monotonic() >= self._until_s:
                return


def _marks(running: Running) -> tuple[Any, ...]:
    """What tells a greenlet that somebody has left something in from one that is as new.

    Who wants to raise in it, wake it or wait for it must refer to it or be linked to it; so is what keeps locals for it.
    """
    return (
        getrefcount(running),
        getweakrefcount(running),
        running.has_links(),
        len(running.__dict__),
        len(running.gr_context or ()),
    )
