"""The form of an export: a stream of records, each with a checksum that runs on over all records before it.

A header says which version wrote the stream and what the store counted, records of jobs follow in order of seq, and a footer
ends the stream. So a lost end, byte or record is noticed, and `ExportReader` yields no part of a record before its checksum
proved it. The code holds at most one record in memory, and knows no store. `docs/export-format.md` describes the format.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import index
from typing import Any, BinaryIO, Final, NamedTuple, TypeVar

import msgpack

from givalia_core.clock import Mark
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreTooNew
from givalia_core.model import JOB_DEFAULTS, JOB_FIELDS, JOB_REQUIRED, STORED_STATES, Answered, Job, JobState
from givalia_core.version import __version__

MAGIC: Final = "givalia-export"
FORMAT: Final = 1
RECORD_JOBS: Final = 1_000
RECORD_BYTES: Final = 4 << 20  # A record ends before it gets larger, unless a single job is.
_READ_BYTES_MAX: Final = 64 << 20  # So that a damaged length takes no memory.
_STATES: Final = {str(state): state for state in STORED_STATES}
_REQUIRED: Final = frozenset(JOB_FIELDS[:JOB_REQUIRED])
_STATE, _ANSWERED = JOB_FIELDS.index("state"), JOB_FIELDS.index("answered")

_packer = msgpack.Packer(autoreset=True)
_pack = _packer.pack
T = TypeVar("T")


class Header(NamedTuple):
    """The beginning of an export: the clocks at that moment, the mark that the store kept, and how many jobs it counted."""

    timer_us: int
    wall_us: int
    mark: Mark | None
    counts: dict[tuple[str, JobState], int]
    version: str = __version__


class Footer(NamedTuple):
    """The end of an export: how many jobs it holds, and a seq and a fence above all that its store gave out."""

    jobs: int
    seq: int
    fence: int


class Tally:
    """A count of the jobs of an export: they must come in order of seq, and be as many as the header says."""

    def __init__(self) -> None:
        self.jobs = self.seq = self.fence = 0
        self._counts: Counter[tuple[str, JobState]] = Counter()

    def add(self, job: Job) -> None:
        """Count one more.

        Raises:
            StoreCorrupt: Its seq is not above that of the job before it.
        """
        if job.seq <= self.seq:
            raise StoreCorrupt(f"job {job.seq} comes behind job {self.seq}")
        self.jobs, self.seq, self.fence = self.jobs + 1, job.seq, max(self.fence, job.fence)
        self._counts[job.module, job.state] += 1

    def compare(self, counts: dict[tuple[str, JobState], int]) -> None:
        """Compare with what the store counted.

        Raises:
            StoreCorrupt: The numbers differ.
        """
        if self._counts != +Counter(counts):
            raise StoreCorrupt(f"the store counts {sum(counts.values())} jobs and lists {self.jobs}, or others")


class ExportWriter:
    """A writer of one export to a file; the caller flushes and syncs the file."""

    def __init__(self, file: BinaryIO, header: Header, record_jobs: int = RECORD_JOBS) -> None:
        """Write the header; the methods raise OSError as the file does."""
        self._file, self._header, self._record_jobs = file, header, record_jobs
        self._crc = self._row_bytes = 0
        self._rows: list[bytes] = []
        self._tally = Tally()
        mark = header.mark._asdict() if header.mark else None
        counts = [(*name, count) for name, count in header.counts.items()]
        shown = {**header._asdict(), "mark": mark, "counts": counts, "fields": JOB_FIELDS}
        self._write(_pack({"magic": MAGIC, "format": FORMAT, **shown}))

    def add(self, job: Job) -> None:
        """Write one job, at the latest with the end of its record.

        Raises:
            StoreCorrupt: The jobs do not come in order of seq.
        """
        self._tally.add(job)
        row = _pack((*job.front(), job.params))
        if len(self._rows) == self._record_jobs or self._row_bytes + len(row) > RECORD_BYTES:
            self._end_record()
        self._rows.append(row)
        self._row_bytes += len(row)

    def end(self, seq: int, fence: int) -> Footer:
        """Write the footer, with these numbers or those of the jobs, whichever are higher.

        Raises:
            StoreCorrupt: These were not the jobs that the store had counted; no footer is written.
        """
        tally = self._tally
        tally.compare(self._header.counts)
        self._end_record()
        footer = Footer(tally.jobs, max(seq, tally.seq), max(fence, tally.fence))
        self._write(_pack({"end": footer._asdict()}))
        return footer

    def _end_record(self) -> None:
        if self._rows:
            self._write(_packer.pack_array_header(len(self._rows)) + b"".join(self._rows))
            self._rows, self._row_bytes = [], 0

    def _write(self, body: bytes) -> None:
        self._crc = zlib.crc32(body, self._crc)
        self._file.write(_pack((body, self._crc)))


class ExportReader:
    """One reading of an export, from its header to its footer."""

    header: Header
    footer: Footer
    """The footer, set once `records` has ended."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the header.

        Raises:
            StoreCorrupt, StoreFailed: This is no export, it is damaged, or it cannot be read.
            StoreTooNew: A later Givalia wrote it.
        """
        # A record is an array of two, bytes and a number; the limits refuse anything else that damage makes of it.
        self._unpacker = msgpack.Unpacker(
            file, use_list=False, max_buffer_size=_READ_BYTES_MAX, max_array_len=2, max_map_len=0, max_str_len=0, max_ext_len=0
        )
        self._crc = 0
        self._tally = Tally()
        self._places: list[int] = []  # Where in a `Job` each value of a row belongs.
        self.header = self._checked(self._header, self._next())

    def records(self) -> Iterator[list[Job]]:
        """Yield the jobs, record by record; after the last one, the footer has been read and its numbers are proved.

        Raises:
            StoreCorrupt, StoreFailed: As above; all records before this one were sound, and the export is not whole.
        """
        while True:
            body = self._next()
            if isinstance(body, dict):
                self.footer = self._checked(lambda end: Footer(**end["end"]), body)
                return self._end()
            yield self._checked(self._jobs, body)

    def _end(self) -> None:
        tally, footer = self._tally, self.footer
        tally.compare(self.header.counts)
        if footer.jobs != tally.jobs or footer.seq < tally.seq or footer.fence < tally.fence:
            raise StoreCorrupt("the end of the export does not fit the jobs before it")
        if self._read(lambda: self._unpacker.read_bytes(1)):
            raise StoreCorrupt("something follows the end of the export")

    def _next(self) -> Any:
        """Return the next record, unpacked, once its checksum proved it."""
        record = self._read(self._unpacker.unpack)
        if not (isinstance(record, tuple) and list(map(type, record)) == [bytes, int]):
            raise StoreCorrupt("this is not an export of Givalia" if not self._crc else f"damaged {self._place()}")
        body, crc = record
        self._crc = zlib.crc32(body, self._crc)
        if crc != self._crc:
            raise StoreCorrupt(f"a checksum differs {self._place()}")
        return self._checked(lambda packed: msgpack.unpackb(packed, use_list=False), body)

    def _read(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except msgpack.OutOfData:
            raise StoreCorrupt(f"the export ends {self._place()} and has no end record: a part of it is missing") from None
        except (ValueError, msgpack.UnpackException):
            raise StoreCorrupt(f"damaged {self._place()}, or not an export of Givalia") from None
        except OSError as error:
            raise StoreFailed(f"the export cannot be read {self._place()}: {error}") from error

    def _checked(self, make: Callable[[Any], T], body: Any) -> T:
        """Return the content of a sound record; one that breaks this format was never written by Givalia."""
        try:
            return make(body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StoreCorrupt(f"a record that Givalia did not write {self._place()}: {error!r}") from error

    def _place(self) -> str:
        return f"behind job {self._tally.seq}" if self._tally.seq else "at its beginning"

    def _header(self, body: Any) -> Header:
        if not isinstance(body, dict) or body.get("magic") != MAGIC:
            raise StoreCorrupt("this is not an export of Givalia")
        unknown = sorted(set(body["fields"]) - set(JOB_FIELDS))
        if body["format"] > FORMAT or unknown:
            says = f"format {body['format']}" + (f" and the fields {', '.join(unknown)}" if unknown else "")
            raise StoreTooNew(f"the export was written by Givalia {body['version']}: {says} are not known here")
        if missing := sorted(_REQUIRED - set(body["fields"])):
            raise StoreCorrupt(f"the jobs of the export have no {', '.join(missing)}")
        self._places = [JOB_FIELDS.index(name) for name in body["fields"]]
        timer_us, wall_us = index(body["timer_us"]), index(body["wall_us"])
        mark = Mark(*[body["mark"][name] for name in Mark._fields]) if body["mark"] else None
        counts = {(module, _STATES[state]): count for module, state, count in body["counts"]}
        return Header(timer_us, wall_us, mark, counts, body["version"])

    def _jobs(self, rows: Iterable[tuple[Any, ...]]) -> list[Job]:
        jobs = [self._job(row) for row in rows]
        for job in jobs:
            self._tally.add(job)
        return jobs

    def _job(self, row: tuple[Any, ...]) -> Job:
        values: list[Any] = list(JOB_DEFAULTS)
        for place, value in zip(self._places, row, strict=True):
            values[place] = value
        values[_STATE] = _STATES[values[_STATE]]
        values[_ANSWERED] = tuple([Answered(*past) for past in values[_ANSWERED]])
        return Job(*values)
