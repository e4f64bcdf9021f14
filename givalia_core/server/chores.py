"""The chores of a server: ending overdue connections, watching memory, disk and store, and logging troubles."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from pathlib import Path
from typing import Any, Final

import gevent

from givalia_core.clock import SECOND_US, Clock
from givalia_core.engine.desk import BusyFor
from givalia_core.engine.turn import Engine
from givalia_core.program import give_back_memory
from givalia_core.server.connections import Connections
from givalia_core.server.hookrunner import HookRunner
from givalia_core.server.inbox import Inbox
from givalia_core.server.loop import Loop
from givalia_core.server.troubles import NEARLY_FULL, Signs, Troubles
from givalia_core.settings import ServerSettings
from givalia_core.steady import quietly
from givalia_core.store.base import Store

EACH_S: Final = 1.0
HOUR_US: Final = 3_600 * SECOND_US
TRIM_US: Final = 60 * SECOND_US
TRIM_MIB: Final = 32  # Growth since the last trim that is worth some milliseconds.
DISK_EACH_US: Final = 10 * SECOND_US
QUIET_US: Final = 5_000
QUIET_LOOKS: Final = 20

log = logging.getLogger("givalia.server")


class Chores:
    """The chores of one server, done once a second by `run`."""

    def __init__(
        self,
        settings: ServerSettings,
        clock: Clock,
        engine: Engine,
        store: Store,
        inbox: Inbox,
        connections: Connections,
        loop: Loop,
        runner: HookRunner,
    ) -> None:
        self.settings = settings
        self.troubles = Troubles()
        self.trimmed_us = self.trimmed_mib = 0  # When memory was last given back, and how much was left.
        self.disk_asked_us = -DISK_EACH_US
        self._disk: tuple[int | None, int | None] = None, None  # Free and total bytes of the store's disk.
        self._clock, self._engine, self._store, self._inbox = clock, engine, store, inbox
        self._connections, self._loop, self._runner = connections, loop, runner
        self._said_us = clock.read().mono_us  # When the log last said that the ports are open to everybody.

    def run(self) -> None:
        """Do the chores until the greenlet is killed."""
        while True:
            gevent.sleep(EACH_S)
            try:
                self.do()
            except Exception as error:
                quietly(log.error, "looking after the connections: %s: %s", type(error).__name__, error)
            self._let_store_rest()

    def do(self) -> None:
        """Do each chore once."""
        now_us = self._clock.read().mono_us
        for connection in list(self._connections.by_number.values()):
            if why := connection.overdue(now_us):
                connection.close(why)
        if time.monotonic() >= self._connections.journal.due_s:
            self._connections.journal.look()
        if self._connections.unread.bytes or self._inbox.short:
            self._connections.make_room()
        self.see_to_memory()
        if self._store.is_shared:  # Others watch the disk of a database.
            self._loop.put_off_stuck(now_us)
        elif now_us >= self.disk_asked_us + DISK_EACH_US:
            self._see_to_disk(now_us)
        signs = self.signs(now_us)
        if signs != self.troubles.before or self.troubles.present:
            self.troubles.look(signs, self._clock.read())
        if now_us - self._said_us >= HOUR_US:
            self._remind(now_us)

    def _see_to_disk(self, now_us: int) -> None:
        self.disk_asked_us = now_us
        described = self._store.describe()
        self._disk = described.get("disk_free_bytes"), described.get("disk_bytes")

    def _remind(self, now_us: int) -> None:
        self._said_us = now_us
        if not is_loopback(self.settings.host):
            say_insecure(self.settings)

    def _let_store_rest(self) -> None:
        """Let the store do its upkeep once no job is on its way, or after a tenth of a second at the latest."""
        rest = getattr(self._store, "rest", None)  # A third-party store may not have this method.
        for _ in range(QUIET_LOOKS if rest is not None else 0):
            if not self._inbox.queues and self._clock.read().mono_us - self._loop.round_us >= QUIET_US:
                break
            gevent.sleep(QUIET_US / SECOND_US)
        if rest is not None and not self._loop.is_stopping:
            rest()

    def see_to_memory(self) -> None:
        """Give freed memory back to the system, and refuse new jobs while the process uses more than it may."""
        used_mib = resident_mib()
        now_us = self._loop.round_us
        if used_mib > self.trimmed_mib + TRIM_MIB and now_us - self.trimmed_us >= TRIM_US and not self._inbox:
            give_back_memory()
            used_mib = self.trimmed_mib = resident_mib()
            self.trimmed_us = now_us
        self.trimmed_mib = min(self.trimmed_mib, used_mib)
        is_over = used_mib > self.settings.memory_max
        if is_over or BusyFor.MEMORY in self._engine.desk.busy:
            words = f"the server uses {used_mib} MiB of memory, more than it may" if is_over else ""
            self._engine.desk.note_busy(BusyFor.MEMORY, words)

    def signs(self, now_us: int) -> Signs:
        """Return the present signs of trouble."""
        desk, outage = self._engine.desk, self._loop.outage
        return Signs(
            is_full=desk.is_full or bool(getattr(self._store, "is_full", False)),
            is_stuck=self._engine.again.is_stuck,
            is_away=self._store.is_shared and (outage.lasts(now_us) or outage.is_stuck(now_us)),
            busy=desk.busy.get(BusyFor.MEMORY, "") or (desk.all_taken if desk.live >= desk.policy.live_max else ""),
            live=desk.live if desk.live >= NEARLY_FULL * desk.policy.live_max else 0,  # Signs that stay the same are no news.
            live_max=desk.policy.live_max,
            free_bytes=self._disk[0],
            disk_bytes=self._disk[1],
            slow_turns=self._loop.slow_turns,
            shed=self._connections.shed,
            hooks_dropped=self._runner.dropped,
            lines_lost=lines_lost(),
        )


def resident_mib() -> int:
    """Return the MiB that this process holds and the system cannot take back; 0 where the system does not tell."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") >> 20


def is_loopback(host: str) -> bool:
    """Return whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def say_insecure(settings: Any) -> None:
    """Remind the operator in the log that the ports are open to everybody."""
    log.warning("INSECURE: the ports on %s take commands from anybody who reaches them", settings.host)


def lines_lost() -> int:
    """Return how many lines the handlers of our log could not write, as far as they count them."""
    return sum(getattr(handler, "lost", 0) for handler in logging.getLogger("givalia").handlers)
