"""The server's own troubles: each is logged at its start and at its end, and shown while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from givalia_core.clock import SECOND_US, ManualClock
from givalia_core.server import chores, troubles
from givalia_core.server.troubles import ENDS, Signs, Troubles

GIB = 1 << 30
CASES: list[tuple[str, dict[str, Any]]] = [
    ("store_full", {"is_full": True}),
    ("store_full", {"is_full": True, "is_stuck": True}),
    ("store_nearly_full", {"free_bytes": 4 * GIB, "disk_bytes": 100 * GIB}),
    ("store_nearly_full", {"free_bytes": 9 * GIB, "disk_bytes": 4_000 * GIB}),
    ("store_nearly_full", {"free_bytes": 60 << 20, "disk_bytes": 96 << 20}),
    ("store_nearly_full", {"live": 900, "live_max": 1_000}),
    ("store_away", {"is_away": True}),
    ("slow_syncs", {"slow_turns": 1}),
    ("busy", {"busy": "the server uses 900 MiB of memory"}),
    ("shedding", {"shed": 3}),
    ("hooks_dropped", {"hooks_dropped": 7}),
    ("log_lines_lost", {"lines_lost": 2}),
]


class Watched:
    """Troubles that are looked at on a clock of their own."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.troubles = Troubles()

    def look(self, seconds: float = 1, **signs: Any) -> set[str]:
        """Let time pass, look, and return the troubles that last."""
        self.clock.advance(seconds)
        self.troubles.look(Signs(**signs), self.clock.read())
        return {name for name, shown in self.troubles.describe().items() if shown is not None}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, "givalia.server")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(("name", "signs"), CASES)
def test_a_trouble_is_said_once_at_its_start_and_once_at_its_end(
    name: str, signs: dict[str, Any], lines: Callable[[], list[str]]
) -> None:
    watched = Watched()
    watched.look()

    assert watched.look(**signs) == {name}
    began_us = watched.clock.read().wall_us
    for _ in range(5):
        watched.look(**signs)
    shown = watched.troubles.describe()[name]
    assert shown is not None
    assert shown["since_us"] == began_us
    counts = {sign: value for sign, value in signs.items() if sign in ("slow_turns", "shed", "hooks_dropped", "lines_lost")}
    for _ in range(30):
        left = watched.look(**counts)

    assert left == set()
    said = lines()
    if name in troubles.SAID_ELSEWHERE:
        assert said == []
    else:
        start, end = said
        assert start == f"{name}: {shown['words']}"
        assert end.startswith(f"{name} is over after ")
        assert end.endswith(ENDS[name])


def test_as_many_jobs_as_are_taken_are_told_apart_from_nearly_as_many() -> None:
    assert Watched().look(live=1_000, live_max=1_000) == {"store_nearly_full"}
    assert Watched().look(live=1_000, live_max=1_000, busy="so many live") == {"store_nearly_full", "busy"}


def test_what_flickers_is_one_trouble(lines: Callable[[], list[str]]) -> None:
    watched = Watched()
    for number in range(100):
        watched.look(seconds=3, is_full=number % 2 == 0, slow_turns=number)

    assert [line.split(":")[0] for line in lines()] == ["store_full", "slow_syncs"]


def test_every_trouble_is_shown_also_those_that_are_not_there() -> None:
    assert Troubles().describe() == dict.fromkeys(ENDS)
    assert {name for name, _ in CASES} == set(ENDS)


@pytest.mark.parametrize(
    "signs",
    [
        {"free_bytes": 30 * GIB, "disk_bytes": 4_000 * GIB},
        {"free_bytes": 6 * GIB, "disk_bytes": 100 * GIB},
        {"free_bytes": None, "disk_bytes": None},
        {"live": 899, "live_max": 1_000},
    ],
)
def test_enough_room_is_no_trouble(signs: dict[str, Any]) -> None:
    assert Watched().look(**signs) == set()


def test_lines_that_a_handler_could_not_write_are_counted() -> None:
    handler = logging.NullHandler()
    handler.lost = 3  # type: ignore[attr-defined]
    logger = logging.getLogger("givalia")
    logger.addHandler(handler)
    try:
        assert chores.lines_lost() == 3
    finally:
        logger.removeHandler(handler)


def test_a_trouble_that_begins_again_is_said_again(lines: Callable[[], list[str]]) -> None:
    watched = Watched()
    for seconds in (1, 11, 1, 11):
        watched.look(seconds, is_full=seconds == 1)

    assert len(lines()) == 4
    assert troubles.QUIET_US == 10 * SECOND_US
