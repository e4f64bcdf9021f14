"""Jobs that may have ended their process."""

from __future__ import annotations

from collections import deque
from typing import Final, Generic, TypeVar

J = TypeVar("J")

FRESH_MAX: Final = 4  # The most fresh suspects at once.
FRESH_S: Final = 2.0  # A suspect that started less than these seconds ago is fresh.
APART_MAX: Final = 20  # The most suspects at once.
SUSPECTS_MAX: Final = 10_000


class Suspects(Generic[J]):
    """Jobs of a process that one of them has ended: each runs again in a process of its own, a few at a time.

    A suspect that has run for `FRESH_S` makes room for the next, because it may run for hours. Suspects are known in memory
    only: another worker that gets such a job has to find out by itself. All times are monotonic seconds.
    """

    def __init__(self) -> None:
        self.ids: dict[bytes, None] = {}
        """The ids of the suspects, the oldest first."""
        self._running: dict[J, float] = {}  # The start of each running suspect.
        self.waiting: deque[J] = deque()
        """The suspects that wait for their turn."""

    def add(self, job_id: bytes) -> None:
        """Add a suspect; forget the oldest of too many."""
        self.ids[job_id] = None
        while len(self.ids) > SUSPECTS_MAX:
            del self.ids[next(iter(self.ids))]

    def may_run(self, job: J, now_s: float) -> bool:
        """Return whether the suspect may run now; if not, `following` returns it in its turn."""
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
        """Note that a suspect neither runs nor waits any more."""
        if self._running.pop(job, None) is None and job in self.waiting:
            self.waiting.remove(job)

    def following(self, now_s: float) -> J | None:
        """Return the next suspect that may run, which counts as running from now on."""
        if not self.waiting or not self._has_room(now_s):
            return None
        job = self.waiting.popleft()
        self._running[job] = now_s
        return job

    def clear(self, job_id: bytes) -> None:
        """Clear a job: it has run apart, and its process has survived."""
        self.ids.pop(job_id, None)
