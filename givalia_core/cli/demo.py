"""`givalia demo`: server, worker and jobs at work, in a temporary folder and on free ports, for people to watch.

The demo starts a server and a worker as processes and enqueues jobs; it pushes one back and cancels one. Then it kills the
server with -9 while jobs wait, starts it again, and all jobs run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Final

from givalia_core import modules as modules_room
from givalia_core.client import Client, JobHandle
from givalia_core.errors import GivaliaError, ModuleClash, NotFound
from givalia_core.headline import headline

MODULE: Final = "Sample"
START_S: Final = 15.0
END_S: Final = 20.0
COLOURS: Final = {"demo": "36", "server": "33", "worker": "32"}


def arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing: the demo has no arguments."""


def act(_: Client, __: argparse.Namespace) -> None:
    """Run the demo; raise `NotFound` if the example package is not installed."""
    found = modules_room.discover().get(MODULE)
    if found is None:
        raise NotFound(
            f"the demo runs the module {MODULE} of the package givalia-example-modules, which is not installed here;"
            " from a clone of the project: pip install ./example_modules_pkg"
        )
    if found.broken:
        raise ModuleClash(f"the demo cannot run the module {MODULE}: {headline(found.broken)}")
    folder = Path(tempfile.mkdtemp(prefix="givalia-demo-"))
    try:
        with _Stage(folder) as stage:
            _play(stage)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _play(stage: _Stage) -> None:
    say = stage.say
    say("a server on free ports, with a fresh queue on disk; and a worker beside it")
    stage.start_server()
    stage.start_worker()
    with Client("127.0.0.1", stage.port) as client:
        first = client.enq(MODULE, time=2, params="parameter sample", key="first")
        say(f"enq   first: {MODULE} in 2 s, answered when it was on disk ({first.durability})")
        say(f"stat  first: {client.stat('first').why}")
        late = client.enq(MODULE, time=4, params="it was pushed back", key="pushed")
        say(f"enq   pushed: {MODULE} in 4 s")
        client.ext("pushed", time=4)
        say(f"ext   pushed: 4 s more, so it is due in {_left(client, late)}")
        client.enq(MODULE, time=3, params="THIS MUST NEVER BE SEEN", key="dropped")
        say(f"enq   dropped: {MODULE} in 3 s")
        say(f"cancel dropped: {client.cancel('dropped')}; it will not run")
        first.wait(END_S)
        say("first has run. Two more, and while they wait the server is killed with -9")
        waiting = [client.enq(MODULE, time=3, params=f"survivor {n}", key=f"survivor-{n}") for n in (1, 2)]
        for handle in waiting:
            say(f"enq   {handle.key}: {MODULE} in 3 s")
        stage.kill_server()
        say("the server is gone, the jobs are on disk. It starts again on the same queue")
        stage.start_server()
        for handle in [*waiting, late]:
            handle.wait(END_S)
            say(f"{handle.key} has run")
        say(f"dropped: {client.stat('dropped').why}")
        done = sum(1 for status in client.list("done"))
        say(f"{done} jobs done, 1 cancelled, 1 server killed, 0 lost")
        if done != 4:
            raise GivaliaError(f"the demo should have done 4 jobs, and did {done}")


def _left(client: Client, handle: JobHandle) -> str:
    return f"{client.stat(id=handle.id).timeleft or 0:.1f} s"


class _Stage:
    """The processes of the demo, their output, and their end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.port, self._worker_port = _free_ports()

    def __enter__(self) -> _Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
                continue
            process.kill()

    def say(self, words: str, who: str = "demo") -> None:
        """Write a line to standard output, after the time in seconds and the speaker."""
        head = f"{time.monotonic() - self._started:5.1f} s  {who:6} "
        if self._is_coloured:
            head = f"\x1b[{COLOURS[who]}m{head}\x1b[0m"
        with self._lock:
            print(f"{head} {words}", flush=True)

    def start_server(self) -> None:
        """Start (again) on the same ports and the same queue."""
        store = f"sqlite://{self._folder / 'queue.db'}"
        self._start("server", "givalia_core.cli.server", "-p", str(self.port), "-w", str(self._worker_port), "--store", store)
        _await_port(self.port)

    def start_worker(self) -> None:
        """Start a worker for the installed modules."""
        self._start("worker", "givalia_core.cli.worker", "-w", str(self._worker_port), "-n", "demo")

    def kill_server(self) -> None:
        """Kill the server with -9, like a crash."""
        process = self._processes.pop("server")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    def _start(self, who: str, module: str, *flags: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GIVALIA_")}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *flags],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Only errors, so that the jobs' own output can be seen.
            env={
                **environ,
                "PYTHONUNBUFFERED": "1",
                "GIVALIA_LOG_LEVEL": "warning",
                "GIVALIA_LOGGING_LEVEL": "warning",
                "GIVALIA_LOGGING_FORMAT": "readable",
            },
        )
        self._processes[who] = process
        assert process.stdout is not None
        threading.Thread(target=self._pass_on, args=(who, process.stdout), daemon=True).start()

    def _pass_on(self, who: str, output: IO[str]) -> None:
        for line in output:
            self.say(line.rstrip(), who)


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        return one.getsockname()[1], two.getsockname()[1]


def _await_port(port: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
