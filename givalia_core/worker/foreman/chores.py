"""Periodic chores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Chore:
    """An act that is due every `period_s` seconds and runs if it is needed; its argument is the monotonic time."""

    period_s: float
    is_needed: Callable[[], object]
    act: Callable[[float], object]
    due_s: float = 0.0
