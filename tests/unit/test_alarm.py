"""The alarm of the server's loop: it rings at the last requested time, whatever was requested before."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import gevent
import psutil
import pytest
from gevent.event import Event

from givalia_core.clock import SECOND_US
from givalia_core.server.loop import Alarm


@pytest.fixture
def event() -> Event:
    return Event()


@pytest.fixture
def alarm(event: Event) -> Iterator[Alarm]:
    alarm = Alarm(event)
    alarm.open()
    yield alarm
    alarm.close()


def test_it_returns_when_the_time_has_passed_and_not_before(alarm: Alarm, event: Event) -> None:
    for us in (1, 300, 20_000):
        event.clear()
        began = time.monotonic()

        with gevent.Timeout(5):
            alarm.wait(us)

        assert (time.monotonic() - began) * SECOND_US >= us


def test_it_returns_when_the_event_is_set(alarm: Alarm, event: Event) -> None:
    gevent.spawn_later(0.001, event.set)

    with gevent.Timeout(5):
        alarm.wait(3_600 * SECOND_US)


def test_one_that_rang_unheard_and_is_set_anew_rings_again(alarm: Alarm, event: Event) -> None:
    for _ in range(50):
        event.set()
        alarm.wait(1)  # Returns at once; it rings while nobody waits.
        time.sleep(0.0001)
        event.clear()

        with gevent.Timeout(5):
            alarm.wait(200)


def test_one_that_is_set_already_rings_for_a_later_wait_too(alarm: Alarm, event: Event) -> None:
    # given
    event.set()
    alarm.wait(20_000)
    event.clear()

    # when
    with gevent.Timeout(5):
        alarm.wait(3_600 * SECOND_US)

    # then: it has rung, and does so again
    assert event.is_set()
    event.clear()
    with gevent.Timeout(5):
        alarm.wait(1_000)


def test_nothing_is_left_open(event: Event) -> None:
    before = psutil.Process().num_fds()
    alarm = Alarm(event)
    alarm.open()

    alarm.close()
    alarm.close()

    assert psutil.Process().num_fds() == before


def test_where_the_system_has_no_such_timer_the_loops_own_will_do(event: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    alarm = Alarm(event)
    alarm.open()

    with gevent.Timeout(5):
        alarm.wait(1_000)
    alarm.close()
