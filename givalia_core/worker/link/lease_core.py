"""All decisions about leases: the jobs that this worker holds, the times to beat and to give leases up, the reports to repeat.

The class has no socket, greenlet or clock. The owner of a connection calls `begin`, sends the frames of `next_frame` until it
returns None, and passes in the frames that arrive (`told`, `answered`) and the time in monotonic microseconds. The events that
the methods return are for the foreman. The simulation runs this class as it ships.

The server counts a lease from the moment it receives a message. The worker counts from the moment it *sent* that message, and
gives the lease up a margin before its end ("Fences and leases" in docs/delivery.md), so two honest workers never hold one job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, Stale
from givalia_core.protocol import codec, frames, messages
from givalia_core.protocol.caller import HELLO_NUMBER, retry_after_s
from givalia_core.protocol.messages import Announce, Credit, Dispatch, FailReport, Join, Kind, NamedLease, Process, Progress
from givalia_core.settings import CLIENT_PORT
from givalia_core.worker.link import records
from givalia_core.worker.link.answers import Answers, Errors, errors_of, follows, joined
from givalia_core.worker.link.parts import parts_of
from givalia_core.worker.link.records import Dispatched, FailAnswered, LinkEvent, Loan, Lost, Report, Resumed, StopAsked

LEASE_US: Final = 30 * SECOND_US  # Until a server says another length.
MARGIN_LEAST_US: Final = SECOND_US
FENCE_MOST: Final = 1 << 63
NEVER_US: Final = 1 << 62
_LAST_NUMBER: Final = (1 << 32) - 1

_REPORTS: Final = (Kind.SUCCEED, Kind.FAIL, Kind.RELEASE)
_WHOLE: Final = (
    Kind.ANNOUNCE,
    Kind.RESUME,
    Kind.PROCESSES,
)  # One frame each, which replaces what was said before.


class LeaseCore:
    """One worker's leases, over all its connections.

    Args:
        join: The message that introduces the worker.
        announced: The modules that it announces.
    """

    def __init__(self, join: Join, announced: list[Announce]) -> None:
        self._join = join
        self._news: dict[Kind, list[Any]] = {Kind.ANNOUNCE: announced, Kind.CREDIT: [Credit(0)]}
        self._untold: set[Kind] = set()  # The kinds of news that this server has not heard.
        self._hints: dict[bytes, Progress] = {}
        self._reports: deque[Report] = deque()
        self.held: dict[bytes, Loan] = {}
        self.let_go_us = NEVER_US
        """The earliest time at which a lease may be due for `let_go`."""
        self._has_others = False
        self.lease_us = LEASE_US
        self.client_port = CLIENT_PORT
        self.up_us: int | None = None
        """The time at which this server accepted the worker; None before."""
        self.end()

    # The connection.

    def begin(self, *, has_others: bool) -> None:
        """Use a new connection, whose hello is answered. `has_others`: the worker knows other servers."""
        self.end()
        self._has_others = has_others
        self._frames.append((Kind.JOIN, [self._join]))

    def end(self) -> None:
        """Forget the connection; reports without an answer are sent again on the next one."""
        self._number = HELLO_NUMBER
        self._frames: deque[tuple[Kind, list[Any]]] = deque()
        self.asked: dict[int, tuple[Kind, list[Any], int]] = {}
        """The frames without an answer, oldest first, by number: kind, messages, and time of sending."""
        self._sent_us: dict[int, int] = {}
        self._put_off: list[tuple[int, Report]] = []  # Reports that a busy server wants again, each with its time.
        self._next_beat_us = self.wake_us = NEVER_US
        self.has_joined = False
        self.up_us = None

    def _join_with(self, items: Answers, now_us: int) -> None:
        """Take the answer to JOIN; announce, and name the leases before the server can dispatch anything new."""
        self.lease_us, self.client_port = joined(items)
        self.has_joined = True
        self._next_beat_us = self.wake_us = now_us + self.lease_us // 3
        self._frames.append((Kind.ANNOUNCE, self._news[Kind.ANNOUNCE]))
        self._frames.append((Kind.RESUME, [NamedLease(job_id, loan.fence) for job_id, loan in self.held.items()]))
        self._untold = self._news.keys() - {Kind.ANNOUNCE}
        self._reports = deque(loan.report for loan in self.held.values() if loan.report is not None)

    # To the server.

    def say(self, message: Report | Progress | Credit | list[Announce] | list[Process]) -> list[LinkEvent]:
        """Queue a report (until it is answered), a hint, or news (credits, modules, processes), which replace the previous."""
        if isinstance(message, Progress):
            self._hints[message.id] = message  # The newest is enough, however long no server is in reach.
        elif isinstance(message, (Credit, list)):
            news = message if isinstance(message, list) else [message]
            kind = {Credit: Kind.CREDIT, Process: Kind.PROCESSES}.get(type(news[0]) if news else Announce, Kind.ANNOUNCE)
            self._news[kind] = news
            self._untold.add(kind)
        else:
            loan = self.held.get(message.id)
            if loan is None or loan.fence != message.fence:  # Another worker has the job; the answer would be STALE.
                return [FailAnswered(message.fence, None, is_taken=False)] if isinstance(message, FailReport) else []
            loan.report = message
            self._reports.append(message)
        return []

    def next_frame(self, now_us: int) -> tuple[int, Kind, list[Any]] | None:
        """Return the next frame, which counts as sent now: its number, kind and messages.

        None: there is nothing to send before `wake_us`, unless `say` is called.
        """
        if now_us >= self.wake_us:
            self._take_up_what_is_due(now_us)
        if not self._frames and self.has_joined and (self._reports or self._untold or self._hints):
            self._gather()
        if not self._frames:
            return None
        kind, said = self._frames.popleft()
        number = self._number = self._number % _LAST_NUMBER + 1
        self._sent_us[number] = now_us
        self.asked[number] = kind, said, now_us
        return number, kind, said

    def take_number(self) -> int:
        """Return a number that no frame of this connection had (numbers repeat after four thousand million)."""
        self._number = self._number % _LAST_NUMBER + 1
        return self._number

    def left_slowly(self, number: int, now_us: int) -> None:
        """Note that a frame left only now, so the server did not owe its answer before."""
        if (asked := self.asked.get(number)) is not None:
            self.asked[number] = (*asked[:2], now_us)

    def _gather(self) -> None:
        """Put all queued messages into frames, one kind in each."""
        by_kind: dict[Kind, list[Any]] = {kind: self._news[kind] for kind in self._untold}
        self._untold.clear()
        for message in (*self._hints.values(), *self._reports):  # A hint goes before the report of its job.
            loan = self.held.get(message.id)
            if loan is not None and loan.fence == message.fence:
                by_kind.setdefault(records.KIND_OF[type(message)], []).append(message)
        self._hints.clear()
        self._reports.clear()
        for kind, said in by_kind.items():
            if len(said) == 1 or kind in _WHOLE:
                self._frames.append((kind, said))
            else:
                self._frames.extend((kind, part) for part in parts_of(said))

    def _take_up_what_is_due(self, now_us: int) -> None:
        """Queue a beat if one is due, before all other frames, and the reports that a busy server has put off."""
        if now_us >= self._next_beat_us:
            self._next_beat_us = now_us + self.lease_us // 3
            holds = [NamedLease(job_id, loan.fence) for job_id, loan in self.held.items() if not loan.is_given_up]
            self._frames.extendleft((Kind.BEAT, part) for part in parts_of(holds))
        self._reports.extend(report for at_us, report in self._put_off if at_us <= now_us)
        self._put_off = [(at_us, report) for at_us, report in self._put_off if at_us > now_us]
        self.wake_us = min([self._next_beat_us, *(at_us for at_us, _ in self._put_off)])

    def is_settled(self) -> bool:
        """Return whether all messages are sent and answered."""
        return not (self._frames or self._reports or self._untold or self._hints or self._put_off or self.asked)

    def is_unheard(self, now_us: int) -> bool:
        """Return whether to leave the server for another: it has not answered for most of a lease."""
        oldest = next(iter(self.asked.values()), None)
        return self._has_others and oldest is not None and now_us - oldest[2] > self.lease_us * 2 // 3

    # From the server.

    def told(self, kind: Kind, items: Answers) -> list[LinkEvent]:
        """Take a frame that is no answer: jobs, or jobs to stop; raise as `codec.told` does."""
        if kind is Kind.STOP:
            stops: list[messages.Stop] = [codec.told(messages.Stop, list(fields)) for fields, _ in items]
            return [StopAsked(stop.id, stop.fence, stop.again) for stop in stops if stop.id in self.held]
        if kind is not Kind.DISPATCH:
            return []
        if not items:
            raise BadRequest("a dispatch has no items")
        heard = items[0][0]
        is_plain = len(heard) == 2 and type(heard[0]) is type(heard[1]) is int and 0 < heard[1] <= messages.FOREVER_US
        number, self.lease_us = heard if is_plain else codec.told(messages.Heard, list(heard))
        deadline_us = self._deadline_us(number)
        jobs = [dispatched(fields, payload) for fields, payload in items[1:]]
        for job in jobs:
            self.held[job.id] = Loan(job.fence, deadline_us)
        return [Dispatched(jobs)]

    def _deadline_us(self, number: int) -> int:
        """Return the time to give up leases that the server counts from the frame with this number."""
        sent_us = self._sent_us.get(number, 0)
        for earlier in [each for each in self._sent_us if each < number]:
            del self._sent_us[earlier]
        deadline_us = sent_us + self.lease_us - max(self.lease_us // 10, MARGIN_LEAST_US)
        self.let_go_us = min(self.let_go_us, deadline_us)
        return deadline_us

    def answered(self, number: int, items: Answers, now_us: int) -> list[LinkEvent]:
        """Take the answer to a frame; raise if the link must try the next server: a broken protocol, or a refusal."""
        asked = self.asked.pop(number, None)
        if asked is None:
            return []
        kind, said, _ = asked
        if kind is Kind.PROCESSES:
            return []  # For people only. A server that is older than this message refuses it, and is as good as any other.
        is_plain = len(items) == len(said) and all(fields and fields[0] == messages.OK for fields, _ in items)
        errors = None if is_plain else errors_of(kind, said, items, has_others=self._has_others)
        if kind in _REPORTS:
            return self._settle(said, errors, items, now_us)
        if kind in (Kind.BEAT, Kind.RESUME):
            events = self._renew(said, errors, self._deadline_us(number))
            if kind is Kind.RESUME:
                self.up_us = now_us
                events.append(Resumed(self.lease_us))
            return events
        if kind is Kind.JOIN:
            self._join_with(items, now_us)
        return []

    def _renew(self, holds: list[NamedLease], errors: Errors, deadline_us: int) -> list[LinkEvent]:
        events: list[LinkEvent] = []
        for place, hold in enumerate(holds):
            loan, error = self.held.get(hold.id), errors[place] if errors is not None else None
            if loan is None or loan.fence != hold.fence or isinstance(error, Busy):
                continue  # BUSY says nothing about the lease, which lasts as long as before.
            if error is None:
                if not loan.is_given_up:
                    loan.deadline_us = deadline_us
            elif not isinstance(error, Stale):
                raise error  # The error is not about the lease: worker and server do not understand each other.
            else:
                del self.held[hold.id]
                events.append(Lost(hold.id, loan.fence, "the server gave the job to another"))
                if isinstance(loan.report, FailReport) and loan.report in self._reports:
                    events.append(FailAnswered(loan.fence, None, is_taken=False))
        return events

    def _settle(self, reports: list[Report], errors: Errors, items: Answers, now_us: int) -> list[LinkEvent]:
        """Take the answers to reports: OK and STALE end the loan, BUSY asks for the report again."""
        events: list[LinkEvent] = []
        for place, report in enumerate(reports):
            loan, error = self.held.get(report.id), errors[place] if errors is not None else None
            is_present = loan is not None and loan.fence == report.fence
            if isinstance(error, Busy):
                if is_present:
                    at_us = now_us + round(retry_after_s(error) * SECOND_US)
                    self._put_off.append((at_us, report))
                    self.wake_us = min(self.wake_us, at_us)
                continue
            if is_present:
                del self.held[report.id]
            if isinstance(report, FailReport):
                known = follows(items[place][0]) if error is None else None
                events.append(FailAnswered(report.fence, known, is_taken=error is None))
        return events

    # Self-fencing.

    def let_go(self, now_us: int) -> list[LinkEvent]:
        """Give up the leases that were not renewed in time; call it from `let_go_us` on."""
        self.let_go_us = NEVER_US
        events: list[LinkEvent] = []
        for job_id, loan in self.held.items():
            if loan.is_given_up or loan.report is not None:
                continue
            if loan.deadline_us <= now_us:
                loan.is_given_up = True
                events.append(Lost(job_id, loan.fence, "its lease could not be renewed in time"))
            elif loan.deadline_us < self.let_go_us:
                self.let_go_us = loan.deadline_us
        return events


def dispatched(fields: Sequence[Any], payload: bytes) -> Dispatch:
    """Return the record of a dispatched job; raise as `codec.told` does for a job that no server of this protocol sends."""
    # Nearly all jobs are correct, and this takes a third of the time of `codec.told`, which explains each error.
    whole = (*fields, *records.DISPATCH_REST.get(len(fields), ()))
    if (
        tuple(map(type, whole)) in records.DISPATCH_TYPES
        and len(whole[0]) == 16 and 0 < whole[1] < FENCE_MOST and whole[3] > 0
        and -messages.FOREVER_US < whole[4] < messages.FOREVER_US and len(payload) <= frames.PARAMS_BYTES_MAX
    ):  # fmt: skip
        return tuple.__new__(Dispatch, (*whole, payload))
    made: Dispatch = codec.told(Dispatch, list(fields), payload)
    return made
