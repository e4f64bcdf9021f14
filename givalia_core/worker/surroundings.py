"""What the code of a process takes for granted and any job may change for all that come after it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import Any, Final

_LIMITS: Final = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU)
_SIGNALS: Final = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class Surroundings:
    """The working folder, the umask, the signals' handlers and the limits, as they were when this was made."""

    def __init__(self) -> None:
        self._folder = os.open(".", os.O_RDONLY | os.O_CLOEXEC)
        self._were = _look()

    def changed(self) -> list[str]:
        """What is not any more as it was, in words."""
        now = _look()
        return [words for words, was in self._were.items() if now[words] != was]

    def close(self) -> None:
        """Let go of the folder."""
        with contextlib.suppress(OSError):
            os.close(self._folder)

    def restore(self) -> None:
        """Put it back, as far as that is allowed."""
        os.fchdir(self._folder)
        os.umask(self._were["umask"])
        for number, handler in self._were["signal handlers"]:
            with contextlib.suppress(OSError, ValueError, TypeError):
                signal.signal(number, handler)
        for limit, (soft, hard) in zip(_LIMITS, self._were["limits"], strict=True):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(limit, (soft, min(hard, resource.getrlimit(limit)[1], key=_size)))


def _look() -> dict[str, Any]:
    umask = os.umask(0o077)
    os.umask(umask)
    try:
        folder: Path | None = Path.cwd()
    except OSError:
        folder = None  # Somebody has removed it.
    return {
        "working folder": folder,
        "umask": umask,
        "signal handlers": [(number, signal.getsignal(number)) for number in _SIGNALS],
        "limits": [resource.getrlimit(limit) for limit in _LIMITS],
    }


def _size(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit
