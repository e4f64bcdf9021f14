"""Refusals that the caller does not hear of, because the request is sent again: to another server, or later to the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from givalia_core.client.pending import Pending
from givalia_core.errors import Busy, GivaliaError, ShuttingDown, StoreFull


def are_of_a_server_that_stops(answers: Sequence[Any]) -> bool:
    """Return whether the server stops and has not run the whole frame."""
    return any(isinstance(answer, ShuttingDown) for answer in answers)


def later(request: Pending[Any], answers: Sequence[Any]) -> GivaliaError | None:
    """Return the refusal after whose `retry_after` the same server is asked again, without the caller hearing of it.

    A wait is sent again whenever the server is busy, since the time to wait is the caller's own. A command is sent again if it
    came too late to be decided; any other `Busy` is for the caller, unless an earlier copy of the command may be done: a server
    that decides nothing does not know.
    """
    may_be_done = request.may_be_done
    undecided = (answer for answer in answers if isinstance(answer, Busy) or (may_be_done and isinstance(answer, StoreFull)))
    return next((answer for answer in undecided if request.waits or may_be_done or is_late(answer)), None)


def is_late(answer: GivaliaError) -> bool:
    """Return whether a command was refused as older than its client waits; nothing was decided."""
    return isinstance(answer, Busy) and bool(answer.details.get("late"))
