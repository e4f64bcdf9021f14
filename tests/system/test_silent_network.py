"""A real network that drops packets silently, and a slow one: both clients and a worker. Creating networks needs root.

The router drops the packets of existing connections; it lets a new connection through, as after a change of address.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from system_install import Installed
from system_networks import SERVER, Network
from system_rig import Rig, Running, ServerProcess, lines_of
from waits import await_true

COMMAND_S = 7.0  # Within which a command is answered over a new connection,
WAIT_S = 11.0  # and a wait.
BUSY_S = 4.0  # A machine that is busy with other things may take so much longer.


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def rig(network: Network, plain: Installed, tmp_path: Path) -> Iterator[Rig]:
    """A server on its machine."""
    with Rig(plain, tmp_path) as rig:
        rig.start_patched_server("", "--host", "0.0.0.0", "--insecure", before=network.inside(network.server))
        yield rig


@pytest.fixture
def server(rig: Rig) -> ServerProcess:
    assert rig.server is not None
    return rig.server


@pytest.fixture
def pool(any_client: Any, network: Network) -> Iterator[ThreadPoolExecutor]:
    """Threads on the client's machine; the event loop is there, too."""

    async def enter() -> None:
        network.enter_client()

    if hasattr(any_client, "__self__"):
        any_client.__self__.run(enter())
    with ThreadPoolExecutor(4, initializer=network.enter_client) as pool:
        yield pool


@pytest.fixture
def client(any_client: Any, server: ServerProcess, pool: ThreadPoolExecutor) -> Iterator[Any]:
    with any_client(SERVER, server.port) as client:
        pool.submit(client.info).result(10)
        yield client


def start_worker(rig: Rig, network: Network, machine: str, server: ServerProcess) -> Running:
    address = SERVER if machine == network.client else "127.0.0.1"
    program, *words = [*network.inside(machine), rig.installed.program("givalia-worker")]
    worker = rig.start(program, *words, "-m", address, "-w", server.worker_port)
    worker.await_log("connected to")
    return worker


def test_a_command_on_a_path_that_died_is_answered_over_a_new_connection(
    network: Network, server: ServerProcess, client: Any, pool: ThreadPoolExecutor
) -> None:
    network.drop(network.connections(server.port))
    began = time.monotonic()

    job = pool.submit(client.enq, "Waits", time=600, key="k").result(30)

    took_s = time.monotonic() - began
    print(f"{took_s:.2f} s")
    assert took_s < COMMAND_S + BUSY_S
    assert [each.id for each in pool.submit(lambda: list(client.list("waiting"))).result(10)] == [job.id]


def test_a_wait_on_a_path_that_died_hears_of_the_end_over_a_new_connection(
    network: Network, rig: Rig, server: ServerProcess, client: Any, pool: ThreadPoolExecutor
) -> None:
    start_worker(rig, network, network.server, server)
    job = pool.submit(client.enq, "Echo", params="heard", time=2).result(10)
    waiting = pool.submit(job.wait, 60)
    connection = getattr(client, "_inner", client)._transport.delivery.connection
    await_true(lambda: connection.waits, "the wait is sent")
    network.drop(network.connections(server.port))
    began = time.monotonic()

    assert waiting.result(30) == "heard"

    took_s = time.monotonic() - began
    print(f"{took_s:.2f} s")
    assert took_s < WAIT_S + BUSY_S


def test_a_worker_on_a_path_that_died_reports_over_a_new_connection_what_it_went_on_with(
    network: Network, rig: Rig, server: ServerProcess, client: Any, pool: ThreadPoolExecutor
) -> None:
    worker = start_worker(rig, network, network.client, server)
    file = rig.folder / "stays"
    job = pool.submit(client.enq, "Stay", params={"file": str(file), "seconds": 2}).result(10)
    await_true(lambda: lines_of(file), "the job runs")
    network.drop(network.connections(server.worker_port))
    began = time.monotonic()

    assert pool.submit(job.wait, 60).result(60) == 1

    took_s = time.monotonic() - began - 2
    print(f"{took_s:.2f} s")
    assert took_s < COMMAND_S + BUSY_S
    assert len(lines_of(file)) == 1
    worker.await_log("connected to", count=2)
    assert pool.submit(job.stat).result(10).attempts == 1


def test_an_idle_worker_on_a_path_that_died_is_lent_jobs_over_a_new_connection(
    network: Network, rig: Rig, server: ServerProcess, client: Any, pool: ThreadPoolExecutor
) -> None:
    start_worker(rig, network, network.client, server)
    network.drop(network.connections(server.worker_port))
    began = time.monotonic()

    job = pool.submit(client.enq, "Echo", params=1).result(10)
    assert pool.submit(job.wait, 60).result(60) == 1

    took_s = time.monotonic() - began
    print(f"{took_s:.2f} s")
    assert took_s < WAIT_S + BUSY_S


def test_what_leaves_slowly_leaves_on_one_connection(
    network: Network, server: ServerProcess, client: Any, pool: ThreadPoolExecutor
) -> None:
    network.slow_down(150_000)
    before = network.connections(server.port)
    jobs = [{"module": "Waits", "time": 600, "params": bytes(450_000)} for _ in range(4)]
    began = time.monotonic()

    made = pool.submit(client.enq_many, jobs).result(60)

    assert time.monotonic() - began > 8
    assert len(made) == 4
    assert network.connections(server.port) == before


def test_a_large_result_leaves_slowly_on_one_connection(
    network: Network, rig: Rig, server: ServerProcess, client: Any, pool: ThreadPoolExecutor
) -> None:
    start_worker(rig, network, network.client, server)
    before = network.connections(server.worker_port)
    job = pool.submit(client.enq, "Echo", params=bytes(250_000), time=2).result(10)
    network.slow_down(20_000)
    began = time.monotonic()

    await_true(lambda: pool.submit(job.stat).result(30).state == "done", "the job is reported", 60, every=1.0)

    assert time.monotonic() - began > 8
    assert network.connections(server.worker_port) == before
