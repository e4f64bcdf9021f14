"""What was measured, beside what we aim at."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

MIB: Final = 1 << 20


class Figure(NamedTuple):
    """One measured value; `least` or `most` is what we aim at, where we aim at something."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    curve: str = ""  # The plot that the figure is a point of,
    at: float | None = None  # and its place on the axis below.

    @property
    def aim(self) -> str:
        """The aim in words."""
        if self.least is not None:
            return f"at least {_shown(self.least)}"
        return "" if self.most is None else f"at most {_shown(self.most)}"

    @property
    def is_reached(self) -> bool | None:
        """Whether the aim is reached; None if there is none."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most


def quantile(values: Iterable[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def medians(rounds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Of several rounds of the same figures, the median of each."""
    return [same[0]._replace(value=statistics.median(each.value for each in same)) for same in zip(*rounds, strict=True)]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(figures: Sequence[Figure]) -> str:
    """The figures for people: one to a line, its aim beside it, and whether it is reached."""
    words = {True: "reached", False: "MISSED", None: ""}
    rows = [(each.name, _shown(each.value), each.unit, each.aim, words[each.is_reached]) for each in figures]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"{name:{widths[0]}}  {value:>{widths[1]}} {unit:{widths[2]}}  {aim:{widths[3]}}  {reached}".rstrip()
        for name, value, unit, aim, reached in rows
    )


def mapped(figure: Figure) -> dict[str, Any]:
    """The figure as JSON has it."""
    return {**figure._asdict(), "reached": figure.is_reached}
