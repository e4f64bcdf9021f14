"""Tables on a terminal: they fit its width, and have colours unless the user disables them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence

import pytest
from rich.cells import cell_len

from givalia_core.cli import show

JOB = "01a22d07-cb72-72b0-b39f-f96ed709b3bd"
HEADS = ("id", "state", "module", "key", "why")
ROWS = [
    (JOB, "dead", "Sample", "cart-7", "its last attempt failed: " + "word " * 30),
    (JOB, "waiting", "[bold]", "日本語" * 30, "not due \x1b[2J"),
    (JOB, "ready", "M", "k" * 255, None),
]

Rows = Sequence[Sequence[object]]
Shown = Callable[..., list[str]]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    def show_on(
        columns: int, rows: Sequence[Sequence[object]] = ROWS, heads: Sequence[str] = HEADS, **environ: str
    ) -> list[str]:
        for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"COLUMNS": str(columns), "TERM": "xterm", **environ}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", terminal := Terminal())
        show.table(heads, rows)
        return terminal.getvalue().splitlines()

    return show_on


@pytest.mark.parametrize("columns", [20, 60, 80, 120, 300])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut_off(shown: Shown, columns: int) -> None:
    lines = shown(columns, TERM="dumb")

    assert max(map(cell_len, lines)) <= columns
    assert all(line.isprintable() for line in lines)
    whole = "".join("".join(lines).split())
    assert whole.count(JOB) == len(ROWS)
    assert "日本語" * 30 in whole
    assert "k" * 255 in whole
    assert "[bold]" in whole


def test_an_id_that_fits_is_on_one_line(shown: Shown) -> None:
    assert sum(JOB in line for line in shown(80)) == len(ROWS)


def test_a_table_that_fits_has_a_line_for_each_row(shown: Shown) -> None:
    assert [line.split() for line in shown(80, [("a", "b"), ("c", "d")], ("one", "two"), TERM="dumb")] == [
        ["one", "two"], ["a", "b"], ["c", "d"],
    ]  # fmt: skip


def test_a_table_without_rows_is_its_heads(shown: Shown) -> None:
    assert [line.split() for line in shown(80, [], TERM="dumb")] == [list(HEADS)]


def test_colours_are_there_unless_no_color_is_set(shown: Shown) -> None:
    assert any("\x1b[31m" in line for line in shown(80))
    assert not any("\x1b" in line for line in shown(80, TERM="dumb"))
    assert not any("\x1b[3" in line for line in shown(80, NO_COLOR="1"))


def test_what_is_not_written_to_a_terminal_is_plain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")

    show.table(HEADS, ROWS)

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert "\x1b" not in "".join(lines)
