"""The honest case: random keys and due times, and as many jobs enqueued as run, so that the number of waiting jobs is constant.

The waits have no memory (they are exponential), so the remaining waits always have the same distribution. Each new job falls
due anywhere among the waiting ones, so it touches a random place of the indexes by key and by due. A worker runs due jobs, and
for each thousand done the client enqueues a thousand more.
"""

from __future__ import annotations

import random
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import harness
from harness import Figure, Option
from harness.crowd import fill

TITLE = "Steady"
OPTIONS = (
    Option("waiting", 100_000, "jobs that wait, always"),
    Option("demand", 50_000, "jobs that fall due each second: more than the server can run, or that is what is measured"),
    Option("lead", 20.0, "seconds before the first falls due; the store is filled in them"),
    Option("seconds", 8.0, "how long to measure"),
)
BATCH = 1_000
IN_FLIGHT = 4
RATE_MAX = 300_000  # The most jobs a second that the ledger has lines for.


def measure(waiting: int, demand: int, lead: float, seconds: float, folder: str | None = None) -> list[Figure]:
    """Fill a store, then run the steady flow of jobs."""
    with harness.Rig(waiting + spare(seconds), folder) as rig, rig.client() as client:
        due = {"base": time.time() + lead, "mean": waiting / demand}
        fill(rig.port, range(waiting), due)
        return run(rig, client, waiting, due, seconds)


def aim(waiting: int) -> int:
    """Return the goal in jobs a second."""
    return 40_000 if waiting <= 1_000_000 else 30_000


def spare(seconds: float) -> int:
    """Return the number of ledger lines for the jobs that are enqueued meanwhile."""
    return round(seconds * RATE_MAX)


def run(rig: harness.Rig, client: harness.Client, waiting: int, due: dict[str, float], seconds: float) -> list[Figure]:
    """Run the jobs of the first lines, which `fill` enqueued with this `due`, and the jobs that replace them.

    There must be no worker yet, and the ledger must have as many free lines at its end as `spare` says.
    """
    if time.time() < due["base"]:
        harness.say(f"the first jobs fall due in {due['base'] - time.time():.0f} s")
        time.sleep(max(0.0, due["base"] - time.time()))
    else:
        harness.say(f"jobs have fallen due for {time.time() - due['base']:.0f} s: the first to run are late")
    free = range(rig.ledger.lines - spare(seconds), rig.ledger.lines)
    done_before, waited = rig.done(client), rig.waiting(client)
    worker = rig.start_worker(client)
    ran, enqueued, took = _flow(rig, client, free, due["mean"], seconds)
    left = rig.waiting(client)
    rig.stop_worker(worker)
    ran_in_all = rig.done(client) - done_before
    ran_by_ledger = rig.ledger.count_ran(range(waiting)) + rig.ledger.count_ran(free)
    if ran_in_all != ran_by_ledger:
        raise harness.Broken(f"{ran_in_all:,} jobs are done and {ran_by_ledger:,} ran")
    harness.say(f"{ran_in_all:,} jobs: each ran once, none early")
    words = f"steady, {waiting:,} waiting"
    return [
        Figure(f"{words}, run and enqueued", min(ran, enqueued) / took, "jobs/s", least=aim(waiting)),
        Figure(f"{words}, at the end, of the start", 100 * left / waited, "%"),
    ]


def _flow(rig: harness.Rig, client: harness.Client, free: range, mean: float, seconds: float) -> tuple[int, int, float]:
    """Enqueue a batch for each batch that is done; return how many jobs were done, how many enqueued, and the time."""
    before = rig.done(client)
    under_way: list[Future[Any]] = []
    sent = 0
    began = time.perf_counter()
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        while (took := time.perf_counter() - began) < seconds:
            under_way = [each for each in under_way if not _is_over(each)]
            ran = rig.done(client) - before
            if ran - sent >= BATCH and len(under_way) < IN_FLIGHT:
                lines = range(free.start + sent, free.start + sent + BATCH)
                jobs = [{**job, "time": random.expovariate(1 / mean)} for job in harness.jobs_of(lines)]
                under_way.append(pool.submit(client.enq_many, jobs))
                sent += BATCH
            else:
                time.sleep(0.002)
        answered = sent - BATCH * sum(not each.done() for each in under_way)
        took = time.perf_counter() - began
        ran = rig.done(client) - before
    return ran, answered, took


def _is_over(batch: Future[Any]) -> bool:
    """Return whether the batch is answered; raise if it was refused."""
    if batch.done():
        batch.result()
        return True
    return False


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
