"""Entry points of the installed packages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import importlib_metadata
from importlib_metadata import EntryPoint

ALL: Final = "*"
_SEPARATORS: Final = re.compile("[-_.]+")


def entry_points(group: str, allowed: str = ALL) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name, without importing them.

    `allowed` names distributions, separated by commas; others are left out. `*` allows all.
    """
    names = _names(allowed)
    found = sorted(importlib_metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value))
    return [entry for entry in found if ALL in names or _normal(_distribution(entry)) in names]


def missing(groups: Sequence[str], allowed: str) -> Iterator[str]:
    """Yield a message for each distribution that `allowed` names and that has no entry point in these groups."""
    brought = {(entry.name, _distribution(entry)) for group in groups for entry in entry_points(group)}
    installed = {_normal(distribution) for _, distribution in brought}
    for name in sorted(_names(allowed) - installed - {ALL}):
        of_plugin = sorted({distribution for plugin, distribution in brought if _normal(plugin) == name})
        hint = f"{name} is a plugin of {', '.join(of_plugin)}, and distributions are named" if of_plugin else ""
        there = f"those that have are {', '.join(sorted(installed))}" if installed else "none has"
        yield f"plugins: no distribution {name} with a plugin is installed here; {hint or there}"


def _names(allowed: str) -> set[str]:
    return {_normal(name.strip()) for name in allowed.split(",") if name.strip()}


def _normal(name: str) -> str:
    """Return the name in the form in which packages are compared: `Givalia_Logging` is `givalia-logging`."""
    return _SEPARATORS.sub("-", name).lower()


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "?"
