"""Whose code runs in a process of many jobs: an attempt's, by its fence; a plugin's, by a number below 0; or nobody's, 0.

It stands on the page that the supervisor shares, which names by it the job that does not yield.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from gevent import get_hub
from greenlet import getcurrent, gettrace, settrace

from givalia_core.frozen import BUILTINS
from givalia_core.worker.page import SharedPage

__builtins__ = BUILTINS

FENCE: Final = "givalia fence"
"""The name of the local that a greenlet hands on to those that it starts, and to threads."""

Trace = Callable[[str, tuple[Any, Any]], None]


class Whose:
    """Knows it by greenlet.

    Args:
        page: The shared page of this process.
    """

    def __init__(self, page: SharedPage) -> None:
        self.page = page
        self.fences: dict[Any, int] = {}
        """By greenlet; one that is not here runs the code of whoever has started it."""
        self.trace: Trace | None = None
        """Notes each switch between greenlets."""

    def begin(self, trace: Trace) -> None:
        """Note each switch from now on by this trace function."""
        self.fences[get_hub()] = 0
        self.trace = trace
        if gettrace() is None:
            settrace(trace)

    def end(self) -> None:
        """Note switches no more."""
        if gettrace() is self.trace:
            settrace(None)

    def inherited(self, running: Any) -> int:
        """Return the fence of the attempt that has started this greenlet; 0: none has."""
        inherited: dict[str, int] = getattr(running, "spawn_tree_locals", None) or {}
        return inherited.get(FENCE, 0)

    @property
    def current(self) -> int:
        """The fence of the attempt whose code runs now; 0 for none."""
        running = getcurrent()
        fence = self.fences.get(running)
        return self.inherited(running) if fence is None else fence

    def note(self, running: Any, fence: int | None) -> None:
        """Note whose code this greenlet runs from now on; None: that of whoever has started it."""
        if fence is None:
            self.fences.pop(running, None)
        else:
            self.fences[running] = fence
        if gettrace() is self.trace:
            self.page.current = fence or 0

    def restore(self) -> None:
        """Note switches again if a job has removed what does so; call it from the loop, which is nobody's code."""
        if self.page.current and self.trace is not None:
            settrace(self.trace)
            self.page.current = 0

    def after_fork(self) -> None:
        """In a fork: resume no attempt but the one that forked, if one did.

        The others are never resumed, not even to end them: what they would clean up is the parent's, a transaction perhaps.
        """
        self.page = SharedPage()
        forker = self.current

        def guard(event: str, switch: tuple[Any, Any]) -> None:
            while (self.fences.get(switch[1]) or forker) != forker:
                get_hub().switch()

        settrace(guard)
