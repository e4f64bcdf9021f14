"""Notes between the supervisor and its processes: records of msgpack, many notes in one write.

A record is its length, the same length with all bits inverted, the CRC-32 of the body, and the body. Job code can reach this
connection, which is open in its process; the checks show at once when job code has written to the connection or read from it.

The reports of a process are the messages for the server themselves (`Succeed`, `FailReport`, `Release`, `Progress`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from zlib import crc32

from msgpack import Packer, unpackb

from givalia_core.frozen import BUILTINS
from givalia_core.protocol.messages import Announce, Dispatch, FailReport, Progress, Release, Succeed

__builtins__ = BUILTINS

_HEAD: Final = struct.Struct("<III")
_ALL_BITS: Final = (1 << 32) - 1
TOGETHER_MAX: Final = 100  # Notes in one record: each may hold a whole result, and the reader limits a record.


class Serve(NamedTuple):
    """The first note to a process: the worker's settings, and modules whose import has killed a process before."""

    settings: dict[str, Any]
    deadly: dict[str, str]


class Importing(NamedTuple):
    """The process is about to import this module. If this is its last note, the module is to blame."""

    module: str


class HostReady(NamedTuple):
    """The process has its modules and plugins. `sources` are the places to import them from, `hooks` the hooks with listeners.

    On the shared page a plugin has the number of its place in `plugins`, counted down from -1.
    """

    announced: list[Any]
    sources: dict[str, str]
    hooks: list[str]
    plugins: list[str]


class PluginBusy(NamedTuple):
    """A plugin has been busy with this job for a while; `words` name the hook and the plugin; empty: it has returned."""

    id: bytes
    fence: int
    words: str


class Start(NamedTuple):
    """The worker is connected: tell the plugins, then answer `Started`."""


class Started(NamedTuple):
    """The plugins know of the connection; jobs may come."""


class Drain(NamedTuple):
    """No more jobs will come: tell the plugins that the worker stops. `is_over`: all jobs have ended, so end."""

    is_over: bool = False


class CancelAsked(NamedTuple):
    """A client has cancelled this running job: tell the job if it runs here, and the plugins if `is_news`."""

    job: Any
    is_news: bool


class End(NamedTuple):
    """The code of this job must end: raise `Stopped` in it."""

    id: bytes
    fence: int
    why: str
    words: str


class Stuck(NamedTuple):
    """The code of a reported job has not ended, though `Stopped` was raised in it twice; it ends with its process."""

    id: bytes
    fence: int


class Before(NamedTuple):
    """A job will start in a process of its own: tell the plugins, then answer `PluginsTold`."""

    job: Any


class After(NamedTuple):
    """A job has ended in its own process, or together with its process: tell the plugins, then answer `PluginsTold`."""

    job: Any
    kind: str
    result: bytes
    error: str | None
    seconds: float


class PluginsTold(NamedTuple):
    """The plugins have heard of the start or end of this attempt."""

    id: bytes
    fence: int


class Begin(NamedTuple):
    """Run this job, with the class from `source`, of this version of its distribution (empty: any version).

    The version was looked up at `since` (wall clock) or later.
    """

    job: Any
    source: str
    distribution: str = ""
    version: str = ""
    since: float = 0.0


class Outdated(NamedTuple):
    """The job was not started: its installed code is not the code that was announced."""


class ChildReported(NamedTuple):
    """A job has ended in its own process. If `Spoiled` follows, the process has started no other job."""

    is_success: bool
    report: Any
    seconds: float


class Spoiled(NamedTuple):
    """A job has changed the things in `words` for its whole process, which cannot restore them and should be replaced."""

    words: str


class AskHeld(NamedTuple):
    """Answer with the attempts that are under way (`Holding`), after the reports of all attempts that have ended."""


class Holding(NamedTuple):
    """The fences of all attempts that are under way."""

    fences: list[int]


class Counts(NamedTuple):
    """The supervisor's counts, for plugins that show them."""

    counts: dict[str, int]


class Logged(NamedTuple):
    """A line that a job in its own process has logged, for the plugins of the worker."""

    fields: dict[str, Any]


class JobServers(NamedTuple):
    """The servers for clients that jobs make: addresses, separated by commas."""

    servers: str


NOTES: Final[tuple[type, ...]] = (
    Serve, Importing, HostReady, PluginBusy, Start, Started, Drain, CancelAsked, End, Stuck, Before, After, PluginsTold, Begin,
    Outdated, ChildReported,
    Spoiled, AskHeld, Holding, Counts, Logged, Dispatch, Succeed, FailReport, Release, Progress, Announce, JobServers,
)  # fmt: skip
_CODES: Final[dict[type, int]] = {note: code for code, note in enumerate(NOTES)}
_packer: Any = Packer(autoreset=True, unicode_errors="replace")  # Strings of job code need not be Unicode: file names.


def pack(notes: Sequence[Any]) -> bytes:
    """Return the notes as bytes: records, with one array for each note."""
    return b"".join(_record(notes[start : start + TOGETHER_MAX]) for start in range(0, len(notes), TOGETHER_MAX))


def _record(notes: Sequence[Any]) -> bytes:
    packed: bytes = _packer.pack([(_CODES[type(note)], note) for note in notes])
    size = len(packed)
    return _HEAD.pack(size, size ^ _ALL_BITS, crc32(packed)) + packed


class NoteReader:
    """A reader that cuts a stream of bytes into notes; it limits the bytes of a record."""

    def __init__(self, bytes_max: int = _ALL_BITS) -> None:
        self._bytes_max = bytes_max
        self._data = bytearray()

    @property
    def has_part(self) -> bool:
        """True while a record has arrived in part."""
        return bool(self._data)

    def feed(self, data: bytes | memoryview) -> list[Any]:
        """Take the bytes that arrived; return the complete notes.

        Raises:
            Exception: The peer does not send notes.
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
