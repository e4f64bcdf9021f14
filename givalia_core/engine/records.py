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
    """A connection has ended; `size` says how many commands cost a turn as much: for a worker the number of its modules."""

    conn: int
    size: int = 1


Input: TypeAlias = Asked | Gone


class Reply(NamedTuple):
    """Answer one frame: a record or an error for each of its commands.

    `ended` is the id of the job if the frame waited for its end. Such an answer may be dropped and the wait asked again, by
    that id, when there is room for the result.
    """

    conn: int
    request: int
    answers: list[Answer]
    ended: bytes = b""


class Tell(NamedTuple):
    """Send what was not asked for: a dispatch, a stop, or how far a job is."""

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

    def arguments(self, now: Now) -> dict[str, Any]:
        """Return what the implementations of the hook may ask for."""
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
    """Make the call of a hook; the arguments that the job itself knows need not be given."""
    if name == "on_dead":  # An error that is left of an earlier life has nothing to do with an expiry.
        extra = {"reason": job.reason, "error": None if job.reason == "expired" else job.error}
    return Hook(name, job, extra)


class Ended(NamedTuple):
    """The end of an attempt as far as the server knows it, for `on_retry`."""

    kind: OutcomeKind
    error: str | None


def _shown(value: Any) -> Any:
    return Outcome(value.kind, error=value.error) if isinstance(value, Ended) else value


class JournalEntry(NamedTuple):
    """Something that the log of the server says, after the commit.

    Of a worker (`subject` is its session): it has `joined`, it has `left` as it should, or it is `gone`, with so many `jobs`,
    and `why`. Of a job: its lease ended `unreported`, or it is `dead`. A connection (`subject` is its
    number) has ended the server's hold: it has `resumed`.
    """

    act: str
    subject: Any
    jobs: int = 0
    why: str = ""


Effect: TypeAlias = Reply | Tell | Close | Hook | JournalEntry


UNDECIDED: Final = (Busy, StoreFull, Unauthorized, BadRequest, TooLarge)
"""Errors that decide nothing: the same command may be asked again and be done."""


class Refusal(Exception):  # noqa: N818 - It says what happened, and is caught where that is known.
    """Carries the error that a command is answered with from where it was found to where it is answered.

    `is_decided` says whether the command must never be done later; by default that follows from the error.
    """

    def __init__(self, error: GivaliaError, *, is_decided: bool | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.is_decided = not isinstance(error, UNDECIDED) if is_decided is None else is_decided
