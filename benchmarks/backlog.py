"""Jobs that no worker can take delay no other job: a backlog of such jobs, and jobs of another module, one at a time.

The backlog has two kinds of due jobs: of a module that no worker has, and for a worker that is not connected. Single jobs that
a worker can take are timed without and with the backlog, and should start as on an idle server. Then jobs of all priorities
wait for a worker that runs one at a time: it must begin them by priority, and jobs of equal priority in the order of enq.
"""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import harness
from harness import MIB, Figure, Option

from givalia_core import Client

TITLE = "Behind a backlog"
OPTIONS = (
    Option("nobody", 200_000, "due jobs of a module that no worker has"),
    Option("away", 50_000, "due jobs for a worker that is away"),
    Option("singles", 300, "jobs enqueued one at a time, before the backlog and behind it"),
    Option("ordered", 200, "ready jobs of random priority"),
)


def measure(nobody: int, away: int, singles: int, ordered: int, folder: str | None = None) -> list[Figure]:
    """Run one round: singles, the backlog, singles."""
    with harness.Rig(2 * singles + ordered, folder) as rig, rig.client() as client:
        rig.start_worker(client)
        before, _ = harness.latencies(rig, client, range(singles))
        rss = harness.rss_bytes(rig.server)
        harness.enq_in_parts(client, range(nobody), module="Nobody")
        harness.enq_in_parts(client, range(away), target_worker="away")
        grown = harness.rss_bytes(rig.server) - rss
        behind, _ = harness.latencies(rig, client, range(singles, 2 * singles))
        _check_order(rig, client, range(2 * singles, 2 * singles + ordered))
        rig.ledger.check(range(2 * singles + ordered))
        waiting = {module: counts.get("waiting", 0) for module, counts in client.info()["jobs"].items()}
    if waiting != {"Nobody": nobody, harness.MODULE: away}:
        raise harness.Broken(f"the backlog should still wait; there is {waiting}")
    p50, p99 = harness.quantile(before, 0.5), harness.quantile(before, 0.99)
    return [
        Figure("enq to start before it, p50", p50, "ms"),
        Figure("enq to start before it, p99", p99, "ms"),
        Figure("enq to start behind it, p50", harness.quantile(behind, 0.5), "ms", most=1.5 * p50),
        Figure("enq to start behind it, p99", harness.quantile(behind, 0.99), "ms", most=2 * p99),
        Figure("memory of the server for it", grown / MIB, "MiB", most=64),
        Figure("begun out of the order of priority", 0, "jobs", most=0),
    ]


def _check_order(rig: harness.Rig, client: Client, lines: range) -> None:
    """Raise `Broken` unless a worker that connects late begins these jobs by priority, equal ones in the order of enq."""
    priorities = {line: random.randint(-9, 9) for line in lines}
    jobs = harness.jobs_of(lines, target_worker="orderly")
    handles = client.enq_many([{**job, "priority": priorities[job["params"]["line"]]} for job in jobs])
    rig.start_worker(client, name="orderly", concurrency=1)
    for handle in handles:
        handle.wait(30)
    begun = sorted(lines, key=rig.ledger.started_us)
    ranks = [(-priorities[line], line) for line in begun]
    wrong = sum(later < earlier for earlier, later in pairwise(ranks))
    if wrong:
        raise harness.Broken(f"{wrong} of {len(lines)} jobs began out of the order of priority")


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
