"""Loops that go on whatever they meet: those that everything else in a process depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol

from givalia_core.frozen import BUILTINS

__builtins__ = BUILTINS

AGAIN_S: Final = 1.0
"""Seconds that a loop pauses after an error."""


class Says(Protocol):
    """A logger, as far as a loop needs one."""

    def error(self, words: str, *values: Any) -> None:
        """Log what went wrong."""


@contextlib.contextmanager
def survives(what: str, lines: Says) -> Iterator[list[Exception]]:
    """Let one round of a loop fail with a line in the log; what went wrong is in the list, for the loop to pause by."""
    failed: list[Exception] = []
    try:
        yield failed
    except Exception as error:
        failed.append(error)
        quietly(lines.error, "%s: %s: %s", what, type(error).__name__, error)


def quietly(say: Callable[..., object], what: Any, *values: Any, **options: Any) -> None:
    """Log a line, or a record, if that is possible: the disk may be full, or a job have replaced a part of `logging`."""
    try:  # Not by `suppress`, which is code of Python that a job may have broken.
        say(what, *values, **options)
    except Exception:
        return
