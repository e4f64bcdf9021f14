"""A ward for deadly jobs: one server and one worker for all of them, and close checks of what each death leaves behind."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import psutil
from system_rig import Rig, Running
from waits import await_true

from givalia_core import Client, JobFailed, ResultLost, Status

GREENLET: Final = "greenlet"
PROCESS: Final = "process"
EXECUTORS: Final = (GREENLET, PROCESS)
NEXT_S: Final = 2.0
LEASE_S: Final = 5.0
LIMIT_S: Final = 1.0  # The timeout of jobs that would never end.
_MODULES: Final = {GREENLET: ("End", "Probe"), PROCESS: ("EndApart", "ProbeApart")}
_ENDLESS: Final = ("busy_python", "busy_c", "deadlock", "deaf", "timeout")


class Death(NamedTuple):
    """The end of a job, and the time until the next one on the same executor was done."""

    status: Status
    next_s: float

    @property
    def recorded(self) -> str:
        """Return it as one line of the record."""
        status = self.status
        if status.state == "done":
            return ", ".join(filter(None, ("done", status.result_error)))
        lines = (status.error or "").splitlines() or [""]
        return lines[0] if lines[0].startswith(("child_died", "timeout", "oom")) else lines[-1]


class Pipe:
    """The standard output of the worker: a pipe that somebody reads, though not always."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.count = 0
        """Bytes read."""
        self.flows = threading.Event()
        self.flows.set()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with self.path.open("rb", buffering=0) as pipe:
            while data := pipe.read(1 << 20):
                self.count += len(data)
                self.flows.wait()


class Ward:
    """One worker that everything happens to, with one process for jobs that want one of their own."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        server = rig.start_server("--backoff", "0", "--lease", LEASE_S)
        self.pipe = Pipe(rig.folder / "pipe")
        flags = f"-w {server.worker_port} -c 20 --processes 1 --stop-grace 0.3"
        worker = rig.installed.program("givalia-worker")
        self.worker: Running = rig.start("/bin/sh", "-c", f"exec '{worker}' {flags} > '{self.pipe.path}'")
        self.worker.await_log("connected to")
        self.client: Client = rig.client()
        self._supervisor = psutil.Process(self.worker.pid)
        self._found = {executor: self.probe(executor) for executor in EXECUTORS}
        self._files = self._list_files()
        self._fds = self._supervisor.num_fds()

    def probe(self, executor: str) -> Any:
        """Return the state that the next job of an executor finds."""
        return self.client.enq(_MODULES[executor][1], max_attempts=1).wait(15)

    def die(self, executor: str, how: str, *, is_alike: bool = True, **options: Any) -> Death:
        """Let a job end; the worker must serve the next one at once, which finds everything as it was (`is_alike`)."""
        options = {"max_attempts": 1, "timeout": LIMIT_S if how in _ENDLESS else None, **options}
        job = self.client.enq(_MODULES[executor][0], params=how, **options)
        with contextlib.suppress(JobFailed, ResultLost):
            job.wait(20)
        started = time.monotonic()
        found = self.probe(executor)
        next_s = time.monotonic() - started
        assert found == self._found[executor] or not is_alike
        assert next_s < NEXT_S, self.worker.log[-4000:]
        (worker,) = self.client.workers()
        assert worker["pid"] == self.worker.pid
        return Death(job.stat(), next_s)

    @property
    def nursery(self) -> psutil.Process:
        """The process that has made the others."""
        (nursery,) = self._supervisor.children()
        return nursery

    def await_clean(self) -> None:
        """Wait until there is no process, no file and no descriptor that was not there before."""
        try:
            await_true(lambda: not self.left(), "nothing is left", 5.0)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.left()}\n{self.worker.log[-4000:]}") from None

    def left(self) -> list[str]:
        """Return in words what was not there before."""
        left = []
        try:
            nurseries = self._supervisor.children()
            members = [member for nursery in nurseries for member in nursery.children()]
            below = [process for member in members for process in member.children(recursive=True)]
            every = [*nurseries, *members, *below]
            if (len(nurseries), len(members), len(below)) != (1, len(EXECUTORS), 0):
                left.append(f"processes: {every}")
            if any(process.status() == psutil.STATUS_ZOMBIE for process in every):
                left.append("zombies")
        except psutil.NoSuchProcess:
            left.append("processes that end")
        if (fds := self._supervisor.num_fds()) != self._fds:
            left.append(f"{fds - self._fds} descriptors of the supervisor")
        if files := self._list_files() - self._files:
            left.append(f"files: {files}")
        return left

    def _list_files(self) -> set[str]:
        """List the files in the worker's folder and its state folder, without core dumps of the system."""
        folders = (self.rig.folder, self.rig.folder / "state", self.rig.folder / "home")
        names = {str(file) for folder in folders if folder.exists() for file in folder.rglob("*")}
        return {name for name in names if "store/" not in name and not Path(name).name.startswith("core")}
