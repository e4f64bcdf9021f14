"""What has arrived and is not yet decided: a queue for each connection, so that no flood stands before a question.

A turn takes what is small first, from everybody, and then as much of the large as it may; whoever was served goes behind the
others. A connection's own commands keep their order.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from givalia_core.engine.records import Asked, Input
from givalia_core.protocol.messages import Kind

COMMANDS_PER_TURN: Final = 4_000  # Beyond that only a single frame that is larger itself.
SMALL: Final = 64
READS_PER_TURN: Final = 64  # Each may bring a megabyte into memory.
_READS: Final = frozenset({Kind.STAT, Kind.LIST})


class Inbox:
    """Takes inputs in any order of connections, gives them out fairly."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Input]] = {}  # In the order in which they are to be served.

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, given: Input) -> None:
        """Something arrived."""
        self._queues.setdefault(given.conn, deque()).append(given)

    def take(self) -> list[Input]:
        """What the next turn is to decide; empty only if there is nothing."""
        turn = _Turn()
        for most in (SMALL, COMMANDS_PER_TURN, None):
            if most is None and turn.taken:
                break
            for conn in list(self._queues):
                self._serve(conn, turn, most)
                if turn.is_full or (most is None and turn.taken):
                    break
        return turn.taken

    def take_out(self, kinds: frozenset[Kind]) -> list[Asked]:
        """Everything of these kinds, past all turns; of a connection only what stands before anything else it has asked."""
        taken: list[Asked] = []
        for conn, queue in list(self._queues.items()):
            while queue and isinstance(given := queue[0], Asked) and given.kind in kinds:
                taken.append(given)
                queue.popleft()
            if not queue:
                del self._queues[conn]
        return taken

    def _serve(self, conn: int, turn: _Turn, most: int | None) -> None:
        """Move what fits from one connection's queue into the turn, nothing larger than `most`."""
        queue = self._queues[conn]
        before = len(turn.taken)
        while queue and turn.fits(queue[0], most):
            turn.add(queue.popleft())
            if most is None:
                break
        if len(turn.taken) > before:
            del self._queues[conn]
            if queue:
                self._queues[conn] = queue


class _Turn:
    def __init__(self) -> None:
        self.taken: list[Input] = []
        self._commands = 0
        self._reads = 0

    @property
    def is_full(self) -> bool:
        return self._commands >= COMMANDS_PER_TURN

    def fits(self, given: Input, most: int | None) -> bool:
        if most is None:
            return True
        size = _size(given)
        is_read = isinstance(given, Asked) and given.kind in _READS
        return size <= most and self._commands + size <= COMMANDS_PER_TURN and not (is_read and self._reads >= READS_PER_TURN)

    def add(self, given: Input) -> None:
        self.taken.append(given)
        self._commands += _size(given)
        self._reads += isinstance(given, Asked) and given.kind in _READS


def _size(given: Input) -> int:
    return max(len(given.messages), 1) if isinstance(given, Asked) else 1
