"""The near window: the small part of the waiting jobs that the server keeps in memory.

The window of a route has the next jobs to fall due, as a *prefix* of those in the store, and notes whether any are due already:
the store is asked for these when a worker can take them. A window may be discarded at any time: the store is the truth, and
every claim is checked against it. Memory is bounded by the size of a prefix and never by the backlog. Nothing here sleeps or
reads a clock.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from givalia_core.store.base import Near, Route, Span, Timer

PREFIX_TIMERS: Final = 4_000  # Read at once; a prefix is cut back to this when it has grown to twice as many.


class Prefix:
    """The first timers, by due, of a set that may be far larger; `bound` is where they end.

    Every timer of the set that sorts at or before `bound` is here; without a bound, every timer is. Timers that sort behind
    are left to the store and read again when the prefix has run out.
    """

    __slots__ = ("_heap", "bound", "members")

    def __init__(self) -> None:
        self._heap: list[Timer] = []
        self.members: dict[int, Timer] = {}  # By seq.
        self.bound: Timer | None = Timer(-(1 << 62), 0)  # Nothing is known until the first fill.

    def __len__(self) -> int:
        return len(self.members)

    def fill(self, timers: list[Timer], more: bool) -> None:
        """Replace all timers by the first ones of the store; `more` says that the store has others behind these."""
        self._heap = list(timers)
        heapify(self._heap)
        self.members = {timer.seq: timer for timer in timers}
        self.bound = max(timers) if more and timers else None

    def offer(self, timer: Timer) -> None:
        """Take the timer in if it sorts before the bound; otherwise a later read of the store brings it."""
        if self.bound is not None and timer > self.bound:
            return
        self.members[timer[1]] = timer
        heappush(self._heap, timer)
        # Timers that moved or were called off stay in the heap until they surface, so the heap needs a bound of its own.
        if len(self._heap) > 2 * PREFIX_TIMERS + len(self.members) // 2:
            self._cut()

    def _cut(self) -> None:
        ordered = sorted(self.members.values())
        if len(ordered) > PREFIX_TIMERS:
            del ordered[PREFIX_TIMERS:]
            self.bound = ordered[-1]
        self._heap, self.members = ordered, {timer.seq: timer for timer in ordered}

    def discard(self, seq: int) -> None:
        """Forget a timer, because its job moved or was called off."""
        self.members.pop(seq, None)

    def peek(self) -> Timer | None:
        """Return the first timer, or None."""
        heap, members = self._heap, self.members
        while heap:
            timer = heap[0]
            if members.get(timer[1]) == timer:
                return timer
            heappop(heap)
        return None

    def pop(self) -> Timer:
        """Take out and return the timer that `peek` returned."""
        timer = heappop(self._heap)
        del self.members[timer.seq]
        return timer

    @property
    def is_spent(self) -> bool:
        """Return whether no timer is here while the store may have more."""
        return self.bound is not None and not self.members


class Window:
    """The near window of one route: its next `timers`, and whether the store has jobs that are due (`has_ready`).

    `fresh` are the seqs of the jobs that became due in the batch that is being decided, which the store does not know yet.
    """

    __slots__ = ("_changed", "_limit", "_rumour_us", "armed_us", "fresh", "has_ready", "is_noted", "route", "timers")

    def __init__(self, route: Route, limit: int | None = None, changed: dict[Route, Window] | None = None) -> None:
        """Make the window of a route, which adds itself to `changed` when something happens to it."""
        self.route = route
        self._changed = {} if changed is None else changed
        self.is_noted = False
        self.armed_us: int | None = None  # When a batch visits it next, unless something happens to it.
        self._limit = limit or PREFIX_TIMERS
        self._rumour_us: int | None = None  # The first due of the jobs that other servers say came here.
        self.timers = Prefix()
        self.has_ready = True  # It may have, before the first fill.
        self.fresh: dict[int, None] = {}

    def note(self) -> None:
        """Note that something has happened to the window."""
        if not self.is_noted:
            self.is_noted = True
            self._changed[self.route] = self

    def say_ready(self) -> None:
        """Note that a job is due here, as another server says."""
        self.has_ready = True
        self.note()

    def spans(self) -> list[Span]:
        """Return the spans to read before the window knows what comes next; empty most of the time. Call `tick` first."""
        return [Span(self.route, self._limit)] if self.timers.is_spent else []

    def fill(self, near: Near) -> None:
        """Take in the store's answer to `spans`, which also says whether jobs behind the bound have fallen due unseen."""
        self.timers.fill(near.timers, near.more)
        self.has_ready = near.is_ready
        self._rumour_us = None
        self.note()

    def offer(self, timer: Timer, now_us: int) -> None:
        """Note that a job of this route waits, or waits for another due than before."""
        due_us, seq = timer
        if due_us <= now_us:
            self.timers.members.pop(seq, None)
            self.fresh[seq] = None
        else:
            if self.fresh:
                self.fresh.pop(seq, None)
            self.timers.members.pop(seq, None)
            self.timers.offer(timer)
        if not self.is_noted:
            self.is_noted = True
            self._changed[self.route] = self

    def hear(self, due_us: int) -> None:
        """Note that a job came to wait here at another server, perhaps the first of many: the store is asked when it is due."""
        self._rumour_us = due_us if self._rumour_us is None else min(due_us, self._rumour_us)
        self.note()

    def discard(self, seq: int) -> None:
        """Note that a job no longer waits."""
        self.fresh.pop(seq, None)
        self.timers.members.pop(seq, None)
        if not self.is_noted:
            self.is_noted = True
            self._changed[self.route] = self

    def tick(self, now_us: int) -> None:
        """Begin a batch: fresh jobs that were not lent are due in the store by now, and so are jobs whose timers ran out."""
        if self.fresh:
            self.has_ready = True
            self.fresh.clear()
        timers = self.timers
        while (timer := timers.peek()) is not None and timer[0] <= now_us:
            del timers.members[timer[1]]  # The next `peek` removes its place in the heap.
            self.has_ready = True
        if not self.is_noted:
            self.is_noted = True
            self._changed[self.route] = self
        if self._rumour_us is not None and self._rumour_us <= now_us:
            self.timers = Prefix()

    def next_due_us(self) -> int | None:
        """Return the due of the next timer, on the timer clock; None if none waits, or the store must be asked first."""
        timer = self.timers.peek()
        if timer is None or (self._rumour_us is not None and self._rumour_us < timer[0]):
            return self._rumour_us
        return timer[0]
