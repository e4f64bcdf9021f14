"""The facts in a program's environment about the manager that started it, and the times of its signs of life."""

from __future__ import annotations

import os

import gevent
import pytest
from waits import yield_until

from givalia_core.cli.notify import Notifier


class Told(Notifier):
    """Keeps what it would say."""

    def __init__(self, address: str = "@nobody", watchdog_us: int = 0) -> None:
        super().__init__(address, watchdog_us)
        self.said: list[str] = []

    def _say(self, *lines: str) -> None:
        self.said.append(" ".join(filter(None, lines)))


def test_what_names_the_manager_is_taken_out_of_the_environment() -> None:
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}

    notifier = Notifier.from_environment(environ)

    assert environ == {"HOME": "/"}
    assert notifier.period_s == 15


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "@x"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "-1"},
    ],
    ids=str,
)
def test_nobody_watches_unless_all_that_it_takes_is_there_and_meant_for_this_process(environ: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environ)

    assert notifier.period_s == 0
    notifier.watch_forever()  # It returns.


def test_without_a_manager_nothing_is_said_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier()

    for say in (notifier.ready, notifier.reloading, notifier.reloaded, notifier.stopping, notifier.alive):
        say()

    assert not caplog.records


def test_a_reload_before_it_is_ready_is_not_said_for_its_end_would_mean_ready() -> None:
    notifier = Told()

    notifier.reloading()
    notifier.reloaded("read")
    notifier.ready("there")
    notifier.reloading()
    notifier.reloaded("read again")

    assert notifier.said[0] == "READY=1 there"
    assert notifier.said[1].startswith("RELOADING=1 MONOTONIC_USEC=")
    assert notifier.said[2] == "READY=1 read again"


def test_signs_of_life_end_when_what_is_watched_no_longer_lives_and_return_with_it() -> None:
    notifier = Told(watchdog_us=20_000)
    lives = True
    watching = gevent.spawn(notifier.watch_forever, lambda: lives)
    _await_signs(notifier, 3)

    lives = False
    gevent.sleep(notifier.period_s)  # A sign may be on its way.
    before = len(notifier.said)
    gevent.sleep(notifier.period_s * 5)  # In which there would be five.

    assert len(notifier.said) == before
    lives = True
    _await_signs(notifier, before + 1)
    watching.kill()


def _await_signs(notifier: Told, count: int) -> None:
    yield_until(lambda: len(notifier.said) >= count, "signs of life", 5)
    assert set(notifier.said) == {"WATCHDOG=1"}
