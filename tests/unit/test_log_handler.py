"""The log of a program: one handler for all lines; its file may be rotated, and a package may provide its format."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from givalia_logging import Logging

from givalia_core import program
from givalia_core.errors import SettingsInvalid
from givalia_core.hooks import Hooks
from givalia_core.log_handler import LogHandler, take_over_root
from givalia_core.times import to_datetime
from givalia_core.views import JobView

JOB = JobView("id", "k", "Mail", "any", 0, 1, to_datetime(0))
LOG = logging.getLogger("givalia.worker")


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Starts the log of this process, in the plain form or one that is made like this."""
    formats: list[Any] = []
    monkeypatch.setattr(program, "entry_points", lambda group, allowed: formats)

    def start(file: Path | str = "", make: Callable[[Any], Any] | None = None) -> None:
        formats[:] = [SimpleNamespace(value="a format", load=lambda: make)] if make is not None else []
        program.start_log("info", str(file))

    return start


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The log of this process afterwards; with the installed format it is JSON."""
    monkeypatch.setenv("GIVALIA_LOGGING_FORMAT", "json")
    root, last, configure = logging.getLogger("givalia"), logging.lastResort, logging.basicConfig
    before = root.level, root.propagate, list(root.handlers)
    yield
    for handler in root.handlers:
        if isinstance(handler, LogHandler):
            handler.point_to("")
    root.level, root.propagate, root.handlers[:] = before
    logging.lastResort, logging.basicConfig = last, configure


def events(file: Path) -> list[str]:
    return [json.loads(line)["event"] for line in file.read_text().splitlines()]


def test_every_line_has_the_form_of_the_installed_package_before_and_after_a_reload_and_a_rotation(tmp_path: Path) -> None:
    file, rotated = tmp_path / "log", tmp_path / "log.1"
    program.start_log("info", str(file))
    LOG.info("before the plugins")
    hooks = Hooks([Logging()])
    hooks.call("worker_started", worker=SimpleNamespace(settings=SimpleNamespace(name="w")))
    assert events(file) == ["before the plugins", "worker started"]

    file.rename(rotated)
    file.touch()
    LOG.info("a line")
    hooks.call("on_enq", job=JOB)

    assert events(file) == ["a line", "enqueued"]
    program.start_log("info", str(file))
    LOG.info("another")
    hooks.call("on_enq", job=JOB)
    assert events(file) == ["a line", "enqueued", "another", "enqueued"]
    assert len(events(rotated)) == 2

    program.start_log("info", str(tmp_path / "elsewhere"))
    hooks.call("on_enq", job=JOB)
    assert events(tmp_path / "elsewhere") == ["enqueued"]


def test_a_line_of_the_root_logger_has_the_form_too_and_sets_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    program.start_log("info", str(tmp_path / "log"))

    logging.warning("of a plugin")
    logging.getLogger("somebodys.plugin").warning("of another")

    assert events(tmp_path / "log") == ["of a plugin", "of another"]
    assert logging.root.handlers == []
    assert capsys.readouterr().err == ""


def test_what_a_package_has_set_up_for_the_root_logger_comes_in_the_one_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    level = logging.root.level
    program.start_log("info", str(tmp_path / "log"))

    logging.basicConfig(level=logging.INFO, format="own %(message)s")
    logging.root.addHandler(own := logging.FileHandler(tmp_path / "own"))
    take_over_root()
    logging.root.addHandler(logging.StreamHandler())  # Of a package that a process imports later.
    take_over_root()
    logging.getLogger("somebodys.plugin").info("a line")
    logging.root.setLevel(level)
    own.close()

    assert events(tmp_path / "log") == ["a line"]
    assert (tmp_path / "own").read_text() == "a line\n"
    assert capsys.readouterr() == ("", "")


def test_a_job_package_can_still_set_up_the_root_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    program.start_log("info", str(tmp_path / "log"))

    logging.basicConfig(filename=tmp_path / "own", format="own %(message)s")
    (own,) = logging.root.handlers
    logging.getLogger("somebodys.plugin").warning("a line")
    own.close()

    assert (tmp_path / "own").read_text() == "own a line\n"
    assert events(tmp_path / "log") == []


def test_a_traceback_is_whole_in_the_form_of_the_package(tmp_path: Path) -> None:
    program.start_log("info", str(tmp_path / "log"))
    long = "x" * 2_000
    text = "Traceback (most recent call last):\n" + "  a line\n" * 200 + f"ValueError: {long}"

    LOG.error("dead", extra={"traceback": text})
    logging.getLogger("givalia.job").handle(
        logging.makeLogRecord({"name": "givalia.job", "levelno": 20, "levelname": "INFO", "msg": "m", "exc_text": text})
    )
    LOG.error("larger", extra={"traceback": "y" * 100 + "\n" + text * 10})

    for line in (tmp_path / "log").read_text().splitlines()[:2]:
        assert json.loads(line)["exception"] == text.splitlines()
    largest = json.loads((tmp_path / "log").read_text().splitlines()[2])["exception"]
    assert 15_000 < len("\n".join(largest)) <= 16_384
    assert largest[-1] == f"ValueError: {long}"


def test_a_file_that_was_moved_away_is_written_until_there_is_another(tmp_path: Path, start: Callable[..., None]) -> None:
    file, rotated = tmp_path / "log", tmp_path / "log.1"
    start(file)
    file.rename(rotated)

    LOG.info("one")
    assert not file.exists()  # Whoever rotates makes it, with the owner and mode that it is to have.
    file.touch()
    LOG.info("two")

    assert "one" in rotated.read_text()
    assert "two" in file.read_text()


def test_a_file_that_is_copied_and_cut_is_written_from_its_new_end(tmp_path: Path, start: Callable[..., None]) -> None:
    file = tmp_path / "log"
    start(file)
    LOG.info("one")
    file.write_bytes(b"")

    LOG.info("two")

    assert file.read_text().endswith("INFO givalia.worker: two\n")
    assert file.read_text().count("\n") == 1
    assert "\0" not in file.read_text()


def test_a_second_start_that_fails_leaves_the_log_as_it_was(tmp_path: Path, start: Callable[..., None]) -> None:
    start(tmp_path / "log")

    with pytest.raises(SettingsInvalid, match="no such folder"):
        start(tmp_path / "no such folder" / "log")

    LOG.info("a line")
    assert "a line" in (tmp_path / "log").read_text()


def cannot(handler: object) -> Any:
    raise ValueError("GIVALIA_LOGGING_FORMAT must be one of them")


class Broken(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        raise KeyError("no such field")


@pytest.mark.parametrize("make", [cannot, lambda handler: Broken(), lambda handler: "no formatter"])
def test_a_form_that_cannot_be_used_costs_no_line(tmp_path: Path, start: Callable[..., None], make: Any) -> None:
    start(tmp_path / "log", make)

    LOG.info("a line")

    shown = (tmp_path / "log").read_text()
    assert "INFO givalia.worker: a line" in shown
    assert ("the log format a format cannot be used: ValueError: GIVALIA_LOGGING_FORMAT" in shown) == (make is cannot)


def test_a_job_that_closes_all_files_costs_no_line_and_no_file_of_others(tmp_path: Path, start: Callable[..., None]) -> None:
    start(tmp_path / "log")
    (handler,) = logging.getLogger("givalia").handlers
    number = handler.stream.fileno()  # type: ignore[attr-defined]
    os.close(number)
    theirs = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    assert theirs == number

    LOG.info("one")
    LOG.info("two")

    assert (tmp_path / "log").read_text().count("\n") == 2
    assert os.fstat(theirs).st_size == 0
    os.close(theirs)


def test_lines_that_cannot_be_written_are_counted_and_the_log_says_so(
    tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "log")
    (handler,) = logging.getLogger("givalia").handlers
    assert isinstance(handler, LogHandler)

    def full(line: str) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patched:
        patched.setattr(handler, "_write", full)
        LOG.info("one")
        LOG.info("two")
    assert handler.lost == 2

    LOG.info("three")

    first, second = (tmp_path / "log").read_text().splitlines()
    assert "ERROR givalia: 2 lines of the log could not be written" in first
    assert "three" in second


def test_warnings_of_loggers_that_nobody_has_set_up_have_the_form_of_the_log(
    tmp_path: Path, start: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path / "log")
    monkeypatch.setattr(logging.root, "handlers", [])  # Without those of pytest.

    logging.getLogger("somebodys.plugin").info("routine")
    logging.getLogger("somebodys.plugin").warning("trouble")

    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.endswith("WARNING somebodys.plugin: trouble")


def test_without_a_file_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str], start: Callable[..., None]) -> None:
    start()
    LOG.info("a line")
    assert "INFO givalia.worker: a line" in capsys.readouterr().err
    assert logging.getLogger("givalia").handlers[0].stream is sys.stderr  # type: ignore[attr-defined]


def test_why_a_program_ends_is_said_once_where_it_is_looked_for(
    tmp_path: Path, start: Callable[..., None], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", open(2, "w", buffering=1, closefd=False))  # noqa: SIM115
    line = "givalia-server: STORE_LOCKED: another server has it"
    program.say_last(line)
    start()
    program.say_last(line)
    assert capfd.readouterr().err == f"{line}\n" * 2

    start("", lambda handler: logging.Formatter("form: %(message)s"))
    program.say_last(line)
    assert capfd.readouterr().err == f"form: {line}\n"

    start(tmp_path / "log")
    program.say_last(line)
    assert capfd.readouterr().err == f"{line}\n"
    assert (tmp_path / "log").read_text().endswith(f"CRITICAL givalia: {line}\n")


def test_a_process_that_cannot_open_its_log_file_runs_until_it_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gone" / "log"
    program.start_log("info", "")  # As the process that forks it has.
    with pytest.raises(SettingsInvalid):
        program.start_log("info", str(file))

    program.start_log("info", str(file), must_open=False)
    LOG.info("a line")
    file.parent.mkdir()
    file.touch()
    LOG.info("another")

    said = capsys.readouterr().err
    assert "lines of this process go to standard error until its file can be opened: log_file is a file" in said
    assert "a line" in said
    assert events(file) == ["another"]


class Unspeakable:
    """A message that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


def test_a_line_that_cannot_be_shown_keeps_the_form_of_the_others(tmp_path: Path) -> None:
    program.start_log("info", str(tmp_path / "log"))

    LOG.info(Unspeakable())
    LOG.info("%s", Unspeakable())
    LOG.info("a line")

    assert ["not formatted" in line for line in events(tmp_path / "log")] == [True, True, False]
