"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from givalia_core.clock import SECOND_US
from givalia_core.errors import GivaliaError
from givalia_core.model import Job, OutcomeKind
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Kind


class Policy(NamedTuple):
    """The settings that decisions depend on; times in microseconds."""

    lease_us: int = 30 * SECOND_US
    max_attempts: int = 5
    backoff_us: int = SECOND_US
    backoff_max_us: int = 600 * SECOND_US
    retain_us: int = 3_600 * SECOND_US
    retain_max: int = 1_000_000
    retain_dead_us: int = 30 * 86_400 * SECOND_US
    retain_dead_max: int = 100_000
    live_max: int = 100_000_000


class Asked(NamedTuple):
    """One frame from one connection: its commands in order, each a message or the error that decoding it gave."""

    conn: int
    request: int
    kind: Kind
    messages: list[Any]


class Gone(NamedTuple):
    """A connection has ended."""

    conn: int


Input: TypeAlias = Asked | Gone


class Reply(NamedTuple):
    """Answer one frame: an item for each of its commands."""

    conn: int
    request: int
    items: list[Item]


class Tell(NamedTuple):
    """Send what was not asked for: a dispatch or a stop."""

    conn: int
    kind: Kind
    items: list[Item]


class Close(NamedTuple):
    """End a connection that is of no use any more."""

    conn: int
    why: str


class Hook(NamedTuple):
    """Something that plugins on the server are told, after the commit."""

    name: str
    job: Job
    extra: dict[str, Any]


class Ended(NamedTuple):
    """How an attempt ended, as far as the server knows: what `on_retry` is given."""

    kind: OutcomeKind
    error: str | None


Effect: TypeAlias = Reply | Tell | Close | Hook


class Refusal(Exception):
    """Carries the error that a command is answered with from where it was found to where it is answered."""

    def __init__(self, error: GivaliaError) -> None:
        super().__init__(str(error))
        self.error = error
