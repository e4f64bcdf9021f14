"""Servers are killed again and again under a load through all of them, and every promise holds.

Three servers, six workers, 20,000 jobs with random cancels and extends through random servers; every three seconds a server is
killed with -9 and started again. The database itself records each state of a job.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from postgres_fleet import Fleet
from system_rig import lines_of
from waits import await_true

from givalia_core import Client, ConnectionLost, DuplicateKey, NotFound, PartlyRefused, WrongState
from givalia_core.errors import Busy
from givalia_core.model import STORED_STATES, TRANSITIONS

JOBS = 20_000
BATCH = 50
PRODUCERS = 4
KEYS = 30_000  # For all, so that some are taken.
KILL_EVERY_S = 3.0
AUDIT = """
CREATE TABLE public.audit (at bigint GENERATED ALWAYS AS IDENTITY, id uuid, key text, before smallint, after smallint);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.audit (id, key, before, after)
    VALUES (NEW.id, NEW.key, CASE WHEN TG_OP = 'UPDATE' THEN OLD.state END, NEW.state);
    RETURN NULL;
END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON givalia.jobs FOR EACH ROW EXECUTE FUNCTION public.note();
"""


class Producer:
    """Enqueues its share of the jobs, cancels and extends some of them, and keeps what it was told."""

    def __init__(self, fleet: Fleet, seed: str, jobs: int, ran: Path) -> None:
        self._random = random.Random(seed)
        self._clients: list[Client] = [fleet.client_of() for _ in range(3)]
        self._jobs = jobs
        self._ran = str(ran)
        self.dues: dict[str, float] = {}  # Of every job that was acknowledged: when it is due, at the earliest.
        self.cancelled: dict[str, float] = {}  # When that was answered.
        self.maybe: set[str] = set()  # What was told is unknown, so neither it nor its opposite is certain.
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join(180)
        assert not self._thread.is_alive()
        if self.failed is not None:
            raise self.failed

    def _run(self) -> None:
        try:
            while len(self.dues) < self._jobs:
                began = time.monotonic()
                self._enqueue()
                for _ in range(BATCH // 10):
                    self._touch()
                time.sleep(max(0.0, 0.2 - (time.monotonic() - began)))  # The pace of the load.
        except BaseException as error:
            self.failed = error

    def _client(self) -> Client:
        return self._random.choice(self._clients)

    def _enqueue(self) -> None:
        jobs: list[dict[str, Any]] = [
            {"module": "Note", "time": self._random.choice((0, 0.5, 2, 6)), "params": self._ran, "key": f"k{n}"}
            for n in self._random.sample(range(KEYS), BATCH)
        ]
        try:
            answers: Sequence[Any] = self._client().enq_many(jobs)
        except PartlyRefused as refused:
            answers = refused.answers
        for answer in answers:
            if not isinstance(answer, DuplicateKey):
                self.dues[answer.id] = answer.due.timestamp()

    def _touch(self) -> None:
        job_id = self._random.choice(list(self.dues)[-400:])
        try:
            if self._random.random() < 0.5:
                self._client().cancel(id=job_id)
                self.cancelled.setdefault(job_id, time.time())
            elif job_id not in self.cancelled:
                self.dues[job_id] = self._client().ext(id=job_id, time=1.5).timestamp()
        except (WrongState, NotFound):
            pass
        except (ConnectionLost, Busy):
            self.maybe.add(job_id)


def test_killed_servers_lose_double_and_hurry_nothing(fleet: Fleet, tmp_path: Path) -> None:
    # given
    seed = os.environ.get("GIVALIA_SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"GIVALIA_SEED={seed} replays this run")
    ran = tmp_path / "ran"
    for _ in range(3):
        fleet.add_server("--lease", "5")
    with psycopg.connect(fleet.url) as connection:
        connection.execute(AUDIT)
    for _ in range(6):
        fleet.add_worker("-c", "50")

    # when
    producers = [Producer(fleet, f"{seed}-{n}", JOBS // PRODUCERS, ran) for n in range(PRODUCERS)]
    choice = random.Random(seed)
    kills = 0
    while any(producer._thread.is_alive() for producer in producers):
        time.sleep(KILL_EVERY_S / 2)  # The pace of the storm.
        place = choice.randrange(3)
        fleet.servers[place].kill()
        kills += 1
        time.sleep(KILL_EVERY_S / 2)  # The others go on without it for a while.
        fleet.restart(place, "--lease", "5")
    for producer in producers:
        producer.join()
    live = "SELECT count(*) FROM givalia.jobs WHERE state < 2"
    await_true(lambda: fleet.ask(live) == [(0,)], "every job to end", seconds=60, every=0.2)

    # then
    dues = {job: due for producer in producers for job, due in producer.dues.items()}
    cancelled = {job: at for producer in producers for job, at in producer.cancelled.items()}
    states = dict(fleet.ask("SELECT id::text, state FROM givalia.jobs"))
    starts = [(words[0], float(words[1])) for words in lines_of(ran)]
    print(f"{len(dues)} jobs, {len(cancelled)} cancelled, {len(starts)} starts, {kills} kills")
    assert len(dues) >= JOBS
    assert kills >= 5
    assert states.keys() >= dues.keys()
    assert {job for job in dues if STORED_STATES[states[job]] == "cancelled"} >= cancelled.keys()
    assert {job for job in dues if states[job] != STORED_STATES.index("done")} <= cancelled.keys() | set().union(
        *(producer.maybe for producer in producers)
    )
    assert {job for job, at in starts if at < dues.get(job, at)} == set()
    assert {job for job, at in starts if at > cancelled.get(job, at)} == set()
    assert {job for job, _ in starts} >= {job for job in dues if STORED_STATES[states[job]] == "done"}
    _check_audit(fleet)
    assert fleet.check() == []


def _check_audit(fleet: Fleet) -> None:
    """Only legal steps, at most one end of each job, and never two live jobs of one key."""
    legal = {(before, after) for (before, _), after in TRANSITIONS.items()}
    ends: Counter[str] = Counter()
    live: dict[str, str] = {}
    for job, key, before, after in fleet.ask("SELECT id::text, key, before, after FROM public.audit ORDER BY at"):
        if before is not None:
            assert (STORED_STATES[before], STORED_STATES[after]) in legal, (job, before, after)
        assert live.setdefault(key, job) == job
        if after > 1:
            ends[job] += 1
            del live[key]
    assert max(ends.values()) == 1
