"""The arguments that select jobs by their properties instead of by name."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any, Final

from givalia_core.cli import common, moments
from givalia_core.errors import BadRequest
from givalia_core.model import JobState

NAMES: Final = ("state", "module", "target_worker", "key_prefix", "due_before", "due_after", "ended_after", "error")
INSTANTS: Final = ("due_before", "due_after", "ended_after")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the filters."""
    once = partial(parser.add_argument, action=common.Once)
    once("--state", choices=[str(state) for state in JobState], help="only jobs in this state")
    once("--module", help="only jobs of this module")
    once("--target-worker", help="only jobs for this worker")
    once("--key-prefix", metavar="TEXT", help="only jobs whose key begins with this text")
    for name, words in (
        ("due-before", "only jobs due before this instant"),
        ("due-after", "only jobs due at this instant or later"),
        ("ended-after", "only jobs that ended at this instant or later"),
    ):
        once(f"--{name}", metavar="INSTANT", help=words)
    once("--error", metavar="TEXT", help="only jobs whose last error contains this text, ignoring case")
    moments.add_zone(parser)


def given_filters(given: argparse.Namespace) -> dict[str, Any]:
    """Return the given filters, by their names in the client.

    Raises:
        BadRequest: A filter is empty, or is not the instant that it should be.
    """
    found = {name: getattr(given, name) for name in NAMES if getattr(given, name) is not None}
    for name, value in found.items():
        if value == "":
            raise BadRequest(f"--{name.replace('_', '-')} is empty")
        if name in INSTANTS:
            found[name] = moments.instant(value, given.tz, name.replace("_", "-"))
    return found
