"""The truth of the SQLite store: what was enqueued, and what has changed since, each appended in rows that fill a page.

`jobs` has the records of jobs as they were enqueued, those of consecutive seqs in one row, with their params, which are not
written again. `changes` has a record of each later state, also that a job is forgotten. Neither is touched again until half of
a row is past: then it is written once more without that, or removed. So a change costs its bytes and not a page, whichever
job it is about. Every record ends with a checksum.

Read without anything else: a change counts if the job's record is there and has a lower version; the highest one is the job.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.errors import StoreCorrupt
from givalia_core.model import JOB_DEFAULTS, JOB_FIELDS, STORED_STATES, Answered, Job
from givalia_core.store.sqlite.index.slots import Place
from givalia_core.store.sqlite.index.words import Damaged

_PAGE_BYTES: Final = 3_900  # What a row may take and still fit a page.
_ROW_RECORDS: Final = 64
_BYTE: Final = 0xFF
_CRC_BYTES: Final = 4

_RESULT: Final = JOB_FIELDS.index("result")
_STATE: Final = JOB_FIELDS.index("state")
_ANSWERED: Final = JOB_FIELDS.index("answered")
_STATES: Final = {str(state): state for state in STORED_STATES}
_DEFAULTS: Final = JOB_DEFAULTS[:_RESULT]

_pack = msgpack.Packer(autoreset=True).pack


class Forgotten(NamedTuple):
    """The record that a job is forgotten; its slot in the index then is a hint."""

    seq: int
    version: int
    slot: int


# Records.


def pack_change(job: Job) -> bytes:
    """A job as it is now, but for its params."""
    packed: bytes = _pack(job.front())
    return packed + zlib.crc32(packed).to_bytes(_CRC_BYTES, "little")


def pack_base(job: Job) -> bytes:
    """A job as it was enqueued, but for its params, which stand behind it; the checksum is over both."""
    packed: bytes = _pack(job.front())
    return packed + zlib.crc32(job.params, zlib.crc32(packed)).to_bytes(_CRC_BYTES, "little")


def pack_forgotten(forgotten: Forgotten) -> bytes:
    """The record that a job is forgotten."""
    packed: bytes = _pack(tuple(forgotten))
    return packed + zlib.crc32(packed).to_bytes(_CRC_BYTES, "little")


def unpack(record: bytes | None, params: bytes | None = None) -> Job | Forgotten:
    """Return what a record says; with `params` it is one of an enq.

    Raises:
        StoreCorrupt: It is not what was written.
    """
    if not isinstance(record, bytes) or not isinstance(params, bytes | None):
        raise StoreCorrupt("a record is none")
    packed = record[:-_CRC_BYTES]
    if zlib.crc32(params or b"", zlib.crc32(packed)).to_bytes(_CRC_BYTES, "little") != record[-_CRC_BYTES:]:
        raise StoreCorrupt("a record does not match its checksum")
    fields = msgpack.unpackb(packed, use_list=False)
    if len(fields) == len(Forgotten._fields):
        return Forgotten(*fields)
    *front, result, specifier = fields
    front += _DEFAULTS[len(front) :]  # What fields are for that are younger than the record.
    front[_STATE] = _STATES[front[_STATE]]
    front[_ANSWERED] = tuple([Answered(*past) for past in front[_ANSWERED]])
    values = (*front, result, specifier, params or b"")
    return Job(*values)


def likely_seq(record: object) -> int | None:
    """Return the seq that a record seems to have which does not match its checksum; None if it cannot be read at all."""
    with contextlib.suppress(Exception):  # Whatever the bytes are, a hint is all that is wanted.
        unpacker: Any = msgpack.Unpacker()
        unpacker.feed(record)
        if unpacker.read_array_header():
            seq = unpacker.unpack()
            return seq if type(seq) is int else None
    return None


# Rows.


class Row(NamedTuple):
    """A row of either table: its number, and its records (None where one is past); for `jobs` each with its params.

    Of a row that cannot be read, `raw` has the bytes, and there are no records.
    """

    number: int
    records: list[Any]
    raw: bytes | None = None


OnBad = Callable[[int, int, str], None]
"""Is told of a record that is not what was written: the row, the place in it (-1: the whole row), and the reason."""


def base_rows(jobs: Sequence[Job]) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Rows for new jobs, which are in the order of their seqs, and for each job where its record is."""
    rows: list[tuple[int, bytes]] = []
    places: list[int] = []
    some: list[bytes] = []
    first = size = 0
    for job in jobs:
        record = pack_base(job)
        length = len(record) + len(job.params) + 8
        count = len(some) // 2
        if some and (job.seq != first + count or size + length > _PAGE_BYTES or count == _ROW_RECORDS):
            rows.append((first, _pack(some)))
            places += [first << 8 | count] * count
            some, size = [], 0
        if not some:
            first = job.seq
        some += (record, job.params)
        size += length
    if some:
        rows.append((first, _pack(some)))
        places += [first << 8 | len(some) // 2] * (len(some) // 2)
    return rows, places


def change_rows(records: Sequence[bytes], last: int) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Rows for records of changes, numbered from behind `last`, and for each record where it is."""
    rows: list[tuple[int, bytes]] = []
    places: list[int] = []
    some: list[bytes] = []
    size = 0

    def close_row() -> None:
        number, count = last + len(rows) + 1, len(some)
        rows.append((number, _pack(some)))
        places.extend([number << 16 | place << 8 | count for place in range(count)])

    for record in records:
        length = len(record) + 4
        if some and (size + length > _PAGE_BYTES or len(some) == _ROW_RECORDS):
            close_row()
            some, size = [], 0
        some.append(record)
        size += length
    if some:
        close_row()
    return rows, places


def number_of(place: int) -> int:
    """The row of `changes` that has this place."""
    return place >> 16


class Records:
    """Both tables. What writes is called within a transaction."""

    def __init__(self, connection: Callable[[], sqlite3.Connection]) -> None:
        """Take what knows the connection, which is open while anything is called."""
        self._connect = connection

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._connect()

    def read(self, places: Iterable[Place], bad: dict[int, str] | None = None) -> dict[int, Job]:
        """Return the jobs at these places, by seq; those whose records are gone are absent.

        Args:
            places: Where the records are.
            bad: Takes the seqs of the jobs whose records are not what was written, with the reason.

        Raises:
            StoreCorrupt: A record is not what was written, and `bad` is None.
        """
        wanted = list(places)
        bases = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {place.base >> 8 for place in wanted})
        changes = self._rows("SELECT number, records FROM changes WHERE number IN", {p.at >> 16 for p in wanted if p.at})
        found: dict[int, Job] = {}
        for place in wanted:
            try:
                job = _job_at(place, bases.get(place.base >> 8), changes.get(place.at >> 16) if place.at else None)
            except StoreCorrupt as error:
                if bad is None:
                    raise
                bad[place.seq] = str(error)
            else:
                if job is not None:
                    found[place.seq] = job
        return found

    def _rows(self, select: str, numbers: set[int]) -> dict[int, Any]:
        """Return the records of rows; of a row that cannot be read, the bytes."""
        found: dict[int, Any] = {}
        left = list(numbers)
        while left:
            size = next((size for size in (1, 16, 256) if size >= len(left)), 256)
            chunk, left = left[:size], left[size:]
            chunk += chunk[-1:] * (size - len(chunk))
            for number, records in self._connection.execute(f"{select} ({','.join('?' * size)})", chunk):
                try:
                    found[number] = _unpacked(records)
                except StoreCorrupt:
                    found[number] = records
        return found

    def forgets(self, places: Iterable[int]) -> dict[int, int]:
        """Return the seqs of the jobs that the records at these places say are forgotten, by place."""
        wanted = list(places)
        rows = self._rows("SELECT number, records FROM changes WHERE number IN", {place >> 16 for place in wanted})
        found: dict[int, int] = {}
        for place in wanted:
            with contextlib.suppress(StoreCorrupt, LookupError, TypeError):
                record = unpack(rows[place >> 16][place >> 8 & _BYTE])
                if isinstance(record, Forgotten):
                    found[place] = record.seq
        return found

    def have_bases(self, seqs: Iterable[int]) -> set[int]:
        """Return the seqs of which the record of the enq is there, whatever the index says."""
        rows: dict[int, set[int]] = {}
        for seq in set(seqs):
            rows.setdefault(self.first_at_or_before(seq), set()).add(seq)
        found = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", set(rows))
        return {seq for first, of_row in rows.items() for seq in of_row if _has_base(found.get(first), first, seq)}

    def append(self, jobs: Sequence[tuple[int, bytes]], changes: Sequence[tuple[int, bytes]]) -> None:
        """Write new rows."""
        if jobs:
            self._connection.executemany("INSERT INTO jobs VALUES (?, ?)", jobs)
        if changes:
            self._connection.executemany("INSERT INTO changes VALUES (?, ?)", changes)

    def replace(self, base: int, job: Job) -> None:
        """Write the record of a job's enq again, with other params.

        Raises:
            StoreCorrupt: What is at `base` is not the record of this job; it stays.
        """
        first = base >> 8
        found = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first}).get(first)
        if _job_at(Place(job.seq, base, 0), found, None) is None:
            raise StoreCorrupt(f"the record of job {job.seq} is gone")
        records = _list(found)
        place = 2 * (job.seq - first)
        records[place : place + 2] = pack_base(job), job.params
        self._connection.execute("UPDATE jobs SET records = ? WHERE first_seq = ?", (_pack(records), first))

    def take_out(self, place: Place) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Take a job's records out of their rows: that of its enq, its params, and its newest change; None for each that cannot
        be taken out. A row that cannot be read stays as it is.
        """
        first, number = place.base >> 8, place.at >> 16
        base = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first}).get(first)
        change = self._rows("SELECT number, records FROM changes WHERE number IN", {number}).get(number)
        taken: list[Any] = [None, None, None]
        at = 2 * (place.seq - first)
        if isinstance(base, list) and 0 <= at < len(base) - 1 and not _is_of_another(base[at], base[at + 1], place.seq):
            taken[:2], base[at : at + 2] = base[at : at + 2], (None, None)
            self._connection.execute("UPDATE jobs SET records = ? WHERE first_seq = ?", (_pack(base), first))
        at = place.at >> 8 & _BYTE
        if place.at and isinstance(change, list) and at < len(change) and not _is_of_another(change[at], None, place.seq):
            taken[2], change[at] = change[at], None
            self._connection.execute("UPDATE changes SET records = ? WHERE number = ?", (_pack(change), number))
        blobs = [blob if isinstance(blob, bytes) else None for blob in taken]
        return blobs[0], blobs[1], blobs[2]

    def drop_jobs(self, rows: Sequence[tuple[int, Iterable[int]]]) -> list[int]:
        """Take these seqs out of rows of `jobs`; returns the rows that are removed thereby."""
        found = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first for first, _ in rows})
        gone: list[tuple[int]] = []
        kept: list[tuple[bytes, int]] = []
        for first, seqs in rows:
            records = found.get(first)
            if not isinstance(records, list):
                continue
            for seq in seqs:
                records[2 * (seq - first) : 2 * (seq - first) + 2] = None, None
            if any(record is not None for record in records):
                kept.append((_pack(records), first))
            else:
                gone.append((first,))
        self._connection.executemany("DELETE FROM jobs WHERE first_seq = ?", gone)
        self._connection.executemany("UPDATE jobs SET records = ? WHERE first_seq = ?", kept)
        return [first for (first,) in gone]

    def drop_changes(self, full: Sequence[int], half: Sequence[tuple[int, int]]) -> None:
        """Remove rows of `changes`, and take the records with these bits out of others."""
        self._connection.executemany("DELETE FROM changes WHERE number = ?", [(number,) for number in full])
        found = self._rows("SELECT number, records FROM changes WHERE number IN", {number for number, _ in half})
        kept: list[tuple[bytes, int]] = []
        for number, bits in half:
            if isinstance(records := found.get(number), list):
                slim = [None if bits >> place & 1 else record for place, record in enumerate(records)]
                kept.append((_pack(slim), number))
        self._connection.executemany("UPDATE changes SET records = ? WHERE number = ?", kept)

    def bases(self, after: int, limit: int = -1) -> Iterator[Row]:
        """Return rows of `jobs` whose first seq is above this one, in order."""
        select = "SELECT first_seq, records FROM jobs WHERE first_seq > ? ORDER BY first_seq LIMIT ?"
        return (row_of(number, records) for number, records in self._connection.execute(select, (after, limit)))

    def changes(self, after: int, limit: int = -1) -> Iterator[Row]:
        """Return rows of `changes` above this number, in order."""
        select = "SELECT number, records FROM changes WHERE number > ? ORDER BY number LIMIT ?"
        return (row_of(number, records) for number, records in self._connection.execute(select, (after, limit)))

    def first_at_or_before(self, seq: int) -> int:
        """The row of `jobs` that a seq would be in; 0 if all begin behind it."""
        (first,) = self._connection.execute("SELECT max(first_seq) FROM jobs WHERE first_seq <= ?", (seq,)).fetchone()
        return int(first or 0)


def _job_at(place: Place, base: Any, change: Any) -> Job | None:
    """Return the job of a place whose rows were read; None if its record is gone.

    Raises:
        StoreCorrupt: A record is not what was written.
        Damaged: The records are sound, and are not those of this job: the place is wrong.
    """
    if base is None:
        return None
    offset, number = 2 * (place.seq - (place.base >> 8)), place.at >> 8 & _BYTE
    records = _list(base)
    if not 0 <= offset < len(records) - 1:
        raise Damaged(f"job {place.seq} is not in the row where it should be")
    record, params = records[offset : offset + 2]
    if record is None:
        return None
    first = changed = unpack(record, params)
    if place.at:
        records = [] if change is None else _list(change)
        if number >= len(records) or records[number] is None:
            raise Damaged(f"job {place.seq} has no record where its newest one should be")
        changed = unpack(records[number])
    if not isinstance(first, Job) or not isinstance(changed, Job) or first.seq != place.seq or changed.seq != place.seq:
        raise Damaged(f"the record of job {place.seq} is that of another")
    return changed.changed(params=params) if place.at and params else changed


def _is_of_another(record: Any, params: Any, seq: int) -> bool:
    """Return whether a record is sound and another job's."""
    with contextlib.suppress(StoreCorrupt):
        return unpack(record, params).seq != seq
    return False


def _list(records: Any) -> list[Any]:
    if not isinstance(records, list):
        raise StoreCorrupt("a row of records cannot be read")
    return records


def _has_base(records: Any, first: int, seq: int) -> bool:
    """Return whether a row may have the record of a job's enq; one that cannot be read may."""
    if records is None:
        return False
    if not isinstance(records, list):
        return True
    place = 2 * (seq - first)
    return place < len(records) and records[place] is not None


def _unpacked(records: bytes) -> list[Any]:
    try:
        unpacked = msgpack.unpackb(records)
    except ValueError as error:
        raise StoreCorrupt(f"a row of records cannot be read: {error}") from error
    if not isinstance(unpacked, list):
        raise StoreCorrupt("a row of records is none")
    return unpacked


def row_of(number: int, records: bytes) -> Row:
    """Return a row as it was read from a table."""
    try:
        return Row(number, _unpacked(records))
    except StoreCorrupt:
        return Row(number, [], records)


def jobs_of(row: Row, on_bad: OnBad | None = None) -> Iterator[Job]:
    """Yield the jobs of a row of `jobs` as they were enqueued, leaving out the bad ones that `on_bad` is told of.

    Raises:
        StoreCorrupt: A record is not what was written, and `on_bad` is None.
    """
    for place, record, params in _parts(row, on_bad):
        try:
            job = unpack(record, params)
            if not isinstance(job, Job) or job.seq != row.number + place:
                raise StoreCorrupt(f"the record of job {row.number + place} is that of another")
        except StoreCorrupt as error:
            if on_bad is None:
                raise
            on_bad(row.number, place, str(error))
        else:
            yield job


def _parts(row: Row, on_bad: OnBad | None) -> Iterator[tuple[int, bytes, bytes]]:
    if row.raw is not None or len(row.records) % 2:
        if on_bad is None:
            raise StoreCorrupt(f"row {row.number} of the records cannot be read")
        on_bad(row.number, -1, "the row cannot be read")
        return
    for place, (record, params) in enumerate(zip(row.records[::2], row.records[1::2], strict=True)):
        if record is not None:
            yield place, record, params


def changes_of(row: Row, on_bad: OnBad | None = None) -> Iterator[tuple[int, Job | Forgotten]]:
    """Yield the records of a row of `changes` that are not past, each with its place, leaving out the bad ones.

    Raises:
        StoreCorrupt: A record is not what was written, and `on_bad` is None.
    """
    size = len(row.records)
    if row.raw is not None:
        if on_bad is None:
            raise StoreCorrupt(f"row {row.number} of the changes cannot be read")
        on_bad(row.number, -1, "the row cannot be read")
    for place, record in enumerate(row.records):
        if record is not None:
            try:
                told = unpack(record)
            except StoreCorrupt as error:
                if on_bad is None:
                    raise
                on_bad(row.number, place, str(error))
            else:
                yield row.number << 16 | place << 8 | size, told
