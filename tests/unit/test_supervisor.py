"""The supervisor: the order in which its parts start and stop, and what it does when packages or settings change."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from waits import yield_until

from givalia_core.protocol.messages import Join
from givalia_core.settings import WorkerSettings
from givalia_core.worker import supervisor as supervisor_room
from givalia_core.worker.supervisor import Supervisor

SHORT_S = 0.005
SETTINGS = WorkerSettings(name="shop", master="one,two", only_targeted=True)


class Parts:
    """What the supervisor has made, and what it has told its parts, in order."""

    def __init__(self) -> None:
        self.did: list[Any] = []
        self.link: Any = None
        self.foreman: Any = None
        self.watch: Any = None
        self.changes: list[Callable[[], bool]] = []  # What the next looks at the packages come to.
        self.is_stuck = False
        """True: the link does not end when it is told to."""


class FakeLink:
    def __init__(self, parts: Parts, addresses: Any, join: Join, announced: list[Any], deliver: Callable[[Any], None]) -> None:
        self.addresses, self.join, self.announced, self.deliver = addresses, join, announced, deliver
        self._parts = parts
        self._stopped = Event()

    def run(self) -> None:
        self._parts.did.append("link runs")
        self._stopped.wait()
        self._parts.did.append("link has ended")

    def stop(self) -> None:
        self._parts.did.append("link stops")
        if not self._parts.is_stuck:
            self._stopped.set()


class FakeForeman:
    log = logging.getLogger("test")

    def __init__(self, settings: WorkerSettings, parts: Parts) -> None:
        self.settings = settings
        self.news = SimpleNamespace(ready=Event(), connected=Event())
        self.heard: list[Any] = []
        self.deliver = self.heard.append
        self._did = parts.did
        self.taken_over = Event()

    def open(self) -> None:
        self._did.append("foreman opens")

    def use(self, settings: WorkerSettings) -> None:
        self.settings = settings

    def reload(self, why: str) -> Event:
        self._did.append(f"reload: {why}")
        return self.taken_over

    def stop(self) -> None:
        self._did.append("foreman stops")

    def say_rest(self) -> None:
        self._did.append("foreman says the rest")


class FakeWatch:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.doubts = self.looks = 0
        parts.did.append("watch looks at what is installed")

    def has_changed(self, now_s: float) -> bool:
        self.looks += 1
        return self._parts.changes.pop(0)() if self._parts.changes else False

    def doubt(self) -> None:
        self.doubts += 1


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    """The parts of the supervisor that is made next; its times are short."""
    parts = Parts()

    def kept(name: str, made: Any) -> Any:
        setattr(parts, name, made)
        return made

    monkeypatch.setattr(supervisor_room, "Link", lambda *given: kept("link", FakeLink(parts, *given)))
    monkeypatch.setattr(supervisor_room, "Foreman", lambda settings, *_: kept("foreman", FakeForeman(settings, parts)))
    monkeypatch.setattr(supervisor_room, "PackageWatch", lambda: kept("watch", FakeWatch(parts)))
    for name in ("LOOK_S", "AGAIN_S", "STOP_S"):
        monkeypatch.setattr(supervisor_room, name, SHORT_S)
    return parts


def started(parts: Parts, **settings: Any) -> Supervisor:
    """A supervisor whose link runs."""
    supervisor = Supervisor(dataclasses.replace(SETTINGS, **settings))
    supervisor.start()
    parts.foreman.news.ready.set()
    yield_until(lambda: "link runs" in parts.did, "the link")
    return supervisor


def test_the_link_introduces_this_process_to_each_server_of_the_settings(parts: Parts) -> None:
    Supervisor(SETTINGS)
    first = parts.link
    Supervisor(SETTINGS)

    assert first.addresses == SETTINGS.servers()
    assert first.join == Join("shop", first.join.instance, True, os.getpid())
    assert len(first.join.instance) == 16
    assert first.join.instance != parts.link.join.instance


def test_what_the_link_brings_goes_to_the_foreman(parts: Parts) -> None:
    supervisor = Supervisor(SETTINGS)

    parts.link.deliver("an event")

    assert parts.foreman.heard == ["an event"]
    assert supervisor.connected is parts.foreman.news.connected


def test_no_server_is_asked_for_jobs_before_the_modules_are_known(parts: Parts) -> None:
    supervisor = Supervisor(SETTINGS)
    supervisor.start()
    for _ in range(3):
        gevent.sleep(0)
    assert parts.did == ["foreman opens"]

    parts.foreman.news.ready.set()

    yield_until(lambda: "link runs" in parts.did, "the link")
    supervisor.stop()


def test_a_worker_whose_modules_take_long_is_connected_all_the_same(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_room, "READY_S", SHORT_S)
    supervisor = Supervisor(SETTINGS)

    supervisor.start()

    yield_until(lambda: "link runs" in parts.did, "the link")
    supervisor.stop()


def test_the_link_ends_behind_the_jobs_and_the_last_lines_come_behind_the_link(parts: Parts) -> None:
    supervisor = started(parts)
    del parts.did[:]

    supervisor.stop()

    assert parts.did == ["foreman stops", "link stops", "link has ended", "foreman says the rest"]


def test_a_link_that_does_not_end_holds_nobody_up(parts: Parts) -> None:
    supervisor = started(parts)
    parts.is_stuck = True

    with gevent.Timeout(10):
        supervisor.stop()

    assert parts.did[-1] == "foreman says the rest"
    assert "link has ended" not in parts.did


def test_settings_that_need_a_restart_are_named_and_the_others_count_at_once(parts: Parts) -> None:
    supervisor = Supervisor(SETTINGS)
    changed = dataclasses.replace(
        SETTINGS, master="three", worker_port=1, name="any", only_targeted=False, watch=True, concurrency=7, grace=1.0
    )

    assert supervisor.change(changed) == ["master", "worker_port", "name", "only_targeted", "watch"]

    assert supervisor.settings is changed
    assert parts.foreman.settings is changed


def test_a_setting_that_is_as_it_was_at_the_start_needs_no_restart(parts: Parts) -> None:
    supervisor = Supervisor(SETTINGS)
    elsewhere = dataclasses.replace(SETTINGS, master="three")

    assert supervisor.change(elsewhere) == ["master"]
    assert supervisor.change(elsewhere) == ["master"]
    assert supervisor.change(dataclasses.replace(SETTINGS, concurrency=7)) == []


def test_who_asks_for_a_reload_can_wait_for_it(parts: Parts) -> None:
    supervisor = Supervisor(SETTINGS)

    assert supervisor.reload("a person asks") is parts.foreman.taken_over
    assert parts.did == ["reload: a person asks"]


def test_packages_are_watched_from_before_the_first_import_and_a_change_reloads_once(parts: Parts) -> None:
    parts.changes = [lambda: False, lambda: True]

    supervisor = started(parts, watch=True)
    yield_until(lambda: parts.watch.looks > 3, "some looks")
    watching: Any = supervisor._watching
    supervisor.stop()

    assert watching.dead
    assert parts.did[:2] == ["watch looks at what is installed", "foreman opens"]
    assert parts.did.count("reload: packages have changed") == 1
    assert parts.watch.doubts == 0


def test_no_package_is_watched_where_the_settings_do_not_say_so(parts: Parts) -> None:
    started(parts).stop()

    assert parts.watch is None


def test_a_look_that_fails_is_logged_and_taken_again(parts: Parts, caplog: pytest.LogCaptureFixture) -> None:
    parts.changes = [lambda: bool(1 / 0), lambda: True]

    supervisor = started(parts, watch=True)
    yield_until(lambda: "reload: packages have changed" in parts.did, "the second look")
    supervisor.stop()

    assert parts.watch.doubts == 1
    assert "looking for packages that have changed: ZeroDivisionError" in caplog.text
