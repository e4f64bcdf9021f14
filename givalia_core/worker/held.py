"""A job that this worker holds, why it must end, and who is to blame when a process does."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from givalia_core.protocol.messages import Dispatch

C = TypeVar("C")
H = TypeVar("H")

APART_MAX: Final = 4
SUSPECTS_MAX: Final = 10_000


class Held(Generic[C]):
    """A job that this worker holds, from its dispatch to its report.

    `phase` is where it is: `before` and `after` while plugins are told of one that has a process of its own, else `running`.
    `why` says why its code was made to end. At `at_s` (monotonic) the next `step` is due, `end`, `kill` or `promise`, for
    `cause`. `is_suspect`: it was in a process that died, nobody knows of what, and has one of its own for that.
    """

    __slots__ = (
        "at_s", "cause", "crew", "dispatch", "hook", "hooked_s", "is_cancelled", "is_process", "is_suspect", "phase", "report",
        "seconds", "step", "why",
    )  # fmt: skip

    def __init__(self, dispatch: Dispatch, crew: C, *, is_process: bool, is_suspect: bool = False) -> None:
        self.is_suspect = is_suspect
        self.dispatch = dispatch
        self.hook = ""  # The plugin that has been busy with it for a while.
        self.hooked_s = 0.0  # Since when, monotonic.
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


class Suspects(Generic[H]):
    """Jobs that were in a process when it died of nobody knows what: they are tried again apart, a few at a time.

    Held in memory: another worker that such a job goes to finds out by itself.
    """

    def __init__(self) -> None:
        self._ids: dict[bytes, None] = {}
        self._running: set[H] = set()
        self._waiting: deque[H] = deque()

    def __contains__(self, job_id: bytes) -> bool:
        return job_id in self._ids

    def add(self, job_id: bytes) -> None:
        """Let a job be a suspect; of too many the oldest are forgotten."""
        self._ids[job_id] = None
        while len(self._ids) > SUSPECTS_MAX:
            del self._ids[next(iter(self._ids))]

    def may_run(self, held: H) -> bool:
        """Return whether it may run now; if not, `leave` returns it when its turn has come."""
        if len(self._running) >= APART_MAX and held not in self._running:
            self._waiting.append(held)
            return False
        self._running.add(held)
        return True

    def leave(self, held: H) -> H | None:
        """Note that a suspect has ended, and is none any more if it did not take its process with it; return the next one."""
        if held in self._waiting:
            self._waiting.remove(held)
            return None
        self._running.discard(held)
        if not self._waiting:
            return None
        following = self._waiting.popleft()
        self._running.add(following)
        return following

    def clear(self, job_id: bytes) -> None:
        """Note that a job has run apart and harmed nobody."""
        self._ids.pop(job_id, None)


class Verdict:
    """Why a host has ended, and whose fault that is: a fence, or 0 if nobody knows. `is_ours`: no job is to blame."""

    def __init__(self, culprit: int, kind: str, words: str, *, is_ours: bool = False) -> None:
        self.is_ours = is_ours
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
