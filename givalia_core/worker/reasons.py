"""Why an attempt is ended before its time, and how that is said in an error."""

from __future__ import annotations

from typing import Final

from givalia_core.clock import SECOND_US
from givalia_core.frozen import BUILTINS
from givalia_core.headline import shortened
from givalia_core.protocol.messages import ERROR_BYTES_MAX, Dispatch

__builtins__ = BUILTINS

HOOK_LEFT_S: Final = 1.0  # So long beyond its limit a plugin has to end; then what it was called for goes on without it.
WORDS: Final = {
    "cancelled": "cancelled: it was asked to stop, and went on",
    "lease": "its lease is over",
    "shutdown": "shutdown: its worker stops",
    "oom": "oom: its process had more memory than one may have",
    "": "shutdown: the supervisor of its worker is gone",
}
"""Why an attempt was stopped, beside the timeout."""

NOT_ENDED: Final = "it did not end when it was told to"


def timed_out(dispatch: Dispatch) -> str:
    """Return the words for an attempt that ran longer than it may."""
    return f"timeout: it ran longer than {(dispatch.timeout_us or 0) / SECOND_US:g} s"


def clipped(words: str) -> str:
    """Return an error as long as an error may be."""
    return shortened(words, ERROR_BYTES_MAX)
