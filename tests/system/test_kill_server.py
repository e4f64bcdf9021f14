"""Ten thousand acknowledged commands, and a server that is killed meanwhile: everything acknowledged as safe is safe."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict

import pytest
from system_rig import Rig, lines_of
from waits import await_true

from givalia_core import Client, WrongState

JOBS = 10_000
KILLS = (3_000, 7_000)
BATCH = 250
EARLY_S = 0.002
"""A due is told in microseconds and the file has time.time(): two readings of one clock, in two processes."""


class Producer:
    """Enqueues, and remembers what was acknowledged: a client program that trusts what it is told."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.file = str(rig.folder / "notes")
        self.due: dict[str, float] = {}
        self.cancelled: set[str] = set()
        self.extended = 0
        self.errors: list[BaseException] = []

    def __call__(self, share: int, act: str) -> None:
        try:
            with Client("127.0.0.1", self._rig.server.port) as client:  # type: ignore[union-attr]
                done = 0
                while done < share:
                    done += getattr(self, act)(client, done)
        except BaseException as error:
            self.errors.append(error)

    def many(self, client: Client, done: int) -> int:
        """A batch that is due over the next seconds."""
        jobs = [{"module": "Note", "params": self.file, "time": (n % 50) / 10} for n in range(BATCH)]
        self.due.update((job.id, job.due.timestamp()) for job in client.enq_many(jobs))
        return BATCH

    def one(self, client: Client, done: int) -> int:
        """One, at once or soon."""
        job = client.enq("Note", params=self.file, time=(done % 3) / 2, key=f"one-{done}")
        self.due[job.id] = job.due.timestamp()
        return 1

    def extended_one(self, client: Client, done: int) -> int:
        """One that is pushed back, twice, as far as a dead server lets us."""
        job = client.enq("Note", params=self.file, time=2, key=f"extended-{done}")
        self.due[job.id] = job.due.timestamp()
        try:
            self.due[job.id] = job.ext(1).timestamp()
            self.due[job.id] = job.ext(0.5).timestamp()
        except WrongState:
            return 1  # The server was away for so long that the job has run.
        self.extended += 1
        return 1

    def cancelled_one(self, client: Client, done: int) -> int:
        """One that is called off before it is due, as far as a dead server lets us."""
        job = client.enq("Note", params=self.file, time=4, key=f"cancelled-{done}")
        self.due[job.id] = job.due.timestamp()
        try:
            assert job.cancel() == "cancelled"
        except WrongState:
            return 1  # The server was away for so long that the job has run: then it must have.
        self.cancelled.add(job.id)
        return 1


@pytest.fixture(scope="module")
def storm(shared_rig: Rig) -> tuple[Producer, dict[str, list[float]]]:
    """All of it, with two kills in the middle; what was acknowledged, and what ran when."""
    rig = shared_rig
    server = rig.start_server()
    rig.start_worker("-c", 500)
    producer = Producer(rig)
    shares = {"many": JOBS - 1_600, "one": 800, "extended_one": 400, "cancelled_one": 400}
    threads = [threading.Thread(target=producer, args=(share, act)) for act, share in shares.items()]
    for thread in threads:
        thread.start()
    for kill in KILLS:
        await_true(lambda kill=kill: len(producer.due) >= kill or producer.errors, f"{kill} acknowledged", 60, every=0.001)
        assert any(thread.is_alive() for thread in threads), "more should have been coming"
        server.kill()
        server = rig.start_server()
    for thread in threads:
        thread.join(60)
    assert not producer.errors
    with rig.client() as client:
        await_true(lambda: client.info()["live"] == 0, "everything has ended", 60, every=0.1)
    starts: dict[str, list[float]] = defaultdict(list)
    for job_id, at, _ in lines_of(rig.folder / "notes"):
        starts[job_id].append(float(at))
    return producer, starts


def test_every_acknowledged_job_ran(storm: tuple[Producer, dict[str, list[float]]]) -> None:
    producer, starts = storm

    assert len(producer.due) >= JOBS
    assert not set(producer.due) - set(starts) - producer.cancelled


def test_no_cancelled_job_ran(storm: tuple[Producer, dict[str, list[float]]]) -> None:
    producer, starts = storm

    assert len(producer.cancelled) > 300
    assert not producer.cancelled & set(starts)


def test_no_job_ran_before_its_due_extended_or_not(storm: tuple[Producer, dict[str, list[float]]]) -> None:
    producer, starts = storm

    assert producer.extended > 300
    early = {
        job_id: due - min(starts[job_id])
        for job_id, due in producer.due.items()
        if job_id in starts and min(starts[job_id]) < due - EARLY_S
    }
    assert not early


def test_nothing_ran_that_nobody_was_told_of_beyond_what_was_under_way(storm: tuple[Producer, dict[str, list[float]]]) -> None:
    """A command under way when the server died is sent again with its id: it becomes one job, and is acknowledged."""
    producer, starts = storm

    assert not set(starts) - set(producer.due)


def test_no_job_ran_twice_but_those_that_the_kill_caught(storm: tuple[Producer, dict[str, list[float]]]) -> None:
    """At least once: what was running when the server died is settled by its worker afterwards, and need not run again."""
    _, starts = storm

    assert Counter(len(each) for each in starts.values())[1] == len(starts)


def test_the_store_is_sound_after_two_kills(storm: tuple[Producer, dict[str, list[float]]], shared_rig: Rig) -> None:
    started = time.monotonic()
    assert shared_rig.server is not None
    assert shared_rig.server.stop() == 0
    assert time.monotonic() - started < 10

    assert shared_rig.run("givalia", "store", "check", "--store", f"sqlite://{shared_rig.store}").returncode == 0
