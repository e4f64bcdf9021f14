"""`givalia enq --wait`: waits for the result, and says what is known of the job if there is none."""

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

TELL_S: Final = 10.0  # Who waits for so long wants to know why.
LAST_S: Final = 1.0  # How long somebody who has broken off the waiting may wait for the last word.

Given = argparse.Namespace


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say whether to wait, how long, and how much of an error to show."""
    parser.add_argument(
        "--wait", action="store_true", help="wait for the job and print its result; a terminal shows its progress"
    )
    parser.add_argument("--wait-timeout", type=moments.wait("wait-timeout"), help="how long to wait; implies --wait")
    traceback_argument(parser)


def traceback_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that shows a whole error."""
    parser.add_argument("--traceback", action="store_true", help="show the whole error of a failed attempt")


def result(client: Client, job: JobHandle, given: Given) -> Any:
    """Wait for the result; people who sit at a terminal see how far it is meanwhile.

    Raises:
        GivaliaError: There is none, or not yet. The message names the job and says why it has not ended; so does `--json`.
    """
    try:
        return _waited_for(client, job, given)
    except JobEnded as error:
        _show(job, given, error)
        if isinstance(error, JobFailed) and given.traceback:
            show.lines(error.error or "", sys.stderr)
        raise
    except GivaliaError as error:
        known = _state(client, job)
        _show(job, given, error, **known)
        why = f": {known['state']}: {known['why']}" if known else ""
        raise type(error)(f"{error} (job {_named(job)}{why})", **error.details) from None
    except KeyboardInterrupt:
        endings.say(f"givalia: not waited for any longer: job {printable(_named(job))}, which goes on")
        with likewise(client, LAST_S) as other:
            known = _state(other, job)
        if known:
            endings.say(f"givalia: {known['state']}: {printable(known['why'])}")
        if given.json:
            show.emit(show.to_json({"id": job.id, "key": job.key, **known}))
        raise


def _waited_for(client: Client, job: JobHandle, given: Given) -> Any:
    if given.json or not sys.stderr.isatty():
        return _told_meanwhile(client, job, given, job.wait, endings.say)
    endings.say(f"waiting for {job.id}")
    with show.Bar(sys.stderr) as bar:
        return _told_meanwhile(client, job, given, partial(job.wait, progress=bar.show), bar.say)


def _told_meanwhile(
    client: Client, job: JobHandle, given: Given, wait: Callable[[float], Any], say: Callable[[str], None]
) -> Any:
    """Wait; say why the job has not ended after ten seconds, and again each time that the waiting has doubled."""
    began_s = time.monotonic()
    end_s = inf if given.wait_timeout is None else began_s + given.wait_timeout
    tell_s = began_s + TELL_S
    while True:
        try:
            return wait(max(0.0, min(tell_s, end_s) - time.monotonic()))
        except WaitTimeout:
            if tell_s >= end_s:
                raise
        status = client.stat(id=job.id)
        say(f"after {tell_s - began_s:.0f} s: {status.state}: {printable(unknown.with_hint(client, status))}")
        tell_s += tell_s - began_s


def _show(job: JobHandle, given: Given, error: GivaliaError, **known: Any) -> None:
    if given.json:
        show.emit(show.to_json({"id": job.id, "key": job.key, "code": error.code, **error.details, **known}))


def _state(client: Client, job: JobHandle) -> dict[str, Any]:
    """The state of a job that has not ended, and why it has not; nothing if the server does not tell."""
    with contextlib.suppress(GivaliaError):
        status = client.stat(id=job.id)
        return {"state": status.state, "why": unknown.with_hint(client, status)}
    return {}


def _named(job: JobHandle) -> str:
    return job.id if job.key is None else f"{job.id}, key {job.key}"
