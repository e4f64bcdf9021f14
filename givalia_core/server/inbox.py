"""What has arrived and is not yet decided: a queue for each connection, so that no flood stands before a question.

A turn takes what is small first, from everybody, whoever was served going behind the others; and then as much of the large as
it may. Of that each connection has its share by commands, not by frames: who enqueues in frames of thousands does not get ahead
of the workers that report in frames of hundreds. A connection's own commands keep their order.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from givalia_core.engine.records import Asked, Gone, Input
from givalia_core.protocol.messages import Kind

COMMANDS_PER_TURN: Final = 512  # Beyond that one large frame, so that none waits for ever for a turn with room.
SMALL: Final = 64
READS_PER_TURN: Final = 64  # Each may bring a megabyte into memory.
_READS: Final = frozenset({Kind.STAT, Kind.LIST})


class Inbox:
    """Takes inputs in any order of connections, gives them out fairly."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Input]] = {}  # In the order in which they are to be served.
        # Fair queueing of what is large: where a connection's next frame begins on a scale of commands, and the last one did.
        self._begins: dict[int, int] = {}
        self._begun = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def put(self, given: Input) -> None:
        """Something arrived."""
        self._queues.setdefault(given.conn, deque()).append(given)

    def take(self) -> list[Input]:
        """What the next turn is to decide; empty only if there is nothing."""
        turn = _Turn()
        for conn in list(self._queues):
            if turn.is_full:
                break
            self._serve(conn, turn)
        turn.takes_large = True
        large = [conn for conn, queue in self._queues.items() if _size(queue[0]) > SMALL]
        for conn in sorted(large, key=self._next_begins):
            if turn.is_full:
                break
            self._serve(conn, turn)
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

    def _serve(self, conn: int, turn: _Turn) -> None:
        """Move what fits from one connection's queue into the turn."""
        queue = self._queues[conn]
        before = len(turn.taken)
        while queue and turn.fits(given := queue[0]):
            turn.add(queue.popleft())
            if isinstance(given, Gone):
                self._begins.pop(conn, None)
            elif (size := _size(given)) > SMALL:
                self._begun = self._next_begins(conn)
                self._begins[conn] = self._begun + size
        if len(turn.taken) > before:
            del self._queues[conn]
            if queue:
                self._queues[conn] = queue

    def _next_begins(self, conn: int) -> int:
        return max(self._begins.get(conn, 0), self._begun)


class _Turn:
    def __init__(self) -> None:
        self.taken: list[Input] = []
        self._commands = 0
        self._reads = 0
        self._has_large = False
        self.takes_large = False

    @property
    def is_full(self) -> bool:
        return self._commands >= COMMANDS_PER_TURN and (self._has_large or not self.takes_large)

    def fits(self, given: Input) -> bool:
        size = _size(given)
        if size > SMALL and not self._has_large:
            return self.takes_large
        is_read = isinstance(given, Asked) and given.kind in _READS
        return self._commands + size <= COMMANDS_PER_TURN and not (is_read and self._reads >= READS_PER_TURN)

    def add(self, given: Input) -> None:
        size = _size(given)
        self.taken.append(given)
        self._commands += size
        self._reads += isinstance(given, Asked) and given.kind in _READS
        self._has_large = self._has_large or size > SMALL


def _size(given: Input) -> int:
    return max(len(given.messages), 1) if isinstance(given, Asked) else 1
