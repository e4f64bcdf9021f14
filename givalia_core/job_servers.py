"""The servers of the worker that runs this job. A client without an address, made in a job, connects to them.

The worker passes the servers' addresses to its processes in an environment variable, which programs started by jobs inherit.
A worker inside another program answers for its own jobs only. Nothing here connects to anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "GIVALIA_JOB_SERVERS"
_asked: Final[list[Callable[[], str]]] = []  # One for each worker in this program: its servers in its jobs, else empty.


def known() -> str:
    """Return the addresses of the servers, separated by commas; empty outside a job."""
    return next(filter(None, (ask() for ask in tuple(_asked))), os.environ.get(VARIABLE, ""))


def tell_process(servers: str) -> None:
    """Let all code of this process find these servers; the process runs only jobs and plugins."""
    os.environ[VARIABLE] = servers


def tell_jobs(ask: Callable[[], str]) -> None:
    """Let `known` call `ask`, which returns the servers if the calling code belongs to a job, else the empty text."""
    _asked.append(ask)


def forget(ask: Callable[[], str]) -> None:
    """Undo `tell_jobs`."""
    if ask in _asked:
        _asked.remove(ask)
