"""Entry points of the packages that are installed here."""

from __future__ import annotations

from typing import Final

import importlib_metadata
from importlib_metadata import EntryPoint

ALL: Final = "*"


def entry_points(group: str, allowed: str = ALL) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name; nothing is imported.

    `allowed` names distributions, separated by commas; what others bring is left out. `*` allows all.
    """
    names = {name.strip() for name in allowed.split(",")}
    found = sorted(importlib_metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value))
    return [entry for entry in found if ALL in names or _distribution(entry) in names]


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"
