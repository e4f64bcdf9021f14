"""Jobs leave nothing behind in their process; otherwise the collector would stop all jobs to sweep up after thousands."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import gevent
import pytest
from waits import yield_until

from givalia_core import WorkModule
from givalia_core.hooks import Hooks
from givalia_core.modules import describe
from givalia_core.protocol.messages import Dispatch, FailReport, Succeed
from givalia_core.worker.attempt.runner import Runner
from givalia_core.worker.page import SharedPage

MADE: list[weakref.ref[WorkModule]] = []


class Ends(WorkModule):
    """Ends as its params say."""

    def process(self) -> Any:
        MADE.append(weakref.ref(self))
        if self.params == "raises":
            raise ValueError("no")
        if self.params == "runs out of its time":
            gevent.sleep(10)
        return self if self.params == "returns what cannot be packed" else None


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    MADE.clear()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("how", "report"),
    [
        ("returns", Succeed),
        ("returns what cannot be packed", Succeed),
        ("raises", FailReport),
        ("runs out of its time", FailReport),
    ],
)
def test_what_a_job_made_is_gone_when_it_has_ended(how: str, report: type) -> None:
    said: list[Any] = []
    settings = Mock(stop_grace=0.05)
    runner = Runner(
        {"Ends": describe("Ends", "test", "0", Ends)}, Hooks([]), said.append, SharedPage(), Mock(settings=settings)
    )
    runner.open()
    try:
        packed = b"\xd9" + bytes([len(how)]) + how.encode()
        runner.take(Dispatch(b"i" * 16, 1, "Ends", 1, 0, timeout_us=50_000, payload=packed))
        yield_until(lambda: not runner.attempts and len(said) == 2, "it has ended")
    finally:
        runner.close()

    assert [type(note) for note in said[1:]] == [report]
    assert [made() for made in MADE] == [None]
    assert not runner.attempts
