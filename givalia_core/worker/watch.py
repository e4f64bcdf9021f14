"""Notices packages that are installed, upgraded or removed beside a running worker.

It polls the folders of `sys.path` for the metadata of distributions and for the path files of editable installs. A change
counts when it is complete: every new distribution has its `RECORD`, which installers write last, and nothing has changed for a
moment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.4  # A poll costs a few milliseconds where hundreds of packages are installed.
QUIET_S: Final = 0.3
PATIENCE_S: Final = 60.0  # A distribution without a RECORD by then never gets one: its installer may have been killed.
_METADATA: Final = (".dist-info", ".egg-info")
_PATH_FILES: Final = (".pth", ".egg-link")

Seen = dict[str, tuple[int, ...]]
"""By path: numbers that change when an installer writes the file."""


class PackageWatch:
    """The installed packages; call `has_changed` every `LOOK_S`."""

    def __init__(self, folders: Iterable[str] | None = None) -> None:
        self._folders = list(sys.path if folders is None else folders)
        self._known = self._last = self._look()
        self._moved_s = 0.0

    def has_changed(self, now_s: float) -> bool:
        """Return true once for each complete change of the installed packages.

        Args:
            now_s: A clock that only goes forward.
        """
        seen = self._look()
        if seen != self._last:
            self._last, self._moved_s = seen, now_s
        quiet_s = now_s - self._moved_s
        if seen == self._known or quiet_s < QUIET_S or (quiet_s < PATIENCE_S and not self._is_whole(seen)):
            return False
        self._known = seen
        return True

    def doubt(self) -> None:
        """Report the last change again: the caller could not act on it."""
        self._known = {}

    def _is_whole(self, seen: Seen) -> bool:
        """Return whether each distribution that is new, or had a RECORD, has a RECORD now."""
        found = [path for path in seen if path.endswith(".dist-info")]
        had = [path for path in found if path not in self._known or f"{path}/RECORD" in self._known]
        return all(f"{path}/RECORD" in seen for path in had)

    def _look(self) -> Seen:
        seen: Seen = {}
        folders = list(dict.fromkeys(self._folders))
        for folder in folders:
            for entry in _entries(folder):
                self._note(entry, seen)
                if entry.name.endswith(".pth"):
                    folders += [each for each in _named_in(entry.path, folder) if each not in folders]
        return seen

    def _note(self, entry: os.DirEntry[str], seen: Seen) -> None:
        if entry.name.endswith(_METADATA):
            for path in (entry.path, f"{entry.path}/RECORD", f"{entry.path}/entry_points.txt"):
                if (stamp := _stamp(path)) is not None:
                    seen[path] = stamp
        elif entry.name.endswith(_PATH_FILES) and (stamp := _stamp(entry.path)) is not None:
            seen[entry.path] = stamp


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as entries:
            yield from entries
    except OSError:
        return  # A folder of sys.path need not exist, and may appear later.


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _named_in(path: str, folder: str) -> list[str]:
    """Return the folders that a path file adds to `sys.path`."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    named = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "import ", "import\t"))]
    return [str(Path(folder, each)) for each in named]
