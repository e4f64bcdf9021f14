"""Loops that go on whatever they meet: those that everything else in a process depends on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final, Protocol

AGAIN_S: Final = 1.0
"""How long a loop pauses behind an error, in seconds."""


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
        with contextlib.suppress(Exception):  # The disk that the log is on may be full.
            lines.error("%s: %s: %s", what, type(error).__name__, error)
