"""Verbs on all jobs that a filter admits: their arguments, their progress, and the final counts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from givalia_core.cli import endings, filters, show
from givalia_core.client.filters import Acted
from givalia_core.errors import BadRequest, ConnectionLost, PartlyRefused


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the filters and the options of runs by filter."""
    filters.arguments(parser)
    parser.add_argument("--all", action="store_true", help="all jobs, instead of a filter")
    parser.add_argument("--dry-run", action="store_true", help="with a filter: change nothing, only count the jobs")
    parser.add_argument("--cursor", metavar="TEXT", help="with a filter: go on where a run was interrupted")


def is_by_filter(given: argparse.Namespace) -> bool:
    """Return whether the command has a filter instead of the names of jobs.

    Raises:
        BadRequest: The command has both or neither.
    """
    if given.all and filters.given_filters(given):
        raise BadRequest("--all and a filter exclude each other")
    has_filter = given.all or bool(filters.given_filters(given))
    if has_filter == bool(given.key or given.id):
        raise BadRequest(
            "name jobs by key or id, or give a filter, and not both"
            if has_filter
            else "name the jobs by key or id, or give a filter (--module, --state, ...), or --all"
        )
    if not has_filter and (given.dry_run or given.cursor):
        raise BadRequest("--dry-run and --cursor go with a filter")
    return has_filter


def run(given: argparse.Namespace, act: Callable[..., Acted]) -> None:
    """Act page by page; show the progress on a terminal, and at the end the number of jobs for each outcome.

    Raises:
        GivaliaError: The run was interrupted. Lines say how far it got and how to go on.
        PartlyRefused: Some jobs were refused, and not because of their state.
    """
    last: Acted | None = None

    def on_page(acted: Acted) -> None:
        nonlocal last
        last = acted
        if sys.stderr.isatty():
            progress.show_line(_so_far(given, acted, "none yet"))

    try:
        with show.ProgressLine(sys.stderr) as progress:
            acted = act(
                **filters.given_filters(given), all=given.all, dry_run=given.dry_run, cursor=given.cursor, on_page=on_page
            )
    except BaseException as error:
        if last is not None and (last.counts or _may_be_done(error)):
            _break_off(given, last)
        raise
    if given.json:
        show.emit(_as_json(given, acted))
    else:
        for words in _words(acted) or ["no job"]:
            show.emit(f"would be: {words}" if given.dry_run else words)
    refused = sum(count for outcome, count in acted.counts.items() if outcome.isupper())
    if refused and not given.dry_run:
        raise PartlyRefused(f"{refused:,} of {sum(acted.counts.values()):,} jobs were refused; each, by its id, is told why")


def _may_be_done(error: BaseException) -> bool:
    """Return whether a first page that ended with this error may have been done."""
    return not isinstance(error, BadRequest) and not (isinstance(error, ConnectionLost) and not error.sent)


def _break_off(given: argparse.Namespace, acted: Acted) -> None:
    """Say how far an interrupted run got. Its next page may be under way, and is then done without being counted."""
    if acted.cursor is None:
        return
    under_way = "" if given.dry_run else ", and perhaps a page more, which was under way"
    endings.say(
        f"givalia: {_so_far(given, acted, 'no job')} so far{under_way}; to go on, say the same with --cursor {acted.cursor}"
    )
    if given.json:
        show.emit(_as_json(given, acted))


def _so_far(given: argparse.Namespace, acted: Acted, nothing: str) -> str:
    words = ", ".join(_words(acted)) or nothing
    return f"would be: {words}" if given.dry_run else words


def _as_json(given: argparse.Namespace, acted: Acted) -> str:
    return show.to_json({"counts": acted.counts, "dry_run": given.dry_run, "cursor": acted.cursor})


def _words(acted: Acted) -> list[str]:
    return [f"{count:,} {outcome}" for outcome, count in sorted(acted.counts.items())]
