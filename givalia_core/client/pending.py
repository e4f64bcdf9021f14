"""One request of a client: the frame that is sent, the reading of its answers, and how far it is.

A server runs a command only when it has the whole frame. So a request whose last byte no connection ever took was certainly
not done, and its error says so. For any other request that ends without an answer, the outcome is unknown.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from givalia_core.errors import ConnectionLost, GivaliaError, WaitTimeout
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import CHANGING, Kind

T = TypeVar("T")
OnProgress: TypeAlias = Callable[[float, str], object]
OnProgressAwaited: TypeAlias = Callable[[float, str], Awaitable[object] | object]

IN_FLIGHT: Final = 8  # Frames of one call that travel before the first is answered.
FOREVER_S: Final = 1e9  # Thirty years; the waits of the system take at most three hundred.


@dataclass(slots=True, eq=False)
class Pending(Generic[T]):
    """A request under way: one frame of commands and its state.

    It can be sent any number of times: the ids in it are made once, so the server recognises a resend (docs/delivery.md).
    """

    kind: Kind
    items: list[Item]
    read: Callable[[Any], T]
    """Turns one answer into the value for the caller; may raise the error that a job ended with."""
    waits: bool = False
    """True if the answer comes when a job has ended, not at once."""
    timeout_s: float | None = None
    """The patience of the caller; None: for a job's end for ever, for other answers as long as requests are resent."""

    deadline_s: float | None = None
    """The deadline of the caller, on the monotonic clock; None: never."""
    wake: Callable[[], object] = field(default=lambda: None)
    """Called when there is something for the caller: the request is over, or has news."""
    answers: list[Any] | None = None
    error: GivaliaError | None = None
    news: tuple[float, str] | None = None
    """The newest progress that the caller has not taken."""
    refusal: list[Any] | None = None
    """The answers of a server that stops, until the next server is asked."""
    refusals: int = 0
    lates: int = 0
    """The number of times a server refused the command as too late."""
    was_sent: bool = False
    """True if a connection took the whole frame and was lost before the answer."""
    was_taken: bool = False
    """True if a server had the whole frame, and refused it or a part of it."""
    connection: object | None = None
    """The connection that carries it."""
    ends_at_byte: int = 0
    """The number of bytes that the connection has taken when it has the whole frame."""
    sent_at_s: float = 0.0
    unsent_since_s: float = 0.0
    """The time since which no connection carries it."""

    @property
    def is_over(self) -> bool:
        """True once it has its answers, or an error for them all."""
        return self.answers is not None or self.error is not None

    @property
    def may_be_done(self) -> bool:
        """True if a copy of it, on a lost connection, may have taken effect or may yet do so."""
        return self.was_sent and self.kind in CHANGING

    @property
    def is_refused(self) -> bool:
        """True if it was not done and is not under way: servers that stop refused it, and it was not sent since."""
        return self.refusal is not None and not self.waits and not self.may_be_done

    @property
    def is_unsent(self) -> bool:
        """True if it was certainly not done: no connection took its whole frame, and none carries it."""
        return not (self.was_sent or self.was_taken) and self.connection is None

    @property
    def is_lost_unsent(self) -> bool:
        """True if it ended with the error that it was not sent."""
        return isinstance(self.error, ConnectionLost) and self.error.details.get("sent") is False

    def lost(self, taken_bytes: int, now_s: float) -> None:
        """Note that its connection is over, and has taken so many bytes."""
        self.unsent_since_s = now_s
        if self.connection is not None:
            self.was_sent = self.was_sent or taken_bytes >= self.ends_at_byte
            self.connection = None

    def refused(self) -> None:
        """Note that a server refused it, and that it is sent again; the accepted part of a frame of many stands."""
        self.connection, self.was_taken = None, True

    def left_s(self, now_s: float) -> float | None:
        """Return the seconds until the caller stops waiting; None: never."""
        return None if self.deadline_s is None else max(self.deadline_s - now_s, 0.0)

    def take(self, answers: list[Any]) -> None:
        """End with an answer for each command, or with one error for them all."""
        if len(answers) == len(self.items):
            self.answers = answers
        else:
            self.error = answers[0]

    def run_out(self, why: str) -> None:
        """End because the caller stops waiting; `why` tells how its connection was lost, if one was."""
        if self.waits:
            self.error = WaitTimeout("the job has not ended in the time given; it goes on")
        else:
            self.give_up(f"no answer in time ({why})" if why else "no answer in time")

    def give_up(self, why: str) -> None:
        """End with the refusal of servers that stop, if there is one; else without an answer."""
        if self.is_refused and self.refusal is not None:
            self.take(self.refusal)
        else:
            self.end(why)

    def end(self, why: str) -> None:
        """End without an answer."""
        if self.waits:
            what = "the job is not touched"
        elif self.kind not in CHANGING and not self.is_unsent:
            what = "nothing was changed"
        else:
            what = "the command was not sent" if self.is_unsent else "whether the command took effect is unknown"
        self.error = ConnectionLost(f"{why}; {what}", sent=not self.is_unsent)


def check_whole(frames: Sequence[Pending[Any]], answered: int) -> None:
    """Correct the error of the first frame of a call: it says that nothing was sent, which may be false for the whole call.

    Args:
        frames: The frames of the call that were not answered, in order.
        answered: How many were answered before them.

    Raises:
        ConnectionLost: It is unknown whether the other frames took effect.
    """
    if frames and frames[0].is_lost_unsent and (answered or not all(each.is_unsent for each in frames)):
        raise ConnectionLost(f"{frames[0].error}, and whether others of this call took effect is unknown", sent=True) from None


class Transport(Protocol):
    """Carries the requests of a blocking client to a server and brings the answers back.

    A client in a program has a `BlockingTransport`, with sockets; the queue of the test kit runs an engine in its own process.
    """

    def ask(self, request: Pending[T], on_progress: OnProgress | None = None) -> T:
        """Return the answer to a request of one command.

        Raises:
            GivaliaError: The command was refused, its outcome is unknown, or the job ended without a result.
        """

    def several(self, requests: Iterable[Pending[Any]]) -> list[Any]:
        """Return the answers to many requests, in order; refusals are among them."""

    def close(self) -> None:
        """Carry nothing more."""


class AwaitedTransport(Protocol):
    """Carries the requests of a client for asyncio."""

    async def ask(self, request: Pending[T], on_progress: OnProgressAwaited | None = None) -> T:
        """As `Transport.ask`."""

    def several(self, requests: Iterable[Pending[Any]]) -> AsyncIterator[list[Any]]:
        """Yield the answers to each of many requests, in order; refusals are among them."""

    async def close(self) -> None:
        """As `Transport.close`."""
