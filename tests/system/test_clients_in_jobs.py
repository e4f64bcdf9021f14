"""A client that a job makes without an address uses the servers of its worker."""

from __future__ import annotations

import pytest
from system_rig import Rig, free_port

WAIT_S = 30.0


@pytest.fixture(scope="module")
def house(shared_rig: Rig) -> Rig:
    """A server on ports that no client guesses, and a worker whose settings for clients name another."""
    shared_rig.start_server()
    shared_rig.start_worker(GIVALIA_MASTER="127.0.0.1", GIVALIA_PORT=str(free_port()))
    return shared_rig


@pytest.mark.parametrize("module", ["AskOwn", "AskOwnApart"])
def test_a_client_without_an_address_asks_the_server_of_the_worker(house: Rig, module: str) -> None:
    assert house.server is not None

    assert house.client().enq(module).wait(WAIT_S) == [house.server.pid] * 4


@pytest.mark.parametrize("module", ["AskOwn", "AskOwnApart"])
def test_the_processes_hear_of_a_server_that_comes_back_elsewhere(rig: Rig, module: str) -> None:
    first = rig.start_server()
    rig.start_worker()
    assert rig.client().enq(module).wait(WAIT_S) == [first.pid] * 4
    first.stop()

    second = rig.start_server("-p", free_port())

    assert rig.client().enq(module).wait(WAIT_S) == [second.pid] * 4
