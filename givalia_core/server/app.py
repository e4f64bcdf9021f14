"""The server: sockets and greenlets round the engine.

One greenlet turns the queue; one for each connection reads. Every greenlet has an owner that ends it. The order of
stopping: refuse new connections and new jobs; let the turn that runs finish and its answers leave; tell the plugins; sync
and close the store. A store that fails ends the process at once and answers nobody: what is on disk is then unknown.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import gevent
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from givalia_core import forks, ports
from givalia_core import hooks as hooks_room
from givalia_core.clock import SECOND_US, Clock, SystemClock, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.words import HOLDS
from givalia_core.errors import SettingsInvalid, ShuttingDown, StoreError
from givalia_core.hooks import HOOKS, Hooks
from givalia_core.printable import without_secrets
from givalia_core.protocol.session import Port
from givalia_core.server import peers
from givalia_core.server.chores import Chores, is_loopback, lines_lost, say_insecure
from givalia_core.server.connections import Connections
from givalia_core.server.delivery import Delivery
from givalia_core.server.hookrunner import HookRunner
from givalia_core.server.inbox import Inbox
from givalia_core.server.inside import Inside
from givalia_core.server.loop import Loop
from givalia_core.server.stores import open_store
from givalia_core.settings import ServerSettings
from givalia_core.store.shared import as_shared
from givalia_core.threads import thread_now
from givalia_core.version import __version__

DRAIN_S: Final = 6.0
ROUND_US: Final = 5 * SECOND_US  # The queue loop turns at least once a second, and more often if there is work.
REFUSE_S: Final = 0.25
# Workers count their leases by the length they were told; a shorter one would end leases that they still believe in.
_FIXED: Final = (
    "host", "port", "worker_port", "insecure", "store", "create", "store_on_network", "store_unsafe", "hold", "lease",
    "plugins",
)  # fmt: skip

log = logging.getLogger("givalia.server")


class Server:
    """A Givalia server in this process; use `start` and `stop`, or `serve_forever`.

    Args:
        settings: See `docs/settings.md`; the defaults listen on loopback and keep the queue in the user's state folder.
        plugins: Plugin objects besides the installed ones.
        clock: The source of time; tests bring their own.

    After `start`, `client_port` and `worker_port` are the ports that are open (useful when the settings say 0).
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        plugins: Sequence[object] = (),
        clock: Clock | None = None,
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.settings = settings or ServerSettings()
        self._clock = clock or SystemClock()
        self._on_failure = on_failure or _die
        installed = [found.plugin for found in hooks_room.discover(self.settings.plugins) if found.plugin is not None]
        self.hooks = Hooks([*installed, *plugins])
        self._runner = HookRunner(self.hooks)
        self._wake = Event()
        self._inbox = Inbox()
        self._connections = Connections(self.settings, self._clock, self._inbox, self._wake.set)
        self._home = forks.Home("server")
        self._was_stop_asked = False
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._listeners: list[StreamServer] = []
        self.client_port = 0
        self.worker_port = 0

    # Starting and stopping.

    def start(self) -> None:
        """Open the store, then the ports. On return, commands are taken.

        Raises:
            SettingsInvalid: The address is not loopback and `insecure` is not set, or this machine does not have it.
            StoreError: The store cannot be opened; see its class.
            AddressInUse: Another program has a port; this is an OSError.
            OSError: A port cannot be bound.
        """
        self.open()
        self.listen()

    def open(self) -> None:
        """Open the store, the longer half of `start`; the errors are those of `start`."""
        self._home.check()
        self._refuse_open_address()
        self._refuse_taken_ports()
        self._store = open_store(self.settings)
        self._home = forks.Home("server")  # The server may have been made in a process that has forked since.
        forks.register(self)
        opened = self._store.open(unsafe=self.settings.store_unsafe)
        shared = as_shared(self._store)
        self._timer = TimerClock.start(self._clock, opened.mark) if shared is None else shared.timer
        if shared is not None:
            shared.wake = self._wake.set
        self._warn_of_clock(opened.mark)
        if opened.is_new:
            log.warning("a new, empty store was made at %s", without_secrets(self.settings.store))
        if self._store.durability == "memory" and not self.settings.store.startswith("memory:"):
            log.warning("the store lies in the memory of this machine and keeps nothing over its restart; answers say memory")
        if opened.recovered:
            log.info("the store was not closed by its last server: %d pages of its log were recovered", opened.recovered)
        self._engine = turn.start(self._store, opened, self._timer, self._clock, self.settings.policy(), random.Random())
        desk = self._engine.desk
        desk.listening = frozenset(name for name in HOOKS if self.hooks.listens(name))
        desk.tells_news = True
        desk.is_holding = self.settings.hold
        desk.peers = self._connections.peers
        self._connections.workers = desk.routing.sessions
        self._started_us = self._clock.read().wall_us
        self._inside = Inside(self._inbox, self._wake.set, self._home.check)
        delivery = Delivery(self._connections, self._inbox, self._runner, self._inside.answer)
        self._loop = Loop(
            self._engine, self._store, self._timer, self._clock, self._inbox, self._connections, delivery, self._about,
            self._wake,
        )  # fmt: skip
        self._chores = Chores(
            self.settings, self._clock, self._engine, self._store, self._inbox, self._connections, self._loop, self._runner
        )
        self._loop.alarm.open()

    def listen(self) -> None:
        """Open the ports of a server whose store is open, the other half of `start`; the errors are those of `start`."""
        try:
            self.client_port = self._engine.desk.client_port = self._listen(Port.CLIENT, self.settings.port)
            self.worker_port = self._listen(Port.WORKER, self.settings.worker_port)
        except (OSError, SettingsInvalid):
            self.stop()
            raise
        self._greenlets = [self._spawn(self._loop.run), self._spawn(self._chores.run)]
        self._runner.call("server_started", server=self)
        log.info(
            "listening on %s: clients %d, workers %d; store %s (%s)",
            self.settings.host, self.client_port, self.worker_port, without_secrets(self.settings.store),
            self._store.durability,
        )  # fmt: skip
        if self.settings.hold:
            log.warning("%s", HOLDS)

    def _refuse_open_address(self) -> None:
        if not is_loopback(self.settings.host):
            if not self.settings.insecure:
                raise SettingsInvalid(
                    f"{self.settings.host} is not a loopback address, and there is no authentication yet:"
                    " anybody who reaches the ports could run jobs. Say --insecure to do it all the same"
                )
            say_insecure(self.settings)

    def _warn_of_clock(self, mark: Any) -> None:
        behind_us = 0 if mark is None else max(mark.wall_us - self._clock.read().wall_us, 0)
        self._clock_behind_us = behind_us
        if behind_us > 300 * SECOND_US:
            log.warning(
                "the wall clock is %d s behind the newest record: jobs with an absolute time wait for it",
                behind_us // SECOND_US,
            )

    def _refuse_taken_ports(self) -> None:
        """Check the ports before the store is opened: opening may create a store that nobody wants."""
        for port, number in ((Port.CLIENT, self.settings.port), (Port.WORKER, self.settings.worker_port)):
            if number:
                with self._refuses_address(port, number):
                    ports.bound(self.settings.host, number).close()

    def _listen(self, port: Port, number: int) -> int:
        with self._refuses_address(port, number):  # gevent does not close a socket that it cannot bind.
            bound = ports.bound(self.settings.host, number, socket.socket, backlog=1024)
        listener = StreamServer(bound, partial(self._accept, port))
        listener.start()
        self._listeners.append(listener)
        return int(listener.server_port or 0)

    def _accept(self, port: Port, sock: socket.socket, address: tuple[Any, ...]) -> None:
        if self._home.is_left:  # The connection was accepted just before the fork.
            forks.detach(sock.fileno())
        else:
            self._connections.accept(port, sock, address)

    @contextlib.contextmanager
    def _refuses_address(self, port: Port, number: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                raise SettingsInvalid(f"host is an address of this machine, not {self.settings.host!r}") from None
            if error.errno in (errno.EACCES, errno.EPERM):
                raise SettingsInvalid(f"the port for {port.value}s is one that this user may open, not {number}") from None
            if error.errno == errno.EADDRINUSE:
                flag = "-p" if port is Port.CLIENT else "-w"
                raise ports.in_use(self.settings.host, number, f"{port.value}s", flag) from None
            raise

    def _spawn(self, function: Callable[[], None]) -> gevent.Greenlet[..., None]:
        """Spawn a greenlet; if it raises, pass the error to `on_failure`, which logs the traceback and stops the server."""

        def run() -> None:
            try:
                function()
            except gevent.GreenletExit:
                raise
            except BaseException as error:
                if not self._home.is_left:
                    self._on_failure(error)

        return gevent.spawn(run)

    def after_fork(self) -> None:
        """Stop everything here, in a fork: the ports, connections and files belong to the parent alone."""
        self._home.leave()
        for listener in self._listeners:
            listener.stop_accepting()
            forks.detach(listener.socket.fileno())
        self._connections.leave()
        self._loop.alarm.close()
        self._runner.leave()
        if thread_now() == self._inside.thread:  # A fork of another thread does not have the greenlets.
            gevent.killall(self._greenlets, block=False)

    def reload(self, settings: ServerSettings) -> list[str]:
        """Apply the settings that can change while the server runs: all but addresses, store, hold, plugins and lease.

        Returns:
            The names of settings that have changed and need a restart.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        kept = {name: getattr(self.settings, name) for name in _FIXED}
        changed = [name for name, value in kept.items() if getattr(settings, name) != value]
        self.settings = replace(settings, **kept)
        self._connections.settings = self._chores.settings = self.settings
        self._engine.desk.policy = self.settings.policy()
        return changed

    def drain(self) -> None:
        """Take no new jobs and lend none; running jobs can still be reported and asked about.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        self._engine.desk.is_draining = True
        self._wake.set()

    def stop(self) -> None:
        """Stop in the module's order; on return the store is synced and free for another server. Safe to call twice.

        In a fork `stop` does nothing, and the log says so once.
        """
        if self._home.is_left:
            self._home.warn()
            return
        if self._was_stop_asked:
            return
        self._was_stop_asked = True
        self.drain()
        if self._greenlets:
            self._runner.call("server_stopping", server=self)
        for listener in self._listeners:
            listener.close()
        if self._connections:
            # Peers that send now get the reason before reading stops.
            gevent.sleep(REFUSE_S)
        self._loop.is_stopping = True
        self._connections.stop_reading()
        self._wake.set()
        if self._greenlets:
            self._greenlets[0].join(DRAIN_S)
        gevent.killall(self._greenlets)
        self._connections.say_goodbye()
        self._runner.stop(1.0)
        self._inside.close()
        self._loop.alarm.close()
        self._connections.journal.close()
        self._store.close()
        forks.unregister(self)

    def is_turning(self) -> bool:
        """Return whether the queue loop, on which everything here depends, has turned within the last few seconds.

        A turn that waits for a shared store counts: clients are told, its wait ends by itself, and a new process would wait.
        """
        if self._home.is_left:
            return False
        now_us = self._clock.read().mono_us
        return now_us - self._loop.round_us < ROUND_US or (self._store.is_shared and self._loop.outage.is_stuck(now_us))

    def serve_forever(self) -> None:
        """Serve until `stop`; call after `start`.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        self._greenlets[0].join()
        self._home.check()

    # Questions from code in this process.

    def info(self) -> dict[str, Any]:
        """Return what `givalia info` shows: durability, limits, counts of jobs by module and state. From any thread.

        Raises:
            ShuttingDown: The server is stopping.
            Busy: A shared store does not answer for now.
            WrongProcess: This is a fork.
        """
        self._home.check()
        if self._loop.is_stopping:
            raise ShuttingDown("the server is stopping")
        return self._inside.info()

    def troubles(self) -> dict[str, dict[str, Any] | None]:
        """Return each trouble that the server can have: its `since_us` and `words`, or None if absent. From any thread.

        No answer of the store is needed, so this works when `info` does not.
        """
        return self._chores.troubles.describe()

    def _about(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_us": self._started_us,
            "clock_behind_us": self._clock_behind_us,
            "busy": self._engine.desk.why_busy,
            "connections": len(self._connections),
            "clients": peers.clients(self._connections, self._clock.read()),
            "plugins": {"raised": dict(self.hooks.raised), "silenced": sorted(self.hooks.silenced)},
            "hooks_dropped": self._runner.dropped,
            "log_lines_lost": lines_lost(),
            "connections_shed": self._connections.shed,
            "troubles": self._chores.troubles.describe(),
        }


def _die(error: BaseException) -> None:
    """Stop at once: requests without an answer must not be answered now."""
    log.critical("the server stops: %s: %s", type(error).__name__, error, exc_info=error)
    logging.shutdown()
    os._exit(error.exit_code if isinstance(error, StoreError) else 70)
