"""One tree's part of compare.py: one server and one worker, and a block of jobs for each line of standard input.

The measured packages are those of the Python that runs this file; the code of this folder measures both trees.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Final

import end_to_end
import executors
import harness

Block = Callable[[harness.Rig, harness.Client, subprocess.Popen[bytes], range], dict[str, float]]


def end_to_end_of(rig: harness.Rig, client: harness.Client, worker: subprocess.Popen[bytes], lines: range) -> dict[str, float]:
    """Measure a load in frames of 1,000 jobs, four frames in flight at once."""
    ran = end_to_end.run(rig, client, worker, lines, 1_000, 4)
    return {"end to end, jobs/s": ran.done, "enq answered, jobs/s": ran.answered}


def singles_of(rig: harness.Rig, client: harness.Client, _worker: subprocess.Popen[bytes], lines: range) -> dict[str, float]:
    """Measure jobs one at a time, as greenlets."""
    starts, results = harness.latencies(rig, client, lines)
    return {"enq to start, p50, ms": statistics.median(starts), "enq to result, p50, ms": statistics.median(results)}


def isolated_of(_rig: harness.Rig, client: harness.Client, _worker: subprocess.Popen[bytes], lines: range) -> dict[str, float]:
    """Measure jobs one at a time, in an existing process."""
    took_ms = [executors.round_trip_ms(client, executors.ALONE, line) for line in lines]
    return {"enq to result, p50, ms": statistics.median(took_ms), "enq to result, mean, ms": statistics.fmean(took_ms)}


KINDS: Final[dict[str, tuple[int, Block]]] = {
    # For each measurement: the number of jobs of a block, enough for stable figures.
    "end-to-end": (20_000, end_to_end_of),
    "singles": (300, singles_of),
    "isolated": (200, isolated_of),
}


def main() -> int:
    """Measure a block for each line of standard input, the first as a warm-up; print the figures as JSON, a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("blocks", type=int, help="how many at most")
    parser.add_argument("--folder", help="where to put the store")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # So that server and worker end with this process.
    jobs, block = KINDS[given.kind]
    done = 0
    with harness.Rig(jobs * given.blocks, given.folder) as rig, rig.client() as client:
        if given.kind == "isolated":
            executors.announce_alone(rig)
        worker = rig.start_worker(client)
        print("ready", flush=True)
        for _ in sys.stdin:
            pids = {"server": rig.server.pid, "worker": worker.pid, "client": os.getpid()}
            used_s = {name: harness.cpu_s(pid) for name, pid in pids.items()}
            figures = block(rig, client, worker, range(done, done + jobs))
            for name, pid in pids.items():
                figures[f"CPU of the {name}, us a job"] = (harness.cpu_s(pid) - used_s[name]) / jobs * 1e6
            done += jobs
            print(json.dumps(figures), flush=True)
        rig.ledger.check(range(done))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
