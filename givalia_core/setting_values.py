"""One setting: its allowed values, in words and as a check, and the reading of a given value.

A setting is a field of a dataclass, made by `setting`; its type says how a value is read. A `float` is a length of time:
seconds, a `timedelta`, or a text such as `10m`. A value that is not allowed, of whatever type, raises `SettingsInvalid`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import Field, field
from datetime import timedelta
from typing import Any, Final, NamedTuple

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, SettingsInvalid
from givalia_core.protocol import addresses
from givalia_core.protocol.checks import NAME_WORDS, is_name
from givalia_core.times import LENGTH_FORMS, length_of_text, length_text, length_words

SHOWN_CHARS_MAX: Final = 64
_WHOLE: Final = re.compile(r"[+-]?\d[\d_]*", re.ASCII).fullmatch
_DISTRIBUTION: Final = re.compile(r"\s*(?:\*|[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?\s*", re.ASCII).fullmatch
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII).match
_NO_TEXT: Final = re.compile(r"[\x00-\x1f\x7f]").search
_WORDS_FOR_TRUE, _WORDS_FOR_FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off", "")


class Form(NamedTuple):
    """The allowed texts of a setting; `allowed` completes "NAME is ...". A refusal shows the text unless it may be secret."""

    is_legal: Callable[[str], bool]
    allowed: str
    is_secret: bool = False


def setting(
    default: Any,
    words: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
    is_list: bool = False,
    form: Form | None = None,
) -> Any:
    """Return a field with its help and limits; a number needs both limits, and a list is texts separated by commas."""
    metadata = {"help": words, "least": least, "most": most, "choices": choices, "is_list": is_list, "form": form or PATH}
    return field(default=default, metadata=metadata)


def allowed(each: Field[Any], wanted: type) -> str:
    """Return the allowed values of a setting, in words."""
    limits = each.metadata
    if wanted is bool:
        return "yes or no"
    if wanted is float:
        return f"{length_words(_us(limits['least']))} to {length_words(_us(limits['most']))}"
    if wanted is int:
        return f"{number(limits['least'])} to {number(limits['most'])}"
    *others, last = limits["choices"] or (limits["form"].allowed,)
    return f"{', '.join(others)} or {last}" if others else str(last)


def written(each: Field[Any], wanted: type) -> str:
    """Return the default as a user would write it; empty if it is the empty text."""
    default: Any = each.default
    if wanted is bool:
        return "yes" if default else "no"
    if wanted is float:
        return length_text(_us(default))
    return number(default) if wanted is int else str(default)


def number(value: float) -> str:
    """Return a number for people, with commas in large ones."""
    return f"{value:,}" if value >= 100_000 else str(value)


def read(each: Field[Any], wanted: type, value: Any, source: str) -> Any:
    """Return a given value in the type of its setting.

    Args:
        each: The setting.
        wanted: Its type.
        value: The given value, of any type.
        source: The source in words: a flag, an environment variable, a file.

    Raises:
        SettingsInvalid: The value is not allowed; the error names the setting, the source and the allowed values.
    """
    limits = each.metadata
    if limits["is_list"] and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = ",".join(value)
    converted = _CONVERTED[wanted](value)
    if converted is None or not _is_within(converted, limits):
        shown = "" if limits["form"].is_secret else f", not {_shown(value)}"
        spelling = f" ({LENGTH_FORMS})" if wanted is float and converted is None and isinstance(value, str) else ""
        raise SettingsInvalid(f"{each.name} is {allowed(each, wanted)}{spelling}{shown} ({source})")
    return converted


def _is_within(value: Any, limits: Any) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        return value in limits["choices"] if limits["choices"] else bool(limits["form"].is_legal(value))
    return bool(limits["least"] <= value <= limits["most"])  # A NaN compares false.


def _bool(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return bool(value) if value in (0, 1) else None
    word = value.lower() if isinstance(value, str) else None
    return True if word in _WORDS_FOR_TRUE else False if word in _WORDS_FOR_FALSE else None


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str):
        try:
            return int(value) if _WHOLE(value.strip()) else None
        except ValueError:  # More digits than Python reads, or an underscore at the end.
            return None
    return value if isinstance(value, int) else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return length_of_text(value, "") if isinstance(value, str) else float(value)
    except (BadRequest, OverflowError):
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


_CONVERTED: Final[dict[type, Callable[[Any], Any]]] = {bool: _bool, int: _whole, float: _seconds, str: _text}


def _us(seconds: float) -> int:
    return round(seconds * SECOND_US)


def _shown(value: Any) -> str:
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # A number with more digits than Python shows, or very deep nesting.
        text = type(value).__name__
    return text if len(text) <= SHOWN_CHARS_MAX else text[: SHOWN_CHARS_MAX - 3] + "..."


# Forms of texts.


def _are_servers(text: str) -> bool:
    try:
        return bool(addresses.parse(text, 1))
    except BadRequest:
        return False


PATH: Final = Form(lambda text: not _NO_TEXT(text), "text without control characters")
HOST: Final = Form(lambda text: addresses.is_host(text) or addresses.is_ipv6(text), "a host's name or address")
SERVERS: Final = Form(_are_servers, "HOST, HOST:PORT or [::1]:PORT (ports are 1 to 65535), several separated by commas")
WORKER: Final = Form(is_name, NAME_WORDS)
PLUGINS: Final = Form(lambda text: all(map(_DISTRIBUTION, text.split(","))), "* or names of distributions, separated by commas")
STORE: Final = Form(
    lambda text: not text or (bool(_SCHEME(text)) and not _NO_TEXT(text)),
    "a URL such as sqlite:///path, sqlite:relative or memory:",
    is_secret=True,
)
