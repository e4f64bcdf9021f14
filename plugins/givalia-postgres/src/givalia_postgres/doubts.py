"""Keys and jobs that something outside this server holds, each with the time of the next try.

PostgreSQL does not say when another session's lock becomes free, and a try costs a wait on the connection that every command
needs. One read does say which transactions are in progress. The holder of a lock is one of the transactions that were in
progress when the lock was met, so a name is left alone while all of these go on. A holder can also release a lock without
ending, by a rollback to a savepoint, and other holds (a statement that always fails) have no holder: so each name is also
tried again after a pause, seldom, and few names at once.

Some holders have no transaction number: a transaction that has only locked a table, or a session with an advisory lock. Then
the end of any other transaction could be the end of the holder. So a pause separates two tries of a name that a look at the
transactions suggests; the pause is short at first and grows while the name stays held.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from givalia_core.model import Job
from givalia_core.store.base import Hold, hold_name_of_id, hold_name_of_key

PAUSE_S: Final = 0.5  # The pause between tries of a name while its holder seems to go on; it doubles each time,
PAUSE_HELD_S: Final = 2.0  # up to this if a transaction holds the name,
PAUSE_MAX_S: Final = 8.0  # or this if no transaction does, since such a try may take long.
TRY_EACH_S: Final = 0.05  # The shortest time between such tries of any two names.
LOOK_FIRST_S: Final = 0.002  # The pause between tries that a look suggests; it doubles each time,
LOOK_MAX_S: Final = 0.25  # up to this.
OVER_S: Final = 1.0  # A name whose holder seems to have ended is forgotten after this time without a try.
NAMES_MAX: Final = 10_000  # Beyond that, the oldest names are forgotten; the next command that needs one finds it again.
TABLES: Final = "the table of jobs"


def names_of(job: Job, *, is_new: bool = False) -> tuple[str, ...]:
    """Return the names that can hold a change of this job: its key, or else its id; both if the change makes the job."""
    key = () if job.key is None else (hold_name_of_key(job.key),)
    return (*key, hold_name_of_id(job.id)) if is_new or not key else key


class _Doubt:
    __slots__ = ("has_holder", "hold", "is_open", "look_at", "look_pause_s", "may_be_free", "pause_s", "running", "try_at")

    def __init__(self, hold: Hold) -> None:
        self.hold = hold
        self.has_holder = True  # A transaction holds the name.
        self.is_open = False  # Worth a try.
        self.running: frozenset[int] | None = None  # The holder is one of these transactions; None before the first look.
        self.pause_s = PAUSE_S
        self.try_at = 0.0
        self.may_be_free = False  # A look suggests a try;
        self.look_at = 0.0  # the earliest time of that try,
        self.look_pause_s = LOOK_FIRST_S  # and the pause until the one after it.

    def meet(self, now: float) -> None:
        """Note that a try met the hold."""
        self.is_open = self.may_be_free = False
        self.try_at = now + self.pause_s
        self.running = self.running or None  # If none is left, the holder is a later one, or has no number.
        if self.look_at <= now:
            self.look_at = now + self.look_pause_s
            self.look_pause_s = min(self.look_pause_s * 2, LOOK_MAX_S)

    def look(self, running: frozenset[int], now: float) -> None:
        """Open the name if its holder may be among those that have ended."""
        before = self.running
        self.running = running if before is None else before & running
        has_changed = before is not None and self.running != before
        self.may_be_free |= self.has_holder and (has_changed or not self.running)
        self.is_open |= self.may_be_free and self.look_at <= now

    def is_over(self, now: float) -> bool:
        """Return whether every transaction that could hold the name has ended, and no try has come for some time."""
        return self.has_holder and self.is_open and not self.running and self.look_at + OVER_S <= now


class Doubts:
    """The held names that this server has met."""

    def __init__(self) -> None:
        self._doubts: dict[str, _Doubt] = {}
        self._next_try = 0.0

    def hold_of(self, names: Iterable[str]) -> Hold | None:
        """Return the hold of the first of these names that is not worth a try now."""
        found = (self._doubts.get(name) for name in names)
        return next((doubt.hold for doubt in found if doubt is not None and not doubt.is_open), None)

    def knows(self, names: Iterable[str]) -> bool:
        """Return whether one of these names is in doubt, worth a try or not."""
        return not self._doubts.keys().isdisjoint(names)

    def blame(self, hold: Hold, now: float, *, has_holder: bool) -> Hold:
        """Note that a try met this hold, and return it; the hold of a known name keeps its start."""
        name = hold.name
        doubt = self._doubts.pop(name, None) or _Doubt(hold)
        doubt.hold = hold._replace(since_us=doubt.hold.since_us)
        doubt.has_holder = has_holder
        doubt.meet(now)
        self._doubts[name] = doubt
        if len(self._doubts) > NAMES_MAX:
            del self._doubts[next(iter(self._doubts))]
        return doubt.hold

    def open(self, why: str) -> None:
        """Open each name that is held for this reason: one change that was held for it came through."""
        for doubt in self._doubts.values():
            doubt.is_open = doubt.is_open or doubt.hold.why == why

    def __len__(self) -> int:
        return len(self._doubts)

    def clear(self, names: Iterable[str]) -> set[str]:
        """Forget names whose changes came through; return why they were held."""
        gone = [self._doubts.pop(name, None) for name in names] if self._doubts else []
        return {doubt.hold.why for doubt in gone if doubt is not None}

    def look(self, running: frozenset[int], now: float) -> None:
        """Take in which transactions are in progress; open the names whose holder may have ended."""
        for name, doubt in list(self._doubts.items()):
            doubt.look(running, now)
            if doubt.is_over(now):
                del self._doubts[name]

    def freed(self, names: Iterable[str], now: float) -> frozenset[str]:
        """Return those of these wanted names that are worth a try, including one whose pause is over."""
        freed = set()
        for name in names:
            doubt = self._doubts.get(name)
            if doubt is not None and not doubt.is_open and doubt.try_at <= now and self._next_try <= now:
                doubt.is_open, self._next_try = True, now + TRY_EACH_S
                doubt.pause_s = min(doubt.pause_s * 2, PAUSE_HELD_S if doubt.has_holder else PAUSE_MAX_S)
            if doubt is None or doubt.is_open:
                freed.add(name)
        return frozenset(freed)
