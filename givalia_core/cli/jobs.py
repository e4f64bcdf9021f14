"""The verbs on existing jobs: `stat`, `explain`, `cancel`, `ext` and `requeue`, for one job, for several or by filter."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

from givalia_core.cli import acting, common, moments, several, show, unknown, waiting
from givalia_core.cli.several import Ask, ShownJob
from givalia_core.client import Client, JobHandle
from givalia_core.client.filters import Acted
from givalia_core.errors import BadRequest
from givalia_core.model import JobState
from givalia_core.printable import printable

Given = argparse.Namespace


def _change(
    given: Given,
    by_filter: Callable[..., Acted],
    many: Ask[Any],
    one: Callable[..., Any],
    shown: ShownJob[Any],
    shown_alone: ShownJob[Any] | None = None,
) -> None:
    """Change the jobs that the command names: all that a filter admits, several, or one."""
    if acting.is_by_filter(given):
        acting.run(given, by_filter)
    elif (name := several.single(given)) is None:
        several.show_each(given, many, shown)
    else:
        answer = one(name[0], id=name[1])
        alone = shown_alone or shown
        show.emit(show.to_json(alone.as_json(answer)) if given.json else alone.words(answer))


def _due(due: datetime) -> str:
    return f"due {moments.shown(due)}"


def _requeued(job: JobHandle) -> str:
    return f"{job.id}  {_due(job.due)}"


ANSWER: Final[ShownJob[str]] = ShownJob(lambda answer: {"answer": answer}, str)
DUE: Final[ShownJob[datetime]] = ShownJob(lambda due: {"due": due}, _due)
REQUEUED: Final[ShownJob[JobHandle]] = ShownJob(lambda job: {"id": job.id, "key": job.key, "due": job.due}, _requeued)


def stat_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `stat`."""
    several.arguments(parser)
    parser.add_argument("--params", action="store_true", help="also show the params that it was enqueued with")


def stat(client: Client, given: Given) -> None:
    """Show the state of one job line by line, or of several jobs one a line."""
    hidden = () if given.params else ("params",)
    name = several.single(given)
    if name is None:
        several.show_each(
            given,
            lambda keys, ids: client.stat_many(keys, ids=ids, params=given.params),
            ShownJob(lambda job: show.shown_fields(job, hidden), lambda job: f"{job.state}: {printable(job.why)}"),
            changes=False,
        )
        return
    status = client.stat(name[0], id=name[1], params=given.params)
    if given.json:
        show.emit(show.status_json(status, hidden))
    else:
        show.job_lines(status, hidden)


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `explain`."""
    parser.add_argument("key", nargs="?", help="the job's key")
    parser.add_argument("--id", help="the job's id, instead of a key")
    waiting.traceback_argument(parser)


def explain(client: Client, given: Given) -> None:
    """Say in words why the job has not run, or how it ended."""
    status = client.stat(given.key, id=given.id)
    why = unknown.with_hint(client, status)
    if given.json:
        error = {"error": status.error} if given.traceback else {}
        show.emit(show.to_json({"id": status.id, "state": status.state, "why": why, **error}))
        return
    show.emit(f"{status.state}: {printable(moments.words_shown(why))}")
    if given.traceback:
        show.lines(status.error or "", sys.stdout)


def cancel_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cancel`."""
    several.arguments(parser)
    acting.arguments(parser)
    parser.add_argument("--running", action="store_true", help="if it has started, ask it to stop and never retry it")


def cancel(client: Client, given: Given) -> None:
    """Cancel jobs."""
    _change(
        given,
        partial(client.cancel_all, running=given.running),
        lambda keys, ids: client.cancel_many(keys, ids=ids, running=given.running),
        partial(client.cancel, running=given.running),
        ANSWER,
    )


def ext_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ext`."""
    several.arguments(parser)
    acting.arguments(parser)
    moments.add_when(parser, "length to add to its due, or to now if that has passed: 30, 10m; negative brings it forward")
    parser.add_argument("--now", action="store_true", help="make it due now")


def ext(client: Client, given: Given) -> None:
    """Move the due of jobs."""
    at = moments.at(given)
    if [given.time is not None, at is not None, given.now].count(True) != 1:
        raise BadRequest("ext takes one of --time, --at and --now")
    if given.now:
        at = 0.0  # An instant in the past means now.
    _change(
        given,
        partial(client.ext_all, given.time, at=at),
        lambda keys, ids: client.ext_many(keys, given.time, at=at, ids=ids),
        lambda key, **named: client.ext(key, given.time, at=at, **named),
        DUE,
    )


def requeue_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `requeue`."""
    several.arguments(parser)
    for state in (JobState.DEAD, JobState.CANCELLED):
        flag = f"--{state}"
        parser.add_argument(flag, dest="state", action=common.Once, nargs=0, const=str(state), help=f"as --state {state}")
    acting.arguments(parser)
    moments.add_when(parser, moments.FROM_NOW)


def requeue(client: Client, given: Given) -> None:
    """Give dead or cancelled jobs another life."""
    when: dict[str, Any] = {"time": given.time or 0, "at": moments.at(given)}
    _change(
        given,
        partial(client.requeue_all, **when),
        lambda keys, ids: client.requeue_many(keys, ids=ids, **when),
        partial(client.requeue, **when),
        DUE,
        REQUEUED,
    )
