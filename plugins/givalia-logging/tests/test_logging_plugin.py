"""The logging plugin, called as Givalia calls it."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from givalia_core import Outcome
from givalia_core.hooks import HOOKS, Hooks
from givalia_core.model import OutcomeKind
from givalia_core.views import JobView, RunningJobView

from givalia_logging import Logging, fields, output

DUE = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
HOSTILE = "a\r\nforged level=error \x1b[2J\x00\x7f\x85\x9b\u202e\u2066\u2028\ufeff\ud800z"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the person who runs the tests, and no handler left behind."""
    for name in ("FORMAT", "PARAMS", "LEVEL"):
        monkeypatch.delenv(f"GIVALIA_LOGGING_{name}", raising=False)
    logger = logging.getLogger("givalia")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


class Written:
    """What has been written to standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text


@pytest.fixture
def err(capsys: pytest.CaptureFixture[str]) -> Written:
    return Written(capsys)


@pytest.fixture
def lines(err: Written) -> Callable[[], list[dict[str, Any]]]:
    return lambda: [json.loads(line) for line in err.getvalue().splitlines()]


Lines = Callable[[], list[dict[str, Any]]]


def job(**changes: Any) -> JobView:
    of: dict[str, Any] = {"id": "0195-id", "key": "cart-7", "module": "Sample", "target_worker": "any"}
    return JobView(**{**of, "priority": 0, "attempt": 0, "due": DUE, **changes})


def worker(name: str = "w1") -> SimpleNamespace:
    return SimpleNamespace(settings=SimpleNamespace(name=name))


def running(**changes: Any) -> RunningJobView:
    of: dict[str, Any] = {"id": "0195-id", "key": "cart-7", "module": "Sample", "target_worker": "any"}
    return RunningJobView(**{**of, "priority": 0, "attempt": 1, "due": DUE, "fence": 9, "params": None, **changes})


def call_every_hook(hooks: Hooks) -> None:
    error = "Traceback (most recent call last):\n  a line\nValueError: boom\n(Background on this error at: a page)\n"
    failed = Outcome(OutcomeKind.FAILED, error=error, seconds=0.5)
    hooks.call("server_started", server=SimpleNamespace())
    hooks.call("worker_started", worker=worker())
    hooks.call("on_enq", job=job())
    hooks.call("on_ext", job=job())
    hooks.call("before_run", job=running(), module=object)
    hooks.call("after_run", job=running(), module=object, outcome=failed)
    hooks.call("on_retry", job=job(attempt=1), outcome=failed)
    hooks.call("on_done", job=job(attempt=1))
    hooks.call("on_dead", job=job(attempt=5), reason="exhausted", error=failed.error)
    hooks.call("on_requeue", job=job())
    hooks.call("on_cancel", job=job(), running=False)
    hooks.call("server_stopping", server=SimpleNamespace())
    hooks.call("worker_stopping", worker=worker())
    assert not hooks.raised


def test_every_hook_writes_one_line(lines: Lines) -> None:
    call_every_hook(Hooks([Logging()]))
    acts = [line["act"] for line in lines()]
    assert sorted(acts) == sorted(HOOKS)


def test_a_line_says_which_job_which_attempt_where_and_how_it_ended(lines: Lines) -> None:
    call_every_hook(Hooks([Logging()]))
    [line] = [line for line in lines() if line["act"] == "after_run"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "warning",
        "event": "failed",
        "act": "after_run",
        "job": "0195-id",
        "key": "cart-7",
        "module": "Sample",
        "attempt": 1,
        "target": "any",
        "worker": "w1",
        "outcome": "failed",
        "error": "ValueError: boom",
        "seconds": 0.5,
    }


def test_levels_tell_trouble_from_routine(lines: Lines) -> None:
    call_every_hook(Hooks([Logging()]))
    by_act = {line["act"]: line["level"] for line in lines()}
    assert {act for act, level in by_act.items() if level != "info"} == {"after_run", "on_retry", "on_dead"}
    assert by_act["on_dead"] == "error"


def test_a_death_says_why(lines: Lines) -> None:
    call_every_hook(Hooks([Logging()]))
    [line] = [line for line in lines() if line["act"] == "on_dead"]
    assert (line["reason"], line["error"]) == ("exhausted", "ValueError: boom")


def test_a_job_without_a_key_has_no_empty_field(lines: Lines) -> None:
    Hooks([Logging()]).call("on_enq", job=job(key=None))
    assert "key" not in lines()[0]


@pytest.mark.parametrize("field", ["id", "key", "module", "target_worker"])
@pytest.mark.parametrize("form", ["json", "readable"])
def test_nothing_in_a_job_can_forge_a_line(err: Written, monkeypatch: pytest.MonkeyPatch, field: str, form: str) -> None:
    monkeypatch.setenv("GIVALIA_LOGGING_FORMAT", form)
    hooks = Hooks([Logging()])
    hooks.call("on_enq", job=job(**{field: HOSTILE}))
    hooks.call("on_dead", job=job(), reason=HOSTILE, error=HOSTILE)
    hooks.call("on_retry", job=job(), outcome=Outcome(OutcomeKind.FAILED, error="E: \x1b[2J\u202e\x9b"))
    hooks.call("worker_started", worker=worker(HOSTILE))
    assert not hooks.raised
    shown = err.getvalue()
    assert shown.count("\n") == 4
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    values = [value for line in shown.splitlines() for value in (json.loads(line).values() if form == "json" else ())]
    assert all(str(value).isprintable() for value in values)  # Not even after JSON was decoded.


@pytest.mark.parametrize("form", ["json", "readable"])
def test_nothing_that_a_job_logs_can_forge_a_line(err: Written, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setenv("GIVALIA_LOGGING_FORMAT", form)
    Hooks([Logging()]).call("worker_started", worker=worker())
    before = len(err.getvalue())
    log = logging.LoggerAdapter(logging.getLogger("givalia.job"), {"job": HOSTILE, HOSTILE: HOSTILE})
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("message %s", HOSTILE)
    shown = err.getvalue()[before:]
    assert all(character.isprintable() for character in shown.replace("\n", ""))
    if form == "json":
        assert shown.count("\n") == 1
        assert any("ValueError" in line for line in json.loads(shown)["exception"])
    else:
        first, *others = shown.splitlines()
        assert "message a\\r\\nforged" in first
        assert all(line.startswith("    | ") for line in others)


def test_every_character_that_is_no_text_is_escaped() -> None:
    harmful = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert {"\r", "\n", "\x1b", "\x9b", "\u202e", "\u2066", "\u2028", "\U000e0001"} <= set(harmful)
    for character in harmful:
        assert fields.text(character).startswith("\\")
    assert fields.text("plain ünïcode 🙂 text") == "plain ünïcode 🙂 text"


@pytest.mark.parametrize("value", ["x" * 10_000, "\x00" * 10_000, "\U000e0001" * 10_000, ["x"] * 10_000])
def test_no_value_is_longer_than_256_characters(value: object) -> None:
    assert len(fields.text(value)) == 256
    assert len(fields.params(value)) <= 256


def test_a_value_that_cannot_say_what_it_is_does_not_cost_the_line() -> None:
    class Awkward:
        def __str__(self) -> str:
            raise SystemExit

    assert fields.plain(Awkward()) == "<Awkward without a text>"
    assert fields.plain(10**5000) == "16610 bits"
    assert fields.plain(float("nan")) == "nan"


def test_params_are_not_logged_unless_asked(err: Written) -> None:
    hooks = Hooks([Logging()])
    hooks.call("before_run", job=running(params={"note": "hunter2"}), module=object)
    hooks.call("after_run", job=running(params="hunter2"), module=object, outcome=Outcome(OutcomeKind.SUCCEEDED, "hunter2"))
    shown = err.getvalue()
    assert shown.count("\n") == 2
    assert "hunter2" not in shown


SECRET_PARAMS: dict[Any, Any] = {
    "url": "https://user:hunter2@host/x?a=1&access_token=hunter2&b=2",
    "password": "hunter2",
    "nested": [{"Api-Key": "hunter2", "apiKey": b"hunter2", "Authorization": ["hunter2"]}],
    "db_dsn": {"x": {"y": {"session_id": "hunter2"}}},
    b"secret": "hunter2",
}


def test_params_that_are_asked_for_come_with_secrets_masked(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    monkeypatch.setenv("GIVALIA_LOGGING_PARAMS", "1")
    hooks = Hooks([Logging()])
    for name, value in SECRET_PARAMS.items():
        hooks.call("before_run", job=running(params={"author": "Ann", name: value}), module=object)
    shown = [line["params"] for line in lines()]
    assert len(shown) == 5
    assert all("'author': 'Ann'" in params for params in shown)
    assert not any("hunter2" in params for params in shown)
    assert "https://user:***@host/x?a=1&access_token=***&b=2" in shown[0]


def test_params_of_any_size_and_depth_are_cut(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    monkeypatch.setenv("GIVALIA_LOGGING_PARAMS", "1")
    deep: Any = "bottom"
    for _ in range(500):
        deep = [deep]
    hooks = Hooks([Logging()])
    for params in (deep, list(range(100_000)), {n: n for n in range(1000)}, "\n" * 1000, b"x" * 1000, 10**5000):
        hooks.call("before_run", job=running(params=params), module=object)
    assert not hooks.raised
    assert all(len(line["params"]) <= 256 for line in lines())


def test_json_is_the_default_where_there_is_no_terminal(err: Written) -> None:
    Hooks([Logging()]).call("on_enq", job=job())
    assert json.loads(err.getvalue())["act"] == "on_enq"


def test_readable_is_the_default_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    Hooks([Logging()]).call("on_enq", job=job(key="two words"))
    assert " act=on_enq job=0195-id key='two words' module=Sample " in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_a_process_that_leaves_its_terminal_goes_on_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    hooks = Hooks([Logging()])
    hooks.call("server_started", server=SimpleNamespace())
    monkeypatch.setattr(sys, "stderr", log_file := io.StringIO())
    hooks.call("on_enq", job=job())
    assert json.loads(log_file.getvalue())["act"] == "on_enq"


def test_the_level_holds_for_hooks_and_for_loggers(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    monkeypatch.setenv("GIVALIA_LOGGING_LEVEL", "Error")
    call_every_hook(Hooks([Logging()]))
    logging.getLogger("givalia.job").warning("not this")
    logging.getLogger("givalia.job").error("but this")
    assert [line.get("act") or line["event"] for line in lines()] == ["on_dead", "but this"]


@pytest.mark.parametrize(("name", "value"), [("FORMAT", "xml"), ("LEVEL", "loud"), ("PARAMS", "maybe")])
def test_a_setting_that_cannot_be_used_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"GIVALIA_LOGGING_{name}", value)
    with pytest.raises(ValueError, match=f"GIVALIA_LOGGING_{name} must be one of .*{value}"):
        Logging()


def test_what_a_job_logs_comes_out_in_the_same_format(lines: Lines) -> None:
    Hooks([Logging()]).call("worker_started", worker=worker())
    about = {"job_id": "0195-id", "key": "cart-7", "attempt": 2, "job_module": "Sample"}
    logging.LoggerAdapter(logging.getLogger("givalia.job"), about).info("halfway through %d", 7)
    line = lines()[-1]
    assert line.pop("timestamp")
    assert line == {
        "level": "info",
        "event": "halfway through 7",
        "job": "0195-id",
        "key": "cart-7",
        "module": "Sample",
        "attempt": 2,
        "logger": "givalia.job",
    }


def test_nothing_is_set_up_before_a_server_or_worker_has_started() -> None:
    handlers = logging.getLogger("givalia").handlers[:]
    Logging()
    assert logging.getLogger("givalia").handlers == handlers


def test_two_plugins_and_many_starts_make_one_handler(lines: Lines) -> None:
    hooks = Hooks([Logging(), Logging()])
    for _ in range(3):
        hooks.call("server_started", server=SimpleNamespace())
        hooks.call("worker_started", worker=worker())
    ours = [each for each in logging.getLogger("givalia").handlers if each.name == output.OWN_HANDLER]
    assert len(ours) == 1
    before = len(lines())
    logging.getLogger("givalia.server").info("once")
    assert len(lines()) == before + 1


@pytest.mark.usefixtures("err")
def test_other_handlers_and_structlog_itself_stay_as_they_were() -> None:
    configured = structlog.get_config()
    others = io.StringIO()
    other = logging.StreamHandler(others)
    logging.getLogger("givalia").addHandler(other)
    hooks = Hooks([Logging()])
    hooks.call("server_started", server=SimpleNamespace())
    hooks.call("on_enq", job=job())
    logging.getLogger("givalia.server").info("for all")
    assert other in logging.getLogger("givalia").handlers
    assert others.getvalue() == "for all\n"  # Hook events are not theirs, and their format is their own.
    assert structlog.get_config() == configured


def test_givalias_own_handler_is_given_the_format_instead_of_a_second_line(err: Written) -> None:
    log_file = io.StringIO()
    own = logging.StreamHandler(log_file)
    own.set_name(output.HOST_HANDLER)
    logging.getLogger("givalia").addHandler(own)
    logging.getLogger("givalia").setLevel(logging.INFO)
    hooks = Hooks([Logging()])
    hooks.call("server_started", server=SimpleNamespace())
    logging.getLogger("givalia.server").info("listening")
    assert err.getvalue() == ""
    shown = [json.loads(line) for line in log_file.getvalue().splitlines()]
    assert [line["event"] for line in shown] == ["server started", "listening"]


@pytest.mark.usefixtures("err")
def test_a_level_that_somebody_chose_for_the_logger_is_kept() -> None:
    logging.getLogger("givalia").setLevel(logging.ERROR)
    Hooks([Logging()]).call("server_started", server=SimpleNamespace())
    assert logging.getLogger("givalia").level == logging.ERROR
