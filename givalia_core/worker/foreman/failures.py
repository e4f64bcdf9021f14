"""Logs failed attempts: the job, the error, and the next step that the server has decided.

A line is written when the server has answered the report, or has not for a while. Jobs that succeed pass nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from givalia_core.clock import SECOND_US
from givalia_core.headline import headline, type_raised
from givalia_core.protocol.messages import Dispatch, FailReport
from givalia_core.repeats import Repeats
from givalia_core.worker.assignment import LogLines
from givalia_core.worker.link import FailAnswered, Follows
from givalia_core.worker.reasons import about

ANSWERED_S: Final = 5.0  # A report without an answer by then is logged without one.
UNANSWERED_MAX: Final = 10_000
DEAD: Final = "dead"
CANCELLED: Final = "cancelled"


class _Failure:
    """A failed attempt whose report is on its way."""

    def __init__(self, dispatch: Dispatch, report: FailReport, since_s: float) -> None:
        self.error = report.error
        self.kind = report.kind
        self.module = dispatch.module
        self.attempt = dispatch.attempt
        self.since_s = since_s
        self.extra = about(dispatch)


class Failures:
    """Failed attempts, from report to log line. All times are monotonic seconds.

    Args:
        lines: The log.
        shows_tracebacks: Returns whether the line of a dead job has the traceback.
    """

    def __init__(self, lines: LogLines, shows_tracebacks: Callable[[], bool]) -> None:
        self._lines = lines
        self._shows_tracebacks = shows_tracebacks
        self.repeats = Repeats()
        """The counts of repeated lines."""
        self.reported: dict[int, _Failure] = {}
        """Failures whose report has no answer yet, by fence, oldest first."""
        self._unanswered: dict[int, _Failure] = {}  # Failures that are logged, without an answer.

    def report(self, dispatch: Dispatch, report: FailReport, now_s: float) -> None:
        """Note a report that is on its way."""
        self.reported[report.fence] = _Failure(dispatch, report, now_s)

    def answer(self, answered: FailAnswered, now_s: float) -> None:
        """Log the end of an attempt and the next step, or only count it if too many lines are alike."""
        follows = answered.follows
        is_dead = follows is not None and follows.state == DEAD
        failure = self.reported.pop(answered.fence, None)
        known = self._unanswered.pop(answered.fence, None)
        failure = failure or (known if is_dead else None)
        if failure is None:
            return
        if is_dead:
            self._say_dead(failure, follows, now_s)
        elif follows is not None and follows.state == CANCELLED:
            self._say(self._lines.info, failure, follows, ", and the job is cancelled", now_s)
        elif not answered.is_taken:
            words = ", and the server did not take the report, for the lease was over"
            self._say(self._lines.warning, failure, follows, words, now_s)
        else:
            self._say(self._lines.warning, failure, follows, _next(follows), now_s)

    def may_say(self, kind: str, now_s: float) -> bool:
        """Count a line about attempts; return true if it is written, false if it is only counted."""
        return self.repeats.may_say(kind, now_s)

    def look(self, now_s: float) -> None:
        """Log the failures that have waited too long for an answer, and the numbers of lines left out."""
        while self.reported:
            fence, failure = next(iter(self.reported.items()))
            if now_s - failure.since_s < ANSWERED_S:
                break
            self._say_unanswered(fence, failure, now_s)
        for words in self.repeats.left_out(now_s):
            self._lines.warning("%s", words)

    def close(self, now_s: float) -> None:
        """Log the rest: no more answers will come."""
        for fence, failure in list(self.reported.items()):
            self._say_unanswered(fence, failure, now_s)
        for words in self.repeats.rest():
            self._lines.warning("%s", words)

    def _say_unanswered(self, fence: int, failure: _Failure, now_s: float) -> None:
        del self.reported[fence]
        self._unanswered[fence] = failure
        if len(self._unanswered) > UNANSWERED_MAX:
            del self._unanswered[next(iter(self._unanswered))]
        self._say(self._lines.warning, failure, None, ", and the server has not answered the report yet", now_s)

    def _say(self, say: Callable[..., None], failure: _Failure, follows: Follows | None, then: str, now_s: float) -> None:
        kind = f"attempts of {failure.module} that failed ({type_raised(failure.error) or failure.kind})"
        if self.repeats.may_say(kind, now_s):
            # The error comes last: it may be long, and some log formats cut lines.
            line = headline(failure.error)
            say("%s failed%s: %s", _attempt(failure, follows), then, line, extra={**failure.extra, "error": line})

    def _say_dead(self, failure: _Failure, follows: Follows | None, now_s: float) -> None:
        kind = f"jobs of {failure.module} that are dead ({type_raised(failure.error) or failure.kind})"
        if not self.repeats.may_say(kind, now_s):
            return
        line = headline(failure.error)
        extra = {**failure.extra, "error": line}
        if failure.error.strip() != line and self._shows_tracebacks():
            extra["traceback"] = failure.error
        self._lines.error("the job is dead: %s failed: %s", _attempt(failure, follows), line, extra=extra)


def _attempt(failure: _Failure, follows: Follows | None) -> str:
    return f"attempt {failure.attempt}" if follows is None else f"attempt {failure.attempt} of {follows.max_attempts}"


def _next(follows: Follows | None) -> str:
    if follows is None or follows.delay_us is None:
        return ""
    return f", next try in {follows.delay_us / SECOND_US:.1f} s"
