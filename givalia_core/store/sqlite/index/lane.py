"""One order of jobs, as memory has it: its beginning, the entries that are not sealed yet, and the fields of its name."""

from __future__ import annotations

from typing import Final

from givalia_core.store.base import Route
from givalia_core.store.sqlite.index.keys import DUE, EXPIRES, NEWEST, DueKey, LaneKey
from givalia_core.store.sqlite.index.runs import Entry
from givalia_core.store.sqlite.index.slots import FAR

START: Final[Entry] = (-FAR, 0, 0)


class Lane:
    """One order of jobs. `front` holds all entries up to `bound`, which need not exist; if `bound` is None, it holds all.

    No entry that counts is before `low`. The jobs of a loosely filed lane have another lane in their slots.
    """

    __slots__ = (
        "bound", "front", "is_due", "is_loosely_filed", "is_sorted", "key", "kind", "loose", "low", "number", "on_wall", "rank",
        "route", "used_in",
    )  # fmt: skip

    def __init__(self, number: int, key: LaneKey, low: int, used_in: int) -> None:
        """Make a lane; nothing is known of its entries yet."""
        self.number = number
        self.key = key
        self.kind = key[0]
        self.low = low
        self.is_due = self.kind == DUE
        self.is_loosely_filed = self.kind in (EXPIRES, NEWEST)
        self.on_wall, self.rank, self.route = False, 0, Route("", "")  # Of jobs that wait.
        if self.is_due:
            due = DueKey(*key)
            self.on_wall, self.rank, self.route = due.on_wall, due.rank, Route(due.module, due.target)
        self.front: list[Entry] = []
        self.bound: Entry | None = START
        self.loose: list[Entry] = []
        self.is_sorted = False  # Whether the loose entries are in order: a reader of much of a lane sorts them once.
        self.used_in = used_in  # The last round of the scrub in which a job was found or filed in it.
