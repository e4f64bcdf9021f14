"""How the `givalia` command shows what it found: words for people, JSON for programs; never a raw control character."""

from __future__ import annotations

import base64
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from types import TracebackType
from typing import Any, Final, TextIO

from givalia_core.printable import printable
from givalia_core.views import Status

BAR_CHARS: Final = 24


def to_json(value: Any) -> str:
    """One line of JSON."""
    try:
        return json.dumps(value, default=_plain, ensure_ascii=True, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=_plain, ensure_ascii=True)


def _finite(value: Any) -> Any:
    """The same with null for every number that JSON has no word for."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, (list, tuple)) else value


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    return str(value)


def emit(text: str) -> None:
    """A line of data on standard output."""
    sys.stdout.write(text + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns as wide as what is in them."""
    shown = [[printable("" if value is None else value) for value in row] for row in rows]
    widths = [max(len(line[place]) for line in [list(heads), *shown]) for place in range(len(heads))]
    for line in [list(heads), *shown]:
        emit("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())


def job_lines(status: Status, hidden: Sequence[str] = ()) -> None:
    """Show all that is known of a job, a line each; on a terminal its error as it was written, line by line."""
    for name, value in _fields(status, hidden).items():
        if value in (None, False, "") and name not in ("key", "result", "params"):
            continue
        if name == "error" and sys.stdout.isatty():
            lines = [printable(line) for line in value.splitlines()]
            emit(f"{name:14} " + f"\n{'':15}".join(lines))
            continue
        shown = to_json(value) if name in ("result", "params") else value.isoformat() if isinstance(value, datetime) else value
        emit(f"{name:14} {printable(shown)}")


def status_json(status: Status, hidden: Sequence[str] = ()) -> str:
    """Return a job as one line of JSON."""
    return to_json(_fields(status, hidden))


def _fields(status: Status, hidden: Sequence[str]) -> dict[str, Any]:
    """Return what is known of a job by name; a result is there only if the job has one."""
    has_result = status.state == "done" and status.result_error is None
    return {name: value for name, value in asdict(status).items() if name not in hidden and (name != "result" or has_result)}


class Bar:
    """How far a job is: one line of a terminal that is written over each time, and gone at the end of `with`."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._is_shown = False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_shown:
            self._write("")

    def show(self, fraction: float, text: str) -> None:
        """Show this fraction, from 0 to 1, and as much of the text as the line has room for."""
        filled = round(fraction * BAR_CHARS)
        line = f"[{'#' * filled}{'-' * (BAR_CHARS - filled)}] {fraction:4.0%}  {printable(text)}"
        self._write(line[: shutil.get_terminal_size().columns - 1])
        self._is_shown = True

    def _write(self, line: str) -> None:
        self._terminal.write(f"\r\x1b[K{line}")
        self._terminal.flush()
