"""Checks of fields, from which the table of messages is made: each tests one value, and carries words for people.

The caller of a verb reads a refusal, so it names options as verbs do and lengths in seconds, never the names and the
microseconds of the wire.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from givalia_core.errors import BadRequest
from givalia_core.specifiers import is_specifier
from givalia_core.times import length_words, to_datetime

Check: TypeAlias = Callable[[Any], bool]

SHOWN_CHARS_MAX: Final = 64
KEY_BYTES_MAX: Final = 255
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", re.ASCII).fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


def shown(value: Any) -> str:
    """Return a refused value in printable ASCII, shortened; for a value that has parts, only the type."""
    text = ascii(value) if isinstance(value, (str, bytes, int, float, bool, type(None))) else type(value).__name__
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


def refusal_of(field: str, check: Check, value: Any) -> BadRequest:
    """Return the error that says which values the field may hold, as in "priority is -9 to 9, not 10"."""
    words = _words(check)
    return BadRequest(f"{_OPTIONS.get(field, field)} is {words.allowed}, not {words.shown(value)}")


class _Words(NamedTuple):
    allowed: str  # Completes "NAME is ...".
    shown: Callable[[Any], str] = shown


_OPTIONS: Final = {
    "delay_us": "time", "delta_us": "time", "at_us": "at", "timeout_us": "timeout", "expires_us": "expires",
    "retain_us": "retain", "backoff_us": "backoff", "backoff_max_us": "the longest backoff", "after_us": "after",
    "lease_us": "lease", "due_us": "due", "until_us": "until", "since_us": "since", "blocked_us": "blocked",
    "due_before_us": "due_before", "due_after_us": "due_after", "ended_after_us": "ended_after",
    "after_a": "the place to go on from", "after_b": "the place to go on from",
}  # fmt: skip
"""Fields that people know by another name."""


def _words(check: Check) -> _Words:
    return _WORDS.get(check, _UNKNOWN)


def _with_words(check: Check, allowed: str, show: Callable[[Any], str] = shown) -> Check:
    _WORDS[check] = _Words(allowed, show)
    return check


def is_any_text(value: Any) -> bool:
    """Return whether a value is text, of any length."""
    return type(value) is str


def is_text(most: int) -> Check:
    """Return a check for text of at most so many characters."""
    return _with_words(lambda value: type(value) is str and len(value) <= most, f"text of at most {most:,} characters")


def is_long_text(most: int) -> Check:
    """Return a check for text of at most so many bytes of UTF-8."""
    return _with_words(
        lambda value: type(value) is str and (len(value) * 4 <= most or len(value.encode("utf-8", "replace")) <= most),
        f"text of at most {most:,} bytes",
    )


def is_int(least: int, most: int) -> Check:
    """Return a check for a whole number between two limits; a bool is none."""
    return _with_words(lambda value: type(value) is int and least <= value <= most, f"{least} to {most}")


def is_length(least_us: int, most_us: int) -> Check:
    """Return a check for a whole number of microseconds between two limits; people read the limits as lengths."""
    return _with_words(
        is_int(least_us, most_us), f"{length_words(least_us)} to {length_words(most_us)}", _shown_as(length_words)
    )


def is_instant(reach_us: int) -> Check:
    """Return a check for an instant of the wall clock in microseconds, at most `reach_us` from 1970."""
    return _with_words(
        is_int(-reach_us, reach_us),
        f"an instant within {length_words(reach_us)} of 1970",
        _shown_as(lambda us: to_datetime(us).isoformat()),
    )


def _shown_as(words: Callable[[int], str]) -> Callable[[Any], str]:
    def show(value: Any) -> str:
        try:
            return words(value) if type(value) is int else shown(value)
        except OverflowError:  # Beyond the reach of a datetime.
            return shown(value)

    return show


def is_bytes(length: int) -> Check:
    """Return a check for exactly so many bytes."""
    return _with_words(lambda value: type(value) is bytes and len(value) == length, f"{length} bytes")


def is_any_bytes(value: Any) -> bool:
    """Return whether a value is bytes, of any length."""
    return type(value) is bytes


def or_none(check: Check) -> Check:
    """Return a check that takes nil and what the other check takes."""
    return _with_words(lambda value: value is None or check(value), *_words(check))


def is_bool(value: Any) -> bool:
    """Return whether a value is True or False."""
    return type(value) is bool


def is_fraction(value: Any) -> bool:
    """Return whether a value is a number from 0 to 1."""
    return type(value) in (float, int) and 0 <= value <= 1  # A NaN compares false.


def one_of(*words: str) -> Check:
    """Return a check for one of these words."""
    *others, last = words
    allowed = f"{', '.join(others)} or {last}" if others else last
    return _with_words(lambda value: type(value) is str and value in words, allowed)


NAME_WORDS: Final = "a name (1 to 128 letters, digits, _ . -, beginning with a letter or _)"
_UNKNOWN: Final = _Words("another kind of value")
_WORDS: Final[WeakKeyDictionary[Check, _Words]] = WeakKeyDictionary()  # Weak, since a check may be made for one use.
for _check, _allowed in (
    (is_any_text, "text"),
    (is_any_bytes, "bytes"),
    (is_bool, "true or false"),
    (is_fraction, "a number from 0 to 1"),
    (is_specifier, "a specifier as pip has it, such as >=2,<3"),
):
    _with_words(_check, _allowed)

is_name: Final = _with_words(lambda value: type(value) is str and _NAME(value) is not None, NAME_WORDS)
"""The name of a module or worker."""

is_key: Final = _with_words(
    # A character has at most four bytes; one that UTF-8 does not have is refused like a control character.
    lambda value: (
        type(value) is str
        and 0 < len(value) <= KEY_BYTES_MAX
        and not _CONTROL(value)
        and (len(value) * 4 <= KEY_BYTES_MAX or len(value.encode()) <= KEY_BYTES_MAX)
    ),
    f"text of 1 to {KEY_BYTES_MAX} bytes without control characters",
)
"""A key of a job."""
