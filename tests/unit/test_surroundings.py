"""Changes of a job to its process: Givalia's loggers go on logging after any `logging.config`."""

from __future__ import annotations

import io
import locale
import logging
import logging.config
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import structlog

from givalia_core.loggers import Loggers
from givalia_core.worker.attempt.child import Forwarding
from givalia_core.worker.attempt.surroundings import Contents, Surroundings

JOBS = logging.getLogger("givalia.job")


def clear_handlers() -> None:
    logging.getLogger("givalia").handlers.clear()


def raise_level() -> None:
    logging.getLogger("givalia").setLevel(logging.CRITICAL)


def drop(*_: object) -> bool:
    return False


class Silent(logging.Logger):
    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - Of `logging`.
        return False


CONFIG = """
[loggers]
keys=root
[handlers]
keys=
[formatters]
keys=
[logger_root]
level=CRITICAL
handlers=
"""


def handler() -> logging.Handler:
    return logging.getLogger("givalia").handlers[0]


CHANGES: dict[str, Callable[[], object]] = {
    "dictConfig": lambda: logging.config.dictConfig({"version": 1}),
    "dictConfig of others in place": lambda: logging.config.dictConfig(
        {"version": 1, "incremental": True, "loggers": {"somebodys.plugin": {"level": "CRITICAL"}}}
    ),
    "level of another": lambda: logging.getLogger("somebodys.plugin").setLevel(logging.CRITICAL),
    "dictConfig of ours": lambda: logging.config.dictConfig({"version": 1, "loggers": {"givalia": {"level": "ERROR"}}}),
    "dictConfig that disables none": lambda: logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "loggers": {"somebodys.plugin": {"level": "CRITICAL"}}}
    ),
    "fileConfig": lambda: logging.config.fileConfig(io.StringIO(CONFIG)),
    "basicConfig": lambda: logging.basicConfig(force=True, level=logging.CRITICAL, stream=io.StringIO()),
    "handlers of the root": lambda: logging.root.handlers.clear(),
    "a factory of records": lambda: logging.setLogRecordFactory(drop),
    "a class of loggers": lambda: logging.setLoggerClass(Silent),
    "the name of a level": lambda: logging.addLevelName(logging.INFO, "RENAMED"),
    "structlog": lambda: structlog.configure(processors=[drop]),
    "structlog in place": lambda: structlog.get_config()["processors"].clear(),
    "disable": lambda: logging.disable(logging.CRITICAL),
    "handlers": clear_handlers,
    "level": raise_level,
    "filter": lambda: JOBS.addFilter(drop),
    "level of a handler": lambda: handler().setLevel(logging.CRITICAL),
    "filter of a handler": lambda: handler().addFilter(drop),
    "formatter of a handler": lambda: handler().setFormatter(logging.Formatter("%(nothing)s")),
}


def break_method() -> None:
    logging.Logger.makeRecord = drop  # type: ignore[assignment, method-assign]


def trace(*_: object) -> None:
    pass


CONTENTS: dict[str, tuple[Callable[[], object], str]] = {
    "a method": (break_method, "changes to the module logging"),
    "a stream": (lambda: setattr(sys, "stdout", io.StringIO()), "changes to the module sys"),
    "a hook": (lambda: threading.setprofile(trace), "changes to the module threading"),
    "a module": (lambda: sys.modules.update(json=ModuleType("json")), "changes to sys.modules"),
    "the path": (sys.path.clear, "changes to sys.path"),
    "finders": (sys.meta_path.pop, "changes to how modules are found"),
    "a trace": (lambda: sys.setprofile(trace), "a trace function"),
    "the locale": (lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"), "a locale"),
    "the switch interval": (lambda: sys.setswitchinterval(1.0), "a switch interval"),
    "the stacks of threads": (lambda: threading.stack_size(1 << 20), "a stack size of threads"),
}


@pytest.fixture
def said() -> Iterator[list[object]]:
    root = logging.getLogger("givalia")
    before = root.level, root.propagate, list(root.handlers), logging.root.level, list(logging.root.handlers)
    said: list[object] = []
    logging.getLogger("somebodys.plugin").setLevel(logging.NOTSET)
    root.handlers[:] = [Forwarding(said.append)]
    root.propagate = False
    root.setLevel("INFO")
    yield said
    root.level, root.propagate, root.handlers[:], logging.root.level, logging.root.handlers[:] = before
    JOBS.filters.clear()
    logging.disable(logging.NOTSET)
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False


@pytest.mark.parametrize("how", CHANGES)
def test_what_a_job_does_to_the_loggers_is_noticed_and_put_back(said: list[object], how: str) -> None:
    surroundings = Surroundings()
    CHANGES[how]()
    assert surroundings.changed() == ["loggers"]

    surroundings.restore()

    assert surroundings.changed() == []
    JOBS.info("a line")
    assert len(said) == 1
    surroundings.close()


def settings_of_structlog() -> dict[str, object]:
    settings = structlog.get_config()
    return {**settings, "processors": list(settings["processors"])}


@pytest.mark.parametrize("how", CHANGES)
def test_what_a_job_does_to_the_loggers_changes_nothing_for_others(said: list[object], how: str) -> None:
    plugin, root = logging.getLogger("somebodys.plugin"), logging.root
    heard: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = heard.append  # type: ignore[method-assign]
    plugin.addHandler(handler)
    plugin.setLevel(logging.INFO)
    before = root.level, list(root.handlers), structlog.is_configured(), settings_of_structlog()
    surroundings = Surroundings()

    CHANGES[how]()
    late = logging.getLogger(f"late {how}")
    late.disabled = how == "dictConfig"
    surroundings.restore()
    surroundings.close()

    plugin.info("a line")
    plugin.removeHandler(handler)
    assert [(record.levelname, record.getMessage()) for record in heard] == [("INFO", "a line")]
    assert (root.level, root.handlers, structlog.is_configured(), settings_of_structlog()) == before
    assert not late.disabled
    assert type(logging.getLogger(f"made behind {how}")) is logging.Logger


def test_structlog_that_was_configured_when_modules_were_imported_stays_so(said: list[object]) -> None:
    meant = {**structlog.get_config(), "processors": [structlog.processors.add_log_level]}
    structlog.configure(**meant)
    try:
        surroundings = Surroundings()
        assert surroundings.changed() == []
        structlog.reset_defaults()
        assert surroundings.changed() == ["loggers"]

        surroundings.restore()

        assert structlog.get_config() == meant
        surroundings.close()
    finally:
        structlog.reset_defaults()


def test_a_library_that_comes_late_may_set_the_level_of_its_own_logger(said: list[object]) -> None:
    surroundings = Surroundings()

    logging.getLogger(f"late library {id(surroundings)}").setLevel(logging.DEBUG)

    assert surroundings.changed() == []
    surroundings.close()


def test_an_import_may_set_up_its_own_loggers_and_disables_none(said: list[object]) -> None:
    plugin = logging.getLogger("somebodys.plugin")
    loggers = Loggers()

    logging.config.dictConfig({"version": 1, "loggers": {"theirs": {"level": "DEBUG"}}})
    loggers.restore()

    assert not plugin.disabled
    assert logging.getLogger("theirs").level == logging.DEBUG
    JOBS.info("a line")
    assert len(said) == 1


def test_a_handler_that_is_added_may_stay(said: list[object]) -> None:
    loggers = Loggers()
    added = logging.NullHandler()
    logging.getLogger("givalia").addHandler(added)

    assert loggers.are_kept()
    loggers.restore()
    assert added in logging.getLogger("givalia").handlers


class Unspeakable:
    """A message that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_a_line_that_cannot_be_shown_fails_no_job() -> None:
    said: list[object] = []

    Forwarding(said.append).handle(logging.LogRecord("givalia.job", 1 << 70, "file.py", 7, Unspeakable(), (), None))

    assert "not formatted: RuntimeError" in str(said)


def test_a_line_that_cannot_be_sent_fails_no_job(capsys: pytest.CaptureFixture[str]) -> None:
    def cannot(_: object) -> None:
        raise ValueError("it cannot be packed")

    Forwarding(cannot).handle(logging.LogRecord("givalia.job", logging.INFO, "file.py", 7, "a line", (), None))

    assert "it cannot be packed" in capsys.readouterr().err


def test_a_line_whose_values_do_not_fit_it_fails_no_job() -> None:
    said: list[object] = []

    Forwarding(said.append).emit(logging.LogRecord("givalia.job", logging.INFO, "file.py", 7, "%s %s", (1,), None))

    assert "%s %s" in str(said)


@pytest.fixture
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put back what `CONTENTS` changes, whatever comes of the test."""
    were = dict(sys.modules), sys.path[:], sys.meta_path[:], sys.getprofile(), sys.stdout
    language, interval, stack = locale.setlocale(locale.LC_ALL), sys.getswitchinterval(), threading.stack_size()
    monkeypatch.setattr(logging.Logger, "makeRecord", logging.Logger.makeRecord)
    yield
    modules, sys.path[:], sys.meta_path[:], profile, sys.stdout = were
    sys.modules.update(modules)
    sys.setprofile(profile)
    threading.setprofile(None)  # type: ignore[arg-type]
    locale.setlocale(locale.LC_ALL, language)
    sys.setswitchinterval(interval)
    threading.stack_size(stack)


@pytest.mark.usefixtures("_restored")
@pytest.mark.parametrize("what", CONTENTS)
def test_what_a_job_leaves_changed_for_the_next_one_is_noticed(what: str) -> None:
    contents = Contents()
    assert contents.changed() == []
    change, words = CONTENTS[what]

    change()

    assert contents.changed() == [words]


@pytest.mark.usefixtures("_restored")
def test_what_an_import_adds_is_no_change() -> None:
    contents = Contents()

    sys.modules["givalia_added"] = ModuleType("givalia_added")
    sys.path.insert(0, "/nowhere")
    sys.meta_path.append(sys.meta_path[0])

    assert contents.changed() == []
    del sys.modules["givalia_added"]


def test_a_stream_that_a_job_has_closed_is_noticed_and_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "out").open("w") as file:
        saved = os.dup(2)
        try:
            os.dup2(file.fileno(), 2)
            monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))  # noqa: SIM115
            surroundings = Surroundings()
            sys.stderr.close()
            assert surroundings.changed() == ["standard streams"]

            surroundings.restore()

            assert surroundings.changed() == []
            print("a line", file=sys.stderr)
            surroundings.close()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    assert (tmp_path / "out").read_text() == "a line\n"


def test_a_stream_of_a_job_need_not_say_whether_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings = Surroundings()

    monkeypatch.setattr(sys, "stderr", object())

    assert surroundings.changed() == []
    surroundings.close()


def test_a_line_keeps_the_stack_that_was_asked_for() -> None:
    said: list[object] = []

    Forwarding(said.append).handle(
        logging.LogRecord(
            "givalia.job", logging.INFO, "file.py", 7, "a line", (), None, sinfo="Stack (most recent call last):\n  x"
        )
    )

    assert "Stack (most recent call last)" in str(said)


@pytest.mark.usefixtures("_restored")
def test_what_is_changed_and_added_at_once_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = Contents()

    sys.modules["givalia_added"] = sys.modules.pop("json")
    monkeypatch.setattr(threading, "givalia_added", drop, raising=False)
    monkeypatch.delattr(logging, "info")

    assert contents.changed() == ["changes to the module logging", "changes to sys.modules"]
    sys.modules["json"] = sys.modules.pop("givalia_added")
