"""Both clients over a network that loses answers, over restarts, and from many threads: every command takes effect once."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from system_install import Installed
from system_proxy import Proxy
from system_rig import Rig, free_port, lines_of
from waits import await_true

from givalia_core import (
    BadRequest,
    Client,
    ConnectionLost,
    DuplicateKey,
    NotFound,
    PartlyRefused,
    ResultLost,
    TooLarge,
    WaitTimeout,
    WrongState,
)
from givalia_core.protocol import frames
from givalia_core.protocol.messages import Kind

CLOCKS_S = 0.05
"""A due is shown on the wall clock, counted from two clocks that are read one after the other."""


class LosingProxy(Proxy):
    """A proxy that loses the first answer of each kind of command, and the connection with it.

    The server has answered by then, so the command has taken effect: exactly what a network that breaks does.
    """

    def __init__(self, port: int) -> None:
        self.lost: list[Kind] = []
        super().__init__(port)

    def ask(self, near: socket.socket, far: socket.socket, asked: dict[int, Any]) -> None:
        reader = frames.FrameReader()
        skip = len(frames.MAGIC)
        with contextlib.suppress(OSError):
            while data := near.recv(65_536):
                rest, skip = data[skip:], max(skip - len(data), 0)
                for frame in reader.feed(rest):
                    assert isinstance(frame, frames.Frame)
                    asked[frame.request] = Kind(frame.kind)
                far.sendall(data)
        self.cut(near, far)

    def answer(self, far: socket.socket, near: socket.socket, asked: dict[int, Any]) -> None:
        reader = frames.FrameReader(frames.ANSWER_BYTES_MAX)
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                for frame in reader.feed(data):
                    kind = asked.get(frame.request, Kind.HELLO)
                    if kind not in (Kind.HELLO, Kind.CLOCK) and kind not in self.lost:
                        self.lost.append(kind)
                        self.cut(near, far)
                        return
                near.sendall(data)
        self.cut(near, far)


@pytest.fixture(scope="module")
def house(any_client: Any, plain: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A server and a worker of its own for each kind of client."""
    with Rig(plain, tmp_path_factory.mktemp("house")) as rig:
        rig.client_class = any_client
        rig.start_server("--backoff", "0")
        rig.start_worker("-c", "200")
        yield rig


@pytest.fixture
def proxy(house: Rig) -> Iterator[LosingProxy]:
    proxy = LosingProxy(house.server.port)  # type: ignore[union-attr]
    yield proxy
    proxy.close()


@pytest.fixture
def losing(any_client: Any, proxy: LosingProxy) -> Iterator[Client]:
    """A client whose first answer to each verb is lost."""
    with any_client("127.0.0.1", proxy.port) as client:
        yield client


@pytest.fixture
def direct(house: Rig) -> Iterator[Client]:
    with house.client() as client:
        yield client


# Lost answers.


def test_enq_whose_answer_is_lost_makes_one_job(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    job = losing.enq("Waits", time=600, key="lost-enq")

    assert proxy.lost == [Kind.ENQ]
    assert [each.id for each in direct.list("waiting", module="Waits") if each.key == "lost-enq"] == [job.id]
    assert abs((direct.stat("lost-enq").due - job.due).total_seconds()) < CLOCKS_S


def test_enq_many_whose_answer_is_lost_makes_each_job_once(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    jobs = losing.enq_many([{"module": "LostMany", "time": 600} for _ in range(500)])

    assert proxy.lost == [Kind.ENQ]
    assert sorted(each.id for each in direct.list("waiting", module="LostMany")) == sorted(job.id for job in jobs)


def test_ext_whose_answer_is_lost_adds_once(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    job = direct.enq("Waits", time=600, key="lost-ext")

    due = losing.ext("lost-ext", time=30)

    assert proxy.lost == [Kind.EXT]
    assert abs((due - job.due).total_seconds() - 30) < CLOCKS_S
    assert abs((direct.stat("lost-ext").due - due).total_seconds()) < CLOCKS_S


def test_cancel_whose_answer_is_lost_says_cancelled(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    direct.enq("Waits", time=600, key="lost-cancel")

    assert losing.cancel("lost-cancel") == "cancelled"
    assert proxy.lost == [Kind.CANCEL]
    assert direct.stat("lost-cancel").state == "cancelled"


def test_cancel_many_whose_answer_is_lost_says_the_same_of_each(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    direct.enq_many([{"module": "Waits", "time": 600, "key": f"lost-cancels-{n}"} for n in range(500)])

    answers = losing.cancel_many([f"lost-cancels-{n}" for n in range(501)])

    assert proxy.lost == [Kind.CANCEL]
    assert answers[:500] == ["cancelled"] * 500
    assert isinstance(answers[500], NotFound)


def test_ext_many_whose_answer_is_lost_adds_once_to_each(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    jobs = direct.enq_many([{"module": "Waits", "time": 600, "key": f"lost-exts-{n}"} for n in range(500)])

    # By key and by id is as often as a job can be in one call, and still no resend moves it again.
    dues = losing.ext_many([*(job.key for job in jobs), *jobs], 30)

    assert proxy.lost == [Kind.EXT]
    assert all(abs((due - job.due).total_seconds()) < CLOCKS_S for due, job in zip(dues[500:], jobs, strict=True))
    moved = {status.id: status.due for status in direct.list("waiting", module="Waits")}
    assert all(abs((moved[job.id] - job.due).total_seconds()) < CLOCKS_S for job in jobs)
    assert all(abs((due - dues[n]).total_seconds() - 30) < CLOCKS_S for n, due in enumerate(dues[500:]))


def test_requeue_whose_answer_is_lost_gives_one_more_life(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    job = direct.enq("Waits", time=600, key="lost-requeue")
    job.cancel()

    again = losing.requeue("lost-requeue", time=300)

    assert proxy.lost == [Kind.REQUEUE]
    assert again.id == job.id
    assert direct.stat("lost-requeue").state == "waiting"
    assert abs((direct.stat("lost-requeue").due - again.due).total_seconds()) < CLOCKS_S


def test_stop_of_a_running_job_whose_answer_is_lost_is_asked_once(losing: Client, direct: Client, house: Rig) -> None:
    file = house.folder / "lost-stop"
    job = direct.enq("Stay", params={"file": str(file), "seconds": 30})
    await_true(lambda: lines_of(file), "the job runs")

    assert losing.cancel(id=job.id, running=True) == "stop_requested"
    assert await_true(lambda: job.stat().state == "cancelled", "its end")


def test_what_only_asks_is_asked_again(losing: Client, direct: Client, proxy: LosingProxy) -> None:
    job = direct.enq("Waits", time=600, key="lost-stat")

    assert losing.stat("lost-stat").id == job.id
    assert job.id in {each.id for each in losing.list("waiting")}
    assert losing.info()["pid"] == direct.info()["pid"]
    assert losing.enq("Echo", params="after all").wait(10) == "after all"
    assert proxy.lost == [Kind.STAT, Kind.LIST, Kind.INFO, Kind.ENQ, Kind.WAIT]


def test_the_same_id_is_one_job_whatever_the_second_says(direct: Client) -> None:
    job_id = str(uuid.uuid4())

    first = direct.enq("Waits", time=600, id=job_id, key="same-id")
    second = direct.enq("Another", time=1, id=job_id, key="another", params=7)

    assert first.id == second.id == job_id
    assert direct.stat(id=job_id).module == "Waits"
    with pytest.raises(NotFound):
        direct.stat("another")


# No server, and one that comes back.


def test_without_a_server_the_command_was_not_sent_in_the_time_to_resend(any_client: Any) -> None:
    started = time.monotonic()
    with any_client("127.0.0.1", free_port(), resend=1.0) as client, pytest.raises(ConnectionLost, match="not sent"):
        client.enq("Echo")

    assert 0.3 < time.monotonic() - started < 3


def test_a_server_that_never_answers_is_given_up_too(any_client: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with any_client("127.0.0.1", silent.getsockname()[1], resend=1.0) as client, pytest.raises(ConnectionLost) as lost:
            client.enq("Echo")
    assert "not tried" not in str(lost.value)

    assert time.monotonic() - started < 3


def test_waits_and_commands_go_on_over_a_restart_of_the_server(rig: Rig, any_client: Any) -> None:
    rig.client_class = any_client
    server = rig.start_server()
    rig.start_worker()
    client = rig.client()
    job = client.enq("Echo", params="later", time=5)
    with ThreadPoolExecutor(3) as pool:
        waiting = pool.submit(job.wait, 30)
        timed_out = pool.submit(job.wait, 0.2)
        server.kill()
        meanwhile = pool.submit(client.enq, "Echo", params="meanwhile")
        with pytest.raises(WaitTimeout):
            timed_out.result(10)
        rig.start_server()

        assert meanwhile.result(20).wait(20) == "meanwhile"
        assert waiting.result(30) == "later"


def test_waiting_in_vain_is_a_timeout_and_the_job_goes_on(direct: Client) -> None:
    job = direct.enq("Waits", time=600)
    started = time.monotonic()

    with pytest.raises(TimeoutError) as caught:
        job.wait(0.2)

    assert isinstance(caught.value, WaitTimeout)
    assert 0.2 <= time.monotonic() - started < 2
    assert job.stat().state == "waiting"


@pytest.mark.parametrize("timeout", [0, -1, timedelta()])
def test_a_wait_for_no_time_tells_whether_the_job_has_ended(direct: Client, timeout: Any) -> None:
    done, waiting = direct.enq("Echo", params="done"), direct.enq("Waits", time=600, key=f"no time {timeout}")
    assert done.wait(20) == "done"

    assert done.wait(timeout) == direct.wait(done.id, timeout) == "done"
    with pytest.raises(WaitTimeout, match="has not ended"):
        waiting.wait(timeout)
    with pytest.raises(WaitTimeout, match="has not ended"):
        direct.wait(key=waiting.key, timeout=timeout)


# Many at once.


def test_one_client_serves_eight_threads(direct: Client) -> None:
    def live(number: int) -> list[Any]:
        results = []
        for n in range(40):
            key = f"thread-{number}-{n}"
            job = direct.enq("Echo", params=[number, n], key=key, time=0 if n % 2 else 600)
            if n % 2:
                results.append(job.wait(30))
            else:
                assert direct.ext(key, time=1) > job.due
                assert direct.stat(key).id == job.id
                assert direct.cancel(key) == "cancelled"
        return results

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(live, range(8)))

    assert results == [[[number, n] for n in range(1, 40, 2)] for number in range(8)]


PATCHED = """
from gevent import monkey
monkey.patch_all()
import json, sys, gevent, time
from givalia_core import Client
ticks = []
def tick():
    while True:
        ticks.append(time.monotonic())
        gevent.sleep(0.01)
with Client("127.0.0.1", int(sys.argv[1])) as client:
    ticking = gevent.spawn(tick)
    greenlets = [gevent.spawn(lambda n=n: client.enq("Echo", params=n, time=0.3).wait(20)) for n in range(50)]
    gevent.joinall(greenlets, raise_error=True)
    many = client.enq_many([{"module": "Echo", "params": n} for n in range(2000)])
    ticking.kill()
    print(json.dumps([[each.value for each in greenlets], len(many), len(ticks)]))
"""


def test_a_client_under_gevent_lets_other_greenlets_run(house: Rig) -> None:
    done = subprocess.run(
        [str(house.installed.python), "-c", PATCHED, str(house.server.port)],  # type: ignore[union-attr]
        env=house.environ, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    results, many, ticks = json.loads(done.stdout)
    assert results == list(range(50))
    assert many == 2000
    assert ticks > 10


@pytest.mark.parametrize(
    ("imports", "unused"),
    [("Client", {"gevent", "sqlite3", "asyncio"}), ("AsyncClient", {"gevent", "sqlite3"})],
)
def test_a_client_needs_neither_gevent_nor_a_store(plain: Installed, imports: str, unused: set[str]) -> None:
    code = f"import sys; from givalia_core import {imports}; print(*sys.modules)"
    done = subprocess.run([str(plain.python), "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert not unused & set(done.stdout.split())


def test_twenty_five_thousand_jobs_in_one_call(direct: Client) -> None:
    count = 25_000
    jobs = direct.enq_many({"module": "Bulk", "time": 600, "params": n} for n in range(count))

    assert len({job.id for job in jobs}) == count
    assert direct.info()["jobs"]["Bulk"]["waiting"] == count
    assert all(job.durability == "fsync" for job in jobs)


def test_twenty_five_thousand_jobs_are_moved_and_called_off_in_one_call_each(direct: Client) -> None:
    count = 25_000
    jobs = direct.enq_many({"module": "Swept", "time": 600, "params": n} for n in range(count))

    assert len(set(direct.ext_many(jobs, 30))) > 1
    assert direct.cancel_many(ids=(job.id for job in jobs)) == ["cancelled"] * count
    assert direct.info()["jobs"]["Swept"] == {"cancelled": count}


def test_enq_many_says_which_were_refused_and_the_others_stand(direct: Client) -> None:
    direct.enq("Waits", time=600, key="held")

    with pytest.raises(PartlyRefused) as caught:
        direct.enq_many([{"module": "Echo", "params": 1}, {"module": "Echo", "key": "held"}, {"module": "Echo", "params": 3}])

    first, refused, third = caught.value.answers
    assert (first.wait(10), third.wait(10)) == (1, 3)
    assert isinstance(refused, DuplicateKey)
    assert refused.id == direct.stat("held").id


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ({"module": "Echo", "time": -1}, BadRequest),
        ({"module": "Echo", "params": object()}, BadRequest),
        ({"module": "Echo", "params": b"x" * 600_000}, TooLarge),
        ({"module": "Echo", "colour": "red"}, BadRequest),
        ({"params": 1}, BadRequest),
        ("Echo", BadRequest),
        (5, BadRequest),
    ],
)
def test_enq_many_with_one_that_cannot_be_sent_sends_nothing(direct: Client, bad: Any, error: type) -> None:
    with pytest.raises(error, match=r"^jobs\[1\]: "):
        direct.enq_many([{"module": "NeverSent", "time": 600}, bad])

    assert "NeverSent" not in direct.info()["jobs"]


def test_a_closed_client_says_so_to_whoever_waits_and_to_whoever_comes(house: Rig, direct: Client) -> None:
    job = direct.enq("Waits", time=600)
    before = direct.info()["connections"]
    client = house.client()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.wait, job.id, 5)
        await_true(lambda: direct.info()["connections"] > before, "it waits")
        client.close()
        closed = time.monotonic()
        with pytest.raises(ConnectionLost):
            waiting.result(10)
        assert time.monotonic() - closed < 1
    with pytest.raises(ConnectionLost):
        client.stat(id=job.id)
    await_true(lambda: direct.info()["connections"] <= before, "its connection is gone", 5)


# Waiting for a job that says how far it is, and for one whose result cannot be kept.


def test_progress_reaches_who_waits(direct: Client, house: Rig) -> None:
    heard: list[tuple[float, str]] = []
    file = house.folder / "progress"
    job = direct.enq("Stay", params={"file": str(file), "seconds": 0.3, "progress": [0.25, "a quarter"]})

    assert job.wait(20, progress=lambda *said: heard.append(said)) == 1
    assert heard == [(0.25, "a quarter")]


def test_progress_that_was_said_before_is_told_to_who_comes_to_wait(direct: Client, house: Rig) -> None:
    heard: list[tuple[float, str]] = []
    file = house.folder / "progress-before"
    job = direct.enq("Stay", params={"file": str(file), "seconds": 30, "progress": [0.25, "a quarter"]})
    await_true(lambda: job.stat().progress, "its progress")

    with pytest.raises(WaitTimeout):
        direct.wait(job.id, 0.5, progress=lambda *said: heard.append(said))

    assert heard == [(0.25, "a quarter")]
    job.cancel(running=True)


def test_of_much_progress_the_newest_is_heard_and_the_result_comes_after_it(direct: Client) -> None:
    heard: list[tuple[float, str]] = []

    assert direct.enq("End", params="progress").wait(20, progress=lambda *said: heard.append(said)) == "told"

    assert len(heard) <= 1_002
    assert heard[:-1] == sorted(heard[:-1]) or len(heard) < 3


@pytest.mark.parametrize(("end", "why"), [("huge_result", "TOO_LARGE"), ("object_result", "UNSERIALIZABLE")])
def test_a_result_that_cannot_be_kept_costs_the_result_and_not_the_job(direct: Client, end: str, why: str) -> None:
    job = direct.enq("End", params=end)

    with pytest.raises(ResultLost) as caught:
        job.wait(20)

    assert caught.value.why == why
    assert job.stat().state == "done"


# What the verbs refuse.


def test_verbs_by_id_and_by_key_are_the_same(direct: Client) -> None:
    job = direct.enq("Waits", time=600, key="by-both")

    assert direct.stat("by-both").id == job.id
    assert direct.stat(id=job.id).key == "by-both"
    assert direct.ext(id=job.id, time=10) > job.due
    assert direct.cancel(id=job.id) == "cancelled"
    assert direct.requeue(id=job.id, time=60).id == job.id


def test_ended_jobs_refuse_what_is_for_live_ones(direct: Client) -> None:
    job = direct.enq("Echo", key="ended")
    job.wait(10)

    for name in ({"id": job.id}, {"key": job.id}, {"key": "ended"}):
        for refused in (partial(direct.ext, time=1), direct.cancel, direct.requeue):
            with pytest.raises(WrongState) as caught:
                refused(**name)
            assert caught.value.state == "done"
    assert direct.wait(key="ended") == direct.wait(job.id) == direct.wait(key=job.id)
