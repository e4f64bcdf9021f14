"""The one line of a stored error that says what was raised; the error is a traceback, or words of ours or of a job."""

from __future__ import annotations

import re
from typing import Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

HEADLINE_MAX: Final = 256
LEFT_OUT: Final = "[... the beginning is left out ...]"

_CHAINED: Final = re.compile(
    r"^(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n\n",
    re.MULTILINE,
)
_TRACEBACK: Final = re.compile(r"\s*(\+ Exception Group )?Traceback \(most recent call last\):")
_MARGIN: Final = "  | "  # Of an exception group and its frames.
_BEGINS_EMPTY: Final = re.compile(r"[^\W\d][\w.]*:\s*").fullmatch
_TYPE: Final = re.compile(r"[^\W\d][\w.]*(?=:|$)")


def headline(error: str | None) -> str:
    """Return type and message of what was raised itself, at most 256 characters: not of its cause, its notes or its parts."""
    error = (error or "").strip("\n")
    # Words of ours or of a job, such as why it was ended, stand before the traceback that they are about.
    *_, last = _CHAINED.split(error) if _TRACEBACK.match(error) else [error]
    lines = last.strip("\n").splitlines()
    if lines and _TRACEBACK.match(lines[0]):
        del lines[0]
    lines = [line.removeprefix(_MARGIN) for line in lines]
    for number, line in enumerate(lines):
        if line.strip() and not line[0].isspace():  # Frames are indented.
            line = own_line([line, *lines[number + 1 :]])
            return line if len(line) <= HEADLINE_MAX else line[: HEADLINE_MAX - 1] + "…"
    return lines[0].strip()[:HEADLINE_MAX] if lines else ""


def own_line(lines: list[str]) -> str:
    """Return the first of the lines with type and message; with that of the message where this begins with empty ones."""
    if not _BEGINS_EMPTY(lines[0]):
        return lines[0].rstrip()
    return f"{lines[0].rstrip()} {next((line.strip() for line in lines[1:] if line.strip()), '')}".rstrip()


def shortened(error: str, bytes_max: int) -> str:
    """Return an error in so many bytes of UTF-8; of one that is longer its headline, a line that says so, and the end."""
    data = error.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return data.decode()
    head = f"{headline(error)}\n{LEFT_OUT}\n".encode("utf-8", "replace")
    return (head + data[len(head) - bytes_max :]).decode("utf-8", "ignore")


def type_raised(error: str | None) -> str:
    """Return the name of the exception's class; empty if the error is words, which may be others for each job."""
    found = _TYPE.match(headline(error)) if "Traceback (most recent call last):" in (error or "") else None
    return found[0] if found else ""
