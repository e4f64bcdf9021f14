"""Errors that nobody caught, and warnings: by themselves Python and gevent print them, past the log and its form."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from givalia_core.frozen import Clock
from givalia_core.repeats import Repeats
from givalia_core.steady import quietly

WORDS_MAX: Final = 200
LOOK_S: Final = 1.0


def log_stray_errors(log: logging.Logger, hub: Any = None, spawn: Callable[..., object] | None = None) -> StrayErrors:
    """Have warnings go to the log, and what is raised in threads, in the main code, in `__del__` and in the greenlets of a hub.

    Call it when the log has been started. A storm of one error is counted. In a process with a hub the count is said when the
    storm is over; in another one, and when the process ends, by `StrayErrors.look` and `close`.

    Args:
        log: Where it goes.
        hub: That of gevent, where there is one.
        spawn: Starts a greenlet there.
    """
    stray = StrayErrors(log, spawn)
    if hub is not None and spawn is not None:
        hub.print_exception = stray.in_greenlet
        stray.timer = hub.loop.timer(LOOK_S, LOOK_S, ref=False)
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
    """Writes as loggers do that nobody has set up; the logger of warnings would get a handler that drops them."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.lastResort is not None and not logging.root.handlers:
            logging.lastResort.handle(record)


class StrayErrors:
    """Takes what nobody caught; made by `log_stray_errors`."""

    timer: Any = None  # Looks again and again, in a process with a hub.

    def __init__(self, log: logging.Logger, spawn: Callable[..., object] | None) -> None:
        self._log = log
        self._spawn = spawn
        self._repeats = Repeats()

    def look(self) -> None:
        """Say how many errors were only counted, if that is due."""
        for left_out in self._repeats.left_out(Clock.monotonic()):
            quietly(self._log.error, "%s", left_out)

    def close(self) -> None:
        """Say at once what is left to say, and look no more by itself: the process ends."""
        if self.timer is not None:
            self.timer.close()
        for left_out in self._repeats.rest():
            quietly(self._log.error, "%s", left_out)

    # The hooks of Python and gevent.

    def in_greenlet(self, context: object, kind: Any, error: Any, trace: Any) -> None:
        if self._spawn is not None:  # The loop, which may have called this, cannot wait for the lock of a handler.
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
        if self._repeats.may_say(f"errors that nobody caught ({name})", Clock.monotonic()):
            quietly(self._log.error, "%s %s", what[:WORDS_MAX], name, exc_info=(kind, error, trace))
