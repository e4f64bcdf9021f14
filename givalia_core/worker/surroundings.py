"""What the code of a process takes for granted and any job may change for all that come after it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # What `signal` wraps, which makes an enum of each answer, and that takes time.
import contextlib
import logging
import os
import resource
import signal
from typing import Any, Final

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

_LIMITS: Final = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)
_SIGNALS: Final = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
_TIMERS: Final = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_STREAMS: Final = (0, 1, 2)
_LOGGERS: Final = tuple(map(logging.getLogger, ("givalia", "givalia.job", "givalia.worker", "givalia.hooks")))


class Loggers:
    """The state of Givalia's loggers when this was made; `logging.config` changes all there are unless it is told otherwise."""

    def __init__(self) -> None:
        self._disabled_to = logging.root.manager.disable
        self._were = [(logger.level, logger.propagate, list(logger.handlers)) for logger in _LOGGERS]

    def are_kept(self) -> bool:
        """Return whether what was logged then still is, by the same handlers; others may have been added."""
        return logging.root.manager.disable <= self._disabled_to and all(
            not logger.disabled and logger.level == level and set(handlers) <= set(logger.handlers)
            for logger, (level, _, handlers) in zip(_LOGGERS, self._were, strict=True)
        )

    def restore(self) -> None:
        """Let them log again as they did."""
        logging.disable(self._disabled_to)
        for logger, (level, propagates, handlers) in zip(_LOGGERS, self._were, strict=True):
            logger.disabled, logger.propagate = False, propagates
            logger.setLevel(level)
            for handler in handlers:
                logger.addHandler(handler)


class Surroundings:
    """What a process had when this was made: folder, umask, signals, limits, streams, and the loggers of Givalia."""

    def __init__(self) -> None:
        self._loggers = Loggers()
        self._folder = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._were = _look()

    def changed(self) -> list[str]:
        """What is not any more as it was, in words."""
        now = _look()
        changed = [] if now == self._were else [words for words, was in self._were.items() if now[words] != was]
        return changed if self._loggers.are_kept() else [*changed, "loggers"]

    def close(self) -> None:
        """Let go of the folder."""
        with contextlib.suppress(OSError):
            os.close(self._folder)

    def restore(self) -> None:
        """Put it back, as far as that is possible: what a job has closed or given up for good is not."""
        self._loggers.restore()
        with contextlib.suppress(OSError):
            os.fchdir(self._folder)
        os.umask(self._were["umask"])
        for timer in _TIMERS:
            signal.setitimer(timer, 0)
        for number, handler in zip([*_SIGNALS, signal.SIGCHLD], self._were["signal handlers"], strict=True):
            with contextlib.suppress(OSError, ValueError, TypeError):
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._were["blocked signals"])
        for limit, (soft, hard) in zip(_LIMITS, self._were["limits"], strict=True):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(limit, (soft, hard))
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(limit, (soft, min(hard, resource.getrlimit(limit)[1], key=_size)))


def _look() -> dict[str, Any]:
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        folder: str | None = os.getcwd()  # noqa: PTH109 - Not by way of a Path, after every job.
    except OSError:
        folder = None  # Somebody has removed it.
    return {
        "working folder": folder,
        "umask": umask,
        "signal handlers": [
            *map(_signal.getsignal, _SIGNALS),
            signal.getsignal(signal.SIGCHLD),
        ],  # gevent has its own for that.
        "blocked signals": _signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "timers": [signal.getitimer(timer) != (0.0, 0.0) for timer in _TIMERS],
        "limits": list(map(resource.getrlimit, _LIMITS)),
        "standard streams": list(map(_identity, _STREAMS)),
    }


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit
