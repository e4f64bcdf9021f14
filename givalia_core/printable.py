"""Outside text made safe to show: on one line, and harmless to a terminal."""

from __future__ import annotations

import logging
import re
from typing import Any, Final

MARGIN: Final = "    | "


def printable(value: Any) -> str:
    """Return the value as text, with newlines, control characters and marks of direction escaped: `\\n`, `\\u202e`."""
    text = str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def without_secrets(url: str) -> str:
    """Return the URL of a store without its password."""
    shown = re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1@", url)
    return re.sub(r"(?i)([?& ]|^)((?:ssl)?password)=[^&\s]*", r"\1\2=...", shown)


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a log record; the bare format if its values do not fit."""
    try:
        return record.getMessage()
    except Exception as error:
        why = f"(not formatted: {type(error).__name__})"
    try:
        return f"{record.msg!r} {why}"
    except Exception:  # The format need not be a text, and converting it may raise.
        return f"a message {why}"


def traceback_of(record: logging.LogRecord) -> str:
    """Return the traceback of a log record."""
    try:
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
    except Exception as error:  # Converting an exception to text may raise.
        return f"a traceback that cannot be shown: {type(error).__name__}"


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Split a text into its first line, for a log message, and the rest, as the `extra` of that message."""
    first, _, block = text.partition("\n")
    return first, {"block": block} if block else {}


_FIELDS: Final = {"module": "job_module", "key": "key", "id": "job_id", "attempt": "attempt"}
"""Record attributes that name the job and its attempt, by their name in a line."""
_has_to_be_quoted: Final = re.compile(r'[\s"=\[\]]').search


def _job_of(record: logging.LogRecord) -> str:
    if not hasattr(record, "job_id"):
        return ""
    known = {name: getattr(record, attribute, None) for name, attribute in _FIELDS.items()}
    return f" [{' '.join(f'{name}={_quoted(value)}' for name, value in known.items() if value is not None)}]"


def _quoted(value: Any) -> str:
    try:
        text = printable(value)
    except Exception:  # As in `message_of`.
        text = "?"
    return '"' + text.replace('"', '\\"') + '"' if _has_to_be_quoted(text) else text


class Formatter(logging.Formatter):
    """Formats each record as one line; tracebacks and other blocks follow behind a margin.

    Blocks are tracebacks, stacks, and the record's attributes `block` and `traceback`. No text inside a record can look like
    another record. A record about a job ends with its module, key, id and attempt.
    """

    def format(self, record: logging.LogRecord) -> str:
        stamp = self.formatTime(record, self.datefmt)
        lines = [f"{stamp} {record.levelname} {printable(record.name)}: {printable(message_of(record))}{_job_of(record)}"]
        traceback = traceback_of(record) if record.exc_info else record.exc_text
        for block in (getattr(record, "block", None), getattr(record, "traceback", None), traceback, record.stack_info):
            if block:
                lines += [MARGIN + printable(line) for line in str(block).splitlines()]
        return "\n".join(lines)
