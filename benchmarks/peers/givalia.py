"""Givalia in the contest: its server and worker as the harness runs them, on SQLite, each job on disk before it is answered."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness

from givalia_core import Client as GivaliaClient
from peers.side import Params


class Rig(harness.Rig):
    """The harness's rig with the interface of the contest."""

    def __init__(self, contestant: Any, jobs: int, folder: str | None) -> None:
        super().__init__(jobs, folder)
        self.python = Path(sys.executable)
        self._settings = {setting.name: setting.value for setting in contestant.worker}

    def begin_work(self) -> None:
        """Start the worker; return when it takes jobs."""
        with self.client() as client:
            self._worker: subprocess.Popen[bytes] = self.start_worker(client, **self._settings)

    def pids(self) -> dict[str, int]:
        """Return the processes of the server and the worker."""
        return {"server": self.server.pid, "worker": self._worker.pid}


class Client:
    """A client whose jobs each have a key, unlike the peers' jobs: Givalia is for keyed jobs."""

    def __init__(self, port: int, in_flight: int) -> None:
        self._client = GivaliaClient(harness.HOST, port)
        self._in_flight = in_flight

    def enq(self, params: Params) -> None:
        """Enqueue one job that is due now."""
        self._sure(self._client.enq(harness.MODULE, params=params, key=_key()))

    def enq_at(self, params: Params, due_us: int) -> None:
        """Enqueue one job, due to the microsecond."""
        at = datetime.fromtimestamp(due_us // 1_000_000, UTC).replace(microsecond=due_us % 1_000_000)
        self._sure(self._client.enq(harness.MODULE, params=params, key=_key(), at=at))

    def enq_batches(self, batches: list[list[Params]]) -> None:
        """Send one frame a batch, with some frames in flight at once."""

        def enq(batch: list[Params]) -> None:
            jobs = [{"module": harness.MODULE, "params": params, "key": _key()} for params in batch]
            for handle in self._client.enq_many(jobs):
                self._sure(handle)

        with ThreadPoolExecutor(self._in_flight) as pool:
            list(pool.map(enq, batches))

    def left(self) -> int:
        """Return the number of jobs that wait or run."""
        counts = self._client.info()["jobs"].get(harness.MODULE, {})
        return sum(counts.get(state, 0) for state in ("waiting", "running"))

    def _sure(self, handle: Any) -> None:
        if handle.durability != "fsync":
            raise harness.Broken("a job was not durable when it was answered")


def _key() -> str:
    """Return a random key: clustered keys would hide the cost of an index."""
    return f"{random.getrandbits(96):024x}"
