"""A job that does not yield costs its neighbours only time: no lease, no attempt, no report."""

from __future__ import annotations

from collections import Counter

import pytest
from system_rig import Rig, Running, lines_of
from waits import await_true

from givalia_core import JobFailed
from givalia_core.views import Status

WAITING = 200
LEASE_S = 5
LIMIT_S = 6  # Longer than a lease: what nobody beats for would be lost by then.


def blocked(worker: Running) -> str:
    """Return the worker's description of the job that blocks it."""
    return worker.await_log(r"job \S+ of \w+ has blocked the greenlets of its worker for \S+ s \(process \d+\)")[0]


@pytest.mark.parametrize("module", ["Spin", "Hold"])
def test_two_hundred_waiting_jobs_beside_one_that_never_gives_way(rig: Rig, module: str) -> None:
    """`Spin` turns in Python, `Hold` sits in C code with the interpreter's lock in its hand."""
    rig.start_server("--lease", LEASE_S, "--backoff", "0")
    worker = rig.start_worker("-c", WAITING + 50, "--block-limit", LIMIT_S)
    client = rig.client()
    rests, blocks = rig.folder / "rests", rig.folder / "blocks"
    short, long = ({"file": str(rests), "seconds": seconds} for seconds in (0.5, 4.0))
    jobs = client.enq_many({"module": "Rest", "params": short if n < 50 else long} for n in range(WAITING))
    await_true(lambda: sum(line[0] == "end" for line in lines_of(rests)) >= 50, "some have ended, others wait")

    culprit = client.enq(module, params={"file": str(blocks), "seconds": 60}, max_attempts=1, key="spinner")

    said = blocked(worker)
    assert culprit.id in said
    assert module in said
    (shown,) = await_true(
        lambda: [each for each in next(iter(client.workers()))["processes"] if each["state"] == "blocked" and each["stack"]],
        "the server shows it",
    )
    assert (shown["module"], shown["job"]) == (module, culprit.id.replace("-", ""))
    assert shown["blocked_us"] >= 1_000_000
    assert "process" in shown["stack"]
    with pytest.raises(JobFailed):
        culprit.wait(30)
    status = culprit.stat()
    assert (status.error or "").startswith("timeout: blocked, it has not yielded for ")
    assert "system_" in (status.error or "")  # The stack, down to the line in the job's code.

    for job in jobs:
        job.wait(30)
    statuses: list[Status] = [job.stat() for job in jobs]
    assert Counter((str(each.state), each.attempts) for each in statuses) == {("done", 1): WAITING}
    assert client.info()["stale_reports"] == 0
    ended = Counter(line[1] for line in lines_of(rests) if line[0] == "end")
    assert all(ended[job.id] == 1 for job in jobs[:50])
    assert client.enq("Echo", params="goes on").wait(10) == "goes on"
    assert "lease" not in worker.log
    assert worker.log.count("its process is replaced") == 1
    assert "with the greenlets is gone" not in worker.log


def test_two_hundred_jobs_beside_ten_that_hang_in_their_clean_up(rig: Rig) -> None:
    rig.start_server("--lease", LEASE_S)
    worker = rig.start_worker("-c", WAITING + 50, "--stop-grace", "0.5")
    client = rig.client()
    file = rig.folder / "rests"
    rest = {"module": "Rest", "params": {"file": str(file), "seconds": 6.0}, "max_attempts": 1}
    neighbours = client.enq_many([rest] * WAITING)
    await_true(lambda: len(lines_of(file)) >= WAITING, "all neighbours run")

    hanging = client.enq_many([{"module": "HangInCleanUp", "max_attempts": 1}] * 10)

    for job in hanging:
        with pytest.raises(JobFailed):
            job.wait(15)
        status = job.stat()
        assert status.reason == "exhausted"
        assert (status.error or "").startswith("timeout: it ran longer than 1 s; it did not end when it was told to")
        assert "system_processes.py" in (status.error or "")  # Where it hangs.
    worker.await_log("the new processes have taken over")
    for job in neighbours:
        job.wait(30)
    statuses = [job.stat() for job in neighbours]
    assert Counter((str(each.state), each.attempts) for each in statuses) == {("done", 1): WAITING}
    assert Counter(line[0] for line in lines_of(file)) == {"start": WAITING, "end": WAITING}
    assert client.enq("Echo", params="next").wait(10) == "next"
    await_true(
        lambda: [each["role"] for each in next(iter(client.workers()))["processes"]] == ["greenlets"],
        "the process with what hangs has ended",
    )
    assert client.info()["stale_reports"] == 0


def test_a_job_that_gives_way_before_the_limit_costs_nobody_anything(rig: Rig) -> None:
    rig.start_server("--lease", LEASE_S)
    worker = rig.start_worker()
    file = rig.folder / "spins"
    job = rig.client().enq("Spin", params={"file": str(file), "seconds": 3})

    blocked(worker)

    assert job.wait(20) > 0
    worker.await_log("shows signs of life again")
    assert rig.client().enq("Echo", params="next").wait(10) == "next"
    assert rig.client().enq("Spin", params={"file": str(file), "seconds": 0}).wait(10) >= 0
    assert len({line[1] for line in lines_of(file)}) == 1


def test_a_wait_in_c_code_is_looked_at_and_lasts_as_long_as_it_would(rig: Rig) -> None:
    rig.start_server("--lease", LEASE_S)
    worker = rig.start_worker()
    job = rig.client().enq("SleepInC", params=4)

    blocked(worker)
    worker.await_log(r"line \d+ in process")

    waited_s, left_s = job.wait(20)
    assert waited_s >= 4
    assert left_s == 0


def test_a_job_that_spins_beyond_its_own_timeout_loses_its_process_then(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker("--stop-grace", "0.3")
    file = rig.folder / "spins"
    job = rig.client().enq("Spin", params={"file": str(file), "seconds": 60}, timeout=2, max_attempts=1)

    with pytest.raises(JobFailed):
        job.wait(15)

    assert (job.stat().error or "").startswith("timeout: it ran longer than 2 s")
    assert rig.client().enq("Echo", params="next").wait(10) == "next"


def test_what_a_job_has_started_is_the_jobs_fault_and_no_neighbours(rig: Rig) -> None:
    rig.start_server("--backoff", "0")
    worker = rig.start_worker("--block-limit", "2")
    file = rig.folder / "rests"
    neighbour = rig.client().enq("Rest", params={"file": str(file), "seconds": 4})
    job = rig.client().enq("SpinAside", params={"seconds": 60}, max_attempts=1)

    with pytest.raises(JobFailed):
        job.wait(15)

    assert job.id in blocked(worker)
    assert neighbour.wait(15) == 1


def test_a_cancelled_job_that_spins_is_stopped(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker("--stop-grace", "0.5")
    file = rig.folder / "spins"
    job = rig.client().enq("Spin", params={"file": str(file), "seconds": 60})
    await_true(lambda: lines_of(file), "the job runs")

    job.cancel(running=True)

    await_true(lambda: job.stat().state == "cancelled", "it is stopped")
    assert rig.client().enq("Echo", params="next").wait(10) == "next"
