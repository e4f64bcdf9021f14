"""Keys that an open transaction is about to take are found by halves, and hold up no others."""

from __future__ import annotations

import random

import pytest

from givalia_postgres.doubts import PAUSE_S, Doubts


def store(doubts: Doubts, wanted: list[str], held: set[str], now: float) -> list[str]:
    """One commit as the store tries it; what it has stored."""
    for _ in range(8):
        refused = doubts.refuse(wanted, now)
        tried = [key for key in wanted if key not in refused]
        if held.isdisjoint(tried):
            doubts.clear()
            return tried
        doubts.blame(now)
    raise AssertionError("it would have been taken for away")


@pytest.mark.parametrize("seed", range(20))
def test_all_but_the_held_keys_are_stored_soon_and_those_once_they_are_free(seed: int) -> None:
    # given
    choice = random.Random(seed)
    left = [f"k{number}" for number in range(200)]
    held = set(choice.sample(left, 3))
    doubts = Doubts()

    # when
    now = 0.0
    for _ in range(60):
        stored = store(doubts, left, held, now)
        left = [key for key in left if key not in stored]
        now += 0.01

    # then
    assert set(left) == held

    # when
    now += PAUSE_S
    for _ in range(5):
        stored = store(doubts, left, set(), now)
        left = [key for key in left if key not in stored]

    # then
    assert left == []


def test_keys_that_nobody_asks_for_any_more_are_forgotten() -> None:
    # given
    doubts = Doubts()
    doubts.refuse(["a"], 0.0)
    doubts.blame(0.0)
    assert doubts.refuse(["a", "b"], 0.1) == {"a"}
    doubts.clear()

    # when, then
    assert doubts.refuse(["b"], 0.1) == frozenset()
    assert doubts.refuse(["a"], 0.1) == frozenset()
