"""One crew after the other: which of them takes jobs, and when the next one takes over from it.

This is the door of the worker's processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import importlib_metadata
from gevent.event import Event

from givalia_core.clock import SECOND_US
from givalia_core.protocol.messages import Process
from givalia_core.version import __version__
from givalia_core.worker.assignment import LogLines
from givalia_core.worker.processes.crew import Crew, Job
from givalia_core.worker.processes.watchdog import BLOCKED_NS

__all__ = ["BLOCKED_NS", "Crew", "Generations", "Job"]

MIB: Final = 1 << 20
CREWS_MAX: Final = 5  # That are still there; more replacements wait.


class Generations:
    """The crews of a worker, the newest last; all but it and the present one only finish what they have.

    Args:
        make: Starts another crew.
        log: Where log lines go.
    """

    def __init__(self, make: Callable[[], Crew], log: LogLines) -> None:
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

    def processes(self) -> list[Process]:
        """Return what is to be said of the processes that are born: pid 0 would be the whole group of whoever signals it."""
        self.weigh()
        shown: list[Process] = []
        for crew in self.crews:
            host, member, children = crew.host, crew.host.member, crew.pool.children
            if member is not None and member.pid:
                is_draining = crew.is_retired or crew.is_draining
                count = crew.job_count - sum(child.job is not None for child in children)
                state, since_us = "draining" if is_draining else host.state, round(member.since * SECOND_US)
                if host.state == "blocked" or host.in_hooks:
                    shown.append(host.process(member, count, is_draining=is_draining))
                else:
                    row = (member.pid, "greenlets", state, count, since_us, member.memory_bytes, host.starts - 1)
                    shown.append(Process(*row))
            if children:
                shown += crew.pool.processes()
        return shown

    def weigh(self) -> None:
        """See how much memory each process has, where the system says so."""
        for crew in self.crews:
            for member in (crew.host.member, *(child.member for child in crew.pool.children)):
                if member is not None and member.pid:
                    try:
                        pages = Path(f"/proc/{member.pid}/statm").read_bytes().split()[1]
                        member.memory_bytes = int(pages) * _PAGE_BYTES
                    except (OSError, IndexError, ValueError):
                        member.memory_bytes = 0

    def limit_memory(self, limit_mib: int) -> None:
        """End processes that have more memory than they may."""
        self.weigh()
        for crew in list(self.crews):
            crew.limit_memory(limit_mib * MIB)

    def look(self, *, is_fair: bool) -> None:
        """See how the hosts are; `is_fair` is False when this process itself has just been away."""
        for crew in list(self.crews):
            crew.look(is_fair=is_fair)

    def ask_hosts(self, now_s: float) -> None:
        """Ask the hosts which jobs they have."""
        for crew in list(self.crews):
            crew.ask_host(now_s)

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


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
