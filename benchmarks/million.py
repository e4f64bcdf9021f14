"""A million jobs that wait: what they cost in memory and on disk, and how soon a killed server answers again.

Keyed jobs that are due in an hour are enqueued; the server's memory is read before and after. Then the server is killed with
-9 and started on the same store; the clock runs from the start of its process until it has answered a stat for one of them.
"""

from __future__ import annotations

import random
import sys
import time

import harness
from harness import MIB, Figure, Option

TITLE = "A million waiting"
OPTIONS = (
    Option("jobs", 1_000_000, "jobs that wait"),
    Option("restarts", 3, "times the server is killed; the median is shown"),
)


def measure(jobs: int, restarts: int, folder: str | None = None) -> list[Figure]:
    """One load, several restarts."""
    with harness.Rig(1, folder) as rig:
        before = harness.rss_bytes(rig.server)
        with rig.client() as client:
            began, cpu = time.perf_counter(), harness.cpu_s(rig.server.pid)
            some = harness.enq_in_parts(client, range(jobs), time=3_600)
            seconds = time.perf_counter() - began
            cpu = harness.cpu_s(rig.server.pid) - cpu
            after = harness.rss_bytes(rig.server)
            size = rig.store_bytes()
            waiting = client.info()["jobs"][harness.MODULE]["waiting"]
        if waiting != jobs:
            raise harness.Broken(f"{jobs:,} jobs were enqueued and {waiting:,} wait")
        answers = [_restart(rig, random.choice(some).key, jobs) for _ in range(restarts)]
        restarted = harness.rss_bytes(rig.server)
    return [
        Figure("enq answered", jobs / seconds, "jobs/s"),
        Figure("CPU of the server", cpu / jobs * 1e6, "us a job"),
        Figure("memory of the server, empty", before / MIB, "MiB"),
        Figure("memory of the server, full", after / MIB, "MiB"),
        Figure("memory they cost", (after - before) / MIB, "MiB", most=64),
        Figure("memory after the restart", restarted / MIB, "MiB"),
        Figure("store on disk", size / MIB, "MiB"),
        Figure("store on disk, each", size / jobs, "bytes a job"),
        Figure("kill -9, restart, first answer", harness.quantile(answers, 0.5), "s", most=1),
    ]


def _restart(rig: harness.Rig, key: str, jobs: int) -> float:
    """Seconds from the start of the new process to its answer about one of the jobs."""
    rig.kill_server()
    began = time.perf_counter()
    rig.start_server()
    with rig.client() as client:
        status = client.stat(key)
        seconds = time.perf_counter() - began
        waiting = client.info()["jobs"][harness.MODULE]["waiting"]
    if status.state != "waiting" or waiting != jobs:
        raise harness.Broken(f"after kill -9 {waiting:,} of {jobs:,} jobs wait, and {key} is {status.state}")
    return seconds


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
