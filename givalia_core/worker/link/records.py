"""The records of the link: the loan of a job, the reports, and the events for the foreman."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Final, NamedTuple, TypeAlias

from givalia_core.protocol import messages
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.messages import Dispatch, FailReport, Kind, Progress, Release, Succeed

Report: TypeAlias = Succeed | FailReport | Release
KIND_OF: Final[dict[type, Kind]] = {
    Succeed: Kind.SUCCEED, FailReport: Kind.FAIL, Release: Kind.RELEASE, Progress: Kind.PROGRESS,
}  # fmt: skip


@dataclass(slots=True, eq=False)
class Loan:
    """A job that this worker holds, from its dispatch to the answer to its report."""

    fence: int
    deadline_us: int
    report: Report | None = None
    is_given_up: bool = False  # No longer renewed, but named until its end is reported, because the attempt was made.


class Dispatched(NamedTuple):
    """Jobs have arrived, in one frame."""

    jobs: list[Dispatch]


class StopAsked(NamedTuple):
    """A client has cancelled a job that this worker runs."""

    id: bytes
    fence: int
    again: bool


class Lost(NamedTuple):
    """A lease is over, or about to be: its job must stop."""

    id: bytes
    fence: int
    why: str


class Resumed(NamedTuple):
    """The server knows the modules, and what this worker holds."""

    lease_us: int


class Connected(NamedTuple):
    """The link is up: `clients` are the addresses for clients that jobs make, those of this server first."""

    address: Address
    lease_us: int
    clients: tuple[Address, ...] = ()


class Disconnected(NamedTuple):
    """The link to `address` is down, or did not come up; the link tries `next` in `retry_s`, 0 for at once."""

    address: Address
    why: str
    next: Address
    retry_s: float


class Follows(NamedTuple):
    """The next step of a job after a failed attempt: its state, its number of attempts, and the wait if it waits."""

    state: str
    max_attempts: int
    delay_us: int | None


class FailAnswered(NamedTuple):
    """The server has answered the report of a failed attempt.

    `follows` is None if the answer does not say, as those of older servers do not. `is_taken`: the report counted; else the
    lease was over.
    """

    fence: int
    follows: Follows | None
    is_taken: bool


LinkEvent: TypeAlias = Dispatched | StopAsked | Lost | Resumed | Connected | Disconnected | FailAnswered

_DEFAULTS: Final = [Dispatch._field_defaults.get(name) for name in Dispatch._fields[:-1]]
DISPATCH_REST: Final = {count: tuple(_DEFAULTS[count:]) for count in range(5, 1 + len(_DEFAULTS))}
"""The missing fields of a dispatch, by the number of fields that a server has sent."""
_MAYBE_TEXT: Final = (str, type(None))
DISPATCH_TYPES: Final = frozenset(
    product(*((each,) for each in (bytes, int, str, int, int)), _MAYBE_TEXT, (str,), (int,), (int, type(None)), _MAYBE_TEXT)
)
"""The types that the fields of a dispatch may have."""

assert messages.VERSION == 1, "the order of fields here is that of version 1"
