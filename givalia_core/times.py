"""Lengths and instants as people give and read them; the core counts integer microseconds.

In Python a length is a number of seconds or a `timedelta`; an instant is epoch seconds, an aware `datetime` or ISO text with a
zone. In texts (command line, environment, settings file) a length is `90`, `10m`, `1h30m` or `2d`. This module reads no clock.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, TypeAlias

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest
from givalia_core.model import TEN_YEARS_US

Length: TypeAlias = float | timedelta
Instant: TypeAlias = float | datetime | str

MINUTE_US: Final = 60 * SECOND_US
HOUR_US: Final = 60 * MINUTE_US
DAY_US: Final = 24 * HOUR_US
YEAR_US: Final = 365 * DAY_US
INSTANT_REACH_US: Final = 100 * TEN_YEARS_US
"""The largest distance of an instant from 1970."""
LENGTH_FORMS: Final = "seconds, or a length such as 10m, 1h30m, 2d"

_REACH_S: Final = 1e15  # Beyond all limits.
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII).fullmatch
_PARTS: Final = re.compile(
    r"([+-]?)" + "".join(rf"(?:(\d+(?:\.\d+)?){unit})?\s*" for unit in ("w", "d", "h", "m(?!s)", "s", "ms")), re.ASCII
).fullmatch
_PARTS_S: Final = (7 * 86_400.0, 86_400.0, 3_600.0, 60.0, 1.0, 0.001)


def to_datetime(us: int) -> datetime:
    """Convert microseconds of the wall clock to an aware datetime in UTC."""
    return _EPOCH + timedelta(0, 0, us)


def at_to_us(at: Instant, name: str = "at") -> int:
    """Convert a user's instant to microseconds of the wall clock.

    Raises:
        BadRequest: Epoch seconds out of reach, a text that is not an ISO instant, or an instant without a time zone.
    """
    if isinstance(at, str):
        at = _iso(at, None, name)
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise BadRequest(f"{name} must be an aware datetime; this one has no time zone")
        return (at - _EPOCH) // _MICROSECOND
    us = _finite_us(at, name, "epoch seconds, an aware datetime or ISO text with its zone")
    if abs(us) > INSTANT_REACH_US:
        hint = "; it is in seconds, not in milliseconds" if abs(us) < 1_000 * INSTANT_REACH_US else ""
        raise BadRequest(f"{name} is an instant within {length_words(INSTANT_REACH_US)} of 1970, not {at!r:.40}{hint}")
    return us


def any_length_to_us(length: Length, name: str) -> int:
    """Convert a user's length to microseconds; the caller checks its own limits.

    Raises:
        BadRequest: Not a number or `timedelta`, or not finite.
    """
    if isinstance(length, timedelta):
        return length // _MICROSECOND
    return _finite_us(length, name, "a number of seconds or a timedelta")


def length_to_us(length: Length, name: str, *, negative: bool = False) -> int:
    """Convert a user's length, at most ten years, to microseconds.

    Raises:
        BadRequest: Not a number or `timedelta`, not finite, negative (unless allowed) or too long.
    """
    us = any_length_to_us(length, name)
    if not (-TEN_YEARS_US if negative else 0) <= us <= TEN_YEARS_US:
        raise BadRequest(f"{name} is {'-10 years' if negative else '0'} to 10 years, not {length_words(us)}")
    return us


def length_to_seconds(length: Length, name: str) -> float:
    """Convert the length that a call may wait to seconds; it may be infinite, and a negative one counts as 0.

    Raises:
        BadRequest: Not a number or `timedelta`.
    """
    if isinstance(length, timedelta):
        return length.total_seconds()
    if isinstance(length, bool) or not isinstance(length, (int, float)) or math.isnan(length):
        raise BadRequest(f"{name} is a number of seconds or a timedelta, not {length!r:.40}")
    return length


def length_of_text(text: str, name: str) -> float:
    """Return the seconds of `90`, `1.5`, `10m`, `1h30m` or `2d`: a number, or numbers with units (w, d, h, m, s, ms in order).

    Raises:
        BadRequest: The text has another form.
    """
    text = text.strip()
    if _NUMBER(text):
        return float(text)
    found = _PARTS(text)
    if found is None or not any(found.groups()[1:]):
        raise BadRequest(f"{name} is {LENGTH_FORMS}, not {text!r:.64}")
    sign, *parts = found.groups()
    seconds = math.fsum(float(part) * unit_s for part, unit_s in zip(parts, _PARTS_S, strict=True) if part)
    return -seconds if sign == "-" else seconds


def instant_of_text(text: str, zone: tzinfo | None = None, name: str = "at") -> float | datetime:
    """Return the instant of epoch seconds or of an ISO text; an ISO text without a zone is in `zone`.

    If the clocks show the hour twice, the first one counts.

    Raises:
        BadRequest: The text has neither form, there is no zone, or the clocks of the zone skip this time.
    """
    text = text.strip()
    return float(text) if _NUMBER(text) else _iso(text, zone, name)


def _iso(text: str, zone: tzinfo | None, name: str) -> datetime:
    try:
        # Python accepts any separator here, and would read a zone after a date as a time of day.
        if text[4:5] == "-" and text[10:11] not in ("", "T", "t", " "):
            raise ValueError
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise BadRequest(f"{name} is epoch seconds or an ISO date and time, not {text!r:.64}") from None
    if instant.tzinfo is not None:
        return instant
    if zone is None:
        whole = f"{text}T00:00" if len(text) == len("2031-03-04") else text
        raise BadRequest(f"{name} {text!r:.64} has no time zone: write {whole:.64}+01:00, or {whole:.64}Z for UTC")
    instant = instant.replace(tzinfo=zone)
    try:
        instant.astimezone(UTC)
    except OverflowError:
        raise BadRequest(f"{name} {text!r:.64} is beyond the years 1 to 9999 in UTC") from None
    if instant.astimezone(UTC).astimezone(zone).replace(tzinfo=None) != instant.replace(tzinfo=None):
        raise BadRequest(f"{name} {text!r:.64} does not exist in {zone}: the clocks are put forward over it")
    return instant


def length_words(us: int) -> str:
    """Return a length for people, in one or two units: `9.8 s`, `10 min`, `34 h 12 min`, `12 d 4 h`, `10 years`."""
    if us < 0:
        return f"-{length_words(-us)}"
    if us and us % YEAR_US == 0:
        years = us // YEAR_US
        return f"{years} years" if years > 1 else "1 year"
    if us < 2 * MINUTE_US:
        return f"{us / SECOND_US:.3g} s" if us else "0"
    if us < HOUR_US:
        return _two(round(us / SECOND_US), 60, "min", "s")
    if us <= 2 * DAY_US:
        return _two(round(us / MINUTE_US), 60, "h", "min")
    return _two(round(us / HOUR_US), 24, "d", "h")


def length_text(us: int) -> str:
    """Return a length as a user would write it: `30s`, `10m`, `1h`, `30d`."""
    for unit_us, unit in ((DAY_US, "d"), (HOUR_US, "h"), (MINUTE_US, "m")):
        if us and us % unit_us == 0:
            return f"{us // unit_us}{unit}"
    return f"{us / SECOND_US:.15g}s"


def _two(count: int, base: int, large: str, small: str) -> str:
    whole, rest = divmod(count, base)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def _finite_us(value: Any, name: str, forms: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRequest(f"{name} is {forms}, not {type(value).__name__}")
    if not abs(value) <= _REACH_S:  # A NaN compares false.
        raise BadRequest(f"{name} is a finite number within reach, not {value!r:.40}")
    return round(value * SECOND_US)
