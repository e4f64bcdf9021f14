"""The server: sockets and greenlets round the engine.

One greenlet turns the queue; one for each connection reads. Nothing is spawned without somebody who ends it. The order of
stopping: refuse new connections and new jobs; let the turn that runs finish and its answers leave; tell the plugins; sync
and close the store. A store that fails ends the process at once and answers nobody: what is on disk is then unknown.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import gevent
import msgpack
from gevent import socket
from gevent.event import Event
from gevent.server import StreamServer

from givalia_core import forks, ports
from givalia_core import hooks as hooks_room
from givalia_core.clock import SECOND_US, Clock, Now, SystemClock, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.records import Gone, Input, Reply
from givalia_core.engine.words import HOLDS
from givalia_core.errors import GivaliaError, SettingsInvalid, ShuttingDown, StoreAway, StoreError
from givalia_core.hooks import HOOKS, Hooks
from givalia_core.printable import without_secrets
from givalia_core.program import give_back_memory
from givalia_core.protocol.answers import Answer, Described
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Info, Kind
from givalia_core.protocol.session import Port, Session
from givalia_core.server import outage, peers
from givalia_core.server.alarm import Alarm
from givalia_core.server.connection import Connection
from givalia_core.server.delivery import INSIDE, Delivery
from givalia_core.server.hookrunner import HookRunner
from givalia_core.server.inbox import COMMANDS_PER_TURN, Inbox
from givalia_core.server.journal import Journal
from givalia_core.server.stores import open_store
from givalia_core.server.troubles import Signs, Troubles, lines_lost
from givalia_core.server.unread import STALLED_US, Unread
from givalia_core.settings import ServerSettings
from givalia_core.steady import survives
from givalia_core.store.base import as_shared
from givalia_core.threads import thread_now
from givalia_core.version import __version__

DRAIN_S: Final = 6.0
HOUR_US: Final = 3_600 * SECOND_US
POLL_S: Final = 0.0001
ROUND_US: Final = 5 * SECOND_US  # The loop of the queue comes round every second, and oftener if there is anything to do.
REFUSE_S: Final = 0.25
GOODBYE_S: Final = 1.0
# Workers count their leases by the length they were told; a shorter one would end leases that they still believe in.
_FIXED: Final = (
    "host", "port", "worker_port", "insecure", "store", "create", "store_on_network", "store_unsafe", "hold", "lease",
    "plugins",
)  # fmt: skip
SLOW_TURN_US: Final = SECOND_US
TRIM_US: Final = 60 * SECOND_US
TRIM_MIB: Final = 32  # So much more than was left the last time is worth some milliseconds.
QUIET_US: Final = 5_000
QUIET_LOOKS: Final = 20
MAKE_ROOM_US: Final = SECOND_US // 10  # How often stalled connections are looked for while commands wait for room.
DISK_EACH_US: Final = 10 * SECOND_US
SLOW_WORDS: Final = "the store takes over a second to sync; hold back"

log = logging.getLogger("givalia.server")


class Server:
    """A Givalia server in this process; use `start` and `stop`, or `serve_forever`.

    Args:
        settings: See `docs/settings.md`; the defaults listen on loopback and keep the queue in the user's state folder.
        plugins: Plugin objects besides the installed ones.
        clock: The time; tests bring their own.

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
        self._connections: dict[int, Connection] = {}
        self._per_peer: Counter[str] = Counter()
        self._last_number = INSIDE
        self._inbox = Inbox()
        self._unread = Unread()
        self._journal = Journal(self._peer_of)
        self._delivery = Delivery(self._connections, self._inbox, self._unread, self._runner, self._journal)
        self._last_inside = 0
        self._wake = Event()
        self._alarm = Alarm(self._wake)
        self._outage = outage.Outage()
        self._troubles = Troubles()
        self._shed = 0  # Connections that were refused or closed for lack of room.
        self._slow_turns = 0
        self._disk_asked_us = -DISK_EACH_US
        self._disk: tuple[int | None, int | None] = None, None  # Of the store: free bytes, and all of them.
        self._home = forks.Home("server")
        self._thread = 0
        self._was_stop_asked = False
        self._is_stopping = False
        self._round_us = 0
        self._trimmed_us = self._trimmed_mib = 0  # When memory was given back last, and how much was left.
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._listeners: list[StreamServer] = []
        self.client_port = 0
        self.worker_port = 0

    # Starting and stopping.

    def start(self) -> None:
        """Open the store, then the ports. On return, commands are taken.

        Raises:
            SettingsInvalid: An address that is not loopback, without `insecure`, or that this machine does not have.
            StoreError: The store cannot be opened; see its class.
            AddressInUse: Somebody has a port; it is an OSError.
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
        self._home = forks.Home("server")  # It may have been made in another process, which has then forked.
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
        self._engine.desk.about = self._about
        self._engine.desk.peer = self._peer
        self._engine.desk.is_clogged = self._is_clogged
        self._engine.desk.listening = frozenset(name for name in HOOKS if self.hooks.listens(name))
        self._engine.desk.tells_news = True
        self._engine.desk.is_holding = self.settings.hold
        self._started_us = self._clock.read().wall_us
        self._thread = thread_now()
        self._other_threads: deque[tuple[Any, Future[Answer]]] = deque()
        self._from_threads = gevent.get_hub().loop.async_()
        self._from_threads.start(self._take_from_threads)
        self._alarm.open()

    def listen(self) -> None:
        """Open the ports of a server whose store is open, the other half of `start`; the errors are those of `start`."""
        try:
            self.client_port = self._engine.desk.client_port = self._listen(Port.CLIENT, self.settings.port)
            self.worker_port = self._listen(Port.WORKER, self.settings.worker_port)
        except (OSError, SettingsInvalid):
            self.stop()
            raise
        self._greenlets = [self._spawn(self._turn_forever), self._spawn(self._look_after)]
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
            self._say_insecure()

    def _say_insecure(self) -> None:
        log.warning("INSECURE: the ports on %s take commands from anybody who reaches them", self.settings.host)

    def _warn_of_clock(self, mark: Any) -> None:
        behind_us = 0 if mark is None else max(mark.wall_us - self._clock.read().wall_us, 0)
        self._clock_behind_us = behind_us
        if behind_us > 300 * SECOND_US:
            log.warning(
                "the wall clock is %d s behind the newest record: jobs with an absolute time wait for it",
                behind_us // SECOND_US,
            )

    def _refuse_taken_ports(self) -> None:
        """Look before the store is opened, which may make one that is wanted by nobody."""
        for port, number in ((Port.CLIENT, self.settings.port), (Port.WORKER, self.settings.worker_port)):
            if number:
                with self._refuses_address(port, number):
                    ports.bound(self.settings.host, number).close()

    def _listen(self, port: Port, number: int) -> int:
        with self._refuses_address(port, number):  # Not by gevent, which leaves a socket that it cannot bind to the collector.
            bound = ports.bound(self.settings.host, number, socket.socket, backlog=1024)
        listener = StreamServer(bound, lambda sock, address: self._accept(port, sock, address))
        listener.start()
        self._listeners.append(listener)
        return int(listener.server_port or 0)

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
        """Own a greenlet: one that dies unasked stops the server, its traceback first."""

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
        """In a fork: nothing here goes on, and the ports, connections and files are the parent's alone."""
        self._home.leave()
        for listener in self._listeners:
            listener.stop_accepting()
            forks.detach(listener.socket.fileno())
        for connection in self._connections.values():
            connection.leave()
        self._alarm.close()
        self._runner.leave()
        if thread_now() == self._thread:  # Otherwise their thread is not there, and nor are they.
            gevent.killall(self._greenlets, block=False)

    def reload(self, settings: ServerSettings) -> list[str]:
        """Take over what can change while the server runs: all but the addresses, the store, the plugins and the lease.

        Returns:
            The names of settings that have changed and need a restart.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        kept = {name: getattr(self.settings, name) for name in _FIXED}
        changed = [name for name, value in kept.items() if getattr(settings, name) != value]
        self.settings = replace(settings, **kept)
        self._engine.desk.policy = self.settings.policy()
        return changed

    def drain(self) -> None:
        """Take no new job and lend none; what runs may still be reported, and may be asked about.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        self._engine.desk.is_draining = True
        self._wake.set()

    def stop(self) -> None:
        """Stop as the module says; the store is synced and free for another server on return. Safe to call twice.

        In a fork it does nothing, and the log says so once.
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
            # Whoever is sending now is told why, before nothing more is read.
            gevent.sleep(REFUSE_S)
        self._is_stopping = True
        for connection in list(self._connections.values()):
            connection.stop_reading()
        self._wake.set()
        if self._greenlets:
            self._greenlets[0].join(DRAIN_S)
        gevent.killall(self._greenlets)
        self._say_goodbye()
        self._runner.stop(1.0)
        self._take_from_threads()
        for future in self._delivery.asked_inside.values():
            future.set_exception(ShuttingDown("the server has stopped"))
        self._from_threads.close()
        self._alarm.close()
        self._journal.close()
        self._store.close()
        forks.unregister(self)

    def _say_goodbye(self) -> None:
        """Let the last answers leave before the connections end."""
        connections = list(self._connections.values())
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(GOODBYE_S):
            while any(connection.has_unsent for connection in connections):
                gevent.sleep(0.01)
        for connection in connections:
            connection.end_sending()
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(GOODBYE_S / 4):
            while self._connections:
                gevent.sleep(0.01)
        for connection in connections:
            connection.close()

    def is_turning(self) -> bool:
        """Whether the loop of the queue, on which everything here depends, has come round within the last seconds.

        A turn that waits for a shared store counts: clients are told so, it ends by itself, and a new process would wait, too.
        """
        if self._home.is_left:
            return False
        now_us = self._clock.read().mono_us
        return now_us - self._round_us < ROUND_US or (self._store.is_shared and self._outage.is_stuck(now_us))

    def serve_forever(self) -> None:
        """Serve until `stop`; call after `start`.

        Raises:
            WrongProcess: This is a fork.
        """
        self._home.check()
        self._greenlets[0].join()
        self._home.check()

    # Connections.

    def _accept(self, port: Port, sock: socket.socket, address: tuple[Any, ...]) -> None:
        if self._home.is_left:  # It was accepted just before the fork.
            forks.detach(sock.fileno())
            return
        peer = str(address[0])
        settings = self.settings
        is_busy = (
            len(self._connections) >= settings.connections_max or self._per_peer[peer] >= settings.connections_per_peer_max
        )
        self._shed += is_busy
        silent = [connection for connection in self._connections.values() if connection.is_silent]
        if len(silent) >= settings.connections_silent_max:
            # Whoever has said nothing for longest makes room: it has the least to lose.
            self._shed += 1
            oldest = min(silent, key=lambda connection: connection.opened_us)
            self._journal.refuse(oldest.peer, oldest.session.port.value, "it has said nothing yet, and others need the room")
            oldest.close()
        self._last_number += 1
        connection = Connection(
            self._last_number,
            sock,
            peer,
            Session(port, self._last_number, is_busy=is_busy, read_clock=self._clock.read),
            self._submit,
            self._ended,
            lambda: self._clock.read().mono_us,
            self._unread,
            self._note_reading,
        )
        connection.peer_port = address[1] if len(address) > 1 else 0
        self._connections[connection.number] = connection
        self._per_peer[peer] += 1
        connection.run()

    def _note_reading(self, connection: Connection) -> None:
        """A peer has fallen behind with reading its answers, or has read some."""
        if connection.is_closed or connection.session.port is Port.WORKER:
            pass
        elif connection.is_behind:
            self._inbox.hold(connection.number)
        else:
            self._inbox.release(connection.number)
        self._wake.set()

    def _make_room(self) -> None:
        """While the budget of unread answers is low: close the connection whose peer has stood still for longest."""
        if not (self._unread.is_low or self._inbox.is_short):
            return
        behind = [connection for connection in self._connections.values() if connection.unsent_since_us]
        stalled = min(behind, key=lambda connection: connection.unsent_since_us, default=None)
        if stalled is not None and self._clock.read().mono_us - stalled.unsent_since_us >= STALLED_US:
            self._shed += 1
            stalled.close("it does not read, and others need the room")

    def _peer_of(self, number: int) -> str:
        connection = self._connections.get(number)
        return "" if connection is None else connection.peer

    def _is_clogged(self, number: int) -> bool:
        connection = self._connections.get(number)
        return connection is not None and connection.is_clogged

    def _ended(self, connection: Connection) -> None:
        if self._connections.pop(connection.number, None) is not None:
            if connection.session.refusal:
                self._journal.refuse(connection.peer, connection.session.port.value, connection.session.refusal)
            elif connection.ended_for:
                self._journal.end(connection.peer, connection.ended_for)
            self._per_peer[connection.peer] -= 1
            if not self._per_peer[connection.peer]:
                del self._per_peer[connection.peer]
            worker = self._engine.desk.routing.sessions.get(connection.number)
            self._submit(Gone(connection.number, 1 if worker is None else max(len(worker.announced), 1)))

    def _look_after(self) -> None:
        """Once a second: end connections whose deadlines have passed, see to memory; once an hour: say what is insecure."""
        said_us = self._clock.read().mono_us
        while True:
            gevent.sleep(1)
            with survives("looking after the connections", log):
                said_us = self._look_at_all(said_us)
            self._let_store_rest()

    def _look_at_all(self, said_us: int) -> int:
        """Do what `_look_after` says, once; returns when the insecure address was last spoken of."""
        now_us = self._clock.read().mono_us
        for connection in list(self._connections.values()):
            why = connection.overdue(now_us)
            if why:
                connection.close(why)
        self._journal.look()
        self._make_room()
        self._see_to_memory()
        self._see_to_disk(now_us)
        self._troubles.look(self._signs(now_us), self._clock.read())
        if self._outage.is_stuck(now_us):
            self._put_off(self._inbox.take_out(outage.PUT_OFF))
        if now_us - said_us >= HOUR_US and not is_loopback(self.settings.host):
            said_us = now_us
            self._say_insecure()
        return said_us

    def _let_store_rest(self) -> None:
        """Let the store look after itself when no job is on its way; if there always is one, after a tenth of a second."""
        rest = getattr(self._store, "rest", None)  # A store of somebody else may be older than this.
        for _ in range(QUIET_LOOKS if rest is not None else 0):
            if not self._inbox and self._clock.read().mono_us - self._round_us >= QUIET_US:
                break
            gevent.sleep(QUIET_US / SECOND_US)
        if rest is not None and not self._is_stopping:
            rest()

    def _see_to_memory(self) -> None:
        used_mib = resident_mib()
        now_us = self._round_us
        if used_mib > self._trimmed_mib + TRIM_MIB and now_us - self._trimmed_us >= TRIM_US and not self._inbox:
            give_back_memory()
            used_mib = self._trimmed_mib = resident_mib()
            self._trimmed_us = now_us
        self._trimmed_mib = min(self._trimmed_mib, used_mib)
        if used_mib > self.settings.memory_max:
            self._engine.desk.busy = f"the server uses {used_mib} MiB of memory, more than it may"
        elif self._engine.desk.busy.endswith("than it may"):
            self._engine.desk.busy = ""

    def _see_to_disk(self, now_us: int) -> None:
        """Ask from time to time how full the disk of the store is; that of a database is for others to watch."""
        if now_us >= self._disk_asked_us + DISK_EACH_US and not self._store.is_shared:
            self._disk_asked_us = now_us
            described = self._store.describe()
            self._disk = described.get("disk_free_bytes"), described.get("disk_bytes")

    def _signs(self, now_us: int) -> Signs:
        """What shows in what trouble the server is."""
        desk = self._engine.desk
        return Signs(
            is_full=desk.is_full or bool(getattr(self._store, "is_full", False)),
            is_stuck=self._engine.again.is_stuck,
            is_away=self._outage.lasts(now_us) or self._outage.is_stuck(now_us),
            busy=("" if desk.busy == SLOW_WORDS else desk.busy) or desk.all_taken,
            live=desk.live,
            live_max=desk.policy.live_max,
            free_bytes=self._disk[0],
            disk_bytes=self._disk[1],
            slow_turns=self._slow_turns,
            shed=self._shed,
            hooks_dropped=self._runner.dropped,
            lines_lost=lines_lost(),
        )

    # The queue.

    def _submit(self, given: Input) -> None:
        self._inbox.put(given)
        self._wake.set()

    def _turn_forever(self) -> None:
        while not (self._home.is_left or (self._is_stopping and not self._inbox and not self._engine.questions.has_work)):
            self._wake.clear()
            now = self._timer.now(self._clock.read())
            self._round_us = now.mono_us
            self._make_room()
            inputs = self._inbox.take(self._unread.left)
            self._outage.begin_turn(now.mono_us)
            try:
                self._delivery.deliver(turn.turn(self._engine, self._store, self._timer, inputs, self._clock), now)
                self._store.tidy()
                self._note_pace(self._clock.read().mono_us - now.mono_us, inputs)
                if answers := turn.walk(self._engine, self._store, self._timer, self._clock):
                    self._delivery.deliver(answers, now)
            except StoreAway as error:
                self._wait_for_store(error, now)
            else:
                self._outage.end_turn()
                self._rest(is_loaded=len(inputs) > 1)

    def _wait_for_store(self, error: StoreAway, now: Now) -> None:
        """The store is away: tell clients to come later if that lasts, and wait until it is asked again."""
        retry_s = self._outage.fail_turn(error, now.mono_us)
        if self._outage.lasts(self._clock.read().mono_us):
            self._put_off(self._engine.again.put_off(outage.PUT_OFF))
        gevent.sleep(retry_s)

    def _rest(self, *, is_loaded: bool) -> None:
        """Let connections be read, and return when there is something to do."""
        if self._inbox or is_loaded or self._engine.questions.has_work:
            # A sleep of nothing would only let other callbacks run: readers whose data is there already. This lets the
            # loop look at every socket, timer and signal, so that a flood on some starves none.
            gevent.sleep(POLL_S)
            return
        wait_us = self._engine.wake_in_us(self._timer.now(self._clock.read()))
        if self._inbox.is_short:
            wait_us = min(wait_us, MAKE_ROOM_US)
        if wait_us > 0:
            self._alarm.wait(wait_us)
        else:
            gevent.sleep(0)

    def _put_off(self, refused: Iterable[Asked]) -> None:
        """Tell clients to come again when the store is back."""
        now = self._timer.now(self._clock.read())
        self._delivery.deliver([Reply(asked.conn, asked.request, [outage.BUSY]) for asked in refused], now)

    def _note_pace(self, turn_us: int, inputs: Sequence[Input]) -> None:
        """A turn that took over a second means that the disk is slower than what arrives: producers are to hold back.

        A large frame that is alone in its turn says nothing about the disk, and a small one nothing about producers.
        """
        if turn_us > SLOW_TURN_US and not is_large(inputs):
            self._slow_turns += 1
        if len(inputs) == 1:
            return
        if turn_us > SLOW_TURN_US:
            self._engine.desk.busy = SLOW_WORDS
        elif self._engine.desk.busy == SLOW_WORDS:
            self._engine.desk.busy = ""

    # What code in this process may ask.

    def info(self) -> dict[str, Any]:
        """What `givalia info` shows: durability, limits, counts of jobs by module and state. From any thread or greenlet.

        Raises:
            ShuttingDown: The server is stopping.
            Busy: A shared store does not answer for now.
            WrongProcess: This is a fork.
        """
        self._home.check()
        if self._is_stopping:
            raise ShuttingDown("the server is stopping")
        future: Future[Answer] = Future()
        if thread_now() == self._thread:
            self._ask_inside(Info(), future)
            while not future.done():
                gevent.sleep(0.001)
                self._home.check()
        else:
            self._other_threads.append((Info(), future))
            self._from_threads.send()
        answer = future.result(timeout=10)
        if isinstance(answer, GivaliaError):
            raise answer
        assert isinstance(answer, Described)
        known: dict[str, Any] = msgpack.unpackb(answer.payload)
        return known

    def troubles(self) -> dict[str, dict[str, Any] | None]:
        """Every trouble that the server can be in itself: since when (`since_us`) and in `words`, or None. From any thread.

        It needs no answer of the store, so it is there when `info` is not.
        """
        return self._troubles.describe()

    def _take_from_threads(self) -> None:
        while self._other_threads:
            self._ask_inside(*self._other_threads.popleft())

    def _ask_inside(self, message: Any, future: Future[Answer]) -> None:
        self._last_inside += 1
        self._delivery.asked_inside[self._last_inside] = future
        self._submit(Asked(INSIDE, self._last_inside, Kind.INFO, [message]))

    def _peer(self, number: int) -> dict[str, Any]:
        connection = self._connections.get(number)
        return {} if connection is None else peers.peer(connection)

    def _about(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "started_us": self._started_us,
            "clock_behind_us": self._clock_behind_us,
            "busy": self._engine.desk.busy or self._engine.desk.all_taken,
            "connections": len(self._connections),
            "clients": peers.clients(self._connections.values(), self._clock.read()),
            "plugins": {"raised": dict(self.hooks.raised), "silenced": sorted(self.hooks.silenced)},
            "hooks_dropped": self._runner.dropped,
            "log_lines_lost": lines_lost(),
            "connections_shed": self._shed,
            "troubles": self._troubles.describe(),
        }


def is_large(inputs: Sequence[Input]) -> bool:
    """Return whether these inputs are one frame of many commands."""
    return len(inputs) == 1 and isinstance(inputs[0], Asked) and len(inputs[0].messages) > COMMANDS_PER_TURN


def resident_mib() -> int:
    """The memory that this process holds now and the system could not take back, in MiB; 0 where the system does not say."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") >> 20


def is_loopback(host: str) -> bool:
    """Whether an address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _die(error: BaseException) -> None:
    """Stop at once: nothing that was not answered may be answered now."""
    log.critical("the server stops: %s: %s", type(error).__name__, error, exc_info=error)
    logging.shutdown()
    os._exit(error.exit_code if isinstance(error, StoreError) else 70)
