"""The answers of commands that changed no job, by request id, so that a refused command is never done later.

A job's own record keeps the answers of the commands that changed it. This memory keeps the others: refusals, and answers such
as "already cancelled". The memory is bounded, and need not survive: a copy of a frame that waits in a socket ends with the
process. Servers that share a store keep these answers in the store as well, and this memory bounds how many each adds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

import msgpack

from givalia_core.errors import StoreCorrupt
from givalia_core.model import REMEMBERED_AT_LEAST_US
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.codec import UnreadableAnswer, answer_item, read_answer
from givalia_core.protocol.messages import Kind
from givalia_core.store.shared import Kept

BYTES_MAX: Final = 128 << 20
ENTRY_BYTES: Final = 250  # The cost of one entry beside the bytes of its answer.
FORGOTTEN_AT_ONCE: Final = 4_000  # In one turn; a turn adds fewer unless a single frame has more.

_pack = msgpack.Packer(autoreset=True).pack


def pack(answer: Answer) -> bytes:
    """Return the packed form, as we keep it, of an answer that has no payload."""
    packed: bytes = _pack(answer_item(answer)[0])
    return packed


def unpack(kind: Kind, packed: bytes) -> Answer:
    """Return the packed answer to a command of this kind; if it cannot be read, the answer is an error."""
    try:
        return read_answer(kind, msgpack.unpackb(packed))
    except UnreadableAnswer as error:  # Another server of the store, perhaps of a later version, has kept the answer.
        return StoreCorrupt(f"the answer that this command was given cannot be read: {error}")


class Remembered:
    """Answers by request id, each for at least two minutes."""

    def __init__(self) -> None:
        self._answers: dict[bytes, bytes] = {}
        self._order: deque[tuple[int, bytes]] = deque()  # When each was added on the monotonic clock, oldest first.
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._answers)

    def has_room(self, more: int) -> bool:
        """Return whether one answer can be added besides `more` that are about to be added."""
        return self.bytes + more * ENTRY_BYTES < BYTES_MAX

    def get(self, kind: Kind, request: bytes) -> Answer | None:
        """Return the answer that this request was given; None if it is not known."""
        packed = self._answers.get(request)
        return None if packed is None else unpack(kind, packed)

    def add(self, answers: Iterable[Kept], mono_us: int) -> None:
        """Remember answers from now on."""
        for request, packed, _ in answers:
            if request not in self._answers:
                self._answers[request] = packed
                self._order.append((mono_us, request))
                self.bytes += len(packed) + ENTRY_BYTES

    def forget(self, mono_us: int, held_up_us: int) -> None:
        """Discard answers that are old enough, a bounded number of them.

        Args:
            mono_us: Now.
            held_up_us: How long this process stood still lately: copies of commands may have waited in its sockets as long.
        """
        since_us = mono_us - REMEMBERED_AT_LEAST_US - held_up_us
        order = self._order
        for _ in range(FORGOTTEN_AT_ONCE):
            if not order or order[0][0] >= since_us:
                return
            _, request = order.popleft()
            self.bytes -= len(self._answers.pop(request)) + ENTRY_BYTES
