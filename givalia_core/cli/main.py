"""`givalia`: every verb, from the shell. One table lists the verbs; each verb family has a file of its own."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Final, NamedTuple

from givalia_core.cli import (
    backup,
    common,
    completion,
    demo,
    endings,
    enqueue,
    jobs,
    listing,
    moments,
    overview,
    packages,
    show,
    store,
    waiting,
)
from givalia_core.client import Client
from givalia_core.client.servers import found_by, from_settings
from givalia_core.errors import BadRequest
from givalia_core.settings import ClientSettings, flag

PROG = "givalia"
WORDS = """Ask a Givalia server: enqueue jobs, check their state, call them off, push them back.

  givalia enq Sample --time 10 --params '"parameter sample"' --key cart-7
  givalia stat cart-7
  givalia ext cart-7 --time 30
  givalia cancel cart-7

Every verb has -h, and --json for output that programs read; messages go to standard error."""
JSON_WORDS: Final = "data only, one JSON value on a line; before or after the verb"
PATIENCE_WORDS: Final = "how long to try servers, which may be starting [5; with enq --wait and backup: 60]"
SHORT_S: Final = 5.0
LONG_S: Final = 60.0

Given = argparse.Namespace


class Subcommand(NamedTuple):
    """One verb: its help, its arguments, its action, and how long it tries servers."""

    words: str
    arguments: Callable[[argparse.ArgumentParser], None]
    act: Callable[[Client, Given], None]
    patience_s: Callable[[Given], float] = lambda _: SHORT_S


def main(arguments: list[str] | None = None) -> int:
    """Run the console script."""
    return endings.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    parser = common.parser(PROG, WORDS)
    common.add_settings(parser, ClientSettings)
    parser.add_argument("--json", action="store_true", help=JSON_WORDS)
    parser.add_argument("--patience", type=moments.length("patience"), help=PATIENCE_WORDS)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=common.Parser)
    for name, verb in VERBS.items():
        under = verbs.add_parser(name, help=verb.words, description=verb.words)
        # No default: it would undo a --json before the verb.
        under.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=JSON_WORDS)
        verb.arguments(under)
    completion.complete(parser)
    given, extra = parser.parse_known_args(arguments)
    if extra:
        verbs.choices[given.verb].error(f"unrecognized arguments: {' '.join(extra)}")
    moments.check_zone(given)
    find = from_settings(given.master, given.port, given.config, lambda words: endings.say(f"{PROG}: {words}"), flag)
    verb = VERBS[given.verb]
    if given.patience is not None and given.patience <= 0:
        raise BadRequest(f"patience is more than 0, not {given.patience:g}: within it a server has to answer")
    with found_by(Client, find, verb.patience_s(given) if given.patience is None else given.patience) as client:
        verb.act(client, given)
    return 0


def _patience_s_of_enq(given: Given) -> float:
    return LONG_S if waiting.is_wanted(given) else SHORT_S


def _resume(client: Client, given: Given) -> None:
    did_hold = client.resume()
    if given.json:
        show.emit(show.to_json({"did_hold": did_hold}))
    else:
        show.emit("resumed" if did_hold else "the server did not hold")


def _no_arguments(_: argparse.ArgumentParser) -> None:
    pass


VERBS: Final[dict[str, Subcommand]] = {
    "enq": Subcommand("enqueue a job", enqueue.arguments, enqueue.act, _patience_s_of_enq),
    "stat": Subcommand("show the state of a job, or of several", jobs.stat_arguments, jobs.stat),
    "explain": Subcommand("say in words why a job has not run, or how it ended", jobs.explain_arguments, jobs.explain),
    "cancel": Subcommand("call a job off, or several", jobs.cancel_arguments, jobs.cancel),
    "ext": Subcommand("push the due of a job or several back, or bring it forward", jobs.ext_arguments, jobs.ext),
    "requeue": Subcommand("give dead or cancelled jobs another life", jobs.requeue_arguments, jobs.requeue),
    "resume": Subcommand("end the hold of a server that was started with --hold", _no_arguments, _resume),
    "list": Subcommand("list jobs", listing.arguments, listing.act),
    "modules": Subcommand("show the modules of the connected workers", packages.modules_arguments, packages.modules),
    "workers": Subcommand("show the connected workers and their processes", _no_arguments, overview.workers),
    "clients": Subcommand("show the clients that are connected to the server, by address", _no_arguments, overview.clients),
    "info": Subcommand("show the server's state, counts and limits", _no_arguments, overview.info),
    "plugins": Subcommand("show the plugins installed here", _no_arguments, packages.plugins),
    "store": Subcommand("check a store that no server has open, or move its jobs to another", store.arguments, store.act),
    "backup": Subcommand(
        "copy the store of a running server into a file on this machine", backup.arguments, backup.act, lambda _: LONG_S
    ),
    "completion": Subcommand("print the commands for tab completion in a shell", completion.arguments, completion.act),
    "demo": Subcommand("show server, worker and jobs at work, in a temporary folder", demo.arguments, demo.act),
}

if __name__ == "__main__":
    raise SystemExit(main())
