"""The process with the greenlets, watched by its crew: the time of its replacement, the blamed job, and the clock."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from givalia_core.protocol.messages import Dispatch
from givalia_core.settings import WorkerSettings
from givalia_core.worker.assignment import Assignment
from givalia_core.worker.page import DUMP_SIGNAL
from givalia_core.worker.processes import watchdog
from givalia_core.worker.processes.watchdog import START_S, HostWatch

SETTINGS = WorkerSettings(block_limit=5.0)
FENCE = 7


class Page:
    """The page that a process shares of its life."""

    def __init__(self) -> None:
        self.current = 0
        self.silent_s = 0.0
        self.fields = [0] * 4

    def silence_s(self) -> float:
        return self.silent_s


class Member:
    """A process that does what a test says."""

    pid = 4_711
    last_current = 0
    is_open = True
    backlog = 0
    memory_bytes = 0

    def __init__(self, age_s: float = 0.0) -> None:
        self.since = time.time()
        self.started_s = time.monotonic() - age_s
        self.page: Any = Page()
        self.signals: list[int] = []
        self.dump = ""

    def tell(self, *said: Any) -> None:
        """It hears nothing."""

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def stack(self) -> str:
        dump, self.dump = self.dump, ""
        return dump


class Log:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.info = self.warning = self.error = self._say

    def _say(self, words: str, *values: Any, **_: Any) -> None:
        self.said.append(words % values)


class Watched:
    """A host with one job."""

    def __init__(self, member: Member) -> None:
        self.log, self.counts, self.member = Log(), Counter[str](), member
        held: Assignment[Any] = Assignment(Dispatch(bytes(16), FENCE, "Mail", 1, 0), None, is_apart=False)
        self.host = HostWatch(lambda fence: held if fence == FENCE else None, self.log, self.counts)  # type: ignore[arg-type, return-value]
        self.host.begin(member)

    def block(self, seconds: float) -> Any:
        """Let the job block for so long, and look."""
        self.host.state = "ready" if self.host.state == "starting" else self.host.state
        self.member.page.current, self.member.page.silent_s = FENCE, seconds
        return self.host.look(SETTINGS)


@pytest.fixture(autouse=True)
def _is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "is_waiting", lambda pid: False)


@pytest.mark.parametrize("step_s", [-3_600.0, 0.0, 3_600.0])
def test_a_process_that_does_not_get_ready_is_replaced_whatever_the_wall_clock_does(
    monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    young, old = Watched(Member(START_S - 1)), Watched(Member(START_S + 1))
    now_s = time.time()
    monkeypatch.setattr(watchdog.time, "time", lambda: now_s + step_s)

    assert young.host.look(SETTINGS) is None
    verdict = old.host.look(SETTINGS)
    assert verdict is not None
    assert (verdict.kind, verdict.is_ours) == ("died", True)


def test_a_job_that_blocks_is_asked_where_it_is_and_then_judged_once() -> None:
    watched = Watched(Member())

    assert watched.block(1.5) is None
    assert (watched.member.signals, watched.counts["blocked"], watched.host.state) == ([DUMP_SIGNAL], 1, "blocked")
    watched.member.dump = "File mail.py, line 3"
    assert watched.block(2.0) is None
    assert any("of Mail has blocked the greenlets of its worker for 2.0 s" in line for line in watched.log.said)

    verdict = watched.block(5.5)

    assert (verdict.culprit, verdict.kind) == (FENCE, "timeout")
    assert verdict.words.endswith("File mail.py, line 3")
    assert watched.block(6.0) is None


def test_one_that_shows_signs_of_life_again_is_left_alone() -> None:
    watched = Watched(Member())
    watched.block(2.0)

    assert watched.block(0.0) is None
    assert (watched.host.state, watched.host.blocked_s) == ("ready", 0.0)
    assert "shows signs of life again" in watched.log.said[-1]
