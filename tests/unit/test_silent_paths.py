"""Both clients on a path that dies silently, and on one that is only slow; the seconds are tenths here."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from scripted_server import PATIENCE_S, Line, ScriptedServer, closed_address, every, first, lose, say_nothing, serve

from givalia_core import Client, ConnectionLost
from givalia_core.client import delivery
from givalia_core.protocol import frames, pulse
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.views import text_id

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
TENTH = 0.1
LARGE = bytes(500_000)

Scripted = Callable[..., ScriptedServer]


@pytest.fixture
def scripted(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    monkeypatch.setattr(pulse, "DEAD_S", pulse.DEAD_S * TENTH)
    monkeypatch.setattr(delivery, "PING_COMMAND_S", delivery.PING_COMMAND_S * TENTH)
    monkeypatch.setattr(delivery, "PING_WAIT_S", delivery.PING_WAIT_S * TENTH)
    return scripted


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(30) as pool:
        yield pool


def test_a_command_on_a_dead_path_is_sent_on_a_new_connection_with_the_same_id(any_client: Any, scripted: Scripted) -> None:
    server = scripted(first(Kind.ENQ, lose))

    with any_client(server.address) as client:
        job = client.enq("Sample")

    ids = [text_id(server.next(Kind.ENQ).messages[0].id) for _ in range(2)]
    assert ids == [job.id] * 2
    assert len(server.lines) == 2


def test_a_wait_on_a_dead_path_goes_on_over_a_new_connection(any_client: Any, scripted: Scripted) -> None:
    server = scripted(first(Kind.WAIT, lose))

    with any_client(server.address) as client:
        assert client.wait(JOB) == 7

    assert len(server.lines) == 2


def test_what_waits_beside_a_command_on_a_dead_path_goes_with_it(
    any_client: Any, scripted: Scripted, pool: ThreadPoolExecutor
) -> None:
    server = scripted(first(Kind.WAIT, say_nothing, then=first(Kind.ENQ, lose)))

    with any_client(server.address) as client:
        waiting = pool.submit(client.wait, JOB)
        server.next(Kind.WAIT)
        client.enq("Sample")

        assert waiting.result(PATIENCE_S) == 7
    assert len(server.lines) == 2


def test_a_server_that_answers_late_keeps_its_connection(any_client: Any, scripted: Scripted) -> None:
    decided = threading.Event()

    def decide_later(line: Line, ask: Asked) -> None:
        threading.Timer(1.5, lambda: (decided.set(), serve(line, ask))).start()

    server = scripted(every(Kind.ENQ, decide_later))

    with any_client(server.address) as client:
        client.enq("Sample")

    assert decided.is_set()
    assert len(server.lines) == 1


def test_an_answer_that_arrives_in_pieces_keeps_its_connection(any_client: Any, scripted: Scripted) -> None:
    pieces = threading.Event()

    def drip(line: Line, ask: Asked) -> None:
        data = frames.encode(Kind.ANSWER, ask.request, [(("OK", "done", None), b"\x07")])
        for place in range(len(data)):
            line._socket.sendall(data[place : place + 1])
            pieces.wait(0.1)

    server = scripted(every(Kind.WAIT, drip))

    with any_client(server.address) as client:
        assert client.wait(JOB) == 7

    assert len(server.lines) == 1


def test_the_time_to_resend_is_the_bound_of_it_all(any_client: Any, scripted: Scripted) -> None:
    server = scripted(every(Kind.ENQ, lose))

    with any_client(server.address, resend=1.5) as client, pytest.raises(ConnectionLost, match="unknown") as caught:
        client.enq("Sample")

    assert caught.value.sent
    assert len(server.lines) > 1


# What was certainly never sent.


def test_without_a_server_the_command_was_not_sent(any_client: Any) -> None:
    with (
        any_client(closed_address(), resend=0.3) as client,
        pytest.raises(ConnectionLost, match="the command was not sent") as caught,
    ):
        client.enq("Sample")

    assert caught.value.details == {"sent": False}


def test_a_closed_client_sends_nothing_and_says_so(any_client: Any) -> None:
    client = any_client(closed_address())
    client.close()

    with pytest.raises(ConnectionLost, match="not sent") as caught:
        client.enq("Sample")
    assert not caught.value.sent


class Deaf:
    """A script that leaves everything behind the first job unread, until it is over."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def __call__(self, line: Line, ask: Asked) -> None:
        line._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        self.is_over.wait(3 * PATIENCE_S)


@pytest.fixture
def deaf() -> Iterator[Deaf]:
    deaf = Deaf()
    yield deaf
    deaf.is_over.set()


def test_of_what_a_client_that_is_closed_was_still_sending_it_says_that_it_was_not_sent(
    any_client: Any, scripted: Scripted, deaf: Deaf, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "DEAD_S", 3 * PATIENCE_S)
    server = scripted(every(Kind.ENQ, deaf))
    client = any_client(server.address)
    calls: list[Future[Any]] = [pool.submit(client.enq, "Sample", params=LARGE) for _ in range(30)]
    server.next(Kind.ENQ)
    _await_full(client, calls)

    client.close()

    errors = [call.exception(PATIENCE_S) for call in calls]
    assert all(isinstance(error, ConnectionLost) for error in errors)
    assert {error.sent for error in errors} == {True, False}  # type: ignore[union-attr]
    assert all(("not sent" in str(error)) is not error.sent for error in errors)  # type: ignore[union-attr]


def _await_full(client: Any, calls: list[Future[Any]]) -> None:
    """Wait until the system has taken no more for a while."""
    pause, before = threading.Event(), -1
    while True:
        under_way = getattr(client, "_inner", client)._transport.delivery
        now = 0 if under_way.connection is None else under_way.connection.taken_bytes()
        if now == before > 0 and len(under_way.requests) == len(calls):
            return
        before = now
        pause.wait(0.3)


def test_a_caller_whose_time_is_over_in_the_middle_of_a_frame_is_told_that_it_was_not_sent(
    scripted: Scripted, deaf: Deaf, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "DEAD_S", 3 * PATIENCE_S)
    server = scripted(first(Kind.ENQ, deaf))

    with Client(server.address, resend=2.0) as client:
        calls = [pool.submit(client.enq, "Sample", params=LARGE) for _ in range(30)]
        errors = [call.exception(PATIENCE_S) for call in calls]

    assert {error.sent for error in errors if isinstance(error, ConnectionLost)} >= {False}


def test_of_many_a_part_that_was_not_sent_is_not_the_whole(scripted: Scripted, any_client: Any) -> None:
    server = scripted()
    answered = threading.Event()

    def stop(line: Line, ask: Asked) -> None:
        serve(line, ask)
        if not answered.is_set():
            answered.set()
            threading.Thread(target=server.close, daemon=True).start()

    server._script = every(Kind.ENQ, stop)
    jobs = [{"module": "Sample", "params": LARGE} for _ in range(60)]

    with any_client(server.address, resend=1.0) as client, pytest.raises(ConnectionLost, match="unknown") as caught:
        client.enq_many(jobs)

    assert caught.value.sent
