"""The truth of the SQLite store: what was enqueued, and what has changed since, each appended in rows that fill a page.

`jobs` has the records of jobs as they were enqueued, those of consecutive seqs in one row, with their params, which are not
written again. `changes` has a record of each later state, also that a job is forgotten. Neither is touched again until half of
a row is past: then it is written once more without that, or removed. So a change costs its bytes and not a page, whichever
job it is about. Every record ends with a checksum.

Read without anything else: a change counts if the job's record is there and has a lower version; the highest one is the job.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.errors import StoreCorrupt
from givalia_core.model import STORED_STATES, Answered, Job

_PAGE_BYTES: Final = 3_900  # What a row may take and still fit a page.
_ROW_RECORDS: Final = 64
_BYTE: Final = 0xFF
_CRC_BYTES: Final = 4

_RESULT: Final = Job._fields.index("result")
_STATE: Final = Job._fields.index("state")
_ANSWERED: Final = Job._fields.index("answered")
_STATES: Final = {str(state): state for state in STORED_STATES}
_DEFAULTS: Final = [Job._field_defaults.get(name) for name in Job._fields[:_RESULT]]

_pack = msgpack.Packer(autoreset=True).pack


class Forgotten(NamedTuple):
    """The record that a job is forgotten; its slot in the index then is a hint."""

    seq: int
    version: int
    slot: int


class Place(NamedTuple):
    """Where the records of a job are: the one of its enq, and the newest change, 0 if there is none."""

    seq: int
    base: int
    at: int


# Records.


def pack_change(job: Job) -> bytes:
    """A job as it is now, but for its params."""
    packed: bytes = _pack(job[:-1])
    return packed + zlib.crc32(packed).to_bytes(_CRC_BYTES, "little")


def pack_base(job: Job) -> bytes:
    """A job as it was enqueued, but for its params, which stand behind it; the checksum is over both."""
    packed: bytes = _pack(job[:-1])
    return packed + zlib.crc32(job.params, zlib.crc32(packed)).to_bytes(_CRC_BYTES, "little")


def pack_forgotten(forgotten: Forgotten) -> bytes:
    """The record that a job is forgotten."""
    packed: bytes = _pack(tuple(forgotten))
    return packed + zlib.crc32(packed).to_bytes(_CRC_BYTES, "little")


def unpack(record: bytes, params: bytes | None = None) -> Job | Forgotten:
    """What a record says; with `params` it is one of an enq.

    Raises:
        StoreCorrupt: It is not what was written.
    """
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
    return Job._make((*front, result, specifier, params or b""))


# Rows.


class Row(NamedTuple):
    """A row of either table: its number, and its records (None where one is past); for `jobs` each with its params."""

    number: int
    records: list[Any]


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


class Past:
    """Which records are past, by row, until the rows are written anew: once when half of it is past, once when all is."""

    def __init__(self) -> None:
        self._changes: dict[int, int] = {}  # Row -> bits, one for each record.
        self._jobs: dict[int, int] = {}
        self._slots: dict[int, list[int]] = {}  # Row of jobs -> slots of forgotten ones whose records are still there.
        self._full_changes: list[int] = []
        self._half_changes: list[int] = []
        self._ripe_jobs: list[int] = []

    def __len__(self) -> int:
        return len(self._full_changes) + len(self._half_changes) + len(self._ripe_jobs)

    def add_change(self, place: int) -> None:
        """The record at this place is past."""
        row, bit, size = place >> 16, 1 << (place >> 8 & _BYTE), place & _BYTE
        before = self._changes.get(row, 0)
        bits = self._changes[row] = before | bit
        if bits != before:
            past = bits.bit_count()
            if past == size:
                self._full_changes.append(row)
            elif past == (size + 1) // 2:
                self._half_changes.append(row)

    def add_job(self, seq: int, base: int, slot: int | None) -> None:
        """The job whose first record is at `base` is forgotten; without a slot the record is gone already."""
        row, size = base >> 8, base & _BYTE
        before = self._jobs.get(row, 0)
        bits = self._jobs[row] = before | 1 << (seq - row)
        if slot is not None:
            self._slots.setdefault(row, []).append(slot)
        if bits != before and bits.bit_count() in (size, (size + 1) // 2):
            self._ripe_jobs.append(row)

    def take_jobs(self, limit: int) -> list[tuple[int, list[int]]]:
        """Rows of `jobs` to write anew, with the slots of what is past in them."""
        taken, self._ripe_jobs = self._ripe_jobs[:limit], self._ripe_jobs[limit:]
        return [(row, self._slots.pop(row)) for row in taken if row in self._slots]

    def is_gone(self, row: int) -> None:
        """A row of `jobs` was removed."""
        self._jobs.pop(row, None)

    def take_changes(self, limit: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Rows of `changes` that are past altogether, and some of those that are half past, with the bits of what is."""
        full, self._full_changes = self._full_changes[: 16 * limit], self._full_changes[16 * limit :]
        for row in full:
            self._changes.pop(row, None)
        taken, self._half_changes = self._half_changes[:limit], self._half_changes[limit:]
        return full, [(row, self._changes[row]) for row in taken if row in self._changes]

    def put_back(self, jobs: list[tuple[int, list[int]]], full: list[int], half: list[tuple[int, int]]) -> None:
        """What was taken could not be written."""
        for row, slots in jobs:
            self._slots.setdefault(row, []).extend(slots)
            self._ripe_jobs.append(row)
        self._full_changes += full
        self._half_changes += [row for row, _ in half]


class Records:
    """Both tables. What writes is called within a transaction."""

    def __init__(self, connection: Callable[[], sqlite3.Connection]) -> None:
        """Take what knows the connection, which is open while anything is called."""
        self._connect = connection

    @property
    def _connection(self) -> sqlite3.Connection:
        return self._connect()

    def read(self, places: Iterable[Place]) -> dict[int, Job]:
        """The jobs at these places, by seq; those whose records are gone are absent."""
        wanted = list(places)
        bases = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {place.base >> 8 for place in wanted})
        changes = self._rows("SELECT number, records FROM changes WHERE number IN", {p.at >> 16 for p in wanted if p.at})
        found: dict[int, Job] = {}
        for seq, base, at in wanted:
            first = base >> 8
            row = bases.get(first)
            if row is None or row[2 * (seq - first)] is None:
                continue
            params = row[2 * (seq - first) + 1]
            job = unpack(changes[at >> 16][at >> 8 & _BYTE]) if at else unpack(row[2 * (seq - first)], params)
            if not isinstance(job, Job) or job.seq != seq:
                raise StoreCorrupt(f"the record of job {seq} is that of another")
            found[seq] = job._replace(params=params) if at and params else job
        return found

    def _rows(self, select: str, numbers: set[int]) -> dict[int, Any]:
        found: dict[int, Any] = {}
        left = list(numbers)
        while left:
            size = next((size for size in (1, 16, 256) if size >= len(left)), 256)
            chunk, left = left[:size], left[size:]
            chunk += chunk[-1:] * (size - len(chunk))
            for number, records in self._connection.execute(f"{select} ({','.join('?' * size)})", chunk):
                found[number] = _unpacked(records)
        return found

    def append(self, jobs: Sequence[tuple[int, bytes]], changes: Sequence[tuple[int, bytes]]) -> None:
        """Write new rows."""
        if jobs:
            self._connection.executemany("INSERT INTO jobs VALUES (?, ?)", jobs)
        if changes:
            self._connection.executemany("INSERT INTO changes VALUES (?, ?)", changes)

    def replace(self, base: int, job: Job) -> None:
        """Write the record of a job's enq anew, with other params."""
        first = base >> 8
        records = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first})[first]
        place = 2 * (job.seq - first)
        records[place : place + 2] = pack_base(job), job.params
        self._connection.execute("UPDATE jobs SET records = ? WHERE first_seq = ?", (_pack(records), first))

    def drop_jobs(self, rows: Sequence[tuple[int, Iterable[int]]]) -> list[int]:
        """Take these seqs out of rows of `jobs`; returns the rows that are removed thereby."""
        found = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first for first, _ in rows})
        gone: list[tuple[int]] = []
        kept: list[tuple[bytes, int]] = []
        for first, seqs in rows:
            records = found.get(first)
            if records is None:
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
            if (records := found.get(number)) is not None:
                slim = [None if bits >> place & 1 else record for place, record in enumerate(records)]
                kept.append((_pack(slim), number))
        self._connection.executemany("UPDATE changes SET records = ? WHERE number = ?", kept)

    def bases(self, after: int, limit: int = -1) -> Iterator[Row]:
        """Rows of `jobs` whose first seq is above this one, in order."""
        select = "SELECT first_seq, records FROM jobs WHERE first_seq > ? ORDER BY first_seq LIMIT ?"
        return (Row(number, _unpacked(records)) for number, records in self._connection.execute(select, (after, limit)))

    def changes(self, after: int, limit: int = -1) -> Iterator[Row]:
        """Rows of `changes` above this number, in order."""
        select = "SELECT number, records FROM changes WHERE number > ? ORDER BY number LIMIT ?"
        return (Row(number, _unpacked(records)) for number, records in self._connection.execute(select, (after, limit)))

    def first_at_or_before(self, seq: int) -> int:
        """The row of `jobs` that a seq would be in; 0 if all begin behind it."""
        (first,) = self._connection.execute("SELECT max(first_seq) FROM jobs WHERE first_seq <= ?", (seq,)).fetchone()
        return int(first or 0)


def _unpacked(records: bytes) -> list[Any]:
    try:
        unpacked = msgpack.unpackb(records)
    except ValueError as error:
        raise StoreCorrupt(f"a row of records cannot be read: {error}") from error
    if not isinstance(unpacked, list):
        raise StoreCorrupt("a row of records is none")
    return unpacked


def jobs_of(row: Row) -> Iterator[Job]:
    """The jobs of a row of `jobs` as they were enqueued.

    Raises:
        StoreCorrupt: A record is not what was written.
    """
    for seq, (record, params) in enumerate(zip(row.records[::2], row.records[1::2], strict=True), row.number):
        if record is not None:
            job = unpack(record, params)
            if not isinstance(job, Job) or job.seq != seq:
                raise StoreCorrupt(f"the record of job {seq} is that of another")
            yield job


def changes_of(row: Row) -> Iterator[tuple[int, Job | Forgotten]]:
    """The records of a row of `changes` that are not past, each with its place.

    Raises:
        StoreCorrupt: A record is not what was written.
    """
    size = len(row.records)
    for place, record in enumerate(row.records):
        if record is not None:
            yield row.number << 16 | place << 8 | size, unpack(record)
