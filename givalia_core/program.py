"""What each of our processes does to itself when it starts: its log, and the garbage collector."""

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
"""The entry point group of log formats: each is called with a handler and returns the `logging.Formatter` for its lines."""

log = logging.getLogger("givalia")


def start_log(level: str, file: str, plugins: str = ALL, *, must_open: bool = True) -> None:
    """Let one handler write the lines of this process; called again, the same handler does what is asked for now.

    Args:
        level: The least level that is logged.
        file: Where lines are appended; empty: standard error.
        plugins: Distributions whose log format may be used, as in the setting `plugins`.
        must_open: Whether the file must be opened now. If not, lines go to standard error until it can be, and one says so.

    Raises:
        SettingsInvalid: The file cannot be opened. The log is as it was.
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
    """Return the formatter of the first installed log format that can be used; ours if there is none."""
    for entry in entry_points(LOG_FORMATS, plugins):
        try:
            made = entry.load()(handler)
        except Exception as error:  # Somebody else's code may raise anything.
            handler.setFormatter(Formatter())
            log.error("the log format %s cannot be used: %s: %s", entry.value, type(error).__name__, error)
        else:
            if isinstance(made, logging.Formatter):
                return made
    return Formatter()


def say_last(line: str) -> None:
    """Say why this program ends, in one line on standard error; in the log as well, and only there if both are one stream.

    A program whose log has not been started, or has the plain form on standard error, just says the line.
    """
    handler = next((each for each in log.handlers if isinstance(each, LogHandler)), None)
    is_one = handler is not None and handler.writes_to(2)
    if handler is not None and not (is_one and isinstance(handler.formatter, Formatter)):
        log.critical("%s", line)
        if is_one:
            return
    print(line, file=sys.stderr, flush=True)


def point_output_to(path: str) -> None:
    """Let standard output and error go to the file of this name, which is made if it is not there.

    Raises:
        OSError: It cannot be opened; they go where they went.
    """
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for stream in (1, 2):
        os.dup2(opened, stream)
    os.close(opened)


_malloc_trim: Final[Any] = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back_memory() -> None:
    """Give freed memory back to the system where the allocator of C does not do so by itself: between large pieces it keeps it.

    Takes about a millisecond for each ten MiB that are given back; does nothing where there is no such call.
    """
    if _malloc_trim is not None:
        _malloc_trim(0)


def spare_the_collector() -> None:
    """A job leaves no cycles behind; looking for some after every few hundred records would only cost time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
