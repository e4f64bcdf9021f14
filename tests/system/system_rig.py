"""Real processes for a test: servers, workers and the command line, on free ports, with their own store.

Every wait is for an event or a condition, and has a deadline.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from system_install import Installed, clean_environment
from waits import await_true

from givalia_core import Client

START_S = 20.0
"""Time for a process to start. Generous, because the machine may be busy."""


class Running:
    """A process that a test started, and what it said."""

    def __init__(self, command: Sequence[str], environ: dict[str, str], folder: Path, label: str) -> None:
        self.label = label
        self._out, self._err = folder / f"{label}.out", folder / f"{label}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                command, env=environ, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        self.pid = self._process.pid

    @property
    def out(self) -> str:
        """Its standard output so far."""
        return self._out.read_text(errors="replace")

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return self._err.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def await_log(self, pattern: str, seconds: float = START_S, count: int = 1) -> re.Match[str]:
        """The match of a pattern in its log (the `count`th)."""

        def look() -> re.Match[str] | None:
            ended = not self.is_alive
            found = list(re.finditer(pattern, self.log))
            if len(found) >= count:
                return found[count - 1]
            assert not ended, f"{self.label} ended with {self._process.returncode}:\n{self.log}"
            return None

        try:
            return await_true(look, f"{pattern!r} in the log of {self.label}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-4000:]}") from None

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 15.0) -> int:
        """Its exit code."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.label} has not ended in {seconds:g} s:\n{self.log[-4000:]}") from None

    def kill(self) -> None:
        """Kill -9."""
        if self.is_alive:
            self._process.kill()
        self._process.wait()

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM; its exit code."""
        self.send(signal.SIGTERM)
        return self.wait(seconds)


class ServerProcess(Running):
    """A server that listens."""

    port = 0
    worker_port = 0

    def await_ports(self) -> ServerProcess:
        """Wait until it takes commands."""
        found = self.await_log(r"listening on \S+: clients (\d+), workers (\d+)")
        self.port, self.worker_port = int(found[1]), int(found[2])
        return self


class Rig:
    """Starts processes of one environment, and ends them all."""

    def __init__(self, installed: Installed, folder: Path) -> None:
        self.installed = installed
        self.folder = folder
        self.store = folder / "store" / "queue.db"
        self.environ = {**clean_environment(), "XDG_STATE_HOME": str(folder / "state"), "HOME": str(folder / "home")}
        self._processes: list[Running] = []
        self._number = itertools.count()
        self.client_class: Any = Client
        self._clients: list[Client] = []
        self._daemons: list[int] = []
        self.server: ServerProcess | None = None

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for client in self._clients:
            client.close()
        for process in self._processes:
            process.kill()
        for pid in self._daemons:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self, program: str, *flags: object, **environ: str) -> Running:
        """Start a program in the foreground of nobody."""
        return self._started(Running, program, flags, environ)

    def _started(self, kind: type[Any], program: str, flags: Iterable[object], environ: dict[str, str]) -> Any:
        label = f"{next(self._number):02d}-{Path(program).name}"
        command = [program if "/" in program else self.installed.program(program), *map(str, flags)]
        process = kind(command, {**self.environ, **environ}, self.folder, label)
        self._processes.append(process)
        return process

    def start_server(self, *flags: object, **environ: str) -> ServerProcess:
        """A server on the rig's store; on the ports of the one before it, if there was one."""
        before = self.server
        ports = ("-p", before.port if before else 0, "-w", before.worker_port if before else 0)
        server: ServerProcess = self._started(
            ServerProcess, "givalia-server", (*ports, "--store", f"sqlite://{self.store}", *flags), environ
        )
        self.server = server.await_ports()
        return server

    def start_patched_server(self, patch: str, *flags: object, before: Sequence[str] = ()) -> ServerProcess:
        """A server in whose process this Python was run first; for limits that are too long for a test."""
        code = f"{patch}\nfrom givalia_core.cli.server import main\nraise SystemExit(main())\n"
        file = self.folder / f"patched-{next(self._number)}.py"
        file.write_text(code)
        command = [*before, str(self.installed.python), str(file)]
        flags = (*command[1:], "-p", 0, "-w", 0, "--store", f"sqlite://{self.store}", *flags)
        server: ServerProcess = self._started(ServerProcess, command[0], flags, {})
        self.server = server.await_ports()
        return server

    def start_worker(self, *flags: object, connected: bool = True, **environ: str) -> Running:
        """A worker of the rig's server."""
        assert self.server is not None
        worker: Running = self._started(Running, "givalia-worker", ("-w", self.server.worker_port, *flags), environ)
        if connected:
            worker.await_log("connected to")
        return worker

    def hosts_of(self, worker: Running) -> list[int]:
        """The processes in which a worker runs greenlets and plugins."""
        with Client("127.0.0.1", self.server.port if self.server else 0) as client:

            def look() -> list[int]:
                (shown,) = (each for each in client.workers() if each["pid"] == worker.pid)
                return [each["pid"] for each in shown["processes"] if each["role"] == "greenlets"]

            return await_true(look, "the worker shows its processes")

    def client(self, **options: Any) -> Client:
        """A client of the rig's server."""
        assert self.server is not None
        client: Client = self.client_class("127.0.0.1", self.server.port, **options)
        self._clients.append(client)
        return client

    def own_daemon(self, pid: int) -> int:
        """A process that went to the background is ended with the rig, too."""
        self._daemons.append(pid)
        return pid

    def run(self, program: str, *flags: object, timeout: float = 30.0, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            [self.installed.program(program), *map(str, flags)],
            env={**self.environ, **environ},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def cli(self, *words: object, **environ: str) -> subprocess.CompletedProcess[str]:
        """A verb of `givalia` at the rig's server."""
        assert self.server is not None
        return self.run("givalia", "-p", self.server.port, *words, **environ)

    def cli_json(self, *words: object) -> Any:
        """The one value that a verb with --json says."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def lines_of(file: Path) -> list[list[str]]:
    """The words of each whole line that jobs have written."""
    if not file.exists():
        return []
    return [line.split() for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
