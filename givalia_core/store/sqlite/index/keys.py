"""The names of the lanes, in a file to which they are appended, each with its number and a checksum.

The header of the index has the length and the checksum of the file at the last commit. Names that a kill left behind that
length count as far as they are whole.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.store.sqlite.index.words import no_file_is_damage
from givalia_core.store.sqlite.places import Damaged

_FRAME: Final = struct.Struct("<II")  # The length and the checksum of what follows.
_REWRITE_LEAST: Final = 64

LaneKey = tuple[Any, ...]
"""The name of a lane: its kind, then the fields that tell it from the others of its kind. The kinds follow."""

DUE: Final = "due"  # Jobs that wait, by due; see `DueKey`.
RUNNING: Final = "running"  # Jobs that run.
ENDED: Final = "ended"  # Jobs that ended in a state, by when to forget them,
KEPT: Final = "kept"  # and those that are never forgotten.
FORGOTTEN: Final = "forgotten"  # Forgotten jobs whose records are still there, by the place of the record that says so.
EXPIRES: Final = "expires"  # Jobs that wait, by when they expire, in addition to their own lane; one lane for each clock.
NEWEST: Final = "newest"  # Jobs that ended in a state, the last one first, in addition to their own lane.


class DueKey(NamedTuple):
    """The name of a lane of jobs that wait."""

    kind: str
    on_wall: bool
    module: str
    target: str
    rank: int


class Keys:
    """The file of the names of the lanes."""

    def __init__(self, path: Path, end: int, crc: int, make_room: Callable[[], None]) -> None:
        """Open the file, or create it; `end` and `crc` are its length and checksum at the last commit."""
        self._path = path
        self._make_room = make_room
        self.end, self.crc = end, crc
        self._records = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def read(self) -> Iterator[tuple[int, LaneKey]]:
        """Yield each number with its name; a later name of a number replaces an earlier one.

        Raises:
            Damaged: The file is not what was written.
        """
        told = self._path.read_bytes()
        if len(told) < self.end or zlib.crc32(told[: self.end]) != self.crc:
            raise Damaged("the names of the lanes do not match their checksum")
        place = 0
        while place + _FRAME.size <= len(told):
            length, crc = _FRAME.unpack_from(told, place)
            packed = told[place + _FRAME.size : place + _FRAME.size + length]
            if len(packed) != length or zlib.crc32(packed) != crc:
                break
            number, key = msgpack.unpackb(packed, use_list=False)
            place += _FRAME.size + length
            self._records += 1
            yield number, key
        if place < self.end:
            raise Damaged("the names of the lanes cannot be read")
        self.end, self.crc = place, zlib.crc32(told[:place])
        os.ftruncate(self._fd, place)

    def verify(self) -> None:
        """Compare the file with its checksum.

        Raises:
            Damaged: The file is not what was written.
        """
        with no_file_is_damage():
            told = self._path.read_bytes()
        if len(told) != self.end or zlib.crc32(told) != self.crc:
            raise Damaged("the names of the lanes do not match their checksum")

    def append(self, number: int, key: LaneKey) -> None:
        """Add a name; on a full disk, make room once and try again.

        Raises:
            OSError: There is no room; the file is as before.
        """
        framed = _framed(number, key)
        for make_room in (self._make_room, None):
            try:
                if os.pwrite(self._fd, framed, self.end) == len(framed):
                    self.crc = zlib.crc32(framed, self.crc)
                    self.end += len(framed)
                    self._records += 1
                    return
            except OSError:
                if make_room is None:
                    raise
            os.ftruncate(self._fd, self.end)
            if make_room is not None:
                make_room()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def rewrite(self, lanes: Iterable[tuple[int, LaneKey]]) -> None:
        """Rewrite the file with these names only, if that makes it much shorter; otherwise leave the file as it is.

        Raises:
            OSError: There is no room; the file is as before.
            Damaged: The folder is gone.
        """
        kept = [_framed(number, key) for number, key in lanes]
        if self._records < 2 * len(kept) + _REWRITE_LEAST:
            return
        told = b"".join(kept)
        making = self._path.with_name(self._path.name + ".making")
        with no_file_is_damage():
            fd = os.open(making, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            done = 0
            while done < len(told):
                done += os.write(fd, told[done:])
            with no_file_is_damage():
                making.rename(self._path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd = fd
        self.end, self.crc, self._records = len(told), zlib.crc32(told), len(kept)

    def sync(self) -> None:
        """Bring all of it to stable storage."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _framed(number: int, key: LaneKey) -> bytes:
    packed: bytes = msgpack.packb((number, key))
    return _FRAME.pack(len(packed), zlib.crc32(packed)) + packed
