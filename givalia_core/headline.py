"""The line of a stored error that says what was raised. The error is a traceback, or text from Givalia or from a job."""

from __future__ import annotations

import re
from typing import Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

HEADLINE_CHARS_MAX: Final = 256
LEFT_OUT: Final = "[... the beginning is left out ...]"

_CHAINED: Final = re.compile(
    r"^(?:The above exception was the direct cause of the following exception"
    r"|During handling of the above exception, another exception occurred):\n\n",
    re.MULTILINE,
)
_TRACEBACK: Final = re.compile(r"\s*(\+ Exception Group )?Traceback \(most recent call last\):")
_MARGIN: Final = "  | "  # The margin of an exception group and its frames.
_BEGINS_EMPTY: Final = re.compile(r"[^\W\d][\w.]*:\s*").fullmatch
_TYPE: Final = re.compile(r"[^\W\d][\w.]*(?=:|$)")


def headline(error: str | None) -> str:
    """Return type and message of the exception itself, without its cause, notes or parts; at most 256 characters."""
    error = (error or "").strip("\n")
    # Text from Givalia or from the job, such as the reason of its end, stands before its traceback.
    *_, last = _CHAINED.split(error) if _TRACEBACK.match(error) else [error]
    lines = last.strip("\n").splitlines()
    if lines and _TRACEBACK.match(lines[0]):
        del lines[0]
    lines = [line.removeprefix(_MARGIN) for line in lines]
    for number, line in enumerate(lines):
        if line.strip() and not line[0].isspace():  # Frames are indented.
            line = own_line([line, *lines[number + 1 :]])
            return line if len(line) <= HEADLINE_CHARS_MAX else line[: HEADLINE_CHARS_MAX - 1] + "…"
    return lines[0].strip()[:HEADLINE_CHARS_MAX] if lines else ""


def own_line(lines: list[str]) -> str:
    """Return type and message on one line; empty lines at the beginning of the message are left out."""
    if not _BEGINS_EMPTY(lines[0]):
        return lines[0].rstrip()
    return f"{lines[0].rstrip()} {next((line.strip() for line in lines[1:] if line.strip()), '')}".rstrip()


def shortened(error: str, bytes_max: int) -> str:
    """Return an error in at most `bytes_max` bytes of UTF-8; a longer one keeps its headline and its end."""
    data = error.encode("utf-8", "replace")
    if len(data) <= bytes_max:
        return data.decode()
    head = f"{headline(error)}\n{LEFT_OUT}\n".encode("utf-8", "replace")
    return (head + data[len(head) - bytes_max :]).decode("utf-8", "ignore")


def type_raised(error: str | None) -> str:
    """Return the name of the exception's class; empty for plain text, which may differ from job to job."""
    found = _TYPE.match(headline(error)) if "Traceback (most recent call last):" in (error or "") else None
    return found[0] if found else ""
