"""Lengths and instants on the command line: read from arguments, and shown to people.

A terminal shows an instant as `in 34 h 12 min, Tue 08:00 CET`, in the time zone of this machine. Programs read ISO.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from typing import Final, TextIO
from zoneinfo import ZoneInfo, available_timezones

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest
from givalia_core.times import HOUR_US, at_to_us, instant_of_text, length_of_text, length_words

WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
SOON: Final = timedelta(days=6)  # Within this distance the weekday names the day.
FROM_NOW: Final = "how long from now: 90 (seconds), 10m, 1h30m, 2d [0]"
_MICROSECOND: Final = timedelta(microseconds=1)
_INSTANT: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00")


def length(name: str) -> Callable[[str], float]:
    """Return a reader of lengths for `add_argument(type=...)`: `90`, `10m`, `1h30m`, `2d`, as seconds.

    The reader raises `BadRequest`, which ends the program with one line instead of the usage of all arguments.
    """
    return partial(length_of_text, name=name)


def wait(name: str) -> Callable[[str], float]:
    """Return a reader of waits: of lengths that are not negative."""

    def read(text: str) -> float:
        if (seconds := length_of_text(text, name)) < 0:
            raise BadRequest(f"{name} is 0 or more, not {text!r:.64}")
        return seconds

    return read


def add_when(parser: argparse.ArgumentParser, words: str) -> None:
    """Add the arguments for a due; `words` is the help for the length."""
    parser.add_argument("--time", type=length("time"), help=words)
    parser.add_argument("--at", help="epoch seconds, or an ISO date and time")


def at(given: argparse.Namespace) -> float | datetime | None:
    """Return the instant of `--at`; None if it was not given."""
    return instant(given.at, given.tz)


def add_zone(parser: argparse.ArgumentParser) -> None:
    """Add the argument for the zone of instants that name none."""
    parser.add_argument("--tz", metavar="ZONE", help="the zone of ISO times that name none, such as Europe/Berlin")


def check_zone(given: argparse.Namespace) -> None:
    """Refuse a zone without an instant: the instant was forgotten."""
    instants = ("at", "due_before", "due_after", "ended_after")
    if getattr(given, "tz", None) is not None and all(getattr(given, name, None) is None for name in instants):
        raise BadRequest("--tz is the zone of an instant, and no instant is given")


def zone(text: str) -> tzinfo:
    """Return the time zone of this name, such as `Europe/Berlin`.

    Raises:
        BadRequest: This machine has no zone of this name.
    """
    try:
        return ZoneInfo(text)
    except (ValueError, OSError, KeyError):
        if not available_timezones():
            raise BadRequest("this machine has no list of time zones; pip install tzdata brings one") from None
        raise BadRequest(f"there is no time zone {text!r:.64}; names are such as Europe/Berlin or UTC") from None


def instant(text: str | None, tz: str | None, name: str = "at") -> float | datetime | None:
    """Return the instant of an argument; `tz` is the value of `--tz`, `name` the argument's name in a refusal.

    Raises:
        BadRequest: The text is not an instant, there is no zone, or the zone is unknown.
    """
    where = None if tz is None else zone(tz)
    try:
        found = None if text is None else instant_of_text(text, where, name)
        if found is not None:
            at_to_us(found, name)  # Checks the limits.
        return found
    except BadRequest as error:
        hint = ", or give --tz" if where is None and "time zone" in str(error) else ""
        raise BadRequest(f"{error}{hint}") from None


def relative(when: datetime, now: datetime | None = None) -> str:
    """Return the distance of an instant from `now` (None: the present): `in 34 h 12 min`, `12 min ago`, `now`."""
    us = (when - (now or datetime.now(UTC))) // _MICROSECOND
    if -SECOND_US < us <= 0:
        return "now"
    return f"in {length_words(us)}" if us > 0 else f"{length_words(-us)} ago"


def local(when: datetime, now: datetime | None = None) -> str:
    """Return an instant in local time: `Tue 08:00 CET`; with the date if it is days away, with seconds if it is near."""
    distance = abs(when - (now or datetime.now(UTC)))
    here = when.astimezone()
    day = WEEKDAYS[here.weekday()] if distance < SOON else f"{here:%Y-%m-%d}"
    clock = f"{here:%H:%M:%S}" if distance // _MICROSECOND < HOUR_US else f"{here:%H:%M}"
    return f"{day} {clock} {here:%Z}"


def moment(when: datetime, now: datetime | None = None) -> str:
    """Return the distance and the local time: `in 34 h 12 min, Tue 08:00 CET`."""
    return f"{relative(when, now)}, {local(when, now)}"


def words_shown(text: str) -> str:
    """Return a server's words for standard output: on a terminal, their instants are replaced by those of `shown`."""
    return _INSTANT.sub(lambda found: shown(datetime.fromisoformat(found[0])), text) if sys.stdout.isatty() else text


def shown(when: datetime, stream: TextIO | None = None, timespec: str = "auto") -> str:
    """Return an instant for this stream (None: standard output): words for a terminal, otherwise ISO to this unit."""
    return moment(when) if (stream or sys.stdout).isatty() else when.isoformat(timespec=timespec)
