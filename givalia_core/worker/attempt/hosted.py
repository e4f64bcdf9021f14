"""Attempts in greenlets, and the steps that end them.

`Stopped` is raised in the job's code, and only there, so that no plugin swallows it. Code that goes on is left behind: its
attempt is reported, and `Stopped` is raised again. If the code still goes on, the supervisor is told, because only the end of
the process ends such code.
"""

from __future__ import annotations

from collections.abc import Callable
from traceback import format_stack
from typing import Any, Final

from gevent import Greenlet, get_hub, spawn_later

from givalia_core.clock import SECOND_US
from givalia_core.frozen import BUILTINS
from givalia_core.modules import Stopped
from givalia_core.worker.attempt.pipeline import Attempt, after_run, classify, report
from givalia_core.worker.notes import Stuck
from givalia_core.worker.reasons import NOT_ENDED, clipped, timed_out

__builtins__ = BUILTINS

STACK_LINES_MAX: Final = 12


class Hosted(Attempt):
    """An attempt in a greenlet of this process."""

    endings: Endings
    greenlet: Greenlet[..., Any] | None = None  # While the attempt goes through the steps.
    _limit: Any = None

    def begin(self) -> None:
        """Start the timer of the attempt."""
        self._limit = get_hub().loop.timer((self.dispatch.timeout_us or 0) / SECOND_US)
        self._limit.start(self.endings.stop, self, Stopped("timeout", timed_out(self.dispatch)))

    def finish(self) -> None:
        """Stop the timer of the attempt."""
        if self._limit is not None:
            self._limit.close()

    def end_by(self, stopped: Stopped) -> None:
        """Raise `stopped` in the job's code, unless the attempt is being stopped already."""
        is_news, self.stopped = self.stopped is None, self.stopped or stopped
        if is_news and self.is_in_process and self.greenlet is not None:
            self.greenlet.kill(stopped, block=False)


class Endings:
    """The steps that end attempts.

    Args:
        attempts: The attempts that are under way, by fence.
        say: Takes reports.
        grace_s: Returns the seconds for an attempt to end after it was stopped.
    """

    def __init__(self, attempts: dict[int, Hosted], say: Callable[[Any], None], grace_s: Callable[[], float]) -> None:
        self._attempts = attempts
        self._say = say
        self._grace_s = grace_s

    def stop(self, attempt: Hosted, stopped: Stopped) -> None:
        """Raise `stopped` in the job's code; after the time of grace, report the attempt if the code goes on."""
        attempt.end_by(stopped)
        spawn_later(self._grace_s(), self._leave, attempt)

    def _leave(self, attempt: Hosted) -> None:
        """Report an attempt that was stopped and goes on, without waiting for its code."""
        if not attempt.is_in_process or attempt.is_left:
            return
        attempt.is_left = True
        frame = attempt.greenlet.gr_frame if attempt.greenlet is not None else None
        attempt.words = "".join(format_stack(frame)[-STACK_LINES_MAX:]) if frame is not None else ""
        _report_left(attempt)
        self._attempts.pop(attempt.dispatch.fence, None)
        if attempt.greenlet is not None and attempt.stopped is not None:
            attempt.greenlet.kill(attempt.stopped, block=False)
        spawn_later(self._grace_s(), self._look_whether_ended, attempt)

    def _look_whether_ended(self, attempt: Hosted) -> None:
        if attempt.is_in_process:
            self._say(Stuck(attempt.dispatch.id, attempt.dispatch.fence))


def _report_left(attempt: Hosted) -> None:
    """Report an attempt whose code does not end."""
    assert attempt.stopped is not None
    attempt.raised = attempt.stopped
    classify(attempt)
    attempt.error = clipped(
        f"{attempt.stopped}; {NOT_ENDED}, so it was reported without waiting for its code\n{attempt.words}".strip()
    )
    send, attempt.send = attempt.send, _say_nothing
    after_run(attempt)
    send(report(attempt))


def _say_nothing(_: Any) -> None:
    """Drop progress that comes too late."""
