"""The gain of a separate process for the store: the load of `end_to_end.py`, batches and single jobs, in both ways.

The two ways take turns, each time on a fresh store. `apart.py` describes the protocol between server and store; the server's
processor time includes that of the store's process.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Final

import end_to_end
import harness
from harness import Figure, Option
from harness.crowd import Crowd

TITLE = "The store in a process of its own"
OPTIONS = (
    Option("jobs", 50_000, "jobs end to end"),
    Option("batches", 100_000, "jobs that wait, enqueued in batches"),
    Option("frame", 1_000, "jobs in one frame"),
    Option("in_flight", 4, "frames on their way at once"),
    Option("singles", 300, "jobs enqueued one at a time"),
    Option("rounds", 3, "rounds with each of the two, in turn; the medians are shown"),
)
_HERE: Final = Path(__file__).resolve().parent


def measure(
    jobs: int, batches: int, frame: int, in_flight: int, singles: int, rounds: int, folder: str | None = None
) -> list[Figure]:
    """Return the medians of both ways, and their ratio."""
    before = os.environ.get("PYTHONPATH", "")
    with tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path:
        _make_distribution(Path(path))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [path, str(_HERE), before]))

        def load(scheme: str) -> list[Figure]:
            url = f"{scheme}://{tempfile.mkdtemp(dir=path)}"
            return [
                *_end_to_end(f"{url}/run.db", jobs, frame, in_flight, singles),
                *_batches(f"{url}/batches.db", batches, frame, in_flight),
            ]

        try:
            return harness.in_turn(rounds, "in the server", "apart", [lambda: load("sqlite"), lambda: load("apart")])
        finally:
            os.environ["PYTHONPATH"] = before


def _make_distribution(folder: Path) -> None:
    """Write the metadata that a server reads for the scheme of a store."""
    metadata = folder / "givalia_bench_apart-0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: givalia-bench-apart\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text("[givalia.stores]\napart = apart:Apart\n")
    (metadata / "RECORD").write_text("")


def _end_to_end(url: str, jobs: int, frame: int, in_flight: int, singles: int) -> list[Figure]:
    with harness.Rig(jobs + singles, url=url) as rig, rig.client() as client:
        worker = rig.start_worker(client)
        starts, _ = harness.latencies(rig, client, range(jobs, jobs + singles))
        ran = end_to_end.run(rig, client, worker, range(jobs), frame, in_flight)
        rig.ledger.check(range(jobs + singles))
    return [
        Figure("end to end", ran.done, "jobs/s"),
        *(Figure(f"CPU of the {name}", each_us, "us a job") for name, each_us in ran.cpu_us.items()),
        Figure("idle, enq to start, p50", harness.quantile(starts, 0.5), "ms"),
    ]


def _batches(url: str, jobs: int, frame: int, in_flight: int) -> list[Figure]:
    plan = {"do": "batches", "first": 0, "stop": jobs, "frame": frame, "in_flight": in_flight, "due": {"between": (60, 3_660)}}
    with harness.Rig(1, url=url) as rig, rig.client() as client, Crowd(rig.port, [plan]) as crowd:
        _, (done,) = crowd.run()
        if rig.waiting(client) != jobs:
            raise harness.Broken(f"{jobs:,} jobs were accepted and {rig.waiting(client):,} wait")
    return [Figure(f"batches of {frame:,}, one client", jobs / done["seconds"], "jobs/s")]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
