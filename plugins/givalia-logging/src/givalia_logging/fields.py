"""The values of a log line: harmless, short and, for params, without secrets.

Clients choose keys, params and errors. Nothing in them can start a new line, control a terminal or change the direction of
the text, and none is longer than 256 characters. Nothing here raises, even if converting the value to text does.
"""

from __future__ import annotations

import re
from typing import Any, Final

CHARACTERS_MAX: Final = 256
DEPTH_MAX: Final = 4
ITEMS_MAX: Final = 20
MASK: Final = "***"

_IS_SECRET: Final = re.compile(
    r"pass(word|wd|phrase|code)?\b|passw|pwd|secret|token|auth(?!or(?!i[sz]))|credential|cookie|session|bearer|signature|private"
    r"|(api|access|signing|encryption)[-_ ]?key|\b(otp|pin|cvv|dsn)\b",
    re.IGNORECASE,
).search
_IN_URL: Final = re.compile(
    r"(?P<user>://[^/\s:@]*:)[^/\s@]+(?=@)"
    r"|(?P<query>[?&#;][\w-]*(?:pass|pwd|secret|token|auth|key|sig)[\w-]*=)[^&#\s]+",
    re.IGNORECASE,
)


def text(value: object, characters_max: int = CHARACTERS_MAX) -> str:
    """Return the value as text that is harmless in a log: one line of at most 256 printable characters.

    CR, LF, ESC, the C1 controls, bidi marks, line separators and lone surrogates are escaped: `\\n`, `\\x1b`, `\\u202e`.
    """
    try:
        shown = value if isinstance(value, str) else str(value)
    except BaseException:  # A __str__ of job code may raise anything; the line is written anyway.
        shown = f"<{type(value).__name__} without a text>"
    shown = shown[: characters_max + 1]
    if not shown.isprintable():
        shown = "".join(map(_escaped, shown))
    return shown if len(shown) <= characters_max else shown[: characters_max - 1] + "…"


def _escaped(character: str) -> str:
    # isprintable is false exactly for controls, format marks (bidi, zero width), separators and surrogates.
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def plain(value: object) -> object:
    """Return numbers and booleans unchanged, everything else as harmless text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**64 else text(f"{value.bit_length()} bits")
    if isinstance(value, float):
        return round(float(value), 6) if abs(value) < 1e300 else text(value)  # NaN and Infinity are not JSON.
    return text(value)


def params(value: object) -> str:
    """Return params as harmless text; secrets are masked, if their name or a URL reveals them."""
    return text(repr(_masked(value, DEPTH_MAX)))


def _masked(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return _IN_URL.sub(lambda found: (found["user"] or found["query"]) + MASK, value[: 4 * CHARACTERS_MAX])
    if isinstance(value, (bytes, bytearray)):
        return f"<{len(value)} bytes>"
    if not isinstance(value, (dict, list, tuple)):
        return plain(value)
    if not depth:
        return "…"
    if isinstance(value, dict):
        shown = {
            text(key): MASK if _IS_SECRET(text(key)) else _masked(each, depth - 1)
            for key, each in list(value.items())[:ITEMS_MAX]
        }
        return shown if len(value) <= ITEMS_MAX else {**shown, "…": len(value) - ITEMS_MAX}
    items = [_masked(each, depth - 1) for each in value[:ITEMS_MAX]]
    return items if len(value) <= ITEMS_MAX else [*items, "…"]
