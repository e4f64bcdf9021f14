"""Cycles that ended jobs leave behind are collected soon, in little time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from givalia_core.frozen import OwnClock
from givalia_core.worker.attempt.collector import EACH_S, JOBS_MOST, Collector


class Rig:
    """A collector whose collections take as long as they are told, on a clock that stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.took_s, self.count = 100.0, 0.001, 0
        self.collector = Collector(self._collect)
        monkeypatch.setattr(OwnClock, "monotonic", staticmethod(lambda: self.now_s))

    def _collect(self) -> None:
        self.count += 1
        self.now_s += self.took_s

    def later(self, seconds: float, jobs: int = 0, *, is_bad: bool = False) -> int:
        """How often it has collected after so long, in which so many jobs have ended."""
        self.now_s += seconds
        for _ in range(jobs):
            self.collector.note(is_bad=is_bad)
        self.collector.run(self.now_s)
        return self.count


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    made = Rig(monkeypatch)
    made.later(0, 1)
    made.count = 0
    return made


@pytest.mark.parametrize(
    "due",
    [
        lambda rig: rig.later(EACH_S, 1),
        lambda rig: rig.later(0.2, JOBS_MOST),
        lambda rig: rig.later(0.02, 1, is_bad=True),
    ],
)
def test_it_collects_each_second_behind_many_jobs_and_at_once_behind_a_bad_end(rig: Rig, due: Callable[[Rig], int]) -> None:
    assert due(rig) == 1


@pytest.mark.parametrize(
    "wait", [lambda rig: rig.later(60), lambda rig: rig.later(0.2, JOBS_MOST - 1), lambda rig: rig.later(0.09, 9_999)]
)
def test_it_does_not_collect_without_need(rig: Rig, wait: Callable[[Rig], int]) -> None:
    assert wait(rig) == 0


@pytest.mark.parametrize(("is_bad", "most"), [(False, 0.011), (True, 0.11)])
def test_however_long_it_takes_it_takes_a_small_share_of_the_time(rig: Rig, is_bad: bool, most: float) -> None:
    rig.took_s = 0.05
    rig.later(1.0, 1)
    began_s, rig.count = rig.now_s, 0

    while rig.now_s < began_s + 100:
        rig.later(0.01, 100, is_bad=is_bad)

    assert 0 < rig.count * rig.took_s / (rig.now_s - began_s) < most
