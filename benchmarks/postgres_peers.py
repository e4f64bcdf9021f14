"""Durable no-op jobs a second on PostgreSQL, end to end: Procrastinate, PgQueuer and Givalia, side by side.

Each has one worker process, one client process that enqueues in bulk, and its own fresh PostgreSQL with the default durability.
The clock runs from the first enqueue until the last job is recorded as done; the worker runs meanwhile and has run some jobs
before. The peers have their best settings: those that their documentation advises, else the fastest here, each with its reason
beside it. Every job signs a ledger: a job that was lost or ran twice breaks the measurement.

The newest versions of the peers are installed into `build/peers-venv`; remove that folder to update them. Givalia needs a store
for `postgresql:`; without one it is left out.

This file runs in two environments: as the benchmark in Givalia's, and as a peer's client or worker in the peers'. Packages
that only one environment has are imported at their use.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import psutil
    from harness import Figure

_HERE: Final = Path(__file__).resolve().parent
_VENV: Final = _HERE.parent / "build" / "peers-venv"
_RIG: Final = _HERE.parent / "tests" / "postgres"

REQUIREMENTS: Final = ("procrastinate", "pgqueuer[asyncpg]", "psycopg[binary,pool]", "uvloop")
WARM: Final = 500  # Jobs before the clock runs: they open connections, prepare statements, and show that both sides work.
START_S: Final = 30.0

TITLE: Final = "On PostgreSQL, end to end"

PROCRASTINATE: Final[dict[str, Any]] = {
    # A worker fetches one job at a time and meanwhile records the previous ones as done. A higher value is only slower here.
    "concurrency": 4,
    # batch_defer: one INSERT for this many jobs. Enqueueing is ten times as fast as the rest; more at once slows the worker.
    "batch": 1_000,
    "in_flight": 1,
}
"""Left at their defaults, since nothing was faster: LISTEN/NOTIFY, and done jobs stay in their table."""

PGQUEUER: Final[dict[str, Any]] = {
    # Its guide to tuning advises larger batches for short jobs; the default of 10 does an eighth of this, 3,000 no more.
    "dequeue": 1_000,
    # One INSERT for this many jobs; more at once is no faster.
    "batch": 1_000,
    "in_flight": 1,
}
"""Durable is its default, too; `balanced`, which may lose its log of done jobs, does 7 % more."""


class Broken(Exception):
    """A peer did not do the work that is measured."""


class Figures(NamedTuple):
    """One round of one contestant."""

    jobs: int
    """The jobs that ran: all of them, unless the time was up."""
    seconds: float
    enqueued_s: float
    """The seconds that the client took to enqueue the jobs, while the first already ran."""
    cpu: dict[str, float]
    """The processor time of each kind of process."""


def params_of(line: int) -> dict[str, Any]:
    """Return a job's params, some 30 bytes as JSON; `line` is its line in the ledger."""
    return {"line": line, "note": f"{line:010d}"}


# A peer's side: runs in the peers' environment.


def signer(ledger: str, jobs: int) -> Callable[[int], None]:
    """Return the function that each job calls with its line; it signs the ledger, and reports the first and last job."""
    with Path(ledger).open("r+b") as file:
        lines = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
    ran = 0

    def sign(line: int) -> None:
        nonlocal ran
        lines[3 * line] += 1
        lines[3 * line + 1] = time.time_ns() // 1_000
        ran += 1
        if ran in (WARM, WARM + jobs):
            print("ran", flush=True)

    return sign


async def enqueue_on_cue(enqueue: Callable[[list[dict[str, Any]]], Any], jobs: int, batch: int, in_flight: int) -> None:
    """Enqueue the warm-up jobs; then, on command, all others, with `in_flight` batches at once."""
    await enqueue([params_of(line) for line in range(jobs, jobs + WARM)])
    load = [params_of(line) for line in range(jobs)]
    batches = iter([load[start : start + batch] for start in range(0, jobs, batch)])

    async def some() -> None:
        for each in batches:
            await enqueue(each)

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(in_flight)))
    print(time.perf_counter() - began, flush=True)
    await asyncio.to_thread(sys.stdin.readline)


@contextlib.asynccontextmanager
async def procrastinate_app(url: str, connections: int) -> AsyncIterator[Any]:
    """An open Procrastinate app on a pool of our own, with all its connections from the start.

    Its documentation describes this for an app with its own pool. The connector's pool would probe the connection before each
    query, and send BEGIN and COMMIT around it, though it is a transaction by itself. This way is three times as fast.
    """
    import procrastinate
    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

    async def configure(connection: AsyncConnection) -> None:
        await connection.set_autocommit(True)

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))
    async with AsyncConnectionPool(url, min_size=connections, max_size=connections, configure=configure, open=False) as pool:
        await pool.wait()
        async with app.open_async(pool):
            yield app


async def procrastinate_worker(url: str, ledger: str, jobs: int, concurrency: int, **_: Any) -> None:
    """Run Procrastinate's worker. For short jobs it needs a connection for each concurrent job, and one more."""
    async with procrastinate_app(url, concurrency + 1) as app:
        await app.schema_manager.apply_schema_async()
        sign = signer(ledger, jobs)

        @app.task(name="noop", queue="jobs")
        async def noop(line: int, note: str) -> None:
            sign(line)

        print("ready", flush=True)
        await app.run_worker_async(queues=["jobs"], concurrency=concurrency)


async def procrastinate_client(url: str, ledger: str, jobs: int, batch: int, in_flight: int, **_: Any) -> None:
    """Run Procrastinate's client."""
    async with procrastinate_app(url, in_flight) as app:

        @app.task(name="noop", queue="jobs")
        async def noop(line: int, note: str) -> None: ...

        await enqueue_on_cue(lambda batch: noop.batch_defer_async(*batch), jobs, batch, in_flight)


async def pgqueuer_worker(url: str, ledger: str, jobs: int, dequeue: int, **_: Any) -> None:
    """Run PgQueuer's worker, by its checklist: asyncpg, a connection for the manager and not a pool, autovacuum tuned."""
    import asyncpg
    from pgqueuer import PgQueuer
    from pgqueuer.db import AsyncpgDriver
    from pgqueuer.models import Job
    from pgqueuer.queries import Queries

    sign = signer(ledger, jobs)

    driver = AsyncpgDriver(await asyncpg.connect(url))
    manager = PgQueuer(driver)
    queries = Queries(driver)
    await queries.install()
    await queries.optimize_autovacuum()

    @manager.entrypoint("noop")
    async def noop(job: Job) -> None:
        assert job.payload is not None
        sign(json.loads(job.payload)["line"])

    print("ready", flush=True)
    await manager.run(batch_size=dequeue)


async def pgqueuer_client(url: str, ledger: str, jobs: int, batch: int, in_flight: int, **_: Any) -> None:
    """Run PgQueuer's client, by its checklist: on a pool."""
    import asyncpg
    from pgqueuer.db import AsyncpgPoolDriver
    from pgqueuer.queries import Queries

    async with asyncpg.create_pool(url, min_size=in_flight, max_size=in_flight) as pool:
        queries = Queries(AsyncpgPoolDriver(pool))

        async def enqueue(some: list[dict[str, Any]]) -> None:
            payloads: list[bytes | None] = [json.dumps(params).encode() for params in some]
            await queries.enqueue(["noop"] * len(some), payloads, [0] * len(some))

        await enqueue_on_cue(enqueue, jobs, batch, in_flight)


def run_side(name: str, url: str, ledger: str, jobs: str, settings: str) -> None:
    """Run a peer's client or worker until told to end.

    It runs on uvloop: PgQueuer's own programs do, and Procrastinate's worker gains, too.
    """
    import uvloop

    if name.endswith("worker"):  # A client reads its own input, to the end.
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    uvloop.run(globals()[name](url, ledger, int(jobs), **json.loads(settings)))


# The benchmark's side.


class Side:
    """A peer's client or worker as a process. It ends with this process, which closes its input."""

    def __init__(self, name: str, url: str, ledger: Path, jobs: int, settings: dict[str, Any]) -> None:
        program = "import sys, postgres_peers; postgres_peers.run_side(*sys.argv[1:])"
        command = [str(_VENV / "bin" / "python"), "-c", program, name, url, str(ledger), str(jobs), json.dumps(settings)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PROCRASTINATE_"))}
        self._name = name
        self._process = subprocess.Popen(
            command, env=environ | {"PYTHONPATH": str(_HERE)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def go(self) -> None:
        """Tell a client to begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def hear(self, seconds: float = START_S) -> str | None:
        """Return the next line of its output; None if there is none in that time.

        Raises:
            Broken: The process ended.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], max(seconds, 0))[0]:
            return None
        if not (line := self._process.stdout.readline()):
            raise Broken(f"{self._name} ended with {self._process.wait()}")
        return line.decode()

    def must_say(self, what: str) -> None:
        """Wait for this line."""
        if (heard := self.hear()) is None or heard.strip() != what:
            raise Broken(f"{self._name} should have said {what!r}, and said {heard!r}")


class Peer(NamedTuple):
    """A contestant that is not Givalia."""

    name: str
    settings: dict[str, Any]
    left: str
    """The SQL that counts the jobs that are not recorded as done."""

    def __call__(self, url: str, jobs: int, seconds: float) -> Figures:
        """Run one round on an empty database."""
        import harness
        import psycopg

        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="givalia-bench-")))
            ledger = harness.Ledger(folder / "ledger", jobs + WARM)
            stack.callback(ledger.close)
            worker = stack.enter_context(Side(f"{self.name}_worker", url, folder / "ledger", jobs, self.settings))
            worker.must_say("ready")
            client = stack.enter_context(Side(f"{self.name}_client", url, folder / "ledger", jobs, self.settings))
            client.must_say("ready")
            worker.must_say("ran")
            database = stack.enter_context(psycopg.connect(url, autocommit=True))
            end = time.monotonic() + START_S
            self._await_none_left(database, end)
            pids = {"client": client.pid, "worker": worker.pid}
            before = _cpu_s(pids, url)
            began = time.perf_counter()
            end = time.monotonic() + seconds
            client.go()
            all_ran = worker.hear(end - time.monotonic()) is not None
            in_time = all_ran and self._await_none_left(database, end)
            took = time.perf_counter() - began
            after = _cpu_s(pids, url)
            enqueued = client.hear(0)
            lines = range(jobs) if in_time else [line for line in range(jobs) if ledger.started_us(line)]
            if not in_time:
                harness.say(f"the time was up: {len(lines):,} of {jobs:,} jobs had run")
            ledger.check(lines)
            return Figures(len(lines), took, float(enqueued or took), {name: after[name] - before[name] for name in after})

    def _await_none_left(self, database: Any, end: float) -> bool:
        while database.execute(self.left).fetchone()[0]:
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True


def givalia(url: str, jobs: int, seconds: float = 60.0) -> Figures:
    """Run one round of Givalia on an empty database: a server and a worker as processes, this process as the client."""
    import harness

    def done(client: Any) -> int:
        return int(client.info()["jobs"].get(harness.MODULE, {}).get("done", 0))

    with harness.Rig(jobs + WARM, url=url) as rig, rig.client() as client:
        worker = rig.start_worker(client)
        # Each job has a key, unlike the peers' jobs: Givalia is for keyed jobs.
        load = harness.jobs_of(range(jobs + WARM))
        client.enq_many(load[jobs:])
        rig.await_done(client, WARM, START_S)
        pids = {"client": os.getpid(), "server": rig.server.pid, "worker": worker.pid}
        before = _cpu_s(pids, url)
        began = time.perf_counter()
        handles = harness.enq_in_frames(client, load[:jobs], frame=1_000, in_flight=4)
        enqueued = time.perf_counter()
        while (ran := done(client) - WARM) < jobs and time.perf_counter() < began + seconds:
            time.sleep(0.005)
        took = time.perf_counter() - began
        after = _cpu_s(pids, url)
        if ran == jobs:
            rig.ledger.check(range(jobs))
        else:
            harness.say(f"the time was up: {ran:,} of {jobs:,} jobs had run")
        if {handle.durability for handle in handles} != {"fsync"}:
            raise Broken("not every job was durable when it was answered")
    return Figures(ran, took, enqueued - began, {name: after[name] - before[name] for name in after})


def _cpu_s(pids: dict[str, int], url: str) -> dict[str, float]:
    """Return the processor time of these processes, and of all processes of the database, including ended ones."""
    import harness
    import psutil

    used = {name: harness.cpu_s(pid) for name, pid in pids.items()}
    postmaster = _postmaster(url)
    times = postmaster.cpu_times()
    used["database"] = times.user + times.system + times.children_user + times.children_system
    for process in postmaster.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            used["database"] += harness.cpu_s(process.pid)
    return used


def _postmaster(url: str) -> psutil.Process:
    import psutil
    import psycopg

    with psycopg.connect(url) as connection:
        return psutil.Process(psutil.Process(connection.info.backend_pid).ppid())


def install_peers() -> dict[str, str]:
    """Install the peers, unless they are installed; return the versions of everything installed."""
    python = _VENV / "bin" / "python"
    mark = _VENV / ".installed"
    if not mark.exists():
        venv.create(_VENV, with_pip=True, clear=True)
        quietly = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([python, *quietly, *REQUIREMENTS], check=True)
        mark.touch()
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True).stdout
    wanted = ("procrastinate", "pgqueuer", "psycopg", "asyncpg", "uvloop")
    return {each["name"]: each["version"] for each in json.loads(listed) if each["name"] in wanted}


def has_givalia_store() -> bool:
    """Return whether a store for PostgreSQL is installed here."""
    return bool(importlib.metadata.entry_points(group="givalia.stores", name="postgresql"))


def figures_of(round_: Figures) -> list[Figure]:
    """Return a round in the form of the other benchmarks."""
    from harness import Figure

    return [
        Figure("end to end", round_.jobs / round_.seconds, "jobs/s"),
        Figure("enqueued, meanwhile", round_.jobs / round_.enqueued_s, "jobs/s"),
        *(Figure(f"CPU of the {name}", used / round_.jobs * 1e6, "us a job") for name, used in round_.cpu.items()),
    ]


def side_by_side(sections: dict[str, list[Figure]]) -> str:
    """Return the figures for people: a line for each figure, a column for each contestant."""
    names = list(dict.fromkeys(figure.name for figures in sections.values() for figure in figures))
    rows = [("", *sections, "")]
    for name in names:
        found = [next((each for each in figures if each.name == name), None) for figures in sections.values()]
        unit = next(each.unit for each in found if each)
        rows.append((name, *(f"{each.value:,.0f}" if each else "-" for each in found), unit))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [f"{first:{widths[0]}}", *(f"{word:>{width}}" for word, width in zip(middle, widths[1:-1], strict=True)), last]
        )
        for first, *middle, last in rows
    )


class Contestant(NamedTuple):
    """A contestant and its number of jobs, enough for some seconds."""

    jobs: int
    measure: Callable[[str, int, float], Figures]


_PROCRASTINATE_LEFT: Final = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
_PGQUEUER_LEFT: Final = "SELECT count(*) FROM pgqueuer"  # A done job moves to the log.

CONTESTANTS: Final = {
    "Procrastinate": Contestant(5_000, Peer("procrastinate", PROCRASTINATE, _PROCRASTINATE_LEFT)),
    "PgQueuer": Contestant(50_000, Peer("pgqueuer", PGQUEUER, _PGQUEUER_LEFT)),
    "Givalia": Contestant(50_000, givalia),
}


def rounds(names: list[str], repeats: int, seconds: float, scale: float) -> tuple[dict[str, list[Figure]], str]:
    """Return the medians of each contestant's rounds, and the version of PostgreSQL.

    The contestants take turns, so that other load of the machine affects all of them.
    """
    import harness
    import psycopg

    sys.path.insert(0, str(_RIG))
    from postgres_rig import Postgres

    found: dict[str, list[list[Figure]]] = {name: [] for name in names}
    version = ""
    for number in range(repeats):
        for name in names:
            harness.say(f"{name}, round {number + 1}")
            with Postgres.start() as postgres:
                with psycopg.connect(postgres.url()) as connection:
                    version = str(connection.execute("SHOW server_version").fetchone()[0])
                contestant = CONTESTANTS[name]
                jobs = max(int(contestant.jobs * scale), 1)
                found[name].append(figures_of(contestant.measure(postgres.url(), jobs, seconds)))
    return {name: harness.medians(figures) for name, figures in found.items()}, version


def main() -> int:
    """Measure all available contestants, and print one table."""
    import harness

    from givalia_core import GivaliaError

    options = (
        harness.Option("repeats", 3, "rounds, each on a fresh database; the medians are shown"),
        harness.Option("seconds", 60.0, "when a contestant is stopped, whatever it has done by then"),
        harness.Option("scale", 1.0, "share of the jobs"),
        harness.Option("only", "", "contestants, with commas between"),
    )
    given = harness.arguments(__doc__, options).parse_args()
    names = given.only.split(",") if given.only else list(CONTESTANTS)
    if "Givalia" in names and not has_givalia_store():
        harness.say("no store for postgresql: is installed; Givalia is left out")
        names.remove("Givalia")
    if given.folder:
        tempfile.tempdir = given.folder  # For the rig of PostgreSQL, too.
    peers = install_peers()
    machine = harness.calibrate(given.folder)
    try:
        sections, version = rounds(names, given.repeats, given.seconds, given.scale)
    except (Broken, harness.Broken, GivaliaError) as broken:
        harness.say(f"BROKEN: {broken}")
        return 2
    versions = {**harness.versions(), "postgresql": version, **peers}
    known = {
        title: [harness.mapped(each) for each in figures] for title, figures in {"This machine": machine, **sections}.items()
    }
    text = json.dumps({"versions": versions, **known}, indent=2)
    if given.json == "-":
        print(text)
        return 0
    if given.json:
        Path(given.json).write_text(text + "\n", encoding="utf-8")
    print(" · ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"\nThis machine\n{harness.table(machine)}\n\n{TITLE}\n{side_by_side(sections)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
