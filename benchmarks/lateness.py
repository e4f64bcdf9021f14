"""The lateness of jobs, on an otherwise idle server and beside a steady load; no job may begin before its due.

Jobs with due times spread at random over some seconds wait on the server. Each notes in the ledger its start and its due; the
difference includes the timer, the claim on disk, the wire and the worker's greenlet. Then the same again while a client
enqueues no-op jobs at a steady pace and the worker runs them beside the others.
"""

from __future__ import annotations

import random
import sys
import time

import harness
from harness import Figure, Option
from harness.crowd import Crowd

TITLE = "Lateness"
LEAD_S = 2.0  # The first due is that far ahead, so that all jobs are enqueued by then.
OPTIONS = (
    Option("jobs", 1_000, "jobs that wait"),
    Option("spread", 10.0, "seconds their due times are spread over"),
    Option("pace", 10_000, "no-op jobs a second beside them, where there is a load"),
    Option("repeats", 1, "rounds, each on a fresh store; the medians are shown"),
)


def measure(jobs: int, spread: float, pace: int, repeats: int, folder: str | None = None) -> list[Figure]:
    """Return the medians over the rounds."""
    return harness.medians([[*_idle(jobs, spread, folder), *_loaded(jobs, spread, pace, folder)] for _ in range(repeats)])


def run(rig: harness.Rig, client: harness.Client, lines: range, spread: float) -> list[float]:
    """Let jobs fall due on a server with a worker; return the lateness of each in ms. The caller checks the ledger."""
    client.enq_many([{**job, "time": LEAD_S + random.uniform(0, spread)} for job in harness.jobs_of(lines)])
    # One long sleep: polling the count would disturb the measurement.
    time.sleep(LEAD_S + spread)
    end = time.monotonic() + 30
    while not all(map(rig.ledger.started_us, lines)):
        if time.monotonic() > end:
            raise harness.Broken("30 s after the last due some jobs had not begun")
        time.sleep(0.05)
    return [rig.ledger.late_us(line) / 1e3 for line in lines]


def _idle(jobs: int, spread: float, folder: str | None) -> list[Figure]:
    with harness.Rig(jobs, folder) as rig, rig.client() as client:
        rig.start_worker(client)
        late_ms = run(rig, client, range(jobs), spread)
        rig.await_done(client, jobs, 30)
        rig.ledger.check(range(jobs))
    return [
        Figure("begun before their due", sum(late < 0 for late in late_ms), "jobs", most=0),
        Figure("idle, late, p50", harness.quantile(late_ms, 0.5), "ms", most=0.5),
        Figure("idle, late, p99", harness.quantile(late_ms, 0.99), "ms", most=2),
        Figure("idle, late, at most", max(late_ms), "ms"),
    ]


def _loaded(jobs: int, spread: float, pace: int, folder: str | None) -> list[Figure]:
    seconds = LEAD_S + spread + 1
    plan = {"do": "paced", "first": jobs, "rate": pace, "seconds": seconds}
    with harness.Rig(jobs + round(pace * seconds), folder) as rig, rig.client() as client:
        rig.start_worker(client)
        with Crowd(rig.port, [plan]) as crowd:
            crowd.begin()
            late_ms = run(rig, client, range(jobs), spread)
            (paced,) = crowd.results()
        rig.await_done(client, jobs + paced["jobs"], 60)
        rig.ledger.check(range(jobs + paced["jobs"]))
    words = f"beside {pace:,} jobs/s"
    return [
        Figure(f"{words}, the pace that was kept", paced["jobs"] / paced["seconds"], "jobs/s", least=0.98 * pace),
        Figure(f"{words}, late, p50", harness.quantile(late_ms, 0.5), "ms"),
        Figure(f"{words}, late, p99", harness.quantile(late_ms, 0.99), "ms", most=20),
        Figure(f"{words}, late, at most", max(late_ms), "ms"),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
