"""The cost of enqueuing waiting jobs: one at a time, by fifty clients, in batches by one client and by several.

No worker runs, the jobs fall due within an hour, and each has a random key. Single enqs are compared with the machine's limit:
an insert that the store alone commits, in the same folder, plus a loopback round trip; both are measured in this run, in turn
with the enqs. The fifty clients are one light process; each waits for its answer before it sends the next job.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Figure, Option
from harness.alone import StoreAlone
from harness.crowd import Crowd, shares

TITLE = "Handing jobs over"
OPTIONS = (
    Option("singles", 2_000, "jobs enqueued one at a time"),
    Option("connections", 50, "clients that enqueue one job at a time together"),
    Option("together", 50_000, "jobs they enqueue"),
    Option("batches", 100_000, "jobs enqueued in batches"),
    Option("frame", 1_000, "jobs in one batch"),
    Option("in_flight", 4, "batches of one client on their way at once"),
    Option("clients", 2, "client processes, where there are several"),
    Option("repeats", 3, "rounds, each on a fresh store; the medians are shown"),
)
DUE_S = (60, 3_660)
TURN = 200  # Enqs or inserts in a row; they take turns because the disk's speed changes.


def measure(
    singles: int,
    connections: int,
    together: int,
    batches: int,
    frame: int,
    in_flight: int,
    clients: int,
    repeats: int,
    folder: str | None = None,
) -> list[Figure]:
    """Return the medians over the rounds."""
    rounds = [
        [
            *_one_by_one(singles, folder),
            *_together(connections, together, folder),
            *_in_batches(batches, frame, in_flight, 1, folder),
            *_in_batches(batches, frame, in_flight, clients, folder),
        ]
        for _ in range(repeats)
    ]
    return harness.medians(rounds)


def _one_by_one(jobs: int, folder: str | None) -> list[Figure]:
    round_trip_ms = harness.round_trip_ms()
    enqs: list[float] = []
    inserts: list[float] = []
    with (
        harness.Rig(1, folder) as rig,
        rig.client() as client,
        tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path,
        StoreAlone(Path(path) / "queue.db") as alone,
    ):
        for first in range(0, jobs, TURN):
            for line in range(first, min(first + TURN, jobs)):
                job = harness.jobs_of(range(line, line + 1), time=random.uniform(*DUE_S))[0]
                began = time.perf_counter()
                handle = client.enq(**job)
                enqs.append(time.perf_counter() - began)
                if handle.durability != "fsync":
                    raise harness.Broken("a job was not durable when it was answered")
            inserts += [alone.insert(1, round(random.uniform(*DUE_S) * 1e6)).seconds for _ in range(TURN)]
        _check_waiting(rig, client, jobs)
    rate, allowed = jobs / sum(enqs), 1 / (sum(inserts) / len(inserts) + round_trip_ms / 1e3)
    return [
        Figure("one at a time, one client", rate, "jobs/s"),
        Figure("one at a time, p50", harness.quantile(enqs, 0.5) * 1e3, "ms"),
        Figure("one at a time, p99", harness.quantile(enqs, 0.99) * 1e3, "ms"),
        Figure("an insert by the store alone, mean", sum(inserts) / len(inserts) * 1e3, "ms"),
        Figure("that and a loopback round trip allow", allowed, "jobs/s"),
        Figure("one at a time, of what they allow", 100 * rate / allowed, "%", least=75),
    ]


def _together(connections: int, jobs: int, folder: str | None) -> list[Figure]:
    plan = {"do": "together", "first": 0, "jobs": jobs, "connections": connections, "due": {"between": DUE_S}}
    with harness.Rig(1, folder) as rig, rig.client() as client, Crowd(rig.port, [plan]) as crowd:
        cpu = harness.cpu_s(rig.server.pid)
        _, (done,) = crowd.run()
        cpu = harness.cpu_s(rig.server.pid) - cpu
        _check_waiting(rig, client, jobs)
    words = f"one at a time, {connections} clients together"
    return [
        Figure(words, jobs / done["seconds"], "jobs/s", least=25_000),
        Figure(f"{words}, CPU of the server", cpu / jobs * 1e6, "us a job"),
        Figure(f"{words}, CPU of the clients", done["cpu_s"] / jobs * 1e6, "us a job"),
    ]


def _in_batches(jobs: int, frame: int, in_flight: int, clients: int, folder: str | None) -> list[Figure]:
    same = {"do": "batches", "frame": frame, "in_flight": in_flight, "due": {"between": DUE_S}}
    plans = [{**same, "first": first, "stop": stop} for first, stop in shares(range(jobs), clients)]
    with harness.Rig(1, folder) as rig, rig.client() as client, Crowd(rig.port, plans) as crowd:
        cpu = harness.cpu_s(rig.server.pid)
        seconds, each = crowd.run()
        cpu = harness.cpu_s(rig.server.pid) - cpu
        _check_waiting(rig, client, jobs)
    if clients == 1:
        words, least, seconds = f"batches of {frame:,}, one client", 60_000, each[0]["seconds"]
    else:
        words, least = f"batches of {frame:,}, {clients} clients", 80_000
    return [
        Figure(words, jobs / seconds, "jobs/s", least=least),
        Figure(f"{words}, CPU of the server", cpu / jobs * 1e6, "us a job"),
    ]


def _check_waiting(rig: harness.Rig, client: harness.Client, jobs: int) -> None:
    waiting = rig.waiting(client)
    if waiting != jobs:
        raise harness.Broken(f"{jobs:,} jobs were accepted and {waiting:,} wait")


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
