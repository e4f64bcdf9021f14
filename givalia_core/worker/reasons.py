"""Why an attempt is ended before its time, and how errors and the log say what became of one."""

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
    """Why an attempt is made to end; also `why` of the `Stopped` that its code sees."""

    NONE = ""  # It is not.
    TIMEOUT = "timeout"  # It ran longer than it may.
    CANCELLED = "cancelled"  # Somebody cancelled it, and it took no notice.
    LEASE = "lease"  # Its lease is over, so another attempt may begin elsewhere.
    SHUTDOWN = "shutdown"  # Its worker stops, and the time of grace is over.
    OOM = "oom"  # Its process has more memory than one may have.


HOOK_LEFT_S: Final = 1.0  # So long beyond its limit a plugin has to end; then what it was called for goes on without it.
WORDS: Final[dict[str, str]] = {
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


def about(dispatch: Dispatch) -> dict[str, Any]:
    """Return what a line in the log carries that is about an attempt of a job."""
    return {
        "job_id": text_id(dispatch.id),
        "job_module": dispatch.module,
        "key": dispatch.key,
        "attempt": dispatch.attempt,
    }
