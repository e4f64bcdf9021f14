"""The near window: the little that the server keeps in memory of the jobs that wait.

For each route it holds two *prefixes* of what the store has: the next jobs to fall due, and the first of those that are
due, in order of dispatch. Both may be thrown away at any time: the store is the truth, and every claim is checked against
it. Memory is bounded by the size of a prefix and never by the backlog. Nothing here sleeps or reads a clock.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Final

from givalia_core.store.base import Entry, Route, Span

PREFIX_ENTRIES: Final = 4_000  # Read at once; a prefix is cut back to this when it has grown to twice as many.

Order = tuple[int, ...]


class Prefix:
    """The first entries, in some order, of a set that may be far larger; it knows where its knowledge ends.

    Everything in the set that sorts at or before `bound` is here; with no bound, everything is. What sorts behind is
    left to the store and read again when the prefix has run out.
    """

    __slots__ = ("_by_due", "_heap", "_members", "bound")

    def __init__(self, by_due: bool) -> None:
        self._by_due = by_due
        self._heap: list[tuple[Order, Entry]] = []
        self._members: dict[int, Entry] = {}
        self.bound: Order | None = (-(1 << 62),)  # Nothing is known until the first fill.

    def __len__(self) -> int:
        return len(self._members)

    def _order(self, entry: Entry) -> Order:
        return (entry.due_us, entry.seq) if self._by_due else entry

    def fill(self, entries: list[Entry], more: bool) -> None:
        """Replace everything by what the store has first; `more` says that it has others behind these."""
        self._heap = [(self._order(entry), entry) for entry in entries]
        heapify(self._heap)
        self._members = {entry.seq: entry for entry in entries}
        self.bound = max(order for order, _ in self._heap) if more and self._heap else None

    def offer(self, entry: Entry) -> None:
        """Take the entry in if it belongs before the bound; otherwise the store will bring it in its turn."""
        order = self._order(entry)
        if self.bound is not None and order > self.bound:
            return
        self._members[entry.seq] = entry
        heappush(self._heap, (order, entry))
        # Entries that moved or were called off stay in the heap until they surface, so it needs a bound of its own.
        if len(self._heap) > 2 * PREFIX_ENTRIES + len(self._members) // 2:
            self._cut()

    def _cut(self) -> None:
        ordered = sorted((self._order(entry), entry) for entry in self._members.values())
        if len(ordered) > PREFIX_ENTRIES:
            del ordered[PREFIX_ENTRIES:]
            self.bound = ordered[-1][0]
        self._heap, self._members = ordered, {entry.seq: entry for _, entry in ordered}

    def discard(self, seq: int) -> None:
        """Forget an entry, because its job moved or was called off."""
        self._members.pop(seq, None)

    def peek(self) -> Entry | None:
        """The first entry, or None."""
        heap, members = self._heap, self._members
        while heap:
            entry = heap[0][1]
            if members.get(entry.seq) == entry:
                return entry
            heappop(heap)
        return None

    def pop(self) -> Entry:
        """Take out what `peek` shows."""
        entry = heappop(self._heap)[1]
        del self._members[entry.seq]
        return entry

    def first(self, count: int) -> list[Entry]:
        """The first entries, at most `count`, in order; they stay."""
        entries: list[Entry] = []
        while len(entries) < count and (entry := self.peek()) is not None:
            entries.append(self.pop())
        for entry in entries:
            self._members[entry.seq] = entry
            heappush(self._heap, (self._order(entry), entry))
        return entries

    @property
    def is_spent(self) -> bool:
        """Empty here, while the store may have more."""
        return self.bound is not None and not self._members


class Window:
    """What is near on one route: `ready` in order of dispatch, `timers` by due."""

    __slots__ = ("ready", "route", "timers")

    def __init__(self, route: Route) -> None:
        self.route = route
        self.ready = Prefix(by_due=False)
        self.timers = Prefix(by_due=True)

    def spans(self) -> list[Span]:
        """What must be read before this window can say what comes next; empty most of the time. Call `tick` first.

        When the timers have run out, jobs behind their bound may have fallen due unseen, so both are read anew.
        """
        if self.timers.is_spent:
            return [Span(self.route, True, PREFIX_ENTRIES), Span(self.route, False, PREFIX_ENTRIES)]
        return [Span(self.route, True, PREFIX_ENTRIES)] if self.ready.is_spent else []

    def fill(self, ready: bool, entries: list[Entry], more: bool) -> None:
        """Take what the store answered to one of `spans`."""
        (self.ready if ready else self.timers).fill(entries, more)

    def offer(self, entry: Entry, now_us: int) -> None:
        """A job of this route waits, or waits for another time than before."""
        self.discard(entry.seq)
        (self.ready if entry.due_us <= now_us else self.timers).offer(entry)

    def discard(self, seq: int) -> None:
        """The job waits no longer."""
        self.ready.discard(seq)
        self.timers.discard(seq)

    def tick(self, now_us: int) -> None:
        """Move what has fallen due from the timers to the ready ones."""
        timers, ready = self.timers, self.ready
        while (entry := timers.peek()) is not None and entry.due_us <= now_us:
            timers.pop()
            ready.offer(entry)

    def next_due_us(self) -> int | None:
        """When the next timer falls due, on the timer clock; None if none waits (or the store must be asked first)."""
        entry = self.timers.peek()
        return None if entry is None else entry.due_us
