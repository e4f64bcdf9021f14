"""The answer of the server to a failed attempt: the next step of its job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Follows(NamedTuple):
    """The next step of a job after a failed attempt: its state, its number of attempts, and the wait if it waits."""

    state: str
    max_attempts: int
    delay_us: int | None


class Answered(NamedTuple):
    """The server has answered the report of a failed attempt.

    `follows` is None if it does not say, as older servers do not. `is_taken`: it was of use; else the lease was over.
    """

    fence: int
    follows: Follows | None
    is_taken: bool


def follows(fields: Sequence[Any]) -> Follows | None:
    """Return what the fields of an answer to FAIL say of the job; None if they say nothing."""
    match fields[1:4]:
        case [str(state), int(max_attempts)]:
            return Follows(state, max_attempts, None)
        case [str(state), int(max_attempts), int(delay_us)]:
            return Follows(state, max_attempts, delay_us)
    return None
