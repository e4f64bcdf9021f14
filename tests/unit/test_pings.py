"""A ping is a STAT without items: every server answers it, at once or in its turn, and any answer is enough."""

from __future__ import annotations

import pytest

from givalia_core.client.connection import ClientConnection
from givalia_core.errors import BadRequest
from givalia_core.protocol import frames
from givalia_core.protocol.caller import Answer, Caller
from givalia_core.protocol.codec import refusal
from givalia_core.protocol.messages import Kind
from givalia_core.protocol.pulse import Due, Owed
from givalia_core.protocol.session import Port, Session

ANSWERS = {"of this version": [], "of an earlier one on the worker port": [refusal(BadRequest("STAT is not for this port"))]}


@pytest.mark.parametrize("port", Port)
def test_a_ping_is_answered_at_once_and_nothing_is_to_be_decided(port: Port) -> None:
    session, caller = Session(port), Caller()
    session.feed(caller.hello("test"))
    caller.feed(session.take_out())
    number, ping = caller.ask(Kind.STAT, [])

    assert session.feed(ping) == []
    assert session.at_once == 1
    assert caller.feed(session.take_out()) == [Answer(number, [])]


def test_before_hello_there_is_no_answer_to_a_ping() -> None:
    session, caller = Session(Port.CLIENT), Caller()
    _, ping = caller.ask(Kind.STAT, [])

    session.feed(frames.MAGIC + ping)

    assert session.is_over


@pytest.mark.parametrize("name", ANSWERS)
def test_every_answer_to_a_ping_shows_that_the_path_is_alive_and_no_more(name: str) -> None:
    connection, owed = ClientConnection(), Owed(0.0, 1.0)
    assert connection.pulse.due(1.0, owed, lambda: float("inf")) is Due.PING
    connection.ping()
    (answer,) = connection.caller.feed(frames.encode(Kind.ANSWER, connection.caller._last, ANSWERS[name]))
    assert isinstance(answer, Answer)

    assert connection.take_aside(answer, 2.0)

    connection.pulse.moved(2.0)
    assert connection.pulse.look_again_s(2.0, owed) == 1.0, "then it is pinged again"
    assert not connection.take_aside(answer, 3.0), "one answer for one ping"
