"""The lease core: its messages and their times, for any answers of the server, on a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, GivaliaError, ShuttingDown, Stale
from givalia_core.protocol.codec import item, refusal
from givalia_core.protocol.messages import (
    OK,
    Announce,
    Credit,
    Dispatch,
    FailReport,
    Heard,
    Join,
    Kind,
    NamedLease,
    Process,
    Progress,
    Succeed,
)
from givalia_core.worker.link.lease_core import LeaseCore
from givalia_core.worker.link.records import Dispatched, FailAnswered, Follows, Lost, Resumed, StopAsked

LEASE_US = 30 * SECOND_US
MARGIN_US = LEASE_US // 10
JOIN = Join("worker", b"i" * 16)
JOB = Dispatch(b"j" * 16, 5, "Sample", 1, 0)
HOLD = NamedLease(JOB.id, JOB.fence)
REPORT = Succeed(JOB.id, JOB.fence, payload=b"\x07")
FAILURE = FailReport(JOB.id, JOB.fence, "failed", "boom")
BUSY = Busy("later", retry_after=2.0)
YES: Any = ((OK,), b"")


class Rig:
    """A core on its connection; `said` is all that it has said, as kind and messages."""

    def __init__(self, *, has_others: bool = False) -> None:
        self.core = LeaseCore(JOIN, [Announce("Sample", "example", "1")])
        self.now_us = 1_000 * SECOND_US
        self.said: list[tuple[Kind, list[Any]]] = []
        self.numbers: dict[Kind, int] = {}
        self.has_others = has_others
        self.connect()

    def connect(self) -> None:
        self.core.begin(has_others=self.has_others)
        self.pump()
        self.answer(Kind.JOIN, [((OK, LEASE_US), b"")])
        assert self.answer(Kind.RESUME) == [Resumed(LEASE_US)]
        self.answer(Kind.ANNOUNCE)
        self.answer(Kind.CREDIT)

    def pump(self) -> list[tuple[Kind, list[Any]]]:
        """Send what there is to send, and return it."""
        leaving = []
        while (frame := self.core.next_frame(self.now_us)) is not None:
            number, kind, said = frame
            self.numbers[kind] = number
            leaving.append((kind, said))
        self.said += leaving
        return leaving

    def answer(self, kind: Kind, items: list[Any] | None = None) -> list[Any]:
        """Answer the newest frame of a kind, with yes to all of it if nothing else is given; return the events."""
        number = self.numbers[kind]
        said = self.core.asked[number][1]
        events = self.core.answered(number, [YES] * len(said) if items is None else items, self.now_us)
        self.pump()
        return events

    def lend(self, *jobs: Dispatch, heard: Kind = Kind.CREDIT) -> None:
        """Lend jobs; the lease counts from the newest message of a kind."""
        jobs = jobs or (JOB,)
        items: Any = [item(Heard(self.numbers[heard], LEASE_US)), *map(item, jobs)]
        assert self.core.told(Kind.DISPATCH, items) == [Dispatched(list(jobs))]

    def say(self, message: Any) -> list[tuple[Kind, list[Any]]]:
        assert self.core.say(message) == []
        return self.pump()

    def pass_s(self, seconds: float) -> None:
        self.now_us += round(seconds * SECOND_US)


def test_a_worker_joins_announces_and_names_what_it_holds_before_it_takes_anything() -> None:
    rig = Rig()

    assert rig.said == [
        (Kind.JOIN, [JOIN]),
        (Kind.ANNOUNCE, [Announce("Sample", "example", "1")]),
        (Kind.RESUME, []),
        (Kind.CREDIT, [Credit(0)]),
    ]


def test_nothing_is_said_before_the_server_has_taken_the_worker() -> None:
    core = LeaseCore(JOIN, [])
    core.begin(has_others=False)
    core.say(Credit(1))

    frame = core.next_frame(0)

    assert frame is not None
    assert frame[1] is Kind.JOIN
    assert core.next_frame(0) is None


def test_a_lease_counts_from_the_moment_the_message_was_sent_that_the_server_names() -> None:
    rig = Rig()
    rig.pass_s(7)
    rig.lend(heard=Kind.CREDIT)

    assert rig.core.held[JOB.id].deadline_us == rig.now_us - 7 * SECOND_US + LEASE_US - MARGIN_US


def test_a_beat_renews_a_lease_from_the_moment_it_was_sent() -> None:
    rig = Rig()
    rig.lend()
    rig.pass_s(10)
    assert rig.pump() == [(Kind.BEAT, [HOLD])]
    rig.pass_s(4)

    rig.answer(Kind.BEAT)

    assert rig.core.held[JOB.id].deadline_us == rig.now_us - 4 * SECOND_US + LEASE_US - MARGIN_US
    assert rig.core.next_frame(rig.now_us) is None


def test_a_worker_beats_each_third_of_a_lease_whatever_it_holds() -> None:
    rig = Rig()
    beats = []
    for _ in range(30):
        rig.pass_s(1)
        beats += rig.pump()

    assert beats == [(Kind.BEAT, [])] * 3


def test_a_lease_that_could_not_be_renewed_is_given_up_a_margin_before_its_end() -> None:
    rig = Rig()
    rig.lend()
    rig.pass_s(26.9)
    assert rig.core.let_go(rig.now_us) == []

    rig.pass_s(0.2)

    assert rig.now_us >= rig.core.let_go_us
    assert rig.core.let_go(rig.now_us) == [Lost(JOB.id, JOB.fence, "its lease could not be renewed in time")]
    assert rig.core.let_go(rig.now_us) == []


def test_a_lease_that_was_given_up_is_not_renewed_and_is_named_until_its_end_is_reported() -> None:
    rig = Rig()
    rig.lend()
    rig.pass_s(28)
    rig.core.let_go(rig.now_us)

    assert (Kind.BEAT, []) in rig.pump()
    assert rig.say(FailReport(JOB.id, JOB.fence, "died", "over"))[0][0] is Kind.FAIL
    rig.said.clear()
    rig.connect()

    assert (Kind.RESUME, [HOLD]) in rig.said
    assert rig.said[-1] == (Kind.FAIL, [FailReport(JOB.id, JOB.fence, "died", "over")])


def test_a_job_with_a_report_is_not_given_up() -> None:
    rig = Rig()
    rig.lend()
    rig.say(REPORT)
    rig.pass_s(60)

    assert rig.core.let_go(rig.now_us) == []


def test_a_report_is_made_again_on_the_next_connection_and_no_more_once_it_is_answered() -> None:
    rig = Rig()
    rig.lend()
    assert rig.say(REPORT) == [(Kind.SUCCEED, [REPORT])]
    rig.connect()
    assert rig.said.count((Kind.SUCCEED, [REPORT])) == 2

    rig.answer(Kind.SUCCEED)
    rig.said.clear()
    rig.connect()

    assert (Kind.RESUME, []) in rig.said
    assert rig.core.is_settled()


def test_a_report_that_is_made_while_there_is_no_connection_is_sent_once() -> None:
    rig = Rig()
    rig.lend()
    rig.core.end()
    assert rig.core.say(REPORT) == []
    rig.said.clear()
    rig.connect()

    assert [each for each in rig.said if each[0] in (Kind.RESUME, Kind.SUCCEED)] == [
        (Kind.RESUME, [HOLD]),
        (Kind.SUCCEED, [REPORT]),
    ]


def test_a_report_of_a_lease_that_is_anothers_by_now_is_not_made() -> None:
    rig = Rig()
    rig.lend()
    rig.lend(JOB._replace(fence=6))

    assert rig.say(REPORT) == []
    assert rig.core.say(FAILURE) == [FailAnswered(JOB.fence, None, is_taken=False)]
    assert rig.pump() == []


@pytest.mark.parametrize("items", [[refusal(BUSY)], [refusal(BUSY)] * 2], ids=["the frame", "each"])
def test_reports_that_a_busy_server_does_not_take_are_made_again_when_it_wants_them(items: list[Any]) -> None:
    rig = Rig()
    others = [JOB._replace(id=bytes([number]) * 16) for number in range(2)]
    rig.lend(*others)
    reports = [REPORT._replace(id=job.id) for job in others]
    for report in reports:
        rig.core.say(report)
    assert rig.pump() == [(Kind.SUCCEED, reports)]

    assert rig.answer(Kind.SUCCEED, items) == []
    assert not rig.core.is_settled()
    rig.pass_s(1.9)
    assert rig.pump() == []
    assert rig.core.wake_us == rig.now_us + SECOND_US // 10
    rig.pass_s(0.1)

    assert rig.pump() == [(Kind.SUCCEED, reports)]


@pytest.mark.parametrize("held", [1, 2])
def test_a_lease_outlives_a_beat_that_a_busy_server_does_not_take(held: int) -> None:
    rig = Rig()
    rig.lend(*(JOB._replace(id=bytes([number]) * 16) for number in range(held)))
    deadlines = [loan.deadline_us for loan in rig.core.held.values()]
    rig.pass_s(10)
    rig.pump()

    assert rig.answer(Kind.BEAT, [refusal(BUSY)]) == []

    assert [loan.deadline_us for loan in rig.core.held.values()] == deadlines


@pytest.mark.parametrize("kind", [Kind.ANNOUNCE, Kind.RESUME, Kind.CREDIT])
def test_a_server_that_is_too_busy_for_what_a_worker_needs_is_left(kind: Kind) -> None:
    rig = Rig()
    rig.core.begin(has_others=False)
    rig.pump()
    rig.answer(Kind.JOIN, [((OK, LEASE_US), b"")])

    with pytest.raises(Busy):
        rig.answer(kind, [refusal(BUSY)])


def test_a_server_that_stops_is_left_if_there_is_another() -> None:
    stopping = ShuttingDown("draining", retry_after=60.0)
    for has_others in (False, True):
        rig = Rig(has_others=has_others)
        rig.lend()
        rig.say(REPORT)
        if has_others:
            with pytest.raises(ShuttingDown):
                rig.answer(Kind.SUCCEED, [refusal(stopping)])
        else:
            assert rig.answer(Kind.SUCCEED, [refusal(stopping)]) == []


def test_a_server_that_answers_nothing_for_most_of_a_lease_is_left_if_there_is_another() -> None:
    for has_others in (False, True):
        rig = Rig(has_others=has_others)
        rig.lend()
        rig.say(REPORT)
        rig.pass_s(19)
        assert not rig.core.is_unheard(rig.now_us)
        rig.pass_s(2)
        assert rig.core.is_unheard(rig.now_us) is has_others


def test_a_lease_that_the_server_gave_to_another_is_lost() -> None:
    rig = Rig()
    rig.lend()
    rig.pass_s(10)
    rig.pump()

    assert rig.answer(Kind.BEAT, [refusal(Stale("not yours"))]) == [
        Lost(JOB.id, JOB.fence, "the server gave the job to another")
    ]
    assert not rig.core.held


def test_a_report_that_was_not_sent_is_not_taken_if_the_lease_is_lost() -> None:
    rig = Rig()
    rig.lend()
    rig.pass_s(10)
    rig.pump()
    rig.core.say(FAILURE)

    events = rig.core.answered(rig.numbers[Kind.BEAT], [refusal(Stale("not yours"))], rig.now_us)

    assert events[1:] == [FailAnswered(JOB.fence, None, is_taken=False)]
    assert rig.pump() == []


def test_an_answer_to_a_beat_that_is_no_word_about_leases_ends_the_connection() -> None:
    rig = Rig()
    rig.lend()
    rig.pass_s(10)
    rig.pump()

    with pytest.raises(BadRequest):
        rig.answer(Kind.BEAT, [refusal(BadRequest("what is that?"))])


def test_a_server_that_answers_another_number_of_messages_is_left() -> None:
    rig = Rig()
    rig.lend()
    rig.say(REPORT)

    with pytest.raises(GivaliaError, match="another number"):
        rig.answer(Kind.SUCCEED, [YES, YES])


def test_the_answer_to_a_failure_tells_what_follows() -> None:
    rig = Rig()
    rig.lend()
    rig.say(FAILURE)

    assert rig.answer(Kind.FAIL, [((OK, "waiting", 5, 1_000), b"")]) == [
        FailAnswered(JOB.fence, Follows("waiting", 5, 1_000), is_taken=True)
    ]


def test_the_newest_hint_goes_before_the_report_of_its_job_and_none_behind_it() -> None:
    rig = Rig()
    rig.lend()
    for fraction in (0.1, 0.2):
        rig.core.say(Progress(JOB.id, JOB.fence, fraction))
    rig.core.say(REPORT)

    assert rig.pump() == [(Kind.PROGRESS, [Progress(JOB.id, JOB.fence, 0.2)]), (Kind.SUCCEED, [REPORT])]
    rig.answer(Kind.SUCCEED)
    assert rig.say(Progress(JOB.id, JOB.fence, 0.3)) == []


def test_credits_modules_and_processes_are_said_again_to_each_server() -> None:
    rig = Rig()
    rig.say(Credit(7))
    rig.say([])
    rig.say([Process(1, "greenlets", "ready")])
    rig.said.clear()
    rig.connect()

    assert rig.said[1] == (Kind.ANNOUNCE, [])
    assert (Kind.CREDIT, [Credit(7)]) in rig.said
    assert (Kind.PROCESSES, [Process(1, "greenlets", "ready")]) in rig.said


def test_many_reports_are_as_few_frames_as_the_limits_allow() -> None:
    rig = Rig()
    jobs = [JOB._replace(id=number.to_bytes(16)) for number in range(5)]
    rig.lend(*jobs)
    for job in jobs:
        rig.core.say(Succeed(job.id, job.fence, payload=bytes(200_000)))

    assert [len(said) for _, said in rig.pump()] == [2, 2, 1]


def test_only_jobs_that_are_held_are_stopped() -> None:
    rig = Rig()
    rig.lend()

    stops: Any = [((JOB.id, JOB.fence), b""), ((b"x" * 16, 3), b"")]
    assert rig.core.told(Kind.STOP, stops) == [StopAsked(JOB.id, JOB.fence, False)]


def test_numbers_come_round_and_are_never_zero() -> None:
    rig = Rig()
    rig.core._number = (1 << 32) - 1

    assert rig.core.take_number() == 1
