"""Inputs that wait for a turn: a queue for each connection, so that no flood delays another connection's command.

A turn takes small inputs first, from every connection, and moves each connection that it served behind the others; then it
takes large frames as far as there is room. Large frames are shared out by commands, not by frames: a client that enqueues in
frames of thousands does not get ahead of workers that report in frames of hundreds. The commands of one connection keep their
order.

A command whose answer may be large is taken only when there is room for that answer. The queue of a connection whose peer
does not read its answers is held until the peer has read.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from givalia_core.engine.records import Gone, Input
from givalia_core.protocol.asked import Asked, decoded
from givalia_core.protocol.frames import FRAME_BYTES_MAX, PARAMS_BYTES_MAX, RESULT_BYTES_MAX
from givalia_core.protocol.messages import CLIENT_KINDS, ERROR_BYTES_MAX, Kind
from givalia_core.protocol.session import DECODED_AT_ONCE

COMMANDS_PER_TURN: Final = 512  # Plus one large frame, so that none waits forever for a turn with room.
SMALL: Final = DECODED_AT_ONCE
READS_PER_TURN: Final = 64  # Each may bring a result into memory.
READS_LEAST: Final = 8
TURN_BYTES: Final = 4 << 20  # After a turn with more bytes of answers, the next turn takes fewer reads.
SMALL_ANSWER_BYTES: Final = 4 << 10  # Answers up to this size are made however low the server's budget is.
ANSWER_BYTES: Final = 200  # An answer to a command that changes something, with its words.
STATUS_BYTES: Final = RESULT_BYTES_MAX + 2 * ERROR_BYTES_MAX
_READS: Final = frozenset({Kind.STAT, Kind.WAIT})  # One answer may be large: see `_answer_bytes`.
_QUESTIONS: Final = frozenset({Kind.STAT, Kind.WAIT, Kind.LIST, Kind.ACT, Kind.INFO, Kind.MODULES, Kind.WORKERS, Kind.BACKUP})
PLENTY: Final = 1 << 40

Queue = deque[Input]


class Inbox:
    """Takes inputs in any order, and hands them out fairly among connections."""

    def __init__(self) -> None:
        self.queues: dict[int, Queue] = {}  # In the order in which they are served next.
        self._held: dict[int, Queue] = {}  # Of connections whose peers have answers to read first.
        self.short: dict[int, Queue] = {}  # Of connections whose next answer does not fit the server's budget.
        self._sparing: set[int] = set()  # Connections that waited for more ended jobs at once than their answers have room for.
        self.reads_most = READS_PER_TURN
        # Fair queueing of large frames, on a scale of commands: where a connection's next frame and the last frame begin.
        self._begins: dict[int, int] = {}
        self._begun = 0
        # Most turns take everything that has arrived. These show that everything fits, without a check of each input.
        self._is_plain = True  # Nothing large, no STAT and nothing left over is in the queues.
        self._commands = self._waits = 0

    def __bool__(self) -> bool:
        """Return whether a turn would find something to take."""
        return bool(self.queues)

    @property
    def is_short(self) -> bool:
        """True while commands wait for room in the server's budget of answers."""
        return bool(self.short)

    def put(self, given: Input) -> None:
        """Add an input that has arrived."""
        conn = given.conn
        if conn in self._held or conn in self.short:
            self._put_aside(given)
            return
        queue = self.queues.get(conn)
        if queue is None:
            queue = self.queues[conn] = deque()
        queue.append(given)
        size = (len(given.messages) or 1) if isinstance(given, Asked) else given.size
        self._commands += size
        if size > SMALL:
            self._is_plain = False
        elif isinstance(given, Asked) and given.kind in _READS:
            self._waits += 1
            self._is_plain = self._is_plain and given.kind is Kind.WAIT

    def put_back(self, asked: Asked) -> None:
        """Add a wait whose answer has no room yet; from now on this connection's waits are taken a few at a time."""
        self._sparing.add(asked.conn)
        self.put(asked)

    def _put_aside(self, given: Input) -> None:
        conn = given.conn
        queue = self._held[conn] if conn in self._held else self.short[conn]
        queue.append(given)
        if isinstance(given, Gone):
            # The peer is gone: its commands are still decided, its questions are dropped.
            self._held.pop(conn, None)
            self.short.pop(conn, None)
            self.queues[conn] = deque(each for each in queue if not _is_question(each))
            self._is_plain = False

    def hold(self, conn: int) -> None:
        """Take nothing more from this connection until `release`."""
        if conn not in self._held:
            queue = self.queues.pop(conn, None)
            self._held[conn] = self.short.pop(conn, deque()) if queue is None else queue

    def release(self, conn: int) -> None:
        """Take inputs from this connection again."""
        queue = self._held.pop(conn, None)
        if queue:
            self.queues[conn] = queue
            self._is_plain = False

    def take(self, left: int = PLENTY) -> list[Input]:
        """Return the inputs of the next turn; their answers may leave at most `left` bytes unread."""
        queues = self.queues
        owed = self._commands * ANSWER_BYTES + self._waits * STATUS_BYTES
        all_fits = self._commands <= COMMANDS_PER_TURN and self._waits <= self.reads_most and owed <= left
        if all_fits and self._is_plain and not self.short and not self._sparing:
            self.queues, self._commands, self._waits = {}, 0, 0
            return [given for queue in queues.values() for given in queue]
        taken = self._take_fairly(left)
        self._is_plain = not self.queues
        self._commands = self._waits = 0
        return taken

    def _take_fairly(self, left: int) -> list[Input]:
        if self.short and left >= FRAME_BYTES_MAX:
            self.queues.update(self.short)
            self.short.clear()
        turn = _Turn(self.reads_most, left)
        for conn in list(self.queues):
            if turn.is_full:
                break
            self._serve(conn, turn)
        turn.takes_large = True
        large = [conn for conn, queue in self.queues.items() if _size(queue[0]) > SMALL]
        for conn in sorted(large, key=self._next_begins):
            if turn.is_full:
                break
            self._serve(conn, turn)
        return turn.taken

    def note_answered(self, count: int) -> None:
        """Adapt the number of reads in a turn to the bytes of the answers that were just sent."""
        if count > TURN_BYTES:
            self.reads_most = max(self.reads_most // 2, READS_LEAST)
        elif count < TURN_BYTES // 2:
            self.reads_most = min(self.reads_most * 2, READS_PER_TURN)

    def take_out(self, kinds: frozenset[Kind]) -> list[Asked]:
        """Take out inputs of these kinds: from each connection those that come before its first input of another kind."""
        taken: list[Asked] = []
        for queues in (self.queues, self._held, self.short):
            for conn, queue in list(queues.items()):
                while queue and isinstance(given := queue[0], Asked) and given.kind in kinds:
                    taken.append(given)
                    queue.popleft()
                if not queue and queues is not self._held:
                    del queues[conn]
        return taken

    def _serve(self, conn: int, turn: _Turn) -> None:
        """Move what fits from one connection's queue into the turn."""
        queue = self.queues[conn]
        before = len(turn.taken)
        turn.begin(is_sparing=conn in self._sparing)
        while queue and turn.fits(given := queue[0]):
            turn.add(queue.popleft())
            if isinstance(given, Gone):
                self._begins.pop(conn, None)
            elif (size := _size(given)) > SMALL:
                self._begun = self._next_begins(conn)
                self._begins[conn] = self._begun + size
        if turn.is_short:
            self.short[conn] = self.queues.pop(conn)
        elif len(turn.taken) > before:
            del self.queues[conn]
            if queue:
                self.queues[conn] = queue
            else:
                self._sparing.discard(conn)

    def _next_begins(self, conn: int) -> int:
        return max(self._begins.get(conn, 0), self._begun)


class _Turn:
    def __init__(self, reads_most: int, left: int) -> None:
        self.taken: list[Input] = []
        self._commands = 0
        self._reads = 0
        self.reads_most = reads_most
        self._left = left
        self._own_left = 0  # Of the connection that is being served.
        self._is_sparing = False
        self._has_large = False
        self.takes_large = False
        self.is_short = False

    def begin(self, *, is_sparing: bool) -> None:
        """Serve the next connection."""
        self._own_left, self._is_sparing, self.is_short = FRAME_BYTES_MAX, is_sparing, False

    @property
    def is_full(self) -> bool:
        return self._commands >= COMMANDS_PER_TURN and (self._has_large or not self.takes_large)

    def fits(self, given: Input) -> bool:
        size = _size(given)
        if size > SMALL and not self._has_large:
            if not self.takes_large:
                return False
        elif self._commands + size > COMMANDS_PER_TURN:
            return False
        # Answers to workers are a few bytes, and no lease may end because clients do not read.
        return isinstance(given, Gone) or given.kind not in CLIENT_KINDS or self._has_room(given, size)

    def _has_room(self, asked: Asked, size: int) -> bool:
        """Return whether the answer has room: with this connection, in this turn, and in the server's budget."""
        if asked.kind not in _READS:
            owed = size * ANSWER_BYTES
        else:
            owed = size * _answer_bytes(asked)
            if self._reads and self._reads + size > self.reads_most:
                return False
            is_counted = self._is_sparing or asked.kind is Kind.STAT
            if is_counted and self._own_left < FRAME_BYTES_MAX and owed > self._own_left:
                return False
        self.is_short = owed > SMALL_ANSWER_BYTES and owed > self._left
        return not self.is_short

    def add(self, given: Input) -> None:
        size = _size(given)
        if size > SMALL and isinstance(given, Asked):
            given = given._replace(messages=decoded(given.messages))
        self.taken.append(given)
        self._commands += size
        self._has_large = self._has_large or size > SMALL
        if isinstance(given, Asked) and given.kind in _READS:
            bytes_each = _answer_bytes(given)
            self._reads += size
            self._left -= size * bytes_each
            if self._is_sparing or given.kind is Kind.STAT:
                self._own_left -= size * bytes_each


def _size(given: Input) -> int:
    return max(len(given.messages), 1) if isinstance(given, Asked) else given.size


def _answer_bytes(asked: Asked) -> int:
    """Return the most bytes of an answer to one command of a frame that reads."""
    wants_params = asked.kind is Kind.STAT and any(getattr(message, "params", False) for message in asked.messages)
    return STATUS_BYTES + PARAMS_BYTES_MAX * wants_params


def _is_question(given: Input) -> bool:
    return isinstance(given, Asked) and given.kind in _QUESTIONS
