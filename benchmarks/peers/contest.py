"""The common measurement of every contestant, in the same order, by the same client program.

One round: a fresh server; jobs enqueued one at a time, then in batches, with no worker; a worker, which drains them and is then
warm; a timed load from the first enqueue until the last job has run and the contestant counts it as done; single jobs on the
idle server; delayed jobs. Every job signs a ledger: a job that was lost or ran twice breaks the round. Then another fresh
server takes and answers jobs, is killed (kill -9) and started again: the jobs that are missing then were lost.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import harness
from harness import Figure

from peers import bring, servers, side

IDLE: Final = 300
DELAYED: Final = 300
DELAYED_OVER_S: Final = 5.0
KILLED: Final = 2_000

_BENCHMARKS: Final = Path(__file__).resolve().parents[1]
_ANSWER_S: Final = 2 * side.PATIENCE_S


class Setting(NamedTuple):
    """A setting of a contestant that differs from its default, or could, and the reason."""

    name: str
    value: Any
    why: str


class Sizes(NamedTuple):
    """The numbers of jobs: enough for several seconds in each part."""

    singles: int
    batched: int
    """0 for a peer that has no batches."""
    load: int

    def scaled(self, scale: float) -> Sizes:
        """Return this share of the numbers, for a quick run."""
        return Sizes(*(max(int(jobs * scale), 1) if jobs else 0 for jobs in self))


class Rig(Protocol):
    """A contestant's server, fresh, and its worker."""

    port: int
    folder: Path
    ledger: harness.Ledger
    python: Path
    """The interpreter of its client."""

    def begin_work(self) -> None:
        """Start the worker."""

    def pids(self) -> dict[str, int]:
        """The processes of the server and the worker."""

    def kill_server(self) -> None:
        """Kill -9."""

    def start_server(self) -> None:
        """Again, on what it left."""


class Contestant(NamedTuple):
    """A contestant."""

    name: str
    module: str
    """Its file in this package."""
    server: str
    """One of `servers.KINDS`; empty for Givalia, which brings its own."""
    sizes: Sizes
    worker: Sequence[Setting] = ()
    client: Sequence[Setting] = ()
    is_library: bool = False
    """True for a job queue for Python, as Givalia is."""
    rig: Callable[[Contestant, int, str | None], contextlib.AbstractContextManager[Rig]] | None = None

    def start(self, jobs: int, folder: str | None) -> contextlib.AbstractContextManager[Rig]:
        """Start a fresh server, with a ledger for this many jobs."""
        return (self.rig or PeerRig)(self, jobs, folder)


class Side:
    """A client or a worker as a process that leads a group: every process that it starts ends with it."""

    def __init__(
        self, role: str, contestant: Contestant, python: Path, port: int, folder: Path, settings: Sequence[Setting]
    ) -> None:
        options = json.dumps({setting.name: setting.value for setting in settings})
        command = [str(python), "-m", "peers.side", role, contestant.module, str(port), str(folder / "ledger"), options]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("GIVALIA_", "dramatiq_"))}
        self._log = folder / f"{role}.log"
        self._name = f"{contestant.name}'s {role}"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environ | {"PYTHONPATH": str(_BENCHMARKS)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.communicate()

    def ask(self, act: str, **told: Any) -> Any:
        """Let a client act; return its answer.

        Raises:
            harness.Broken: The client did not answer.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # A process that has ended has left its reason in the log.
            self._process.stdin.write(json.dumps({"act": act, **told}).encode() + b"\n")
            self._process.stdin.flush()
        return json.loads(self._hear(act))

    def await_ready(self) -> None:
        """Wait until the process has begun."""
        self._hear("start")

    def _hear(self, what: str) -> bytes:
        assert self._process.stdout is not None
        heard = select.select([self._process.stdout], [], [], _ANSWER_S)[0] and self._process.stdout.readline()
        if not heard:
            said = self._log.read_text(errors="replace").strip() or "it said nothing"
            harness.say(f"{self._name} was told to {what}; its log ends:\n{said[-2_000:]}")
            raise harness.Broken(f"{self._name} was told to {what}: {said.splitlines()[-1]}")
        return bytes(heard)


class PeerRig:
    """A peer's server and worker; all of it is gone after the `with`."""

    def __init__(self, contestant: Contestant, jobs: int, folder: str | None) -> None:
        self.python = bring.python()
        self.folder = Path(tempfile.mkdtemp(prefix="givalia-bench-", dir=folder))
        self.ledger = harness.Ledger(self.folder / "ledger", jobs)
        self._contestant = contestant
        self._open = contextlib.ExitStack()
        self._open.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._open.callback(self.ledger.close)

    def __enter__(self) -> PeerRig:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._open)
            self._server = servers.Server(servers.KINDS[self._contestant.server], self.folder / "server")
            undo.pop_all()
        self._open.callback(self._server.kill)
        self.port = self._server.port
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def begin_work(self) -> None:
        """Start the worker; return when it reports that it has begun."""
        worker = Side("worker", self._contestant, self.python, self.port, self.folder, self._contestant.worker)
        self._open.enter_context(worker).await_ready()
        self._worker = worker

    def pids(self) -> dict[str, int]:
        """The processes of the server and the worker."""
        return {"server": self._server.pid, "worker": self._worker.pid}

    def kill_server(self) -> None:
        """Kill -9."""
        self._server.kill()

    def start_server(self) -> None:
        """Again, on its port and its folder."""
        self._server.start()


# One round.

SINGLES: Final = "enqueued one at a time"
BATCHED: Final = f"enqueued in batches of {side.BATCH:,}"
LOAD: Final = "end to end"
IDLE_P50, IDLE_P99 = "idle, enq to start, p50", "idle, enq to start, p99"
LATE_P50, LATE_P99 = "delayed job, start after its due, p50", "delayed job, start after its due, p99"
EARLY: Final = "delayed jobs that started before their due"
CPU: Final = {name: f"end to end, CPU of the {name}" for name in ("client", "worker", "server")}
LOST: Final = "answered jobs that kill -9 of the server lost"

Part = dict[str, int]
"""Consecutive lines of the ledger, as arguments of a client's act."""


def measure(contestant: Contestant, scale: float, folder: str | None) -> list[Figure]:
    """Run one round; return its figures, without those of features that the contestant lacks.

    Raises:
        harness.Broken: A job was lost without a kill, or ran twice, or a process failed.
        bring.Absent: The contestant is not available here.
    """
    idle, delayed, killed = (max(int(jobs * scale), 10) for jobs in (IDLE, DELAYED, KILLED))
    parts = _parts(*contestant.sizes.scaled(scale), idle, delayed)
    with contestant.start(sum(part["jobs"] for part in parts), folder) as rig, _client(contestant, rig) as client:
        singles, batched, load, idle_jobs, delayed_jobs = parts
        figures = [
            *_handed_over(rig, client, singles, batched),
            *_end_to_end(rig, client, load),
            *_idle(rig, client, idle_jobs),
            *(late := _late(rig, client, delayed_jobs, DELAYED_OVER_S * min(scale, 1.0))),
        ]
        rig.ledger.check(_lines(parts if late else parts[:-1]))
    return [*figures, Figure(LOST, lost_by_kill(contestant, killed, folder), f"of {killed:,}")]


def _handed_over(rig: Rig, client: Side, singles: Part, batched: Part) -> list[Figure]:
    """Enqueue with no worker; then let one drain all jobs, which warms it up."""
    figures = [Figure(SINGLES, singles["jobs"] / client.ask("singles", **singles), "jobs/s")]
    if batched["jobs"]:
        figures.append(Figure(BATCHED, batched["jobs"] / client.ask("batches", **batched), "jobs/s"))
    rig.begin_work()
    for part in (singles, batched):
        client.ask("drain", **part)
    return figures


def _end_to_end(rig: Rig, client: Side, load: Part) -> list[Figure]:
    pids = {"client": client.pid, **rig.pids()}
    before = {name: harness.cpu_s(pid) for name, pid in pids.items()}
    rate = load["jobs"] / client.ask("load", **load)
    cpu_us = {name: (harness.cpu_s(pid) - before[name]) / load["jobs"] * 1e6 for name, pid in pids.items()}
    return [Figure(LOAD, rate, "jobs/s"), *(Figure(words, cpu_us[name], "us a job") for name, words in CPU.items())]


def _idle(rig: Rig, client: Side, idle: Part) -> list[Figure]:
    began_us = client.ask("idle", **idle)
    starts_ms = [(rig.ledger.started_us(line) - us) / 1e3 for line, us in zip(_lines([idle]), began_us, strict=True)]
    return [
        Figure(IDLE_P50, harness.quantile(starts_ms, 0.5), "ms"),
        Figure(IDLE_P99, harness.quantile(starts_ms, 0.99), "ms"),
    ]


def _late(rig: Rig, client: Side, delayed: Part, over_s: float) -> list[Figure]:
    """Measure delayed jobs; return nothing for a contestant without delays."""
    dues_us = client.ask("delays", **delayed, over_s=over_s)
    if dues_us is None:
        return []
    late_ms = [(rig.ledger.started_us(line) - us) / 1e3 for line, us in zip(_lines([delayed]), dues_us, strict=True)]
    return [
        Figure(LATE_P50, harness.quantile(late_ms, 0.5), "ms"),
        Figure(LATE_P99, harness.quantile(late_ms, 0.99), "ms"),
        Figure(EARLY, sum(late < 0 for late in late_ms), f"of {len(late_ms):,}"),
    ]


def lost_by_kill(contestant: Contestant, jobs: int, folder: str | None) -> int:
    """Return the number of answered jobs that are lost if the server is killed at the last answer and started again."""
    with contestant.start(jobs, folder) as rig:
        with _client(contestant, rig) as client:
            client.ask("singles", first=0, jobs=jobs)
            rig.kill_server()
        rig.start_server()
        with _client(contestant, rig) as client:
            return jobs - int(client.ask("left"))


@contextlib.contextmanager
def _client(contestant: Contestant, rig: Rig) -> Iterator[Side]:
    with Side("client", contestant, rig.python, rig.port, rig.folder, contestant.client) as client:
        client.await_ready()
        yield client


def _parts(*counts: int) -> list[Part]:
    """Return consecutive parts of these numbers of lines."""
    firsts = itertools.accumulate((0, *counts[:-1]))
    return [{"first": first, "jobs": jobs} for first, jobs in zip(firsts, counts, strict=True)]


def _lines(parts: Sequence[Part]) -> Iterator[int]:
    for part in parts:
        yield from range(part["first"], part["first"] + part["jobs"])
