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


def log_stray_errors(log: logging.Logger, hub: Any = None, spawn: Callable[..., object] | None = None) -> None:
    """Have warnings go to the log, and what is raised in threads, in the main code, in `__del__` and in the greenlets of a hub.

    Call it when the log has been started. A storm of one error is counted.

    Args:
        log: Where it goes.
        hub: That of gevent, where there is one.
        spawn: Starts a greenlet there.
    """
    stray = _Stray(log, spawn)
    if hub is not None:
        hub.print_exception = stray.in_greenlet
    threading.excepthook = stray.in_thread
    sys.unraisablehook = stray.unraisable
    sys.excepthook = stray.at_end
    logging.captureWarnings(True)
    warnings = logging.getLogger("py.warnings")
    if not warnings.handlers:
        warnings.addHandler(_LastResort())


class _LastResort(logging.Handler):
    """Writes as loggers do that nobody has set up; the logger of warnings would get a handler that drops them."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.lastResort is not None and not logging.root.handlers:
            logging.lastResort.handle(record)


class _Stray:
    def __init__(self, log: logging.Logger, spawn: Callable[..., object] | None) -> None:
        self._log = log
        self._spawn = spawn
        self._repeats = Repeats()

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
        now_s, name = Clock.monotonic(), getattr(kind, "__name__", "?")
        for left_out in self._repeats.left_out(now_s):
            quietly(self._log.error, "%s", left_out)
        if self._repeats.may_say(f"errors that nobody caught ({name})", now_s):
            quietly(self._log.error, "%s %s", what[:WORDS_MAX], name, exc_info=(kind, error, trace))
