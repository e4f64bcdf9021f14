"""Many jobs that fall due at one instant: the rate at which they are done, and the server's answers to others meanwhile.

The clock runs from the instant until the server counts the last job as done. The rate is compared with that of jobs end to end
on the same server before the instant. From shortly before the instant until the last job is done, another client sends a stat
or an enq every ten milliseconds; the figure is its longest wait.
"""

from __future__ import annotations

import random
import sys
import threading
import time

import end_to_end
import harness
from harness import Figure, Option

TITLE = "Due in one instant"
OPTIONS = (
    Option("jobs", 100_000, "jobs that fall due together"),
    Option("before", 50_000, "jobs end to end before them"),
    Option("rate", 15_000, "jobs/s that are enqueued at least, so that all wait before the instant"),
    Option("frame", 1_000, "jobs in one frame"),
    Option("in_flight", 4, "frames on their way at once"),
)
PROBE_S = 0.01


def measure(jobs: int, before: int, rate: int, frame: int, in_flight: int, folder: str | None = None) -> list[Figure]:
    """Measure jobs end to end first, then the instant, on one server and one worker."""
    with harness.Rig(before + jobs, folder) as rig, rig.client() as client, rig.client() as other:
        worker = rig.start_worker(client)
        ran = end_to_end.run(rig, client, worker, range(before), frame, in_flight)
        load = harness.jobs_of(range(before, before + jobs))
        instant = time.time() + 2 + jobs / rate
        handles = harness.enq_in_frames(client, [{**job, "at": instant} for job in load], frame, in_flight)
        if time.time() > instant - 0.5:
            raise harness.Broken("the instant came before all jobs waited; a lower --rate gives more time")
        probe = _Probe(other, [handle.key for handle in random.sample(handles, 1_000)])
        time.sleep(instant - time.time() - 0.3)
        probe.start()
        time.sleep(max(0.0, instant - time.time()))
        # The instant is a point on the wall clock, and so is the end.
        rig.await_done(client, before + jobs, 120)
        seconds = time.time() - instant
        waits_ms = probe.stop()
        rig.ledger.check(range(before + jobs))
    return [
        Figure("from the instant until all are done", jobs / seconds, "jobs/s"),
        Figure("end to end, on the same server before", ran.done, "jobs/s"),
        Figure("from the instant, of the rate end to end", 100 * jobs / seconds / ran.done, "%", least=100),
        Figure("others' stats and enqs meanwhile", len(waits_ms), "calls"),
        Figure("others' stats and enqs, p99", harness.quantile(waits_ms, 0.99), "ms"),
        Figure("others' stats and enqs, at most", max(waits_ms), "ms", most=100),
    ]


class _Probe(threading.Thread):
    """A client that polls or enqueues at a steady pace and notes the time of each call."""

    def __init__(self, client: harness.Client, keys: list[str]) -> None:
        super().__init__(daemon=True)
        self._client, self._keys = client, keys
        self._waits_ms: list[float] = []
        self._is_over = threading.Event()
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            number = 0
            while not self._is_over.wait(PROBE_S):
                began = time.perf_counter()
                if number % 2:
                    # A module that no worker has, so that the worker's jobs are only those that fell due.
                    self._client.enq("Nobody", params=harness.params_of(number), key=f"probe-{number}", time=3_600)
                else:
                    self._client.stat(random.choice(self._keys))
                self._waits_ms.append((time.perf_counter() - began) * 1e3)
                number += 1
        except Exception as error:
            self._error = error

    def stop(self) -> list[float]:
        """Stop, and return the milliseconds of each call."""
        self._is_over.set()
        self.join()
        if self._error is not None:
            raise harness.Broken(f"another client's call failed: {self._error}")
        return self._waits_ms


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
