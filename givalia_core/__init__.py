"""Givalia: a job server for keyed timers.

Run module M with these params in ten seconds on worker W, under key K; and while it waits, ask about it, call it off or
push it back. Everything that user code needs is importable from here.
"""

from givalia_core.errors import (
    BadRequest,
    Busy,
    ConnectionLost,
    DuplicateKey,
    GivaliaError,
    JobCancelled,
    JobFailed,
    NotFound,
    PartlyRefused,
    ResultLost,
    ShuttingDown,
    Stale,
    StoreFull,
    TooLarge,
    Unauthorized,
    VersionMismatch,
    WaitTimeout,
    WrongState,
)
from givalia_core.hooks import hookimpl
from givalia_core.model import JobState
from givalia_core.modules import Fail, Retry, WorkModule
from givalia_core.views import Outcome, Status

__version__ = "0.1.0"

__all__ = [
    "BadRequest",
    "Busy",
    "ConnectionLost",
    "DuplicateKey",
    "Fail",
    "GivaliaError",
    "JobCancelled",
    "JobFailed",
    "JobState",
    "NotFound",
    "Outcome",
    "PartlyRefused",
    "ResultLost",
    "Retry",
    "ShuttingDown",
    "Stale",
    "Status",
    "StoreFull",
    "TooLarge",
    "Unauthorized",
    "VersionMismatch",
    "WaitTimeout",
    "WorkModule",
    "WrongState",
    "hookimpl",
]
