"""The deadline for deciding a command: the client sends it on the server's own clock, and the server keeps to it."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core.client.server_clock import DRIFT, ServerClock
from givalia_core.clock import Reading
from givalia_core.errors import BadRequest
from givalia_core.protocol import frames
from givalia_core.protocol.caller import Answer, Caller
from givalia_core.protocol.codec import item, refusal
from givalia_core.protocol.messages import OK, Cancel, ClockAsked, Enq, Kind
from givalia_core.protocol.session import Port, Session

TOLD_US = 5_000_000_000
ID = bytes(range(16))


def said(data: bytes) -> int | None:
    """What a frame says of the time until which commands may be decided."""
    (frame,) = frames.FrameReader().feed(data)
    assert isinstance(frame, frames.Frame)
    assert frame.kind == Kind.CLOCK
    return ClockAsked(*frames.unpack_fields(frame.items[0][0])).until_us


def told(*fields: Any, heard: float = 100.0) -> ServerClock:
    """A clock that was asked for, and answered."""
    clock = ServerClock(Caller())
    assert said(clock.ask(None)) is None
    assert clock.take(Answer(1, [(list(fields), b"")]))
    clock.heard(heard)
    return clock


def test_the_limit_is_as_long_as_the_answer_is_waited_for_and_never_longer() -> None:
    clock = told(OK, TOLD_US)

    assert said(clock.limit(100.0, 10.0)) == TOLD_US + 10_000_000
    assert said(told(OK, TOLD_US).limit(130.0, 10.0)) == TOLD_US + 40_000_000 - round(30e6 * DRIFT)


def test_a_limit_is_said_again_only_when_the_one_before_does_not_fit() -> None:
    clock = told(OK, TOLD_US)
    assert clock.limit(100.0, 10.0)

    assert clock.limit(100.0, 10.0) == b""
    assert clock.limit(100.9, 10.0) == b""
    assert said(clock.limit(101.1, 10.0)) is not None
    assert said(clock.limit(101.2, 5.0)) is not None, "the caller of this one waits for a shorter time"
    assert said(clock.limit(101.2, 10.0)) is not None


def test_a_clock_that_is_told_anew_counts_from_there() -> None:
    clock = told(OK, TOLD_US)
    clock.limit(150.0, 10.0)

    assert clock.take(Answer(2, [([OK, TOLD_US + 7_000_000], b"")]))
    clock.heard(200.0)

    assert said(clock.limit(200.0, 10.0)) == TOLD_US + 17_000_000


@pytest.mark.parametrize(
    "fields", [refusal(BadRequest("there is no kind 12"))[0], (OK,), (OK, None), (OK, "1"), (OK, True), ()]
)
def test_a_server_that_tells_no_clock_is_told_no_limit(fields: Any) -> None:
    assert told(*fields).limit(100.0, 10.0) == b""


def test_answers_to_other_frames_are_none_of_its_business() -> None:
    clock = ServerClock(Caller())
    clock.ask(None)

    assert not clock.take(Answer(2, [([OK, TOLD_US], b"")]))
    assert clock.limit(1.0, 10.0) == b""


# The server's side.


class Machine:
    """The clocks of a server's machine."""

    def __init__(self) -> None:
        self.reading = Reading(1, 900, 500)

    def read(self) -> Reading:
        return self.reading


def opened(machine: Machine) -> Session:
    """A session that has said hello."""
    session = Session(Port.CLIENT, read_clock=machine.read)
    session.feed(Caller().hello("test"))
    session.take_out()
    return session


def frame(kind: Kind, number: int, *messages: Any) -> bytes:
    return frames.encode(kind, number, [item(message) for message in messages])


def answered(session: Session) -> list[Any]:
    (answer,) = frames.FrameReader().feed(session.take_out())
    assert isinstance(answer, frames.Frame)
    return [frames.unpack_fields(fields) for fields, _ in answer.items]


def test_a_limit_holds_for_all_frames_behind_it_until_the_next() -> None:
    session = opened(Machine())
    enq, cancel = Enq(ID, "Mail"), Cancel(ID, "k")

    asks = session.feed(
        frame(Kind.ENQ, 2, enq)
        + frame(Kind.CLOCK, 3, ClockAsked(1_000))
        + frame(Kind.ENQ, 4, enq, enq)
        + frame(Kind.CANCEL, 5, cancel)
        + frame(Kind.CLOCK, 6, ClockAsked())
        + frame(Kind.CANCEL, 7, cancel)
    )

    # The clock that is told counts suspended time; commands are decided on the one that leases are counted by.
    assert [ask.until_us for ask in asks] == [None, 600, 600, None]


def test_the_clock_is_told_at_once_and_asks_nobody() -> None:
    session = opened(Machine())

    assert session.feed(frame(Kind.CLOCK, 2, ClockAsked())) == []

    assert answered(session) == [[OK, 900]]


def test_a_limit_that_waited_while_the_machine_was_suspended_is_past() -> None:
    machine = Machine()
    session = opened(machine)
    machine.reading = Reading(1, 900 + 3_600, 500)

    (ask,) = session.feed(frame(Kind.CLOCK, 2, ClockAsked(1_000)) + frame(Kind.CANCEL, 3, Cancel(ID, "k")))

    assert ask.until_us is not None
    assert ask.until_us < machine.reading.mono_us


def test_a_limit_that_cannot_be_read_is_refused_and_changes_nothing() -> None:
    session = opened(Machine())
    session.feed(frame(Kind.CLOCK, 2, ClockAsked(1_000)))
    session.take_out()

    (ask,) = session.feed(frames.encode(Kind.CLOCK, 3, [((-1,), b"")]) + frame(Kind.CANCEL, 4, Cancel(ID, "k")))

    assert answered(session)[0][0] == "BAD_REQUEST"
    assert ask.until_us == 600


def test_workers_have_no_such_clock_and_lines_no_copies() -> None:
    worker = Session(Port.WORKER)
    worker.feed(Caller().hello("test"))
    worker.take_out()
    assert worker.feed(frame(Kind.CLOCK, 2, ClockAsked())) == []
    assert answered(worker)[0][0] == "BAD_REQUEST"

    (ask,) = Session(Port.CLIENT).feed(b'{"action":"cancel","job":{"key":"k"}}\n')
    assert ask.is_once
