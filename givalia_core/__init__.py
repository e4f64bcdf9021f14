"""Givalia: a job server for keyed timers.

Run module M with these params in ten seconds on worker W, under key K; and while it waits, ask about it, call it off or
push it back. Everything that user code needs is importable from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from givalia_core.client import Client
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
    WrongProcess,
    WrongState,
)
from givalia_core.hooks import hookimpl
from givalia_core.model import JobState
from givalia_core.modules import Fail, Retry, WorkModule
from givalia_core.version import __version__
from givalia_core.views import Outcome, Status

# These bring asyncio, or gevent and the store with them, which a program that only enqueues may have no use for.
_LATE = {
    "AsyncClient": "givalia_core.client.async_client",
    "Server": "givalia_core.server",
    "Worker": "givalia_core.worker.app",
}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if TYPE_CHECKING:
    from givalia_core.client.async_client import AsyncClient
    from givalia_core.server import Server
    from givalia_core.worker.app import Worker

__all__ = [
    "AsyncClient",
    "BadRequest",
    "Busy",
    "Client",
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
    "Server",
    "ShuttingDown",
    "Stale",
    "Status",
    "StoreFull",
    "TooLarge",
    "Unauthorized",
    "VersionMismatch",
    "WaitTimeout",
    "WorkModule",
    "Worker",
    "WrongProcess",
    "WrongState",
    "__version__",
    "hookimpl",
]
