"""Servers on PostgreSQL: the rate of one, the cost of a second one, jobs in transactions, and idle servers.

Each measurement has its own fresh PostgreSQL, from the wheel that the tests use, with the default durability. The jobs are
no-ops as in `end_to_end.py`; if there are two servers, each has a worker and half of the client's frames.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import givalia_postgres
import harness
import psutil
import psycopg
from harness import MIB, Figure, Option

from givalia_core import Client

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "postgres"))
from postgres_rig import Postgres

TITLE = "On PostgreSQL"
OPTIONS = (
    Option("jobs", 50_000, "jobs of the load"),
    Option("repeats", 3, "rounds of the load, with one server and with two in turn; the medians are shown"),
    Option("transactions", 200, "jobs that are enqueued in a transaction of their own"),
    Option("idle", 20, "seconds in which queries are counted while nothing is due"),
    Option("waiting", 1_000_000, "jobs that wait"),
    Option("late", 1_000, "jobs due within ten seconds meanwhile"),
)
CORES = os.cpu_count() or 1


def measure(
    jobs: int, repeats: int, transactions: int, idle: int, waiting: int, late: int, folder: str | None = None
) -> list[Figure]:
    """Measure all parts, one after the other."""
    rounds = [(_load(jobs, 1, folder), _load(jobs, 2, folder)) for _ in range(repeats)]
    one, two = (harness.medians(each) for each in zip(*rounds, strict=True))
    cost = harness.quantile([_cost(second) / _cost(first) for first, second in rounds], 0.5)
    gain = two[0].value / one[0].value
    return [
        *one,
        *two,
        Figure("two servers and database, CPU a job, of one", cost, "times", most=1.2),
        Figure(f"two servers, jobs, of one, on {CORES} cores", gain, "times", least=1.5 if CORES >= 4 else None),
        *_transactions(transactions, folder),
        *_idle(idle, folder),
        *_many(waiting, late, folder),
    ]


@contextlib.contextmanager
def rig(lines: int, folder: str | None, **settings: str) -> Iterator[tuple[harness.Rig, Postgres]]:
    """Start a server on its own PostgreSQL."""
    with (
        Postgres.start({"shared_buffers": "256MB", **settings}) as postgres,
        harness.Rig(lines, folder, postgres.create_database()) as made,
    ):
        yield made, postgres


def _cpu(pids: list[int]) -> float:
    return sum(harness.cpu_s(pid) for pid in pids)


def _database_cpu(postgres: Postgres) -> float:
    """Return the CPU time of all processes of PostgreSQL, including ended ones."""
    main, *others = postgres.pids()
    times = psutil.Process(main).cpu_times()
    used = times.user + times.system + times.children_user + times.children_system
    for pid in others:
        with contextlib.suppress(psutil.NoSuchProcess):
            used += harness.cpu_s(pid)
    return float(used)


def _load(jobs: int, servers: int, folder: str | None) -> list[Figure]:
    words = f"{servers} server{'s' if servers > 1 else ''}"
    harness.say(words)
    with rig(jobs, folder) as (made, postgres), contextlib.ExitStack() as stack:
        running = [(made.server, made.port, made.worker_port)]
        running += [made.add_server() for _ in range(servers - 1)]
        clients = [stack.enter_context(Client(harness.HOST, port)) for _, port, _ in running]
        workers = [made.start_worker(client, port=port) for client, (_, _, port) in zip(clients, running, strict=True)]
        time.sleep(3)  # Until the servers know of each other.
        pids = {"servers": [server.pid for server, _, _ in running], "workers": [worker.pid for worker in workers]}
        load = harness.jobs_of(range(jobs))
        used = {name: _cpu(some) for name, some in pids.items()}
        database = _database_cpu(postgres)
        began = time.perf_counter()
        _enqueue(clients, load)
        enqueued = time.perf_counter()
        made.await_done(clients[0], jobs, 120)
        seconds = time.perf_counter() - began
        database = _database_cpu(postgres) - database
        used = {name: _cpu(some) - used[name] for name, some in pids.items()}
        made.ledger.check(range(jobs))
    return [
        Figure(f"{words}, end to end", jobs / seconds, "jobs/s", least=5_000 if servers == 1 else None),
        Figure(f"{words}, enq answered, meanwhile", jobs / (enqueued - began), "jobs/s"),
        Figure(f"{words}, CPU of the servers", used["servers"] / jobs * 1e6, "us a job"),
        Figure(f"{words}, CPU of the database", database / jobs * 1e6, "us a job"),
        Figure(f"{words}, CPU of the workers", used["workers"] / jobs * 1e6, "us a job"),
    ]


def _enqueue(clients: list[Client], load: list[dict[str, Any]]) -> None:
    """Enqueue the load with four frames in flight in all, spread over the clients."""
    parts = [load[place :: len(clients)] for place in range(len(clients))]
    threads = [
        threading.Thread(target=harness.enq_in_frames, args=(client, part, 1_000, 4 // len(clients)))
        for client, part in zip(clients, parts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _cost(figures: list[Figure]) -> float:
    return sum(figure.value for figure in figures if "CPU of the servers" in figure.name or "database" in figure.name)


def _transactions(jobs: int, folder: str | None) -> list[Figure]:
    harness.say("jobs in transactions")
    with rig(jobs, folder) as (made, _), made.client() as client, psycopg.connect(made.url) as connection:
        made.start_worker(client)
        starts = []
        for line in range(jobs):
            givalia_postgres.enq(connection, harness.MODULE, params=harness.params_of(line))
            connection.commit()
            committed_ns = time.time_ns()
            made.await_done(client, line + 1, 30)
            starts.append(made.ledger.started_us(line) / 1e3 - committed_ns / 1e6)
            time.sleep(0.005)
    return [
        Figure("enqueued in a transaction, commit to start, p50", harness.quantile(starts, 0.5), "ms"),
        Figure("enqueued in a transaction, commit to start, p99", harness.quantile(starts, 0.99), "ms", most=20),
    ]


def _idle(seconds: int, folder: str | None) -> list[Figure]:
    jobs = 100_000
    harness.say("three idle servers")
    with rig(1, folder) as (made, postgres), made.client() as client:
        running = [(made.server, made.port, made.worker_port), made.add_server(), made.add_server()]
        for _, port, worker_port in running:
            with Client(harness.HOST, port) as other:
                made.start_worker(other, port=worker_port)
        harness.enq_in_parts(client, range(jobs), time=3_600)
        with psycopg.connect(made.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET log_statement = 'all'")
            time.sleep(15)  # The servers have tidied up after the load by then.
            connection.execute("SELECT pg_reload_conf()")
            time.sleep(1)
            before = len(postgres.log_text())
            used = _cpu([server.pid for server, _, _ in running])
            time.sleep(seconds)
            used = _cpu([server.pid for server, _, _ in running]) - used
            log = postgres.log_text()[before:]
    queries = sum(" LOG:  execute " in line or " LOG:  statement: " in line for line in log.splitlines())
    return [
        Figure("three idle servers, 100,000 waiting, queries", queries / seconds, "a second", most=5),
        Figure("three idle servers, CPU of each", used / 3 / seconds * 100, "%"),
    ]


def _many(waiting: int, late: int, folder: str | None) -> list[Figure]:
    harness.say("many that wait")
    with rig(late, folder) as (made, _), made.client() as client:
        made.start_worker(client)
        before = harness.rss_bytes(made.server)
        began = time.perf_counter()
        harness.enq_in_parts(client, range(waiting), time=3_600)
        seconds = time.perf_counter() - began
        after = harness.rss_bytes(made.server)
        load = harness.jobs_of(range(late))
        client.enq_many([{**job, "time": 2 + random.uniform(0, 10)} for job in load])
        time.sleep(12)
        made.await_done(client, late, 30)
        made.ledger.check(range(late))
        late_ms = [made.ledger.late_us(line) / 1e3 for line in range(late)]
        (size,) = psycopg.connect(made.url).execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    return [
        Figure(f"{waiting:,} waiting, enq answered", waiting / seconds, "jobs/s"),
        Figure(f"{waiting:,} waiting, memory they cost the server", (after - before) / MIB, "MiB", most=64),
        Figure(f"{waiting:,} waiting, database on disk", size / MIB, "MiB"),
        Figure(f"{waiting:,} waiting, begun before their due", sum(each < 0 for each in late_ms), "jobs", most=0),
        Figure(f"{waiting:,} waiting, late, p50", harness.quantile(late_ms, 0.5), "ms"),
        Figure(f"{waiting:,} waiting, late, p99", harness.quantile(late_ms, 0.99), "ms", most=25),
    ]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
