"""Tables on a terminal: they fit its width, and have colours unless `NO_COLOR` is set. Imported only for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from shutil import get_terminal_size
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

GAP: Final = 2
LAST_CELLS: Final = 24  # A narrower last column is hard to read.
INDENT: Final = 4
_STYLES: Final = {
    "ready": "yellow", "running": "cyan", "done": "green", "dead": "red", "cancelled": "dim", "blocked": "red",
    "draining": "yellow",
}  # fmt: skip

Row = Sequence[str]


def show(heads: Row, rows: Sequence[Row]) -> None:
    """Print a table; if it does not fit, wrap its last column, or give its last columns lines of their own."""
    columns, lines = get_terminal_size()
    console = Console(width=columns, height=lines, highlight=False)  # rich assumes 80 columns for a dumb terminal.
    widths = [max(map(cell_len, column)) for column in zip(heads, *rows, strict=True)]
    if sum(widths[:-1]) + GAP * (len(widths) - 1) + min(widths[-1], LAST_CELLS) <= console.width:
        console.print(_table(heads, rows, widths))
        return
    ends = accumulate(width + GAP for width in widths)
    fitting = max(sum(end - GAP <= console.width for end in ends), 1)
    console.print(_table(heads[:fitting], [], widths))
    for row in rows:
        console.print(Group(_table(row[:fitting], [], widths, style=""), _more(heads[fitting:], row[fitting:])))


def _table(heads: Row, rows: Sequence[Row], widths: Sequence[int], style: str = "bold") -> Table:
    table = Table(box=None, pad_edge=False, header_style=style, padding=(0, GAP, 0, 0))
    for number, (head, width) in enumerate(zip(heads, widths, strict=False)):
        is_last = number == len(heads) - 1
        table.add_column(_text(head, style), overflow="fold", no_wrap=not is_last, min_width=None if is_last else width)
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _more(heads: Row, values: Row) -> Padding:
    """Return the columns for which there is no room, without empty ones."""
    words = Text(overflow="fold")
    for head, value in zip(heads, values, strict=True):
        if value:
            words.append(" " * GAP if words else "").append(f"{head} ", "dim").append_text(_text(value))
    return Padding(words, (0, 0, 0, INDENT))


def _text(value: str, style: str = "") -> Text:
    """Return the value as text without markup."""
    return Text(value, style=style or _STYLES.get(value.partition(" ")[0], ""), overflow="fold")
