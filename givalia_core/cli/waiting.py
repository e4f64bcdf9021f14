"""`givalia enq --wait`: waits for the result; without a result, says how the job stands."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Final

from givalia_core.cli import endings, moments, show, unknown
from givalia_core.client import Client, JobHandle
from givalia_core.client.servers import likewise
from givalia_core.errors import GivaliaError, JobEnded, JobFailed, WaitTimeout
from givalia_core.printable import printable

TELL_S: Final = 10.0  # After this wait, people want to know the reason.
LEAST_S: Final = 0.01  # A wait of 0 would ask the server and wait for its answer.
WHY_S: Final = 1.0  # Time for the server, which may be gone, to say why a job has not ended.

Given = argparse.Namespace


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments for waiting, and for showing errors."""
    parser.add_argument(
        "--wait", action="store_true", help="wait for the job and print its result; a terminal shows its progress"
    )
    parser.add_argument("--wait-timeout", type=moments.wait("wait-timeout"), help="how long to wait; implies --wait")
    traceback_argument(parser)


def is_wanted(given: Given) -> bool:
    """Return whether the command waits."""
    return given.wait or given.wait_timeout is not None


def traceback_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that shows an error with its traceback."""
    parser.add_argument("--traceback", action="store_true", help="show the whole error of a failed attempt")


def result(client: Client, job: JobHandle, given: Given) -> Any:
    """Wait for the result; a terminal shows the progress.

    Raises:
        GivaliaError: There is no result, or not yet. The message names the job and says why it has not ended; so does `--json`.
    """
    with likewise(client, WHY_S) as asking:
        try:
            return _waited_for(asking, job, given)
        except JobEnded as error:
            _show(job, given, error)
            if isinstance(error, JobFailed) and given.traceback:
                show.lines(error.error or "", sys.stderr)
            raise
        except GivaliaError as error:
            known = _state(asking, job)
            _show(job, given, error, **known)
            raise type(error)(f"{error} (job {_named(job)}: {_words(known)})", **error.details) from None
        except KeyboardInterrupt:
            endings.say(f"givalia: not waited for any longer: job {printable(_named(job))}, which goes on")
            known = _state(asking, job)
            endings.say(f"givalia: {printable(_words(known))}")
            if given.json:
                show.emit(show.to_json({"id": job.id, "key": job.key, **known}))
            raise


def _waited_for(asking: Client, job: JobHandle, given: Given) -> Any:
    if given.json or not sys.stderr.isatty():
        return _told_meanwhile(asking, job, given, job.wait, endings.say)
    endings.say(f"waiting for {job.id}")
    with show.Bar(sys.stderr) as bar:
        return _told_meanwhile(asking, job, given, partial(job.wait, progress=bar.show), bar.say)


def _told_meanwhile(
    asking: Client, job: JobHandle, given: Given, wait: Callable[[float], Any], say: Callable[[str], None]
) -> Any:
    """Wait; after ten seconds, and each time the wait has doubled, say why the job has not ended."""
    began_s = time.monotonic()
    end_s = inf if given.wait_timeout is None else began_s + given.wait_timeout
    tell_s = began_s + TELL_S
    while True:
        try:
            return wait(max(min(tell_s, end_s) - time.monotonic(), LEAST_S))
        except WaitTimeout:
            if tell_s >= end_s:
                raise
        say(f"after {tell_s - began_s:.0f} s: {printable(_words(_state(asking, job)))}")
        tell_s += tell_s - began_s


def _show(job: JobHandle, given: Given, error: GivaliaError, **known: Any) -> None:
    if given.json:
        show.emit(show.to_json({"id": job.id, "key": job.key, "code": error.code, **error.details, **known}))


def _state(asking: Client, job: JobHandle) -> dict[str, Any]:
    """Return the state of the job and why it has not ended; empty if no server answers."""
    with contextlib.suppress(GivaliaError):
        status = asking.stat(id=job.id)
        return {"state": status.state, "why": unknown.with_hint(asking, status)}
    return {}


def _words(known: dict[str, Any]) -> str:
    return f"{known['state']}: {known['why']}" if known else "no server says why it has not ended"


def _named(job: JobHandle) -> str:
    return job.id if job.key is None else f"{job.id}, key {job.key}"
