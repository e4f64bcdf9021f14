"""What the supervisor and its processes say to each other: records of notes, packed with msgpack, many in one write.

A record is its length, the same with all bits turned, the CRC-32 of what follows, and that many bytes. So it shows at once if a
job writes to this connection, or reads from it, which is open in its process.

What a process reports of a job are the very messages that go to the server (`Succeed`, `Fail`, `Release`, `Progress`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from zlib import crc32

from msgpack import Packer, unpackb

from givalia_core.frozen import BUILTINS
from givalia_core.protocol.messages import Announce, Dispatch, Fail, Progress, Release, Succeed

__builtins__ = BUILTINS

_HEAD: Final = struct.Struct("<III")
_ALL_BITS: Final = (1 << 32) - 1
TOGETHER_MAX: Final = 100  # Notes in one record: each may have a whole result in it, and who reads bounds the record.


class Serve(NamedTuple):
    """The first note to a process: the worker's settings, and modules whose import has killed a process before."""

    settings: dict[str, Any]
    deadly: dict[str, str]


class Importing(NamedTuple):
    """The process is about to import this module; if it is its last word, it was the module's fault."""

    module: str


class HostReady(NamedTuple):
    """The process has its modules and plugins: `sources` says where each is imported from, `hooks` what plugins listen to.

    In the page a plugin has the number of its place in `plugins`, counted down from -1.
    """

    announced: list[Any]
    sources: dict[str, str]
    hooks: list[str]
    plugins: list[str]


class PluginBusy(NamedTuple):
    """A plugin has been busy with this job for a while; `words` say with what, and are empty when it has ended."""

    id: bytes
    fence: int
    words: str


class Start(NamedTuple):
    """The worker is connected: tell the plugins, and say `Started`."""


class Started(NamedTuple):
    """The plugins know; jobs may come."""


class Drain(NamedTuple):
    """No more jobs will come: tell the plugins that the worker stops; `is_over`: end, for all jobs have."""

    is_over: bool = False


class CancelAsked(NamedTuple):
    """Somebody cancelled this running job: let it see so, if it runs in this process; and tell the plugins, if that is news."""

    job: Any
    is_news: bool


class End(NamedTuple):
    """The job's code must end: raise this inside."""

    id: bytes
    fence: int
    why: str
    words: str


class Stuck(NamedTuple):
    """The code of a job that was reported does not end, though `Stopped` was raised in it twice: it ends with its process."""

    id: bytes
    fence: int


class Before(NamedTuple):
    """A job is to start in a process of its own: tell the plugins, then say `PluginsTold`."""

    job: Any


class After(NamedTuple):
    """A job has ended in a process of its own, or with the process it ran in: tell the plugins, then say `PluginsTold`."""

    job: Any
    kind: str
    result: bytes
    error: str | None
    seconds: float


class PluginsTold(NamedTuple):
    """The plugins were told of this attempt's start or end."""

    id: bytes
    fence: int


class Begin(NamedTuple):
    """Run this job in your process, with the class from this source, of this version of its distribution (empty: of any).

    The version was looked up at `since` (wall clock) or later.
    """

    job: Any
    source: str
    distribution: str = ""
    version: str = ""
    since: float = 0.0


class Outdated(NamedTuple):
    """The code of the job is another by now than that which was announced: it was not started."""


class JobEnded(NamedTuple):
    """How a job ended in its own process. `Spoiled` may follow; then the process has started no other job."""

    is_success: bool
    report: Any
    seconds: float


class Spoiled(NamedTuple):
    """A job has changed these for the whole process, which cannot put them back and should be replaced."""

    words: str


class AskHeld(NamedTuple):
    """Which attempts are under way? The answer is `Holding`, behind all reports of attempts that have ended."""


class Holding(NamedTuple):
    """The fences of all attempts that are under way."""

    fences: list[int]


class Counts(NamedTuple):
    """What the supervisor counts, for plugins that show it."""

    counts: dict[str, int]


class Logged(NamedTuple):
    """A line that a job in its own process has logged; the plugins of the worker are to see it, too."""

    fields: dict[str, Any]


class JobServers(NamedTuple):
    """Where clients go that are made in jobs: addresses, separated by commas."""

    servers: str


NOTES: Final[tuple[type, ...]] = (
    Serve, Importing, HostReady, PluginBusy, Start, Started, Drain, CancelAsked, End, Stuck, Before, After, PluginsTold, Begin,
    Outdated, JobEnded,
    Spoiled, AskHeld, Holding, Counts, Logged, Dispatch, Succeed, Fail, Release, Progress, Announce, JobServers,
)  # fmt: skip
_CODES: Final[dict[type, int]] = {note: code for code, note in enumerate(NOTES)}
_packer: Any = Packer(autoreset=True, unicode_errors="replace")  # Job code may say what is no Unicode: a file's name.


def pack(notes: Sequence[Any]) -> bytes:
    """Notes as they travel, in records: one array for each note."""
    return b"".join(_record(notes[start : start + TOGETHER_MAX]) for start in range(0, len(notes), TOGETHER_MAX))


def _record(notes: Sequence[Any]) -> bytes:
    packed: bytes = _packer.pack([(_CODES[type(note)], note) for note in notes])
    size = len(packed)
    return _HEAD.pack(size, size ^ _ALL_BITS, crc32(packed)) + packed


class NoteReader:
    """Cuts a stream of bytes into notes; a record of them has at most so many bytes."""

    def __init__(self, bytes_max: int = _ALL_BITS) -> None:
        self._bytes_max = bytes_max
        self._data = bytearray()

    @property
    def has_part(self) -> bool:
        """Whether a record has arrived in part."""
        return bool(self._data)

    def feed(self, data: bytes | memoryview) -> list[Any]:
        """Take the bytes that arrived; return the notes that are whole.

        Raises:
            Exception: Whoever sent this is not what it should be.
        """
        self._data += data
        notes: list[Any] = []
        start = 0
        while len(self._data) - start >= _HEAD.size:
            size, turned, crc = _HEAD.unpack_from(self._data, start)
            if size ^ turned != _ALL_BITS:
                raise ValueError("this is not the beginning of a record")
            if size > self._bytes_max:
                raise ValueError(f"{size} bytes in one record")
            begin = start + _HEAD.size
            end = begin + size
            if len(self._data) < end:
                break
            with memoryview(self._data) as view, view[begin:end] as record:
                if crc32(record) != crc:
                    raise ValueError("a record is not what was sent")
                arrived = unpackb(record, strict_map_key=False)
            notes += [NOTES[code](*fields) for code, fields in arrived]
            start = end
        del self._data[:start]
        return notes
