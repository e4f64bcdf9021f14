"""Pushing jobs back and calling them off by key, one at a time and many at once, beside few and many waiting jobs.

Single calls are timed twice on one server: while a thousand jobs wait, and while all jobs wait. The keys are random, so each
call touches a place of the store that no recent call has touched.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import harness
from harness import Figure, Option
from harness.crowd import fill

TITLE = "By key"
OPTIONS = (
    Option("few", 1_000, "jobs that wait at first"),
    Option("waiting", 100_000, "jobs that wait then"),
    Option("singles", 300, "jobs that are pushed back, and then called off, one at a time"),
    Option("many", 30_000, "jobs that are pushed back, and then called off, in batches"),
)
BATCH = 1_000
REST_S = 1.0  # The time in which the server tidies up after the filling.
WARM = 50
DUE = {"between": (7_200, 10_800)}


class Taken(NamedTuple):
    """Milliseconds of each call."""

    ext_ms: list[float]
    cancel_ms: list[float]


def measure(few: int, waiting: int, singles: int, many: int, folder: str | None = None) -> list[Figure]:
    """Measure on one server, which is filled between the two measurements."""
    with harness.Rig(1, folder) as rig, rig.client() as client:
        fill(rig.port, range(few), DUE)
        first = singly(client, random.sample(range(few), singles))
        fill(rig.port, range(few, waiting), DUE)
        many = min(many, (waiting - few) // 2)
        lines = random.sample(range(few, waiting), singles + many)
        then = singly(client, lines[:singles])
        at_once = in_batches(client, lines[singles:], waiting)
        left = waiting - 2 * singles - many
        if rig.waiting(client) != left:
            raise harness.Broken(f"{left:,} jobs should be left; {rig.waiting(client):,} are")
    return [*compared(first, few, then, waiting), *at_once]


def singly(client: harness.Client, lines: Sequence[int]) -> Taken:
    """Push back the jobs of these lines, then call them off, one at a time."""
    keys = [harness.key_of(line) for line in lines]
    time.sleep(REST_S)
    for key in keys[:WARM]:
        client.stat(key)
    return Taken([_ms(client.ext, key, 60) for key in keys], [_ms(client.cancel, key) for key in keys])


def _ms(call: Callable[..., Any], *args: Any) -> float:
    began = time.perf_counter()
    call(*args)
    return (time.perf_counter() - began) * 1e3


def compared(first: Taken, few: int, then: Taken, waiting: int) -> list[Figure]:
    """Return the medians, and their increase when many jobs wait."""
    figures = []
    for name, before, after in (("ext", first.ext_ms, then.ext_ms), ("cancel", first.cancel_ms, then.cancel_ms)):
        p50, p50_then = harness.quantile(before, 0.5), harness.quantile(after, 0.5)
        figures += [
            Figure(f"{name} by key, {few:,} waiting, p50", p50, "ms"),
            Figure(f"{name} by key, {waiting:,} waiting, p50", p50_then, "ms"),
            Figure(f"{name} by key, {waiting:,} waiting, p99", harness.quantile(after, 0.99), "ms"),
            Figure(f"{name} by key, {waiting:,} waiting, p50, of that with {few:,}", p50_then / p50, "times", most=1.5),
        ]
    return figures


def in_batches(client: harness.Client, lines: Sequence[int], waiting: int) -> list[Figure]:
    """Measure the same calls with a batch of keys at once, while `waiting` jobs wait.

    Raises:
        harness.Broken: One of the jobs was not moved, or not called off.
    """
    keys = [harness.key_of(line) for line in lines]
    batches = [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]
    ext_ms, dues = _answered(batches, lambda batch: client.ext_many(batch, 60))
    cancel_ms, ends = _answered(batches, client.cancel_many)
    # A refused call is an error among the answers.
    moved, cancelled = sum(isinstance(each, datetime) for each in dues), ends.count("cancelled")
    if not len(keys) == len(dues) == len(ends) == moved == cancelled:
        raise harness.Broken(f"of {len(keys):,} jobs {moved:,} were moved and {cancelled:,} called off")
    return [
        Figure(f"{waiting:,} waiting, ext_many, batches of {BATCH:,}", 1e3 * len(keys) / ext_ms, "jobs/s", least=30_000),
        Figure(f"{waiting:,} waiting, cancel_many, batches of {BATCH:,}", 1e3 * len(keys) / cancel_ms, "jobs/s", least=30_000),
    ]


def _answered(batches: list[list[str]], call: Callable[[list[str]], list[Any]]) -> tuple[float, list[Any]]:
    """Return the milliseconds of these calls, one after the other, and all their answers."""
    took_ms, answers = 0.0, list[Any]()
    for batch in batches:
        began = time.perf_counter()
        answers += call(batch)
        took_ms += (time.perf_counter() - began) * 1e3
    return took_ms, answers


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
