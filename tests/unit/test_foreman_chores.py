"""Chores of the foreman: each runs at once, then at intervals, and only when it is needed."""

from __future__ import annotations

import pytest
from foreman_rig import Rig

from givalia_core.worker.foreman.chores import Chore

PERIOD_S = 2.0
NOW_S = 1_000.0


class Diary:
    """A chore, and when it was done."""

    def __init__(self, rig: Rig, period_s: float = PERIOD_S) -> None:
        self.is_needed = True
        self.asked = 0
        self.done_s: list[float] = []
        self.chore = Chore(period_s, self._is_needed, self.done_s.append)
        self._foreman = rig.foreman
        self._foreman._chores = (self.chore,)

    def _is_needed(self) -> bool:
        self.asked += 1
        return self.is_needed

    def at(self, *seconds: float) -> list[float]:
        for each in seconds:
            self._foreman._tick(NOW_S + each)
        return [done_s - NOW_S for done_s in self.done_s]


def test_a_new_chore_is_due_at_once() -> None:
    diary = Diary(Rig())

    assert diary.chore.due_s == 0.0
    assert diary.at(0) == [0]


def test_a_chore_is_done_again_when_its_period_is_over() -> None:
    diary = Diary(Rig())

    assert diary.at(0, PERIOD_S - 0.1, PERIOD_S, PERIOD_S + 0.1, 2 * PERIOD_S - 0.1, 2 * PERIOD_S) == [
        0,
        PERIOD_S,
        2 * PERIOD_S,
    ]


def test_a_chore_that_comes_late_has_its_whole_period_before_it_again() -> None:
    diary = Diary(Rig())

    assert diary.at(0, 3, 4, 5) == [0, 3, 5]


def test_a_chore_that_is_not_needed_is_done_as_soon_as_it_is() -> None:
    diary = Diary(Rig())
    diary.is_needed = False
    assert diary.at(0, 1) == []

    diary.is_needed = True

    assert diary.at(1.25) == [1.25]


def test_nobody_is_asked_whether_a_chore_is_needed_before_it_is_due() -> None:
    diary = Diary(Rig())

    diary.at(0, 0.5, 1)

    assert diary.asked == 1


def test_a_chore_that_fails_is_not_done_over_and_over() -> None:
    rig = Rig()
    diary = Diary(rig)
    tried_s: list[float] = []

    def fail(now_s: float) -> None:
        tried_s.append(now_s)
        raise OSError("no")

    diary.chore.act = fail
    with pytest.raises(OSError, match="no"):
        diary.at(0)
    diary.at(1)

    assert tried_s == [NOW_S]


def test_chores_of_the_same_kind_are_not_the_same() -> None:
    assert Chore(1.0, bool, float) != Chore(1.0, bool, float)
