"""Files of 64-bit words that are mapped into memory: what is written survives the process, though not the machine."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_WORD: Final = 8
_LEAST: Final = 8_192  # Words a file grows by, so that it seldom does.


class Words:
    """A file of signed 64-bit words, all zero at first; `at` is the memory they are in, until `grow` replaces it."""

    def __init__(self, path: Path, words: int, make_room: Callable[[], None]) -> None:
        """Open the file, or make it with so many words. When the disk is full `make_room` is called, and it is tried again.

        Raises:
            OSError: It cannot be opened, or there is no room.
        """
        self._make_room = make_room
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._map: mmap.mmap | None = None
        self.at = memoryview(b"").cast("q")
        try:
            self._size = os.fstat(self._fd).st_size // _WORD
            self.grow(max(words, self._size))
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._size

    def grow(self, words: int) -> None:
        """Have at least so many words.

        The room is taken on disk before it is mapped: writing to a hole on a full disk would end the process.

        Raises:
            OSError: There is no room; all is as before.
        """
        if words > self._size:
            words = max(words, self._size + self._size // 8, self._size + _LEAST)
            try:
                _allocate(self._fd, self._size * _WORD, (words - self._size) * _WORD)
            except OSError:
                self._make_room()
                _allocate(self._fd, self._size * _WORD, (words - self._size) * _WORD)
            self._size = words
        elif self._map is not None:
            return
        self._map = mmap.mmap(self._fd, self._size * _WORD)
        # Whoever still reads the memory of before keeps it; it is the same file.
        self.at = memoryview(self._map).cast("q")

    def trim(self) -> None:
        """Take the pages out of what this process is said to hold; they stay in the system's cache, and come back when read."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        if self._map is not None:
            self._map.flush()
            os.fsync(self._fd)

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        self.at = memoryview(b"").cast("q")
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _allocate(fd: int, start: int, length: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, start, length)
    else:
        os.ftruncate(fd, start + length)
