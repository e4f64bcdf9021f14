"""A server and workers as processes, on free ports and in their own folder; nothing of them is left afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from givalia_core import Client
from harness.ledger import Broken, Ledger

MODULE: Final = "Noop"
HOST: Final = "127.0.0.1"
START_S: Final = 20.0
CPU_READS_MOST: Final = 100  # The most reads while processes start and end.

_MODULES_FILE: Final = Path(__file__).resolve().parent.parent / "bench_modules.py"
_LISTENING: Final = re.compile(r"listening on .*: clients (\d+), workers (\d+);")


class Rig:
    """A server on a fresh store and workers beside it, on free ports of loopback; all of it is gone after the `with`."""

    def __init__(self, jobs: int, folder: str | None = None, url: str = "") -> None:
        """Make a folder; `jobs` is the number of lines that the ledger needs, `folder` lies on the disk to measure.

        Servers use the store at `url`, which must exist; without `url`, a file in the folder.
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
        """End the processes, gently if possible, and remove the folder."""
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
        """Start the server, on its previous ports if it had some; return when it takes connections."""
        if self.port:
            flags = ("-p", str(self.port), "-w", str(self.worker_port), "--store", self.url)
            self.server = self._start("givalia_core.cli.server", *flags)
            self._await(self._answers, "the server to listen again")
        else:
            self.server, self.port, self.worker_port = self.add_server()

    def add_server(self) -> tuple[subprocess.Popen[bytes], int, int]:
        """Start a server on free ports; return its process, and its ports for clients and workers."""
        log_from = len(self._log.read_text()) if self._log.exists() else 0
        server = self._start("givalia_core.cli.server", "-p", "0", "-w", "0", "--store", self.url)
        found = self._await(lambda: _LISTENING.search(self._log.read_text()[log_from:]), "the server to listen")
        return server, int(found[1]), int(found[2])

    def kill_server(self) -> None:
        """Kill the server with -9."""
        self._children.remove(self.server)
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def start_worker(
        self, client: Client, name: str = "any", concurrency: int = 1_000, port: int = 0, more: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a worker with the modules of the benchmarks on the server's port; return when it takes jobs."""
        flags = ("-w", str(port or self.worker_port), "-n", name, "-c", str(concurrency))
        worker = self._start("givalia_core.cli.worker", *flags, *more)
        self._await(lambda: any(w["pid"] == worker.pid and w["capacity"] for w in client.workers()), f"worker {name}")
        return worker

    def stop_worker(self, worker: subprocess.Popen[bytes]) -> None:
        """Let the worker drain; return when it is gone."""
        self._children.remove(worker)
        worker.terminate()
        worker.wait(START_S)

    def client(self) -> Client:
        """Return a client of the server."""
        return Client(HOST, self.port)

    def store_bytes(self) -> int:
        """Return the size of the store on disk, without its reserve for a full disk."""
        files = [path for path in self.store.parent.rglob("*") if path.is_file() and path.suffix != ".ballast"]
        return sum(path.stat().st_size for path in files)

    def await_done(self, client: Client, jobs: int, seconds: float) -> None:
        """Wait until the server counts this many jobs as done.

        Raises:
            Broken: The jobs were not done in that time, or other jobs are left.
        """
        end = time.monotonic() + seconds
        while (done := self.done(client)) < jobs:
            if time.monotonic() > end:
                raise Broken(f"{jobs:,} jobs should be done after {seconds:g} s; {done:,} are")
            time.sleep(0.005)

    def done(self, client: Client) -> int:
        """Return the number of jobs that the server counts as done."""
        return int(client.info()["jobs"].get(MODULE, {}).get("done", 0))

    def waiting(self, client: Client) -> int:
        """Return the number of waiting jobs, including due ones."""
        return int(client.info()["jobs"].get(MODULE, {}).get("waiting", 0))

    def _start(self, program: str, *flags: str) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GIVALIA_")}
        path = [str(self.folder / "modules"), *filter(None, [environ.get("PYTHONPATH")])]
        # No plugins: the figures are those of Givalia alone.
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
    """Write the parts of an installed package that a worker reads: the module's file and the metadata that names it."""
    metadata = folder / "givalia_bench_modules-0.dist-info"
    metadata.mkdir(parents=True)
    shutil.copy(_MODULES_FILE, folder)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: givalia-bench-modules\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[givalia.modules]\n{MODULE} = bench_modules:Noop\n")
    (metadata / "RECORD").write_text("")


def rss_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the memory that the process holds now."""
    return int(psutil.Process(process.pid).memory_info().rss)


def mapped_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the part of that memory that is pages of files, which the system can reclaim; 0 if that is unknown."""
    return int(getattr(psutil.Process(process.pid).memory_info(), "shared", 0))


def cpu_s(pid: int) -> float:
    """Return the processor seconds of a process and its descendants, including ended ones.

    For the measuring process itself, its children do not count: they are what it measures.
    """
    process = psutil.Process(pid)
    if pid == os.getpid():
        own = process.cpu_times()
        return own.user + own.system
    for _ in range(CPU_READS_MOST):
        try:
            times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
        except psutil.NoSuchProcess:  # A process ended between the list and its read; its parent has its time now.
            continue
        return sum(each.user + each.system + each.children_user + each.children_system for each in times)
    raise psutil.NoSuchProcess(pid, msg="the processes of this one end faster than they can be read")
