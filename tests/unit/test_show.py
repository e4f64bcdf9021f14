"""What people at a terminal see."""

from __future__ import annotations

import io

import pytest

from givalia_core.cli import show


@pytest.fixture(autouse=True)
def _width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")


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
