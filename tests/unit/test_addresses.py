"""Addresses of servers, and the order among several."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core import BadRequest, Client
from givalia_core.protocol.addresses import Address, Round, parse


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("host", [("host", 9)]),
        ("host:1", [("host", 1)]),
        ("a:1,b:2", [("a", 1), ("b", 2)]),
        ("a, b:2 ,c", [("a", 9), ("b", 2), ("c", 9)]),
        (["a:1", "b"], [("a", 1), ("b", 9)]),
        (("a:1,b", "c:65535"), [("a", 1), ("b", 9), ("c", 65535)]),
        ("[::1]:12", [("::1", 12)]),
        ("[::1]", [("::1", 9)]),
        ("::1", [("::1", 9)]),
        ("[fe80::1%eth0]:3,10.0.0.1", [("fe80::1%eth0", 3), ("10.0.0.1", 9)]),
        ("a:9,a,a:9", [("a", 9)]),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(given: Any, expected: list[tuple[str, int]]) -> None:
    assert parse(given, 9) == tuple(Address(*each) for each in expected)


@pytest.mark.parametrize(
    "given",
    [
        "", " ", [], [""], "a,", ",a", "a,,b", ":1", "a:", "a:0", "a:65536", "a:-1", "a:x", "a:1.5", "a:١", "a:1:2", "a b",
        "[::1", "[::1]1", "[::1]:", "[host]:1", "[]:1", "::1]:2", "tcp://a:1", "user@a", 7, [7], [None], [("a", 1)], b"a",
        "a" * 256,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_when_the_client_is_made(given: Any) -> None:
    with pytest.raises(BadRequest):
        Client(given)


@pytest.mark.parametrize("port", [0, 65_536, -1, True, "12322", 1.0])
def test_a_port_that_is_none_is_refused_where_it_is_needed(port: Any) -> None:
    with pytest.raises(BadRequest, match="no port"):
        Client("host", port)

    Client("host:12322", port).close()


def test_an_address_is_shown_as_it_is_written() -> None:
    assert [str(address) for address in parse("a,b:2,[::1]:3", 1)] == ["a:1", "b:2", "[::1]:3"]


def test_each_server_is_tried_before_the_first_rest_and_before_the_next() -> None:
    servers = Round(parse("a,b,c", 1))

    for _ in range(3):
        tried = []
        rests = []
        for _ in range(3):
            tried.append(servers.address.host)
            rests.append(servers.failed())
        assert sorted(tried) == ["a", "b", "c"]
        assert rests == [False, False, True]


def test_a_server_that_works_ends_the_count_of_failures() -> None:
    servers = Round(parse("a,b", 1))

    assert not servers.failed()
    servers.worked()
    assert not servers.failed()
    assert servers.failed()


def test_going_on_is_no_failure() -> None:
    servers = Round(parse("a,b", 1))
    before = servers.address

    servers.move_on()

    assert servers.address != before
    assert [servers.failed(), servers.failed()] == [False, True]


def test_the_only_server_is_the_next_one_too() -> None:
    servers = Round(parse("a", 1))

    assert not servers.has_others
    assert servers.failed()
    assert servers.address == Address("a", 1)


def test_not_everybody_begins_with_the_first_of_the_list() -> None:
    assert {Round(parse("a,b", 1)).address.host for _ in range(100)} == {"a", "b"}
