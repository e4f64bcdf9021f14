"""What a client does next, on a clock that the test moves: no socket, no thread, no waiting."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from givalia_core import ConnectionLost, ShuttingDown, WaitTimeout
from givalia_core.client import errands, talk
from givalia_core.client.errands import CONNECT_MOST_S, Connect, Errands, Listen, Rest
from givalia_core.client.slot import Slot, check_whole
from givalia_core.client.visit import Visit
from givalia_core.errors import Busy, Unauthorized
from givalia_core.protocol import addresses, frames
from givalia_core.protocol.addresses import Address
from givalia_core.protocol.caller import HELLO_NUMBER, Broken
from givalia_core.protocol.messages import OK, Kind, Progressed, item, refusal

JOB = "0195d6c0-7a80-7000-8000-0000000000aa"
STOPPING = ShuttingDown("the server is draining", retry_after=2.0)
ONE, OTHER = Address("one", 1), Address("other", 2)


def begin(errands: Errands, call: Any, timeout: float | None, now: float, wake: Callable[[], None] = lambda: None) -> Slot:
    """Take in a call of one who waits so many seconds."""
    slot = Slot.of(call, timeout, errands._resend_s, now, wake)
    errands.begin(slot)
    return slot


@pytest.fixture(autouse=True)
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "random", SimpleNamespace(sample=lambda given, count: list(given)))
    monkeypatch.setattr(errands, "random", SimpleNamespace(uniform=lambda least, most: most))


def test_a_server_is_tried_no_longer_than_any_call_is_sent_again() -> None:
    made = Errands([ONE], 6.0)
    begin(made, talk.info(), None, 0.0)

    assert made.step(0.0) == Connect(ONE, CONNECT_MOST_S)
    made.not_connected(OSError("timed out"))
    assert isinstance(made.step(5.0), Rest)
    assert made.step(5.1) == Connect(ONE, pytest.approx(0.9))


def test_a_server_is_tried_no_longer_than_its_callers_wait() -> None:
    made = Errands([ONE], 60.0)
    begin(made, talk.wait(JOB), 0.5, 10.0)
    assert made.step(10.1) == Connect(ONE, pytest.approx(0.4))

    begin(made, talk.wait(JOB), None, 10.0)
    assert made.step(10.1) == Connect(ONE, CONNECT_MOST_S)


def test_calls_may_be_ended_while_it_is_told_what_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Errands([ONE], 60.0)
    for _ in range(3):
        begin(made, talk.wait(JOB), None, 10.0)
    monkeypatch.setattr(errands.math, "inf", Closes(made))  # As by a signal handler, in the middle.

    assert isinstance(made.step(10.0), Connect)
    assert made.is_closed


class Closes(float):
    """Infinity that ends every call when somebody compares it."""

    def __new__(cls, made: Errands) -> Closes:
        self = super().__new__(cls, math.inf)
        self.made = made
        return self

    made: Errands

    def __lt__(self, other: float) -> bool:
        if not self.made.is_closed:
            self.made.close()
        return False

    __gt__ = __lt__


def visiting(made: Errands, now: float) -> Visit:
    """Be connected, and send what is to be sent."""
    visit = Visit()
    for slot in made.connected(visit, now):
        made.load(visit, slot, now)
    return visit


def looked(made: Errands, visit: Visit, now: float) -> bool:
    """Look when nothing has arrived, not even an acknowledgement; whether a ping is to be sent."""
    return bool(made.look(visit, now, lambda: math.inf, can_ping=True))


def answer_ping(made: Errands, visit: Visit, now: float) -> None:
    """Let the server show that it is there, and nothing else."""
    made.arrived(visit, frames.encode(Kind.ANSWER, visit.caller._last, []), now)


def answer(number: int, *fields: Any) -> bytes:
    return frames.encode(Kind.ANSWER, number, [(fields, b"")])


def test_a_call_is_sent_once_to_a_server_and_again_to_the_next() -> None:
    made = Errands([ONE, OTHER], 60.0)
    slot = begin(made, talk.cancel("k", None, running=False), None, 0.0)
    visit = visiting(made, 0.0)
    assert made.load(visit, slot, 0.0) is None

    made.drop(visit, "lost", 1.0)

    assert made.step(1.0) == Connect(OTHER, 5.0)
    assert made.load(Visit(), slot, 1.0) is None, "that is no visit of ours"
    again = visiting(made, 1.0)
    assert made.arrived(again, answer(1, OK, "cancelled"), 2.0)
    assert slot.result() == ["cancelled"]
    assert not made.calls


def test_rests_grow_and_end_with_the_time_to_resend() -> None:
    made = Errands([ONE], 1.0)
    slot = begin(made, talk.info(), None, 0.0)
    now, rests = 0.0, []

    while not slot.is_over:
        step = made.step(now)
        if isinstance(step, Rest):
            rests.append(step.seconds)
            now += step.seconds
        else:
            made.not_connected(OSError("nobody answers"))

    assert rests[:4] == [0.05, 0.1, 0.2, 0.4]
    assert rests[-1] == 0.0
    with pytest.raises(ConnectionLost, match="nobody answers"):
        slot.result()


def test_a_silent_server_is_left_at_the_instant_it_was_silent_for_too_long() -> None:
    made = Errands([ONE, OTHER], 60.0)
    begin(made, talk.info(), None, 0.0)
    visit = visiting(made, 3.0)

    for second in range(4, 13):
        assert made.step(second - 1.0) == Listen(1.0)
        assert looked(made, visit, second)
        answer_ping(made, visit, second)
    assert not looked(made, visit, 12.9)
    with pytest.raises(Broken, match="answers nothing"):
        looked(made, visit, 13.0)


def test_a_server_that_is_still_being_told_something_is_not_silent() -> None:
    made = Errands([ONE, OTHER], 60.0)
    begin(made, talk.info(), None, 0.0)
    visit = visiting(made, 0.0)

    made.still_sending(visit, 9.0)

    assert looked(made, visit, 13.9), "a ping"
    with pytest.raises(Broken, match="not even an acknowledgement"):
        looked(made, visit, 18.9)


def test_who_waits_for_a_job_hurries_no_server_that_is_there() -> None:
    made = Errands([ONE, OTHER], 60.0)
    begin(made, talk.wait(JOB), None, 0.0)
    visit = visiting(made, 0.0)

    for second in range(5, 1_000, 5):
        assert made.step(second - 5.0) == Listen(5.0)
        assert not looked(made, visit, second - 0.1)
        assert looked(made, visit, second)
        answer_ping(made, visit, second)


def test_the_time_of_one_who_waits_ends_by_itself() -> None:
    woken: list[str] = []
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.wait(JOB), 5.0, 0.0, lambda: woken.append("woken"))

    made.check_time(slot, 4.9)
    assert not slot.is_over
    made.check_time(slot, 5.0)

    with pytest.raises(WaitTimeout):
        slot.result()
    assert not made.calls


def test_of_progress_that_nobody_took_the_newest_is_kept_until_the_end_and_no_longer() -> None:
    woken: list[str] = []
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.wait(JOB, progress=True), None, 0.0, lambda: woken.append("woken"))
    visit = visiting(made, 0.0)
    told = [frames.encode(Kind.PROGRESSED, 0, [item(Progressed(1, fraction))]) for fraction in (0.25, 0.5, 0.75)]

    made.arrived(visit, told[0] + told[1] + answer(1, OK, "cancelled") + told[2], 1.0)

    assert slot.take_news() == (0.5, "")
    assert slot.take_news() is None
    assert slot.is_over
    assert woken


def test_a_refusal_of_the_client_ends_every_call_with_an_error_of_its_own() -> None:
    made = Errands([ONE], 60.0)
    slots = [begin(made, talk.info(), None, 0.0) for _ in range(2)]

    made.not_connected(Broken("refused", Unauthorized("not you")))

    assert [type(slot.error) for slot in slots] == [Unauthorized, Unauthorized]
    assert slots[0].error is not slots[1].error


def test_when_no_server_is_in_reach_they_are_looked_for_again() -> None:
    there = [ONE]
    made = Errands([ONE], 60.0, lambda: there)
    begin(made, talk.info(), None, 0.0)

    there[:] = [OTHER]
    assert made.step(0.0) == Connect(ONE, CONNECT_MOST_S)
    made.not_connected(OSError("refused"))

    assert isinstance(made.step(0.0), Rest)
    assert made.step(1.0) == Connect(OTHER, CONNECT_MOST_S)


def test_a_call_that_nobody_waits_for_is_not_sent_to_the_next_server() -> None:
    made = Errands([ONE, OTHER], 60.0)
    slot = begin(made, talk.info(), None, 0.0)
    visit = visiting(made, 0.0)

    made.forget(slot)
    made.drop(visit, "lost", 1.0)

    assert made.connected(Visit(), 1.0) == []
    assert made.arrived(visit, answer(1, *refusal(STOPPING)[0]), 1.0), "an answer for nobody is no reason to go"


def test_what_was_sent_after_a_refusal_is_unknown_and_not_refused() -> None:
    call = talk.enq("Sample")
    slots = [Slot(call, None, 0.0) for _ in range(2)]
    slots[0].refusal = [STOPPING]

    for slot in slots:
        slot.run_out("")

    assert slots[0].answers == [STOPPING]
    assert isinstance(slots[1].error, ConnectionLost)


def greeted(made: Errands, now: float) -> Visit:
    """Be connected to a server that tells its clock, and send what is to be sent."""
    visit = Visit()
    assert frames.Reader().feed(visit.hello()[4:])
    assert not visit.greet(answer(HELLO_NUMBER, OK, 1, "givalia"))
    assert visit.greet(answer(HELLO_NUMBER + 1, OK, 7_000_000))
    for slot in made.connected(visit, now):
        made.load(visit, slot, now)
    return visit


def sent(data: bytes | None) -> list[tuple[int, int, Any]]:
    """The kinds, numbers and first fields of frames."""
    every = frames.Reader().feed(data or b"")
    return [(each.kind, each.request, frames.unpack_fields(each.items[0][0])[:1]) for each in every]  # type: ignore[union-attr]


def test_a_command_is_sent_with_the_time_after_which_another_server_is_asked() -> None:
    made = Errands([ONE, OTHER], 60.0)
    visit = greeted(made, 0.0)
    slots = [begin(made, call, None, 0.0) for call in (talk.info(), talk.cancel("k", None, running=False), talk.enq("Mail"))]

    question, first, second = (sent(made.load(visit, slot, 0.0)) for slot in slots)

    assert [kind for kind, *_ in question] == [Kind.INFO]
    assert [kind for kind, *_ in first] == [Kind.CLOCK, Kind.CANCEL]
    assert first[0][2] == [7_000_000 + 10_000_000]
    assert [kind for kind, *_ in second] == [Kind.ENQ], "that limit holds for what comes behind, too"


def test_a_command_that_came_too_late_is_sent_again_and_given_longer() -> None:
    made = Errands([ONE, OTHER], 60.0)
    slot = begin(made, talk.cancel("k", None, running=False), None, 0.0)
    visit = greeted(made, 0.0)
    number = max(visit.commands)
    late = refusal(Busy("late", retry_after=0.05, late=True))

    assert made.arrived(visit, answer(number, *late[0]), 1.0)
    assert not slot.is_over
    assert made.due(1.0) == []
    assert made.due(1.06) == [slot]

    again = sent(made.load(visit, slot, 1.06))
    assert [kind for kind, *_ in again] == [Kind.CLOCK, Kind.CANCEL]
    assert 27_000_000 < again[0][2][0] <= 28_060_000
    made.arrived(visit, answer(again[1][1], OK, "cancelled"), 2.0)
    assert slot.result() == ["cancelled"]


def test_a_command_is_never_decided_after_its_caller_has_given_up() -> None:
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.cancel("k", None, running=False), None, 0.0)
    made.drop(greeted(made, 0.0), "lost", 55.0)
    visit = Visit()
    visit.hello()
    visit.greet(answer(HELLO_NUMBER, OK, 1) + answer(HELLO_NUMBER + 1, OK, 0))
    made.connected(visit, 56.0)

    limit, _ = sent(made.load(visit, slot, 56.0))

    assert limit[2] == [4_000_000]


def test_an_answer_of_busy_that_is_not_late_is_for_the_caller() -> None:
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.cancel("k", None, running=False), None, 0.0)
    visit = greeted(made, 0.0)

    made.arrived(visit, answer(max(visit.commands), *refusal(Busy("full", retry_after=1.0))[0]), 1.0)

    assert [type(each) for each in slot.result()] == [Busy]


# What was certainly never sent.


@pytest.mark.parametrize(("missing_bytes", "words", "was_sent"), [(1, "not sent", False), (0, "unknown", True)])
def test_a_command_was_sent_when_a_connection_took_the_last_byte_of_it(missing_bytes: int, words: str, was_sent: bool) -> None:
    made = Errands([ONE], 60.0)
    first, slot, last = (begin(made, talk.enq("Mail"), None, 0.0) for _ in range(3))
    visit = visiting(made, 0.0)
    taken_bytes = slot.ends_at - missing_bytes
    visit.taken_bytes = lambda: taken_bytes

    made.drop(visit, "lost", 1.0)
    made.close()

    assert isinstance(slot.error, ConnectionLost)
    assert words in str(slot.error)
    assert slot.error.sent is was_sent
    assert [first.error.sent, last.error.sent] == [True, False]  # type: ignore[union-attr]


def test_once_sent_is_sent_whatever_became_of_a_later_copy() -> None:
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.enq("Mail"), None, 0.0)
    made.drop(visiting(made, 0.0), "lost", 1.0)
    again = visiting(made, 1.0)
    again.taken_bytes = lambda: 0

    made.drop(again, "lost", 2.0)
    made.close()

    assert slot.may_be_done
    assert slot.error.sent  # type: ignore[union-attr]


def test_while_a_connection_carries_a_call_nobody_says_that_it_was_not_sent() -> None:
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.enq("Mail"), 5.0, 0.0)
    visiting(made, 0.0).taken_bytes = lambda: 0

    made.check_time(slot, 5.0)

    assert slot.error.sent  # type: ignore[union-attr]


def test_what_a_server_has_refused_in_part_was_sent() -> None:
    made = Errands([ONE, OTHER], 60.0)
    slot = begin(made, talk.enq("Mail"), None, 0.0)
    visit = visiting(made, 0.0)
    assert not made.arrived(visit, answer(1, *refusal(STOPPING)[0]), 1.0)
    made.drop(visit, "the server stops", 1.0)
    again = visiting(made, 1.0)
    again.taken_bytes = lambda: 0

    made.drop(again, "lost", 2.0)
    made.close()

    assert slot.error.sent  # type: ignore[union-attr]


def test_in_a_fork_the_parent_goes_on_with_what_was_not_sent() -> None:
    made = Errands([ONE], 60.0)
    slot = begin(made, talk.enq("Mail"), None, 0.0)

    made.abandon()

    assert "unknown" in str(slot.error)
    assert slot.error.sent  # type: ignore[union-attr]


def test_of_a_call_of_many_frames_it_is_said_that_nothing_was_sent_only_if_that_is_so() -> None:
    def ended(was_sent: bool) -> Slot:
        slot = Slot(talk.enq("Mail"), None, 0.0)
        slot.was_sent = was_sent
        slot.end("lost")
        return slot

    check_whole([ended(False), ended(False)], 0)
    check_whole([ended(True), ended(False)], 0)
    for slots, answered in (([ended(False), ended(True)], 0), ([ended(False)], 1)):
        with pytest.raises(ConnectionLost, match="others of this call took effect is unknown") as caught:
            check_whole(slots, answered)
        assert caught.value.sent


def test_for_nobody_no_server_is_looked_after() -> None:
    made = Errands([ONE, OTHER], 60.0)
    slot = begin(made, talk.wait(JOB), None, 0.0)
    visit = visiting(made, 0.0)
    assert made.step(0.0) == Listen(5.0)

    made.forget(slot)

    assert made.step(5.0) == Listen(None)
    assert not looked(made, visit, 5.0)


def test_a_server_that_only_tells_its_clock_is_silent() -> None:
    made = Errands([ONE, OTHER], 60.0)
    begin(made, talk.cancel("k", None, running=False), None, 0.0)
    visit = greeted(made, 0.0)

    for second in range(1, 10):
        slot = begin(made, talk.cancel("k", None, running=False), None, float(second))
        for kind, number, _ in sent(made.load(visit, slot, second + 0.5)):
            if kind == Kind.CLOCK:
                made.arrived(visit, answer(number, OK, 7_000_000), second + 0.5)

    with pytest.raises(Broken, match="answers nothing"):
        looked(made, visit, 10.0)
