"""The cost of each place to run a job: as a greenlet, in an existing process, in a new process.

One job at a time on an idle server and worker, from enq to the client's result: each figure includes server and disk, so the
differences are those of the executors. Then workers, one after the other: each is timed until the server has its credits; then
its host is killed, and the clock runs until the next job has ended.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import harness
import psutil
from harness import Figure, Option

TITLE = "Executors"
ALONE = "Alone"
OPTIONS = (
    Option("singles", 300, "jobs enqueued one at a time, as greenlets and in a process that is used again"),
    Option("fresh", 100, "jobs that have a new process each"),
    Option("starts", 10, "workers that are started, and lose a process"),
)


def measure(singles: int, fresh: int, starts: int, folder: str | None = None) -> list[Figure]:
    """Measure each round trip on a worker that does nothing else; then the starts."""
    with harness.Rig(2 * singles + fresh + starts + 2, folder) as rig, rig.client() as client:
        announce_alone(rig)
        lines = iter(range(2 * singles + fresh + starts + 2))
        worker = rig.start_worker(client)
        round_trip_ms(client, ALONE, next(lines))
        warm = [round_trip_ms(client, ALONE, next(lines)) for _ in range(singles)]
        round_trip_ms(client, harness.MODULE, next(lines))
        greenlet = [round_trip_ms(client, harness.MODULE, next(lines)) for _ in range(singles)]
        rig.stop_worker(worker)
        worker = rig.start_worker(client, more=("--jobs-per-process", "1"))
        new = [round_trip_ms(client, ALONE, next(lines)) for _ in range(fresh)]
        rig.stop_worker(worker)
        ready: list[float] = []
        replaced: list[float] = []
        for _ in range(starts):
            began = time.perf_counter()
            worker = rig.start_worker(client)
            ready.append((time.perf_counter() - began) * 1e3)
            replaced.append(_replacement_ms(client, worker.pid, next(lines)))
            rig.stop_worker(worker)
        rig.ledger.check(range(2 * singles + fresh + starts + 2))
    return [
        *_figures("greenlet, enq to result", greenlet),
        *_figures("process that is there, enq to result", warm),
        *_figures("new process, enq to result", new),
        Figure("worker, start until it takes jobs, p50", harness.quantile(ready, 0.5), "ms"),
        Figure("worker, start until it takes jobs, at most", max(ready), "ms"),
        Figure("host killed until the next job has ended, p50", harness.quantile(replaced, 0.5), "ms"),
        Figure("host killed until the next job has ended, at most", max(replaced), "ms"),
    ]


def _figures(name: str, took_ms: list[float]) -> list[Figure]:
    return [
        Figure(f"{name}, p50", harness.quantile(took_ms, 0.5), "ms"),
        Figure(f"{name}, p99", harness.quantile(took_ms, 0.99), "ms"),
    ]


def announce_alone(rig: harness.Rig) -> None:
    """Announce `Alone` by a second distribution, so that other benchmarks have workers without processes for jobs."""
    metadata = rig.folder / "modules" / "givalia_bench_alone-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: givalia-bench-alone\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(f"[givalia.modules]\n{ALONE} = bench_modules:Alone\n")
    (metadata / "RECORD").write_text("")


def round_trip_ms(client: harness.Client, module: str, line: int) -> float:
    """Enqueue one job, and wait for its result; return the milliseconds."""
    time.sleep(0.002)  # So that the server is idle again after the previous job.
    began = time.perf_counter()
    client.enq(module, params=harness.params_of(line)).wait(30)
    return (time.perf_counter() - began) * 1e3


def _replacement_ms(client: harness.Client, supervisor: int, line: int) -> float:
    """Kill the host, the nursery's only process while no job wants its own; return the ms until the next job has ended."""
    (nursery,) = psutil.Process(supervisor).children()
    (host,) = nursery.children()
    began = time.perf_counter()
    os.kill(host.pid, signal.SIGKILL)
    host.wait(10)
    client.enq(harness.MODULE, params=harness.params_of(line)).wait(30)
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
