"""How long after its due a job begins, on an otherwise idle machine; and that none begins before.

Jobs with due times spread at random over some seconds wait on the server. Each notes in the ledger when its code began and
when it was due; the difference holds all that lies between: the timer, the claim on disk, the wire, the worker's greenlet.
"""

from __future__ import annotations

import random
import sys
import time

import harness
from harness import Figure, Option

TITLE = "Lateness"
LEAD_S = 2.0  # So that the first is not due before the last is enqueued.
OPTIONS = (
    Option("jobs", 1_000, "jobs that wait"),
    Option("spread", 10.0, "seconds their due times are spread over"),
    Option("repeats", 1, "rounds, each on a fresh store; the medians are shown"),
)


def measure(jobs: int, spread: float, repeats: int, folder: str | None = None) -> list[Figure]:
    """The medians over the rounds."""
    return harness.medians([_round(jobs, spread, folder) for _ in range(repeats)])


def _round(jobs: int, spread: float, folder: str | None) -> list[Figure]:
    with harness.Rig(jobs, folder) as rig, rig.client() as client:
        rig.start_worker(client)
        load = harness.jobs_of(range(jobs))
        client.enq_many([{**job, "time": LEAD_S + random.uniform(0, spread)} for job in load])
        # Asking for the count now and then would disturb what is measured.
        time.sleep(LEAD_S + spread)
        rig.await_done(client, jobs, 30)
        rig.ledger.check(range(jobs))
        late_ms = [rig.ledger.late_us(line) / 1e3 for line in range(jobs)]
    return [
        Figure("begun before their due", sum(late < 0 for late in late_ms), "jobs", most=0),
        Figure("late, p50", harness.quantile(late_ms, 0.5), "ms"),
        Figure("late, p99", harness.quantile(late_ms, 0.99), "ms", most=5),
        Figure("late, at most", max(late_ms), "ms"),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
