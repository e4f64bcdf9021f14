"""Reads the answers of a server that say more than a plain OK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

from givalia_core.errors import BadRequest, Busy, GivaliaError, ShuttingDown
from givalia_core.protocol import messages
from givalia_core.protocol.addresses import PORT_MAX
from givalia_core.protocol.codec import answer_error
from givalia_core.protocol.messages import Kind
from givalia_core.settings import CLIENT_PORT
from givalia_core.worker.link.records import Follows

Answers: TypeAlias = Sequence[tuple[Sequence[Any], bytes]]
Errors: TypeAlias = list[GivaliaError | None] | None
"""The error of each message of a frame; None if all messages succeeded."""
_NEEDED: Final = (Kind.JOIN, Kind.ANNOUNCE, Kind.RESUME, Kind.CREDIT)  # The worker leaves a server that refuses these as busy.
_REFUSABLE: Final = (Kind.JOIN, Kind.ANNOUNCE, Kind.CREDIT)  # An error in the answer to these refuses the worker.


def errors_of(kind: Kind, said: list[Any], items: Answers, *, has_others: bool) -> list[GivaliaError | None]:
    """Return the error of each message of a frame; None where there is none.

    Raises:
        GivaliaError: The server breaks the protocol or refuses this worker: go on to the next server.
    """
    errors = [answer_error(fields) for fields, _ in items]
    busy = next((error for error in errors if isinstance(error, Busy)), None)
    if busy is not None and (kind in _NEEDED or (isinstance(busy, ShuttingDown) and has_others)):
        raise busy
    if len(errors) == len(said):
        if kind in _REFUSABLE and errors and errors[0] is not None:
            raise errors[0]
        return errors
    if busy is not None:
        return [busy] * len(said)
    raise (errors and errors[0]) or GivaliaError("the server answered another number of messages than it was sent")


def joined(items: Answers) -> tuple[int, int]:
    """Return the length of a lease and the port for clients from the answer to JOIN; older servers name no port.

    Raises:
        BadRequest: The answer does not say how long a lease is.
    """
    fields = items[0][0]
    if len(fields) < 2 or type(fields[1]) is not int or not 0 < fields[1] <= messages.FOREVER_US:
        raise BadRequest("the server does not say how long a lease is")
    is_told = len(fields) > 2 and type(fields[2]) is int and 0 < fields[2] <= PORT_MAX
    return fields[1], fields[2] if is_told else CLIENT_PORT


def follows(fields: Sequence[Any]) -> Follows | None:
    """Return the next step of the job from the answer to FAIL; None if the answer has none."""
    match list(fields[1:4]):
        case [str(state), int(max_attempts)]:
            return Follows(state, max_attempts, None)
        case [str(state), int(max_attempts), int(delay_us)]:
            return Follows(state, max_attempts, delay_us)
    return None
