"""Commands to decide again: the store refused a change, or went away before it confirmed the change."""

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

STUCK_US: Final = 200_000  # Between polls for room on a disk whose reserve is used up.
PAUSE_US: Final = 10_000  # Between tries of a change that is refused again and again: something else holds its job.
LATER: Final = Busy("the job is held by another transaction", retry_after=1.0)

Name = tuple[int, int]  # A frame's connection and request.


class Again:
    """The inputs that the next batch decides again."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self.inputs: list[Input] = []
        self.aside: Aside = desk.aside
        self.standing: dict[Name, dict[int, Answer]] = {}  # By frame: the answers that stand, by the command's place.
        self._unsure: set[Name] = set()  # Frames that may or may not be stored.
        self.has_state = False  # Whether input of an earlier turn is decided again or waits alone.
        self.is_stuck = False  # Whether the inputs wait because the disk is full and its reserve is used up.
        self._refusals = 0  # Batches in a row with a refusal other than a hold.

    @property
    def pause_us(self) -> int:
        """The pause before the next try, in microseconds."""
        if self.is_stuck:
            return STUCK_US
        return 0 if self._refusals <= 1 else PAUSE_US

    def unanswered(self, asked: Asked) -> Asked:
        """Return the frame without the commands whose answers are known."""
        known = self.standing.get((asked.conn, asked.request), {})
        left = [message for number, message in enumerate(asked.messages) if number not in known] if known else asked.messages
        return asked._replace(messages=left) if known else asked

    def take_back(self, inputs: Sequence[Input], batch: Batch, refused: Set[int], held: Mapping[int, Hold]) -> set[Name]:
        """Queue refused commands to be decided again; return the frames (connection and request) that cannot be answered yet.

        The other commands of such a frame keep their answers. A frame whose refused commands are all held (`held` has the
        holds by seq) waits alone.
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
                # Those leases are unknown now; the answers about the others stand and must not wait for them.
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
        """Return the frames whose holds may be over, and restore the answers in them that stand."""
        taken = self.aside.take(freed, now)
        self.has_state = True
        self.standing |= {(each.asked.conn, each.asked.request): each.answers for each in taken if each.answers}
        return [each.asked for each in taken]

    def keep(self, inputs: Sequence[Input], *, is_unsure: bool) -> None:
        """Keep a whole batch to be decided again; `is_unsure` says that the batch may be stored nevertheless."""
        self.inputs, self.has_state = list(inputs), True
        for given in inputs:
            if isinstance(given, Asked) and given.kind is Kind.WAIT:
                self._desk.waits.drop(given.conn, given.request)
        if is_unsure:
            self._unsure.update((given.conn, given.request) for given in inputs if isinstance(given, Asked))

    def add(self, asked: Sequence[Asked]) -> None:
        """Keep questions to be answered again because their answers could not be read."""
        self.inputs += asked
        self.has_state = True

    def put_off(self, kinds: frozenset[Kind]) -> list[Asked]:
        """Take out the frames of these kinds that are known not to be stored; called while the store is away."""
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
        """Return whether part of a frame that we decide again may be stored."""
        name = asked.conn, asked.request
        return name in self._unsure or bool(self.standing.get(name))


def _holds_of(batch: Batch, held: Mapping[int, Hold], place: int) -> dict[int, Hold]:
    """Return the holds on the commands of the input at this place, by the command's place in it."""
    return {number: held[seq] for seq, (at, number) in batch.touched if at == place and seq in held}
