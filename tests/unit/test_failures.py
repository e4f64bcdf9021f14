"""The lines of the worker's log about failed attempts."""

from __future__ import annotations

from typing import Any

import pytest

from givalia_core.protocol.messages import Dispatch, FailReport
from givalia_core.worker.foreman.failures import ANSWERED_S, Failures
from givalia_core.worker.link.answers import follows
from givalia_core.worker.link.records import FailAnswered, Follows

ID = bytes(range(16))
BOOM = 'Traceback (most recent call last):\n  File "cart.py", line 7, in process\nValueError: boom'
RETRY = Follows("waiting", 5, 3_940_000)
DEAD = Follows("dead", 5, None)


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, str, dict[str, Any]]] = []

    def _say(self, level: str, words: str, values: tuple[Any, ...], extra: Any) -> None:
        self.said.append((level, words % values, dict(extra or {})))

    def info(self, words: str, *values: Any, extra: Any = None) -> None:
        self._say("info", words, values, extra)

    def warning(self, words: str, *values: Any, extra: Any = None) -> None:
        self._say("warning", words, values, extra)

    def error(self, words: str, *values: Any, extra: Any = None) -> None:
        self._say("error", words, values, extra)

    @property
    def lines(self) -> list[tuple[str, str]]:
        return [(level, line) for level, line, _ in self.said]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def failures(log: Log) -> Failures:
    return Failures(log, lambda: True)


def report(failures: Failures, fence: int = 7, error: str = BOOM, attempt: int = 2, now_s: float = 0.0) -> None:
    failures.report(Dispatch(ID, fence, "Cart", attempt, 0, "cart-7"), FailReport(ID, fence, "failed", error), now_s)


def test_a_failed_attempt_is_said_when_it_is_known_what_follows(failures: Failures, log: Log) -> None:
    report(failures)
    assert log.lines == []

    failures.answer(FailAnswered(7, RETRY, is_taken=True), 0.1)

    assert log.lines == [("warning", "attempt 2 of 5 failed, next try in 3.9 s: ValueError: boom")]
    assert log.said[0][2] == {
        "job_id": "00010203-0405-0607-0809-0a0b0c0d0e0f", "job_module": "Cart", "key": "cart-7", "attempt": 2,
        "error": "ValueError: boom",
    }  # fmt: skip


def test_a_dead_job_is_an_error_with_its_traceback(failures: Failures, log: Log) -> None:
    report(failures, attempt=5)
    failures.answer(FailAnswered(7, DEAD, is_taken=True), 0.1)
    assert log.lines == [("error", "the job is dead: attempt 5 of 5 failed: ValueError: boom")]
    assert log.said[0][2]["traceback"] == BOOM


def test_a_traceback_is_left_out_where_the_setting_says_so_and_where_there_is_none(log: Log) -> None:
    for failures, error in ((Failures(log, lambda: False), BOOM), (Failures(log, lambda: True), "no such cart")):
        report(failures, error=error)
        failures.answer(FailAnswered(7, DEAD, is_taken=True), 0.1)
    assert [line for _, line in log.lines] == [
        "the job is dead: attempt 2 of 5 failed: ValueError: boom",
        "the job is dead: attempt 2 of 5 failed: no such cart",
    ]
    assert not any("traceback" in extra for _, _, extra in log.said)


@pytest.mark.parametrize(
    ("answered", "line"),
    [
        (FailAnswered(7, None, is_taken=True), ("warning", "attempt 2 failed: ValueError: boom")),
        (
            FailAnswered(7, None, is_taken=False),
            ("warning", "attempt 2 failed, and the server did not take the report, for the lease was over: ValueError: boom"),
        ),
        (FailAnswered(7, Follows("cancelled", 5, None), is_taken=True),
         ("info", "attempt 2 of 5 failed, and the job is cancelled: ValueError: boom")),
    ],
    ids=["an old server", "a lease that was over", "a cancelled job"],
)  # fmt: skip
def test_what_is_not_known_is_not_said(failures: Failures, log: Log, answered: FailAnswered, line: tuple[str, str]) -> None:
    report(failures)
    failures.answer(answered, 0.1)
    assert log.lines == [line]


def test_an_attempt_whose_report_is_not_answered_is_said_once_and_a_death_all_the_same(failures: Failures, log: Log) -> None:
    report(failures, fence=7)
    report(failures, fence=8)
    failures.look(ANSWERED_S - 0.1)
    assert log.lines == []

    failures.look(ANSWERED_S)
    failures.look(ANSWERED_S + 1)

    line = ("warning", "attempt 2 failed, and the server has not answered the report yet: ValueError: boom")
    assert log.lines == [line, line]
    failures.answer(FailAnswered(7, RETRY, is_taken=True), 9.0)
    failures.answer(FailAnswered(8, DEAD, is_taken=True), 9.0)
    assert log.lines[2:] == [("error", "the job is dead: attempt 2 of 5 failed: ValueError: boom")]


def test_nothing_is_left_unsaid_at_the_end(failures: Failures, log: Log) -> None:
    report(failures)
    failures.close(0.1)
    assert log.lines == [("warning", "attempt 2 failed, and the server has not answered the report yet: ValueError: boom")]


def test_a_storm_of_one_error_is_counted(failures: Failures, log: Log) -> None:
    for fence in range(1, 1_001):
        report(failures, fence, error=BOOM + f" {fence}")
        failures.answer(FailAnswered(fence, RETRY, is_taken=True), fence / 1_000)
    assert len(log.lines) == 10

    report(failures, 2_000, error="no such cart")
    failures.answer(FailAnswered(2_000, RETRY, is_taken=True), 2.0)
    assert "no such cart" in log.lines[-1][1]  # Another error is none of them.

    failures.look(11.0)
    assert log.lines[-1] == ("warning", "990 more attempts of Cart that failed (ValueError), within 10 s")


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        (["OK"], None),
        (["OK", "waiting", 5, 1_000], Follows("waiting", 5, 1_000)),
        (["OK", "dead", 5], Follows("dead", 5, None)),
        (["OK", "dead", 5, 9, "of a later server"], Follows("dead", 5, 9)),
        (["OK", 7, "nonsense"], None),
        (["OK", "dead"], None),
    ],
)
def test_what_an_answer_says_of_the_job(fields: list[Any], known: Follows | None) -> None:
    assert follows(fields) == known
