"""The near window: what it shows is what the store would show, however little of it is in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from givalia_core import timers
from givalia_core.store.base import Entry, Route, Span
from givalia_core.timers import Prefix, Window

ROUTE = Route("Mail", "any")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timers, "PREFIX_ENTRIES", 4)
    return


def entries(*dues: int, rank: int = 0) -> list[Entry]:
    return [Entry(rank, due, seq) for seq, due in enumerate(dues, 1)]


def drained(prefix: Prefix) -> list[Entry]:
    out = []
    while prefix.peek() is not None:
        out.append(prefix.pop())
    return out


# A prefix.


def test_a_new_prefix_knows_nothing_and_asks_for_everything() -> None:
    prefix = Prefix(by_due=True)

    prefix.offer(Entry(0, 5, 1))

    assert prefix.is_spent
    assert prefix.peek() is None


def test_a_prefix_that_holds_all_there_is_takes_in_all_that_comes() -> None:
    prefix = Prefix(by_due=True)
    prefix.fill(entries(10, 20), more=False)

    prefix.offer(Entry(0, 10**15, 9))
    prefix.offer(Entry(0, 1, 8))

    assert [entry.seq for entry in drained(prefix)] == [8, 1, 2, 9]
    assert not prefix.is_spent


def test_a_prefix_with_more_behind_it_leaves_what_sorts_behind_its_bound_to_the_store() -> None:
    prefix = Prefix(by_due=True)
    prefix.fill(entries(10, 20), more=True)

    prefix.offer(Entry(0, 20, 9))  # Behind (20, 2) by its seq.
    prefix.offer(Entry(0, 19, 8))

    assert [entry.seq for entry in drained(prefix)] == [1, 8, 2]
    assert prefix.is_spent


def test_timers_are_in_order_of_due_and_ready_ones_in_order_of_dispatch() -> None:
    given_entries = [Entry(0, 10, 1), Entry(-5, 30, 2), Entry(3, 5, 3), Entry(-5, 30, 4)]
    by_due, by_rank = Prefix(by_due=True), Prefix(by_due=False)

    by_due.fill(given_entries, more=False)
    by_rank.fill(given_entries, more=False)

    assert [entry.seq for entry in drained(by_due)] == [3, 1, 2, 4]
    assert [entry.seq for entry in drained(by_rank)] == [2, 4, 1, 3]


def test_what_was_discarded_is_never_shown() -> None:
    prefix = Prefix(by_due=True)
    prefix.fill(entries(10, 20, 30), more=False)

    prefix.discard(1)
    prefix.discard(99)

    assert len(prefix) == 2
    assert [entry.seq for entry in drained(prefix)] == [2, 3]


def test_an_entry_that_moved_is_shown_once_in_its_new_place() -> None:
    prefix = Prefix(by_due=True)
    prefix.fill(entries(10, 20), more=False)

    for due in (40, 15, 30, 15):
        prefix.discard(1)
        prefix.offer(Entry(0, due, 1))

    assert [(entry.seq, entry.due_us) for entry in drained(prefix)] == [(1, 15), (2, 20)]


def test_looking_at_the_first_ones_takes_none_out() -> None:
    prefix = Prefix(by_due=True)
    prefix.fill(entries(30, 10, 20), more=False)

    assert [entry.due_us for entry in prefix.first(2)] == [10, 20]
    assert [entry.due_us for entry in prefix.first(9)] == [10, 20, 30]
    assert prefix.first(0) == []
    assert len(prefix) == 3


def test_memory_is_bounded_by_the_prefix_and_not_by_what_is_offered(small: None) -> None:
    prefix = Prefix(by_due=True)
    prefix.fill([], more=False)

    for seq in range(1_000, 0, -1):
        prefix.offer(Entry(0, seq, seq))

    assert len(prefix) <= 4 * timers.PREFIX_ENTRIES
    assert len(prefix._heap) <= 4 * timers.PREFIX_ENTRIES
    assert prefix.bound is not None
    shown = [entry.seq for entry in drained(prefix)]
    assert shown == list(range(1, len(shown) + 1))
    assert prefix.is_spent


def test_memory_is_bounded_when_one_entry_moves_for_ever(small: None) -> None:
    prefix = Prefix(by_due=True)
    prefix.fill(entries(10, 20), more=False)

    for due in range(10_000, 0, -1):
        prefix.discard(1)
        prefix.offer(Entry(0, due, 1))

    assert len(prefix._heap) <= 3 * timers.PREFIX_ENTRIES
    assert len(prefix) == 2


# A window.


def test_a_new_window_asks_for_both_of_its_sides() -> None:
    window = Window(ROUTE)

    assert window.spans() == [Span(ROUTE, True, timers.PREFIX_ENTRIES), Span(ROUTE, False, timers.PREFIX_ENTRIES)]


def test_a_timer_becomes_ready_at_its_due_and_not_before() -> None:
    window = Window(ROUTE)
    window.fill(True, [], more=False)
    window.fill(False, entries(10, 20), more=False)

    window.tick(9)
    before = window.ready.peek()
    window.tick(10)

    assert before is None
    assert window.ready.peek() == Entry(0, 10, 1)
    assert window.next_due_us() == 20


def test_a_window_that_knows_all_asks_for_nothing_when_it_has_run_out() -> None:
    window = Window(ROUTE)
    window.fill(True, [], more=False)
    window.fill(False, entries(10), more=False)
    window.tick(10)
    window.ready.pop()

    assert window.spans() == []
    assert window.next_due_us() is None


def test_when_the_timers_have_run_out_both_sides_are_read_anew() -> None:
    window = Window(ROUTE)
    window.fill(True, [], more=False)
    window.fill(False, entries(10, 20), more=True)

    window.tick(25)

    assert [span.ready for span in window.spans()] == [True, False]


def test_when_the_ready_ones_have_run_out_only_they_are_read() -> None:
    window = Window(ROUTE)
    window.fill(True, entries(1, 2), more=True)
    window.fill(False, entries(10), more=False)
    drained(window.ready)

    assert [span.ready for span in window.spans()] == [True]


def test_a_job_called_off_is_on_neither_side() -> None:
    window = Window(ROUTE)
    window.fill(True, [], more=False)
    window.fill(False, [], more=False)
    window.offer(Entry(0, 10, 1), now_us=5)
    window.offer(Entry(0, 3, 2), now_us=5)

    window.discard(1)
    window.discard(2)
    window.tick(100)

    assert window.ready.peek() is None


def test_a_job_that_moved_between_the_sides_is_on_one_of_them() -> None:
    window = Window(ROUTE)
    window.fill(True, [], more=False)
    window.fill(False, [], more=False)

    for due in (10, 3, 12, 4, 20):
        window.offer(Entry(0, due, 1), now_us=5)

    assert (len(window.ready), len(window.timers)) == (0, 1)
    assert window.next_due_us() == 20


class Model:
    """A store of waiting jobs that are all in one dictionary, and the window that is driven beside it as the engine does."""

    def __init__(self) -> None:
        self.jobs: dict[int, Entry] = {}
        self.now_us = 0
        self.window = Window(ROUTE)
        self.last_seq = 0

    def put(self, seq: int, rank: int, due_us: int) -> None:
        self.jobs[seq] = Entry(rank, due_us, seq)
        self.window.offer(self.jobs[seq], self.now_us)

    def enq(self, rank: int, due_us: int) -> None:
        self.last_seq += 1
        self.put(self.last_seq, rank, due_us)

    def drop(self, seq: int) -> None:
        del self.jobs[seq]
        self.window.discard(seq)

    def turn(self) -> None:
        """Tick, read what is asked for, and compare the head of each side with that of the dictionary."""
        self.window.tick(self.now_us)
        for span in self.window.spans():
            ordered = self.ready() if span.ready else self.timers()
            self.window.fill(span.ready, ordered[: span.limit], len(ordered) > span.limit)
        assert self.window.spans() == []
        ready, timers_left = self.ready(), self.timers()
        assert self.window.ready.peek() == (ready[0] if ready else None)
        assert self.window.ready.first(3) == ready[: len(self.window.ready.first(3))]
        assert self.window.next_due_us() == (timers_left[0].due_us if timers_left else None)

    def ready(self) -> list[Entry]:
        return sorted(entry for entry in self.jobs.values() if entry.due_us <= self.now_us)

    def timers(self) -> list[Entry]:
        waiting = [entry for entry in self.jobs.values() if entry.due_us > self.now_us]
        return sorted(waiting, key=lambda entry: (entry.due_us, entry.seq))

    def claim(self) -> None:
        """Take the head out, as the engine lends it."""
        entry = self.window.ready.peek()
        if entry is not None:
            self.window.ready.pop()
            self.drop(entry.seq)


STEPS = st.lists(
    st.tuples(st.sampled_from(["enq", "enq", "move", "drop", "claim", "pass"]), st.integers(0, 60), st.integers(-2, 2)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, size=st.integers(1, 5), skips=st.integers(1, 3))
def test_a_window_never_hides_a_job_that_the_store_has(steps: list[tuple[str, int, int]], size: int, skips: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timers, "PREFIX_ENTRIES", size)
        model = Model()
        for place, (act, number, rank) in enumerate(steps):
            seqs = sorted(model.jobs)
            if act == "enq":
                model.enq(rank, model.now_us + number - 20)
            elif act == "pass":
                model.now_us += number
            elif act == "claim":
                model.turn()
                model.claim()
            elif seqs and act == "move":
                model.put(seqs[number % len(seqs)], rank, model.now_us + number - 20)
            elif seqs and act == "drop":
                model.drop(seqs[number % len(seqs)])
            if place % skips == 0:
                model.turn()
        model.turn()


def test_a_window_over_a_long_backlog_gives_every_job_once_and_in_order(small: None) -> None:
    model = Model()
    dice = random.Random(7)
    for _ in range(300):
        model.enq(dice.randint(-2, 2), dice.randint(-50, 50))

    given_out = []
    for _ in range(120):
        model.turn()
        while (entry := model.window.ready.peek()) is not None:
            assert entry == model.ready()[0]
            given_out.append(entry.seq)
            model.claim()
            model.turn()
        model.now_us += 1

    assert sorted(given_out) == list(range(1, 301))
