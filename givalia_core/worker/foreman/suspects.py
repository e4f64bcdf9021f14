"""The jobs one of which has ended the process that they were in."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

J = TypeVar("J")

FRESH_MAX: Final = 4  # Suspects that run apart and were started less than
FRESH_S: Final = 2.0  # so many seconds ago;
APART_MAX: Final = 20  # and all suspects that run apart.
SUSPECTS_MAX: Final = 10_000


class Suspects(Generic[J]):
    """Jobs one of which has ended the process that they were in: each is tried again in a process of its own, a few at a time.

    One that has run for `FRESH_S` makes room for the next, for it may run for hours. This is known in memory only: another
    worker that gets such a job finds out by itself. All times are monotonic seconds.
    """

    def __init__(self) -> None:
        self.ids: dict[bytes, None] = {}
        """The ids of the suspects, the oldest first."""
        self._running: dict[J, float] = {}  # Since when.
        self.waiting: deque[J] = deque()
        """Those whose turn has not come."""

    def add(self, job_id: bytes) -> None:
        """Let a job be a suspect; of too many the oldest are forgotten."""
        self.ids[job_id] = None
        while len(self.ids) > SUSPECTS_MAX:
            del self.ids[next(iter(self.ids))]

    def may_run(self, job: J, now_s: float) -> bool:
        """Return whether it may run now; if not, `following` returns it when its turn has come."""
        if job not in self._running:
            if self.waiting or not self._has_room(now_s):
                self.waiting.append(job)
                return False
            self._running[job] = now_s
        return True

    def _has_room(self, now_s: float) -> bool:
        fresh = sum(now_s - since_s < FRESH_S for since_s in self._running.values())
        return fresh < FRESH_MAX and len(self._running) < APART_MAX

    def leave(self, job: J) -> None:
        """Note that a suspect runs no more, or that it waits no more."""
        if self._running.pop(job, None) is None and job in self.waiting:
            self.waiting.remove(job)

    def following(self, now_s: float) -> J | None:
        """Return one whose turn to run has come, which counts as running from now on."""
        if not self.waiting or not self._has_room(now_s):
            return None
        job = self.waiting.popleft()
        self._running[job] = now_s
        return job

    def clear(self, job_id: bytes) -> None:
        """Note that a job has run apart and its process has survived: it is no suspect any more."""
        self.ids.pop(job_id, None)
