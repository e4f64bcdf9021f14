"""Uncaught errors and warnings go to the log; by default Python and gevent print them past it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from givalia_core.frozen import OwnClock
from givalia_core.repeats import Repeats
from givalia_core.steady import quietly

WORDS_CHARS_MAX: Final = 200
POLL_S: Final = 1.0


def log_stray_errors(log: logging.Logger, hub: Any = None, spawn: Callable[..., object] | None = None) -> StrayErrors:
    """Log warnings and the uncaught errors of threads, of the main code, of `__del__` and of a hub's greenlets.

    Call this after the log has been started. Storms of one error are counted. A process with a hub logs the count when the
    storm is over; other processes log it by `StrayErrors.look`, and all by `close`.

    Args:
        log: The logger for them.
        hub: The gevent hub, if the process has one.
        spawn: Starts a greenlet of the hub.
    """
    stray = StrayErrors(log, spawn)
    if hub is not None and spawn is not None:
        hub.print_exception = stray.in_greenlet
        stray.timer = hub.loop.timer(POLL_S, POLL_S, ref=False)
        stray.timer.start(spawn, stray.look)
    threading.excepthook = stray.in_thread
    sys.unraisablehook = stray.unraisable
    sys.excepthook = stray.at_end
    logging.captureWarnings(True)
    warnings = logging.getLogger("py.warnings")
    if not warnings.handlers:
        warnings.addHandler(_LastResort())
    return stray


class _LastResort(logging.Handler):
    """A handler that writes warnings as an unconfigured logger does; without it, `logging` would drop them."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.lastResort is not None and not logging.root.handlers:
            logging.lastResort.handle(record)


class StrayErrors:
    """The handlers of uncaught errors; made by `log_stray_errors`."""

    timer: Any = None  # Calls `look` periodically, in a process with a hub.

    def __init__(self, log: logging.Logger, spawn: Callable[..., object] | None) -> None:
        self._log = log
        self._spawn = spawn
        self._repeats = Repeats()

    def look(self) -> None:
        """Log the number of errors that were only counted, if the period is over."""
        for left_out in self._repeats.left_out(OwnClock.monotonic()):
            quietly(self._log.error, "%s", left_out)

    def close(self) -> None:
        """Log the remaining counts and stop the timer: the process ends."""
        if self.timer is not None:
            self.timer.close()
        for left_out in self._repeats.rest():
            quietly(self._log.error, "%s", left_out)

    # The hooks of Python and gevent.

    def in_greenlet(self, _context: object, kind: Any, error: Any, trace: Any) -> None:
        if self._spawn is not None:  # The caller may be the loop, which cannot wait for the lock of a handler.
            self._spawn(self._say, "a greenlet has ended with", kind, error, trace)

    def in_thread(self, raised: threading.ExceptHookArgs) -> None:
        if raised.exc_type is not SystemExit:
            self._say("a thread has ended with", raised.exc_type, raised.exc_value, raised.exc_traceback)

    def unraisable(self, raised: Any) -> None:
        self._say(raised.err_msg or "ignored was", raised.exc_type, raised.exc_value, raised.exc_traceback)

    def at_end(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        else:
            self._say("this program ends with", kind, error, trace)

    def _say(self, what: str, kind: Any, error: Any, trace: Any) -> None:
        self.look()
        name = getattr(kind, "__name__", "?")
        if self._repeats.may_say(f"errors that nobody caught ({name})", OwnClock.monotonic()):
            quietly(self._log.error, "%s %s", what[:WORDS_CHARS_MAX], name, exc_info=(kind, error, trace))
