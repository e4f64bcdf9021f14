"""A job that this worker was lent, as its foreman knows it: its phase, and the steps that end it.

The phases follow one table, `TRANSITIONS`, as the states of jobs do. A job that shares a process with others begins in
`RUNNING`, and the foreman forgets it when it is reported. The other phases are for jobs that have a process of their own, and
for jobs that must end.
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
    """The phase of an assignment."""

    NEW = "new"  # The job has arrived, and will have a process of its own.
    PREPARING = "preparing"  # The plugins hear that the job starts.
    WAITING = "waiting"  # A suspect waits until few enough others run.
    RUNNING = "running"  # Its process has the job.
    STOPPING = "stopping"  # `Stopped` is raised in its code; the next step is to kill its process.
    TRUSTED = "trusted"  # The job has not ended, but its process is alive and will report the end.
    KILLED = "killed"  # Its process is killed.
    ENDED = "ended"  # The plugins hear how the job ended; then the foreman reports it.


class Step(StrEnum):
    """The step that an assignment is due for."""

    NONE = ""
    STOP = "stop"  # Raise `Stopped` in its code.
    KILL = "kill"  # Kill its process, if this job's code does not end.
    PROMISE = "promise"  # Replace its process, which has not reported the end.


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
    (Phase.TRUSTED, "stop"): Phase.STOPPING,  # A job beyond its timeout is cancelled, for example.
    (Phase.TRUSTED, "trust"): Phase.TRUSTED,  # Another job blocked the process meanwhile.
    (Phase.TRUSTED, "kill"): Phase.KILLED,
    (Phase.KILLED, "end"): Phase.ENDED,
}
"""The acts that each phase allows, and the phase that follows."""

HAS_CODE: Final = frozenset({Phase.RUNNING, Phase.STOPPING, Phase.TRUSTED})
"""The phases in which the job's code may run."""


@dataclass(eq=False)
class Assignment(Generic[C]):
    """A job that this worker was lent, from its dispatch to its report.

    Args:
        dispatch: What the server lent.
        crew: The crew that runs it.
        is_apart: The job has a process of its own.
        is_suspect: The job may have ended its previous process, so it runs apart.
        phase: Changed by `act` alone.
    """

    dispatch: Dispatch
    crew: C
    is_apart: bool
    is_suspect: bool = False
    phase: Phase = Phase.RUNNING
    report: Any = None  # Kept until the plugins have been told.
    story: tuple[str, ...] = ()

    # Defaults on the class: most jobs never set these.
    is_cancelled = False
    why = Reason.NONE  # Why its code must end.
    due_s = math.inf  # When (monotonic) the next step is due,
    step = Step.NONE
    cause = Reason.NONE  # and why.
    hook = ""  # The plugin that has been busy with the job for a while,
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
    """The cause of a host's end, and the fence of the job to blame (0: unknown). `is_ours`: no job is to blame.

    `suspects` are the fences of the jobs that may be to blame if the culprit is unknown; None: all jobs of the host.
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
        """Return whether this job may be to blame if the culprit is unknown."""
        return self._suspects is None or fence in self._suspects


class LogLines(Protocol):
    """The methods of a logger that a crew and its foreman call."""

    def info(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Log a fact."""

    def warning(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Log a warning."""

    def error(self, words: str, *values: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Log an error."""
