"""The params of a job on the command line: JSON in the argument, in a file, or on standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final

from givalia_core.errors import BadRequest, TooLarge

STDIN: Final = "-"
FILE: Final = "@"
BYTES_MAX: Final = 16 << 20  # Of the JSON, which is longer than the message; the server checks the exact limit.


def read(text: str) -> Any:
    """Return the value of `--params`: `@FILE`, `-`, or JSON.

    Raises:
        BadRequest: The text is not JSON, or the file cannot be read.
        TooLarge: The text is far longer than params may be.
    """
    where, said = _said(text)
    if not said.strip():
        raise BadRequest(f"{where} is empty; for a job without params, leave --params out or write null")
    try:
        return json.loads(said, parse_constant=_no_constant)
    except RecursionError:
        raise BadRequest(f"{where} is nested too deeply") from None
    except ValueError as error:  # Not JSON, or not UTF-8.
        hint = "" if where != "--params" else " (text needs quotes of its own: --params '\"text\"')"
        raise BadRequest(f"{where} is not JSON: {error}{hint}") from None


def _said(text: str) -> tuple[str, str | bytes]:
    """Return the name of the source for messages, and the JSON."""
    if text == STDIN:
        return "standard input", _limited(sys.stdin.buffer, "standard input")
    if not text.startswith(FILE):
        return "--params", text
    name = text.removeprefix(FILE)
    try:
        with Path(name).open("rb") as file:
            return name, _limited(file, name)
    except (OSError, ValueError) as error:  # A name can have a NUL.
        raise BadRequest(f"--params {text}: {error}") from None


def _limited(stream: BinaryIO, name: str) -> bytes:
    data = stream.read(BYTES_MAX + 1)
    if len(data) > BYTES_MAX:
        raise TooLarge(f"{name} has more than {BYTES_MAX >> 20} MiB")
    return data


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")
