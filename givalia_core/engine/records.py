"""The inputs and the effects of the engine."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from givalia_core.clock import Now
from givalia_core.errors import BadRequest, Busy, GivaliaError, StoreFull, TooLarge, Unauthorized
from givalia_core.model import Job, OutcomeKind
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.frames import Item
from givalia_core.protocol.messages import Kind
from givalia_core.times import to_datetime
from givalia_core.views import JobView, Outcome, text_id


class Gone(NamedTuple):
    """A connection that has ended; `size` is its cost to a turn in commands: for a worker the number of its modules."""

    conn: int
    size: int = 1


Input: TypeAlias = Asked | Gone


class Reply(NamedTuple):
    """The answers to one frame: a record or an error for each of its commands.

    `ended` is the id of the job if the frame waited for its end. Such an answer may be dropped and the wait asked again, by
    that id, when there is room for the result.
    """

    conn: int
    request: int
    answers: list[Answer]
    ended: bytes = b""


class Tell(NamedTuple):
    """A message that the peer did not ask for: a dispatch, a stop, or a job's progress."""

    conn: int
    kind: Kind
    items: list[Item]


class Close(NamedTuple):
    """The end of a connection that is of no use any more."""

    conn: int
    why: str


class Hook(NamedTuple):
    """A hook call to plugins on the server, made after the commit."""

    name: str
    job: Job
    extra: dict[str, Any]

    def arguments(self, now: Now) -> dict[str, Any]:
        """Return the arguments that implementations of the hook may take."""
        job = self.job
        shown = JobView(
            text_id(job.id),
            job.key,
            job.module,
            job.target_worker,
            job.priority,
            job.attempt,
            to_datetime(job.due_on_wall_us(now)),
            version=job.specifier,
        )
        return {"job": shown, **{name: _shown(value) for name, value in self.extra.items()}}


def hook_of(name: str, job: Job, **extra: Any) -> Hook:
    """Return the call of a hook; arguments that the job itself has need not be given."""
    if name == "on_dead":  # An error left from an earlier life has nothing to do with an expiry.
        extra = {"reason": job.reason, "error": None if job.reason == "expired" else job.error}
    return Hook(name, job, extra)


class Ended(NamedTuple):
    """The end of an attempt as far as the server knows it, for `on_retry`."""

    kind: OutcomeKind
    error: str | None


def _shown(value: Any) -> Any:
    return Outcome(value.kind, error=value.error) if isinstance(value, Ended) else value


class JournalEntry(NamedTuple):
    """An entry for the log of the server, written after the commit.

    A worker (`subject` is its session) has `joined`, has `left` as it should, or is `gone`, with so many `jobs`, and `why`. A
    job (`subject`) is `dead`, or its lease ended `unreported`. A connection (`subject` is its number) has `resumed`: it has
    ended the server's hold.
    """

    act: str
    subject: Any
    jobs: int = 0
    why: str = ""


Effect: TypeAlias = Reply | Tell | Close | Hook | JournalEntry


UNDECIDED: Final = (Busy, StoreFull, Unauthorized, BadRequest, TooLarge)
"""Errors that decide nothing: the same command may be sent again and be done."""


class Refusal(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """The error that answers a command, raised where the error is found and caught where the command is answered.

    `is_decided` says whether the command must never be done later; by default that follows from the error.
    """

    def __init__(self, error: GivaliaError, *, is_decided: bool | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_decided = not isinstance(error, UNDECIDED) if is_decided is None else is_decided
