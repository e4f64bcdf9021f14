"""One call of a client on its way: when it was sent and how often, and the answers once they are there.

A server does a command only when it has the whole of its frame. So a call of which no connection ever took the last byte was
certainly not done, and its error says so. Whether any other call that ends without an answer was done is unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from givalia_core.client.talk import Call
from givalia_core.errors import ConnectionLost, GivaliaError, WaitTimeout
from givalia_core.protocol.messages import CHANGING
from givalia_core.times import Length, length_to_seconds

FOREVER_S: Final = 1e9  # Thirty years are as good as for ever; the waits of the system take no more than three hundred.


class Slot:
    """One call on its way: what was sent, and the answers once they are there."""

    __slots__ = (
        "answers",
        "call",
        "deadline",
        "ends_at",
        "error",
        "lates",
        "news",
        "refusal",
        "refusals",
        "sent",
        "unsent_since",
        "visit",
        "wake",
        "was_sent",
        "was_taken",
    )

    def __init__(self, call: Call[Any], deadline: float | None, now: float, wake: Callable[[], None] = lambda: None) -> None:
        self.call = call
        self.deadline = deadline  # When the caller will wait no longer; None if never.
        self.wake = wake  # Called when there is something for the caller: it is over, or has news.
        self.answers: list[Any] | None = None
        self.error: GivaliaError | None = None
        self.news: tuple[float, str] | None = None  # The newest progress that the caller has not taken.
        self.refusal: list[Any] | None = None  # What a server that stops has answered, until the next has been asked.
        self.refusals = 0
        self.lates = 0  # How often a server has refused it because it came too late.
        self.was_sent = False  # Whether a connection has taken the whole frame and was lost before the answer.
        self.was_taken = False  # Whether a server has had the whole frame, and refused it or a part of it.
        self.visit: object | None = None  # The connection that carries it,
        self.ends_at = 0  # and how many bytes that connection has taken when it has the whole frame.
        self.sent = 0.0
        self.unsent_since = now  # Since when no connection has carried it.

    @classmethod
    def of(
        cls, call: Call[Any], timeout: Length | None, resend_s: float, now: float, wake: Callable[[], None] = lambda: None
    ) -> Slot:
        """A call whose caller will wait so long; only a wait is without end.

        Raises:
            BadRequest: The timeout is no number or `timedelta`.
        """
        if timeout is None:
            return cls(call, None if call.waits else now + resend_s, now, wake)
        timeout_s = length_to_seconds(timeout, "timeout")
        return cls(call, None if timeout_s >= FOREVER_S else now + timeout_s, now, wake)

    @property
    def is_over(self) -> bool:
        return self.answers is not None or self.error is not None

    @property
    def may_be_done(self) -> bool:
        """A copy of it, on a connection that is lost, may have taken effect or may do so yet."""
        return self.was_sent and self.call.kind in CHANGING

    @property
    def is_refused(self) -> bool:
        """It was not done, and is not under way: servers that stop have refused it, and it was not sent since."""
        return self.refusal is not None and not self.call.waits and not self.may_be_done

    @property
    def is_unsent(self) -> bool:
        """No connection has taken its whole frame, and none will: it was certainly not done."""
        return not (self.was_sent or self.was_taken) and self.visit is None

    @property
    def is_lost_unsent(self) -> bool:
        """It has ended with the error that it was not sent."""
        return isinstance(self.error, ConnectionLost) and self.error.details.get("sent") is False

    def lost(self, taken_bytes: int, now: float) -> None:
        """Note that the connection that carries it is over, having taken so many bytes."""
        self.unsent_since = now
        if self.visit is not None:
            self.was_sent = self.was_sent or taken_bytes >= self.ends_at
            self.visit = None

    def refused(self) -> None:
        """Note that a server has answered it, and that it is to be sent again; what it did of a frame of many stands."""
        self.visit, self.was_taken = None, True

    def left(self, now: float) -> float | None:
        """Seconds until the caller will wait no longer; None if for ever."""
        return None if self.deadline is None else max(self.deadline - now, 0.0)

    def take_news(self) -> tuple[float, str] | None:
        """Return the newest progress if the caller has not taken it yet, else None."""
        news, self.news = self.news, None
        return news

    def result(self) -> list[Any]:
        """The answers of a call that is over.

        Raises:
            GivaliaError: There are none.
        """
        if self.error is not None:
            raise self.error
        assert self.answers is not None
        return self.answers

    def take(self, answers: list[Any]) -> None:
        """Be over: an answer for each command, or one error for them all."""
        if len(answers) == len(self.call.items):
            self.answers = answers
        else:
            self.error = answers[0]

    def run_out(self, why: str) -> None:
        """Be over because the caller will wait no longer; `why` the connection that carried it was lost, if one was."""
        if self.call.waits:
            self.error = WaitTimeout("the job has not ended in the time given; it goes on")
        else:
            self.give_up(f"no answer in time ({why})" if why else "no answer in time")

    def give_up(self, why: str) -> None:
        """Be over without an answer, unless a refusal is one."""
        if self.is_refused and self.refusal is not None:
            self.take(self.refusal)
        else:
            self.end(why)

    def end(self, why: str) -> None:
        """Be over without an answer."""
        if self.call.waits:
            what = "the job is not touched"
        elif self.call.kind not in CHANGING and not self.is_unsent:
            what = "nothing was changed"
        else:
            what = "the command was not sent" if self.is_unsent else "whether the command took effect is unknown"
        self.error = ConnectionLost(f"{why}; {what}", sent=not self.is_unsent)


def check_whole(slots: Sequence[Slot], answered: int) -> None:
    """Correct the error of the first of a call's frames, if it was not sent, and that is not true of the whole call.

    Args:
        slots: The frames of the call that were not answered, in order.
        answered: How many were answered before them.

    Raises:
        ConnectionLost: Whether the other frames took effect is unknown.
    """
    if slots and slots[0].is_lost_unsent and (answered or not all(slot.is_unsent for slot in slots)):
        raise ConnectionLost(f"{slots[0].error}, and whether others of this call took effect is unknown", sent=True) from None
