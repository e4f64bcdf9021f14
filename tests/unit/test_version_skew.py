"""Programs of different versions: a mismatch is reported with both versions, and is not tried ten times a second."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from scripted_server import Line, ScriptedServer, every, hang_up, refuse, serve
from test_link import Rig, rig

from givalia_core.errors import BadRequest, VersionMismatch
from givalia_core.protocol import frames, session
from givalia_core.protocol.answers import Greeting
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.caller import Answer, Caller, refused
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Credit, Hello, Kind
from givalia_core.protocol.session import Port, Session
from givalia_core.version import __version__
from givalia_core.worker.link import Disconnected
from givalia_core.worker.link import servers as servers_room
from givalia_core.worker.link.servers import BACKOFF_FIRST_S, BACKOFF_MAX_S

__all__ = ["rig"]

SHORT_CREDIT = BadRequest("CREDIT has 1 to 1 fields, not 2")


@pytest.fixture(params=[(), ("0.0.9",)], ids=["a server that does not say its version", "one that does"])
def theirs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What the servers of the test say of their version in their answer to hello."""
    monkeypatch.setattr(session, "GREETING", Greeting(1, "givalia", *request.param))
    return request.param[0] if request.param else None


def is_said(words: str, theirs: str | None) -> bool:
    """Whether the versions of both sides are named."""
    server = f"the server is Givalia {theirs}" if theirs else "the server does not say its version"
    return f"This is Givalia {__version__}, {server}" in words


def test_worker_at_a_server_that_does_not_know_its_credit_says_so_and_waits(rig: Rig, theirs: str | None) -> None:
    rig.start(rig.server(every(Kind.CREDIT, refuse(SHORT_CREDIT))))

    lost = rig.next(Disconnected)

    assert lost.why.startswith(f"VERSION_MISMATCH: {SHORT_CREDIT}")
    assert is_said(lost.why, theirs)
    assert BACKOFF_MAX_S / 2 <= lost.retry_s <= BACKOFF_MAX_S


def test_worker_goes_on_to_a_server_that_knows_its_messages_at_once(rig: Rig) -> None:
    there = rig.server()
    rig.start(rig.server(every(Kind.CREDIT, refuse(SHORT_CREDIT))), there)

    assert rig.next(Disconnected).retry_s == 0
    rig.link.send(Credit(3))
    while there.next(Kind.CREDIT).messages != [Credit(3)]:
        pass


def test_link_that_is_lost_as_soon_as_it_is_up_is_made_less_and_less_often(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers_room, "random", SimpleNamespace(uniform=lambda least, most: most))
    rig.start(rig.server(every(Kind.RESUME, answer_and_hang_up)))

    pauses = [rig.next(Disconnected).retry_s for _ in range(4)]

    assert pauses == [BACKOFF_FIRST_S * 2**each for each in range(4)]


def answer_and_hang_up(line: Line, ask: Asked) -> None:
    """Be up for as short as can be."""
    serve(line, ask)
    hang_up(line, ask)


@pytest.mark.parametrize("words", ["ENQ has 2 to 12 fields, not 13", "there is no kind 2"])
def test_client_of_a_server_that_does_not_know_its_command_gets_both_versions(
    any_client: Any, words: str, theirs: str | None
) -> None:
    server = ScriptedServer(Port.CLIENT, every(Kind.ENQ, refuse(BadRequest(words))))
    try:
        with any_client([server.address]) as client, pytest.raises(VersionMismatch) as caught:
            client.enq("Sample")
    finally:
        server.close()

    assert str(caught.value).startswith(words)
    assert is_said(str(caught.value), theirs)
    assert (caught.value.ours, caught.value.theirs) == (__version__, theirs)


def test_bad_value_stays_a_bad_request(any_client: Any) -> None:
    server = ScriptedServer(Port.CLIENT, every(Kind.ENQ, refuse(BadRequest("ENQ: module cannot be '1 fields, not 2'"))))
    try:
        with any_client([server.address]) as client, pytest.raises(BadRequest):
            client.enq("Sample")
    finally:
        server.close()


def test_server_names_both_versions_to_a_caller_of_another_protocol() -> None:
    given = Session(Port.CLIENT)

    given.feed(frames.MAGIC + frames.encode(Kind.HELLO, 1, [item(Hello(2, 3, "givalia-client/9.1"))]))

    (frame,) = frames.FrameReader().feed(given.take_out())
    assert isinstance(frame, frames.Frame)
    code, words, details = frames.unpack_fields(frame.items[0][0])
    assert code == "VERSION_MISMATCH"
    assert f"Givalia {__version__}, speaks version 1 of the protocol, and givalia-client/9.1 2 to 3" in words
    assert details == {"version": 1}


@pytest.mark.parametrize(
    ("port", "kind", "words"),
    [
        (Port.WORKER, Kind.INFO, "the port for clients is another one, which is set with -p"),
        (Port.CLIENT, Kind.JOIN, "the port for workers is another one, which is set with -w"),
    ],
)
def test_a_message_at_the_other_port_is_no_question_of_versions(port: Port, kind: Kind, words: str) -> None:
    session, caller = Session(port), Caller()
    session.feed(caller.hello("givalia-client"))
    caller.feed(session.take_out())

    session.feed(caller.ask(kind, [((), b"")])[1])

    (answer,) = caller.feed(session.take_out())
    assert isinstance(answer, Answer)
    refusal = caller.explained(refused(answer))
    assert type(refusal) is BadRequest
    assert words in str(refusal)


def test_a_worker_at_the_port_for_clients_is_a_refusal_that_the_server_logs() -> None:
    worker, client = Session(Port.CLIENT), Session(Port.CLIENT)
    for came, kind in ((worker, Kind.JOIN), (client, Kind.CREDIT)):
        caller = Caller()
        came.feed(caller.hello("givalia"))
        caller.feed(came.take_out())
        came.feed(caller.ask(kind, [((), b"")])[1])

    assert worker.refusal == "it is a worker, and the port for workers is another one, which is set with -w"
    assert client.refusal == ""
