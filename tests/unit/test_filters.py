"""Filters on the command line: instants are read as in all verbs, and refused by the names of their arguments."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from givalia_core.cli import common, filters
from givalia_core.errors import BadRequest


def given(*words: str) -> dict[str, Any]:
    parser = common.Parser()
    filters.arguments(parser)
    return filters.given_filters(parser.parse_args(words))


def test_a_filter_that_is_not_given_is_none() -> None:
    assert given() == {}
    assert given("--module", "Mail", "--tz", "UTC") == {"module": "Mail"}


def test_an_instant_without_a_zone_is_in_that_of_tz() -> None:
    assert given("--ended-after", "2030-07-01T08:00", "--due-before", "2030-07-01T08:00Z", "--tz", "Europe/Berlin") == {
        "ended_after": datetime(2030, 7, 1, 6, tzinfo=UTC),
        "due_before": datetime(2030, 7, 1, 8, tzinfo=UTC),
    }
    assert given("--due-after", "1893456000.5") == {"due_after": 1893456000.5}


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("--ended-after", "14:00"), "ended-after is epoch seconds or an ISO date and time, not '14:00'"),
        (("--due-before", "2030-07-01T08:00"), "due-before '2030-07-01T08:00' has no time zone.*or give --tz"),
        (("--due-after", "2030-07-01T08:00", "--tz", "Berlin"), "no time zone 'Berlin'"),
        (("--due-after", ""), "--due-after is empty"),
    ],
)
def test_what_is_no_instant_is_refused_in_words(words: tuple[str, ...], refusal: str) -> None:
    with pytest.raises(BadRequest, match=refusal):
        given(*words)
