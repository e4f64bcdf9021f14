"""Durable jobs a second from a client through the server to a worker and back, and how soon a single job starts.

Three processes: this one is the client, the others are the server and one worker. No-op jobs that are due now, each with a
random key, go out in frames; the clock runs from the first enq_many until the server counts the last job as done. The server
answers an enq when the job is on disk. Then single jobs follow, one at a time, on the idle server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import NamedTuple

import harness
from harness import Figure, Option

TITLE = "End to end"
OPTIONS = (
    Option("jobs", 50_000, "jobs of the load"),
    Option("frame", 1_000, "jobs in one frame"),
    Option("in_flight", 4, "frames on their way at once"),
    Option("concurrency", 1_000, "jobs the worker runs at once"),
    Option("singles", 300, "jobs enqueued one at a time"),
    Option("repeats", 3, "rounds, each on a fresh store; the medians are shown"),
)


def measure(
    jobs: int, frame: int, in_flight: int, concurrency: int, singles: int, repeats: int, folder: str | None = None
) -> list[Figure]:
    """Return the medians over the rounds."""
    return harness.medians([_round(jobs, frame, in_flight, concurrency, singles, folder) for _ in range(repeats)])


class Ran(NamedTuple):
    """The result of a load: jobs a second until the last was done and until the last was answered; CPU by process, us a job."""

    done: float
    answered: float
    cpu_us: dict[str, float]


def run(
    rig: harness.Rig, client: harness.Client, worker: subprocess.Popen[bytes], lines: range, frame: int, in_flight: int
) -> Ran:
    """Run the load on an existing server and worker, and wait until all of it is done."""
    load = harness.jobs_of(lines)
    before = rig.done(client)
    pids = {"server": rig.server.pid, "worker": worker.pid, "client": os.getpid()}
    used = {name: harness.cpu_s(pid) for name, pid in pids.items()}
    began = time.perf_counter()
    handles = harness.enq_in_frames(client, load, frame, in_flight)
    enqueued = time.perf_counter()
    handles[-1].wait(120)
    rig.await_done(client, before + len(lines), 120)
    ended = time.perf_counter()
    cpu_us = {name: (harness.cpu_s(pid) - used[name]) / len(lines) * 1e6 for name, pid in pids.items()}
    if {handle.durability for handle in handles} != {"fsync"}:
        raise harness.Broken("not every job was durable when it was answered")
    return Ran(len(lines) / (ended - began), len(lines) / (enqueued - began), cpu_us)


def _round(jobs: int, frame: int, in_flight: int, concurrency: int, singles: int, folder: str | None) -> list[Figure]:
    with harness.Rig(jobs + singles, folder) as rig, rig.client() as client:
        worker = rig.start_worker(client, concurrency=concurrency)
        starts, results = harness.latencies(rig, client, range(jobs, jobs + singles))
        ran = run(rig, client, worker, range(jobs), frame, in_flight)
        rig.ledger.check(range(jobs + singles))
    return [
        Figure("end to end", ran.done, "jobs/s", least=50_000),
        Figure("enq answered, meanwhile", ran.answered, "jobs/s"),
        *(Figure(f"CPU of the {name}", each_us, "us a job") for name, each_us in ran.cpu_us.items()),
        Figure("idle, enq to start, p50", harness.quantile(starts, 0.5), "ms", most=0.7),
        Figure("idle, enq to start, p99", harness.quantile(starts, 0.99), "ms", most=1.5),
        Figure("idle, enq to result, p50", harness.quantile(results, 0.5), "ms"),
        Figure("idle, enq to result, p99", harness.quantile(results, 0.99), "ms"),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
