"""What a field may hold: small questions to one value, from which the table of messages is made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], bool]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}", re.ASCII).fullmatch
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]").search


def is_any_text(value: Any) -> bool:
    """Text, however long."""
    return type(value) is str


def is_text(most: int) -> Check:
    """Text of at most so many characters."""
    return lambda value: type(value) is str and len(value) <= most


def is_long_text(most: int) -> Check:
    """Text of at most so many bytes of UTF-8."""
    return lambda value: type(value) is str and (len(value) * 4 <= most or len(value.encode("utf-8", "replace")) <= most)


def is_int(least: int, most: int) -> Check:
    """A whole number between two limits; a bool is none."""
    return lambda value: type(value) is int and least <= value <= most


def is_bytes(length: int) -> Check:
    """Exactly so many bytes."""
    return lambda value: type(value) is bytes and len(value) == length


def is_key(value: Any) -> bool:
    """A key: 1 to 255 bytes of UTF-8 without control characters or surrogates."""
    if type(value) is not str or not value or _CONTROL(value):
        return False
    try:
        return len(value) <= 63 or len(value.encode()) <= 255
    except UnicodeEncodeError:
        return False


def is_name(value: Any) -> bool:
    """The name of a module or worker."""
    return type(value) is str and _NAME(value) is not None


def or_none(check: Check) -> Check:
    """What the other check takes, or nil."""
    return lambda value: value is None or check(value)


def is_bool(value: Any) -> bool:
    """True or false."""
    return type(value) is bool


def is_fraction(value: Any) -> bool:
    """A number from 0 to 1."""
    return type(value) in (float, int) and 0 <= value <= 1  # A NaN compares false.


def one_of(*words: str) -> Check:
    """One of these words."""
    return lambda value: type(value) is str and value in words
