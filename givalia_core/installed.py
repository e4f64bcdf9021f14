"""Entry points of the installed packages, and the distributions that bring them.

An installer may be replacing a package meanwhile, or may have been killed in the middle of it: then the entry points of a
distribution can be read, but not its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import importlib_metadata
from importlib_metadata import EntryPoint, version

ALL: Final = "*"
UNKNOWN: Final = "?"
_SEPARATORS: Final = re.compile("[-_.]+")


def entry_points(group: str, allowed: str = ALL) -> list[EntryPoint]:
    """Return the entry points of a group, sorted by name, without importing them.

    `allowed` names distributions, separated by commas; others are left out. `*` allows all.
    """
    names = _names(allowed)
    found = sorted(importlib_metadata.entry_points(group=group), key=lambda entry: (entry.name, entry.value))
    return [entry for entry in found if ALL in names or _normal(owner(entry)[0]) in names]


def owner(entry: EntryPoint) -> tuple[str, str]:
    """Return the name and the version of the distribution that brings an entry point; `UNKNOWN` for both if one is missing."""
    try:
        name, its_version = (entry.dist.name, entry.dist.version) if entry.dist else (None, None)
    except Exception:  # Versions of the library differ in what they raise, and in what they return as None.
        name = its_version = None
    return (name, its_version) if name and its_version else (UNKNOWN, UNKNOWN)


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution that is installed now; None if there is none, or its metadata cannot be read."""
    try:
        return version(distribution) or None
    except Exception:  # As above.
        return None


def missing(groups: Sequence[str], allowed: str) -> Iterator[str]:
    """Yield a message for each distribution that `allowed` names and that has no entry point in these groups."""
    brought = {(entry.name, owner(entry)[0]) for group in groups for entry in entry_points(group)}
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
