"""Durable jobs a second from a client through the server to a worker and back, and how soon a single job starts.

Three processes: this one is the client, beside it run the server and one worker. No-op jobs that are due now, each with a
random key, go out in frames; the clock runs from the first enq_many until the server counts the last job as done. Every enq
is answered when it is on disk. Then single jobs, one at a time, on the idle server.
"""

from __future__ import annotations

import os
import sys
import time

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
    """The medians over the rounds."""
    return harness.medians([_round(jobs, frame, in_flight, concurrency, singles, folder) for _ in range(repeats)])


def _round(jobs: int, frame: int, in_flight: int, concurrency: int, singles: int, folder: str | None) -> list[Figure]:
    with harness.Rig(jobs + singles, folder) as rig, rig.client() as client:
        worker = rig.start_worker(client, concurrency=concurrency)
        starts, results = harness.latencies(rig, client, range(jobs, jobs + singles))
        load = harness.jobs_of(range(jobs))
        pids = {"server": rig.server.pid, "worker": worker.pid, "client": os.getpid()}
        used = {name: harness.cpu_s(pid) for name, pid in pids.items()}
        began = time.perf_counter()
        handles = harness.enq_in_frames(client, load, frame, in_flight)
        enqueued = time.perf_counter()
        handles[-1].wait(120)
        rig.await_done(client, jobs + singles, 120)
        ended = time.perf_counter()
        used = {name: harness.cpu_s(pid) - used[name] for name, pid in pids.items()}
        rig.ledger.check(range(jobs + singles))
        if {handle.durability for handle in handles} != {"fsync"}:
            raise harness.Broken("not every job was durable when it was answered")
    return [
        Figure("end to end", jobs / (ended - began), "jobs/s", least=10_000),
        Figure("enq answered, meanwhile", jobs / (enqueued - began), "jobs/s"),
        *(Figure(f"CPU of the {name}", seconds / jobs * 1e6, "us a job") for name, seconds in used.items()),
        Figure("idle, enq to start, p50", harness.quantile(starts, 0.5), "ms"),
        Figure("idle, enq to start, p99", harness.quantile(starts, 0.99), "ms"),
        Figure("idle, enq to result, p50", harness.quantile(results, 0.5), "ms"),
        Figure("idle, enq to result, p99", harness.quantile(results, 0.99), "ms"),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
