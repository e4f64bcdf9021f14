"""Signals as requests to a program: equal signals, the signal that forces, and the meaning of SIGHUP."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from givalia_core.cli.requests import Requests


class Asked:
    """A program that notes what it is asked for, on a clock that a test sets."""

    def __init__(self, terminal: Path) -> None:
        self.now_s = 100.0
        self.did: list[str] = []
        self.requests = Requests(lambda: self.did.append("force"), terminal=str(terminal), clock=lambda: self.now_s)

    def hang_up(self) -> list[str]:
        self.requests.hang_up(self.did.append)
        gevent.sleep(0)
        return ["stop"] * self.requests.stop.is_set() + self.did


@pytest.fixture(autouse=True)
def without_nohup() -> Iterator[None]:
    """The tests themselves may be run by `nohup`, which has a meaning here."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def terminal(tmp_path: Path) -> Path:
    path = tmp_path / "tty"
    path.touch()
    return path


def test_what_comes_before_the_program_has_started_is_seen_to_when_it_has(terminal: Path) -> None:
    asked = Asked(terminal)
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGUSR1)}
    try:
        asked.requests.note()
        for number in before:
            signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

    assert asked.requests._noted == [signal.SIGHUP, signal.SIGUSR1]
    terminal.unlink()
    assert asked.hang_up() == ["stop"]


def test_an_end_that_is_forced_is_said(terminal: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = Asked(terminal)
    asked.requests.ask_to_stop("SIGTERM")
    asked.now_s += 1

    asked.requests.ask_to_stop("SIGINT")

    assert caplog.messages[-1] == "SIGINT while it drains: it ends at once, whatever is under way"


@pytest.mark.parametrize(("later_s", "did"), [(0.0, []), (0.99, []), (1.0, ["force"]), (30.0, ["force"])])
def test_a_request_to_stop_is_the_same_for_a_second_and_then_forces(terminal: Path, later_s: float, did: list[str]) -> None:
    asked = Asked(terminal)

    asked.requests.ask_to_stop("SIGTERM")
    asked.now_s += later_s
    asked.requests.ask_to_stop("SIGINT")

    assert asked.requests.stop.is_set()
    assert asked.did == did


def test_a_hang_up_is_a_reload_while_the_terminal_is_there(terminal: Path) -> None:
    assert Asked(terminal).hang_up() == ["SIGHUP"]


def test_a_hang_up_is_a_reload_where_there_never_was_a_terminal(tmp_path: Path) -> None:
    assert Asked(tmp_path / "none").hang_up() == ["SIGHUP"]


def test_a_hang_up_is_the_end_when_the_terminal_is_gone_however_often_it_comes(terminal: Path) -> None:
    asked = Asked(terminal)
    terminal.unlink()

    assert asked.hang_up() == ["stop"]
    asked.now_s += 5
    assert asked.hang_up() == ["stop"]


def test_a_program_that_nohup_started_outlives_its_terminal(terminal: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = Asked(terminal)
    finally:
        signal.signal(signal.SIGHUP, before)
    terminal.unlink()

    assert asked.hang_up() == ["SIGHUP"]
