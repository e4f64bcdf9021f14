"""The servers of the worker that runs this job: where a client goes that is made in a job without an address.

The worker tells its processes where its servers take clients, in a variable of the environment, which programs that jobs start
inherit. A worker within somebody else's program answers for its own jobs alone. Nothing here connects to anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "GIVALIA_JOB_SERVERS"
_asked: Final[list[Callable[[], str]]] = []  # By worker within this program: its servers inside its jobs, else empty.


def known() -> str:
    """Addresses of servers, separated by commas; empty outside a job."""
    return next(filter(None, (ask() for ask in tuple(_asked))), os.environ.get(VARIABLE, ""))


def tell_process(servers: str) -> None:
    """Let all code of this process find these servers: it runs nothing but jobs and plugins."""
    os.environ[VARIABLE] = servers


def tell_jobs(ask: Callable[[], str]) -> None:
    """Have `ask` answer for the code that calls `known`: the servers if it belongs to a job, else the empty text."""
    _asked.append(ask)


def forget(ask: Callable[[], str]) -> None:
    """Take back `tell_jobs`."""
    if ask in _asked:
        _asked.remove(ask)
