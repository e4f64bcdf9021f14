"""Attempts in greenlets: all running parts of a job can be ended, and are reported, whatever the job has broken."""

from __future__ import annotations

import builtins
from typing import Any

import gevent
import pytest
from gevent.event import Event
from job_code import loud, lying, raising, run_out, runner_of
from waits import yield_until

from givalia_core import Retry, WorkModule
from givalia_core.modules import Stopped
from givalia_core.protocol.messages import Dispatch, FailReport
from givalia_core.worker.notes import End, Stuck


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


def ran(work: Any, timeout_us: int | None) -> list[Any]:
    """What one attempt has led to."""
    said: list[Any] = []
    with runner_of(work, said=said) as runner:
        runner.take(Dispatch(bytes(16), 1, "Work", 1, 0, timeout_us=timeout_us))
        run_out(runner)
    return said


@pytest.mark.parametrize("what", SLOW)
def test_all_that_runs_of_a_job_has_its_timeout(what: str) -> None:
    said = ran(type("Work", (WorkModule,), SLOW[what]), 50_000)

    assert [(type(each), each.kind) for each in said] == [(FailReport, "timeout")]


@pytest.mark.parametrize("name", ["isinstance", "issubclass", "len", "str", "type", "getattr", "BaseException", "any", "max"])
def test_a_job_that_breaks_the_builtins_is_reported_all_the_same(name: str) -> None:
    original = getattr(builtins, name)

    def process(_: Any) -> None:
        setattr(builtins, name, loud)
        raise ValueError("broken")

    try:
        said = ran(process, None)
    finally:
        setattr(builtins, name, original)

    assert [type(each) for each in said] == [FailReport]


def test_code_that_does_not_end_is_left_and_the_supervisor_hears_of_it() -> None:
    said: list[Any] = []
    has_begun, may_end = Event(), Event()

    def process(_: Any) -> None:
        has_begun.set()
        while not may_end.is_set():
            try:
                may_end.wait()
            except Stopped:
                continue

    with runner_of(process, said=said, stop_grace=0.05) as runner:
        runner.take(Dispatch(bytes(16), 1, "Work", 1, 0))
        assert has_begun.wait(5)
        runner.take(End(bytes(16), 1, "cancelled", "cancelled: it went on"))
        yield_until(lambda: len(said) == 2, "a report and the word that code goes on")
        may_end.set()

    report, stuck = said
    assert (report.kind, report.error.startswith("cancelled: it went on; it did not end when it was told to")) == (
        "stopped",
        True,
    )
    assert "may_end.wait()" in report.error
    assert stuck == Stuck(bytes(16), 1)
