"""Clients and a worker among real servers, one of which disappears."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from waits import yield_until

from givalia_core import AsyncClient, Client, Worker, WorkModule, job_servers
from givalia_core.modules import describe
from givalia_core.protocol import addresses
from givalia_core.protocol.addresses import Address
from givalia_core.server import Server
from givalia_core.settings import ServerSettings, WorkerSettings

PATIENCE_S = 20.0


class Echo(WorkModule):
    def process(self) -> Any:
        return self.params


@pytest.fixture(autouse=True)
def _in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Two servers, each with a store of its own: what one was asked, the other does not know."""
    made = [Server(ServerSettings(port=0, worker_port=0, store="memory:", plugins="")) for _ in range(2)]
    for server in made:
        server.start()
    yield made
    for server in made:
        server.stop()


def in_thread(call: Callable[[], Any]) -> Any:
    """Call from a native thread, while this thread's hub serves."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        yield_until(future.done, "the answer", PATIENCE_S)
        return future.result()


ClientOf = Callable[..., Any]


@pytest.fixture
def client_of(any_client: Any) -> ClientOf:
    """A client of these servers, of either kind."""
    return lambda *servers: any_client([f"127.0.0.1:{server.client_port}" for server in servers], resend=PATIENCE_S)


def test_a_job_that_a_draining_server_does_not_take_is_made_at_the_next(client_of: ClientOf, servers: list[Server]) -> None:
    draining, there = servers
    draining.drain()

    with client_of(draining, there) as client:
        job = in_thread(lambda: client.enq("Echo", time=600, key="k"))
    with client_of(there) as client:
        assert in_thread(lambda: client.stat("k")).id == job.id


def test_a_client_whose_server_stops_goes_on_at_the_next(client_of: ClientOf, servers: list[Server]) -> None:
    stopping, there = servers
    with client_of(stopping, there) as client:
        assert in_thread(client.info)["jobs"] == {}
        stopping.stop()

        jobs = in_thread(lambda: client.enq_many([{"module": "Echo", "time": 600}] * 100))
        assert len(jobs) == 100
        assert in_thread(client.info)["jobs"]["Echo"]["waiting"] == 100


class Where(WorkModule):
    def process(self) -> list[str]:
        return [str(address) for client in (Client(), AsyncClient()) for address in client._find()]


def test_only_the_jobs_of_a_worker_within_a_program_mean_its_servers(servers: list[Server]) -> None:
    first, second = servers
    modules = {"Where": describe("Where", "example", "1", Where)}
    workers = [Worker(WorkerSettings(worker_port=each.worker_port, plugins=""), modules=modules) for each in servers]
    for worker in workers:
        worker.start()
    try:
        for server in (first, second):
            client = Client(port=server.client_port)
            found = in_thread(lambda client=client: client.enq("Where").wait(PATIENCE_S))
            assert found == [f"127.0.0.1:{server.client_port}"] * 2
            assert Client()._find() == (Address("127.0.0.1", 12_322),)
            client.close()
    finally:
        for worker in workers:
            worker.stop()
    assert job_servers.known() == ""


def test_a_worker_whose_server_stops_goes_on_at_the_next(client_of: ClientOf, servers: list[Server]) -> None:
    stopping, there = servers
    master = ",".join(f"127.0.0.1:{server.worker_port}" for server in servers)
    worker = Worker(WorkerSettings(master=master, plugins=""), modules={"Echo": describe("Echo", "example", "1", Echo)})
    worker.start()
    try:
        with client_of(stopping) as client:
            assert in_thread(lambda: client.enq("Echo", params=1).wait(PATIENCE_S)) == 1
        stopping.stop()
        with client_of(there) as client:
            assert in_thread(lambda: client.enq("Echo", params=2).wait(PATIENCE_S)) == 2
    finally:
        worker.stop()
