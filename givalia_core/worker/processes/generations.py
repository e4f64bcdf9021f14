"""The generations of crews: one takes jobs, and the next one takes over from it.

This is the door of the worker's processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gevent.event import Event

from givalia_core.clock import SECOND_US
from givalia_core.installed import version_of
from givalia_core.protocol.messages import Process
from givalia_core.version import __version__
from givalia_core.worker.assignment import LogLines
from givalia_core.worker.processes.crew import Crew, Job
from givalia_core.worker.processes.watchdog import BLOCKED_NS

__all__ = ["BLOCKED_NS", "Crew", "Generations", "Job"]

MIB: Final = 1 << 20
CREWS_MAX: Final = 5  # The most crews at once; further replacements wait.


class Generations:
    """The crews of a worker, the newest last; all except the newest and the present one only finish their jobs.

    Args:
        make: Starts another crew.
        log: Takes log lines.
    """

    def __init__(self, make: Callable[[], Crew], log: LogLines) -> None:
        self._make = make
        self._log = log
        self.crews: list[Crew] = []
        self.present: Crew | None = None
        """The crew that takes jobs."""
        self._is_ending = False
        self._must_reload = ""  # The reason for another reload, as soon as the crew that starts is ready; empty: none.
        self.taken_over = Event()
        """Set when the newest crew has taken over."""
        self.over = Event()
        """Set when there are no more crews."""

    def begin(self) -> None:
        """Start the first crew."""
        self.crews.append(self._make())

    def reload(self, why: str) -> None:
        """Start a new crew, with the packages that are installed now; running jobs stay where they are."""
        if self._is_ending:
            return
        if (installed := version_of("givalia") or __version__) != __version__:  # None: Givalia runs from a folder.
            self._log.error("Givalia itself has changed from %s to %s: restart this worker to go on", __version__, installed)
            return
        self.taken_over.clear()
        last = self.crews[-1]
        if last is not self.present and last.host.failures:
            last.end()  # It does not get ready; the new packages may cure that.
        elif last is not self.present or len(self.crews) >= CREWS_MAX:
            self._must_reload = why
            if last is self.present:
                self._make_way()
            return
        self._log.info("the processes are replaced: %s", why)
        self.crews.append(self._make())

    def _make_way(self) -> None:
        """Give up the oldest crew with code that does not end; its other jobs go back."""
        stuck = next((crew for crew in self.crews if crew.has_stuck and crew is not self.present), None)
        if stuck is not None:
            stuck.give_up()

    def take_over(self, crew: Crew) -> bool:
        """Let a crew whose plugins have started take the jobs; return false if it took them already."""
        before, self.present = self.present, crew
        if before is not None and before is not crew:
            self._log.info("the new processes have taken over")
            before.retire()
        if not self._must_reload:
            self.taken_over.set()
        self._reload_again()
        return before is not crew

    def remove(self, crew: Crew) -> None:
        """Forget a crew whose processes are gone."""
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
        """Return a record of each process that has a pid: a signal to pid 0 would reach the whole group of its sender."""
        self.weigh()
        shown: list[Process] = []
        for crew in self.crews:
            host, member, children = crew.host, crew.host.member, crew.pool.children
            if member is not None and member.pid:
                is_draining = crew.is_retired or crew.is_draining
                count = crew.job_count - sum(child.job is not None for child in children)
                if host.state == "blocked" or host.in_hooks:
                    shown.append(host.process(member, count, is_draining=is_draining))
                else:
                    state, since_us = "draining" if is_draining else host.state, round(member.since * SECOND_US)
                    shown.append(Process(member.pid, "greenlets", state, count, since_us, member.memory_bytes, host.starts - 1))
            if children:
                shown += crew.pool.processes()
        return shown

    def weigh(self) -> None:
        """Read the memory of each process, where the system tells it."""
        for crew in self.crews:
            for member in (crew.host.member, *(child.member for child in crew.pool.children)):
                if member is not None and member.pid:
                    try:
                        pages = Path(f"/proc/{member.pid}/statm").read_bytes().split()[1]
                        member.memory_bytes = int(pages) * _PAGE_BYTES
                    except (OSError, IndexError, ValueError):
                        member.memory_bytes = 0

    def limit_memory(self, limit_mib: int) -> None:
        """End processes that exceed the memory limit."""
        self.weigh()
        for crew in list(self.crews):
            crew.limit_memory(limit_mib * MIB)

    def look(self, *, is_fair: bool) -> None:
        """Check the hosts; `is_fair` is False when this process itself has just been suspended."""
        for crew in list(self.crews):
            crew.look(is_fair=is_fair)

    def ask_hosts(self, now_s: float) -> None:
        """Ask the hosts for their jobs."""
        for crew in list(self.crews):
            crew.ask_host(now_s)

    def drain(self) -> None:
        """Start no more crews, and tell the plugins of the present ones that the worker stops."""
        self._is_ending = True
        for crew in self.crews:
            crew.drain()

    def end(self) -> None:
        """End all processes."""
        for crew in list(self.crews):
            crew.end()


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
