"""Cuts many messages into few frames, within the limits of the protocol."""

from __future__ import annotations

from typing import Any

from givalia_core.protocol import frames
from givalia_core.protocol.messages import Succeed


def parts_of(said: list[Any]) -> list[list[Any]]:
    """Cut messages into frames that are not too large; one empty frame if there are no messages."""
    parts: list[list[Any]] = [[]]
    room = frames.FRAME_BYTES_MAX // 2
    for message in said:
        size = 48 + (len(message.payload) if isinstance(message, Succeed) else 4 * len(_words(message)))
        if parts[-1] and (size > room or len(parts[-1]) == frames.ITEMS_MAX):
            parts.append([])
            room = frames.FRAME_BYTES_MAX // 2
        parts[-1].append(message)
        room -= size
    return parts


def _words(message: Any) -> str:
    """Return the text that makes a message without payload long."""
    return getattr(message, "error", None) or getattr(message, "text", None) or ""
