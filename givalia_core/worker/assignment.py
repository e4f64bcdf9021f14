"""A job that this worker was lent, as its foreman knows it: where it is, and why and how it is made to end.

Its phases follow one table, `TRANSITIONS`, as the states of jobs do. A job that runs beside others in a process begins in
`RUNNING`, and is forgotten when it is reported; the other phases are those of a job that has a process of its own, or that is
made to end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, Protocol, TypeVar

from givalia_core.errors import IllegalTransition
from givalia_core.protocol.messages import Dispatch
from givalia_core.views import text_id
from givalia_core.worker.reasons import Reason

C = TypeVar("C")


class Phase(StrEnum):
    """Where an assignment is."""

    NEW = "new"  # It has arrived, and will have a process of its own.
    PREPARING = "preparing"  # The plugins are told that it starts.
    WAITING = "waiting"  # A suspect waits until few enough others run.
    RUNNING = "running"  # Its process has it.
    STOPPING = "stopping"  # `Stopped` is raised in its code; the next step is to kill its process.
    TRUSTED = "trusted"  # It has not ended, but its process shows life, and has promised to report the end.
    KILLED = "killed"  # Its process is killed.
    ENDED = "ended"  # The plugins are told how it ended; then it is reported.


class Step(StrEnum):
    """What follows when the time of an assignment has come."""

    NONE = ""
    STOP = "stop"  # Raise `Stopped` in its code.
    KILL = "kill"  # Kill its process, if its code is what does not end.
    PROMISE = "promise"  # Replace its process, which was to report its end.


TRANSITIONS: Final = {
    (Phase.NEW, "prepare"): Phase.PREPARING,
    (Phase.NEW, "wait"): Phase.WAITING,
    (Phase.NEW, "start"): Phase.RUNNING,
    (Phase.NEW, "end"): Phase.ENDED,
    (Phase.PREPARING, "wait"): Phase.WAITING,
    (Phase.PREPARING, "start"): Phase.RUNNING,
    (Phase.PREPARING, "end"): Phase.ENDED,
    (Phase.WAITING, "start"): Phase.RUNNING,
    (Phase.WAITING, "end"): Phase.ENDED,
    (Phase.RUNNING, "stop"): Phase.STOPPING,
    (Phase.RUNNING, "trust"): Phase.TRUSTED,
    (Phase.RUNNING, "kill"): Phase.KILLED,
    (Phase.RUNNING, "end"): Phase.ENDED,
    (Phase.STOPPING, "trust"): Phase.TRUSTED,
    (Phase.STOPPING, "kill"): Phase.KILLED,
    (Phase.STOPPING, "end"): Phase.ENDED,
    (Phase.TRUSTED, "stop"): Phase.STOPPING,  # It was beyond its timeout, and is cancelled now, say.
    (Phase.TRUSTED, "trust"): Phase.TRUSTED,  # Its process was held up meanwhile by another job.
    (Phase.TRUSTED, "kill"): Phase.KILLED,
    (Phase.KILLED, "end"): Phase.ENDED,
}
"""The acts that each phase allows, and the phase that follows."""

HAS_CODE: Final = frozenset({Phase.RUNNING, Phase.STOPPING, Phase.TRUSTED})
"""The phases in which its code may run."""


@dataclass(eq=False)
class Assignment(Generic[C]):
    """A job that this worker was lent, from its dispatch to its report.

    Args:
        dispatch: What the server lent.
        crew: Whose processes run it.
        is_apart: It has a process of its own.
        is_suspect: It may have ended the process that it was in, so it runs apart.
        phase: Where it is; only `act` changes that.
    """

    dispatch: Dispatch
    crew: C
    is_apart: bool
    is_suspect: bool = False
    phase: Phase = Phase.RUNNING
    report: Any = None  # Kept until the plugins have been told.
    story: tuple[str, ...] = ()

    # What most jobs keep as it is; an instance has its own only when it is set.
    is_cancelled = False
    why = Reason.NONE  # Why its code was made to end.
    due_s = math.inf  # When (monotonic) the next step is due,
    step = Step.NONE
    cause = Reason.NONE  # and why.
    hook = ""  # The plugin that has been busy with it for a while,
    hook_since_s = 0.0  # and since when (monotonic).
    seconds = 0.0

    def act(self, act: str) -> None:
        """Change the phase.

        Raises:
            IllegalTransition: The table has no such act for the phase; the message tells the story of the attempt.
        """
        after = TRANSITIONS.get((self.phase, act))
        if after is None:
            job = f"{text_id(self.dispatch.id)} of {self.dispatch.module}, attempt {self.dispatch.attempt}"
            raise IllegalTransition(f"{act} of an assignment that is {self.phase} ({job}: {', '.join(self.story) or 'new'})")
        self.phase = after
        self.story = (*self.story, act)


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


class LogLines(Protocol):
    """What a crew and its foreman need of a logger."""

    def info(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What is good to know."""

    def warning(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What somebody should look at."""

    def error(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """What went wrong."""
