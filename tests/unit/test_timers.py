"""The near window: it shows the same as the store, however little is in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from givalia_core import timers
from givalia_core.store.base import Near, Route, Span, Timer
from givalia_core.timers import Prefix, Window

ROUTE = Route("Mail", "any")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timers, "PREFIX_TIMERS", 4)
    return


def timers_at(*dues: int) -> list[Timer]:
    return [Timer(due, seq) for seq, due in enumerate(dues, 1)]


def drained(prefix: Prefix) -> list[Timer]:
    out = []
    while prefix.peek() is not None:
        out.append(prefix.pop())
    return out


# A prefix.


def test_a_new_prefix_knows_nothing_and_asks_for_everything() -> None:
    prefix = Prefix()

    prefix.offer(Timer(5, 1))

    assert prefix.is_spent
    assert prefix.peek() is None


def test_a_prefix_that_holds_all_there_is_takes_in_all_that_comes() -> None:
    prefix = Prefix()
    prefix.fill(timers_at(10, 20), more=False)

    prefix.offer(Timer(10**15, 9))
    prefix.offer(Timer(1, 8))

    assert [timer.seq for timer in drained(prefix)] == [8, 1, 2, 9]
    assert not prefix.is_spent


def test_a_prefix_with_more_behind_it_leaves_what_sorts_behind_its_bound_to_the_store() -> None:
    prefix = Prefix()
    prefix.fill(timers_at(10, 20), more=True)

    prefix.offer(Timer(20, 9))  # Behind (20, 2) by its seq.
    prefix.offer(Timer(19, 8))

    assert [timer.seq for timer in drained(prefix)] == [1, 8, 2]
    assert prefix.is_spent


def test_what_was_discarded_is_never_shown() -> None:
    prefix = Prefix()
    prefix.fill(timers_at(10, 20, 30), more=False)

    prefix.discard(1)
    prefix.discard(99)

    assert len(prefix) == 2
    assert [timer.seq for timer in drained(prefix)] == [2, 3]


def test_a_timer_that_moved_is_shown_once_in_its_new_place() -> None:
    prefix = Prefix()
    prefix.fill(timers_at(10, 20), more=False)

    for due in (40, 15, 30, 15):
        prefix.discard(1)
        prefix.offer(Timer(due, 1))

    assert [(timer.seq, timer.due_us) for timer in drained(prefix)] == [(1, 15), (2, 20)]


def test_memory_is_bounded_by_the_prefix_and_not_by_what_is_offered(small: None) -> None:
    prefix = Prefix()
    prefix.fill([], more=False)

    for seq in range(1_000, 0, -1):
        prefix.offer(Timer(seq, seq))

    assert len(prefix) <= 4 * timers.PREFIX_TIMERS
    assert len(prefix._heap) <= 4 * timers.PREFIX_TIMERS
    assert prefix.bound is not None
    shown = [timer.seq for timer in drained(prefix)]
    assert shown == list(range(1, len(shown) + 1))
    assert prefix.is_spent


def test_memory_is_bounded_when_one_timer_moves_for_ever(small: None) -> None:
    prefix = Prefix()
    prefix.fill(timers_at(10, 20), more=False)

    for due in range(10_000, 0, -1):
        prefix.discard(1)
        prefix.offer(Timer(due, 1))

    assert len(prefix._heap) <= 3 * timers.PREFIX_TIMERS
    assert len(prefix) == 2


# A window.


def window_with(*dues: int, more: bool = False, is_ready: bool = False) -> Window:
    window = Window(ROUTE)
    window.fill(Near(is_ready, timers_at(*dues), more))
    return window


def test_a_new_window_asks_what_is_near_and_takes_it_that_something_is_ready() -> None:
    window = Window(ROUTE)

    assert window.spans() == [Span(ROUTE, timers.PREFIX_TIMERS)]
    assert window.has_ready


def test_a_timer_becomes_ready_at_its_due_and_not_before() -> None:
    window = window_with(10, 20)

    window.tick(9)
    before = window.has_ready
    window.tick(10)

    assert not before
    assert window.has_ready
    assert window.next_due_us() == 20


def test_a_window_that_knows_all_asks_for_nothing_when_it_has_run_out() -> None:
    window = window_with(10)
    window.tick(10)

    assert window.spans() == []
    assert window.next_due_us() is None


def test_when_the_timers_have_run_out_the_store_is_asked_anew() -> None:
    window = window_with(10, 20, more=True)

    window.tick(25)

    assert window.spans() == [Span(ROUTE, timers.PREFIX_TIMERS)]


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_fill_says_whether_anything_is_due(is_ready: bool) -> None:
    window = window_with(is_ready=not is_ready)

    window.fill(Near(is_ready, [], False))

    assert window.has_ready is is_ready


def test_a_job_that_is_due_at_once_is_fresh_for_this_batch_and_in_the_store_after_it() -> None:
    window = window_with()
    window.offer(Timer(5, 1), now_us=5)
    in_the_batch = list(window.fresh), window.has_ready

    window.tick(5)

    assert in_the_batch == ([1], False)
    assert (list(window.fresh), window.has_ready) == ([], True)


def test_a_fresh_job_that_was_lent_leaves_nothing_behind() -> None:
    window = window_with()
    window.offer(Timer(5, 1), now_us=5)
    window.discard(1)

    window.tick(5)

    assert not window.has_ready


def test_a_job_called_off_is_neither_a_timer_nor_fresh() -> None:
    window = window_with()
    window.offer(Timer(10, 1), now_us=5)
    window.offer(Timer(3, 2), now_us=5)

    window.discard(1)
    window.discard(2)
    window.tick(100)

    assert not window.has_ready


def test_a_job_that_moved_is_in_one_place() -> None:
    window = window_with()

    for due in (10, 3, 12, 4, 20):
        window.offer(Timer(due, 1), now_us=5)

    assert (list(window.fresh), len(window.timers)) == ([], 1)
    assert window.next_due_us() == 20


class Model:
    """A store of waiting jobs that are all in one dictionary, and the window that is driven beside it as the engine does."""

    def __init__(self) -> None:
        self.jobs: dict[int, Timer] = {}
        self.now_us = 0
        self.window = Window(ROUTE)
        self.last_seq = 0

    def put(self, seq: int, due_us: int) -> None:
        self.jobs[seq] = Timer(due_us, seq)
        self.window.offer(self.jobs[seq], self.now_us)

    def enq(self, due_us: int) -> None:
        self.last_seq += 1
        self.put(self.last_seq, due_us)

    def drop(self, seq: int) -> None:
        del self.jobs[seq]
        self.window.discard(seq)

    def turn(self) -> None:
        """Tick, read what is asked for, and compare what the window shows with the dictionary."""
        self.window.tick(self.now_us)
        for span in self.window.spans():
            ordered = self.timers()
            self.window.fill(Near(bool(self.ready()), ordered[: span.limit], len(ordered) > span.limit))
        assert self.window.spans() == []
        left = self.timers()
        assert self.window.has_ready or not self.ready()
        assert self.window.next_due_us() == (left[0].due_us if left else None)

    def ready(self) -> list[Timer]:
        return sorted(timer for timer in self.jobs.values() if timer.due_us <= self.now_us)

    def timers(self) -> list[Timer]:
        return sorted(timer for timer in self.jobs.values() if timer.due_us > self.now_us)

    def claim(self) -> None:
        """Lend everything that is ready, if the window says that something may be."""
        if self.window.has_ready:
            for timer in self.ready():
                self.drop(timer.seq)
            self.window.has_ready = False


STEPS = st.lists(
    st.tuples(st.sampled_from(["enq", "enq", "move", "drop", "claim", "pass"]), st.integers(0, 60)),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, size=st.integers(1, 5), skips=st.integers(1, 3))
def test_a_window_never_hides_a_job_that_the_store_has(steps: list[tuple[str, int]], size: int, skips: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(timers, "PREFIX_TIMERS", size)
        model = Model()
        for place, (act, number) in enumerate(steps):
            seqs = sorted(model.jobs)
            if act == "enq":
                model.enq(model.now_us + number - 20)
            elif act == "pass":
                model.now_us += number
            elif act == "claim":
                model.turn()
                model.claim()
            elif seqs and act == "move":
                model.put(seqs[number % len(seqs)], model.now_us + number - 20)
            elif seqs and act == "drop":
                model.drop(seqs[number % len(seqs)])
            if place % skips == 0:
                model.turn()
        model.turn()
