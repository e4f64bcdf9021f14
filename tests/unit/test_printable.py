"""Log lines and refusals: text from outside in them can never pass for another line."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pytest
from givalia_logging import output

from givalia_core.cli.endings import errors_end_the_program
from givalia_core.errors import BadRequest
from givalia_core.printable import Formatter, printable

FORGED = "x\n2026-01-01 00:00:00 INFO givalia.server: all is well\r\x1b[2J\u202e\u2028\x85\x00\ud800"


class Loud(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


def formatters() -> list[logging.Formatter]:
    handler = logging.StreamHandler(io.StringIO())
    return [Formatter(), output.Lines("readable", handler), output.Lines("json", handler)]


def record(message: Any, *args: Any, **parts: Any) -> logging.LogRecord:
    made = logging.LogRecord("givalia.job", logging.INFO, "file.py", 7, message, args, None)
    vars(made).update(parts)
    return made


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException:
        return sys.exc_info()


def unsafe(text: str) -> list[str]:
    return [char for char in text if not char.isprintable() and char != "\n"]


@pytest.mark.parametrize("formatter", formatters(), ids=lambda formatter: type(formatter).__name__)
@pytest.mark.parametrize(
    "made",
    [
        record(FORGED),
        record("%s", FORGED),
        record("%s", [FORGED]),
        record("plain", key=FORGED, job_id=FORGED),
        record("%s %s", 1),
        record("%d", FORGED),
        record(FORGED + "%d", "text"),
        record("%s", Loud()),
        record({"no": "text"}),
        record(None),
    ],
)
def test_a_record_is_one_line(formatter: logging.Formatter, made: logging.LogRecord) -> None:
    shown = formatter.format(made)

    assert "\n" not in shown
    assert not unsafe(shown)


@pytest.mark.parametrize("formatter", formatters(), ids=lambda formatter: type(formatter).__name__)
@pytest.mark.parametrize(
    "parts",
    [
        {"exc_info": raised(ValueError(FORGED))},
        {"exc_info": raised(Loud())},
        {"exc_text": FORGED},
        {"stack_info": FORGED},
        {"block": FORGED},
    ],
)
def test_what_follows_a_line_stands_behind_a_margin(formatter: logging.Formatter, parts: dict[str, Any]) -> None:
    first, *others = formatter.format(record("a line", **parts)).split("\n")

    assert "a line" in first
    assert all(line.startswith("    | ") for line in others)
    assert not unsafe("".join([first, *others]))


def test_a_refusal_of_the_command_line_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (BadRequest(FORGED), OSError(FORGED)):
        with pytest.raises(SystemExit), errors_end_the_program("givalia"):
            raise error

        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert not unsafe(line)


@pytest.mark.parametrize("text", ["", "plain", "é鍵😀", "a b"])
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_line_about_a_job_says_which_one_and_which_attempt() -> None:
    about = {"job_id": "0195-id", "key": 'two "words"', "attempt": 2, "job_module": "Cart"}
    assert (
        Formatter()
        .format(record("a line", **about))
        .endswith(r'INFO givalia.job: a line [module=Cart key="two \"words\"" id=0195-id attempt=2]')
    )
    assert Formatter().format(record("a line", **{**about, "key": None})).endswith("[module=Cart id=0195-id attempt=2]")
    assert Formatter().format(record("a line", job_id=Loud())).endswith("a line [id=?]")
    assert Formatter().format(record("a line", key="somebody's own")).endswith("givalia.job: a line")
