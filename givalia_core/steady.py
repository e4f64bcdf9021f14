"""Loops that survive any error, because everything else in the process depends on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

AGAIN_S: Final = 1.0
"""Pause of a loop after an error, in seconds."""


class Says(Protocol):
    """The part of a logger that a loop needs."""

    def error(self, words: str, *values: Any) -> None:
        """Log what went wrong."""


@contextlib.contextmanager
def survives(what: str, lines: Says) -> Iterator[list[Exception]]:
    """Log an error of one round of a loop and suppress it; the list then holds the error, so that the loop can pause."""
    failed: list[Exception] = []
    try:
        yield failed
    except Exception as error:
        failed.append(error)
        quietly(lines.error, "%s: %s: %s", what, type(error).__name__, error)


def quietly(say: Callable[..., object], what: Any, *values: Any, **options: Any) -> None:
    """Log a line or a record; ignore errors, as the disk may be full or a job may have replaced parts of `logging`."""
    try:  # No `suppress`: a job may have broken that code of Python.
        say(what, *values, **options)
    except Exception:
        return
