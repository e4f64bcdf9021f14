"""The set-up of each Givalia process when it starts: its log and its garbage collector."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from typing import Any, Final

from givalia_core.errors import SettingsInvalid
from givalia_core.installed import ALL, entry_points
from givalia_core.log_handler import LogHandler, Passing, be_last_resort
from givalia_core.printable import Formatter

LOG_FORMATS: Final = "givalia.log_formats"
"""The entry point group of log formats. Each takes a handler and returns the `logging.Formatter` for its lines."""

log = logging.getLogger("givalia")


def start_log(level: str, file: str, plugins: str = ALL, *, must_open: bool = True) -> None:
    """Set up the handler that writes the log lines of this process; a second call changes that handler.

    Args:
        level: The least level that is logged.
        file: The file that lines are appended to; empty: standard error.
        plugins: Distributions whose log format may be used, as in the setting `plugins`.
        must_open: If false and the file cannot be opened, lines go to standard error until it can; one line says so.

    Raises:
        SettingsInvalid: The file cannot be opened. The log is unchanged.
    """
    cannot: SettingsInvalid | None = None
    handler = next((each for each in log.handlers if isinstance(each, LogHandler)), None) or LogHandler()
    try:
        handler.point_to(file)
    except OSError as error:
        cannot = SettingsInvalid(f"log_file is a file that can be opened, not {file!r}: {error.strerror}")
        if must_open:
            raise cannot from None
        handler.wait_for(file)
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level.upper())
    be_last_resort(Passing(handler))
    handler.setFormatter(_formatter(handler, plugins))
    if cannot is not None:
        log.error("lines of this process go to standard error until its file can be opened: %s", cannot)


def _formatter(handler: logging.Handler, plugins: str) -> logging.Formatter:
    """Return the first installed log format that can be used, or else Givalia's own."""
    for entry in entry_points(LOG_FORMATS, plugins):
        try:
            made = entry.load()(handler)
        except Exception as error:  # A plugin's code may raise anything.
            handler.setFormatter(Formatter())
            log.error("the log format %s cannot be used: %s: %s", entry.value, type(error).__name__, error)
        else:
            if isinstance(made, logging.Formatter):
                return made
    return Formatter()


def say_last(line: str) -> None:
    """Write why this program ends, as one line, to standard error and to the log; once if both are the same stream.

    If the log has not been started, or writes the plain form to standard error, only the bare line is written.
    """
    handler = next((each for each in log.handlers if isinstance(each, LogHandler)), None)
    is_one = handler is not None and handler.writes_to(2)
    if handler is not None and not (is_one and isinstance(handler.formatter, Formatter)):
        log.critical("%s", line)
        if is_one:
            return
    print(line, file=sys.stderr, flush=True)


def point_output_to(path: str) -> None:
    """Redirect standard output and error to this file; create it if it does not exist.

    Raises:
        OSError: The file cannot be opened. Nothing was redirected.
    """
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(opened, stream)
    os.close(opened)


_malloc_trim: Final[Any] = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Return freed memory to the system; C's allocator keeps free pieces that lie between large used ones.

    Takes about a millisecond for each ten MiB returned; does nothing where the system has no such call.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def spare_the_collector() -> None:
    """Run the garbage collector rarely: jobs leave no cycles behind."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
