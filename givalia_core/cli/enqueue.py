"""`givalia enq`: enqueues a job, and waits for its result if asked to."""

from __future__ import annotations

import argparse
from typing import Final

from givalia_core.cli import common, moments, params, show, unknown, waiting
from givalia_core.client import Client
from givalia_core.errors import BadRequest
from givalia_core.protocol.messages import IF_EXISTS

_OPTIONS: Final = (
    "key", "target_worker", "version", "if_exists", "priority", "max_attempts", "timeout", "expires", "retain", "id",
)  # fmt: skip


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `enq`."""
    add = parser.add_argument
    add("module", help="the name of a WorkModule")
    moments.add_when(parser, moments.FROM_NOW)
    moments.add_zone(parser)
    add("--params", type=str, help="JSON, @FILE or - for standard input; the job reads it as self.params")
    add("--key", help="names the job while it lives")
    add("--target-worker", default="any", help="the worker that runs it [any]")
    add("--version", metavar="SPECIFIER", help="versions of its distribution that may run it: '>=2' [any]")
    add("--if-exists", choices=IF_EXISTS, help="what to do if the key is taken [refuse]")
    add("--priority", type=common.whole("priority", "-9 to 9"), default=0, help="-9 to 9, higher first [0]")
    add("--max-attempts", type=common.whole("max_attempts", "1 to 100"), help="1 to 100")
    timeout_words = "how long an attempt may take, 1s to 24h (how long to wait: --wait-timeout)"
    add("--timeout", type=moments.length("timeout"), help=timeout_words)
    add("--expires", type=moments.length("expires"), help="how long after its due it must start")
    add("--retain", type=moments.length("retain"), help="how long to remember it after its end")
    add("--id", help="a UUID of your own")
    waiting.arguments(parser)


def act(client: Client, given: argparse.Namespace) -> None:
    """Enqueue the job; show its handle, or its result if the command waits."""
    if given.if_exists is not None and given.key is None:
        raise BadRequest("--if-exists says what to do if the key is taken, and no --key is given")
    options = {name: value for name in _OPTIONS if (value := getattr(given, name)) is not None}
    value = None if given.params is None else params.read(given.params)
    job = client.enq(given.module, params=value, time=given.time or 0, at=moments.at(given), **options)
    unknown.warn(client, given.module)
    if waiting.is_wanted(given):
        show.emit(show.to_json(waiting.result(client, job, given)))
    elif given.json:
        show.emit(show.to_json({"id": job.id, "key": job.key, "due": job.due, "durability": job.durability}))
    else:
        show.emit(f"{job.id}  due {moments.shown(job.due)}  ({job.durability})")
