"""The next step of a client, on a clock that the test moves: no socket, no thread, no waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from givalia_core import ConnectionLost, ShuttingDown, WaitTimeout
from givalia_core.client import commands, failover
from givalia_core.client.commands import CANCEL, ENQ, INFO
from givalia_core.client.connection import ClientConnection
from givalia_core.client.delivery import Listen, RequestDelivery
from givalia_core.client.failover import CONNECT_MOST_S, Connect, Rest
from givalia_core.client.pending import Pending, check_whole
from givalia_core.errors import Busy, Unauthorized
from givalia_core.protocol import addresses, frames
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import HELLO_NUMBER, Broken
from givalia_core.protocol.codec import item, refusal
from givalia_core.protocol.messages import OK, Kind, Progressed
from givalia_core.views import wire_id

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
STOPPING = ShuttingDown("the server is draining", retry_after=2.0)
ONE, OTHER = Address("one", 1), Address("other", 2)


def info() -> Pending[Any]:
    return INFO.ask(commands.info())


def cancel() -> Pending[Any]:
    return CANCEL.ask(commands.cancel("k"))


def enq() -> Pending[Any]:
    return ENQ.ask(commands.enq("Mail"))


def wait(timeout: float | None = None, *, progress: bool = False) -> Pending[Any]:
    (request,) = commands.wait(wire_id(JOB), timeout, progress=progress)
    return request


def begin(made: RequestDelivery, request: Pending[Any], now: float, wake: Callable[[], None] = lambda: None) -> Pending[Any]:
    """Take a request, with a function that wakes its caller."""
    request.wake = wake
    made.begin(request, now)
    return request


def answers(request: Pending[Any]) -> Any:
    """The answers of a request that is over, as its caller gets them."""
    if request.error is not None:
        raise request.error
    return request.answers


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    monkeypatch.setattr(failover, "random", SimpleNamespace(uniform=lambda least, most: most))


def test_a_server_is_tried_no_longer_than_any_call_is_sent_again() -> None:
    made = RequestDelivery([ONE], 6.0)
    begin(made, info(), 0.0)

    assert made.step(0.0) == Connect(ONE, CONNECT_MOST_S)
    made.not_connected(OSError("timed out"))
    assert isinstance(made.step(5.0), Rest)
    assert made.step(5.1) == Connect(ONE, pytest.approx(0.9))


def test_a_server_is_tried_no_longer_than_its_callers_wait() -> None:
    made = RequestDelivery([ONE], 60.0)
    begin(made, wait(0.5), 10.0)
    assert made.step(10.1) == Connect(ONE, pytest.approx(0.4))

    begin(made, wait(), 10.0)
    assert made.step(10.1) == Connect(ONE, CONNECT_MOST_S)


def test_calls_may_be_ended_while_it_is_told_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made = RequestDelivery([ONE], 60.0)
    for _ in range(3):
        begin(made, wait(), 10.0)
    monkeypatch.setattr(failover.math, "inf", Closes(made))  # As by a signal handler, in the middle.

    assert isinstance(made.step(10.0), Connect)
    assert made.is_closed


class Closes(float):
    """Infinity that ends every call when somebody compares it."""

    def __new__(cls, made: RequestDelivery) -> Closes:
        self = super().__new__(cls, math.inf)
        self.made = made
        return self

    made: RequestDelivery

    def __lt__(self, other: float) -> bool:
        if not self.made.is_closed:
            self.made.close()
        return False

    __gt__ = __lt__


def visiting(made: RequestDelivery, now: float) -> ClientConnection:
    """Be connected, and send what is to be sent."""
    connection = ClientConnection()
    for request in made.connected(connection, now):
        made.load(connection, request, now)
    return connection


def looked(made: RequestDelivery, connection: ClientConnection, now: float) -> bool:
    """Look when nothing has arrived, not even an acknowledgement; whether a ping is to be sent."""
    return bool(made.look(connection, now, lambda: math.inf, can_ping=True))


def answer_ping(made: RequestDelivery, connection: ClientConnection, now: float) -> None:
    """Let the server show that it is there, and nothing else."""
    made.arrived(connection, frames.encode(Kind.ANSWER, connection.caller._last, []), now)


def answer(number: int, *fields: Any) -> bytes:
    return frames.encode(Kind.ANSWER, number, [(fields, b"")])


def test_a_call_is_sent_once_to_a_server_and_again_to_the_next() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    request = begin(made, cancel(), 0.0)
    connection = visiting(made, 0.0)
    assert made.load(connection, request, 0.0) == b""

    made.drop(connection, "lost", 1.0)

    assert made.step(1.0) == Connect(OTHER, 5.0)
    assert made.load(ClientConnection(), request, 1.0) == b"", "that is no connection of ours"
    again = visiting(made, 1.0)
    assert made.arrived(again, answer(1, OK, "cancelled"), 2.0)
    assert answers(request) == ["cancelled"]
    assert not made.requests


def test_rests_grow_and_end_with_the_time_to_resend() -> None:
    made = RequestDelivery([ONE], 1.0)
    request = begin(made, info(), 0.0)
    now, rests = 0.0, []

    while not request.is_over:
        step = made.step(now)
        if isinstance(step, Rest):
            rests.append(step.seconds)
            now += step.seconds
        else:
            made.not_connected(OSError("nobody answers"))

    assert rests[:4] == [0.05, 0.1, 0.2, 0.4]
    assert rests[-1] == 0.0
    with pytest.raises(ConnectionLost, match="nobody answers"):
        answers(request)


def test_a_silent_server_is_left_at_the_instant_it_was_silent_for_too_long() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    begin(made, info(), 0.0)
    connection = visiting(made, 3.0)

    for second in range(4, 13):
        assert made.step(second - 1.0) == Listen(1.0)
        assert looked(made, connection, second)
        answer_ping(made, connection, second)
    assert not looked(made, connection, 12.9)
    with pytest.raises(Broken, match="answers nothing"):
        looked(made, connection, 13.0)


def test_a_server_that_is_still_being_told_something_is_not_silent() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    begin(made, info(), 0.0)
    connection = visiting(made, 0.0)

    connection.still_sending(9.0)

    assert looked(made, connection, 13.9), "a ping"
    with pytest.raises(Broken, match="not even an acknowledgement"):
        looked(made, connection, 18.9)


def test_who_waits_for_a_job_hurries_no_server_that_is_there() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    begin(made, wait(), 0.0)
    connection = visiting(made, 0.0)

    for second in range(5, 1_000, 5):
        assert made.step(second - 5.0) == Listen(5.0)
        assert not looked(made, connection, second - 0.1)
        assert looked(made, connection, second)
        answer_ping(made, connection, second)


def test_the_time_of_one_who_waits_ends_by_itself() -> None:
    woken: list[str] = []
    made = RequestDelivery([ONE], 60.0)
    request = begin(made, wait(5.0), 0.0, lambda: woken.append("woken"))

    assert not made.has_something(request, 4.9)
    assert made.has_something(request, 5.0)

    with pytest.raises(WaitTimeout):
        answers(request)
    assert not made.requests


def test_of_progress_that_nobody_took_the_newest_is_kept_until_the_end_and_no_longer() -> None:
    woken: list[str] = []
    made = RequestDelivery([ONE], 60.0)
    request = begin(made, wait(progress=True), 0.0, lambda: woken.append("woken"))
    connection = visiting(made, 0.0)
    told = [frames.encode(Kind.PROGRESSED, 0, [item(Progressed(1, fraction))]) for fraction in (0.25, 0.5, 0.75)]

    made.arrived(connection, told[0] + told[1] + answer(1, OK, "cancelled") + told[2], 1.0)

    assert request.news == (0.5, "")
    assert request.is_over
    assert woken


def test_a_refusal_of_the_client_ends_every_call_with_an_error_of_its_own() -> None:
    made = RequestDelivery([ONE], 60.0)
    requests = [begin(made, info(), 0.0) for _ in range(2)]

    made.not_connected(Broken("refused", Unauthorized("not you")))

    assert [type(request.error) for request in requests] == [Unauthorized, Unauthorized]
    assert requests[0].error is not requests[1].error


def test_when_no_server_is_in_reach_they_are_looked_for_again() -> None:
    there = [ONE]
    made = RequestDelivery([ONE], 60.0, lambda: there)
    begin(made, info(), 0.0)

    there[:] = [OTHER]
    assert made.step(0.0) == Connect(ONE, CONNECT_MOST_S)
    made.not_connected(OSError("refused"))

    assert isinstance(made.step(0.0), Rest)
    assert made.step(1.0) == Connect(OTHER, CONNECT_MOST_S)


def test_a_call_that_nobody_waits_for_is_not_sent_to_the_next_server() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    request = begin(made, info(), 0.0)
    connection = visiting(made, 0.0)

    made.forget(request)
    made.drop(connection, "lost", 1.0)

    assert made.connected(ClientConnection(), 1.0) == []
    assert made.arrived(connection, answer(1, *refusal(STOPPING)[0]), 1.0), "an answer for nobody is no reason to go"


def test_what_was_sent_after_a_refusal_is_unknown_and_not_refused() -> None:
    requests = [enq() for _ in range(2)]
    requests[0].refusal = [STOPPING]

    for request in requests:
        request.run_out("")

    assert requests[0].answers == [STOPPING]
    assert isinstance(requests[1].error, ConnectionLost)


def greeted(made: RequestDelivery, now: float) -> ClientConnection:
    """Be connected to a server that tells its clock, and send what is to be sent."""
    connection = ClientConnection()
    assert frames.FrameReader().feed(connection.hello()[4:])
    assert not connection.greet(answer(HELLO_NUMBER, OK, 1, "givalia"))
    assert connection.greet(answer(HELLO_NUMBER + 1, OK, 7_000_000))
    for request in made.connected(connection, now):
        made.load(connection, request, now)
    return connection


def sent(data: bytes | None) -> list[tuple[int, int, Any]]:
    """The kinds, numbers and first fields of frames."""
    every = frames.FrameReader().feed(data or b"")
    return [(each.kind, each.request, frames.unpack_fields(each.items[0][0])[:1]) for each in every]  # type: ignore[union-attr]


def test_a_command_is_sent_with_the_time_after_which_another_server_is_asked() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    connection = greeted(made, 0.0)
    requests = [begin(made, request, 0.0) for request in (info(), cancel(), enq())]

    question, first, second = (sent(made.load(connection, request, 0.0)) for request in requests)

    assert [kind for kind, *_ in question] == [Kind.INFO]
    assert [kind for kind, *_ in first] == [Kind.CLOCK, Kind.CANCEL]
    assert first[0][2] == [7_000_000 + 10_000_000]
    assert [kind for kind, *_ in second] == [Kind.ENQ], "that limit holds for what comes behind, too"


def test_a_command_that_came_too_late_is_sent_again_and_given_longer() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    request = begin(made, cancel(), 0.0)
    connection = greeted(made, 0.0)
    number = max(connection.commands)
    late = refusal(Busy("late", retry_after=0.05, late=True))

    assert made.arrived(connection, answer(number, *late[0]), 1.0)
    assert not request.is_over
    assert made.due(1.0) == []
    assert made.due(1.06) == [request]

    again = sent(made.load(connection, request, 1.06))
    assert [kind for kind, *_ in again] == [Kind.CLOCK, Kind.CANCEL]
    assert 27_000_000 < again[0][2][0] <= 28_060_000
    made.arrived(connection, answer(again[1][1], OK, "cancelled"), 2.0)
    assert answers(request) == ["cancelled"]


def test_a_command_is_never_decided_after_its_caller_has_given_up() -> None:
    made = RequestDelivery([ONE], 60.0)
    request = begin(made, cancel(), 0.0)
    made.drop(greeted(made, 0.0), "lost", 55.0)
    connection = ClientConnection()
    connection.hello()
    connection.greet(answer(HELLO_NUMBER, OK, 1) + answer(HELLO_NUMBER + 1, OK, 0))
    made.connected(connection, 56.0)

    limit, _ = sent(made.load(connection, request, 56.0))

    assert limit[2] == [4_000_000]


def test_an_answer_of_busy_that_is_not_late_is_for_the_caller() -> None:
    made = RequestDelivery([ONE], 60.0)
    request = begin(made, cancel(), 0.0)
    connection = greeted(made, 0.0)

    made.arrived(connection, answer(max(connection.commands), *refusal(Busy("full", retry_after=1.0))[0]), 1.0)

    assert [type(each) for each in answers(request)] == [Busy]


# What was certainly never sent.


@pytest.mark.parametrize(("missing_bytes", "words", "was_sent"), [(1, "not sent", False), (0, "unknown", True)])
def test_a_command_was_sent_when_a_connection_took_the_last_byte_of_it(missing_bytes: int, words: str, was_sent: bool) -> None:
    made = RequestDelivery([ONE], 60.0)
    first, request, last = (begin(made, enq(), 0.0) for _ in range(3))
    connection = visiting(made, 0.0)
    taken_bytes = request.ends_at_byte - missing_bytes
    connection.taken_bytes = lambda: taken_bytes

    made.drop(connection, "lost", 1.0)
    made.close()

    assert isinstance(request.error, ConnectionLost)
    assert words in str(request.error)
    assert request.error.sent is was_sent
    assert [first.error.sent, last.error.sent] == [True, False]  # type: ignore[union-attr]


def test_once_sent_is_sent_whatever_became_of_a_later_copy() -> None:
    made = RequestDelivery([ONE], 60.0)
    request = begin(made, enq(), 0.0)
    made.drop(visiting(made, 0.0), "lost", 1.0)
    again = visiting(made, 1.0)
    again.taken_bytes = lambda: 0

    made.drop(again, "lost", 2.0)
    made.close()

    assert request.may_be_done
    assert request.error.sent  # type: ignore[union-attr]


def test_while_a_connection_carries_a_call_nobody_says_that_it_was_not_sent() -> None:
    made = RequestDelivery([ONE], 60.0)
    request = enq()
    request.timeout_s = 5.0
    begin(made, request, 0.0)
    visiting(made, 0.0).taken_bytes = lambda: 0

    made.has_something(request, 5.0)

    assert request.error.sent  # type: ignore[union-attr]


def test_what_a_server_has_refused_in_part_was_sent() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    request = begin(made, enq(), 0.0)
    connection = visiting(made, 0.0)
    assert not made.arrived(connection, answer(1, *refusal(STOPPING)[0]), 1.0)
    made.drop(connection, "the server stops", 1.0)
    again = visiting(made, 1.0)
    again.taken_bytes = lambda: 0

    made.drop(again, "lost", 2.0)
    made.close()

    assert request.error.sent  # type: ignore[union-attr]


def test_in_a_fork_the_parent_goes_on_with_what_was_not_sent() -> None:
    made = RequestDelivery([ONE], 60.0)
    request = begin(made, enq(), 0.0)

    made.abandon()

    assert "unknown" in str(request.error)
    assert request.error.sent  # type: ignore[union-attr]


def test_of_a_call_of_many_frames_it_is_said_that_nothing_was_sent_only_if_that_is_so() -> None:
    def ended(was_sent: bool) -> Pending[Any]:
        request = enq()
        request.was_sent = was_sent
        request.end("lost")
        return request

    check_whole([ended(False), ended(False)], 0)
    check_whole([ended(True), ended(False)], 0)
    for requests, answered in (([ended(False), ended(True)], 0), ([ended(False)], 1)):
        with pytest.raises(ConnectionLost, match="others of this call took effect is unknown") as caught:
            check_whole(requests, answered)
        assert caught.value.sent


def test_for_nobody_no_server_is_looked_after() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    request = begin(made, wait(), 0.0)
    connection = visiting(made, 0.0)
    assert made.step(0.0) == Listen(5.0)

    made.forget(request)

    assert made.step(5.0) == Listen(None)
    assert not looked(made, connection, 5.0)


def test_a_server_that_only_tells_its_clock_is_silent() -> None:
    made = RequestDelivery([ONE, OTHER], 60.0)
    begin(made, cancel(), 0.0)
    connection = greeted(made, 0.0)

    for second in range(1, 10):
        request = begin(made, cancel(), float(second))
        for kind, number, _ in sent(made.load(connection, request, second + 0.5)):
            if kind == Kind.CLOCK:
                made.arrived(connection, answer(number, OK, 7_000_000), second + 0.5)

    with pytest.raises(Broken, match="answers nothing"):
        looked(made, connection, 10.0)
