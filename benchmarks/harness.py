"""What every benchmark shares: a server and workers as processes, a ledger that proves what ran, and a table of figures.

Nothing is printed that was not measured in this run, beside a calibration of the machine it ran on. A load whose jobs did
not all run once, or of which one began before its time, raises `Broken`: its figures would mean nothing. The harness never
touches a server, store or file that it did not make.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import mmap
import os
import platform
import random
import re
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import psutil

from givalia_core import Client, GivaliaError, PartlyRefused

MODULE: Final = "Noop"
HOST: Final = "127.0.0.1"
START_S: Final = 20.0
MIB: Final = 1 << 20
PART: Final = 50_000  # Jobs that a benchmark holds at once, however many it enqueues.

_HERE: Final = Path(__file__).resolve().parent
_LISTENING: Final = re.compile(r"listening on .*: clients (\d+), workers (\d+);")


class Broken(Exception):
    """A promise was not kept during a load: what was measured with it is worth nothing."""


# The proof.


class Ledger:
    """A file with a line for each job, mapped by workers too: how often it ran, when it last began, when it was due."""

    def __init__(self, path: Path, jobs: int) -> None:
        path.write_bytes(bytes(24 * max(jobs, 1)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._lines = memoryview(self._map).cast("q")

    def started_us(self, line: int) -> int:
        """When the job began on the wall clock; 0 if it has not."""
        return self._lines[3 * line + 1]

    def late_us(self, line: int) -> int:
        """How long after its due the job began."""
        return self._lines[3 * line + 1] - self._lines[3 * line + 2]

    def check(self, lines: Iterable[int]) -> None:
        """Raise `Broken` unless every one of these jobs ran once, and not before its due."""
        lines = list(lines)
        lost = sum(self._lines[3 * line] == 0 for line in lines)
        doubled = sum(self._lines[3 * line] > 1 for line in lines)
        early = sum(self.late_us(line) < 0 for line in lines)
        if lost or doubled or early:
            raise Broken(f"of {len(lines):,} jobs {lost} were lost, {doubled} ran more than once, {early} began early")
        say(f"{len(lines):,} jobs: each ran once, none lost, none early")

    def close(self) -> None:
        """Let the file go."""
        self._lines.release()
        self._map.close()


# The processes.


class Rig:
    """A server on a fresh store and workers beside it, on free ports of loopback; all of it is gone after the `with`."""

    def __init__(self, jobs: int, folder: str | None = None, url: str = "") -> None:
        """Make a folder; `jobs` is how many lines the ledger needs, `folder` lies on the disk to be measured.

        With the `url` of a store that is made already, servers use that one; else a file in the folder.
        """
        self.folder = Path(tempfile.mkdtemp(prefix="givalia-bench-", dir=folder))
        self.ledger = Ledger(self.folder / "ledger", jobs)
        self.store = self.folder / "store" / "queue.db"
        self.url = url or f"sqlite://{self.store}"
        self.port = self.worker_port = 0
        self._children: list[subprocess.Popen[bytes]] = []
        self._log = self.folder / "log"

    def __enter__(self) -> Rig:
        try:
            _make_distribution(self.folder / "modules")
            self.start_server()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes, gently where they let us, and remove the folder."""
        for child in reversed(self._children):
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.ledger.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start_server(self) -> None:
        """Start the server, again on its ports if it had some; returns when it takes connections."""
        if self.port:
            flags = ("-p", str(self.port), "-w", str(self.worker_port), "--store", self.url)
            self.server = self._start("givalia_core.cli.server", *flags)
            self._await(self._answers, "the server to listen again")
        else:
            self.server, self.port, self.worker_port = self.add_server()

    def add_server(self) -> tuple[subprocess.Popen[bytes], int, int]:
        """Start a server on free ports; it, and its ports for clients and workers."""
        log_from = len(self._log.read_text()) if self._log.exists() else 0
        server = self._start("givalia_core.cli.server", "-p", "0", "-w", "0", "--store", self.url)
        found = self._await(lambda: _LISTENING.search(self._log.read_text()[log_from:]), "the server to listen")
        return server, int(found[1]), int(found[2])

    def kill_server(self) -> None:
        """Kill -9."""
        self._children.remove(self.server)
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def start_worker(
        self, client: Client, name: str = "any", concurrency: int = 1_000, port: int = 0, more: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker with the modules of the benchmarks, of the server with that port; returns when it takes jobs."""
        flags = ("-w", str(port or self.worker_port), "-n", name, "-c", str(concurrency))
        worker = self._start("givalia_core.cli.worker", *flags, *more)
        self._await(lambda: any(w["pid"] == worker.pid and w["capacity"] for w in client.workers()), f"worker {name}")
        return worker

    def stop_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Let it drain; returns when it is gone."""
        self._children.remove(worker)
        worker.terminate()
        worker.wait(START_S)

    def client(self) -> Client:
        """A client of the server."""
        return Client(HOST, self.port)

    def store_bytes(self) -> int:
        """What the store takes on disk, without the reserve it keeps for a full disk."""
        return sum(path.stat().st_size for path in self.store.parent.iterdir() if not path.name.endswith(".ballast"))

    def await_done(self, client: Client, jobs: int, seconds: float) -> None:
        """Wait until the server counts so many jobs as done.

        Raises:
            Broken: They were not in that time, or other jobs are left.
        """
        end = time.monotonic() + seconds
        while (counts := client.info()["jobs"].get(MODULE, {})).get("done", 0) < jobs:
            if time.monotonic() > end:
                raise Broken(f"{jobs:,} jobs should be done after {seconds:g} s; there are {counts}")
            time.sleep(0.005)

    def _start(self, program: str, *flags: str) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GIVALIA_")}
        path = [str(self.folder / "modules"), *filter(None, [environ.get("PYTHONPATH")])]
        # What is measured is Givalia; what a plugin does for each job has its own price.
        environ |= {"GIVALIA_PLUGINS": "", "PYTHONPATH": os.pathsep.join(path), "BENCH_LEDGER": str(self.folder / "ledger")}
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", program, *flags]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)
        self._children.append(child)
        return child

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((HOST, self.port), timeout=1).close()
            return True
        return False

    def _await(self, look: Callable[[], Any], what: str) -> Any:
        end = time.monotonic() + START_S
        while not (found := look()):
            if time.monotonic() > end or any(child.poll() is not None for child in self._children):
                raise Broken(f"waited in vain for {what}; the log says:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.002)
        return found


def _make_distribution(folder: Path) -> None:
    """As much of an installed package as a worker looks at: the module's file and the metadata that names it."""
    metadata = folder / "givalia_bench_modules-0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(_HERE / "bench_modules.py", folder)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: givalia-bench-modules\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[givalia.modules]\n{MODULE} = bench_modules:Noop\n")
    (metadata / "RECORD").write_text("")


def rss_bytes(process: subprocess.Popen[bytes]) -> int:
    """The memory that the process holds now."""
    return int(psutil.Process(process.pid).memory_info().rss)


def cpu_s(pid: int) -> float:
    """The processor time that a process has used, and those that it has started; of the one that measures, its own alone."""
    process = psutil.Process(pid)
    started = [] if pid == os.getpid() else process.children(recursive=True)
    times = [each.cpu_times() for each in (process, *started)]
    return sum(each.user + each.system for each in times)


# The load.


def jobs_of(lines: range, **options: Any) -> list[dict[str, Any]]:
    """A job for each line of the ledger, with a random key: clustered ones would hide what an index costs."""
    return [{"module": MODULE, "params": line, "key": f"{random.getrandbits(96):024x}", **options} for line in lines]


def enq_in_frames(client: Client, jobs: Sequence[dict[str, Any]], frame: int, in_flight: int) -> list[Any]:
    """Enqueue in frames of so many jobs, with so many frames on their way; returns the handles, in order."""
    parts = [jobs[start : start + frame] for start in range(0, len(jobs), frame)]
    with ThreadPoolExecutor(in_flight) as pool:
        return [handle for handles in pool.map(client.enq_many, parts) for handle in handles]


def enq_in_parts(client: Client, lines: range, **options: Any) -> list[Any]:
    """Enqueue more jobs than this process should hold at once, as one enq_many a part; returns one handle of each part."""
    some: list[Any] = []
    for start in range(lines.start, lines.stop, PART):
        jobs = jobs_of(range(start, min(start + PART, lines.stop)), **options)
        try:
            some.append(random.choice(client.enq_many(jobs)))
        except PartlyRefused as refused:
            why = next(answer for answer in refused.answers if isinstance(answer, GivaliaError))
            raise Broken(f"{refused}: {why}") from None
    say(f"{len(lines):,} jobs are enqueued")
    return some


def latencies(rig: Rig, client: Client, lines: range) -> tuple[list[float], list[float]]:
    """Enqueue one job at a time: for each the milliseconds to its start, and to its result in the client's hands."""
    starts: list[float] = []
    results: list[float] = []
    for line in lines:
        began_ns = time.time_ns()
        handle = client.enq(MODULE, params=line, key=f"single-{line}")
        handle.wait(30)
        results.append((time.time_ns() - began_ns) / 1e6)
        starts.append(rig.ledger.started_us(line) / 1e3 - began_ns / 1e6)
        time.sleep(0.002)  # An idle server is asked, not one that still tidies up after the job before.
    return starts, results


# The figures.


class Figure(NamedTuple):
    """One measured value; `least` or `most` is what we aim at, where we aim at something."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None

    @property
    def aim(self) -> str:
        """The aim in words."""
        if self.least is not None:
            return f"at least {_shown(self.least)}"
        return "" if self.most is None else f"at most {_shown(self.most)}"

    @property
    def is_reached(self) -> bool | None:
        """Whether the aim is reached; None if there is none."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most


def quantile(values: Iterable[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def medians(rounds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Of several rounds of the same figures, the median of each."""
    return [same[0]._replace(value=statistics.median(each.value for each in same)) for same in zip(*rounds, strict=True)]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """The figures for people: one to a line, its aim beside it, and whether it is reached."""
    words = {True: "reached", False: "MISSED", None: ""}
    rows = [(each.name, _shown(each.value), each.unit, each.aim, words[each.is_reached]) for each in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:{widths[0]}}  {value:>{widths[1]}} {unit:{widths[2]}}  {aim:{widths[3]}}  {reached}".rstrip()
        for name, value, unit, aim, reached in rows
    )


def say(words: str) -> None:
    """A line about what happens, on standard error: standard output is for the figures."""
    print(f"  {words}", file=sys.stderr, flush=True)


# The machine.


def calibrate(folder: str | None) -> list[Figure]:
    """What this machine and this disk do just now, without Givalia: figures of two days are compared by these."""
    return [
        Figure("fdatasync of 4 KiB, p50", _fdatasync_ms(folder), "ms"),
        Figure("loopback round trip, p50", _round_trip_ms(), "ms"),
        Figure("a million turns of a Python loop", _loop_ms(), "ms"),
    ]


def _fdatasync_ms(folder: str | None) -> float:
    sync = getattr(os, "fdatasync", os.fsync)
    took: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(200):
            began = time.perf_counter()
            os.pwrite(file.fileno(), bytes(4096), 0)
            sync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


_ECHO: Final = (
    "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
    "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\nwhile data := s.recv(4096): s.sendall(data)"
)


def _round_trip_ms() -> float:
    took: list[float] = []
    with socket.create_server((HOST, 0)) as listener:
        echo = subprocess.Popen([sys.executable, "-c", _ECHO, str(listener.getsockname()[1])])
        connection, _ = listener.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(2_000):
                began = time.perf_counter()
                connection.sendall(bytes(64))
                connection.recv(4096)
                took.append(time.perf_counter() - began)
    echo.wait()
    return statistics.median(took) * 1e3


def _loop_ms() -> float:
    began = time.perf_counter()
    total = 0
    for number in range(1_000_000):
        total += number
    return (time.perf_counter() - began) * 1e3


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    packages = {name: importlib.metadata.version(name) for name in ("gevent", "msgpack", "pluggy")}
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{platform.system()} {platform.release()}, {os.cpu_count()} cores"
    return {"python": python, "sqlite": sqlite3.sqlite_version, **packages, "machine": machine}


# The programs.


class Option(NamedTuple):
    """A flag of a benchmark: its name as `measure` takes it, its default, and what it means."""

    name: str
    default: Any
    words: str


def options_of(benchmark: ModuleType) -> dict[str, Any]:
    """The defaults of a benchmark's options."""
    return {option.name: option.default for option in benchmark.OPTIONS}


def arguments(words: str | None, options: Sequence[Option]) -> argparse.ArgumentParser:
    """A parser with these options and the two that every benchmark has."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, help_words in options:
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true", help=help_words)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"{help_words} (default: %(default)s)")
    # Whoever stops a benchmark early leaves no process and no folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser.add_argument("--folder", help="where to put the store: a folder on the disk to be measured (default: the system's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for standard output, without the table")
    return parser


def report(sections: dict[str, list[Figure]], file: str | None) -> int:
    """Print the figures, and write them as JSON if a file is named; returns the exit code, 1 if an aim is missed."""
    if file:
        known = {"versions": versions(), **{title: [_mapped(each) for each in figures] for title, figures in sections.items()}}
        text = json.dumps(known, indent=2)
        if file == "-":
            print(text)
        else:
            Path(file).write_text(text + "\n", encoding="utf-8")
    if file != "-":
        print(" · ".join(f"{name} {version}" for name, version in versions().items()))
        for title, figures in sections.items():
            print(f"\n{title}\n{table(figures)}")
    return int(any(each.is_reached is False for figures in sections.values() for each in figures))


def _mapped(figure: Figure) -> dict[str, Any]:
    return {**figure._asdict(), "reached": figure.is_reached}


def main(benchmark: ModuleType) -> int:
    """Run one benchmark as a program: its OPTIONS as flags, its `measure`, then calibration and table."""
    given = vars(arguments(benchmark.__doc__, benchmark.OPTIONS).parse_args())
    file = given.pop("json")
    sections = {"This machine": calibrate(given["folder"])}
    try:
        sections[benchmark.TITLE] = benchmark.measure(**given)
    except (Broken, GivaliaError) as broken:
        say(f"BROKEN: {broken}")
        return 2
    return report(sections, file)
