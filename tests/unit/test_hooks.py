"""Plugins are called one by one, and none can harm another or us."""

from __future__ import annotations

import io
import logging
import logging.config
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import importlib_metadata
import pytest

from givalia_core import hooks
from givalia_core.hooks import HOOKS, RAISES_MAX, Hooks, hookimpl
from givalia_core.model import OutcomeKind
from givalia_core.times import to_datetime
from givalia_core.views import JobView, Outcome

JOB = JobView("id", "k", "Mail", "any", 0, 1, to_datetime(0))


class Recorder:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @hookimpl
    def on_enq(self, job: JobView) -> None:
        self.seen.append(job)

    @hookimpl
    def on_cancel(self, running: bool) -> None:
        self.seen.append(running)

    @hookimpl
    def worker_started(self) -> None:
        self.seen.append("no arguments")


class Raising:
    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    @hookimpl
    def on_enq(self, job: JobView) -> None:
        self.calls += 1
        raise self.error

    @hookimpl
    def on_dead(self, job: JobView) -> None:
        self.calls += 1


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """A handler as a server has it, in place of pytest's, which is stricter than any."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    hooks.log.addHandler(handler)
    hooks.log.propagate = False
    yield stream
    hooks.log.propagate = True
    hooks.log.removeHandler(handler)


def test_the_hooks_are_those_of_the_specification() -> None:
    assert set(HOOKS) == {
        "before_run", "after_run", "on_enq", "on_ext", "on_requeue", "on_retry", "on_done", "on_dead",
        "on_cancel", "server_started", "server_stopping", "worker_started", "worker_stopping",
    }  # fmt: skip


def test_an_implementation_gets_the_arguments_it_asks_for() -> None:
    plugin = Recorder()
    called = Hooks([plugin])

    called.call("on_enq", job=JOB)
    called.call("on_cancel", job=JOB, running=True)
    called.call("worker_started", worker=object())

    assert plugin.seen == [JOB, True, "no arguments"]


@pytest.mark.parametrize("hook", ["server_started", "worker_started"])
def test_a_plugin_that_configures_logging_silences_nobody(hook: str, log: io.StringIO) -> None:
    class Configures:
        @hookimpl
        def server_started(self) -> None:
            logging.config.dictConfig({"version": 1})

        worker_started = server_started

    before, other = logging.root.handlers[:], logging.getLogger("somebodys.plugin")
    try:
        Hooks([Configures()]).call(hook, server=None, worker=None)
    finally:
        logging.root.handlers[:] = before
    logging.getLogger("givalia.hooks").warning("a line")

    assert f"a plugin has disabled Givalia's loggers in {hook}; they log again" in log.getvalue()
    assert "a line" in log.getvalue()
    assert not other.disabled


def test_only_hooks_that_somebody_implements_are_listened_to() -> None:
    called = Hooks([Recorder()])

    assert called.listens("on_enq")
    assert not called.listens("on_ext")
    called.call("on_ext", job=JOB)


class Odd(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), RecursionError(), MemoryError(), Odd()]
)
def test_what_one_plugin_raises_harms_no_other(error: BaseException, log: io.StringIO) -> None:
    before, after, bad = Recorder(), Recorder(), Raising(error)
    called = Hooks([before, bad, after])

    called.call("on_enq", job=JOB)

    assert before.seen == after.seen == [JOB]
    assert sum(called.raised.values()) == 1
    assert type(error).__name__ in log.getvalue()
    assert "in on_enq" in log.getvalue()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")


def test_an_error_that_cannot_be_printed_harms_nobody() -> None:
    other = Recorder()
    called = Hooks([other, Raising(Unprintable())])

    called.call("on_enq", job=JOB)

    assert other.seen == [JOB]
    assert sum(called.raised.values()) == 1


def test_a_plugin_that_raises_twenty_times_in_a_row_is_called_no_more_and_it_is_said_once(log: io.StringIO) -> None:
    bad, other = Raising(ValueError("no")), Recorder()
    called = Hooks([bad, other])

    for _ in range(RAISES_MAX + 5):
        called.call("on_enq", job=JOB)
    called.call("on_dead", job=JOB, reason="failed")

    assert bad.calls == RAISES_MAX == 20
    assert len(other.seen) == RAISES_MAX + 5
    assert len(called.silenced) == 1
    assert log.getvalue().count("is called no more") == 1


def test_one_good_call_starts_the_count_anew() -> None:
    bad = Raising(ValueError("no"))
    called = Hooks([bad])

    for _ in range(3):
        for _ in range(RAISES_MAX - 1):
            called.call("on_enq", job=JOB)
        called.call("on_dead", job=JOB, reason="failed")

    assert bad.calls == 3 * RAISES_MAX
    assert called.silenced == set()
    assert sum(called.raised.values()) == 3 * (RAISES_MAX - 1)


def test_two_objects_of_one_class_are_silenced_apart() -> None:
    bad, good = Raising(ValueError("no")), Raising(ValueError("no"))
    called = Hooks([bad, good])
    for _ in range(RAISES_MAX - 1):
        called.call("on_enq", job=JOB)
    good.error = None  # type: ignore[assignment]
    good.on_enq = None  # type: ignore[method-assign, assignment]

    called.call("on_enq", job=JOB)

    assert bad.calls == RAISES_MAX


def test_a_module_can_be_a_plugin() -> None:
    seen: list[Any] = []
    module = ModuleType("a_plugin")
    module.on_enq = hookimpl(lambda job: seen.append(job))  # type: ignore[attr-defined]

    Hooks([module]).call("on_enq", job=JOB)

    assert seen == [JOB]


def test_outcomes_are_handed_over_whole() -> None:
    seen: list[Any] = []

    class Plugin:
        @hookimpl
        def after_run(self, outcome: Outcome, job: Any, module: type) -> None:
            seen.append((outcome, job, module))

    outcome = Outcome(OutcomeKind.FAILED, error="no")
    Hooks([Plugin()]).call("after_run", job=JOB, module=int, outcome=outcome)

    assert seen == [(outcome, JOB, int)]


def test_a_plugin_with_a_hook_that_does_not_exist_is_not_used_and_holds_up_no_other(log: io.StringIO) -> None:
    class Mistaken:
        @hookimpl
        def on_enqueue(self, job: JobView) -> None: ...

    other = Recorder()
    called = Hooks([Mistaken(), other])

    called.call("on_enq", job=JOB)

    assert other.seen == [JOB]
    assert "is not used" in log.getvalue()


def test_a_plugin_that_asks_for_an_argument_that_does_not_exist_is_not_used(log: io.StringIO) -> None:
    class Mistaken:
        @hookimpl
        def on_enq(self, job: JobView, flavour: str) -> None: ...

    other = Recorder()
    Hooks([Mistaken(), other]).call("on_enq", job=JOB)

    assert other.seen == [JOB]
    assert "is not used" in log.getvalue()


def test_a_plugin_that_cannot_even_be_looked_at_is_not_used() -> None:
    class Hostile:
        @property
        def on_enq(self) -> Any:
            raise RuntimeError("do not look at me")

    other = Recorder()
    Hooks([Hostile(), other]).call("on_enq", job=JOB)

    assert other.seen == [JOB]


def test_a_plugin_given_twice_is_called_once() -> None:
    plugin = Recorder()

    Hooks([plugin, plugin]).call("on_enq", job=JOB)

    assert plugin.seen == [JOB]


def test_a_wrapper_which_could_hold_back_others_is_not_called() -> None:
    class Wrapping:
        @hookimpl(wrapper=True)
        def on_enq(self, job: JobView) -> Any:
            raise AssertionError("called")
            yield

    other = Recorder()
    Hooks([Wrapping(), other]).call("on_enq", job=JOB)

    assert other.seen == [JOB]


class _Distribution:
    name, version = "some-plugins", "1.2"


class _Entry:
    dist = _Distribution()

    def __init__(self, name: str, loads: Any) -> None:
        self.name, self.value, self._loads = name, f"some.{name}", loads

    def load(self) -> Any:
        if isinstance(self._loads, BaseException):
            raise self._loads
        return self._loads


def installed(monkeypatch: pytest.MonkeyPatch, *entries: _Entry) -> None:
    monkeypatch.setattr(importlib_metadata, "entry_points", lambda group: entries if group == hooks.GROUP else ())


def test_installed_plugins_are_found_with_their_origin(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, _Entry("recorder", Recorder), _Entry("module", hooks))

    found = hooks.discover()

    assert [(each.name, each.distribution, each.version, each.error) for each in found] == [
        ("module", "some-plugins", "1.2", None),
        ("recorder", "some-plugins", "1.2", None),
    ]
    assert isinstance(found[1].plugin, Recorder)
    assert found[1].source == __file__


@pytest.mark.parametrize("error", [ImportError("gone"), SystemExit(1), KeyboardInterrupt(), Unprintable()])
def test_a_plugin_that_cannot_be_imported_is_reported_and_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    installed(monkeypatch, _Entry("bad", error), _Entry("good", Recorder))

    bad, good = hooks.discover()

    assert bad.plugin is None
    assert bad.error is not None
    assert bad.error.startswith(type(error).__name__)
    assert isinstance(good.plugin, Recorder)


def test_a_plugin_class_that_needs_arguments_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, _Entry("needy", Raising))

    (found,) = hooks.discover()

    assert found.plugin is None
    assert "TypeError" in (found.error or "")


def test_what_is_not_allowed_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "bad", "bad:Plugin"

        class dist:  # noqa: N801
            name, version = "bad-plugin", "1"

        def load(self) -> object:
            raise AssertionError("it was imported")

    monkeypatch.setattr("importlib_metadata.entry_points", lambda group: [Entry()])

    assert hooks.discover("") == hooks.discover("other, another") == []
    assert hooks.discover("bad-plugin")[0].error is not None


def test_a_distribution_that_is_named_and_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {
        hooks.GROUP: [importlib_metadata.EntryPoint("prometheus", "x", hooks.GROUP)._for(Named("givalia-prometheus"))],
        "formats": [importlib_metadata.EntryPoint("json", "x", "formats")._for(Named("Givalia_Logging"))],
    }
    monkeypatch.setattr("importlib_metadata.entry_points", lambda group: entries[group])

    assert list(hooks.missing("*", "formats")) == list(hooks.missing("", "formats")) == []
    assert list(hooks.missing("Givalia.Prometheus, givalia-logging", "formats")) == []
    assert list(hooks.missing("prometheus,nonsense,,", "formats")) == [
        "plugins: no distribution nonsense with a plugin is installed here;"
        " those that have are givalia-logging, givalia-prometheus",
        "plugins: no distribution prometheus with a plugin is installed here;"
        " prometheus is a plugin of givalia-prometheus, and distributions are named",
    ]
    monkeypatch.setattr("importlib_metadata.entry_points", lambda group: [])
    assert list(hooks.missing("one", "formats")) == ["plugins: no distribution one with a plugin is installed here; none has"]


class Named:
    """A distribution, as an entry point knows it."""

    version = "1"

    def __init__(self, name: str) -> None:
        self.name = name
