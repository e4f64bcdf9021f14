"""The next server of a worker, and its rests."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from givalia_core.protocol import addresses
from givalia_core.protocol.addresses import Address
from givalia_core.worker.link import servers as servers_room
from givalia_core.worker.link.servers import BACKOFF_FIRST_S, BACKOFF_MAX_S, STEADY_S, Servers

A, B = Address("a", 1), Address("b", 1)


@pytest.fixture(autouse=True)
def _in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are in the order in which they are named, and rests are as long as they may be."""
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    monkeypatch.setattr(servers_room, "random", SimpleNamespace(uniform=lambda least, most: most))


def test_the_next_is_tried_at_once_and_a_rest_follows_when_all_have_failed() -> None:
    servers = Servers([A, B])

    assert servers.failed(0.0, has_mismatch=False) == (False, 0.0)
    assert servers.present == B
    assert servers.failed(0.0, has_mismatch=False) == (True, BACKOFF_FIRST_S)
    assert servers.present == A


def test_rests_grow_up_to_a_limit() -> None:
    servers = Servers([A])

    rests = [servers.failed(0.0, has_mismatch=False)[1] for _ in range(9)]

    assert rests == sorted(rests)
    assert (rests[0], rests[1], rests[-1]) == (BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, BACKOFF_MAX_S)


def test_a_link_that_has_lasted_begins_anew() -> None:
    servers = Servers([A])
    for _ in range(5):
        servers.failed(0.0, has_mismatch=False)

    assert servers.failed(STEADY_S, has_mismatch=False) == (True, BACKOFF_FIRST_S)


def test_a_server_of_another_version_is_not_asked_often() -> None:
    assert Servers([A]).failed(0.0, has_mismatch=True) == (True, BACKOFF_MAX_S)


def test_clients_go_to_the_present_server_first_and_to_those_that_are_known() -> None:
    servers = Servers([A, B, Address("c", 2)])
    servers.join(4_000)
    assert servers.clients() == (Address("a", 4_000), Address("b", 4_000))

    servers.failed(STEADY_S, has_mismatch=False)
    servers.join(5_000)

    assert servers.clients() == (Address("b", 5_000), Address("a", 4_000))
