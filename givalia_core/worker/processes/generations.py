"""One crew after the other: which of them takes jobs, and when the next one takes over from it.

This is the door of the worker's processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import importlib_metadata
from gevent.event import Event

from givalia_core.version import __version__
from givalia_core.worker.held import Lines
from givalia_core.worker.processes.crew import Crew, Job

__all__ = ["Crew", "Generations", "Job"]

CREWS_MAX: Final = 5  # That are still there; more replacements wait.


class Generations:
    """The crews of a worker, the newest last; all but it and the present one only finish what they have.

    Args:
        make: Starts another crew.
        log: Where log lines go.
    """

    def __init__(self, make: Callable[[], Crew], log: Lines) -> None:
        self._make = make
        self._log = log
        self.crews: list[Crew] = []
        self.present: Crew | None = None
        """The one that takes jobs."""
        self._is_ending = False
        self._must_reload = ""  # Why, if as soon as the one that is on its way has arrived.
        self.taken_over = Event()
        """Set when the crew that was asked for last has taken over."""
        self.over = Event()
        """Set when there are no more crews."""

    def begin(self) -> None:
        """Start the first crew."""
        self.crews.append(self._make())

    def reload(self, why: str) -> None:
        """Let a new crew take over, which sees the packages that are installed now; what runs goes on where it is."""
        if self._is_ending:
            return
        if (installed := installed_version()) != __version__:
            self._log.error("Givalia itself has changed from %s to %s: restart this worker to go on", __version__, installed)
            return
        self.taken_over.clear()
        last = self.crews[-1]
        if last is not self.present and last.host.failures:
            last.end()  # It does not get ready, and what has changed may be the cure.
        elif last is not self.present or len(self.crews) >= CREWS_MAX:
            self._must_reload = why
            if last is self.present:
                self._make_way()
            return
        self._log.info("the processes are replaced: %s", why)
        self.crews.append(self._make())

    def _make_way(self) -> None:
        """Give up the oldest crew that has code in it which does not end; what else it runs is given back."""
        stuck = next((crew for crew in self.crews if crew.has_stuck and crew is not self.present), None)
        if stuck is not None:
            stuck.give_up()

    def take_over(self, crew: Crew) -> bool:
        """The plugins of a crew have started: from now on it takes the jobs; whether it did not before."""
        before, self.present = self.present, crew
        if before is not None and before is not crew:
            self._log.info("the new processes have taken over")
            before.retire()
        if not self._must_reload:
            self.taken_over.set()
        self._reload_again()
        return before is not crew

    def remove(self, crew: Crew) -> None:
        """All processes of a crew are gone."""
        if crew in self.crews:
            self.crews.remove(crew)
        if not self.crews:
            self.over.set()
        else:
            self._reload_again()

    def _reload_again(self) -> None:
        if self._must_reload and self.crews[-1] is self.present and len(self.crews) < CREWS_MAX:
            why, self._must_reload = self._must_reload, ""
            self.reload(why)

    def drain(self) -> None:
        """No more crews will come, and the plugins of those that are there are to know."""
        self._is_ending = True
        for crew in self.crews:
            crew.drain()

    def end(self) -> None:
        """End all processes."""
        for crew in list(self.crews):
            crew.end()


def installed_version() -> str:
    """The version of Givalia that lies in the environment now, which is that of processes started from now on."""
    try:
        return importlib_metadata.version("givalia")
    except importlib_metadata.PackageNotFoundError:
        return __version__  # It runs from somewhere else.
