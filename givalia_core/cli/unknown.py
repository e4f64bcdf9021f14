"""Modules that no connected worker serves: a hint to people who may have mistyped the name, never a refusal."""

from __future__ import annotations

import contextlib
import sys
from difflib import get_close_matches
from typing import Final

from givalia_core.cli import endings
from givalia_core.client import Client
from givalia_core.errors import GivaliaError
from givalia_core.model import JobState
from givalia_core.printable import printable
from givalia_core.views import Status

LIKENESS: Final = 0.6


def warn(client: Client, module: str) -> None:
    """Warn on a terminal that no worker serves this module, so that the job waits."""
    if not sys.stderr.isatty():
        return
    with contextlib.suppress(GivaliaError):  # The job is enqueued, whether or not the server lists its modules.
        if module not in (served := _served(client)):
            words = "; ".join(filter(None, (f"no worker serves {module}, so its jobs wait", did_you_mean(module, served))))
            endings.say(f"givalia: warning: {printable(words)}")


def with_hint(client: Client, status: Status) -> str:
    """Return why a job has not run; if no worker serves its module, with a similar name."""
    hint = ""
    if status.state == JobState.READY:
        with contextlib.suppress(GivaliaError):
            served = _served(client)
            hint = "" if status.module in served else did_you_mean(status.module, served)
    return "; ".join(filter(None, (status.why, hint)))


def did_you_mean(name: str, names: set[str]) -> str:
    """Return `did you mean Sample?` if one of the names is similar, else the empty text."""
    by_lower = {each.lower(): each for each in sorted(names)}
    found = get_close_matches(name.lower(), by_lower, 1, LIKENESS)
    return f"did you mean {by_lower[found[0]]}?" if found else ""


def _served(client: Client) -> set[str]:
    return {each["module"] for each in client.modules() if each["broken"] is None}
