"""Files of 64-bit words that are mapped into memory: writes survive the end of the process, but not a crash of the machine."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from givalia_core.store.sqlite.places import Damaged

_WORD: Final = 8
_LEAST: Final = 8_192  # Words a file grows by, so that it seldom does.
_BLOCK: Final = 4_096
FULL_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WITHOUT_FALLOCATE: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})

# A file is not there, or something else has its name: a folder, or a symbolic link.
NO_FILE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP})


@contextlib.contextmanager
def no_file_is_damage() -> Iterator[None]:
    """Raise `Damaged` if a file of the index was removed or replaced.

    Raises:
        Damaged: There is no such file.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_FILE:
            raise Damaged(str(error)) from error
        raise


class Words:
    """A file of signed 64-bit words, all zero at first. `at` is the memory they are in; `grow` and `shrink` replace it."""

    def __init__(self, path: Path, words: int, make_room: Callable[[], None]) -> None:
        """Open the file, or create it with this many words.

        Args:
            path: The file. A symbolic link is refused.
            words: The least length.
            make_room: Called when the disk is full; the allocation is then tried once more.

        Raises:
            OSError: The file cannot be opened, or there is no room.
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

    @property
    def raw(self) -> mmap.mmap:
        """The mapping itself, for writes of several words at once."""
        assert self._map is not None
        return self._map

    def grow(self, words: int) -> None:
        """Grow the file to at least this many words.

        The room is allocated on disk before it is mapped: a write to a hole on a full disk would end the process.

        Raises:
            OSError: There is no room; all is as before.
        """
        if words > self._size:
            words = max(words, self._size + self._size // 8, self._size + _LEAST)
            try:
                allocate(self._fd, self._size * _WORD, (words - self._size) * _WORD)
            except OSError:
                self._make_room()
                allocate(self._fd, self._size * _WORD, (words - self._size) * _WORD)
            self._size = words
        elif self._map is not None:
            return
        self._remap()

    def shrink(self, words: int) -> None:
        """Cut the file to this many words. An `at` from before must not be used again."""
        if words < self._size:
            self.at = memoryview(b"").cast("q")
            self._map = None
            os.ftruncate(self._fd, words * _WORD)
            self._size = words
            self._remap()

    def _remap(self) -> None:
        self._map = mmap.mmap(self._fd, self._size * _WORD)
        # A reader of the earlier mapping keeps it; the file is the same.
        self.at = memoryview(self._map).cast("q")

    def trim(self) -> None:
        """Give back the mapped pages of this process; they stay in the system's cache, and come back when read."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        if self._map is not None:
            self._map.flush()
            os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self.at = memoryview(b"").cast("q")
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def allocate(fd: int, start: int, length: int) -> None:
    """Allocate room on disk for these bytes of a file, which grows if it is shorter.

    Raises:
        OSError: There is no room, or the file may not be written.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, start, length)
            return
        except OSError as error:
            if error.errno not in _WITHOUT_FALLOCATE:
                raise
    _write_zeros(fd, max(start, os.fstat(fd).st_size), start + length)


def _write_zeros(fd: int, start: int, end: int) -> None:
    """Allocate by writing, where the system or the file system cannot allocate. A failure may leave the file longer."""
    zeros = bytes(64 * _BLOCK)
    while start < end:
        start += os.pwrite(fd, zeros[: end - start], start)
