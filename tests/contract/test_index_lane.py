"""One lane: what its name says of it, and what is known of a lane at first."""

from __future__ import annotations

import pytest

from givalia_core.store.base import Route
from givalia_core.store.sqlite.index import keys
from givalia_core.store.sqlite.index.keys import DueKey, LaneKey
from givalia_core.store.sqlite.index.lane import START, Lane
from givalia_core.store.sqlite.index.slots import FAR


def test_a_lane_of_waiting_jobs_has_the_fields_of_its_name() -> None:
    # As the name is read from the file: no named tuple.
    lane = Lane(4, tuple(DueKey(keys.DUE, True, "Mail", "any >=2", -3)), 5, 6)

    assert (lane.number, lane.kind, lane.low, lane.used_in) == (4, keys.DUE, 5, 6)
    assert (lane.on_wall, lane.route, lane.rank) == (True, Route("Mail", "any >=2"), -3)
    assert lane.is_due
    assert not lane.is_loosely_filed


@pytest.mark.parametrize(
    ("key", "is_loosely_filed"),
    [
        ((keys.RUNNING,), False),
        ((keys.ENDED, "done"), False),
        ((keys.KEPT, "done"), False),
        ((keys.FORGOTTEN,), False),
        ((keys.EXPIRES, True), True),
        ((keys.NEWEST, "done"), True),
    ],
)
def test_a_lane_of_other_jobs_has_no_route_and_only_additional_ones_are_filed_loosely(
    key: LaneKey, is_loosely_filed: bool
) -> None:
    lane = Lane(0, key, 0, 0)

    assert lane.is_loosely_filed is is_loosely_filed
    assert not lane.is_due
    assert (lane.on_wall, lane.rank, lane.route) == (False, 0, Route("", ""))


def test_nothing_is_known_of_the_entries_of_a_new_lane() -> None:
    lane = Lane(0, (keys.RUNNING,), 0, 0)

    assert (lane.front, lane.loose, lane.bound) == ([], [], START)
    assert not lane.is_sorted


@pytest.mark.parametrize("when", [1 - FAR, -1, 0, 1, FAR])
def test_the_start_is_before_every_entry_that_can_be(when: int) -> None:
    assert (when, 1, 64) > START
