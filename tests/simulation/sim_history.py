"""The history of a simulated run: one event a line for people, and records for the checker.

The world keeps the history, not the system under test. `Op` is a client's command and its answer, `Execution` a worker's run,
`Report` a worker's report and its answer, `Said` an answer of the server (whether or not it arrived), and `Written` one change
as the store committed it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from givalia_core.clock import ManualClock, Now
from givalia_core.model import Job
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import OK, Kind


class Event(NamedTuple):
    """One line of the log; times are virtual microseconds since the machine started."""

    mono_us: int
    wall_us: int
    proc: str
    type: str
    act: str
    job: bytes | None
    request: bytes | None
    fence: int
    attempt: int
    value: Any

    def line(self) -> str:
        """The event as one line of JSON."""
        known = {name: value for name, value in self._asdict().items() if value not in (None, 0, "")}
        return json.dumps(known, default=_short)


def _short(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


@dataclass(slots=True, eq=False)
class Op:
    """One command of a client, from its call to its answer; `status` is ok, fail, info (unknown) or None (none yet)."""

    client: str
    kind: Kind
    message: Any
    invoked_us: int
    invoked_wall_us: int
    steps_before: int
    status: str | None = None
    answered_us: int | None = None
    answered_wall_us: int = 0
    steps_after: int = 0
    fields: Any = ()
    payload: bytes = b""
    lates: int = 0  # How often its frame came too late to be decided.

    @property
    def request(self) -> bytes | None:
        """The id that makes a resend safe; of `enq` the job's own."""
        return self.message.id if self.kind is Kind.ENQ else getattr(self.message, "request", None)

    @property
    def is_ok(self) -> bool:
        """Return whether the client got the answer OK."""
        return self.status == "ok"

    def is_before(self, us: int) -> bool:
        """Return whether it was answered before this instant."""
        return self.answered_us is not None and self.answered_us < us


@dataclass(slots=True, eq=False)
class Execution:
    """One attempt as a worker lived it; `is_honest` until the worker was paused in it."""

    job: bytes
    fence: int
    attempt: int
    worker: str
    payload: bytes
    started_us: int
    ended_us: int | None = None
    is_honest: bool = True


@dataclass(slots=True, eq=False)
class Report:
    """A worker's report of the end of an attempt, and its answer (None: it never arrived)."""

    kind: Kind
    message: Any
    sent_us: int
    code: str | None = None


class Written(NamedTuple):
    """One change in the store, as committed."""

    turn: int
    mono_us: int
    now: Now
    was: Job | None
    job: Job


class Said(NamedTuple):
    """One answer that the server gave to one command."""

    turn: int
    mono_us: int
    kind: Kind
    message: Any
    answer: Item

    @property
    def is_ok(self) -> bool:
        """Return whether the answer is OK."""
        return bool(self.answer[0]) and self.answer[0][0] == OK


@dataclass
class History:
    """Everything that happened in one run."""

    clock: ManualClock
    events: list[Event] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    trouble: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[bytes, str] = field(default_factory=dict)  # Of the modules of each worker process, by its instance.
    wall_steps: int = 0
    turns: int = 0
    lives: list[int] = field(default_factory=list)  # The first turn of each process of the server.
    healed_us: int = 0

    def note(
        self,
        proc: str,
        type: str,
        act: str,
        job: bytes | None = None,
        request: bytes | None = None,
        fence: int = 0,
        attempt: int = 0,
        value: Any = None,
    ) -> None:
        """Write one line."""
        wall_us, mono_us, _ = self.clock.read()
        self.events.append(Event(mono_us, wall_us, proc, type, act, job, request, fence, attempt, value))

    def blame(self, invariant: str, what: str) -> None:
        """Something that must not be was seen while the run went on."""
        self.trouble.append((invariant, what))

    def lines(self, job: bytes | None = None, last: int = 60) -> list[str]:
        """The last lines, of one job if it is named, as text."""
        chosen = [event for event in self.events if job is None or event.job == job or event.type == "fault"]
        return [event.line() for event in chosen[-last:]]
