"""`givalia`: every verb, from the shell. One table says what there is; each verb is a small function."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

from givalia_core.cli import (
    acting,
    backup,
    common,
    completion,
    demo,
    endings,
    filters,
    moments,
    overview,
    params,
    several,
    show,
    store,
    unknown,
    waiting,
)
from givalia_core.client import Client
from givalia_core.client.servers import found_by, from_settings
from givalia_core.errors import BadRequest
from givalia_core.headline import headline
from givalia_core.model import JobState
from givalia_core.printable import printable
from givalia_core.protocol.messages import IF_EXISTS
from givalia_core.settings import ClientSettings, flag
from givalia_core.views import Status

PROG = "givalia"
WORDS = """Ask a Givalia server: enqueue jobs, look at them, call them off, push them back.

  givalia enq Sample --time 10 --params '"parameter sample"' --key cart-7
  givalia stat cart-7
  givalia ext cart-7 --time 30
  givalia cancel cart-7

Every verb has -h, and --json for output that programs read; messages go to standard error."""
TABLE_ROWS: Final = 500
JSON_WORDS: Final = "data only, one JSON value on a line; before or after the verb"

Given = argparse.Namespace


PATIENCE_WORDS: Final = "how long to try servers, which may be starting [5; with enq --wait and backup: 60]"
SHORT_S: Final = 5.0
LONG_S: Final = 60.0


class Verb(NamedTuple):
    """One verb: its help, its arguments, and what it does (with a client, unless it needs none)."""

    words: str
    arguments: Callable[[argparse.ArgumentParser], None]
    act: Callable[[Client, Given], None]
    patience_s: Callable[[Given], float] = lambda _: SHORT_S


def main(arguments: list[str] | None = None) -> int:
    """The console script."""
    return endings.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    parser = common.parser(PROG, WORDS)
    common.add_settings(parser, ClientSettings)
    parser.add_argument("--json", action="store_true", help=JSON_WORDS)
    parser.add_argument("--patience", type=moments.length("patience"), help=PATIENCE_WORDS)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=common.Parser)
    for name, verb in VERBS.items():
        under = verbs.add_parser(name, help=verb.words, description=verb.words)
        # Without a default: that would undo a --json before the verb.
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


def _by_key_or_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", help="the job's key")
    parser.add_argument("--id", help="the job's id, instead of a key")


def _hidden(given: Given) -> tuple[str, ...]:
    return () if given.params else ("params",)


def _when(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--time", type=moments.length("time"), help=words)
    parser.add_argument("--at", help="epoch seconds, or an ISO date and time")


def _at(given: Given) -> float | datetime | None:
    return moments.instant(given.at, given.tz)


def _enq_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", help="the name of a WorkModule")
    _when(parser, "how long from now: 90 (seconds), 10m, 1h30m, 2d [0]")
    moments.add_zone(parser)
    parser.add_argument("--params", type=str, help="JSON, @FILE or - for standard input; what the job gets as self.params")
    parser.add_argument("--key", help="names the job while it lives")
    parser.add_argument("--target-worker", default="any", help="the worker that is to run it [any]")
    parser.add_argument("--version", metavar="SPECIFIER", help="versions of its distribution that may run it: '>=2' [any]")
    parser.add_argument("--if-exists", choices=IF_EXISTS, help="what to do if the key is taken [refuse]")
    parser.add_argument("--priority", type=common.whole("priority", "-9 to 9"), default=0, help="-9 to 9, higher first [0]")
    parser.add_argument("--max-attempts", type=common.whole("max_attempts", "1 to 100"), help="1 to 100")
    parser.add_argument(
        "--timeout",
        type=moments.length("timeout"),
        help="how long an attempt may take, 1s to 24h (how long to wait: --wait-timeout)",
    )
    parser.add_argument("--expires", type=moments.length("expires"), help="how long after its due it must start")
    parser.add_argument("--retain", type=moments.length("retain"), help="how long to remember it after its end")
    parser.add_argument("--id", help="a UUID of your own making")
    waiting.arguments(parser)


def _enq(client: Client, given: Given) -> None:
    if given.if_exists is not None and given.key is None:
        raise BadRequest("--if-exists says what to do if the key is taken, and no --key is given")
    options = {name: value for name in _ENQ_OPTIONS if (value := getattr(given, name)) is not None}
    value = None if given.params is None else params.read(given.params)
    job = client.enq(given.module, params=value, time=given.time or 0, at=_at(given), **options)
    unknown.warn(client, given.module)
    if waiting.is_wanted(given):
        show.emit(show.to_json(waiting.result(client, job, given)))
    elif given.json:
        show.emit(show.to_json({"id": job.id, "key": job.key, "due": job.due, "durability": job.durability}))
    else:
        show.emit(f"{job.id}  due {moments.shown(job.due)}  ({job.durability})")


_ENQ_OPTIONS: Final = (
    "key", "target_worker", "version", "if_exists", "priority", "max_attempts", "timeout", "expires", "retain", "id",
)  # fmt: skip


def _stat_arguments(parser: argparse.ArgumentParser) -> None:
    several.arguments(parser)
    parser.add_argument("--params", action="store_true", help="show also what it was enqueued with")


def _stat(client: Client, given: Given) -> None:
    one = several.single(given)
    if one is None:
        several.show_each(
            given,
            lambda keys, ids: client.stat_many(keys, ids=ids, params=given.params),
            lambda status: show.shown_fields(status, _hidden(given)),
            lambda status: f"{status.state}: {printable(status.why)}",
            changes=False,
        )
        return
    status = client.stat(one[0], id=one[1], params=given.params)
    if given.json:
        show.emit(show.status_json(status, _hidden(given)))
    else:
        show.job_lines(status, _hidden(given))


def _explain(client: Client, given: Given) -> None:
    status = client.stat(given.key, id=given.id)
    error = {"error": status.error} if given.traceback else {}
    why = unknown.with_hint(client, status)
    if given.json:
        show.emit(show.to_json({"id": status.id, "state": status.state, "why": why, **error}))
        return
    show.emit(f"{status.state}: {printable(moments.words_shown(why))}")
    if given.traceback:
        show.lines(status.error or "", sys.stdout)


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    _by_key_or_id(parser)
    waiting.traceback_argument(parser)


def _cancel(client: Client, given: Given) -> None:
    if acting.is_by_filter(given, given.key, given.id):
        acting.run(given, partial(client.cancel_all, running=given.running))
        return
    one = several.single(given)
    if one is None:
        several.show_each(
            given,
            lambda keys, ids: client.cancel_many(keys, ids=ids, running=given.running),
            lambda answer: {"answer": answer},
            str,
        )
        return
    answer = client.cancel(one[0], id=one[1], running=given.running)
    show.emit(show.to_json({"answer": answer}) if given.json else answer)


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    several.arguments(parser)
    acting.arguments(parser)
    parser.add_argument("--running", action="store_true", help="if it has started, ask it to stop and never retry it")


def _ext(client: Client, given: Given) -> None:
    at = _at(given)
    if [given.time is not None, at is not None, given.now].count(True) != 1:
        raise BadRequest("ext takes one of --time, --at and --now")
    if given.now:
        at = 0.0  # An instant that has passed means now.
    if acting.is_by_filter(given, given.key, given.id):
        acting.run(given, partial(client.ext_all, given.time, at=at))
        return
    one = several.single(given)
    if one is None:
        several.show_each(
            given, lambda keys, ids: client.ext_many(keys, given.time, at=at, ids=ids), lambda due: {"due": due}, _due
        )
        return
    due = client.ext(one[0], given.time, at=at, id=one[1])
    show.emit(show.to_json({"due": due}) if given.json else _due(due))


def _due(due: datetime) -> str:
    return f"due {moments.shown(due)}"


def _ext_arguments(parser: argparse.ArgumentParser) -> None:
    several.arguments(parser)
    acting.arguments(parser)
    _when(parser, "length to add to its due, or to now if that has passed: 30, 10m; negative brings it forward")
    parser.add_argument("--now", action="store_true", help="let it be due now")


def _requeue_arguments(parser: argparse.ArgumentParser) -> None:
    several.arguments(parser)
    for state in (JobState.DEAD, JobState.CANCELLED):
        flag = f"--{state}"
        parser.add_argument(flag, dest="state", action=common.Once, nargs=0, const=str(state), help=f"as --state {state}")
    acting.arguments(parser)
    _when(parser, "how long from now: 90 (seconds), 10m, 1h30m, 2d [0]")


def _requeue(client: Client, given: Given) -> None:
    time, at = given.time or 0, _at(given)
    if acting.is_by_filter(given, given.key, given.id):
        acting.run(given, partial(client.requeue_all, time=time, at=at))
        return
    one = several.single(given)
    if one is None:
        several.show_each(
            given, lambda keys, ids: client.requeue_many(keys, ids=ids, time=time, at=at), lambda due: {"due": due}, _due
        )
        return
    handle = client.requeue(one[0], id=one[1], time=time, at=at)
    if given.json:
        show.emit(show.to_json({"id": handle.id, "key": handle.key, "due": handle.due}))
    else:
        show.emit(f"{handle.id}  {_due(handle.due)}")


_LIMITS: Final = "a whole number, 0 or more"


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    filters.arguments(parser)
    parser.add_argument("--params", action="store_true", help="show also what each job was enqueued with")
    limit = common.whole("limit", _LIMITS)
    parser.add_argument("--limit", type=limit, default=100, help="at most so many [100]; 0: all")


def _list(client: Client, given: Given) -> None:
    if given.limit < 0:
        raise BadRequest(f"limit is {_LIMITS}, not {given.limit}")
    listed = client.list(**filters.given_filters(given), params=given.params)
    jobs = islice(listed, min(given.limit, sys.maxsize) or None)
    if given.json:
        hidden = ("result",) if given.params else ("result", "params")
        for status in jobs:
            show.emit(show.status_json(status, hidden))
    else:
        _show_jobs(jobs, given)
    if given.limit and next(listed, None) is not None:
        endings.say(f"the first {given.limit} only (see --limit)")


def _show_jobs(jobs: Iterator[Status], given: Given) -> None:
    """Show jobs in a table, some hundred at a time, since there may be millions."""
    heads = ["id", "state", "module", "key", "due", "attempts", "why", *(["params"] if given.params else [])]
    while some := list(islice(jobs, TABLE_ROWS)):
        rows = [
            (j.id, j.state, j.module, j.key, _due_in_table(j), j.attempts, moments.words_shown(j.why), show.to_json(j.params))
            for j in some
        ]
        show.table(heads, [row[: len(heads)] for row in rows])


def _due_in_table(job: Status) -> str:
    return moments.shown(job.due, timespec="milliseconds")


def _modules_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", action="store_true", help="what is installed in this environment; needs no server")


def _modules(client: Client, given: Given) -> None:
    rows = _local_modules() if given.local else list(client.modules())
    if given.json:
        show.emit(show.to_json(rows))
        return
    show.table(
        ("module", "worker", "distribution", "version", "isolation", "served"),
        [(r["module"], r["worker"], r["distribution"], r["version"], r["isolation"], _is_served(r["broken"])) for r in rows],
    )


def _is_served(broken: str | None) -> str:
    return "yes" if broken is None else "no: " + headline(broken)


def _local_modules() -> list[dict[str, Any]]:
    from givalia_core import modules as modules_room

    return [
        {
            "module": found.name,
            "worker": None,
            "distribution": found.distribution,
            "version": found.version,
            "isolation": found.isolation,
            "broken": found.broken,
        }
        for found in modules_room.discover().values()
    ]


def _resume(client: Client, given: Given) -> None:
    did_hold = client.resume()
    if given.json:
        show.emit(show.to_json({"did_hold": did_hold}))
    else:
        show.emit("resumed" if did_hold else "the server did not hold")


def _plugins(client: Client, given: Given) -> None:
    from givalia_core import hooks

    found = hooks.discover()
    if given.json:
        names = ("name", "distribution", "version", "source", "error")
        show.emit(show.to_json([{name: getattr(each, name) for name in names} for each in found]))
        return
    show.table(
        ("plugin", "distribution", "version", "source", "error"),
        [(each.name, each.distribution, each.version, each.source, each.error) for each in found],
    )


def _completion(client: Client, given: Given) -> None:
    show.emit(completion.script(given.shell))


def _nothing(parser: argparse.ArgumentParser) -> None:
    """A verb without arguments."""


VERBS: Final[dict[str, Verb]] = {
    "enq": Verb("enqueue a job", _enq_arguments, _enq, lambda given: LONG_S if waiting.is_wanted(given) else SHORT_S),
    "stat": Verb("show what is known of a job", _stat_arguments, _stat),
    "explain": Verb("say in words why a job has not run, or what became of it", _explain_arguments, _explain),
    "cancel": Verb("call a job off, or several", _cancel_arguments, _cancel),
    "ext": Verb("push the due of a job or several back, or bring it forward", _ext_arguments, _ext),
    "requeue": Verb("give dead or cancelled jobs another life", _requeue_arguments, _requeue),
    "resume": Verb("end the hold of a server that was started with --hold", _nothing, _resume),
    "list": Verb("list jobs", _list_arguments, _list),
    "modules": Verb("show the modules of the connected workers", _modules_arguments, _modules),
    "workers": Verb("show the connected workers, and what they run", _nothing, overview.workers),
    "clients": Verb("show the clients that are connected to the server, by address", _nothing, overview.clients),
    "info": Verb("show what the server is, holds and allows", _nothing, overview.info),
    "plugins": Verb("show the plugins that are installed here", _nothing, _plugins),
    "store": Verb("look at a store that no server has open, or move its jobs to another", store.arguments, store.act),
    "backup": Verb(
        "copy the store of a running server into a file on this machine", backup.arguments, backup.act, lambda _: LONG_S
    ),
    "completion": Verb("print what lets a shell complete verbs, modules and keys", completion.arguments, _completion),
    "demo": Verb("show the whole thing at work, in a folder of its own", demo.arguments, demo.act),
}

if __name__ == "__main__":
    raise SystemExit(main())
