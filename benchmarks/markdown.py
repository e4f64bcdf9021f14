"""Figures as the pages of `docs` show them."""

from __future__ import annotations

from typing import Any

Row = tuple[str, ...]


def table(heads: Row, rows: list[Row]) -> str:
    """A table of the page."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def shown(value: float) -> str:
    """A number as people read it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def measured(figure: dict[str, Any]) -> str:
    """A figure with its unit."""
    return f"{shown(figure['value'])} {figure['unit']}".strip()


def aim(figure: dict[str, Any]) -> str:
    """Its aim in words."""
    return f"at least {shown(figure['least'])}" if figure["least"] is not None else f"at most {shown(figure['most'])}"
