"""`givalia info`, `workers` and `clients`: a server and its connections, in words and tables for people."""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from givalia_core.cli import moments, show
from givalia_core.client import Client
from givalia_core.clock import SECOND_US
from givalia_core.errors import VersionMismatch
from givalia_core.model import JobState
from givalia_core.printable import printable
from givalia_core.times import length_words, to_datetime

MIB: Final = 1 << 20
SIZES: Final = ("KiB", "MiB", "GiB", "TiB")
UNTOLD: Final = "?"  # A server of an earlier version does not tell this.
_TABLES: Final = frozenset({"jobs", "modules", "clients"})
ROWS_MAX: Final = 100  # Of one table of `info`: clients can make up any number of modules.
_TROUBLES: Final = "troubles"

Given = argparse.Namespace


# Connected workers and clients.


def workers(client: Client, given: Given) -> None:
    """Show the connected workers, and the processes of each."""
    rows = list(client.workers())
    if given.json:
        show.emit(show.to_json(rows))
        return
    show.table(
        ("name", "state", "running", "capacity", "address", "pid", "version", "since", "runs", "modules", "broken"),
        [_worker(row) for row in rows],
    )
    processes = [_process(row, process) for row in rows for process in row.get("processes", [])]
    if processes:
        show.emit("")
        show.table(("worker", "pid", "runs", "state", "jobs", "MiB", "restarts", "job"), processes)


def _worker(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the row of a worker; a server of an earlier version tells less."""
    state = "draining" if row.get("draining") else "ready"
    runs = ", ".join(f"{module} {count}" for module, count in sorted(row.get("runs", {}).items()))
    version, since = row.get("version") or UNTOLD, _since(row["since_us"])
    where = row.get("address", UNTOLD), row["pid"], version, since
    return row["name"], state, row["running"], _capacity(row), *where, runs, _served(row), " ".join(row["broken"])


def _capacity(row: dict[str, Any]) -> str:
    apart = row.get("process_capacity", 0)
    return f"{row['capacity']} + {apart}" if apart else str(row["capacity"])


def _served(row: dict[str, Any]) -> str:
    versions = row.get("versions", {})
    return ", ".join(f"{module} {versions.get(module, '')}".rstrip() for module in row["modules"])


def _process(worker: dict[str, Any], process: dict[str, Any]) -> tuple[Any, ...]:
    """Return the row of one of a worker's processes; for a blocked one, since when and by which job."""
    blocked_s = process["blocked_us"] / SECOND_US
    state = process["stack"] if process["state"] == "hook" else process["state"]
    state = f"{state} {blocked_s:.1f} s" if blocked_s else state
    job = f"{process['module']} {uuid.UUID(process['job'])}" if process["job"] else ""
    memory_mib = round(process["memory_bytes"] / MIB)
    return worker["name"], process["pid"], process["role"], state, process["jobs"], memory_mib, process["restarts"], job


def clients(client: Client, given: Given) -> None:
    """Show the clients of this server by address, those with the most connections first."""
    told = client.info()
    if "clients" not in told:
        raise VersionMismatch(f"this server, Givalia {told.get('version', 'of an earlier version')}, does not tell its clients")
    rows = told["clients"]
    if given.json:
        show.emit(show.to_json(rows))
        return
    show.table(
        ("address", "agent", "version", "connections", "since"),
        [(row["address"], row["agent"], row["version"], row["connections"], _since(row["since_us"])) for row in rows],
    )


def _since(us: int) -> str:
    """Return an instant of the past: for a terminal its age in whole seconds, for programs ISO."""
    return _ago(us) if sys.stdout.isatty() else _iso(us)


def _iso(us: int) -> str:
    return to_datetime(us).isoformat(timespec="seconds")


def _ago(us: int) -> str:
    return moments.relative(to_datetime(us).replace(microsecond=0), datetime.now(UTC).replace(microsecond=0))


# The server.


def info(client: Client, given: Given) -> None:
    """Show the server's state, counts and limits."""
    told = client.info()
    if given.json:
        show.emit(show.to_json(told))
        return
    sections = {name: value for name, value in told.items() if isinstance(value, dict) and name not in _TABLES}
    lines("server", ((name, value) for name, value in told.items() if name not in sections and name not in _TABLES))
    for name, section in sections.items():
        show.emit("")
        lasting = {each: value for each, value in section.items() if value is not None} or {"none": None}
        lines(name, (lasting if name == _TROUBLES else section).items())
    if told.get("modules"):
        show.emit("")
        modules(told["modules"])
    if told.get("jobs"):
        show.emit("")
        jobs(told["jobs"])


def lines(title: str, pairs: Iterable[tuple[str, Any]]) -> None:
    """Show a section: its title and a line for each value, with sizes, lengths and counts in words."""
    show.emit(title)
    for name, value in _flat(pairs):
        show.emit(f"  {printable(_plain_name(name)):22} {printable(_in_words(name, value))}".rstrip())


def _flat(pairs: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield the pairs, with each map replaced by its own pairs under both names."""
    for name, value in pairs:
        if isinstance(value, dict):
            yield from _flat((f"{name}_{each}", inner) for each, inner in value.items())
        else:
            yield name, value


def jobs(counted: Mapping[str, dict[str, int]]) -> None:
    """Show the number of jobs by module and state."""
    states = [str(state) for state in JobState]
    _some(("jobs of module", *states), [_counts(module, counts, states) for module, counts in counted.items()])


def modules(told: Mapping[str, dict[str, int]]) -> None:
    """Show each module's workers and the wait of its ready jobs; modules with the longest wait come first."""
    rows = sorted(told.items(), key=lambda row: -row[1].get("ready_age_us", 0))
    heads = "modules", "workers", "oldest ready", "ready, nobody takes them"
    _some(heads, [(module, each["workers"], length_words(each["ready_age_us"]), each["untaken"]) for module, each in rows])


def _some(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    show.table(heads, rows[:ROWS_MAX])
    if len(rows) > ROWS_MAX:
        show.emit(f"... and {len(rows) - ROWS_MAX:,} more; --json has them all")


def _counts(module: str, counts: dict[str, int], states: list[str]) -> list[str]:
    """Return a row of the table; the server counts ready jobs as waiting, too."""
    waiting = max(counts.get(JobState.WAITING, 0) - counts.get(JobState.READY, 0), 0)
    return [module, *(f"{waiting if state == JobState.WAITING else counts.get(state, 0):,}" for state in states)]


def _plain_name(name: str) -> str:
    return name.removesuffix("_us").removesuffix("_at").replace("bytes", "size").replace("_", " ")


def _in_words(name: str, value: Any) -> str:
    """Return a value of `info` for people; the unit in its name tells instants, lengths and sizes apart."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, (list, tuple)):
        return ", ".join(_in_words(name, each) for each in value)
    if not isinstance(value, int):
        return str(value)
    is_instant = name == "now_us" or name.endswith(("started_us", "since_us", "_at_us"))
    if is_instant and not sys.stdout.isatty():
        return _iso(value)
    if name == "now_us":
        return moments.local(to_datetime(value))
    if is_instant:
        return f"{_ago(value)}, {moments.local(to_datetime(value))}"
    if name.endswith("_us"):
        return length_words(value)
    if "bytes" in name:
        return size(value)
    return str(value) if name == "pid" else f"{value:,}"


def size(count: int) -> str:
    """Return a number of bytes for people: `512 bytes`, `16 MiB`, `1.5 GiB`."""
    if count < 1 << 10:
        return f"{count} bytes"
    power = min((count.bit_length() - 1) // 10, len(SIZES))
    return f"{count / (1 << 10 * power):.4g} {SIZES[power - 1]}"
