"""Notices that files of a folder are moved, removed or added: asking Linux for that costs less than polling the files."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any, Final

# From <sys/inotify.h>.
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF, _UNMOUNT = 0x400, 0x800, 0x2000
_OF_FOLDER: Final = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _UNMOUNT
_OF_PARENTS: Final = _MOVE_SELF | _UNMOUNT
_libc: Final[Any] = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Notices:
    """A watch on a folder, the names of its files, and the folders above it: `fd` is readable once something has happened.

    A mount over one of the folders is not noticed.
    """

    def __init__(self, folder: Path) -> None:
        """Begin to watch.

        Raises:
            OSError: The system allows no watch.
        """
        if _libc is None or not hasattr(_libc, "inotify_init1"):
            raise OSError("there is no inotify here")
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        for each, what in ((folder, _OF_FOLDER), *((parent, _OF_PARENTS) for parent in folder.parents)):
            if _libc.inotify_add_watch(self.fd, os.fsencode(each), what) < 0:
                number = ctypes.get_errno()
                self.close()
                raise OSError(number, os.strerror(number), str(each))

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
