"""One attempt, whatever its code is: exceptions that lie, results that are no data, code that would never run."""

from __future__ import annotations

import asyncio
import builtins
import logging
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import greenlet
import pytest

from givalia_core import Fail, Retry, WorkModule
from givalia_core.errors import BadRequest
from givalia_core.headline import headline, shortened, type_raised
from givalia_core.hooks import Hooks, hookimpl
from givalia_core.modules import describe
from givalia_core.printable import Formatter
from givalia_core.protocol.messages import Dispatch, Release, Succeed
from givalia_core.protocol.messages import Fail as Failed
from givalia_core.repeats import Repeats
from givalia_core.worker.attempt import pipeline
from givalia_core.worker.attempt import telling as telling_room
from givalia_core.worker.attempt.pipeline import ERROR_BYTES_MAX, Attempt, execute
from givalia_core.worker.attempt.runner import Runner
from givalia_core.worker.attempt.telling import HookLate
from givalia_core.worker.notes import After, Before, PluginBusy, PluginsTold, Start, Started
from givalia_core.worker.page import SharedPage


def report_of(process: Callable[[Any], Any]) -> Any:
    """The report of an attempt whose module has this for its `process`."""
    said: list[Any] = []
    work = type("Work", (WorkModule,), {"process": process})
    execute(Attempt(Dispatch(bytes(16), 1, "Work", 1, 0), work, Hooks([]), said.append))
    (report,) = said
    return report


def raising(error: BaseException) -> Callable[[Any], Any]:
    def process(_: Any) -> None:
        raise error

    return process


def lying(**parts: Any) -> BaseException:
    error: BaseException = type("Lying", (Exception,), parts)("words")
    return error


def loud(*_: Any) -> Any:
    raise SystemExit(7)


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

    assert type(report) is Failed
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


def slowly(*_: Any) -> str:
    gevent.sleep(60)
    return ""


class SlowResult(dict[Any, Any]):
    def items(self) -> Any:
        slowly()


class SlowRetry(Retry):
    after_us = property(slowly)  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


SLOW: dict[str, dict[str, Any]] = {
    "retry": {"process": raising(SlowRetry())},
    "constructor": {"__init__": slowly, "process": lambda _: None},
    "process": {"process": slowly},
    "exception": {"process": raising(lying(__str__=slowly))},
    "result": {"process": lambda _: SlowResult(a=1)},
}


@pytest.fixture
def said() -> list[Any]:
    return []


@pytest.fixture
def run(said: list[Any]) -> Iterator[Callable[[type[WorkModule], int | None], None]]:
    """Run one attempt in a greenlet until it has said something."""
    runners: list[Runner] = []

    def running(work: type[WorkModule], timeout_us: int | None) -> None:
        worker: Any = type("Worker", (), {"settings": type("Settings", (), {"stop_grace": 5.0, "hook_limit": 5.0})})
        runner = Runner({"Work": describe("Work", "test", "0", work)}, Hooks([]), said.append, SharedPage(), worker)
        runners.append(runner)
        runner.open()
        del said[:]
        runner.take(Dispatch(bytes(16), 1, "Work", 1, 0, timeout_us=timeout_us))
        with gevent.Timeout(5):
            while not said or runner.attempts:
                gevent.sleep(0.01)

    yield running
    for runner in runners:
        runner.close()


@pytest.mark.parametrize("what", SLOW)
def test_all_that_runs_of_a_job_has_its_timeout(run: Any, said: list[Any], what: str) -> None:
    run(type("Work", (WorkModule,), SLOW[what]), 50_000)

    assert [(type(each), each.kind) for each in said] == [(Failed, "timeout")]


def test_what_a_job_logs_fails_no_job_though_logging_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.Logger, "handle", lambda *_: 1 / 0)

    report = report_of(lambda work: work.log.warning("a line"))

    assert type(report) is Succeed


def test_a_line_of_a_job_says_where_it_was_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("givalia"), "propagate", True)

    report_of(lambda work: work.log.warning("a line"))

    (record,) = [record for record in caplog.records if record.message == "a line"]
    assert record.filename == Path(__file__).name


def test_whose_code_runs_is_noted_again_when_a_job_has_stopped_that(said: list[Any]) -> None:
    def process(_: Any) -> None:
        greenlet.settrace(None)
        gevent.sleep(60)

    page = SharedPage()
    worker: Any = type("Worker", (), {"settings": type("Settings", (), {"stop_grace": 5.0, "hook_limit": 5.0})})
    runner = Runner(
        {"Work": describe("Work", "test", "0", type("Work", (WorkModule,), {"process": process}))},
        Hooks([]), said.append, page, worker,
    )  # fmt: skip
    runner.open(runner.whose.restore)
    try:
        runner.take(Dispatch(bytes(16), 7, "Work", 1, 0, timeout_us=1_000_000))
        with gevent.Timeout(5):
            while page.current != 7:
                gevent.sleep(0.01)
            while page.current:
                gevent.sleep(0.01)
            while runner.attempts:
                gevent.sleep(0.01)
    finally:
        runner.close()


@pytest.mark.parametrize("name", ["isinstance", "issubclass", "len", "str", "type", "getattr", "BaseException", "any", "max"])
def test_a_job_that_breaks_the_builtins_is_reported_all_the_same(run: Any, said: list[Any], name: str) -> None:
    original = getattr(builtins, name)

    def process(_: Any) -> None:
        setattr(builtins, name, loud)
        raise ValueError("broken")

    try:
        run(type("Work", (WorkModule,), {"process": process}), None)
    finally:
        setattr(builtins, name, original)

    assert [type(each) for each in said] == [Failed]


# Plugins.


class Hangs:
    """A plugin that never returns, and does not let itself be stopped the first time."""

    def __init__(self) -> None:
        self.stopped = 0

    @hookimpl
    def before_run(self) -> None:
        try:
            gevent.sleep(60)
        except BaseException:
            self.stopped += 1
        gevent.sleep(60)


def test_a_plugin_that_hangs_is_broken_off_counted_and_the_job_goes_on(
    said: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling_room, "HOOK_SAID_S", 0.1)
    plugin, page = Hangs(), SharedPage()
    hooks = Hooks([plugin])
    seen: list[int] = []
    work = type("Work", (WorkModule,), {"process": lambda _: seen.append(page.current)})
    worker: Any = type("Worker", (), {"settings": type("Settings", (), {"stop_grace": 5.0, "hook_limit": 0.5})})
    runner = Runner({"Work": describe("Work", "test", "0", work)}, hooks, said.append, page, worker)
    runner.open()
    del said[:]

    runner.take(Dispatch(bytes(16), 7, "Work", 1, 0))
    gevent.sleep(0.3)
    current = page.current
    with gevent.Timeout(5):
        while runner.attempts:
            gevent.sleep(0.01)
    runner.close()

    assert current == 0  # Nobody's code runs.
    assert said == [
        PluginBusy(bytes(16), 7, "before_run of plugin Hangs"),
        PluginBusy(bytes(16), 7, ""),
        Succeed(bytes(16), 7, None, b"\xc0"),
    ]
    assert plugin.stopped == 1
    assert hooks.raised["Hangs"] == 1
    assert seen == [7]


class Deaf:
    """A plugin that goes on whatever is raised in it."""

    def __init__(self, hook: str) -> None:
        def hang() -> None:
            while True:
                try:
                    gevent.sleep(60)
                except HookLate:
                    continue

        setattr(self, hook, hookimpl(hang))


@pytest.mark.parametrize(
    ("hook", "note", "follows"),
    [
        ("before_run", Dispatch(bytes(16), 7, "Work", 1, 0), Release(bytes(16), 7)),
        ("after_run", Dispatch(bytes(16), 7, "Work", 1, 0), Succeed(bytes(16), 7, None, b"\xc0")),
        ("before_run", Before(tuple(Dispatch(bytes(16), 7, "Work", 1, 0))), PluginsTold(bytes(16), 7)),
        (
            "after_run",
            After(tuple(Dispatch(bytes(16), 7, "Work", 1, 0)), "succeeded", b"", None, 0.0),
            PluginsTold(bytes(16), 7),
        ),
        ("worker_started", Start(), Started()),
    ],
)
def test_what_a_plugin_was_called_for_goes_on_though_it_takes_no_notice_of_its_limit(
    said: list[Any], hook: str, note: Any, follows: Any
) -> None:
    hooks = Hooks([Deaf(hook)])
    work = type("Work", (WorkModule,), {"process": lambda _: None})
    worker: Any = type("Worker", (), {"settings": type("Settings", (), {"stop_grace": 5.0, "hook_limit": 0.1})})
    runner = Runner({"Work": describe("Work", "test", "0", work)}, hooks, said.append, SharedPage(), worker)
    runner.open()
    del said[:]
    try:
        runner.take(note)
        with gevent.Timeout(5):
            while follows not in said:
                gevent.sleep(0.01)
    finally:
        runner.close()

    assert not runner.attempts
    assert [each for each in said if not isinstance(each, PluginBusy)] == [follows]
    assert hooks.silenced == {"Deaf"}


def test_what_happens_in_a_plugin_is_the_plugins(said: list[Any]) -> None:
    page = SharedPage()
    seen: list[int] = []

    class Looks:
        @hookimpl
        def after_run(self) -> None:
            seen.append(page.current)

    worker: Any = type("Worker", (), {"settings": type("Settings", (), {"stop_grace": 5.0, "hook_limit": 5.0})})
    work = type("Work", (WorkModule,), {"process": lambda _: None})
    runner = Runner({"Work": describe("Work", "test", "0", work)}, Hooks([object(), Looks()]), said.append, page, worker)
    runner.open()
    runner.take(Dispatch(bytes(16), 7, "Work", 1, 0))
    with gevent.Timeout(5):
        while not seen or runner.attempts:
            gevent.sleep(0.01)
    runner.close()

    assert runner._hooks.names[-1 - seen[0]] == "Looks"
