"""The output for people at a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from wire_values import VALUES

from givalia_core.cli import show
from givalia_core.model import JobState
from givalia_core.protocol import values
from givalia_core.views import Status


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")


def test_on_a_terminal_instants_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())

    show.job_lines(status(due=datetime.now(UTC) + timedelta(hours=34, minutes=12, seconds=9)))

    (line,) = (line for line in terminal.getvalue().splitlines() if line.startswith("due "))
    assert re.fullmatch(r"due +in 34 h 12 min, (Mon|Tue|Wed|Thu|Fri|Sat|Sun) \d\d:\d\d \S+", line)


def test_a_bar_is_written_over_and_gone_in_the_end() -> None:
    terminal = io.StringIO()

    with show.Bar(terminal) as bar:
        bar.show(0.0, "")
        bar.show(0.5, "half")
        bar.show(1.0, "all")

    assert terminal.getvalue().split("\r\x1b[K")[1:] == [
        "[------------------------]   0%  ",
        "[############------------]  50%  half",
        "[########################] 100%  all",
        "",
    ]


def test_a_bar_that_was_never_shown_writes_nothing() -> None:
    terminal = io.StringIO()

    with show.Bar(terminal):
        pass

    assert terminal.getvalue() == ""


def test_a_bar_stays_on_its_line_whatever_the_job_says() -> None:
    terminal = io.StringIO()

    with show.Bar(terminal) as bar:
        bar.show(0.3, "two\nlines \x1b[2J" + "x" * 300)

    shown = terminal.getvalue().split("\r\x1b[K")[1]
    assert len(shown) == 59
    assert shown.isprintable()


# Any value of a job.

NESTED_MOST = 1_023  # Deeper values cannot be packed.


def status(**known: Any) -> Status:
    return Status(
        **{
            "id": "01a22d07-cb72-72b0-b39f-f96ed709b3bd", "key": "cart-7", "module": "Sample", "target_worker": "any",
            "priority": 0, "state": JobState.DONE, "due": datetime(2030, 1, 1, tzinfo=UTC), "timeleft": None, "attempts": 1,
            "max_attempts": 5, "worker": "w", "progress": None, "result": None, "error": None, "reason": None,
            "result_error": None, "stop_asked": False, "why": "it is done",
        }
        | known
    )  # fmt: skip


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def read(text: str) -> Any:
    """JSON as the standard has it, without NaN and Infinity."""
    assert text.isascii()
    assert text.isprintable()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    return json.loads(text, parse_constant=refuse)


@given(value=VALUES)
def test_any_value_is_json(value: Any) -> None:
    as_it_travels = values.unpack(values.pack(value, "result"))

    read(show.to_json(as_it_travels))
    shown = read(show.status_json(status(result=as_it_travels)))

    assert shown["state"] == "done"


@given(value=VALUES)
def test_any_value_is_shown_on_one_line_of_printable_text(value: Any) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        show.job_lines(status(result=values.unpack(values.pack(value, "result"))))

    (line,) = (line for line in out.getvalue().split("\n") if line.startswith("result"))
    assert line.isprintable()


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {b"k": value}, lambda value: {1: [value]}])
def test_the_deepest_value_is_shown(wrap: Callable[[Any], Any]) -> None:
    deepest = nested(NESTED_MOST if wrap(0) != {1: [0]} else NESTED_MOST // 2, wrap)
    values.unpack(values.pack(deepest, "result"))

    assert '"state": "done"' in show.status_json(status(result=deepest))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({b"k": 1}, r'{"{\"base64\": \"aw==\"}": 1}'),
        ({1: "a", None: "b", 1.5: "c", False: "d"}, '{"1": "a", "null": "b", "1.5": "c", "false": "d"}'),
        ({1: "a", "1": "b"}, '{"map": [[1, "a"], ["1", "b"]]}'),
        ([math.nan, math.inf, {-math.inf: 0}], '[null, null, {"null": 0}]'),
        ("\ud800", r'"\ud800"'),
    ],
)
def test_what_json_lacks_has_a_form_of_its_own(value: Any, text: str) -> None:
    assert show.to_json(value) == text
