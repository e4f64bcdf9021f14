"""`givalia enq --wait`: waits for the result, and says what is known of the job if there is none."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

from givalia_core.cli import moments, show, unknown
from givalia_core.client import Client, JobHandle
from givalia_core.errors import GivaliaError, JobEnded, JobFailed
from givalia_core.printable import printable

Given = argparse.Namespace


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say whether to wait, how long, and how much of an error to show."""
    parser.add_argument(
        "--wait", action="store_true", help="wait for the job and print its result; a terminal shows its progress"
    )
    parser.add_argument("--wait-timeout", type=moments.length("wait-timeout"), help="how long to wait; implies --wait")
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
        return _waited_for(job, given)
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
        print(f"givalia: not waited for any longer: job {printable(_named(job))}, which goes on", file=sys.stderr)
        raise


def _waited_for(job: JobHandle, given: Given) -> Any:
    if given.json or not sys.stderr.isatty():
        return job.wait(given.wait_timeout)
    print(f"waiting for {job.id}", file=sys.stderr)
    with show.Bar(sys.stderr) as bar:
        return job.wait(given.wait_timeout, progress=bar.show)


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
