"""`givalia`: every verb, from the shell. One table says what there is; each verb is a small function."""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Final, NamedTuple

from givalia_core.cli import acting, backup, common, demo, filters, several, show, store
from givalia_core.client import Client, JobHandle
from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest
from givalia_core.model import JobState
from givalia_core.printable import printable
from givalia_core.protocol.messages import IF_EXISTS
from givalia_core.settings import ClientSettings
from givalia_core.version import __version__
from givalia_core.views import Status

PROG = "givalia"
WORDS = """Ask a Givalia server: enqueue jobs, look at them, call them off, push them back.

  givalia enq Sample --time 10 --params '"parameter sample"' --key cart-7
  givalia stat cart-7
  givalia ext cart-7 --time 30
  givalia cancel cart-7

Every verb has -h, and --json for output that programs read; messages go to standard error."""

MIB: Final = 1 << 20
TABLE_ROWS: Final = 500

Given = argparse.Namespace


class Verb(NamedTuple):
    """One verb: its help, its arguments, and what it does (with a client, unless it needs none)."""

    words: str
    arguments: Callable[[argparse.ArgumentParser], None]
    act: Callable[[Client, Given], None]


def main(arguments: list[str] | None = None) -> int:
    """The console script."""
    return common.run(PROG, _main, arguments)


def _main(arguments: list[str]) -> int:
    parser = common.parser(PROG, WORDS)
    parser.add_argument("--version", action="version", version=f"givalia {__version__}")
    common.add_settings(parser, ClientSettings)
    parser.add_argument("--patience", type=float, metavar="SECONDS", help="how long to try the server [5; --wait: 60]")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=common.Parser)
    for name, verb in VERBS.items():
        under = verbs.add_parser(name, help=verb.words, description=verb.words)
        under.add_argument("--json", action="store_true", help="data only, one JSON value on a line")
        verb.arguments(under)
    given = parser.parse_args(arguments)
    settings = common.read_settings(ClientSettings, given)
    patience = given.patience
    if patience is None:
        patience = 60.0 if getattr(given, "wait", False) else 5.0
    with Client(settings.master, settings.port, resend=patience) as client:
        try:
            VERBS[given.verb].act(client, given)
        except BrokenPipeError:
            # Whoever reads our output (head, say) has had enough; that is no error.
            sys.stderr.close()
    return 0


def _by_key_or_id(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", nargs="?", help="the job's key")
    parser.add_argument("--id", help="the job's id, instead of a key")


def _when(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--time", type=float, help=words)
    parser.add_argument("--at", type=filters.instant, help="epoch seconds, or an ISO date and time with its zone")


def _params(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except ValueError as error:
        raise BadRequest(f"--params is not JSON: {error} (text needs quotes of its own: --params '\"text\"')") from None


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _enq_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("module", help="the name of a WorkModule")
    _when(parser, "seconds from now [0]")
    parser.add_argument("--params", type=str, help="JSON; what the job gets as self.params")
    parser.add_argument("--key", help="names the job while it lives")
    parser.add_argument("--target-worker", default="any", help="the worker that is to run it [any]")
    parser.add_argument("--version", metavar="SPECIFIER", help="versions of its distribution that may run it: '>=2' [any]")
    parser.add_argument("--if-exists", choices=IF_EXISTS, default="refuse", help="what to do if the key is taken [refuse]")
    parser.add_argument("--priority", type=int, default=0, help="-9 to 9, higher first [0]")
    parser.add_argument("--max-attempts", type=int, help="1 to 100")
    parser.add_argument("--timeout", type=float, help="seconds an attempt may take")
    parser.add_argument("--expires", type=float, help="seconds after its due in which it must start")
    parser.add_argument("--retain", type=float, help="seconds to remember it after its end")
    parser.add_argument("--id", help="a UUID of your own making")
    parser.add_argument(
        "--wait", action="store_true", help="wait for the job and print its result; a terminal shows its progress"
    )
    parser.add_argument("--wait-timeout", type=float, metavar="SECONDS", help="how long to wait; implies --wait")


def _enq(client: Client, given: Given) -> None:
    options = {name: getattr(given, name) for name in _ENQ_OPTIONS}
    params = None if given.params is None else _params(given.params)
    job = client.enq(given.module, params=params, time=given.time or 0, at=given.at, **options)
    if given.wait or given.wait_timeout is not None:
        show.emit(show.to_json(_result(job, given)))
    elif given.json:
        show.emit(show.to_json({"id": job.id, "key": job.key, "due": job.due, "durability": job.durability}))
    else:
        show.emit(f"{job.id}  due {job.due.isoformat()}  ({job.durability})")


def _result(job: JobHandle, given: Given) -> Any:
    """Wait for the result; people who sit at a terminal see how far it is meanwhile."""
    if given.json or not sys.stderr.isatty():
        return job.wait(given.wait_timeout)
    print(f"waiting for {job.id}", file=sys.stderr)
    with show.Bar(sys.stderr) as bar:
        return job.wait(given.wait_timeout, progress=bar.show)


_ENQ_OPTIONS: Final = (
    "key", "target_worker", "version", "if_exists", "priority", "max_attempts", "timeout", "expires", "retain", "id",
)  # fmt: skip


def _stat_arguments(parser: argparse.ArgumentParser) -> None:
    _by_key_or_id(parser)
    parser.add_argument("--params", action="store_true", help="show also what it was enqueued with")


def _stat(client: Client, given: Given) -> None:
    status = client.stat(given.key, id=given.id, params=given.params)
    hidden = () if given.params else ("params",)
    if given.json:
        show.emit(show.status_json(status, hidden))
    else:
        show.job_lines(status, hidden)


def _explain(client: Client, given: Given) -> None:
    status = client.stat(given.key, id=given.id)
    if given.json:
        show.emit(show.to_json({"id": status.id, "state": status.state, "why": status.why}))
    else:
        show.emit(f"{status.state}: {printable(status.why)}")


def _cancel(client: Client, given: Given) -> None:
    if acting.is_by_filter(given, given.key, given.id):
        acting.run(given, partial(client.cancel_all, running=given.running))
        return
    one = several.single(given)
    if one is None:
        several.show_each(given, lambda keys, ids: client.cancel_many(keys, ids=ids, running=given.running), "answer", str)
        return
    answer = client.cancel(one[0], id=one[1], running=given.running)
    show.emit(show.to_json({"answer": answer}) if given.json else answer)


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    several.arguments(parser)
    acting.arguments(parser)
    parser.add_argument("--running", action="store_true", help="if it has started, ask it to stop and never retry it")


def _ext(client: Client, given: Given) -> None:
    if acting.is_by_filter(given, given.key, given.id):
        acting.run(given, partial(client.ext_all, given.time, at=given.at))
        return
    one = several.single(given)
    if one is None:
        several.show_each(given, lambda keys, ids: client.ext_many(keys, given.time, at=given.at, ids=ids), "due", _due)
        return
    due = client.ext(one[0], given.time, at=given.at, id=one[1])
    show.emit(show.to_json({"due": due}) if given.json else _due(due))


def _due(due: datetime) -> str:
    return f"due {due.isoformat()}"


def _ext_arguments(parser: argparse.ArgumentParser) -> None:
    several.arguments(parser)
    acting.arguments(parser)
    _when(parser, "seconds to add to its due, or to now if that has passed; negative brings it forward")


def _requeue_arguments(parser: argparse.ArgumentParser) -> None:
    _by_key_or_id(parser)
    parser.add_argument("--dead", dest="state", action="store_const", const=str(JobState.DEAD), help="as --state dead")
    parser.add_argument(
        "--cancelled", dest="state", action="store_const", const=str(JobState.CANCELLED), help="as --state cancelled"
    )
    acting.arguments(parser)
    _when(parser, "seconds from now [0]")


def _requeue(client: Client, given: Given) -> None:
    time = given.time or 0
    if acting.is_by_filter(given, given.key, given.id):
        acting.run(given, partial(client.requeue_all, time=time, at=given.at))
        return
    handle = client.requeue(given.key, id=given.id, time=time, at=given.at)
    if given.json:
        show.emit(show.to_json({"id": handle.id, "key": handle.key, "due": handle.due}))
    else:
        show.emit(f"{handle.id}  due {handle.due.isoformat()}")


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    filters.arguments(parser)
    parser.add_argument("--params", action="store_true", help="show also what each job was enqueued with")
    parser.add_argument("--limit", type=int, default=100, help="at most so many [100]; 0: all")


def _list(client: Client, given: Given) -> None:
    if given.limit < 0:
        raise BadRequest("--limit cannot be negative")
    listed = client.list(**filters.given_filters(given), params=given.params)
    jobs = islice(listed, given.limit or None)
    if given.json:
        hidden = ("result",) if given.params else ("result", "params")
        for status in jobs:
            show.emit(show.status_json(status, hidden))
    else:
        _show_jobs(jobs, given)
    if given.limit and next(listed, None) is not None:
        print(f"the first {given.limit} only (see --limit)", file=sys.stderr)


def _show_jobs(jobs: Iterator[Status], given: Given) -> None:
    """Show jobs in a table, some hundred at a time, since there may be millions."""
    heads = ["id", "state", "module", "key", "due", "attempts", "why", *(["params"] if given.params else [])]
    while some := list(islice(jobs, TABLE_ROWS)):
        rows = [
            (j.id, j.state, j.module, j.key, j.due.isoformat("T", "milliseconds"), j.attempts, j.why, show.to_json(j.params))
            for j in some
        ]
        show.table(heads, [row[: len(heads)] for row in rows])


def _modules_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--local", action="store_true", help="what is installed in this environment; needs no server")


def _modules(client: Client, given: Given) -> None:
    rows = _local_modules() if given.local else list(client.modules())
    if given.json:
        show.emit(show.to_json(rows))
        return
    show.table(
        ("module", "worker", "distribution", "version", "isolation", "served"),
        [(r["module"], r["worker"], r["distribution"], r["version"], r["isolation"], _last_line(r["broken"])) for r in rows],
    )


def _last_line(broken: str | None) -> str:
    return "yes" if broken is None else "no: " + broken.strip().splitlines()[-1]


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


def _workers(client: Client, given: Given) -> None:
    rows = list(client.workers())
    if given.json:
        show.emit(show.to_json(rows))
        return
    show.table(
        ("name", "pid", "running", "capacity", "modules", "broken"),
        [(r["name"], r["pid"], r["running"], _capacity(r), _served(r), " ".join(r["broken"])) for r in rows],
    )
    processes = [_process(row, process) for row in rows for process in row.get("processes", [])]
    if processes:
        show.emit("")
        show.table(("worker", "pid", "runs", "state", "jobs", "MiB", "restarts", "job"), processes)


def _capacity(worker: dict[str, Any]) -> str:
    apart = worker.get("process_capacity", 0)  # A server of an earlier version does not tell.
    return f"{worker['capacity']} + {apart}" if apart else str(worker["capacity"])


def _process(worker: dict[str, Any], process: dict[str, Any]) -> tuple[Any, ...]:
    """What is shown of one of a worker's processes; of one that is blocked, for how long, and by which job."""
    blocked_s = process["blocked_us"] / SECOND_US
    state = process["stack"] if process["state"] == "hook" else process["state"]
    state = f"{state} {blocked_s:.1f} s" if blocked_s else state
    job = f"{process['module']} {uuid.UUID(process['job'])}" if process["job"] else ""
    memory_mib = round(process["memory_bytes"] / MIB)
    return worker["name"], process["pid"], process["role"], state, process["jobs"], memory_mib, process["restarts"], job


def _served(worker: dict[str, Any]) -> str:
    versions = worker.get("versions", {})  # A server of an earlier version does not tell.
    return ", ".join(f"{module} {versions.get(module, '')}".rstrip() for module in worker["modules"])


def _info(client: Client, given: Given) -> None:
    info = client.info()
    if given.json:
        show.emit(show.to_json(info))
        return
    for name, value in info.items():
        show.emit(f"{name:16} {printable(show.to_json(value) if isinstance(value, (dict, list)) else value)}")


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


def _nothing(parser: argparse.ArgumentParser) -> None:
    """A verb without arguments."""


VERBS: Final[dict[str, Verb]] = {
    "enq": Verb("enqueue a job", _enq_arguments, _enq),
    "stat": Verb("show what is known of a job", _stat_arguments, _stat),
    "explain": Verb("say in words why a job has not run, or what became of it", _by_key_or_id, _explain),
    "cancel": Verb("call a job off, or several", _cancel_arguments, _cancel),
    "ext": Verb("push the due of a job or several back, or bring it forward", _ext_arguments, _ext),
    "requeue": Verb("give dead or cancelled jobs another life", _requeue_arguments, _requeue),
    "resume": Verb("end the hold of a server that was started with --hold", _nothing, _resume),
    "list": Verb("list jobs", _list_arguments, _list),
    "modules": Verb("show the modules of the connected workers", _modules_arguments, _modules),
    "workers": Verb("show the connected workers", _nothing, _workers),
    "info": Verb("show what the server is, holds and allows", _nothing, _info),
    "plugins": Verb("show the plugins that are installed here", _nothing, _plugins),
    "store": Verb("look at a store that no server has open, or move its jobs to another", store.arguments, store.act),
    "backup": Verb("copy the store of a running server into a file on this machine", backup.arguments, backup.act),
    "demo": Verb("show the whole thing at work, in a folder of its own", demo.arguments, demo.act),
}

if __name__ == "__main__":
    raise SystemExit(main())
