"""The output of the `givalia` command: words for people, JSON for programs; never a raw control character."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TextIO

from givalia_core.cli import moments
from givalia_core.printable import printable
from givalia_core.views import Status

BAR_CHARS: Final = 24
DEPTH: Final = 20_000


def to_json(value: Any) -> str:
    """Return any value of a job as one line of JSON.

    Numbers that JSON lacks become null, bytes become `{"base64": ...}`. A key that is not text becomes its JSON, such as `"1"`;
    if that makes two keys equal, the map becomes `{"map": [[key, value], ...]}`.
    """
    with _depth():
        return json.dumps(_plain(value), ensure_ascii=True, allow_nan=False)


def _plain(value: Any) -> Any:
    """Return the value in types that JSON has."""
    if value is None or isinstance(value, (str, int)):  # A JobState is a str, True an int.
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return _plain_map(value)
    if isinstance(value, (bytes, bytearray)):
        return {"base64": base64.b64encode(value).decode()}
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _plain_map(value: dict[Any, Any]) -> dict[str, Any]:
    named = {key if isinstance(key, str) else json.dumps(_plain(key)): _plain(each) for key, each in value.items()}
    if len(named) == len(value):
        return named
    return {"map": [[_plain(key), _plain(each)] for key, each in value.items()]}


@contextlib.contextmanager
def _depth() -> Iterator[None]:
    """Raise the recursion limit to the deepest value that msgpack reads, at several frames a level."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, DEPTH))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def emit(text: str) -> None:
    """Write a line of data to standard output."""
    sys.stdout.write(text + "\n")


def lines(text: str, stream: TextIO) -> None:
    """Write a text of several lines, with control characters escaped."""
    for line in text.splitlines():
        stream.write(printable(line) + "\n")


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with columns as wide as their content; on a terminal the table fits its width."""
    shown = [[printable("" if value is None else value) for value in row] for row in rows]
    if sys.stdout.isatty():
        from givalia_core.cli import terminal  # Imported here because it takes longer to import than the rest.

        terminal.show(heads, shown)
        return
    widths = [max(len(line[place]) for line in [list(heads), *shown]) for place in range(len(heads))]
    for line in [list(heads), *shown]:
        emit("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)).rstrip())


def job_lines(status: Status, hidden: Sequence[str] = ()) -> None:
    """Show a job with one line for each field; a terminal shows instants in words, and the error line by line."""
    for name, value in shown_fields(status, hidden).items():
        if value in (None, False, "") and name not in ("key", "result", "params"):
            continue
        if name == "error" and sys.stdout.isatty():
            lines = [printable(line) for line in value.splitlines()]
            emit(f"{name:14} " + f"\n{'':15}".join(lines))
            continue
        emit(f"{name:14} {printable(_shown_field(name, value))}")


def _shown_field(name: str, value: Any) -> Any:
    if name in ("result", "params"):
        return to_json(value)
    if isinstance(value, datetime):
        return moments.shown(value)
    return moments.words_shown(value) if name == "why" else value


def status_json(status: Status, hidden: Sequence[str] = ()) -> str:
    """Return a job as one line of JSON."""
    return to_json(shown_fields(status, hidden))


def shown_fields(status: Status, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """Return the fields of a job by name; the result only if the job has one."""
    has_result = status.state == "done" and status.result_error is None
    names = (each.name for each in fields(status) if each.name not in hidden and (each.name != "result" or has_result))
    return {name: getattr(status, name) for name in names}  # Not `asdict`, which copies a result of any depth.


class ProgressLine:
    """One line of a terminal that is overwritten each time, and erased at the end of `with`."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_shown:
            self._write("")

    def show_line(self, line: str) -> None:
        """Show the line, cut to the terminal's width."""
        self._write(printable(line)[: shutil.get_terminal_size().columns - 1])
        self._is_shown = True

    def say(self, line: str) -> None:
        """Write a permanent line above this one."""
        self._write(f"{line}\n")

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):  # The reader may be gone; the work goes on.
            self._terminal.write(f"\r\x1b[K{line}")
            self._terminal.flush()


class Bar(ProgressLine):
    """The progress bar of a job."""

    def show(self, fraction: float, text: str) -> None:
        """Show this fraction, from 0 to 1, and the text, cut to the terminal's width."""
        filled = round(fraction * BAR_CHARS)
        self.show_line(f"[{'#' * filled}{'-' * (BAR_CHARS - filled)}] {fraction:4.0%}  {text}")
