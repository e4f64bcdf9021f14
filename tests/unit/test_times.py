"""Lengths and instants as texts, and their form for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from givalia_core.cli import moments
from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest
from givalia_core.times import at_to_us, instant_of_text, length_of_text, length_to_seconds, length_to_us, length_words

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 11, 29, 20, 48, tzinfo=UTC)


@pytest.fixture
def in_berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("1.5", 1.5), ("-30", -30), ("1e3", 1_000), ("10m", 600), ("1h30m", 5_400), ("1h 30m", 5_400),
        ("2d", 172_800), ("1w", 604_800), ("1.5h", 5_400), ("-10m", -600), ("500ms", 0.5), ("1m500ms", 60.5), (" 5s ", 5),
    ],
)  # fmt: skip
def test_a_length_is_read_with_its_units(text: str, seconds: float) -> None:
    assert length_of_text(text, "time") == seconds


@pytest.mark.parametrize(
    "text", ["", " ", "-", "m", "10 minutes", "30m1h", "1h1h", "nan", "inf", "1_000", "١٠m", "1,5", "0x10"]
)
def test_what_is_no_length_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(BadRequest, match="time is seconds, or a length such as 10m, 1h30m, 2d, not"):
        length_of_text(text, "time")


@pytest.mark.parametrize(
    ("us", "words"),
    [
        (0, "0"), (9_800_000, "9.8 s"), (60 * SECOND_US, "60 s"), (600 * SECOND_US, "10 min"), (605 * SECOND_US, "10 min 5 s"),
        (3_600 * SECOND_US, "1 h"), (86_400 * SECOND_US, "24 h"), ((34 * 60 + 12) * 60 * SECOND_US, "34 h 12 min"),
        (292 * 3_600 * SECOND_US, "12 d 4 h"), (3_650 * 86_400 * SECOND_US, "10 years"), (-600 * SECOND_US, "-10 min"),
    ],
)  # fmt: skip
def test_a_length_is_shown_in_one_or_two_units(us: int, words: str) -> None:
    assert length_words(us) == words


@pytest.mark.parametrize("text", ["2026-12-01T08:00+01:00", "2026-12-01T07:00Z", "2026-12-01 07:00:00.000000+00:00"])
def test_an_instant_is_iso_text_with_its_zone(text: str) -> None:
    assert at_to_us(text) == 1_796_108_400 * SECOND_US


def test_epoch_seconds_are_an_instant_on_the_command_line() -> None:
    assert instant_of_text("1796108400.5") == 1_796_108_400.5


@pytest.mark.parametrize(
    ("text", "words"),
    [("2026-12-01T08:00", "has no time zone: write"), ("tomorrow", "is epoch seconds or an ISO date and time"), ("", "ISO")],
)
def test_what_is_no_instant_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        at_to_us(text)


def test_a_zone_that_is_given_counts_only_for_texts_without_one() -> None:
    assert instant_of_text("2026-12-01T08:00", BERLIN) == datetime(2026, 12, 1, 7, tzinfo=UTC)
    assert instant_of_text("2026-12-01T08:00Z", BERLIN) == datetime(2026, 12, 1, 8, tzinfo=UTC)


def test_a_time_that_the_clocks_leave_out_is_refused_and_of_two_it_is_the_first() -> None:
    with pytest.raises(BadRequest, match="does not exist in Europe/Berlin"):
        instant_of_text("2026-03-29T02:30", BERLIN)
    twice = instant_of_text("2026-10-25T02:30", BERLIN)

    assert isinstance(twice, datetime)
    assert twice.astimezone(UTC) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)


def test_a_refusal_on_the_command_line_names_its_way_out() -> None:
    with pytest.raises(BadRequest, match="or give --tz"):
        moments.instant("2026-12-01T08:00", None)
    with pytest.raises(BadRequest, match="there is no time zone 'Berlin'"):
        moments.instant("2026-12-01T08:00", "Berlin")
    assert moments.instant("2026-12-01T08:00", "Europe/Berlin") == datetime(2026, 12, 1, 7, tzinfo=UTC)


def test_an_instant_in_milliseconds_is_told_so_in_the_users_own_figures() -> None:
    words = r"^due-after is an instant within 1000 years of 1970, not 1796040000000\.0; it is in seconds, not in milliseconds$"
    with pytest.raises(BadRequest, match=words):
        moments.instant("1796040000000", None, "due-after")
    with pytest.raises(BadRequest, match=r"^at is an instant within 1000 years of 1970, not 100000000000000$"):
        at_to_us(10**14)
    with pytest.raises(BadRequest, match=r"^at is a finite number within reach, not nan$"):
        at_to_us(float("nan"))


def test_a_machine_without_time_zones_is_told_where_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments, "available_timezones", set)

    with pytest.raises(BadRequest, match="pip install tzdata"):
        moments.zone("Nowhere/City")


@pytest.mark.parametrize(("value", "seconds"), [(5, 5.0), (timedelta(minutes=1), 60.0), (float("inf"), float("inf"))])
def test_a_wait_is_a_number_or_a_timedelta(value: Any, seconds: float) -> None:
    assert length_to_seconds(value, "timeout") == seconds


@pytest.mark.parametrize("value", [True, float("nan"), "5", None, []])
def test_what_is_no_wait_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest, match="timeout is a number of seconds or a timedelta, not"):
        length_to_seconds(value, "timeout")


@pytest.mark.usefixtures("in_berlin")
@pytest.mark.parametrize(
    ("when", "words"),
    [
        (datetime(2026, 12, 1, 7, 0, tzinfo=UTC), "in 34 h 12 min, Tue 08:00 CET"),
        (NOW + timedelta(seconds=9.8), "in 9.8 s, Sun 21:48:09 CET"),
        (NOW - timedelta(minutes=12), "12 min ago, Sun 21:36:00 CET"),
        (NOW + timedelta(days=200), "in 200 d, 2027-06-17 22:48 CEST"),
        (NOW, "now, Sun 21:48:00 CET"),
        (NOW - timedelta(milliseconds=3), "now, Sun 21:47:59 CET"),
    ],
)
def test_an_instant_is_shown_relative_and_on_the_clocks_of_this_machine(when: datetime, words: str) -> None:
    assert moments.moment(when, NOW) == words


def test_programs_are_shown_iso(capsys: pytest.CaptureFixture[str]) -> None:
    assert moments.shown(NOW) == "2026-11-29T20:48:00+00:00"


@pytest.mark.parametrize(
    ("length", "words"),
    [(8_639_913_600.0, "99999 d"), (-5, "-5 s"), (timedelta(days=-1), "-24 h")],
)
def test_a_length_beyond_its_limits_is_shown_as_people_write_it(length: Any, words: str) -> None:
    with pytest.raises(BadRequest, match=f"^time is 0 to 10 years, not {words}$"):
        length_to_us(length, "time")
