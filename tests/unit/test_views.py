"""Conversions between the wire's numbers and people's texts: times, lengths, ids."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest
from givalia_core.model import TEN_YEARS_US, JobState, OutcomeKind
from givalia_core.times import at_to_us, length_to_us, to_datetime
from givalia_core.views import Outcome, RunningJobView, text_id, wire_id

NO_NUMBERS: list[Any] = [
    float("nan"), float("inf"), float("-inf"), True, False, "5", b"5", None, [], {}, 1e308, 10**400, -(10**400), 1j,
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_finite_number_is_no_time(value: Any) -> None:
    with pytest.raises(BadRequest):
        length_to_us(value, "time")
    with pytest.raises(BadRequest):
        at_to_us(value)


@pytest.mark.parametrize(
    ("value", "expected_us"),
    [
        (0, 0),
        (1.5, 1_500_000),
        (0.0000004, 0),
        (timedelta(minutes=2), 120 * SECOND_US),
        (TEN_YEARS_US / SECOND_US, TEN_YEARS_US),
    ],
)
def test_a_length_is_seconds_or_a_timedelta(value: Any, expected_us: int) -> None:
    assert length_to_us(value, "time") == expected_us


@pytest.mark.parametrize("value", [-0.001, -1, timedelta(seconds=-1), 10 * 365 * 86_400 + 1, timedelta(days=4_000)])
def test_a_length_is_neither_negative_nor_over_ten_years(value: Any) -> None:
    with pytest.raises(BadRequest, match="time is 0 to 10 years, not"):
        length_to_us(value, "time")


def test_a_length_may_be_negative_where_that_is_said() -> None:
    assert length_to_us(-2, "time", negative=True) == -2 * SECOND_US
    with pytest.raises(BadRequest, match="time is -10 years to 10 years"):
        length_to_us(timedelta(days=-4_000), "time", negative=True)


def test_an_absolute_time_is_epoch_seconds_or_an_aware_datetime() -> None:
    berlin = datetime(2025, 6, 15, 17, 6, 40, 250_000, tzinfo=timezone(timedelta(hours=2)))

    assert at_to_us(1_750_000_000.25) == at_to_us(berlin) == 1_750_000_000_250_000


def test_a_datetime_without_a_time_zone_is_refused() -> None:
    with pytest.raises(BadRequest, match="time zone"):
        at_to_us(datetime(2025, 6, 15))


def test_wire_times_become_aware_datetimes_to_the_microsecond() -> None:
    at = to_datetime(1_750_000_000_000_001)

    assert at == datetime(2025, 6, 15, 15, 6, 40, 1, tzinfo=UTC)
    assert at_to_us(at) == 1_750_000_000_000_001


def test_an_id_goes_to_the_wire_and_back() -> None:
    given = uuid.uuid4()

    assert wire_id(given) == wire_id(str(given)) == given.bytes
    assert text_id(given.bytes) == str(given)


@pytest.mark.parametrize("value", ["", "x", "123", 7, None, b"0" * 16, b"0" * 32, [], "é" * 32])
def test_what_is_no_uuid_is_no_id(value: Any) -> None:
    with pytest.raises(BadRequest):
        wire_id(value)


def test_what_people_are_shown_is_frozen() -> None:
    due = to_datetime(0)
    job = RunningJobView("id", None, "Mail", "any", 0, 1, due, fence=3, params={"a": 1})

    with pytest.raises(dataclasses.FrozenInstanceError):
        job.key = "other"  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Outcome(OutcomeKind.FAILED).error = "x"  # type: ignore[misc]
    assert job.idempotency_key == "id"


def test_a_state_reads_as_its_word() -> None:
    assert JobState.WAITING == "waiting"
