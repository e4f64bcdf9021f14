"""Several servers on one database are one queue: a command at one takes effect at all, at once and only once."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from postgres_fleet import Fleet
from system_rig import lines_of
from waits import await_true

from givalia_core import DuplicateKey, JobCancelled, NotFound, WrongState
from givalia_core.client.server_clock import ServerClock
from givalia_core.protocol import addresses


@pytest.fixture
def two(fleet: Fleet) -> Fleet:
    """Two servers that know of each other."""
    fleet.add_server()
    fleet.add_server()
    fleet.await_known(2)
    return fleet


def took(action: Any) -> float:
    began = time.monotonic()
    action()
    return time.monotonic() - began


def test_job_enqueued_at_one_server_runs_on_a_worker_of_the_other_and_both_know(two: Fleet) -> None:
    # given
    two.add_worker(at=[1])
    first, second = two.client_of(0), two.client_of(1)
    first.enq("Echo", params=0).wait(10)

    # when
    results: list[Any] = []
    seconds = sorted(took(lambda: results.append(first.enq("Echo", params="far").wait(5))) for _ in range(15))
    job = first.enq("Echo", params=7, key="k")
    job.wait(5)

    # then it did not wait for anybody to look
    assert results == ["far"] * 15
    assert seconds[7] < 0.5
    assert second.stat("k").state == "done"
    assert second.stat(id=job.id).result == 7


def test_key_is_one_over_all_servers_and_cancel_and_ext_act_at_any(two: Fleet, tmp_path: Path) -> None:
    # given
    two.add_worker(at=[0])
    first, second = two.client_of(0), two.client_of(1)
    job = first.enq("Note", time=3600, params=str(tmp_path / "ran"), key="cart")

    # when, then
    with pytest.raises(DuplicateKey) as refused:
        second.enq("Note", params="", key="cart")
    assert refused.value.id == job.id
    assert abs(second.ext("cart", 60).timestamp() - job.due.timestamp() - 60) < 0.001
    assert second.stat("cart").due == first.stat("cart").due
    assert second.cancel("cart") == "cancelled"
    assert first.stat(id=job.id).state == "cancelled"
    assert first.enq("Note", time=3600, params="", key="cart").id != job.id


def test_job_brought_forward_at_another_server_starts_on_time(two: Fleet, tmp_path: Path) -> None:
    # given
    two.add_worker(at=[0])
    first, second = two.client_of(0), two.client_of(1)
    first.enq("Note", time=3600, params=str(tmp_path / "ran"), key="soon")

    # when
    due = second.ext("soon", -3599)

    # then
    ran = await_true(lambda: lines_of(tmp_path / "ran"), "the job")
    assert 0 <= float(ran[0][1]) - due.timestamp() < 0.5


def test_running_job_is_stopped_from_the_other_server_and_the_waiter_there_hears_it(two: Fleet, tmp_path: Path) -> None:
    # given
    two.add_worker(at=[0])
    second = two.client_of(1)
    started = tmp_path / "started"
    job = second.enq("Stay", params={"file": str(started), "seconds": 60})
    await_true(lambda: lines_of(started), "the job to start")

    # when
    assert second.cancel(id=job.id, running=True) == "stop_requested"

    # then
    began = time.monotonic()
    with pytest.raises(JobCancelled):
        job.wait(10)
    assert time.monotonic() - began < 2


def test_what_a_worker_can_is_known_at_every_server(two: Fleet) -> None:
    # given
    two.add_worker("-n", "far", at=[1])

    # when
    first = two.client_of(0)
    job = first.enq("Note", params="", target_worker="nobody")

    # then
    await_true(lambda: [each["name"] for each in first.workers()] == ["far"], "the other server's worker")
    assert {each["module"] for each in first.modules()} >= {"Note", "Echo"}
    assert "nobody is not connected" in job.stat().why
    with pytest.raises(NotFound):
        first.stat("nothing")


def test_server_killed_its_worker_and_client_go_on_at_the_other(two: Fleet, tmp_path: Path) -> None:
    # given a job that runs, its worker connected to the first server
    worker = two.add_worker(at=[0, 1])
    client = two.client_of()
    started = tmp_path / "started"
    job = client.enq("Stay", params={"file": str(started), "seconds": 3})
    later = client.enq("Echo", time=4, params="later")
    await_true(lambda: lines_of(started), "the job to start")
    place = 0 if f":{two.servers[0].worker_port}" in worker.log else 1

    # when
    two.servers[place].kill()

    # then it was one attempt, reported at the other
    assert job.wait(20) == 1
    assert later.wait(20) == "later"
    assert len(lines_of(started)) == 1


def test_leases_of_a_server_that_is_gone_are_taken_over(fleet: Fleet, tmp_path: Path) -> None:
    # given a job whose worker and server are killed together
    fleet.add_server("--lease", "5")
    fleet.add_server("--lease", "5")
    worker = fleet.add_worker(at=[0])
    second = fleet.client_of(1)
    started = tmp_path / "started"
    job = second.enq("StayOnce", params={"file": str(started), "seconds": 60})
    await_true(lambda: lines_of(started), "the job to start")
    worker.kill()
    fleet.servers[0].kill()

    # when another worker is there for it
    fleet.add_worker(at=[1])

    # then the lease ends, counted from when the server was found gone, and it runs again
    assert job.wait(40) == 2
    assert len(lines_of(started)) == 2


def test_rolling_restart_loses_and_doubles_nothing(two: Fleet, tmp_path: Path) -> None:
    # given
    two.add_worker()
    two.add_worker()
    client = two.client_of()
    ran = tmp_path / "ran"
    jobs = []

    # when
    for place in (0, 1, 0, 1):
        jobs += client.enq_many([{"module": "Note", "time": n / 100, "params": str(ran)} for n in range(100)])
        two.servers[place].send(signal.SIGTERM)
        jobs += [client.enq("Note", time=0.2, params=str(ran)) for _ in range(30)]
        assert two.servers[place].wait() == 0
        two.restart(place)

    # then
    for job in jobs:
        job.wait(30)
    assert sorted(words[0] for words in lines_of(ran)) == sorted(job.id for job in jobs)


@pytest.mark.parametrize("is_old", [False, True], ids=["tells how long it waits", "of the version before"])
def test_what_waits_in_a_stopped_server_is_not_done_when_its_client_was_answered_by_another(
    two: Fleet, monkeypatch: pytest.MonkeyPatch, is_old: bool
) -> None:
    # given clients whose commands are in the sockets of a stopped server, and who were answered by the other one
    if is_old:
        monkeypatch.setattr(ServerClock, "limit", lambda self, now, patience_s: b"")
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    second = two.client_of(1)
    second.enq_many([{"module": "Waits", "time": 600, "key": key} for key in ("held", "moved", "ended")])
    wavering = [two.client_of(0, 1, resend=6.0) for _ in range(4)]
    for client in wavering:
        client.info()
    two.servers[0].send(signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(wavering[0].cancel, "none"),
            pool.submit(wavering[1].enq, "Waits", time=600, key="held"),
            pool.submit(wavering[2].requeue, "ended", time=600),
            pool.submit(wavering[3].ext, "moved", 100),
        ]
        refusals = [each.exception(20) for each in asked]
    assert [type(each) for each in refusals] == [NotFound, DuplicateKey, WrongState, type(None)]

    # when what they met has changed, and the stopped server goes on
    second.enq("Waits", time=600, key="none")
    second.cancel_many(["held", "ended"])
    for _ in range(6):
        second.ext("moved", 1)
    before = {status.key: status.due.timestamp() for status in second.list("waiting")}
    two.servers[0].send(signal.SIGCONT)
    first = two.client_of(0)
    await_true(lambda: first.info()["connections"] == 1, "the connections of those who have gone, and what they had sent")

    # then
    assert {status.key: status.due.timestamp() for status in second.list("waiting")} == pytest.approx(before, abs=0.05)
    assert before.keys() == {"none", "moved"}
