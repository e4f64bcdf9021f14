"""The worker's link to a server, which runs where no job code can block it.

The link runs in the supervisor, a process without jobs; for a `Worker` inside a program, in a native thread with its own hub.
`LeaseCore` decides what to send and when to give leases up; the link moves the bytes.

The link never logs and never calls plugins or job code; it tells the foreman, on its own hub, what has happened.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import gevent
from gevent import get_hub
from gevent.event import Event

from givalia_core.clock import SECOND_US
from givalia_core.errors import ConnectionLost, GivaliaError, VersionMismatch
from givalia_core.protocol import frames
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import Answer
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Announce, Credit, Join, Process, Progress
from givalia_core.steady import quietly, survives
from givalia_core.threads import thread_now
from givalia_core.worker.link.lease_core import LeaseCore
from givalia_core.worker.link.line import RECEIVE_BYTES, ServerLine
from givalia_core.worker.link.records import Connected, Disconnected, LinkEvent, Report, Resumed
from givalia_core.worker.link.servers import Servers

log = logging.getLogger("givalia.worker")

AGENT: Final = "givalia-worker"
CONNECT_S: Final = 5.0
FENCE_CHECK_S: Final = 0.25


class Bell:
    """A queue of items from other threads for the hub of this thread, which it wakes.

    Args:
        take: Takes the items, a batch at a time.
    """

    def __init__(self, take: Callable[[list[Any]], object]) -> None:
        """Create the bell on the hub that will take the items."""
        self._take = take
        self._left: deque[Any] = deque()
        self._rung = Event()
        self._watcher = get_hub().loop.async_()
        self._watcher.start(self._rung.set)
        self._taking = gevent.spawn(self._take_forever)
        self._wake: Callable[[], None] = self._watcher.send

    @property
    def waiting(self) -> int:
        """The number of items that wait."""
        return len(self._left)

    def ring(self, *left: Any) -> None:
        """Pass items; from any thread."""
        self._left.extend(left)
        self._wake()

    def ring_call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        """Call a function on the hub; from any thread."""
        self.ring(partial(call, *arguments, **options))

    def _take_forever(self) -> None:
        left = self._left
        while True:
            self._rung.wait()
            self._rung.clear()
            while left:
                calls = [left.popleft()] if isinstance(left[0], partial) else []
                notes: list[Any] = []
                while left and not calls and not isinstance(left[0], partial):
                    notes.append(left.popleft())
                try:
                    calls[0]() if calls else self._take(notes)
                except Exception as error:
                    words = "taking what another thread has left: %s: %s"
                    quietly(log.error, words, type(error).__name__, error)

    def fall_silent(self) -> None:
        """In a fork: drop all items, because the taker is in the parent."""
        self._wake = lambda: None
        self._left = deque(maxlen=0)

    def leave(self) -> None:
        """In a fork: drop the waiting items, which the parent takes."""
        self._left.clear()
        self._taking.kill(block=False)

    def close(self) -> None:
        """Take nothing more."""
        self._taking.kill()
        self._watcher.close()


class Link:
    """The link. `run` needs a greenlet or native thread of its own; the other methods may be called from any thread."""

    def __init__(
        self, addresses: Sequence[Address], join: Join, announced: list[Announce], deliver: Callable[[LinkEvent], None]
    ) -> None:
        self.core = LeaseCore(join, announced)
        self._servers = Servers(addresses)
        self._deliver = deliver
        self._is_stopping = False
        self._wake: Event | None = None  # Wakes the sending greenlet; None while there is none.
        self._bell: Bell | None = None
        self._thread = 0

    def send(self, *said: Report | Progress | Credit | list[Announce] | list[Process]) -> None:
        """Send reports (until they are answered), hints, the credits, the modules or the processes; return at once."""
        if self._bell is not None and thread_now() != self._thread:
            self._bell.ring(*said or (None,))
            return
        for message in said:
            for event in self.core.say(message):
                self._deliver(event)
        if self._wake is not None:
            self._wake.set()

    def stop(self) -> None:
        """Close the connection and end `run`, once every report is answered or no server is in reach."""
        self._is_stopping = True
        self.send()

    def run(self) -> None:
        """Keep the link up until `stop`."""
        self._thread = thread_now()
        self._wake, self._bell = wake, bell = Event(), Bell(lambda said: self.send(*filter(None, said)))
        fencing = gevent.spawn(self._fence_forever)
        try:
            self._stay_connected(wake)
        finally:
            fencing.kill()
            self._wake = self._bell = None
            bell.close()

    # Connecting.

    def _stay_connected(self, wake: Event) -> None:
        servers = self._servers
        while not self._is_stopping or (servers.has_others and self.core.held):  # Another server can take the reports.
            line: ServerLine | None = None
            try:
                with gevent.Timeout(CONNECT_S):
                    line = ServerLine(servers.present, self.core)
                    self._join(line)
                self._talk(line, wake)
                return
            except (Exception, gevent.Timeout) as error:  # Whatever the server sends, the link tries again.
                failure = _explained(error, line)
                has_mismatch = isinstance(failure, VersionMismatch)
                why = f"{VersionMismatch.code if has_mismatch else type(failure).__name__}: {failure}"
            finally:
                if line is not None:
                    line.close()
                up_us = self.core.up_us
                self.core.end()
            up_s = 0.0 if up_us is None else time.monotonic() - up_us / SECOND_US
            address = servers.present
            have_all_failed, rest_s = servers.failed(up_s, has_mismatch=has_mismatch)
            if have_all_failed and self._is_stopping:
                return
            self._deliver(Disconnected(address, why, servers.present, rest_s))
            self._rest(wake, rest_s)

    def _join(self, line: ServerLine) -> None:
        """Say hello and JOIN; `_talk` sends the frames that follow the answer."""
        line.greet(AGENT)
        core = self.core
        core.begin(has_others=self._servers.has_others)
        while not core.has_joined:
            while (leaving := core.next_frame(_now_us())) is not None:
                number, kind, said = leaving
                line.send(frames.encode(kind, number, map(item, said)))
            for arrived in line.receive():
                if isinstance(arrived, Answer):
                    core.answered(*arrived, _now_us())
        self._servers.join(core.client_port)

    def _rest(self, wake: Event, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while not self._is_stopping and (left_s := end_s - time.monotonic()) > 0:
            wake.clear()
            wake.wait(left_s)

    # Talking.

    def _talk(self, line: ServerLine, wake: Event) -> None:
        """Send all frames in time, while another greenlet reads; end when the link stops and every frame is answered."""
        core, send = self.core, line.channel.socket.send
        reading = gevent.spawn(self._read_forever, line, wake)
        try:
            while not (self._is_stopping and core.is_settled()):
                wake.clear()
                while (leaving := core.next_frame(time.monotonic_ns() // 1000)) is not None:
                    number, kind, said = leaving
                    data = frames.encode(kind, number, map(item, said))
                    try:
                        sent = send(data)
                    except BlockingIOError:
                        sent = 0
                    if sent < len(data):
                        line.send(memoryview(data)[sent:])
                        core.left_slowly(number, _now_us())
                    line.look_s = min(line.look_s, time.monotonic() + line.look_after_s)
                if reading.dead:
                    raise _lost(reading.value)
                now_s = time.monotonic()
                if now_s >= line.look_s and not core.asked and not line.ping and now_s < line.moved_s + line.look_idle_s:
                    line.look_s = line.pulse.look_at = line.moved_s + line.look_idle_s
                elif now_s >= line.look_s:
                    if core.is_unheard(_now_us()):
                        raise ConnectionLost("the server has not answered for two thirds of a lease")
                    line.look()
                line.sleeps_until_us = min(core.wake_us, round(line.look_s * SECOND_US))
                wake.wait(max(line.sleeps_until_us / SECOND_US - time.monotonic(), 0.0))
        finally:
            reading.kill()

    def _read_forever(self, line: ServerLine, wake: Event) -> Exception:
        """Take the frames that arrive; return the error that ends the reading."""
        core, deliver, feed = self.core, self._deliver, line.caller.feed
        wait, receive, arrived = line.channel.wait, line.channel.socket.recv_into, memoryview(bytearray(RECEIVE_BYTES))
        is_drained = False
        try:
            while True:
                if is_drained:
                    wait()
                try:
                    count = receive(arrived)
                except BlockingIOError:
                    is_drained = True
                    continue
                if not count:
                    return ConnectionLost("the server closed the connection")
                is_drained, line.moved_s = count < RECEIVE_BYTES, time.monotonic()
                for frame in feed(arrived[:count]):
                    if not isinstance(frame, Answer):
                        events = core.told(frame.kind, frame.items)
                    elif frame.request == line.ping:
                        line.take_pong()
                        wake.set()
                        continue
                    else:
                        events = core.answered(frame.request, frame.items, time.monotonic_ns() // 1000)
                    for event in events:
                        deliver(self._connected(event) if isinstance(event, Resumed) else event)
                if self._is_stopping or core.wake_us < line.sleeps_until_us:
                    wake.set()
        except Exception as error:
            return error
        finally:
            wake.set()

    def _connected(self, resumed: Resumed) -> Connected:
        return Connected(self._servers.present, resumed.lease_us, self._servers.clients())

    # Self-fencing, whatever the connection does meanwhile.

    def _fence_forever(self) -> None:
        core = self.core
        while True:
            gevent.sleep(FENCE_CHECK_S)
            if time.monotonic_ns() // 1000 >= core.let_go_us:
                with survives("giving up leases", log):
                    for event in core.let_go(_now_us()):
                        self._deliver(event)


def _explained(error: BaseException, line: ServerLine | None) -> BaseException:
    """Return the error; a mismatch of versions then names both versions."""
    return line.caller.explained(error) if line is not None and isinstance(error, GivaliaError) else error


def _lost(error: object) -> GivaliaError:
    """Return the error that ends the connection, from the error that has ended the reading."""
    return error if isinstance(error, GivaliaError) else ConnectionLost(f"{type(error).__name__}: {error}")


def _now_us() -> int:
    return time.monotonic_ns() // 1000
