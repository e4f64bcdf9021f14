"""The worker's link to a server; it runs where no job code can hold it up.

That is the supervising process, which runs no job at all, or, where a program has a `Worker` of its own in it, a native thread
with a hub of its own.

It joins, announces, names what it holds, takes dispatches, beats, and sends reports until each is answered. It also watches
every lease on the worker's own clock, counted from the moment it *sent* the message that the server counts from, and gives a
lease up a margin before the server does (CONTRACT 1.3): two honest workers never hold one job.

Of several servers, which share one store, it is connected to one at a time. The credits are one number, the room that is left
in this worker, and two servers could not both lend by it without asking each other; and a lease is the worker's, not the
connection's, so it follows the worker to the next server, which is told of it by RESUME. When a server is lost, silent or
stopping, the next is tried at once, and only when all have failed is there a pause.

The link never logs and never calls plugins or job code; it tells the foreman, on its own hub, what happened.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import gevent
from gevent.event import Event

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, ConnectionLost, GivaliaError, ShuttingDown, Stale, VersionMismatch
from givalia_core.protocol import frames, messages
from givalia_core.protocol.addresses import PORT_MAX, Address, Round
from givalia_core.protocol.caller import Answer, Told, refused, retry_after_s
from givalia_core.protocol.messages import (
    Announce,
    Credit,
    Dispatch,
    Fail,
    Heard,
    Hold,
    Join,
    Kind,
    Process,
    Progress,
    Release,
    Stop,
    Succeed,
    answer_error,
    item,
)
from givalia_core.settings import CLIENT_PORT
from givalia_core.steady import survives
from givalia_core.threads import thread_now
from givalia_core.worker.link.follows import Answered, follows
from givalia_core.worker.link.line import Line

log = logging.getLogger("givalia.worker")

CONNECT_S: Final = 5.0
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
STEADY_S: Final = 1.0  # A link that lasts so long counts as one that worked.
FENCE_CHECK_S: Final = 0.25
MARGIN_LEAST_US: Final = SECOND_US
FENCE_MOST: Final = 1 << 63

Report: TypeAlias = Succeed | Fail | Release
_KIND_OF: Final = {Succeed: Kind.SUCCEED, Fail: Kind.FAIL, Release: Kind.RELEASE, Progress: Kind.PROGRESS}
_REPORTS: Final = (Kind.SUCCEED, Kind.FAIL, Kind.RELEASE)
_NEEDED: Final = (Kind.ANNOUNCE, Kind.RESUME, Kind.CREDIT)  # A server that does not take these has no use for the worker.


class Dispatched(NamedTuple):
    """Jobs arrived, in one frame."""

    jobs: list[Dispatch]


class Stopped(NamedTuple):
    """Somebody cancelled a job that this worker runs."""

    id: bytes
    fence: int
    again: bool


class Lost(NamedTuple):
    """A lease is over, or about to be: its job must stop and will not be reported."""

    id: bytes
    fence: int
    why: str


class Connected(NamedTuple):
    """The link is up: the server knows the modules and what is held."""

    address: Address
    lease_us: int
    clients: tuple[Address, ...] = ()  # Where clients go that are made in jobs: this server first.


class Disconnected(NamedTuple):
    """The link to `address` is down, or did not come up; `next` will be tried in `retry_s`, 0 for at once."""

    address: Address
    why: str
    next: Address
    retry_s: float


Event_: TypeAlias = Dispatched | Stopped | Lost | Connected | Disconnected | Answered


class _Held:
    """A lease as the worker knows it, from dispatch to the answer to its report."""

    __slots__ = ("deadline_us", "fence", "is_given_up", "report")

    def __init__(self, fence: int, deadline_us: int) -> None:
        self.is_given_up = False  # No longer renewed, but named until its end is reported: the attempt was made.
        self.fence = fence
        self.deadline_us = deadline_us
        self.report: Report | None = None


class Link:
    """Runs in a greenlet or native thread of its own (`run`); the other methods may be called from any thread."""

    def __init__(
        self, addresses: Sequence[Address], join: Join, announced: list[Announce], deliver: Callable[[Event_], None]
    ) -> None:
        self._servers = Round(addresses)
        self._join = join
        self._announced = announced
        self._credit = Credit(0)  # Until there is somebody to run what comes.
        self._processes: list[Process] = []
        self._deliver = deliver
        self._outbox: deque[Report | Progress | Credit | list[Announce] | list[Process]] = deque()
        self._hints: dict[bytes, Progress] = {}
        self._wake_from_threads: Any = None
        self._thread = 0
        self._is_stopping = False
        # What follows belongs to the link's thread.
        self._held: dict[bytes, _Held] = {}
        self._line: Line | None = None
        self._sent_us: dict[int, int] = {}
        self._asked: dict[int, tuple[Kind, list[Any], int]] = {}  # number -> what was asked, and when
        self._put_off: list[tuple[int, Report]] = []  # What a busy server wants to hear again, and when.
        self._lease_us = 30 * SECOND_US
        self._client_ports: dict[Address, int] = {}  # Where the servers that this worker has joined take clients.
        self._next_beat_us = 0
        self._up_us: int | None = None  # Since when the link is up.
        self._wake: Event | None = None

    # From other threads.

    def send(self, message: Report | Progress | Credit | list[Announce] | list[Process]) -> None:
        """Send a report (until it is answered), a hint, the credits, or what modules or processes there are; returns at once.

        Credits, modules and processes replace what was said before, and are said again to each server.
        """
        if isinstance(message, Progress):
            self._hints[message.id] = message  # The newest is enough, however long there is no server to tell it.
        else:
            self._outbox.append(message)
        self._nudge()

    def stop(self) -> None:
        """Close the connection and end the thread, once every report is answered or no server is in reach."""
        self._is_stopping = True
        self._nudge()

    def _nudge(self) -> None:
        if self._wake is None or self._wake_from_threads is None:
            return
        if thread_now() == self._thread:
            self._wake.set()  # As the other way, but without a turn of the loop and three calls of the system.
        else:
            self._wake_from_threads.send()

    # The thread.

    def run(self) -> None:
        """Keep the link up until `stop`."""
        self._thread = thread_now()
        self._wake = Event()
        watcher = gevent.get_hub().loop.async_()
        watcher.start(self._wake.set)
        self._wake_from_threads = watcher
        fencing = gevent.spawn(self._fence_forever)
        try:
            self._stay_connected(self._wake)
        finally:
            fencing.kill()
            self._wake_from_threads = None
            watcher.close()

    def _stay_connected(self, wake: Event) -> None:
        rounds = 0  # In which every server has failed, one after the other.
        while not self._is_stopping or self._owes_reports:
            address = self._servers.address
            try:
                self._connect(address)
                self._talk(wake)
                return
            except (Exception, gevent.Timeout) as error:  # Whatever the other side sends, the link tries again.
                why = f"{type(error).__name__}: {error}"
                has_mismatch = isinstance(error, VersionMismatch)
                if has_mismatch:
                    why = f"{VersionMismatch.code}: {error}"
            finally:
                up_s = self._hang_up()
            # A link that is lost as soon as it is up, again and again, is no better than one that does not come up.
            if up_s >= STEADY_S:
                rounds = 0
                self._servers.worked()
            retry_s = 0.0
            if self._servers.failed():
                if self._is_stopping:
                    return
                retry_s, rounds = _pause_s(rounds, has_mismatch=has_mismatch), rounds + 1
            self._deliver(Disconnected(address, why, self._servers.address, retry_s))
            self._sleep(wake, retry_s)

    def _sleep(self, wake: Event, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._is_stopping and (left := end - time.monotonic()) > 0:
            wake.clear()
            wake.wait(left)

    def _connect(self, address: Address) -> None:
        """Join and announce; then name what is held, before anything new can be dispatched."""
        with gevent.Timeout(CONNECT_S):
            self._line = line = Line(address, self._asked_since)
            line.send(line.caller.hello("givalia-worker"))
            self._expect(line)
            self._ask_at_once(Kind.JOIN, [self._join])
            self._lease_us, self._client_ports[address] = _joined(self._expect(line))
            self._asked.clear()
            self._sent_us.clear()
        self._next_beat_us = _mono_us() + self._lease_us // 3
        self._ask_at_once(Kind.ANNOUNCE, self._announced)
        self._ask_at_once(Kind.RESUME, [Hold(job_id, held.fence) for job_id, held in self._held.items()])
        for held in self._held.values():
            if held.report is not None:
                self._outbox.append(held.report)
        self._ask(Kind.CREDIT, [self._credit])
        if self._processes:
            self._ask_at_once(Kind.PROCESSES, self._processes)

    def _expect(self, line: Line) -> Answer:
        while True:
            for arrived in line.receive():
                if isinstance(arrived, Answer):
                    error = refused(arrived)
                    if error is not None:
                        raise line.caller.explained(error)
                    return arrived

    def _asked_since(self) -> float | None:
        """When the oldest message was sent that is not answered yet, in seconds."""
        oldest = next(iter(self._asked.values()), None)
        return None if oldest is None else oldest[2] / SECOND_US

    def _talk(self, wake: Event) -> None:
        """Send what there is to send and beat in time, while another greenlet reads; ends when stopped and all is answered."""
        assert self._line is not None
        line = self._line
        reading = gevent.spawn(self._read_forever, line, wake)
        try:
            while not (self._is_stopping and not self._outbox and not self._asked and not self._put_off):
                wake.clear()
                self._take_up_what_was_put_off()
                self._flush()
                self._beat_in_time()
                self._check_heard()
                if reading.dead:
                    raise _lost(reading.value)
                line.look()
                now_us = _mono_us()
                next_us = min([self._next_beat_us, *(at_us for at_us, _ in self._put_off)])
                wake.wait(min(max(next_us - now_us, 0) / SECOND_US, line.look_again_s()))
        finally:
            reading.kill()

    def _check_heard(self) -> None:
        """A server that answers nothing for most of a lease is left if there is another: leases that it does not renew end."""
        since = self._asked_since()
        if self._servers.has_others and since is not None and time.monotonic() - since > self._lease_us * 2 / 3 / SECOND_US:
            raise ConnectionLost("the server has not answered for two thirds of a lease")

    def _clients(self) -> tuple[Address, ...]:
        """Where the servers take clients, the present one first.

        A server that was not joined yet is taken to have the client port of the present one if their worker ports are the same.
        """
        present, ports = self._servers.address, self._client_ports
        alike = {address: ports[present] for address in self._servers if address.port == present.port}
        known = {**alike, **ports}
        return tuple(Address(address.host, known[address]) for address in self._servers if address in known)

    @property
    def _owes_reports(self) -> bool:
        """Whether a worker that stops has something to say that another server would hear."""
        return self._servers.has_others and bool(self._held)

    def _hang_up(self) -> float:
        """End the connection, if there is one; how many seconds it was up, 0 if it was not."""
        if self._line is not None:
            self._line.close()
            self._line = None
        self._asked.clear()
        self._put_off.clear()  # Reports are sent again on the next connection, whether or not they were answered here.
        up_us, self._up_us = self._up_us, None
        return 0.0 if up_us is None else (_mono_us() - up_us) / SECOND_US

    def _take_up_what_was_put_off(self) -> None:
        now_us = _mono_us()
        self._outbox.extend(report for at_us, report in self._put_off if at_us <= now_us)
        self._put_off = [(at_us, report) for at_us, report in self._put_off if at_us > now_us]

    def _ask(self, kind: Kind, asked: list[Any]) -> None:
        """Send one kind of message, as many frames as it takes; while one leaves slowly, a beat may become due."""
        for part in _parts(asked):
            self._beat_in_time()
            self._ask_at_once(kind, part)

    def _ask_at_once(self, kind: Kind, asked: list[Any]) -> None:
        """Send messages that belong into one frame, because what it does not name is gone."""
        assert self._line is not None
        number, data = self._line.caller.ask(kind, [item(message) for message in asked])
        self._sent_us[number] = now_us = _mono_us()
        self._asked[number] = (kind, asked, now_us)
        self._line.send(data)
        if number in self._asked:
            self._asked[number] = (kind, asked, _mono_us())  # It may have left slowly, and is not owed an answer before.

    def _beat_in_time(self) -> None:
        """Renew what is held, if that is due."""
        now_us = _mono_us()
        if now_us >= self._next_beat_us:
            self._next_beat_us = now_us + self._lease_us // 3
            self._ask(Kind.BEAT, [Hold(job_id, held.fence) for job_id, held in self._held.items() if not held.is_given_up])

    def _flush(self) -> None:
        """Send everything in the outbox, a frame for each kind."""
        by_kind: dict[Kind, list[Any]] = {}
        while self._hints:
            self._outbox.appendleft(self._hints.popitem()[1])  # Before the report of the same job.
        while self._outbox:
            message = self._outbox.popleft()
            if isinstance(message, (Credit, list)):
                self._replace(message, by_kind)
                continue
            held = self._held.get(message.id)
            if held is None or held.fence != message.fence:
                if isinstance(message, Fail):
                    self._deliver(Answered(message.fence, None, is_taken=False))
                continue  # The job is another's by now; what this would say would only be answered STALE.
            if not isinstance(message, Progress):
                held.report = message
            by_kind.setdefault(_KIND_OF[type(message)], []).append(message)
        for kind, asked in by_kind.items():
            if kind in (Kind.ANNOUNCE, Kind.PROCESSES):
                self._ask_at_once(kind, asked)
            else:
                self._ask(kind, asked)

    def _replace(self, message: Credit | list[Any], by_kind: dict[Kind, list[Any]]) -> None:
        """What stands for what was said of it before; to announce nothing is to serve nothing."""
        if isinstance(message, Credit):
            self._credit = message
            by_kind[Kind.CREDIT] = [message]
        elif message and isinstance(message[0], Process):
            self._processes = by_kind[Kind.PROCESSES] = message
        else:
            self._announced = by_kind[Kind.ANNOUNCE] = message

    # What arrives.

    def _read_forever(self, line: Line, wake: Event) -> Exception:
        try:
            while True:
                for arrived in line.receive():
                    if isinstance(arrived, Told):
                        self._take_told(arrived)
                    else:
                        self._take_answer(arrived)
                if self._is_stopping or self._put_off:
                    wake.set()
        except (OSError, GivaliaError) as error:
            return error
        finally:
            wake.set()

    def _take_told(self, told: Told) -> None:
        if told.kind is Kind.STOP:
            for fields, _ in told.items:
                stop: Stop = messages.told(Stop, fields)
                if stop.id in self._held:
                    self._deliver(Stopped(stop.id, stop.fence, stop.again))
        elif told.kind is Kind.DISPATCH:
            if not told.items:
                raise BadRequest("a dispatch has no items")
            (fields, _), *items = told.items
            heard: Heard = messages.told(Heard, fields)
            self._lease_us = heard.lease_us
            deadline_us = self._deadline_us(heard.request)
            jobs = [dispatched(fields, payload) for fields, payload in items]
            for job in jobs:
                self._held[job.id] = _Held(job.fence, deadline_us)
            self._deliver(Dispatched(jobs))

    def _deadline_us(self, request: int) -> int:
        """When a lease that the server counts from this message is to be given up here."""
        sent_us = self._sent_us.get(request, 0)
        for earlier in [number for number in self._sent_us if number < request]:
            del self._sent_us[earlier]
        return sent_us + self._lease_us - max(self._lease_us // 10, MARGIN_LEAST_US)

    def _take_answer(self, answer: Answer) -> None:
        """Act on what the server says to what it was told.

        Raises:
            GivaliaError: It does not do as it should, or does not want this worker: go on to the next server.
        """
        asked = self._asked.pop(answer.request, None)
        if asked is None:
            return
        kind, sent, _ = asked
        if kind is Kind.PROCESSES:
            return  # For people to look at. A server that is older than this message refuses it, and is as good as any.
        errors = self._errors(kind, sent, answer)
        if kind in (Kind.BEAT, Kind.RESUME):
            deadline_us = self._deadline_us(answer.request)
            for message, error in zip(sent, errors, strict=True):
                self._renew(message, error, deadline_us)
            if kind is Kind.RESUME:
                self._up_us = _mono_us()
                self._deliver(Connected(self._servers.address, self._lease_us, self._clients()))
        elif kind in _REPORTS:
            for message, error in zip(sent, errors, strict=True):
                self._settle(message, error)
            if kind is Kind.FAIL:
                self._tell_what_follows(sent, errors, answer)

    def _tell_what_follows(self, sent: list[Fail], errors: list[GivaliaError | None], answer: Answer) -> None:
        for place, (report, error) in enumerate(zip(sent, errors, strict=True)):
            if not isinstance(error, Busy):
                known = follows(answer.items[place][0]) if error is None else None
                self._deliver(Answered(report.fence, known, is_taken=error is None))

    def _errors(self, kind: Kind, sent: list[Any], answer: Answer) -> list[GivaliaError | None]:
        """What is wrong with each message of a frame; None where nothing is."""
        errors = [answer_error(fields) for fields, _ in answer.items]
        if self._line is not None and any(errors):
            errors = [self._line.caller.explained(error) for error in errors]
        busy = next((error for error in errors if isinstance(error, Busy)), None)
        if busy is not None and (kind in _NEEDED or (isinstance(busy, ShuttingDown) and self._servers.has_others)):
            raise busy
        if len(errors) == len(sent):
            if kind in (Kind.ANNOUNCE, Kind.CREDIT) and errors and errors[0] is not None:
                raise errors[0]
            return errors
        if busy is not None:
            return [busy] * len(sent)
        raise (errors and errors[0]) or GivaliaError("the server answered another number of messages than it was sent")

    def _renew(self, message: Hold, error: GivaliaError | None, deadline_us: int) -> None:
        held = self._held.get(message.id)
        if held is None or held.fence != message.fence or isinstance(error, Busy):
            return  # A busy server has said nothing about the lease: it lasts as long as it did.
        if error is not None and not isinstance(error, Stale):
            raise error  # This says nothing about the lease, and that the two of us do not understand each other.
        if error is not None:
            del self._held[message.id]
            self._deliver(Lost(message.id, held.fence, "the server gave the job to another"))
        elif not held.is_given_up:
            held.deadline_us = deadline_us

    def _settle(self, report: Report, error: GivaliaError | None) -> None:
        """OK or STALE: either way the server knows, and the job is no longer this worker's. Busy: it wants to hear it again."""
        held = self._held.get(report.id)
        if held is None or held.fence != report.fence:
            return
        if isinstance(error, Busy):
            self._put_off.append((_mono_us() + round(retry_after_s(error) * SECOND_US), report))
        else:
            del self._held[report.id]

    # Fencing.

    def _fence_forever(self) -> None:
        while True:
            gevent.sleep(FENCE_CHECK_S)
            with survives("giving up leases", log):
                self._fence(_mono_us())

    def _fence(self, now_us: int) -> None:
        for job_id, held in list(self._held.items()):
            if held.deadline_us <= now_us and not held.is_given_up and held.report is None:
                held.is_given_up = True
                self._deliver(Lost(job_id, held.fence, "its lease could not be renewed in time"))


def _lost(error: object) -> GivaliaError:
    """Return what ends the connection when reading has ended so."""
    return error if isinstance(error, GivaliaError) else ConnectionLost(f"{type(error).__name__}: {error}")


def _pause_s(rounds: int, *, has_mismatch: bool) -> float:
    """Return how long to wait when every server has failed, for the first time or after so many rounds before.

    A server of another version is the same at the next try, unless somebody upgrades it: it is not asked often.
    """
    if has_mismatch:
        return random.uniform(BACKOFF_MAX_S / 2, BACKOFF_MAX_S)
    return random.uniform(BACKOFF_FIRST_S, min(BACKOFF_FIRST_S * 2 ** min(rounds, 10), BACKOFF_MAX_S))


def _joined(joined: Answer) -> tuple[int, int]:
    """What the answer to JOIN tells: the length of a lease, and the port for clients, which an earlier server does not tell."""
    fields = joined.items[0][0] if joined.items else []
    if len(fields) < 2 or type(fields[1]) is not int or not 0 < fields[1] <= messages.FOREVER_US:
        raise BadRequest("the server does not say how long a lease is")
    is_told = len(fields) > 2 and type(fields[2]) is int and 0 < fields[2] <= PORT_MAX
    return fields[1], fields[2] if is_told else CLIENT_PORT


_new: Final = tuple.__new__
_DEFAULTS: Final = [Dispatch._field_defaults.get(name) for name in Dispatch._fields[:-1]]
_REST: Final = {count: tuple(_DEFAULTS[count:]) for count in range(5, 1 + len(_DEFAULTS))}
"""By the number of fields that a server has sent of a dispatch: the others."""


def dispatched(fields: list[Any], payload: bytes) -> Dispatch:
    """Return the record of one dispatched job.

    Raises:
        BadRequest, TooLarge: No server of this protocol sends this.
    """
    # Nearly all are as they should be, and this takes a third of the time of `told`, which says in words what is wrong.
    rest = _REST.get(len(fields))
    if rest is not None:
        job_id, fence, module, attempt, due_us, key, target, priority, timeout_us, version = whole = (*fields, *rest)
        if (
            type(job_id) is bytes and len(job_id) == 16
            and type(fence) is int and 0 < fence < FENCE_MOST
            and type(module) is str and type(target) is str
            and type(attempt) is int and attempt > 0
            and type(due_us) is int and -messages.FOREVER_US < due_us < messages.FOREVER_US
            and type(priority) is int
            and (key is None or type(key) is str)
            and (timeout_us is None or type(timeout_us) is int)
            and (version is None or type(version) is str)
            and len(payload) <= frames.PARAMS_BYTES_MAX
        ):  # fmt: skip
            return _new(Dispatch, (*whole, payload))
    made: Dispatch = messages.told(Dispatch, fields, payload)
    return made


def _parts(asked: list[Any]) -> list[list[Any]]:
    """Cut what is to be said into what fits a frame; at least one, even if there is nothing to name."""
    parts: list[list[Any]] = [[]]
    room = frames.FRAME_BYTES_MAX // 2
    for message in asked:
        size = 48 + (len(message.payload) if isinstance(message, Succeed) else 4 * len(_words(message)))
        if parts[-1] and (size > room or len(parts[-1]) == frames.ITEMS_MAX):
            parts.append([])
            room = frames.FRAME_BYTES_MAX // 2
        parts[-1].append(message)
        room -= size
    return parts


def _words(message: Any) -> str:
    """What makes a message long that has no payload."""
    return getattr(message, "error", None) or getattr(message, "text", None) or ""


def _mono_us() -> int:
    return time.monotonic_ns() // 1000


assert messages.VERSION == 1, "the order of fields here is that of version 1"
