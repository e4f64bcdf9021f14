"""Refusals that the caller does not get, because the request is sent again: to another server, or later to the same."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from givalia_core.client.failover import Failover
from givalia_core.client.pending import Pending
from givalia_core.errors import Busy, GivaliaError, ShuttingDown, StoreFull
from givalia_core.protocol.caller import retry_after_s


def is_kept(
    request: Pending[Any],
    answers: Sequence[Any],
    failover: Failover,
    put_off: MutableMapping[Pending[Any], float],
    now_s: float,
) -> bool:
    """Keep a refused request if it must be sent again; return whether it is kept.

    The request goes to another server if this one stops and there is another. The whole frame is sent again: the refused
    commands were not done, and for the others the ids are known and the answers the same. Or the request is put off, and goes
    to the same server after its `retry_after`.
    """
    if failover.has_others and any(isinstance(answer, ShuttingDown) for answer in answers):
        request.refused()
        request.refusal, request.refusals = list(answers), request.refusals + 1
        failover.refused(request.refusals)
        return True
    busy = _busy(request, answers)
    if busy is None:
        return False
    request.refused()
    request.lates += _is_late(busy)
    put_off[request] = now_s + retry_after_s(busy)
    return True


def _busy(request: Pending[Any], answers: Sequence[Any]) -> GivaliaError | None:
    """Return the refusal after which the same server is asked again.

    A wait is sent again whenever the server is busy, since the time to wait is the caller's own. A command is sent again if it
    came too late to be decided. The caller gets any other `Busy`, unless an earlier copy of the command may be done: a server
    that decides nothing does not know that.
    """
    may_be_done = request.may_be_done
    undecided = (answer for answer in answers if isinstance(answer, Busy) or (may_be_done and isinstance(answer, StoreFull)))
    return next((answer for answer in undecided if request.waits or may_be_done or _is_late(answer)), None)


def _is_late(answer: GivaliaError) -> bool:
    """Return whether a command was refused because it came after its client's limit; nothing was decided."""
    return isinstance(answer, Busy) and bool(answer.details.get("late"))
