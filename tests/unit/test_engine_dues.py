"""The dues that commands give: after a delay, at an instant, or moved."""

from __future__ import annotations

import pytest
from engine_parts import NOW, job

from givalia_core.engine.dues import due_of, moved_due
from givalia_core.engine.records import Refusal
from givalia_core.model import TEN_YEARS_US


@pytest.mark.parametrize(
    ("delay_us", "at_us", "due"),
    [
        (5, None, (False, NOW.timer_us + 5)),
        (0, NOW.wall_us + 7, (True, NOW.wall_us + 7)),
        (0, NOW.wall_us - 7, (True, NOW.wall_us)),
        (0, NOW.wall_us + TEN_YEARS_US, (True, NOW.wall_us + TEN_YEARS_US)),
    ],
)
def test_a_delay_is_on_the_timer_clock_and_an_instant_on_the_wall_clock(
    delay_us: int, at_us: int | None, due: tuple[bool, int]
) -> None:
    assert due_of(delay_us, at_us, NOW) == due


def test_an_instant_beyond_ten_years_is_refused_for_good() -> None:
    with pytest.raises(Refusal, match="more than ten years") as caught:
        due_of(0, NOW.wall_us + TEN_YEARS_US + 1, NOW)

    assert caught.value.is_decided


@pytest.mark.parametrize(
    ("ahead_us", "delta_us", "expected_us"),
    [(100, 7, 107), (100, -7, 93), (100, -200, 0), (-100, 7, 7), (-100, -7, 0), (0, TEN_YEARS_US, TEN_YEARS_US)],
)
@pytest.mark.parametrize("on_wall", [False, True])
def test_a_length_moves_a_due_on_its_own_clock_and_never_before_now(
    ahead_us: int, delta_us: int, expected_us: int, on_wall: bool
) -> None:
    clock_us = NOW.wall_us if on_wall else NOW.timer_us

    moved = moved_due(job(on_wall=on_wall, due_at_us=clock_us + ahead_us), delta_us, None, NOW)

    assert moved == (on_wall, clock_us + expected_us)


def test_a_job_is_not_moved_beyond_ten_years() -> None:
    with pytest.raises(Refusal, match="in more than ten years") as caught:
        moved_due(job(due_at_us=NOW.timer_us + 1), TEN_YEARS_US, None, NOW)

    assert caught.value.is_decided


def test_a_job_that_is_moved_to_an_instant_is_on_the_wall_clock() -> None:
    assert moved_due(job(), None, NOW.wall_us + 9, NOW) == (True, NOW.wall_us + 9)
