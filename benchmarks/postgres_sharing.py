"""The costs of different ways to share one PostgreSQL, each as a few statements on Givalia's tables, without a server.

One connection stands for each server. All do the same at once, until all is done or the time is over: lend due jobs, tell the
others of a commit, keep count; and one renews leases. The PostgreSQL is fresh, with the default durability.
`docs/decisions/0008-several-servers.md` quotes these figures.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import harness
import psycopg
from givalia_postgres import hints, statements, upgrading
from givalia_postgres.connection import Connection, Statement
from harness import Figure, Option
from psycopg import RawCursor

TITLE: Final = "Several at one PostgreSQL"
OPTIONS: Final = (
    Option("connections", "1,2,4", "how many do the same at once, several numbers with commas between"),
    Option("seconds", 2.0, "how long to measure each way to tell and to count"),
    Option("jobs", 40_000, "due jobs that each way to lend is given"),
    Option("batch", 100, "jobs that are lent in one transaction"),
    Option("held", 1_000, "running jobs whose leases are renewed"),
    Option("sync_ms", 0.0, "by how much longer each sync takes, as on a slower disk"),
    Option("repeats", 3, "rounds; the figures are their medians"),
)
_RIG: Final = Path(__file__).resolve().parent.parent / "tests" / "postgres"

Ask = Callable[..., list[Any]]
Step = Callable[[Ask, int], int]  # The repeated step of a connection: takes its place, returns the number of jobs.

BEGIN: Final = (statements.BEGIN, ())
COMMIT: Final = (statements.COMMIT, ())
INSERT: Final = """
INSERT INTO givalia.jobs SELECT
    nextval('givalia.tick'), gen_random_uuid(), md5(random()::text), $1::int, 'Noop', 'any', 0, false,
    $2::bigint, NULL, 0, NULL, 1, '\\x00'::bytea, '\\x01'::bytea, NULL, $1::int, false FROM generate_series(1, $3::int)"""
DUE_US, LATER_US = 1, 1 << 60

_DUE: Final = "state = 0 AND NOT on_wall AND module = 'Noop' AND target_worker = 'any' AND rank = 0 AND due_at_us <= 1"
_SOME: Final = f"SELECT seq, version FROM givalia.jobs WHERE {_DUE}"
_ORDER: Final = "ORDER BY due_at_us, seq LIMIT"
WAYS_TO_LEND: Final = {
    "locked as they are read": (True, f"{_SOME} {_ORDER} {{batch}} FOR NO KEY UPDATE SKIP LOCKED"),
    "read, and guarded as they are written": (False, f"{_SOME} {_ORDER} {{batch}}"),
    "advisory locks": (
        True,
        f"SELECT * FROM ({_SOME} {_ORDER} {{batch}} * {{number}}) AS l WHERE pg_try_advisory_xact_lock(seq) LIMIT {{batch}}",
    ),
    "each its share of the rows": (False, f"{_SOME} AND seq % {{number}} = {{place}} {_ORDER} {{batch}}"),
}
"""Ways to lend: whether the transaction that writes the rows also reads them, and the statement that reads them."""
LEND: Final = """
WITH u AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS u(seq, was) ORDER BY seq)
UPDATE givalia.jobs j SET state = 1, keeper = 1, version = j.version + 1 FROM u
WHERE j.seq = u.seq AND j.version = u.was RETURNING j.seq"""

SAY: Final = f"SELECT pg_notify('{hints.CHANNEL}', $1)"
ADDED: Final = "INSERT INTO givalia.counts VALUES ('Noop', 0, 1)"
COUNTED: Final = "UPDATE givalia.counts SET jobs = jobs + 1 WHERE module = 'Noop' AND state = 0"
WAYS_TO_COUNT: Final[dict[str, tuple[list[Statement], bool]]] = {
    "nothing": ([], False),
    "in one row": ([(COUNTED, ())], False),
    "as rows that are added": ([(ADDED, ())], True),
}
"""Ways to count: the statements of a commit, and whether the counts are summed up periodically."""
FOLD_AFTER: Final = 400  # Commits between sums, as in a server.

RENEW_ROWS: Final = "UPDATE givalia.jobs SET lease_until_us = lease_until_us + 1 WHERE state = 1 AND keeper = 1"
RENEW_ONE: Final = "UPDATE givalia.servers SET alive_until_us = alive_until_us + 1 WHERE epoch = 1"
RENEWALS: Final = 30


def measure(
    connections: str, seconds: float, jobs: int, batch: int, held: int, sync_ms: float, repeats: int, folder: str | None = None
) -> list[Figure]:
    """Measure every way, with each number of connections."""
    if folder:
        tempfile.tempdir = folder
    sys.path.insert(0, str(_RIG))
    from postgres_rig import Postgres

    # Each sync first waits this long, and then includes the writes of others meanwhile, as on a slow disk.
    postgres = Postgres.start({"commit_delay": str(round(sync_ms * 1e3)), "commit_siblings": "0"} if sync_ms else None)
    try:
        bench = _Bench(postgres.create_database())
        rounds: list[list[Figure]] = []
        for _ in range(repeats):
            figures: list[Figure] = []
            for number in map(int, connections.split(",")):
                figures += [figure for way in WAYS_TO_LEND for figure in bench.lend(way, number, jobs, batch)]
                figures += bench.tell(number, seconds)
                figures += bench.count(number, seconds)
            rounds.append([*figures, *bench.renew(held)])
        return harness.medians(rounds)
    finally:
        postgres.close()


class _Bench:
    """A database with Givalia's tables."""

    def __init__(self, url: str) -> None:
        self._url = url
        server = Connection(url, "givalia benchmark")
        upgrading.create(server)
        server.close()
        self._ask = self._connect()
        harness.say(self._ask(("SELECT version()", ()))[0][0][0])

    def _connect(self) -> Ask:
        """Open a connection that, as a server's, sends statements in one trip, each made for one index."""
        connection = psycopg.connect(self._url, autocommit=True, prepare_threshold=0)
        for name in ("enable_seqscan", "enable_bitmapscan", "jit"):
            connection.execute(f"SELECT set_config('{name}', 'off', false)")

        def ask(*some: Statement) -> list[Any]:
            with connection.pipeline():
                cursors = [RawCursor(connection).execute(words.encode(), values, binary=True) for words, values in some]
            return [cursor.fetchall() if cursor.description else [] for cursor in cursors]

        return ask

    def _fill(self, state: int, due_us: int, jobs: int) -> None:
        self._ask(("TRUNCATE givalia.jobs, givalia.counts", ()))
        self._ask((INSERT, (state, due_us, jobs)))
        self._ask(("VACUUM ANALYZE givalia.jobs", ()))

    def _at_once(self, number: int, step: Step, seconds: float | None = None) -> tuple[int, float]:
        """Repeat `step` on `number` connections until it returns 0, or for `seconds`; return the sum, and the time."""
        done, barrier = [0] * number, threading.Barrier(number + 1)
        asks = [self._connect() for _ in range(number)]

        def work(place: int) -> None:
            barrier.wait()
            end = time.perf_counter() + (seconds or 3600)
            while time.perf_counter() < end and (did := step(asks[place], place)):
                done[place] += did

        threads = [threading.Thread(target=work, args=(place,)) for place in range(number)]
        for thread in threads:
            thread.start()
        barrier.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        return sum(done), time.perf_counter() - began

    def lend(self, way: str, number: int, jobs: int, batch: int) -> list[Figure]:
        """Lend all jobs, in order as far as the way allows; count also the reads of jobs that another connection lent."""
        self._fill(0, DUE_US, jobs)
        is_inside, words = WAYS_TO_LEND[way]
        lent = [0] * number

        def step(ask: Ask, place: int) -> int:
            read: Statement = (words.format(batch=batch, number=number, place=place), ())
            found = ask(BEGIN, read)[1] if is_inside else ask(read)[0]
            write = [(LEND, ([seq for seq, _ in found], [version for _, version in found]))] if found else []
            answers = ask(*write, COMMIT) if is_inside else ask(BEGIN, *write, COMMIT)[1:]
            lent[place] += len(answers[0])
            return len(found)

        tried, took_s = self._at_once(number, step)
        if sum(lent) != jobs:
            raise harness.Broken(f"{way}: of {jobs:,} due jobs {sum(lent):,} were lent")
        title = f"{number} lend, {way}"
        in_vain = [Figure(f"{title}: in vain", 100 * (1 - jobs / tried), "% of those read")] if number > 1 else []
        return [Figure(title, jobs / took_s, "jobs/s"), *in_vain]

    def tell(self, number: int, seconds: float) -> list[Figure]:
        """Measure commits of one job each, and the time from sending an insert until another connection hears of it."""
        insert: Statement = (INSERT, (0, LATER_US, 1))

        def silent(ask: Ask, _: int) -> int:
            ask(BEGIN, insert, COMMIT)
            return 1

        def inside(ask: Ask, _: int) -> int:
            ask(BEGIN, insert, (SAY, (str(time.perf_counter_ns()),)), COMMIT)
            return 1

        def after(ask: Ask, _: int) -> int:
            began_ns = time.perf_counter_ns()
            ask(BEGIN, insert, COMMIT)
            ask((hints.NOTIFY, (str(began_ns),)))
            return 1

        figures: list[Figure] = []
        for name, step in (("nothing", silent), ("in the commit", inside), ("after it", after)):
            self._fill(0, LATER_US, 1)
            with _Listener(self._url) as listener:
                done, took_s = self._at_once(number, step, seconds)
            figures.append(Figure(f"{number} tell, {name}", done / took_s, "commits/s"))
            if listener.delays_ms:
                figures.append(Figure(f"{number} tell, {name}: heard, p50", statistics.median(listener.delays_ms), "ms"))
        return figures

    def count(self, number: int, seconds: float) -> list[Figure]:
        """Measure commits of one job each, and the time to read the counts after them."""
        figures: list[Figure] = []
        for name, (counted, is_summed_up) in WAYS_TO_COUNT.items():
            self._fill(0, LATER_US, 1)
            self._ask((ADDED, ()))
            done, took_s = self._at_once(number, _counting(number, counted, is_summed_up), seconds)
            figures.append(Figure(f"{number} count, {name}", done / took_s, "commits/s"))
            if counted:
                self._must_count(name, done + 1)
                figures.append(Figure(f"{number} count, {name}: read", self._took_ms(statements.COUNTS)[0], "ms"))
        return figures

    def _must_count(self, way: str, jobs: int) -> None:
        counted = self._ask((statements.COUNTS, ()))[0]
        if [count for _, _, count in counted] != [jobs]:
            raise harness.Broken(f"{way}: {jobs:,} jobs were counted as {counted}")

    def renew(self, held: int) -> list[Figure]:
        """Measure renewing the leases of `held` running jobs, each in its row; and one row that says a server is alive."""
        self._fill(1, DUE_US, held)
        self._ask(("ALTER TABLE givalia.jobs ADD COLUMN IF NOT EXISTS lease_until_us bigint NOT NULL DEFAULT 0", ()))
        self._ask(("INSERT INTO givalia.servers VALUES (1, 0, 0, '', '') ON CONFLICT DO NOTHING", ()))
        figures: list[Figure] = []
        for name, words in ((f"{held:,} leases in their rows", RENEW_ROWS), ("one server", RENEW_ONE)):
            took_ms, wal_bytes = self._took_ms(words)
            figures += [Figure(f"renew {name}", took_ms, "ms"), Figure(f"renew {name}: log", wal_bytes / 1024, "KiB")]
        return figures

    def _took_ms(self, words: str) -> tuple[float, float]:
        """Return the median time of a repeated statement, and the log that each execution writes."""
        took_ms: list[float] = []
        before = self._ask(("SELECT pg_current_wal_insert_lsn() - '0/0'", ()))[0][0][0]
        for _ in range(RENEWALS):
            began = time.perf_counter()
            self._ask((words, ()))
            took_ms.append((time.perf_counter() - began) * 1e3)
        after = self._ask(("SELECT pg_current_wal_insert_lsn() - '0/0'", ()))[0][0][0]
        return statistics.median(took_ms), float(after - before) / RENEWALS


def _counting(number: int, counted: list[Statement], is_summed_up: bool) -> Step:
    commits = [0] * number

    def step(ask: Ask, place: int) -> int:
        ask(BEGIN, (INSERT, (0, LATER_US, 1)), *counted, COMMIT)
        commits[place] += 1
        if is_summed_up and commits[place] % FOLD_AFTER == 0:
            ask((statements.FOLD, ()))
        return 1

    return step


class _Listener:
    """Another connection, which receives notifications; each payload is the time at which its sender began."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute(hints.LISTEN)
        self._thread = threading.Thread(target=self._listen)
        self._is_over = False
        self.delays_ms: list[float] = []

    def __enter__(self) -> _Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join()
        self._connection.close()

    def _listen(self) -> None:
        while not self._is_over:
            for notify in self._connection.notifies(timeout=0.2):
                self.delays_ms.append((time.perf_counter_ns() - int(notify.payload)) / 1e6)


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
