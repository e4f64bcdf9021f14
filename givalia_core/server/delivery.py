"""Answers, dispatches and hook calls on their way out, once the changes they report are on disk.

Connections are served one after the other, so that the answers of a turn are never all in memory together. A large result of
a wait becomes an answer only when its connection has room for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from givalia_core.clock import Now
from givalia_core.engine.records import Close, Effect, Hook, JournalEntry, Reply, Tell
from givalia_core.protocol import frames
from givalia_core.protocol.answers import EndedDone
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind, Wait
from givalia_core.server.connection import Connection
from givalia_core.server.connections import INSIDE, Connections
from givalia_core.server.hookrunner import HookRunner
from givalia_core.server.inbox import READS_PER_TURN, TURN_BYTES, Inbox
from givalia_core.server.unread import UNSENT_BYTES_MAX

DELIVERED_BYTES: Final = 8 << 20  # Of one turn; later turns send further results of waits,
DELIVERED_ENDS: Final = 2_000  # and further ends.
WRITE_BYTES: Final = 256 << 10  # Answers beyond this leave in several writes.


class Delivery:
    """Hands the effects of a turn to connections, to plugins, and to code in this process.

    Args:
        connections: The connections.
        inbox: Takes back waits that a later turn answers.
        runner: Calls the hooks of plugins.
        answer_inside: Takes the answers to questions of the server's own process.
    """

    def __init__(
        self, connections: Connections, inbox: Inbox, runner: HookRunner, answer_inside: Callable[[Reply], object]
    ) -> None:
        self._connections, self._inbox, self._runner = connections, inbox, runner
        self._answer_inside = answer_inside
        self._bytes_most = self._sent_bytes = self._ends = 0  # Of the turn being delivered.
        self._is_tight = False  # Ends of jobs may have to wait for a later turn: this one has too many, or large ones.

    def deliver(self, effects: Sequence[Effect], now: Now) -> None:
        """Send answers and dispatches, to one connection after the other; then carry out all other effects."""
        out: dict[int, list[Reply | Tell]] = {}
        rest: list[Close | JournalEntry | Hook | Reply] = []
        for effect in effects:
            if not isinstance(effect, (Reply, Tell)) or effect.conn == INSIDE:
                rest.append(effect)  # type: ignore[arg-type]
            elif effect.conn in out:
                out[effect.conn].append(effect)
            else:
                out[effect.conn] = [effect]
        unread, by_number = self._connections.unread, self._connections.by_number
        self._bytes_most, self._sent_bytes, self._ends = min(DELIVERED_BYTES, unread.most_bytes - unread.bytes), 0, 0
        self._is_tight = len(effects) > DELIVERED_ENDS or self._bytes_most <= 0
        for number, told in out.items():
            if (connection := by_number.get(number)) is not None:  # Else it is gone, and what was for it is dropped.
                self._say(connection, told)
                self._is_tight = self._is_tight or self._sent_bytes >= self._bytes_most
        if self._sent_bytes > TURN_BYTES or self._inbox.reads_most < READS_PER_TURN:
            self._inbox.note_answered(self._sent_bytes)
        for other in rest:
            self._do(other, now)

    def _do(self, effect: Close | JournalEntry | Hook | Reply, now: Now) -> None:
        """Carry out an effect that sends nothing to a connection."""
        if isinstance(effect, Hook):
            self._runner.tell(effect, now)
        elif isinstance(effect, JournalEntry):
            self._connections.journal.tell(effect)
        elif isinstance(effect, Reply):
            self._answer_inside(effect)
        elif (connection := self._connections.by_number.get(effect.conn)) is not None:
            connection.close(effect.why)

    def _say(self, connection: Connection, told: Iterable[Reply | Tell]) -> None:
        """Send one connection its answers, in one write unless they are large; some ends of jobs wait for later turns."""
        parts: list[bytes] = []
        size = 0
        for effect in told:
            if isinstance(effect, Tell):
                first, items = (effect.items[0], effect.items[1:]) if effect.kind is Kind.DISPATCH else (None, effect.items)
                new = frames.encode_split(effect.kind, 0, items, first)  # Each frame of jobs says what their leases count from.
            elif effect.ended and (connection.unsent.bytes or self._is_tight) and not self._has_room(connection, effect, size):
                continue
            else:
                new = [connection.answer(effect.request, effect.answers)]
            parts += new
            size += sum(map(len, new))
            if size >= WRITE_BYTES:
                connection.send(b"".join(parts))
                self._sent_bytes += size
                self._is_tight = self._is_tight or self._sent_bytes >= self._bytes_most
                size, parts = 0, []
        if parts:
            connection.send(b"".join(parts))
            self._sent_bytes += size

    def _has_room(self, connection: Connection, reply: Reply, size: int) -> bool:
        """Return whether the end of a job can be told now; if not, put the wait back for a later turn."""
        (end,) = reply.answers
        size += len(end.payload) if isinstance(end, EndedDone) else 0
        unsent = connection.unsent.bytes  # A peer that has read everything may get an answer of any size.
        takes = not unsent or unsent + size <= UNSENT_BYTES_MAX
        self._ends += 1
        if takes and self._sent_bytes < self._bytes_most and self._ends <= DELIVERED_ENDS:
            return True
        connection.postpone(reply.request)
        again = Asked(reply.conn, reply.request, Kind.WAIT, [Wait(id=reply.ended)])
        (self._inbox.put if takes else self._inbox.put_back)(again)
        return False
