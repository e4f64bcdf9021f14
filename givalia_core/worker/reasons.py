"""The reasons that end an attempt early, and the words of errors and log lines about attempts."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

from givalia_core.clock import SECOND_US
from givalia_core.frozen import BUILTINS
from givalia_core.headline import shortened
from givalia_core.protocol.messages import ERROR_BYTES_MAX, Dispatch
from givalia_core.views import text_id

__builtins__ = BUILTINS


class Reason(StrEnum):
    """The reason that ends an attempt; also `why` of the `Stopped` in its code."""

    NONE = ""  # The attempt need not end.
    TIMEOUT = "timeout"  # It exceeded its timeout.
    CANCELLED = "cancelled"  # A client cancelled it, and it went on.
    LEASE = "lease"  # Its lease is over, so another attempt may begin elsewhere.
    SHUTDOWN = "shutdown"  # Its worker stops, and the time of grace is over.
    OOM = "oom"  # Its process exceeds the memory limit.


HOOK_LEFT_S: Final = 1.0  # Time for a plugin to end beyond its limit; then the job goes on without it.
WORDS: Final[dict[str, str]] = {
    "cancelled": "cancelled: it was asked to stop, and went on",
    "lease": "its lease is over",
    "shutdown": "shutdown: its worker stops",
    "oom": "oom: its process had more memory than one may have",
    "": "shutdown: the supervisor of its worker is gone",
}
"""The words for each reason except the timeout."""

NOT_ENDED: Final = "it did not end when it was told to"


def timed_out(dispatch: Dispatch) -> str:
    """Return the words for an attempt that exceeded its timeout."""
    return f"timeout: it ran longer than {(dispatch.timeout_us or 0) / SECOND_US:g} s"


def clipped(words: str) -> str:
    """Return an error, cut to the longest text that the protocol allows."""
    return shortened(words, ERROR_BYTES_MAX)


def about(dispatch: Dispatch) -> dict[str, Any]:
    """Return the fields of a log line about an attempt."""
    return {
        "job_id": text_id(dispatch.id),
        "job_module": dispatch.module,
        "key": dispatch.key,
        "attempt": dispatch.attempt,
    }
