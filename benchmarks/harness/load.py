"""The load of a server: jobs with random keys, one at a time or in frames."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from givalia_core import Client, GivaliaError, PartlyRefused
from harness.ledger import Broken
from harness.rig import MODULE, Rig
from harness.words import say

PART: Final = 50_000  # Jobs that a benchmark holds at once, however many it enqueues.


def params_of(line: int) -> dict[str, Any]:
    """Return the params of every benchmark, some 30 bytes: the job's line in the ledger, and a note of fixed length."""
    return {"line": line, "note": f"{line:010}"}


def key_of(line: int) -> str:
    """Return a key that is as good as random, and that follows from the line."""
    return hashlib.blake2b(line.to_bytes(8), digest_size=12).hexdigest()


def jobs_of(lines: range, **options: Any) -> list[dict[str, Any]]:
    """Return a job for each line of the ledger, with a random key: clustered keys would hide the cost of an index."""
    return [{"module": MODULE, "params": params_of(line), "key": f"{random.getrandbits(96):024x}", **options} for line in lines]


def enq_in_frames(client: Client, jobs: Sequence[dict[str, Any]], frame: int, in_flight: int) -> list[Any]:
    """Enqueue in frames of `frame` jobs, `in_flight` frames at once; return the handles, in order."""
    parts = [jobs[start : start + frame] for start in range(0, len(jobs), frame)]
    with ThreadPoolExecutor(in_flight) as pool:
        return [handle for handles in pool.map(client.enq_many, parts) for handle in handles]


def enq_in_parts(client: Client, lines: range, **options: Any) -> list[Any]:
    """Enqueue more jobs than this process should hold at once, one enq_many per part; return one handle of each part."""
    some: list[Any] = []
    for start in range(lines.start, lines.stop, PART):
        jobs = jobs_of(range(start, min(start + PART, lines.stop)), **options)
        try:
            some.append(random.choice(client.enq_many(jobs)))
        except PartlyRefused as refused:
            why = next(answer for answer in refused.answers if isinstance(answer, GivaliaError))
            raise Broken(f"{refused}: {why}") from None
    say(f"{len(lines):,} jobs are enqueued")
    return some


def latencies(rig: Rig, client: Client, lines: range) -> tuple[list[float], list[float]]:
    """Enqueue one job at a time; return, for each, the milliseconds to its start, and to its result at the client."""
    starts: list[float] = []
    results: list[float] = []
    for line in lines:
        began_ns = time.time_ns()
        handle = client.enq(MODULE, params=params_of(line), key=f"single-{line}")
        handle.wait(30)
        results.append((time.time_ns() - began_ns) / 1e6)
        starts.append(rig.ledger.started_us(line) / 1e3 - began_ns / 1e6)
        time.sleep(0.002)  # So that the server is idle, and no longer tidies up after the previous job.
    return starts, results
