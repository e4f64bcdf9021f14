"""Givalia: a job server for keyed timers.

Run module M with these params in ten seconds on worker W, under key K; while the job waits, ask for its state, cancel it or
postpone it. Everything that user code needs is importable from here.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from givalia_core.version import __version__

# These modules are imported when one of their names is first used: a program that only enqueues needs neither gevent nor the
# store, and the command line must handle Ctrl+C before slow imports.
_HOMES = {
    "givalia_core.client": ("Client", "JobHandle"),
    "givalia_core.client.async_client": ("AsyncClient",),
    "givalia_core.client.filters": ("Acted",),
    "givalia_core.client.handles": ("AsyncJobHandle",),
    "givalia_core.errors": (
        "BadRequest", "Busy", "ConnectionLost", "DuplicateKey", "GivaliaError", "JobCancelled", "JobFailed", "NotFound",
        "PartlyRefused", "ResultLost", "SettingsInvalid", "ShuttingDown", "Stale", "StoreFull", "TooLarge", "Unauthorized",
        "VersionMismatch", "WaitTimeout", "WrongProcess", "WrongState",
    ),
    "givalia_core.hooks": ("hookimpl",),
    "givalia_core.model": ("JobState",),
    "givalia_core.modules": ("Fail", "Retry", "WorkModule"),
    "givalia_core.server": ("Server",),
    "givalia_core.views": ("Outcome", "Status"),
    "givalia_core.worker.app": ("Worker",),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        found = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
        return found
    if f"{__name__}.{name}" in _HOMES:  # Such as `givalia_core.errors` without importing that module.
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if TYPE_CHECKING:
    from givalia_core.client import Client, JobHandle
    from givalia_core.client.async_client import AsyncClient
    from givalia_core.client.filters import Acted
    from givalia_core.client.handles import AsyncJobHandle
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
        SettingsInvalid,
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
    from givalia_core.server import Server
    from givalia_core.views import Outcome, Status
    from givalia_core.worker.app import Worker

__all__ = [
    "Acted",
    "AsyncClient",
    "AsyncJobHandle",
    "BadRequest",
    "Busy",
    "Client",
    "ConnectionLost",
    "DuplicateKey",
    "Fail",
    "GivaliaError",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "JobState",
    "NotFound",
    "Outcome",
    "PartlyRefused",
    "ResultLost",
    "Retry",
    "Server",
    "SettingsInvalid",
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
