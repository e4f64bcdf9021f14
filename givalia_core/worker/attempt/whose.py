"""The owner of the code that runs in a process of many jobs: an attempt (its fence), a plugin (a number below 0), or none (0).

The number is on the shared page, where the supervisor reads which job does not yield.
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
"""The name of the local that greenlets and threads inherit from the greenlet that starts them."""

Trace = Callable[[str, tuple[Any, Any]], None]


class Whose:
    """The code that each greenlet runs.

    Args:
        page: The shared page of this process.
    """

    def __init__(self, page: SharedPage) -> None:
        self.page = page
        self.fences: dict[Any, int] = {}
        """The fences by greenlet; an absent greenlet runs the code of the greenlet that started it."""
        self.trace: Trace | None = None
        """The function that notes each switch between greenlets."""

    def begin(self, trace: Trace) -> None:
        """Use this trace function to note each switch from now on."""
        self.fences[get_hub()] = 0
        self.trace = trace
        if gettrace() is None:
            settrace(trace)

    def end(self) -> None:
        """Stop noting switches."""
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
        """Note whose code a greenlet runs from now on; None: that of the greenlet that started it."""
        if fence is None:
            self.fences.pop(running, None)
        else:
            self.fences[running] = fence
        if gettrace() is self.trace:
            self.page.current = fence or 0

    def restore(self) -> None:
        """Restore the trace function if a job has removed it; call this from the loop, where no job's code runs."""
        if self.page.current and self.trace is not None:
            settrace(self.trace)
            self.page.current = 0

    def after_fork(self) -> None:
        """In a fork: resume no attempt except the one that forked, if any.

        The others are not even resumed to end: they would clean up objects of the parent, a transaction perhaps.
        """
        self.page = SharedPage()
        forker = self.current

        def guard(event: str, switch: tuple[Any, Any]) -> None:  # noqa: ARG001 - The caller gives it.
            while (self.fences.get(switch[1]) or forker) != forker:
                get_hub().switch()

        settrace(guard)
