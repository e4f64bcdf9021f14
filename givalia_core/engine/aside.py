"""Commands that wait alone: something outside this server holds their job or key, so the store cannot write the change now.

A command comes here when a commit says that its change is held. All other commands are decided without it. The command is
decided again when the store says that the hold may be over. It is answered `Busy`, with words that name the hold, when it has
waited for as long as a client should. Nothing here asks the store or decides a command.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from givalia_core.clock import Now
from givalia_core.engine.records import Input, Reply
from givalia_core.errors import Busy
from givalia_core.model import Job
from givalia_core.protocol.answers import Answer
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Hold, hold_name_of_id, hold_name_of_key

HELD_US: Final = 5_000_000  # Half of the silence after which a client asks another server.
NEVER_US: Final = 1 << 62
LOOK_FIRST_US: Final = 5_000  # The delay before the first poll for holds that are over; doubled each time,
LOOK_MAX_US: Final = 250_000  # up to this,
LOOK_NEWS_US: Final = 20_000  # and the delay after news.
KNOWN_US: Final = 20_000_000  # We forget a hold that no commit has met for so long.
READS: Final = frozenset({Kind.STAT, Kind.WAIT})

Name = tuple[int, int]  # A frame's connection and request.


class Waiting(NamedTuple):
    """A frame that waits, with the holds on its commands and the answers that stand, both by the command's place."""

    asked: Asked
    holds: Mapping[int, Hold]
    answers: dict[int, Answer]


class Aside:
    """The frames that wait, and the known holds."""

    def __init__(self) -> None:
        self.waiting: dict[Name, Waiting] = {}
        self.until_us: dict[Name, int] = {}  # Deadlines, also of frames that are being decided again.
        self._pause_us = LOOK_FIRST_US
        self._look_us = 0
        self.holds: dict[str, tuple[Hold, int]] = {}  # By name: the hold, and when a commit last met it.

    def __bool__(self) -> bool:
        return bool(self.waiting)

    def hold_of(self, job: Job) -> Hold | None:
        """Return the known hold on this job."""
        return self.hold_of_name(job.key, job.id) if self.holds else None

    def hold_of_name(self, key: str | None, job_id: bytes | None) -> Hold | None:
        """Return the known hold on this key, or else on this id."""
        names = (key and hold_name_of_key(key), job_id and hold_name_of_id(job_id))
        return next((self.holds[name][0] for name in names if name in self.holds), None)

    def meet(self, holds: Collection[Hold], now: Now) -> None:
        """Remember the holds that a commit met."""
        for hold in holds:
            if hold.name not in self.holds:
                self._pause_us, self._look_us = LOOK_FIRST_US, now.mono_us + LOOK_FIRST_US
            self.holds[hold.name] = hold, now.mono_us

    def put(self, waiting: Waiting, now: Now, *, is_unsure: bool) -> None:
        """Let a frame wait; a frame that waited before keeps its deadline.

        An unsure frame has no deadline: the hold may be its own commit, which we thought lost and which may still succeed.
        """
        name = waiting.asked.conn, waiting.asked.request
        self.waiting[name] = waiting
        self.until_us.setdefault(name, NEVER_US if is_unsure else now.mono_us + HELD_US)

    def settle(self, given: Collection[Input], unanswered: Collection[Name]) -> None:
        """Forget the deadlines of the answered frames of a batch."""
        for each in given:
            if isinstance(each, Asked) and (name := (each.conn, each.request)) not in unanswered:
                self.until_us.pop(name, None)

    def hear(self, now: Now) -> None:
        """Poll the store soon, since another server or transaction says that it changed something."""
        self._look_us = min(self._look_us, now.mono_us + LOOK_NEWS_US)

    def must_look(self, now: Now) -> bool:
        """Return whether this batch must ask the store which holds are over."""
        return bool(self.waiting) and now.mono_us >= self._look_us

    @property
    def names(self) -> frozenset[str]:
        """The names of the holds that frames wait for."""
        return frozenset(hold.name for waiting in self.waiting.values() for hold in waiting.holds.values())

    def take(self, freed: Collection[str], now: Now) -> list[Waiting]:
        """Take out the frames that wait for one of these names, and all reads: a read need not wait for a known hold."""
        self._look_us = now.mono_us + self._pause_us
        self._pause_us = min(self._pause_us * 2, LOOK_MAX_US)
        for name in freed:
            self.holds.pop(name, None)
        taken = [
            waiting
            for waiting in self.waiting.values()
            if waiting.asked.kind in READS or any(hold.name in freed for hold in waiting.holds.values())
        ]
        for waiting in taken:
            del self.waiting[waiting.asked.conn, waiting.asked.request]
        return taken

    def overdue(self, now: Now) -> list[Reply]:
        """Take out the frames past their deadline; return their answers: those that stand, and `Busy` for the rest."""
        if not (self.holds or self.waiting):
            return []
        self.holds = {name: each for name, each in self.holds.items() if now.mono_us - each[1] < KNOWN_US}
        late = [name for name in self.waiting if self.until_us[name] <= now.mono_us]
        return [self._answered(name) for name in late]

    def _answered(self, name: Name) -> Reply:
        asked, holds, answers = self.waiting.pop(name)
        self.until_us.pop(name, None)
        items = [answers[number] if number not in holds else _busy(holds[number]) for number in range(len(asked.messages))]
        return Reply(*name, items)

    def leave(self, given: Collection[Input]) -> None:
        """Forget the frames of connections that have ended: the answers reach nobody, and the peers send the commands again."""
        gone = {each.conn for each in given if not isinstance(each, Asked)} if self.waiting else ()
        for name in [name for name in self.waiting if name[0] in gone] if gone else ():
            del self.waiting[name], self.until_us[name]

    def put_off(self, kinds: Collection[Kind]) -> list[Asked]:
        """Take out the frames of these kinds of which nothing is stored; called while the store is away."""
        found = {name: each.asked for name, each in self.waiting.items() if each.asked.kind in kinds and not each.answers}
        found = {name: asked for name, asked in found.items() if self.until_us[name] != NEVER_US}
        for name in found:
            del self.waiting[name], self.until_us[name]
        return list(found.values())

    def next_us(self, now: Now) -> int:
        """Return the time until the next poll or deadline; call this only while a frame waits."""
        return max(min(self._look_us, min(self.until_us.values(), default=self._look_us)) - now.mono_us, 0)


def _busy(hold: Hold) -> Answer:
    return Busy(f"{hold.words}; nothing changed", retry_after=1.0)
