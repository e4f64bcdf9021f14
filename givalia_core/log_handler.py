"""Where the lines of a program go: standard error, or a file that may be rotated at any time.

A file is followed by its name. When the name stands for another file (logrotate's `create`), the next line goes there, in every
process of the program and without a signal; while it stands for none, lines go on to the file that bore it. Lines are appended,
so a file may be cut in place as well (`copytruncate`). Nothing here makes a program wait or fail for its log.
"""

from __future__ import annotations

import logging
import sys
from functools import wraps
from io import FileIO
from logging import ERROR, NOTSET, WARNING, Handler, LogRecord, StreamHandler, basicConfig, makeLogRecord, root
from os import O_APPEND, O_CLOEXEC, O_CREAT, O_WRONLY, close, fstat, stat
from os import open as open_fd
from pathlib import Path
from typing import Any, Final

from givalia_core.frozen import BUILTINS
from givalia_core.printable import Formatter

__builtins__ = BUILTINS

LOG_HANDLER: Final = "givalia"
"""The name of the handler: plugins that change the form of lines look for it, rather than add one of their own."""


class LogHandler(Handler):
    """Writes each record in the form of its formatter; in the plain form if that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.set_name(LOG_HANDLER)
        self.lost = 0
        """How many lines could not be written."""
        self._unsaid = 0  # Of those, how many the log does not know of.
        self._path = ""
        self._identity: tuple[int, int] | None = None  # Of the file that is open.
        self._plain = Formatter()
        self.setFormatter(self._plain)
        self._standard: Any = sys.stderr
        self.stream = self._standard
        """What is written to."""

    def point_to(self, file: str) -> None:
        """Write to this file from now on, or to standard error if its name is empty; one that is not there is made (mode 0600).

        Raises:
            OSError: It cannot be opened; lines go where they went.
        """
        path = str(Path(file).absolute()) if file else ""
        opened = _opened(path, O_CREAT) if path else None
        self.acquire()
        try:
            self._path = path
            self._replace(opened)
        finally:
            self.release()

    def wait_for(self, file: str) -> None:
        """Write to standard error until this file is there and can be opened, and then to it."""
        self.acquire()
        try:
            self._path = str(Path(file).absolute())
            self._replace(None)
        finally:
            self.release()

    def writes_to(self, fd: int) -> bool:
        """Return whether lines go where this file descriptor leads."""
        try:
            found = fstat(fd)
        except OSError:
            return False
        return _identity(self.stream) == (found.st_dev, found.st_ino)

    def _replace(self, opened: FileIO | None) -> None:
        before, self.stream = self.stream, self._standard if opened is None else opened
        if isinstance(before, FileIO) and _identity(before) == self._identity:
            close(before.fileno())  # Else a job has closed all files, and the descriptor may be another's by now.
        self._identity = None if opened is None else _identity(opened)

    def format(self, record: LogRecord) -> str:
        """Return the line, whatever the formatter, which may be a plugin's, makes of it."""
        try:
            return super().format(record)
        except Exception:
            return self._plain.format(record)

    def emit(self, record: LogRecord) -> None:
        """Write a line; one that cannot be written is counted, and the next one that can says so."""
        try:
            self._follow()
            if self._unsaid:
                words = f"{self._unsaid} lines of the log could not be written"
                fields = {"name": "givalia", "levelno": ERROR, "levelname": "ERROR", "msg": words}
                self._write(self.format(makeLogRecord(fields)))
                self._unsaid = 0
            self._write(self.format(record))
        except Exception:
            self.lost += 1
            self._unsaid += 1

    def _write(self, line: str) -> None:
        if not isinstance(self.stream, FileIO):
            self.stream.write(line + "\n")
            self.stream.flush()
            return
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        while data:  # A full disk takes a part first, and then raises.
            data = data[self.stream.write(data) :]

    def _follow(self) -> None:
        """Open the file that bears the name now, if it is another one; logrotate makes it, with its owner and mode."""
        if not self._path:
            return
        try:
            named = stat(self._path)  # noqa: PTH116 - For each line: no Path.
            if (named.st_dev, named.st_ino) != _identity(self.stream):
                self._replace(_opened(self._path))
        except OSError:
            return


def be_last_resort(handler: Handler) -> None:
    """Let this handler have the warnings and errors of loggers that nobody has set up; by itself Python prints them.

    `logging.warning` and its kin would set up the root logger, in the plain form, by a call of `basicConfig` without arguments:
    that does nothing from now on. With arguments it does what it always did.
    """
    handler.setLevel(WARNING)
    logging.lastResort = handler
    logging.basicConfig = _configure_if_told


class Passing(Handler):
    """Hands records on to another handler, whatever the level of that."""

    def __init__(self, to: Handler, level: int = NOTSET) -> None:
        super().__init__(level)
        self._to = to

    def emit(self, record: LogRecord) -> None:
        """Hand it on."""
        self._to.handle(record)


def take_over_root() -> None:
    """Have what the root logger shows come in the one stream and form, and not past it; call it when packages were imported.

    A package that sets up the root logger, by `basicConfig` or `dictConfig`, speaks for all loggers of the process, among them
    those of plugins. Its level stays, and so do handlers that write elsewhere.
    """
    ours = logging.lastResort
    shown = [each for each in root.handlers if type(each) is StreamHandler and _is_standard(each.stream)]
    before = [each for each in root.handlers if isinstance(each, Passing)]
    if ours is None or not root.handlers or (before and not shown):
        return
    passing = Passing(ours, min((each.level for each in (*shown, *before)), default=WARNING))
    root.handlers[:] = [each for each in root.handlers if each not in shown and each not in before] + [passing]


def _is_standard(stream: Any) -> bool:
    try:
        return stream in (sys.stdout, sys.stderr) or stream.fileno() in (1, 2)
    except Exception:  # Somebody else's stream may be anything.
        return False


@wraps(basicConfig)
def _configure_if_told(**options: Any) -> None:
    if options:
        basicConfig(**options)


def _identity(stream: Any) -> tuple[int, int] | None:
    try:
        found = fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _opened(path: str, flags: int = 0) -> FileIO:
    return FileIO(open_fd(path, O_WRONLY | O_APPEND | O_CLOEXEC | flags, 0o600), "a", closefd=False)
