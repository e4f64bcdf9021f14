"""Notices that packages were installed, upgraded or removed beside a running worker.

It looks at what installers leave in the folders of `sys.path`: the metadata of distributions, and the path files that editable
installs work by. A change counts once it is whole: every new distribution has the `RECORD` that an installer writes last, and
nothing has moved for a moment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.4  # Looking costs a few milliseconds where hundreds of packages are installed.
QUIET_S: Final = 0.3
PATIENCE_S: Final = 60.0  # What has no RECORD by then will never have one: its installer was killed, perhaps.
_METADATA: Final = (".dist-info", ".egg-info")
_PATH_FILES: Final = (".pth", ".egg-link")

Seen = dict[str, tuple[int, ...]]
"""By path: what changes when an installer touches it."""


class PackageWatch:
    """Look at it every `LOOK_S`; it says when there is something new."""

    def __init__(self, folders: Iterable[str] | None = None) -> None:
        self._folders = list(sys.path if folders is None else folders)
        self._known = self._last = self._look()
        self._moved_s = 0.0

    def has_changed(self, now_s: float) -> bool:
        """Whether what is installed has changed since it last said so, and the change is whole.

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
        """Say once more that something has changed: what was to be done about it was not."""
        self._known = {}

    def _is_whole(self, seen: Seen) -> bool:
        """Whether each distribution has its RECORD that is new, or had one."""
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
        return  # A folder of sys.path need not exist, and may come to.


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _named_in(path: str, folder: str) -> list[str]:
    """The folders that a path file adds to `sys.path`."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    named = [line.strip() for line in lines if line.strip() and not line.startswith(("#", "import ", "import\t"))]
    return [str(Path(folder, each)) for each in named]
