"""Measured figures, beside their goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

MIB: Final = 1 << 20


class Figure(NamedTuple):
    """One measured value; `least` or `most` is its goal, if it has one."""

    name: str
    value: float
    unit: str
    least: float | None = None
    most: float | None = None
    curve: str = ""  # The curve that the figure is a point of,
    at: float | None = None  # and its place on the horizontal axis.

    @property
    def aim(self) -> str:
        """The aim in words."""
        if self.least is not None:
            return f"at least {shown(self.least)}"
        return "" if self.most is None else f"at most {shown(self.most)}"

    @property
    def is_reached(self) -> bool | None:
        """Return whether the goal is reached; None if there is none."""
        if self.least is not None:
            return self.value >= self.least
        return None if self.most is None else self.value <= self.most


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def medians(rounds: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Return the median of each figure over several rounds."""
    return [same[0]._replace(value=statistics.median(each.value for each in same)) for same in zip(*rounds, strict=True)]


def in_turn(rounds: int, plain: str, other: str, ways: Sequence[Callable[[], list[Figure]]]) -> list[Figure]:
    """Return the medians of two ways to do the same, `plain` and `other`, in turns; then those of `other` in percent."""
    found: list[list[list[Figure]]] = [[], []]
    for _ in range(rounds):
        for way, some in zip(ways, found, strict=True):
            some.append(way())
    before, after = map(medians, found)
    figures = [
        each._replace(name=f"{words}, {each.name}") for words, some in ((plain, before), (other, after)) for each in some
    ]
    return figures + [
        Figure(f"{other}, {was.name}, of that {plain}", 100 * now.value / was.value, "%")
        for was, now in zip(before, after, strict=True)
    ]


def shown(value: float) -> str:
    """Return a number in a form for people."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def verdict(is_reached: bool | None) -> str:
    """Return in a word whether the goal is reached."""
    return {True: "reached", False: "MISSED", None: ""}[is_reached]


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Return the rows as lines with aligned columns; the columns with numbers in `right` are right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            f"{word:>{width}}" if column in right else f"{word:{width}}"
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def table(figures: Sequence[Figure]) -> str:
    """Return the figures for people: one to a line, its aim beside it, and whether it is reached."""
    rows = [(each.name, shown(each.value), each.unit, each.aim, verdict(each.is_reached)) for each in figures]
    return aligned(rows, right={1})


def mapped(figure: Figure) -> dict[str, Any]:
    """Return the figure as JSON has it."""
    return {**figure._asdict(), "reached": figure.is_reached}


def unmapped(data: Mapping[str, Any]) -> Figure:
    """Return the figure from its JSON."""
    return Figure(**{field: data[field] for field in Figure._fields})
