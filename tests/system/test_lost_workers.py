"""Workers that are killed, paused and delayed by their own jobs: nothing is lost, nothing runs twice without need.

All tests depend on leases of five seconds, the shortest there are. So the three scenarios run at the same time, on one server,
and each test then checks the end of its scenario.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from system_rig import Rig, lines_of
from waits import await_true

from givalia_core import Status

LEASE_S = 5
JOBS = 100
SPIN_S = 15


class Story(NamedTuple):
    """The lines that the jobs wrote, the server's final state, and further facts."""

    starts: list[list[str]]
    stats: list[Status]
    more: dict[str, Any]


def _killed(rig: Rig, file: Path) -> Story:
    """A worker is killed in the middle of a hundred jobs; another of its name stands by."""
    client = rig.client()
    victim = rig.start_worker("-n", "killed", "--only-targeted", "-c", JOBS)
    job = {"module": "StayOnce", "params": {"file": str(file), "seconds": 600}, "target_worker": "killed"}
    jobs = client.enq_many([job] * JOBS)
    await_true(lambda: len(lines_of(file)) == JOBS, "all jobs have started")
    (pid,) = {line[1] for line in lines_of(file)}
    victim.kill()
    rig.start_worker("-n", "killed", "--only-targeted", "-c", JOBS)
    results = [job.wait(60) for job in jobs]
    return Story(lines_of(file), [job.stat() for job in jobs], {"results": results, "pid": pid})


def _paused(rig: Rig, file: Path) -> Story:
    """A worker is stopped for longer than its leases, and goes on when its jobs have run elsewhere."""
    client = rig.client()
    sleeper = rig.start_worker("-n", "paused", "--only-targeted", "-c", 10)
    jobs = [
        client.enq("StayOnce", params={"file": str(file), "seconds": seconds}, target_worker="paused")
        for seconds in (1.0, 1.0, 30.0)
    ]
    await_true(lambda: len(lines_of(file)) == len(jobs), "all jobs have started")
    sleeper.send(signal.SIGSTOP)
    helper = rig.start_worker("-n", "paused", "--only-targeted", "-c", 10)
    results = [job.wait(60) for job in jobs]
    helper.stop()
    sleeper.send(signal.SIGCONT)
    sleeper.await_log("connected to", count=2)
    # The one that is paused no more works again, for it is the only one of its name.
    again = client.enq("Echo", params="again", target_worker="paused").wait(30)
    more = {"results": results, "log": sleeper.log, "again": again, "pid": str(sleeper.pid), "info": client.info()}
    return Story(lines_of(file), [job.stat() for job in jobs], more)


def _spinning(rig: Rig, file: Path) -> Story:
    """A job holds the interpreter for three leases; a neighbour of its worker waits meanwhile."""
    client = rig.client()
    worker = rig.start_worker("-n", "spinning", "--only-targeted", "-c", 10)
    params = {"file": str(file), "seconds": SPIN_S}
    job = client.enq("Spin", params=params, target_worker="spinning")
    await_true(lambda: lines_of(file), "the job has started")
    neighbour = client.enq("Echo", params="after you", target_worker="spinning")
    turns = job.wait(60)
    return Story(
        lines_of(file),
        [job.stat()],
        {"turns": turns, "neighbour": neighbour.wait(10), "log": worker.log, "of": neighbour.stat()},
    )


@pytest.fixture(scope="module")
def stories(shared_rig: Rig) -> Iterator[Callable[[str], Story]]:
    shared_rig.start_server("--lease", LEASE_S)
    files = {name: shared_rig.folder / name for name in ("killed", "paused", "spinning")}
    tellers = {"killed": _killed, "paused": _paused, "spinning": _spinning}
    with ThreadPoolExecutor(len(tellers)) as pool:
        told: dict[str, Future[Story]] = {name: pool.submit(tell, shared_rig, files[name]) for name, tell in tellers.items()}
        yield lambda name: told[name].result(90)


def test_r08_every_job_of_a_killed_worker_runs_again_on_another(stories: Callable[[str], Story]) -> None:
    starts, stats, more = stories("killed")

    first = [line for line in starts if line[1] == more["pid"]]
    second = [line for line in starts if line[1] != more["pid"]]
    assert len(first) == len(second) == JOBS
    assert {line[0] for line in first} == {line[0] for line in second} == {status.id for status in stats}


def test_attempts_that_a_killed_worker_took_with_it_are_counted(stories: Callable[[str], Story]) -> None:
    starts, stats, more = stories("killed")

    assert more["results"] == [2] * JOBS
    assert {(status.state, status.attempts) for status in stats} == {("done", 2)}
    assert {line[2] for line in starts if line[1] != more["pid"]} == {"2"}


def test_a_paused_workers_jobs_run_elsewhere_and_are_settled_once(stories: Callable[[str], Story]) -> None:
    starts, stats, more = stories("paused")

    assert more["results"] == [2, 2, 2]
    assert {(status.state, status.attempts) for status in stats} == {("done", 2)}
    assert sorted(line[2] for line in starts) == ["1", "1", "1", "2", "2", "2"]
    # A result of attempt 1 that came later would show here.
    assert [status.result for status in stats] == [2, 2, 2]


def test_a_worker_that_was_paused_gives_its_jobs_up_and_goes_on(stories: Callable[[str], Story]) -> None:
    _, _, more = stories("paused")

    given_up = more["log"].count("is stopped: ")
    assert given_up + more["info"]["stale_reports"] >= 3
    assert given_up >= 1  # The one that would have stayed for half a minute.
    assert more["again"] == "again"


def test_a_job_that_spins_for_three_leases_keeps_its_own_and_runs_once(stories: Callable[[str], Story]) -> None:
    starts, (status,), more = stories("spinning")

    assert len(starts) == 1
    assert (status.state, status.attempts) == ("done", 1)
    assert more["turns"] > 0
    assert "not connected" not in more["log"]


def test_a_neighbour_of_a_spinning_job_is_late_and_not_lost(stories: Callable[[str], Story]) -> None:
    _, _, more = stories("spinning")

    assert more["neighbour"] == "after you"
    assert more["of"].attempts == 1
