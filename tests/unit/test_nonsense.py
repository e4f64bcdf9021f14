"""Servers that send nonsense: the connection is dropped, and its requests are sent again, with either client."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from scripted_server import PATIENCE_S, Line, Script, ScriptedServer, every, first, serve

from givalia_core import Client, ConnectionLost, ResultLost
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import OK, Kind

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
ID = b"i" * 16
STATUS = {
    "id": ID, "key": None, "module": "M", "target_worker": "any", "priority": 0, "state": "done", "due_us": 0,
    "timeleft_us": None, "attempts": 1, "max_attempts": 3, "worker": "w", "progress": None, "stop_asked": False,
    "reason": None, "error": None, "result_error": None, "why": "it is done",
}  # fmt: skip

Scripted = Callable[..., ScriptedServer]


def say(*fields: Any, payload: bytes = b"", items: int = 1) -> Script:
    """Answer with these fields."""
    return lambda line, ask: line.say(ask, [(fields, payload)] * items)


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in STATUS.items() if key != name}


HONEST = {
    Kind.ENQ: serve,
    Kind.WAIT: serve,
    Kind.CANCEL: say(OK, "cancelled"),
    Kind.EXT: say(OK, ID, 0),
    Kind.REQUEUE: say(OK, ID, 0),
    Kind.STAT: say(OK, STATUS),
    Kind.LIST: say(OK, payload=msgpack.packb([STATUS])),
    Kind.INFO: say(OK, payload=msgpack.packb({})),
}
CALLS: dict[Kind, Callable[[Any], Any]] = {
    Kind.ENQ: lambda client: client.enq("Sample"),
    Kind.WAIT: lambda client: client.wait(JOB, PATIENCE_S),
    Kind.CANCEL: lambda client: client.cancel("k"),
    Kind.EXT: lambda client: client.ext("k", 1),
    Kind.REQUEUE: lambda client: client.requeue("k"),
    Kind.STAT: lambda client: client.stat("k"),
    Kind.LIST: lambda client: list(client.list()),
    Kind.INFO: lambda client: client.info(),
}
NONSENSE: list[tuple[Kind, Script]] = [
    (Kind.ENQ, say(OK)),
    (Kind.ENQ, say(OK, ID, 0)),
    (Kind.ENQ, say(OK, b"short", 0, "memory")),
    (Kind.ENQ, say(OK, ID, "now", "memory")),
    (Kind.ENQ, say(OK, ID, 1 << 62, "memory")),
    (Kind.ENQ, say(OK, ID, 0, 7)),
    (Kind.ENQ, say()),
    (Kind.ENQ, say(7, "words")),
    (Kind.ENQ, say(OK, ID, 0, "memory", items=0)),
    (Kind.ENQ, say(OK, ID, 0, "memory", items=2)),
    (Kind.WAIT, say(OK)),
    (Kind.WAIT, say(OK, "running", None)),
    (Kind.WAIT, say(OK, "done")),
    (Kind.WAIT, say(OK, "dead", 7, 8)),
    (Kind.CANCEL, say(OK)),
    (Kind.CANCEL, say(OK, [])),
    (Kind.EXT, say(OK, ID)),
    (Kind.EXT, say(OK, ID, None)),
    (Kind.REQUEUE, say(OK, 7, 0)),
    (Kind.STAT, say(OK)),
    (Kind.STAT, say(OK, {})),
    (Kind.STAT, say(OK, {**STATUS, "id": "text"})),
    (Kind.STAT, say(OK, {**STATUS, "state": "odd"})),
    (Kind.STAT, say(OK, {**STATUS, "progress": 7})),
    *((Kind.STAT, say(OK, without(name))) for name in STATUS),
    (Kind.LIST, say(OK, payload=b"\xc1")),
    (Kind.LIST, say(OK, payload=msgpack.packb({}))),
    (Kind.LIST, say(OK, payload=msgpack.packb([7]))),
    (Kind.LIST, say(OK, 1, payload=msgpack.packb([]))),
    (Kind.INFO, say(OK, payload=b"\x92\x01")),
]


@pytest.mark.parametrize(("kind", "nonsense"), NONSENSE)
def test_an_answer_that_is_none_costs_its_connection_and_is_asked_for_again(
    any_client: Any, scripted: Scripted, kind: Kind, nonsense: Script
) -> None:
    server = scripted(first(kind, nonsense, then=every(kind, HONEST[kind])))

    with any_client(server.address, resend=PATIENCE_S) as client:
        CALLS[kind](client)

    assert len(server.lines) == 2


@pytest.mark.parametrize("told", [(1,), ([], 0.5), (1, "half"), (1, 2.0), (1, 0.5, b"x")])
def test_progress_that_is_none_costs_its_connection(any_client: Any, scripted: Scripted, told: tuple[Any, ...]) -> None:
    server = scripted(first(Kind.WAIT, lambda line, _: line.tell(Kind.PROGRESSED, [(told, b"")])))

    with any_client(server.address, resend=PATIENCE_S) as client:
        assert client.wait(JOB, PATIENCE_S) == 7

    assert len(server.lines) == 2


def test_a_frame_of_no_kind_costs_its_connection(any_client: Any, scripted: Scripted) -> None:
    server = scripted(first(Kind.ENQ, lambda line, _: line._socket.sendall(struct.pack(">IBI", 5, 99, 0))))

    with any_client(server.address, resend=PATIENCE_S) as client:
        client.enq("Sample")

    assert len(server.lines) == 2


def test_who_gives_up_on_a_server_that_talks_nonsense_says_what_it_said(any_client: Any, scripted: Scripted) -> None:
    server = scripted(every(Kind.ENQ, say(OK)))

    with any_client(server.address, resend=1.5) as client, pytest.raises(ConnectionLost, match="1 fields where there are 4"):
        client.enq("Sample")


def test_a_result_that_is_no_value_is_lost_and_costs_no_connection(any_client: Any, scripted: Scripted) -> None:
    """No server looks into what a worker reports."""

    def answer(line: Line, ask: Asked) -> None:
        line.say(ask, [((OK, "done", None) if ask.kind is Kind.WAIT else (OK, STATUS), b"\xc1")])

    server = scripted(answer)
    with any_client(server.address, resend=PATIENCE_S) as client:
        with pytest.raises(ResultLost) as caught:
            client.wait(JOB, PATIENCE_S)
        status = client.stat(id=JOB)

    assert caught.value.why == status.result_error == "UNREADABLE"
    assert status.result is None
    assert len(server.lines) == 1


def test_a_server_that_answers_hello_byte_by_byte_has_no_more_time_than_another() -> None:
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            taken, _ = listener.accept()
            with taken:
                taken.sendall(struct.pack(">I", 1 << 20))
                for _ in range(100):
                    if is_over.wait(0.1):
                        return
                    try:
                        taken.sendall(b"\0")
                    except OSError:
                        return
                is_over.set()

        server = threading.Thread(target=drip, daemon=True)
        server.start()
        with Client(*listener.getsockname(), resend=0.5) as client, pytest.raises(ConnectionLost):
            client.info()

        assert not is_over.is_set()
        is_over.set()
        server.join(PATIENCE_S)
