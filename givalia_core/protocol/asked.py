"""A frame of commands on its way from a connection to the engine, and how its items become messages."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from givalia_core.errors import GivaliaError
from givalia_core.protocol.codec import decode
from givalia_core.protocol.messages import Kind

ERRORS_MAX: Final = 16  # That a frame keeps words for; whatever else is wrong in it shares them.


class Asked(NamedTuple):
    """One frame (or line) from one connection: its commands in order, each a message or the error that decoding it gave.

    The commands of a large frame are not decoded yet; see `Packed`.
    """

    conn: int
    request: int
    kind: Kind
    messages: list[Any]
    until_us: int | None = None  # Monotonic clock: commands that change something are not decided later; None: no limit.
    is_once: bool = False  # The server made the request ids itself, so the same command never comes again.


class Packed(list[tuple[bytes, bytes]]):
    """The items of a large frame as they came: until the frame is decided, it costs little more than was sent."""

    def __init__(self, kind: Kind, items: list[tuple[bytes, bytes]]) -> None:
        super().__init__(items)
        self._kind = kind

    def decoded(self) -> list[Any]:
        """Return a message, or the error that decoding gave, for each item."""
        return decoded_items(self._kind, self)


def decoded(messages: list[Any]) -> list[Any]:
    """Return the messages of an `Asked`, of a large frame too."""
    return messages.decoded() if isinstance(messages, Packed) else messages


def decoded_items(kind: Kind, items: list[tuple[bytes, bytes]]) -> list[Any]:
    """Return a message, or the error that decoding gave, for each item."""
    found: list[Any] = []
    errors: dict[str, GivaliaError] = {}
    for packed, payload in items:
        try:
            found.append(decode(kind, packed, payload))
        except GivaliaError as error:
            found.append(_kept(error, errors))
    return found


def _kept(error: GivaliaError, errors: dict[str, GivaliaError]) -> GivaliaError:
    """An error as it is kept for its answer: one of those that the frame has already, if that says the same."""
    words = str(error)
    if words not in errors:
        if len(errors) >= ERRORS_MAX:
            return errors.setdefault(error.code, type(error)("one of many items of this frame that cannot be taken"))
        # Without what Python remembers of its way here, which is a thousand bytes each.
        error.__traceback__ = error.__context__ = None
        errors[words] = error
    return errors[words]
