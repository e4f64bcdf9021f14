"""A worker's processes are made, replaced, ended and shown, whatever the jobs in them do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from system_install import Installed, Wheels, write_package
from system_rig import Rig, Running, free_port, lines_of
from waits import await_true

from givalia_core import JobCancelled, JobFailed
from givalia_core.cli import requests


def family(worker: Running) -> list[psutil.Process]:
    """Every process of a worker but the supervisor."""
    return psutil.Process(worker.pid).children(recursive=True)


def left_of(processes: list[psutil.Process], seconds: float = 1.0) -> list[psutil.Process]:
    """Return those that have not ended in the given time; a zombie has ended."""
    psutil.wait_procs(processes, 0)

    def alive() -> list[psutil.Process]:
        return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]

    with contextlib.suppress(AssertionError):
        await_true(lambda: not alive(), "they end", seconds, 0.01)
    return alive()


def shown(rig: Rig, **wanted: Any) -> list[dict[str, Any]]:
    """The processes of the one worker that the server shows, of those values."""
    (worker,) = rig.client().workers()
    return [each for each in worker["processes"] if all(each[name] == value for name, value in wanted.items())]


def starts(file: Path, what: str = "start") -> list[list[str]]:
    return [line for line in lines_of(file) if line[0] == what]


@pytest.mark.parametrize("module", ["Stubborn", "StubbornApart"])
def test_a_job_that_takes_no_notice_of_its_timeout_loses_its_process(rig: Rig, module: str) -> None:
    rig.start_server()
    worker = rig.start_worker("--stop-grace", "0.3")
    file = rig.folder / "stubborn"
    job = rig.client().enq(module, params={"file": str(file), "seconds": 60}, timeout=1, max_attempts=1)

    with pytest.raises(JobFailed):
        job.wait(20)

    status = job.stat()
    assert (status.state, status.reason) == ("dead", "exhausted")
    assert (status.error or "").startswith("timeout: it ran longer than 1 s")
    assert starts(file, "took")[0][2:] == ["Stopped", "timeout"]
    pid = int(starts(file)[0][3])
    await_true(lambda: not psutil.pid_exists(pid), "its process is gone")
    assert rig.client().enq("Echo", params="next").wait(10) == "next"
    assert rig.client().enq("EchoApart", params="next").wait(10)[1] == "next"
    assert worker.is_alive


@pytest.mark.parametrize("module", ["Stubborn", "StubbornApart"])
def test_a_cancelled_job_that_takes_no_notice_is_stopped_and_not_tried_again(rig: Rig, module: str) -> None:
    rig.start_server()
    rig.start_worker("--stop-grace", "0.3")
    file = rig.folder / "stubborn"
    job = rig.client().enq(module, params={"file": str(file), "seconds": 60}, max_attempts=5)
    await_true(lambda: starts(file), "the job runs")

    assert job.cancel(running=True) == "stop_requested"

    with pytest.raises(JobCancelled):
        job.wait(20)
    assert starts(file, "took")[0][2:] == ["Stopped", "cancelled"]
    assert len(starts(file)) == 1
    assert job.stat().state == "cancelled"


def test_a_job_in_its_own_process_sees_that_it_was_cancelled(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker()
    file = rig.folder / "stays"
    job = rig.client().enq("StayApart", params={"file": str(file), "seconds": 60, "progress": [0.5, "half"]})
    await_true(lambda: job.stat().progress, "its progress shows")

    job.cancel(running=True)

    with pytest.raises(JobCancelled):
        job.wait(4)  # Before the time comes when it would be made to end.
    assert "stopped as asked" in (job.stat().error or "")


def test_a_job_that_is_made_to_end_cleans_up(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker("--stop-grace", "2")
    file = rig.folder / "tidy"
    job = rig.client().enq("Tidy", params={"file": str(file), "seconds": 60}, timeout=1, max_attempts=1)

    with pytest.raises(JobFailed):
        job.wait(20)

    assert [line[0] for line in lines_of(file)] == ["start", "cleaned"]


@pytest.mark.parametrize("module", ["Fork", "ForkApart"])
def test_a_fork_that_waits_goes_on_and_ends_as_it_likes(rig: Rig, module: str) -> None:
    rig.start_server()
    rig.start_worker()

    assert rig.client().enq(module, max_attempts=1).wait(10) == 7


def test_a_fork_may_log_whatever_the_threads_of_its_job_do(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker()

    assert rig.client().enq("ForkWhileSaying", max_attempts=1).wait(60) == [7] * 20


def test_a_process_is_used_again_up_to_a_number(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker("--jobs-per-process", "3", "--processes", "1")
    client = rig.client()

    pids = [client.enq("EchoApart").wait(10)[0] for _ in range(6)]

    assert (len(set(pids[:3])), len(set(pids[3:])), len(set(pids))) == (1, 1, 2)
    await_true(lambda: not psutil.pid_exists(pids[0]), "the first process is gone")


def test_as_many_jobs_have_processes_as_may(rig: Rig) -> None:
    rig.start_server()
    rig.start_worker("--processes", "2")
    file = rig.folder / "stays"
    jobs = [rig.client().enq("StayApart", params={"file": str(file), "seconds": 60}) for _ in range(4)]

    await_true(lambda: len(lines_of(file)) == 2, "two have started")
    await_true(lambda: len(shown(rig, role="job", state="running", module="StayApart")) == 2, "they are shown")

    assert rig.client().enq("Echo", params="beside them").wait(10) == "beside them"
    said = rig.cli("workers").stdout
    assert "100 + 2" in said
    assert said.count("StayApart") >= 3
    assert sorted(str(job.stat().state) for job in jobs) == ["ready", "ready", "running", "running"]
    assert len({line[1] for line in lines_of(file)}) == 2
    for job in jobs:
        job.cancel(running=True)


def test_a_job_that_takes_too_much_memory_is_ended(rig: Rig) -> None:
    rig.start_server()
    worker = rig.start_worker("--memory-per-process", "200")
    job = rig.client().enq("Grow", params={"mib": 400, "seconds": 60}, max_attempts=1)

    with pytest.raises(JobFailed):
        job.wait(20)

    assert (job.stat().error or "").startswith("oom: ")
    assert rig.client().enq("Grow", params={"mib": 10, "seconds": 0}).wait(10) == 10 << 20
    assert "has taken too much memory" in worker.log


def test_lines_of_either_isolation_carry_their_job_and_reach_the_logging_plugin(release: Installed, tmp_path: Path) -> None:
    with Rig(release, tmp_path) as rig:
        rig.start_server()
        worker = rig.start_worker(GIVALIA_LOGGING_FORMAT="json")
        for module in ("Say", "SayApart"):
            job = rig.client().enq(module, params=module, key=f"key-of-{module}")
            assert job.wait(10) == "said"
            line = worker.await_log(rf".*said by {module}.*")[0]
            for part in ('"level": "warning"', f'"job": "{job.id}"', f'"key": "key-of-{module}"', '"attempt": 1'):
                assert part in line


def test_the_port_of_the_metrics_passes_from_one_process_to_the_next(release: Installed, tmp_path: Path) -> None:
    with Rig(release, tmp_path) as rig:
        rig.start_server()
        port = free_port()
        worker = rig.start_worker(GIVALIA_PROMETHEUS_PORT=str(port), GIVALIA_LOGGING_FORMAT="json")
        (before,) = rig.hosts_of(worker)
        worker.send(signal.SIGHUP)
        worker.await_log("have taken over")
        await_true(lambda: before not in rig.hosts_of(worker), "the process before is gone")

        def scrape() -> str:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as page:
                return str(page.read().decode())
            return ""

        assert 'givalia_worker_events_total{event="crews"} 2.0' in await_true(scrape, "metrics are there again")


@pytest.mark.parametrize("module", ["Rest", "StayApart", "Spin"])
def test_the_processes_of_a_killed_supervisor_end_within_a_second(rig: Rig, module: str) -> None:
    rig.start_server()
    worker = rig.start_worker()
    file = rig.folder / "runs"
    rig.client().enq(module, params={"file": str(file), "seconds": 60})
    await_true(lambda: lines_of(file), "the job runs")
    left = family(worker)
    assert len(left) >= 2

    worker.kill()

    assert left_of(left) == []


def test_a_second_signal_ends_a_worker_at_once_and_its_processes_with_it(rig: Rig) -> None:
    rig.start_server()
    worker = rig.start_worker()
    file = rig.folder / "runs"
    rig.client().enq("StayApart", params={"file": str(file), "seconds": 60})
    await_true(lambda: lines_of(file), "the job runs")
    left = family(worker)
    worker.send(signal.SIGTERM)
    worker.await_log("draining")
    time.sleep(requests.SAME_REQUEST_S)  # The time after which another signal is another request.

    worker.send(signal.SIGTERM)

    assert worker.wait(3) == 1
    assert left_of(left) == []


def test_a_stopping_worker_stops_what_does_not_end_on_both_executors(rig: Rig) -> None:
    rig.start_server("--backoff", "600")
    worker = rig.start_worker("--grace", "0.5", "--stop-grace", "0.5")
    files = {module: rig.folder / module for module in ("Rest", "Tidy", "Stubborn", "StubbornApart")}
    jobs = {m: rig.client().enq(m, params={"file": str(file), "seconds": 60}, max_attempts=2) for m, file in files.items()}
    await_true(lambda: all(starts(file) for file in files.values()), "all jobs run")
    left = family(worker)

    assert worker.stop(10) == 0

    assert left_of(left) == []
    for module, job in jobs.items():
        status = job.stat()
        assert (status.state in ("waiting", "ready"), status.attempts) == (True, 1), module
        assert "shutdown: its worker stops" in (status.error or ""), module
    assert [line[0] for line in lines_of(files["Tidy"])] == ["start", "cleaned"]


def test_the_nursery_and_the_host_are_started_again_when_they_are_killed(rig: Rig) -> None:
    rig.start_server()
    worker = rig.start_worker()
    client = rig.client()
    assert client.enq("EchoApart", params=1).wait(10)[1] == 1
    (host,) = rig.hosts_of(worker)

    os.kill(host, signal.SIGKILL)
    assert client.enq("Echo", params="after the host").wait(10) == "after the host"
    (nursery,) = psutil.Process(worker.pid).children()
    nursery.kill()
    assert client.enq("Echo", params="after the nursery").wait(10) == "after the nursery"
    assert client.enq("EchoApart", params=2).wait(10)[1] == 2

    await_true(lambda: [each["restarts"] for each in shown(rig, role="greenlets")] == [2], "both deaths are shown")
    assert worker.is_alive


DEADLY = """
import os
from givalia_core import WorkModule
if os.environ.get("DEADLY"):
    os.abort()
class Deadly(WorkModule):
    def process(self): ...
"""


def test_a_module_whose_import_ends_the_process_is_shown_as_broken_and_the_others_are_served(
    wheels: Wheels, tmp_path: Path
) -> None:
    package = write_package(tmp_path, "deadly-jobs", DEADLY, {"Deadly": ":Deadly"[1:]})
    installed = Installed(tmp_path / "environment", [*wheels.plain, *wheels.of_all([package])])
    with Rig(installed, tmp_path) as rig:
        rig.start_server()
        rig.start_worker(DEADLY="yes")

        assert rig.client().enq("Echo", params="served").wait(10) == "served"

        (row,) = (each for each in rig.client().modules() if each["module"] == "Deadly")
        assert "importing it ended the process" in row["broken"]
        assert "SIGABRT" in row["broken"]
        assert "is not served" in rig._processes[1].log


def test_a_worker_reloads_without_losing_or_doubling_a_job(rig: Rig) -> None:
    """A thousand jobs flow, and every two seconds for twenty the processes are replaced under them."""
    rig.start_server()
    worker = rig.start_worker("-c", "50")
    client = rig.client()
    file = rig.folder / "flow"
    started = time.monotonic()
    jobs = client.enq_many(
        {"module": module, "time": n * 0.02, "params": {"file": str(file), "seconds": 0.3}, "max_attempts": 1}
        for n in range(1000)
        for module in ["StayApart" if n % 20 == 0 else "Rest"]
    )

    for number in range(1, 11):
        time.sleep(max(started + 2 * number - time.monotonic(), 0))  # The pace of the reloads.
        worker.send(signal.SIGHUP)

    for job in jobs:
        job.wait(30)
    begun = [line[1] if line[0] == "start" else line[0] for line in lines_of(file) if line[0] != "end"]
    assert len(begun) == len(set(begun)) == 1000
    assert {(str(status.state), status.attempts) for status in [job.stat() for job in jobs]} == {("done", 1)}
    assert worker.log.count("have taken over") >= 5  # Some of them may come while the processes before are still starting.
    assert client.info()["stale_reports"] == 0
    await_true(lambda: len(shown(rig, role="greenlets")) == 1, "the processes before are gone")
