"""The destination of log lines: standard error, or a file that may be rotated at any time.

The handler follows the file's name. When another file gets the name (logrotate's `create`), the next line goes there, in every
process of the program and without a signal. While no file has the name, lines go on to the old file. Lines are appended, so a
file may also be truncated in place (`copytruncate`). A program neither waits nor fails because of its log.
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
"""The name of the handler; plugins that change the form of lines find it by this name, instead of adding a handler."""


class LogHandler(Handler):
    """The handler that writes each record in the form of its formatter, or in the plain form if the formatter fails."""

    def __init__(self) -> None:
        super().__init__()
        self.set_name(LOG_HANDLER)
        self.lost = 0
        """The number of lines that could not be written."""
        self._unsaid = 0  # Lost lines that the log does not mention yet.
        self._path = ""
        self._identity: tuple[int, int] | None = None  # Device and inode of the open file.
        self._plain = Formatter()
        self.setFormatter(self._plain)
        self._standard: Any = sys.stderr
        self.stream = self._standard
        """The stream or file that receives the lines."""

    def point_to(self, file: str) -> None:
        """Write to this file from now on (standard error if the name is empty); create it with mode 0600 if it is missing.

        Raises:
            OSError: The file cannot be opened; the destination is unchanged.
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
        """Write to standard error until this file exists and can be opened, and then to the file."""
        self.acquire()
        try:
            self._path = str(Path(file).absolute())
            self._replace(None)
        finally:
            self.release()

    def writes_to(self, fd: int) -> bool:
        """Return whether lines go to the file of this descriptor."""
        try:
            found = fstat(fd)
        except OSError:
            return False
        return _identity(self.stream) == (found.st_dev, found.st_ino)

    def _replace(self, opened: FileIO | None) -> None:
        before, self.stream = self.stream, self._standard if opened is None else opened
        if isinstance(before, FileIO) and _identity(before) == self._identity:
            close(before.fileno())  # Otherwise a job closed all files, and the number may belong to another file now.
        self._identity = None if opened is None else _identity(opened)

    def format(self, record: LogRecord) -> str:
        """Return the line; in the plain form if the formatter, which may be a plugin's, fails."""
        try:
            return super().format(record)
        except Exception:
            return self._plain.format(record)

    def emit(self, record: LogRecord) -> None:
        """Write a line. A line that cannot be written is counted; the next written line reports the count."""
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
        while data:  # A full disk accepts a part first and then raises.
            data = data[self.stream.write(data) :]

    def _follow(self) -> None:
        """Open the file that has the name now, if it is a new one; logrotate has created it with its owner and mode."""
        if not self._path:
            return
        try:
            named = stat(self._path)  # noqa: PTH116 - For each line: no Path.
            if (named.st_dev, named.st_ino) != _identity(self.stream):
                self._replace(_opened(self._path))
        except OSError:
            return


def be_last_resort(handler: Handler) -> None:
    """Send the warnings and errors of unconfigured loggers to this handler; by default Python prints them.

    `logging.warning` and the like would set up the root logger, in the plain form, by calling `basicConfig` without arguments.
    From now on that call does nothing; with arguments it works as before.
    """
    handler.setLevel(WARNING)
    logging.lastResort = handler
    logging.basicConfig = _configure_if_told


class Passing(Handler):
    """A handler that passes records to another handler, whatever the level of that handler."""

    def __init__(self, to: Handler, level: int = NOTSET) -> None:
        super().__init__(level)
        self._to = to

    def emit(self, record: LogRecord) -> None:
        """Pass the record on."""
        self._to.handle(record)


def take_over_root() -> None:
    """Send the root logger's lines to this log's stream, in its form; call this after packages were imported.

    A package that sets up the root logger, by `basicConfig` or `dictConfig`, does so for all loggers of the process, those of
    plugins included. The root's level stays, and so do handlers that write elsewhere.
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
    except Exception:  # The stream may be any object.
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
