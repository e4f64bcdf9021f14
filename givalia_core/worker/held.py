"""A job that this worker holds, why it must end, and who is to blame when a process does."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from givalia_core.protocol.messages import Dispatch
from givalia_core.views import text_id

C = TypeVar("C")
H = TypeVar("H")

FRESH_MAX: Final = 4  # Suspects that run apart and were started less than
FRESH_S: Final = 2.0  # so many seconds ago;
APART_MAX: Final = 20  # and all suspects that run apart.
SUSPECTS_MAX: Final = 10_000


class Held(Generic[C]):
    """A job that this worker holds, from its dispatch to its report.

    `phase` is where it is: `before` and `after` while plugins are told of one that has a process of its own, `waiting` while it
    is to have one later, else `running`.
    `why` says why its code was made to end. At `at_s` (monotonic) the next `step` is due, `end`, `kill` or `promise`, for
    `cause`. `is_suspect`: it may have ended the process that it was in, so it runs in one of its own.
    """

    # What most jobs keep as it is; an instance has its own only when it is set.
    phase = "running"
    is_cancelled = False
    why = ""
    at_s: float | None = None
    step = ""
    cause = ""
    report: Any = None
    seconds = 0.0
    hook = ""  # The plugin that has been busy with it for a while.
    hooked_s = 0.0  # Since when, monotonic.

    def __init__(self, dispatch: Dispatch, crew: C, is_process: bool, is_suspect: bool = False) -> None:
        self.dispatch = dispatch
        self.crew = crew
        self.is_process = is_process
        self.is_suspect = is_suspect


def about(dispatch: Dispatch) -> dict[str, Any]:
    """Return what a line in the log carries that is about an attempt of a job."""
    return {
        "job_id": text_id(dispatch.id),
        "job_module": dispatch.module,
        "key": dispatch.key,
        "attempt": dispatch.attempt,
    }


class Suspects(Generic[H]):
    """Jobs one of which has ended the process that they were in: each is tried again in a process of its own, a few at a time.

    One that has run for `FRESH_S` makes room for the next, for it may run for hours. This is known in memory only: another
    worker that gets such a job finds out by itself. All times are monotonic seconds.
    """

    def __init__(self) -> None:
        self.ids: dict[bytes, None] = {}
        """The ids of the suspects, the oldest first."""
        self._running: dict[H, float] = {}  # Since when.
        self._waiting: deque[H] = deque()

    def add(self, job_id: bytes) -> None:
        """Let a job be a suspect; of too many the oldest are forgotten."""
        self.ids[job_id] = None
        while len(self.ids) > SUSPECTS_MAX:
            del self.ids[next(iter(self.ids))]

    def may_run(self, held: H, now_s: float) -> bool:
        """Return whether it may run now; if not, `following` returns it when its turn has come."""
        if held not in self._running:
            if self._waiting or not self._has_room(now_s):
                self._waiting.append(held)
                return False
            self._running[held] = now_s
        return True

    def _has_room(self, now_s: float) -> bool:
        fresh = sum(now_s - since_s < FRESH_S for since_s in self._running.values())
        return fresh < FRESH_MAX and len(self._running) < APART_MAX

    def leave(self, held: H) -> None:
        """Note that a suspect runs no more, or that it waits no more."""
        if self._running.pop(held, None) is None and held in self._waiting:
            self._waiting.remove(held)

    def following(self, now_s: float) -> H | None:
        """Return one whose turn to run has come, which counts as running from now on."""
        if not self._waiting or not self._has_room(now_s):
            return None
        held = self._waiting.popleft()
        self._running[held] = now_s
        return held

    def clear(self, job_id: bytes) -> None:
        """Note that a job has run apart and its process has survived: it is no suspect any more."""
        self.ids.pop(job_id, None)


class Verdict:
    """Why a host has ended, and the fence of the job that is to blame: 0 if that is unknown. `is_ours`: no job is to blame.

    `suspects` are the fences of the jobs that may be to blame if that is unknown; None for all jobs of the host.
    """

    def __init__(
        self, culprit: int, kind: str, words: str, *, is_ours: bool = False, suspects: frozenset[int] | None = None
    ) -> None:
        self.is_ours = is_ours
        self._suspects = suspects
        self.culprit = culprit
        self.kind = kind
        self.words = words

    def may_be(self, fence: int) -> bool:
        """Return whether the job with this fence may be to blame, if it is unknown which one is."""
        return self._suspects is None or fence in self._suspects


class Lines(Protocol):
    """What a crew and its foreman need of a logger."""

    def info(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What is good to know."""

    def warning(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What somebody should look at."""

    def error(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What went wrong."""
