"""The disk of a real PostgreSQL is really full for `GIVALIA_FULL_S` seconds. Mounting needs root: `make test-all`."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_fleet import Fleet
from postgres_rig import NotStarted, Postgres, give, new_folder
from system_disks import Filler, mounted
from system_install import Installed
from system_rig import ServerProcess
from waits import await_true

from givalia_core import Client
from givalia_core.errors import Busy, ConnectionLost, GivaliaError, NotFound, StoreFull
from givalia_core.model import STORED_STATES

FULL_S = float(os.environ.get("GIVALIA_FULL_S", "0"))
SEED = int(os.environ.get("GIVALIA_SEED", random.randrange(1 << 30)))
SOON = 600  # Jobs that fall due while the disk is full.
WAITING = STORED_STATES.index("waiting")


class Load:
    """Asks for everything there is, in threads, and remembers what was answered; what may or may not be done is unsure."""

    def __init__(self, connect: Callable[[], Client], seed: int) -> None:
        self._connect = connect
        self._seed = seed
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []
        self.live: set[str] = set()
        self.cancelled: set[str] = set()
        self.unsure_keys: set[str] = set()
        self.unsure: set[str] = set()
        self.said: Counter[tuple[str, str]] = Counter()
        self.longest: dict[str, float] = {}
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def start(self) -> None:
        """One thread that asks, one that enqueues, and several that change, as what has no room takes them some seconds."""
        for number, act in enumerate((self._ask, self._enq, *[self._cancel] * 2, *[self._ext] * 3)):
            thread = threading.Thread(target=self._run, args=(act, random.Random(self._seed + number)), daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join(90)
            assert not thread.is_alive()

    def _run(self, act: Callable[[Client, random.Random], None], chance: random.Random) -> None:
        client = self._connect()
        while not self._ends.wait(0.01):
            try:
                act(client, chance)
            except Exception as error:
                self.wrong.append(repr(error))

    def timed(self, name: str, ask: Callable[[], Any]) -> tuple[str, Any]:
        """Ask; the name of the refusal, or "ok", and the answer."""
        began = time.monotonic()
        try:
            said, answer = "ok", ask()
        except (StoreFull, Busy, ConnectionLost) as error:
            said, answer = type(error).__name__, None
        with self._lock:
            self.said[name, said] += 1
            self.longest[name] = max(self.longest.get(name, 0.0), time.monotonic() - began)
        return said, answer

    def enq(self, client: Client, chance: random.Random) -> bool:
        key = f"k{chance.getrandbits(60)}"
        params = bytes(chance.choice((10, 500, 20_000)))
        said, job = self.timed("enq", lambda: client.enq("Echo", time=36_000, key=key, params=params))
        if job is not None:
            with self._lock:
                self.live.add(job.id)
        elif said == "ConnectionLost":
            self.unsure_keys.add(key)
        return job is not None

    def _enq(self, client: Client, chance: random.Random) -> None:
        self.enq(client, chance)

    def _some(self, chance: random.Random) -> str:
        with self._lock:
            return chance.choice(sorted(self.live))

    def _ask(self, client: Client, chance: random.Random) -> None:
        job = self._some(chance)
        self.timed("stat", lambda: client.stat(id=job))
        self.timed("list", lambda: list(itertools.islice(client.list("waiting"), 20)))
        self.timed("info", client.info)

    def _cancel(self, client: Client, chance: random.Random) -> None:
        with self._lock:
            if len(self.live) < 100:
                return
            job = chance.choice(sorted(self.live))
            self.live.discard(job)
        said, _ = self.timed("cancel", lambda: client.cancel(id=job))
        into = {"ok": self.cancelled, "ConnectionLost": self.unsure}.get(said, self.live)
        with self._lock:
            into.add(job)

    def _ext(self, client: Client, chance: random.Random) -> None:
        job = self._some(chance)
        with contextlib.suppress(GivaliaError):
            self.timed("ext", lambda: client.ext(id=job, time=1))

    def tell(self) -> str:
        """Return the answers in words, with the slowest of each kind."""
        counts = ", ".join(f"{name} {said}: {count}" for (name, said), count in sorted(self.said.items()))
        return f"{counts}; longest " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in sorted(self.longest.items()))


class Full:
    """A PostgreSQL of which a part is on a small disk, with a server, a worker and work on it."""

    def __init__(self, postgres: Postgres, fleet: Fleet, place: Path) -> None:
        self.postgres, self.fleet = postgres, fleet
        self.server: ServerProcess = fleet.add_server("--log-level", "info")
        self.worker = fleet.add_worker()
        self.client = fleet.client_of()
        self.filler = Filler(place)
        self.load = Load(fleet.client_of, SEED)
        self.soon: list[Any] = []
        self.large: list[Any] = []

    def begin(self) -> None:
        chance = random.Random(SEED)
        for _ in range(300):
            assert self.load.enq(self.client, chance)
        self.soon = [self.client.enq("Echo", params=n, time=2 + n * FULL_S / SOON) for n in range(SOON)]
        # At once more than PostgreSQL sorts in memory.
        self.large = self.client.enq_many([{"module": "Echo", "params": bytes(200_000), "time": 4}] * 60)
        self.load.said.clear()
        self.load.longest.clear()

    def stay_full(self, watch: Callable[[], None] = lambda: None) -> None:
        """Let the work go on without a byte free, all the time."""
        self.filler.fill()
        self.load.start()
        until = time.monotonic() + FULL_S
        while time.monotonic() < until:
            time.sleep(0.5)  # The work goes on for `FULL_S`; meanwhile room that is freed is filled again.
            self.filler.fill()
            watch()
        assert self.server.is_alive
        self.load.stop()
        print(self.load.tell())
        print(self._done(), "jobs are done")
        assert not self.load.wrong

    def _done(self) -> str:
        try:
            ((done,),) = self.fleet.ask("SELECT count(*) FROM givalia.jobs WHERE state = %s", STORED_STATES.index("done"))
        except psycopg.OperationalError:
            return "nobody knows how many"
        return f"{done} of {len(self.soon) + len(self.large)}"

    def recover(self) -> None:
        self.filler.remove()
        self.postgres.start_again()
        freed = time.monotonic()
        chance = random.Random(SEED + 1_000)
        await_true(lambda: self.load.enq(self.client, chance), "new jobs are taken", 5)
        print(f"new jobs after {time.monotonic() - freed:.1f} s")

    def account(self) -> None:
        """Everything that was acknowledged is as it was acknowledged, and there is nothing else."""
        load = self.load
        for number, job in enumerate(self.soon):
            assert job.wait(timeout=60) == number
        for job in self.large:
            assert job.wait(timeout=60) == bytes(200_000)
        rows = self.fleet.ask("SELECT id::text, key, state FROM givalia.jobs WHERE key IS NOT NULL")
        waiting = {job for job, _, state in rows if state == WAITING}
        assert load.live - load.unsure <= waiting
        for job in load.cancelled:
            with contextlib.suppress(NotFound):
                assert self.client.stat(id=job).state == "cancelled"
        assert {job for job, key, state in rows if state == WAITING and key not in load.unsure_keys} <= load.live | load.unsure
        assert self.server.is_alive
        assert self.worker.stop() == 0
        assert self.server.stop() == 0
        assert self.fleet.check() == []


@contextlib.contextmanager
def full(shared: Installed, folder: Path, kind: str, moved: str) -> Iterator[Full]:
    """All data, a tablespace or the log of a PostgreSQL on a disk that is small."""
    print(f"GIVALIA_SEED={SEED} replays this run")
    with mounted(kind, new_folder(), {"tablespace": 48, ".": 192, "pg_wal": 64}[moved]) as disk:
        place = disk / "postgres"
        place.mkdir(mode=0o700)
        give(place)
        with Postgres.start(moved={} if moved == "tablespace" else {moved: place}) as postgres:
            url = postgres.create_database()
            if moved == "tablespace":
                with psycopg.connect(postgres.url(), autocommit=True) as connection:
                    connection.execute(f"CREATE TABLESPACE small LOCATION '{place}'")
                    connection.execute("ALTER DATABASE test_1 SET TABLESPACE small")
            with Fleet(shared, folder, url) as fleet:
                yield Full(postgres, fleet, disk)


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_full_disk_of_the_tables_ends_nothing_and_loses_nothing(shared: Installed, tmp_path: Path, kind: str) -> None:
    with full(shared, tmp_path, kind, "tablespace") as case:
        case.begin()

        case.stay_full()

        said = case.load.said
        assert said["enq", "StoreFull"]
        assert not {(act, what) for act, what in said if act in ("stat", "list", "info") and what != "ok"}
        assert max(case.load.longest[act] for act in ("stat", "list", "info")) < 5
        case.recover()
        case.account()


@pytest.mark.parametrize("moved", [".", "pg_wal"])
def test_full_disk_of_the_log_loses_nothing(shared: Installed, tmp_path: Path, moved: str) -> None:
    with full(shared, tmp_path, "ext4", moved) as case:
        case.begin()
        downs: Counter[str] = Counter()

        def watch() -> None:
            if not case.postgres.is_running:
                downs["ended"] += 1
                with contextlib.suppress(NotStarted):
                    case.postgres.start_again()

        case.stay_full(watch)

        log = case.postgres.log_text()
        print(f"PostgreSQL: {log.count('PANIC')} PANIC, {downs['ended']} found ended")
        case.recover()
        case.account()
