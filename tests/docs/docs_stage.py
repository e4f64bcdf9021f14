"""Real processes for the snippets: a server and a worker on free ports, and all that a page starts.

Every snippet with port 12322 or 12323 runs with the ports of this stage instead, and with a state folder of its own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from givalia_core import Client, GivaliaError
from givalia_core.cli.common import READY_FD

PATIENCE_S = 60.0  # Deadline for what an idle machine does in a second or two.
LIVE = ("waiting", "ready", "running")


class Program:
    """A server or worker as a process; made when it is ready, and ended by `stop`."""

    def __init__(self, module: str, arguments: list[str], environ: dict[str, str], folder: Path, log: Path) -> None:
        self.log = log
        readable, writable = os.pipe()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env={**environ, READY_FD: str(writable), "PYTHONUNBUFFERED": "1"},
                    pass_fds=(writable,),
                )
            os.close(writable)
            writable = -1
            ready, _, _ = select.select([readable], [], [], PATIENCE_S)
            if not ready or os.read(readable, 16) != b"ready":
                self._process.kill()
                self._process.wait()
                raise AssertionError(f"{module} {' '.join(arguments)} did not start:\n{log.read_text()}")
        finally:
            os.close(readable)
            if writable >= 0:
                os.close(writable)

    def stop(self) -> int:
        """Let it drain; its exit code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Stage:
    """A server and a worker that live as long as the tests, and the environment in which snippets find them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.worker_port = free_ports()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIVALIA")}
        self.environ = {
            **kept,
            "XDG_STATE_HOME": str(folder / "state"),
            "GIVALIA_PORT": str(self.port),
            "GIVALIA_WORKER_PORT": str(self.worker_port),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self._programs: list[Program] = []

    def __enter__(self) -> Stage:
        self._programs.append(self.start("givalia_core.cli.server", [], self.environ, self.folder))
        self._programs.append(self.start("givalia_core.cli.worker", [], self.environ, self.folder))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for program in reversed(self._programs):
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.stop()

    def start(self, module: str, arguments: list[str], environ: dict[str, str], folder: Path) -> Program:
        """Start a program; back when it listens, or is connected."""
        log = folder / f"{module.rsplit('.', 1)[1]}-{len(list(folder.glob('*.log')))}.log"
        return Program(module, arguments, environ, folder, log)

    def local(self, code: str) -> str:
        """A snippet with the ports of this stage."""
        return code.replace("12322", str(self.port)).replace("12323", str(self.worker_port))

    def clear(self) -> None:
        """Call off whatever is left of other pages, so that each begins with every key free."""
        with Client("127.0.0.1", self.port) as client:
            for status in list(client.list()):
                if status.state in LIVE:
                    with contextlib.suppress(GivaliaError):  # It has ended meanwhile.
                        client.cancel(id=status.id, running=True)

    def run(
        self, *arguments: str, environ: dict[str, str] | None = None, folder: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments to its end."""
        return subprocess.run(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_S,
            cwd=folder or self.folder,
            env=environ or self.environ,
        )


def free_ports() -> tuple[int, int]:
    """Two ports that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]
