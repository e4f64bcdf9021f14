"""The answers of a server to a worker: errors by message, the facts in JOIN, and the results of a failure."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core.errors import BadRequest, Busy, GivaliaError, ShuttingDown, Stale
from givalia_core.protocol.codec import refusal
from givalia_core.protocol.messages import Kind
from givalia_core.settings import CLIENT_PORT
from givalia_core.worker.link.answers import errors_of, follows, joined
from givalia_core.worker.link.records import Follows

OK: Any = (("OK",), b"")
STALE, BUSY, STOPPING = Stale("not yours"), Busy("later"), ShuttingDown("draining")


def test_each_message_has_its_error_or_none() -> None:
    errors = errors_of(Kind.SUCCEED, [1, 2], [OK, refusal(STALE)], has_others=False)

    assert errors is not None
    assert errors[0] is None
    assert isinstance(errors[1], Stale)


def test_one_word_of_a_busy_server_is_for_the_whole_frame() -> None:
    errors = errors_of(Kind.BEAT, [1, 2, 3], [refusal(BUSY)], has_others=False)

    assert errors is not None
    assert [type(error) for error in errors] == [Busy] * 3


@pytest.mark.parametrize("kind", [Kind.JOIN, Kind.ANNOUNCE, Kind.RESUME, Kind.CREDIT])
def test_a_server_that_is_busy_for_what_a_worker_needs_is_left(kind: Kind) -> None:
    with pytest.raises(Busy):
        errors_of(kind, [1], [refusal(BUSY)], has_others=False)


@pytest.mark.parametrize("has_others", [False, True])
def test_a_server_that_stops_is_left_for_another(has_others: bool) -> None:
    if has_others:
        with pytest.raises(ShuttingDown):
            errors_of(Kind.FAIL, [1], [refusal(STOPPING)], has_others=True)
    else:
        errors_of(Kind.FAIL, [1], [refusal(STOPPING)], has_others=False)


@pytest.mark.parametrize("kind", [Kind.JOIN, Kind.ANNOUNCE, Kind.CREDIT])
def test_a_worker_that_is_refused_goes_on_to_the_next_server(kind: Kind) -> None:
    with pytest.raises(BadRequest):
        errors_of(kind, [1], [refusal(BadRequest("no"))], has_others=False)


def test_another_number_of_answers_is_an_error() -> None:
    with pytest.raises(GivaliaError, match="another number"):
        errors_of(Kind.SUCCEED, [1, 2], [OK], has_others=False)


@pytest.mark.parametrize(
    ("told", "port"),
    [((4_000,), 4_000), ((), CLIENT_PORT), ((0,), CLIENT_PORT), ((70_000,), CLIENT_PORT), (("x",), CLIENT_PORT)],
)
def test_join_tells_the_lease_and_perhaps_the_port_for_clients(told: tuple[Any, ...], port: int) -> None:
    assert joined([(("OK", 30_000_000, *told), b"")]) == (30_000_000, port)


@pytest.mark.parametrize("fields", [("OK",), ("OK", "long"), ("OK", 0)])
def test_join_without_the_length_of_a_lease_is_an_error(fields: tuple[Any, ...]) -> None:
    with pytest.raises(BadRequest, match="how long a lease is"):
        joined([(fields, b"")])


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        (["OK", "dead", 5], Follows("dead", 5, None)),
        (("OK", "waiting", 5, 1_000), Follows("waiting", 5, 1_000)),
        (["OK"], None),
        (["OK", 7, "x"], None),
    ],
)
def test_what_follows_a_failure_is_told_if_it_can_be_read(fields: Any, known: Follows | None) -> None:
    assert follows(fields) == known
