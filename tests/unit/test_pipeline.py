"""One attempt with any code: exceptions that lie, results that are not data, code that would never run."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from job_code import loud, lying, raising, report_of

from givalia_core import Fail, Retry, WorkModule
from givalia_core.errors import BadRequest
from givalia_core.headline import headline, shortened, type_raised
from givalia_core.modules import Stopped, describe
from givalia_core.printable import Formatter
from givalia_core.protocol.messages import Dispatch, FailReport, Succeed
from givalia_core.repeats import Repeats
from givalia_core.worker.attempt import pipeline
from givalia_core.worker.attempt.pipeline import ERROR_BYTES_MAX, Attempt


class LyingGroup(ExceptionGroup[Exception]):
    exceptions = ()  # type: ignore[assignment]


# What is raised.


LYING: dict[str, Callable[[], BaseException]] = {
    "__class__": lambda: lying(__class__=property(loud)),
    "__str__": lambda: lying(__str__=loud),
    "__str__ and __repr__": lambda: lying(__repr__=loud, __str__=loud),
    "__bool__": lambda: lying(__bool__=loud),
    "__len__": lambda: lying(__len__=lambda _: 0),
    "__traceback__": lambda: lying(__traceback__=property(loud)),
    "__cause__": lambda: lying(__cause__=property(loud)),
    "__notes__": lambda: lying(__notes__=property(loud)),
    "__getattribute__": lambda: lying(__getattribute__=loud),
    "__eq__": lambda: lying(__eq__=loud, __hash__=None),
    "class": lambda: type("Meta", (type,), {"__name__": property(loud), "__getattribute__": loud})("Odd", (Exception,), {})(),
}


@pytest.mark.parametrize("what", LYING)
def test_an_exception_that_lies_fails_its_attempt_and_nothing_else(what: str) -> None:
    report = report_of(raising(LYING[what]()))

    assert type(report) is FailReport
    assert (report.kind, report.permanent) == ("failed", False)
    assert report.error


@pytest.mark.parametrize(
    ("error", "permanent", "after_us"),
    [
        (Fail("no"), True, None),
        (Retry("later", after=2), False, 2_000_000),
        (ExceptionGroup("a", [ValueError(), ExceptionGroup("b", [Retry(), Fail("no")])]), True, None),
        (BaseExceptionGroup("a", [KeyboardInterrupt(), Fail("no")]), True, None),
        (ExceptionGroup("a", [Retry(after=2), ExceptionGroup("b", [Retry(after=5)]), Retry()]), False, 5_000_000),
        (ExceptionGroup("a", [Retry(after=2), ValueError()]), False, None),
        (ExceptionGroup("a", [ValueError()]), False, None),
        (LyingGroup("a", [Fail("no")]), True, None),
    ],
)
def test_a_group_is_what_is_in_it(error: BaseException, permanent: bool, after_us: int | None) -> None:
    report = report_of(raising(error))

    assert (report.permanent, report.after_us) == (permanent, after_us)


REMOTE = "Traceback (most recent call last):\n  File x\nKeyError: 1\n"
CHAIN = "The above exception was the direct cause of the following exception:"


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def noted(error: BaseException, note: str) -> BaseException:
    error.add_note(note)
    return error


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("no such cart"), "ValueError: no such cart"),
        (KeyError("a"), "KeyError: 'a'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (chained(ValueError("no cart"), KeyError("a")), "ValueError: no cart"),
        (chained(ValueError("no cart"), ExceptionGroup("two", [KeyError("a"), OSError()])), "ValueError: no cart"),
        (ExceptionGroup("two", [KeyError("a"), ValueError("b")]), "ExceptionGroup: two (2 sub-exceptions)"),
        (noted(ValueError("no cart"), "Background: y\nz"), "ValueError: no cart"),
        (noted(ValueError("no cart"), f"{REMOTE}\n{CHAIN}\n\n{REMOTE}"), "ValueError: no cart"),
        (RuntimeError(f"remote\n{REMOTE}\n{CHAIN}\n\n{REMOTE}"), "RuntimeError: remote"),
        (OSError(2, "(no table\n[SQL: x]\n(Background on this error at: y)"), "FileNotFoundError: [Errno 2] (no table"),
        (SyntaxError("invalid", ("file.py", 1, 1, "x = =\n")), "SyntaxError: invalid"),
        (Fail("there is no\nsuch cart"), "there is no"),
        (Fail(), "Fail"),
        (Fail(f"child said:\n{CHAIN}\n\n{REMOTE}"), "child said:"),
        (Retry(f"{REMOTE}\n{CHAIN}\n\n{REMOTE}"), "KeyError: 1"),
        (Fail(REMOTE), "KeyError: 1"),
        (RuntimeError("\n\n  the cart is locked\n"), "RuntimeError: the cart is locked"),
        (RuntimeError(f"\n{REMOTE}\n{CHAIN}\n\n{REMOTE}"), f"RuntimeError: {REMOTE.partition(chr(10))[0]}"),
        (ExceptionGroup("\n  two", [KeyError("a")]), "ExceptionGroup: two (1 sub-exception)"),
        (chained(Fail("no cart"), KeyError("a")), "no cart"),
        (chained(Retry("no cart"), ExceptionGroup("two", [KeyError("x" * 20_000), OSError()])), "no cart"),
        (ValueError("long" * 9_000), "ValueError: " + ("long" * 61) + "…"),
        (chained(ValueError("no cart"), KeyError("x" * 20_000)), "ValueError: no cart"),
        (noted(ValueError("no cart"), "a note\n" * 4_000), "ValueError: no cart"),
        (ExceptionGroup("many", [ValueError("b" * 300)] * 100), "ExceptionGroup: many (100 sub-exceptions)"),
    ],
)
def test_a_stored_error_tells_type_and_message_of_the_exception_itself(error: BaseException, line: str) -> None:
    report = report_of(raising(error))

    assert len(report.error.encode()) <= ERROR_BYTES_MAX
    assert headline(report.error)[:200] == line[:200]
    assert headline(shortened(report.error, 1_024))[:200] == line[:200]  # As in a listing.


def test_what_a_failure_was_raised_from_is_told_below_its_words() -> None:
    def refuse(_: object) -> None:
        try:
            {}["cart"]
        except KeyError as error:
            raise Fail("no such cart") from error

    words, caused, *calls, own = report_of(refuse).error.splitlines()

    assert (words, caused.strip()) == ("no such cart", "caused by")
    assert any("in refuse" in line for line in calls)
    assert own.strip() == "KeyError: 'cart'"
    assert type_raised(report_of(refuse).error) == ""  # Else each of a storm of words would count as a kind of its own.


def test_a_cause_that_cannot_be_shown_costs_no_words() -> None:
    class Unspeakable(Exception):
        @property
        def __notes__(self) -> list[str]:
            raise RuntimeError

    assert report_of(raising(chained(Fail("no cart"), Unspeakable()))).error.startswith("no cart")


def test_a_task_group_that_fails_for_good_fails_for_good() -> None:
    async def part() -> None:
        raise Fail("there is no such address")

    async def whole() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
            group.create_task(asyncio.sleep(9))

    report = report_of(lambda _: asyncio.run(whole()))

    assert report.permanent
    assert "there is no such address" in report.error


# What would never run.


async def _coroutine(self: Any) -> None: ...
async def _async_generator(self: Any) -> Any:
    yield


def _generator(self: Any) -> Iterator[None]:
    yield


class _Awaitable:
    def __await__(self) -> Any:
        raise AssertionError


NOT_RUN = {
    "a coroutine function": _coroutine,
    "an async generator function": _async_generator,
    "a generator function": _generator,
}


@pytest.mark.parametrize("kind", NOT_RUN)
def test_a_process_that_calling_does_not_run_is_broken(kind: str) -> None:
    work = type("Work", (WorkModule,), {"process": NOT_RUN[kind]})

    with pytest.raises(BadRequest, match=f"Work: process is {kind}, whose code nobody runs"):
        describe("Work", "test", "0", work)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (_coroutine, "a coroutine"),
        (_async_generator, "an async generator"),
        (_generator, "a generator"),
        (lambda _: (number for number in [1]), "a generator"),
        (lambda _: _Awaitable(), "an awaitable"),
        (lambda _: type("Derived", (_Awaitable,), {})(), "an awaitable"),
    ],
)
def test_what_stands_for_code_that_did_not_run_fails_for_good(value: Callable[[Any], Any], kind: str) -> None:
    report = report_of(lambda self: value(self))

    assert report.permanent
    assert f"process returned {kind} that nobody runs" in report.error


@pytest.mark.parametrize(
    "make",
    [lambda: map(str, [1]), lambda: iter([1]), lambda: {1}, object, lambda: type("Lying", (), {"__class__": property(loud)})()],
)
def test_another_result_that_is_no_data_costs_the_result_alone(make: Callable[[], Any]) -> None:
    assert report_of(lambda _: make()) == Succeed(bytes(16), 1, "UNSERIALIZABLE")


# What takes its time, or breaks what judges.


def test_results_that_are_not_kept_are_logged_a_few_times(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_repeats", Repeats())

    for _ in range(30):
        assert report_of(lambda _: object()).result_error == "UNSERIALIZABLE"

    kept = [record for record in caplog.records if "the result was not kept" in record.getMessage()]
    assert len(kept) == 10
    assert Formatter().format(kept[0]).endswith(f"[module=Work id={uuid.UUID(int=0)} attempt=1]")

    pipeline.say_left_out()
    assert "more" not in caplog.text  # Not until the period is over.
    pipeline.say_left_out(is_last=True)
    assert "20 more results of Work that were not kept" in caplog.text


def test_what_a_job_logs_fails_no_job_though_logging_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.Logger, "handle", lambda *_: 1 / 0)

    report = report_of(lambda work: work.log.warning("a line"))

    assert type(report) is Succeed


def test_a_line_of_a_job_says_where_it_was_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("givalia"), "propagate", True)

    report_of(lambda work: work.log.warning("a line"))

    (record,) = [record for record in caplog.records if record.message == "a line"]
    assert record.filename == Path(__file__).name


# Each step alone.


def attempt_at(process: Any, payload: bytes = b"\xc0") -> Attempt:
    work = type("Work", (WorkModule,), {"process": process})
    return Attempt(Dispatch(bytes(16), 1, "Work", 1, 0, payload=payload), work, None, list[Any]().append)


def test_load_reads_the_params_or_fails_the_attempt_for_good() -> None:
    good, bad, unknown = attempt_at(None, b"\x07"), attempt_at(None, b"\xc1"), attempt_at(None)
    unknown.found = None
    for attempt in (good, bad, unknown):
        pipeline.load(attempt)

    assert (good.params, good.raised) == (7, None)
    assert isinstance(bad.raised, Fail)
    assert str(unknown.raised) == "this worker does not serve Work"


def test_process_runs_the_code_and_packs_its_result() -> None:
    attempt = attempt_at(lambda work: [work.params, 1])
    attempt.params = 7

    pipeline.process(attempt)

    assert (attempt.value, attempt.result, attempt.has_run) == ([7, 1], b"\x92\x07\x01", True)
    assert attempt.seconds > 0


def test_process_runs_no_code_of_an_attempt_that_has_failed_or_was_stopped() -> None:
    ran: list[Any] = []
    failed, stopped = attempt_at(ran.append), attempt_at(ran.append)
    failed.raised = Fail("no")
    stopped.stopped = Stopped("timeout", "too long")
    for attempt in (failed, stopped):
        pipeline.process(attempt)

    assert ran == []
    assert failed.asked == (True, None)
    assert stopped.raised is stopped.stopped


@pytest.mark.parametrize(
    ("why", "is_cancelled", "kind"),
    [("timeout", False, "timeout"), ("shutdown", False, "stopped"), (None, True, "stopped"), (None, False, "failed")],
)
def test_classify_says_why_an_attempt_failed(why: str | None, is_cancelled: bool, kind: str) -> None:
    attempt = attempt_at(None)
    attempt.raised = attempt.stopped = Stopped(why, "words") if why else None
    attempt.raised = attempt.raised or ValueError("no")
    attempt.is_stop_asked = is_cancelled

    pipeline.classify(attempt)

    assert str(attempt.kind) == kind


def test_report_tells_the_result_or_the_failure() -> None:
    good, bad, lost = attempt_at(None), attempt_at(None), attempt_at(None)
    good.result = b"\x07"
    bad.raised, bad.error, bad.asked = Retry(), "again", (False, 9)
    lost.stopped = Stopped("lease", "its lease is over")

    assert [pipeline.report(attempt) for attempt in (good, bad, lost)] == [
        Succeed(bytes(16), 1, None, b"\x07"),
        FailReport(bytes(16), 1, "failed", "again", 9),
        FailReport(bytes(16), 1, "died", "its lease is over"),
    ]
