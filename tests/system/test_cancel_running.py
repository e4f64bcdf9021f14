"""Cancels of running jobs at random moments, on both executors, while workers are killed: no job runs after its answer."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from functools import partial

import psutil
from system_rig import Rig, Running, lines_of
from waits import await_true

from givalia_core import Client, GivaliaError
from givalia_core.client import JobHandle

JOBS = 300
MODULES = ("Dated", "DatedApart")
UNDER_WAY_S = 3.0  # An attempt that was lent before the cancel may have its first line yet to come.
SEED = int(os.environ.get("GIVALIA_SEED", random.randrange(1 << 30)))


class Storm:
    """Kills workers, or one of their processes, until told to stop; somebody always comes after them."""

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self._rig, self._rng = rig, rng
        self._over = threading.Event()
        self.kills: Counter[str] = Counter()
        self._next = rng.sample(["worker", "process"], 2)  # Of each kind one, however few there come to be.
        self.workers = [self._start() for _ in range(2)]
        self._thread = threading.Thread(target=self._blow)
        self._thread.start()

    def _start(self) -> Running:
        return self._rig.start_worker("-c", 40, "--processes", 4, "--stop-grace", "0.3")

    def _blow(self) -> None:
        while not self._over.wait(self._rng.uniform(0.5, 1.5)):
            place = self._rng.randrange(len(self.workers))
            self._next = self._next or self._rng.sample(["worker", "process"], 10, counts=[3, 7])
            if self._next.pop() == "worker":
                self.kills["worker"] += 1
                self.workers[place].kill()
                self.workers[place] = self._start()
            else:
                self._kill_one_of(self.workers[place])

    def _kill_one_of(self, worker: Running) -> None:
        try:
            victim = self._rng.choice(psutil.Process(worker.pid).children(recursive=True))
            victim.send_signal(signal.SIGKILL)
            self.kills["process"] += 1
        except (psutil.Error, IndexError):
            pass

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def _has_started(client: Client, job_id: str) -> bool:
    return client.stat(id=job_id).state not in ("waiting", "ready")


def _cancel(port: int, jobs: list[JobHandle], rng: random.Random, answered: dict[str, tuple[float, str, int]]) -> None:
    """Cancel each job some time after it has started; when it was answered, how, and in which attempt that was."""
    with Client("127.0.0.1", port) as client:
        for job in jobs:
            await_true(partial(_has_started, client, job.id), "it runs", 60, 0.01)
            time.sleep(rng.expovariate(10))  # At a random moment of the run.
            try:
                answer = client.cancel(id=job.id, running=True)
            except GivaliaError:
                continue  # It has ended meanwhile.
            at = time.time()
            answered[job.id] = (at, answer, client.stat(id=job.id).attempts)


def test_none_of_three_hundred_jobs_runs_again_after_its_cancel_was_answered(rig: Rig) -> None:
    print(f"GIVALIA_SEED={SEED} replays what is chosen")
    rng = random.Random(SEED)
    server = rig.start_server("--lease", "5")
    file = rig.folder / "runs"
    storm = Storm(rig, random.Random(rng.random()))
    jobs = rig.client().enq_many(
        {
            "module": MODULES[n // 2 % 2],
            "time": n * 0.045,
            "params": {"file": str(file), "seconds": rng.uniform(0.5, 30), "heeds": n % 4 < 2},
            "max_attempts": 20,
        }
        for n in range(JOBS)
    )
    answered: dict[str, tuple[float, str, int]] = {}
    parts = [jobs[n::6] for n in range(6)]
    threads = [
        threading.Thread(target=_cancel, args=(server.port, part, random.Random(rng.random()), answered)) for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    storm.stop()
    await_true(lambda: all(job.stat().state in ("done", "cancelled") for job in jobs), "all have ended", 60, 0.5)
    client = rig.client()
    await_true(
        lambda: all(each["jobs"] == 0 for worker in client.workers() for each in worker["processes"]),
        "no process has a job",
        20,
    )

    starts: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for job_id, attempt, _, at in lines_of(file):
        starts[job_id].append((int(attempt), float(at)))
    print(f"{dict(storm.kills)}, {sum(map(len, starts.values()))} starts, {Counter(each[1] for each in answered.values())}")
    assert storm.kills["worker"]
    assert storm.kills["process"]
    assert len(answered) > JOBS * 0.9
    for job_id, (answered_at, answer, attempts) in answered.items():
        late = [(attempt, at) for attempt, at in starts[job_id] if at > answered_at]
        under_way = [(attempt, at) for attempt, at in late if attempt == attempts and at < answered_at + UNDER_WAY_S]
        assert late == (under_way[:1] if answer == "stop_requested" else []), (job_id, answer, attempts, starts[job_id])
    ends = Counter(str(job.stat().state) for job in jobs if job.id in answered)
    assert set(ends) <= {"cancelled", "done"}
    assert ends["cancelled"] > JOBS * 0.8
