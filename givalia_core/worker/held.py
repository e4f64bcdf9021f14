"""A job that this worker holds, why it must end, and who is to blame when a process does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

from givalia_core.protocol.messages import Dispatch

C = TypeVar("C")


class Held(Generic[C]):
    """A job that this worker holds, from its dispatch to its report.

    `phase` is where it is: `before` and `after` while plugins are told of one that has a process of its own, else `running`.
    `why` says why its code was made to end. At `at_s` (monotonic) the next `step` is due, `end` or `kill`, for `cause`.
    """

    __slots__ = ("at_s", "cause", "crew", "dispatch", "is_cancelled", "is_process", "phase", "report", "seconds", "step", "why")

    def __init__(self, dispatch: Dispatch, crew: C, *, is_process: bool) -> None:
        self.dispatch = dispatch
        self.crew = crew
        self.is_process = is_process
        self.phase = "running"
        self.is_cancelled = False
        self.why = ""
        self.at_s: float | None = None
        self.step = ""
        self.cause = ""
        self.report: Any = None
        self.seconds = 0.0


class Verdict:
    """Why a host is put to death, and whose fault that is: a fence, or 0 for nobody's that is known."""

    def __init__(self, culprit: int, kind: str, words: str) -> None:
        self.culprit = culprit
        self.kind = kind
        self.words = words


class Lines(Protocol):
    """What a crew and its foreman need of a logger."""

    def info(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What is good to know."""

    def warning(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What somebody should look at."""

    def error(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What went wrong."""
