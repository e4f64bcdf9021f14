"""Plugins: each has its limit, events meanwhile count as its own doing, and no caller waits for it forever."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from job_code import run_out, runner_of
from waits import yield_until

from givalia_core.hooks import hookimpl
from givalia_core.protocol.messages import Dispatch, Release, Succeed
from givalia_core.worker.attempt import telling as telling_room
from givalia_core.worker.attempt.telling import HookLate
from givalia_core.worker.notes import After, Before, PluginBusy, PluginsTold, Start, Started
from givalia_core.worker.page import SharedPage


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


def test_a_plugin_that_hangs_is_broken_off_counted_and_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling_room, "HOOK_SAID_S", 0.1)
    plugin, page, said, seen = Hangs(), SharedPage(), list[Any](), list[int]()
    busy = PluginBusy(bytes(16), 7, "before_run of plugin Hangs")

    with runner_of(lambda _: seen.append(page.current), plugin, said=said, page=page, hook_limit=0.5) as runner:
        runner.take(Dispatch(bytes(16), 7, "Work", 1, 0))
        yield_until(lambda: said == [busy], "the plugin is shown")
        current = page.current
        run_out(runner)
        raised = runner._hooks.raised["Hangs"]

    assert current == 0  # Nobody's code runs.
    assert said == [busy, PluginBusy(bytes(16), 7, ""), Succeed(bytes(16), 7, None, b"\xc0")]
    assert (plugin.stopped, raised) == (1, 1)
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
    hook: str, note: Any, follows: Any
) -> None:
    said: list[Any] = []
    with runner_of(lambda _: None, Deaf(hook), said=said, hook_limit=0.1) as runner:
        runner.take(note)
        yield_until(lambda: follows in said, "what follows the plugin")
        silenced = runner._hooks.silenced

    assert not runner.attempts
    assert [each for each in said if not isinstance(each, PluginBusy)] == [follows]
    assert silenced == {"Deaf"}


def test_what_happens_in_a_plugin_is_the_plugins() -> None:
    page, seen = SharedPage(), list[int]()

    class Looks:
        @hookimpl
        def after_run(self) -> None:
            seen.append(page.current)

    with runner_of(lambda _: None, object(), Looks(), said=[], page=page) as runner:
        runner.take(Dispatch(bytes(16), 7, "Work", 1, 0))
        run_out(runner)
        names = runner._hooks.names

    assert names[-1 - seen[0]] == "Looks"
