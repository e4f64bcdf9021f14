"""The one line that names the exception, found in stored errors."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from givalia_core.headline import HEADLINE_CHARS_MAX, LEFT_OUT, headline, shortened, type_raised

LINK = "(Background on this error at: https://sqlalche.me/e/20/e3q8)"


CHAINED = (
    "Traceback (most recent call last):\n  File x\nStopped: x\n\n"
    "During handling of the above exception, another exception occurred:\n\n"
    "Traceback (most recent call last):\n  File x\nRuntimeError: y"
)


def plain() -> None:
    raise ValueError("boom")


def chained() -> None:
    try:
        plain()
    except ValueError as error:
        raise KeyError("gone") from error


def while_handling() -> None:
    try:
        plain()
    except ValueError:
        raise OSError("no disk")  # noqa: B904


def noted() -> None:
    error = ValueError("boom")
    error.add_note("This is a note.\nOf two lines.")
    raise error


def grouped() -> None:
    raise ExceptionGroup("two went wrong", [ValueError("one"), ExceptionGroup("more", [KeyError("two")])])


def grouped_from() -> None:
    try:
        plain()
    except ValueError as error:
        raise ExceptionGroup("two went wrong", [ValueError("one"), KeyError("two")]) from error


def several_lines() -> None:
    raise RuntimeError(f"(sqlite3.OperationalError) no such table: carts\n[SQL: SELECT 1]\n{LINK}")


def empty_lines_first() -> None:
    raise RuntimeError("\n\n  no such cart\nat all")


def only_empty_lines() -> None:
    raise RuntimeError("\n\n")


def syntax() -> None:
    compile("x = = 1", "module.py", "exec")


def raised_by(function: Callable[[], None]) -> str:
    try:
        function()
    except BaseException as error:
        return "".join(traceback.format_exception(error)).strip()
    raise AssertionError


@pytest.mark.parametrize(
    ("function", "line", "kind"),
    [
        (plain, "ValueError: boom", "ValueError"),
        (chained, "KeyError: 'gone'", "KeyError"),
        (while_handling, "OSError: no disk", "OSError"),
        (noted, "ValueError: boom", "ValueError"),
        (grouped, "ExceptionGroup: two went wrong (2 sub-exceptions)", "ExceptionGroup"),
        (grouped_from, "ExceptionGroup: two went wrong (2 sub-exceptions)", "ExceptionGroup"),
        (several_lines, "RuntimeError: (sqlite3.OperationalError) no such table: carts", "RuntimeError"),
        (empty_lines_first, "RuntimeError: no such cart", "RuntimeError"),
        (only_empty_lines, "RuntimeError:", "RuntimeError"),
        (syntax, "SyntaxError: invalid syntax", "SyntaxError"),
    ],
)
def test_it_is_type_and_message_of_the_exception_itself(function: Callable[[], None], line: str, kind: str) -> None:
    error = raised_by(function)
    assert headline(error) == line
    assert type_raised(error) == kind


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("no such user\nmore", "no such user"),
        ("timeout: it ran too long\nTraceback (most recent call last):\n  File x\nStopped: x", "timeout: it ran too long"),
        (f"timeout: it ran too long\n{CHAINED}", "timeout: it ran too long"),
        (CHAINED, "RuntimeError: y"),
        ("child_died: SIGSEGV\nCurrent thread 0x1 (most recent call first):\n  File x", "child_died: SIGSEGV"),
        ("ValueError without a traceback", "ValueError without a traceback"),
        ("\n\n  only indented  ", "only indented"),
        ("Traceback (most recent call last):", ""),
        ("", ""),
        (None, ""),
        ("x" * 1_000, "x" * (HEADLINE_CHARS_MAX - 1) + "…"),
    ],
)  # fmt: skip
def test_of_words_it_is_the_first_line(error: str | None, line: str) -> None:
    assert headline(error) == line


def test_words_of_a_job_are_no_type() -> None:
    assert type_raised("user 7: gone") == ""


def test_an_error_that_was_shortened_says_so() -> None:
    error = "ValueError: no cart\n" + "".join(f"line {number}\n" for number in range(100))

    cut = shortened(error, 100)

    assert len(cut) == 100
    assert cut.splitlines()[:2] == ["ValueError: no cart", LEFT_OUT]
    assert cut.endswith("line 98\nline 99\n")
    assert shortened(error, len(error)) == error
