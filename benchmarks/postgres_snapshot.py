"""The cost of another session's open snapshot for a server on PostgreSQL: vacuum removes nothing, and dead rows pile up.

Jobs that are due in a moment are enqueued as fast as they run, while another session keeps one snapshot, as a dump or a
forgotten transaction does. (A job that is due at once and lent in its first commit never waits, and leaves no dead row.) At the
end some waiting jobs are enqueued and listed, beside all those that have ended.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import harness
import psycopg
from harness import Figure, Option
from postgres import rig

from givalia_core import Client, GivaliaError, PartlyRefused

TITLE = "Beside an open snapshot, on PostgreSQL"
OPTIONS = (
    Option("seconds", 60.0, "how long the snapshot is open"),
    Option("slice", 10.0, "of that: what the rates at the beginning and at the end are taken from"),
    Option("ahead", 5_000, "jobs that are enqueued and not done yet, at most"),
    Option("waiting", 1_000, "jobs that wait for an hour and are listed at the end"),
)
FRAME = 250
SETTLED_S = 3.0
DELAY_S = 0.3
HOLD_BACK_S = 0.05
LOOK_S = 0.02


def measure(seconds: float, slice: float, ahead: int, waiting: int, folder: str | None = None) -> list[Figure]:
    """Measure on one server with one worker; first without a snapshot."""
    with rig(1, folder, autovacuum_naptime="5s") as (made, _), made.client() as client:
        made.start_worker(client)
        time.sleep(SETTLED_S)
        with psycopg.connect(made.url, autocommit=True) as counting, _load(made, ahead):
            without = _rate(counting, slice)
            with _snapshot(made.url):
                first = _rate(counting, slice)
                time.sleep(max(seconds - 2 * slice, 0))
                last = _rate(counting, slice)
                done = _done(counting)
                harness.enq_in_parts(client, range(waiting), time=3_600)
            began = time.perf_counter()
            listed = sum(1 for _ in itertools.islice(client.list(state="waiting"), waiting))
            took = time.perf_counter() - began
    if listed < waiting:
        raise harness.Broken(f"{waiting} jobs wait; {listed} were listed")
    return [
        Figure("no snapshot", without, "jobs/s"),
        Figure(f"a snapshot, its first {slice:g} s", first, "jobs/s"),
        Figure(f"a snapshot, the last {slice:g} of {seconds:g} s", last, "jobs/s"),
        Figure(f"a snapshot, the last {slice:g} s, of no snapshot", 100 * last / without, "%", least=80),
        Figure("jobs done by then", done, "jobs"),
        Figure(f"list of {waiting:,} waiting jobs beside them", took, "s", most=0.5),
    ]


@contextlib.contextmanager
def _load(made: harness.Rig, ahead: int) -> Iterator[None]:
    """Enqueue no-op jobs, `ahead` more than are done."""
    ended = threading.Event()

    def enqueue() -> None:
        with Client(harness.HOST, made.port) as client, psycopg.connect(made.url, autocommit=True) as counting:
            sent = 0
            while not ended.is_set():
                if sent - _done(counting) >= ahead:
                    time.sleep(LOOK_S)
                else:
                    try:
                        client.enq_many([{"module": harness.MODULE, "params": harness.params_of(0), "time": DELAY_S}] * FRAME)
                        sent += FRAME
                    except PartlyRefused as refused:  # A server with a slow store asks clients to hold back.
                        sent += sum(not isinstance(answer, GivaliaError) for answer in refused.answers)
                        time.sleep(HOLD_BACK_S)

    thread = threading.Thread(target=enqueue)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _snapshot(url: str) -> Iterator[None]:
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("SELECT 1")
        yield
        connection.rollback()


def _done(counting: psycopg.Connection[Any]) -> int:
    """Return the number of done jobs from the database: the server would walk dead rows to count the ready ones as well."""
    ((done,),) = counting.execute("SELECT coalesce(sum(jobs), 0)::bigint FROM givalia.counts WHERE state = 2").fetchall()
    return int(done)


def _rate(counting: psycopg.Connection[Any], seconds: float) -> float:
    before, began = _done(counting), time.perf_counter()
    time.sleep(seconds)
    return (_done(counting) - before) / (time.perf_counter() - began)


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
