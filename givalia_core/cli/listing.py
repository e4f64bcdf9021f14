"""`givalia list`: jobs by filter, as a table or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Final

from givalia_core.cli import common, endings, filters, moments, show
from givalia_core.client import Client
from givalia_core.errors import BadRequest
from givalia_core.views import Status

TABLE_ROWS: Final = 500
LIMITS: Final = "a whole number, 0 or more"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `list`."""
    filters.arguments(parser)
    parser.add_argument("--params", action="store_true", help="also show the params that each job was enqueued with")
    limit = common.whole("limit", LIMITS)
    parser.add_argument("--limit", type=limit, default=100, help="at most so many [100]; 0: all")


def act(client: Client, given: argparse.Namespace) -> None:
    """Show the jobs that the filter admits, up to the limit."""
    if given.limit < 0:
        raise BadRequest(f"limit is {LIMITS}, not {given.limit}")
    listed = client.list(**filters.given_filters(given), params=given.params)
    jobs = islice(listed, min(given.limit, sys.maxsize) or None)
    if given.json:
        hidden = ("result",) if given.params else ("result", "params")
        for status in jobs:
            show.emit(show.status_json(status, hidden))
    else:
        _show_table(jobs, given)
    if given.limit and next(listed, None) is not None:
        endings.say(f"the first {given.limit} only (see --limit)")


def _show_table(jobs: Iterator[Status], given: argparse.Namespace) -> None:
    """Show the jobs in tables of some hundred rows, as there may be millions."""
    heads = ["id", "state", "module", "key", "due", "attempts", "why", *(["params"] if given.params else [])]
    while some := list(islice(jobs, TABLE_ROWS)):
        show.table(heads, [_row(job)[: len(heads)] for job in some])


def _row(job: Status) -> tuple[object, ...]:
    due = moments.shown(job.due, timespec="milliseconds")
    return job.id, job.state, job.module, job.key, due, job.attempts, moments.words_shown(job.why), show.to_json(job.params)
