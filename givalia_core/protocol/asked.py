"""A frame of commands on its way from a connection to the engine, and how its items become messages."""

from __future__ import annotations

from typing import Any, NamedTuple

from givalia_core.protocol.codec import decoded_items
from givalia_core.protocol.messages import Kind


class Asked(NamedTuple):
    """One frame (or line) from one connection: its commands in order, each a message or its decoding error.

    The commands of a large frame are not decoded yet; see `Packed`.
    """

    conn: int
    request: int
    kind: Kind
    messages: list[Any]
    until_us: int | None = None  # Monotonic clock: commands that change something are not decided later; None: no limit.
    is_once: bool = False  # The server made the request ids itself, so the same command never comes again.


class Packed(list[tuple[bytes, bytes]]):
    """The items of a large frame as they came: until the frame is decided, it takes little more memory than was sent."""

    def __init__(self, kind: Kind, items: list[tuple[bytes, bytes]]) -> None:
        super().__init__(items)
        self._kind = kind

    def decoded(self) -> list[Any]:
        """Return a message or a decoding error for each item."""
        return decoded_items(self._kind, self)


def decoded(messages: list[Any]) -> list[Any]:
    """Return the messages of an `Asked`, even of a large frame."""
    return messages.decoded() if isinstance(messages, Packed) else messages
