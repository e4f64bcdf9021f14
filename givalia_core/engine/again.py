"""Commands to decide again: a change was refused, or the store went away before it was known to be stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final

from givalia_core.clock import Now
from givalia_core.engine.answers import VERBS
from givalia_core.engine.aside import Aside, Waiting
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk
from givalia_core.engine.records import Gone, Input, Reply
from givalia_core.errors import Busy
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Hold

STUCK_US: Final = 200_000  # Between looks for room on a disk whose reserve is used up.
PAUSE_US: Final = 10_000  # Between tries of what is refused again and again: somebody else holds it.
LATER: Final = Busy("the job is held by another transaction", retry_after=1.0)

Name = tuple[int, int]  # Of a frame: its connection and request.


class Again:
    """The inputs that go into the next batch once more."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.inputs: list[Input] = []
        self.aside: Aside = desk.aside
        self.standing: dict[
            Name, dict[int, Answer]
        ] = {}  # Of these frames: the answers that stand, by the place of the command.
        self._unsure: set[Name] = set()  # Frames of which it is not known whether they were stored.
        self.has_state = False  # Something of an earlier turn is decided again, or waits alone.
        self.is_stuck = False  # Whether a full disk keeps them, and its reserve is used up.
        self._refusals = 0  # Batches in a row in which something was refused.

    @property
    def pause_us(self) -> int:
        """Return the pause before the next try, in microseconds."""
        if self.is_stuck:
            return STUCK_US
        return 0 if self._refusals <= 1 else PAUSE_US

    def unanswered(self, asked: Asked) -> Asked:
        """A frame without the commands whose answers are known."""
        known = self.standing.get((asked.conn, asked.request), {})
        left = [message for number, message in enumerate(asked.messages) if number not in known] if known else asked.messages
        return asked._replace(messages=left) if known else asked

    def take_back(self, inputs: Sequence[Input], batch: Batch, refused: Set[int], held: Mapping[int, Hold]) -> set[Name]:
        """Decide again what came to nothing: the frames (connection and request) that cannot be answered yet.

        Of such a frame the commands that did come to something keep their answers. A frame of which nothing is left but what
        is held (the holds by seq) waits alone.
        """
        self.inputs = []
        stored: dict[Name, dict[int, Answer]] = {}
        self._refusals = self._refusals + 1 if len(refused) > len(held) else 0
        if refused:
            self._take_back(inputs, batch, refused, held, stored)
        if self.aside.until_us:
            self.aside.settle(inputs, stored)
        self.standing = stored
        self._unsure.clear()
        self.is_stuck = False
        self.has_state = bool(self.inputs or stored or self._refusals or self.aside.until_us)
        return set(stored)

    def _take_back(
        self,
        inputs: Sequence[Input],
        batch: Batch,
        refused: Set[int],
        held: Mapping[int, Hold],
        stored: dict[Name, dict[int, Answer]],
    ) -> None:
        lost: dict[int, set[int]] = {}
        for seq, (place, number) in batch.touched:
            if seq in refused and place >= 0:
                lost.setdefault(place, set()).add(number)
        answers = {(e.conn, e.request): e.answers for _, e in batch.effects if isinstance(e, Reply)} if lost else {}
        gone = {given.conn for given in inputs if isinstance(given, Gone)} if lost else set()
        for place in sorted(lost):
            given = inputs[place]
            if not isinstance(given, Asked):
                continue
            name = given.conn, given.request
            told = answers.get(name, [])
            if VERBS[given.kind].is_whole:
                # Nothing is known of those leases now; the others hold, and must not wait for them.
                for number in lost[place]:
                    told[number] = LATER
                continue
            self._desk.waits.drop(*name)
            if given.kind is not Kind.WAIT or given.conn not in gone:
                answered = {number: answer for number, answer in enumerate(told) if number not in lost[place]}
                stored[name] = answered
                holds = _holds_of(batch, held, place) if held else {}
                if not holds.keys() >= lost[place]:
                    self.inputs.append(given)
                elif given.conn not in gone:
                    self.aside.put(Waiting(given, holds, answered), batch.now, is_unsure=name in self._unsure)

    def take_up(self, freed: frozenset[str], now: Now) -> list[Input]:
        """Bring back the frames whose holds may be over; the answers of each that stand are known again."""
        taken = self.aside.take(freed, now)
        self.has_state = True
        self.standing |= {(each.asked.conn, each.asked.request): each.answers for each in taken if each.answers}
        return [each.asked for each in taken]

    def keep(self, inputs: Sequence[Input], *, is_unsure: bool) -> None:
        """Decide all of a batch again; `is_unsure` if it may have been stored all the same."""
        self.inputs, self.has_state = list(inputs), True
        for given in inputs:
            if isinstance(given, Asked) and given.kind is Kind.WAIT:
                self._desk.waits.drop(given.conn, given.request)
        if is_unsure:
            self._unsure.update((given.conn, given.request) for given in inputs if isinstance(given, Asked))

    def add(self, asked: Sequence[Asked]) -> None:
        """Decide questions again whose answers could not be read."""
        self.inputs += asked
        self.has_state = True

    def put_off(self, kinds: frozenset[Kind]) -> list[Asked]:
        """While the store is away: take out the frames of these kinds that are known not to have been stored."""
        put_off: list[Asked] = self.aside.put_off(kinds)
        kept: list[Input] = []
        for given in self.inputs:
            if isinstance(given, Asked) and given.kind in kinds and not self._may_be_stored(given):
                put_off.append(given)
            else:
                kept.append(given)
        self.inputs = kept
        return put_off

    def _may_be_stored(self, asked: Asked) -> bool:
        """Return whether a part of a frame that is to be decided again may have been stored."""
        name = asked.conn, asked.request
        return name in self._unsure or bool(self.standing.get(name))


def _holds_of(batch: Batch, held: Mapping[int, Hold], place: int) -> dict[int, Hold]:
    """Return what holds the commands of the input at this place, by the place of the command in it."""
    return {number: held[seq] for seq, (at, number) in batch.touched if at == place and seq in held}
