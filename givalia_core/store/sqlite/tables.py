"""Both tables of records of the SQLite store: jobs as they were enqueued, and their changes since.

`jobs` has the records of jobs as they were enqueued, those of consecutive seqs in one row, with their params, which changes do
not repeat. `changes` has a record of each later state, and of each forgetting. A row is not touched again until half of it is
past: then it is rewritten without its past records, or removed. So a change costs its bytes and not a page, for any job.

The tables alone tell each job: a change counts if the job's record is there and has a lower version; the highest version wins.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgpack

from givalia_core.errors import StoreCorrupt
from givalia_core.model import Job
from givalia_core.store.sqlite.places import (
    Damaged,
    Place,
    base_row,
    change_at,
    change_number,
    change_row,
)
from givalia_core.store.sqlite.records import Forgotten, pack_base, unpack

_pack = msgpack.Packer(autoreset=True).pack


class Row(NamedTuple):
    """A row of either table: its number, and its records (None where one is past); for `jobs` each with its params.

    If the row cannot be read, `raw` has the bytes, and there are no records.
    """

    number: int
    records: list[Any]
    raw: bytes | None = None


OnBad = Callable[[int, int, str], None]
"""A function that is called for each bad record, with the row, the place in the row (-1: the whole row), and the reason."""


class Records:
    """Both tables. Methods that write are called within a transaction."""

    def __init__(self, connection: Callable[[], sqlite3.Connection]) -> None:
        """Take the function that returns the connection, which is open during each call."""
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
        bases = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {base_row(place.base) for place in wanted})
        changes = self._rows(
            "SELECT number, records FROM changes WHERE number IN", {change_row(place.at) for place in wanted if place.at}
        )
        found: dict[int, Job] = {}
        for place in wanted:
            try:
                job = _job_at(place, bases.get(base_row(place.base)), changes.get(change_row(place.at)) if place.at else None)
            except StoreCorrupt as error:
                if bad is None:
                    raise
                bad[place.seq] = str(error)
            else:
                if job is not None:
                    found[place.seq] = job
        return found

    def _rows(self, select: str, numbers: set[int]) -> dict[int, Any]:
        """Return the records of rows; for a row that cannot be read, its bytes."""
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
        rows = self._rows("SELECT number, records FROM changes WHERE number IN", {change_row(place) for place in wanted})
        found: dict[int, int] = {}
        for place in wanted:
            with contextlib.suppress(StoreCorrupt, LookupError, TypeError):
                record = unpack(rows[change_row(place)][change_number(place)])
                if isinstance(record, Forgotten):
                    found[place] = record.seq
        return found

    def have_bases(self, seqs: Iterable[int]) -> set[int]:
        """Return the seqs whose enq record is there, whatever the index says."""
        rows: dict[int, set[int]] = {}
        for seq in set(seqs):
            rows.setdefault(self.first_at_or_before(seq), set()).add(seq)
        found = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", set(rows))
        return {seq for first, of_row in rows.items() for seq in of_row if _has_base(found.get(first), first, seq)}

    def replace(self, base: int, job: Job) -> None:
        """Rewrite the enq record of a job, with other params.

        Raises:
            StoreCorrupt: The record at `base` is not this job's; it stays.
        """
        first = base_row(base)
        found = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first}).get(first)
        if _job_at(Place(job.seq, base, 0), found, None) is None:
            raise StoreCorrupt(f"the record of job {job.seq} is gone")
        records = _list(found)
        place = 2 * (job.seq - first)
        records[place : place + 2] = pack_base(job), job.params
        self._connection.execute("UPDATE jobs SET records = ? WHERE first_seq = ?", (_pack(records), first))

    def take_out(self, place: Place) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Take a job's enq record, params and newest change out of their rows and return them; None for each that cannot be
        taken out. A row that cannot be read stays as it is.
        """
        first, number = base_row(place.base), change_row(place.at)
        base = self._rows("SELECT first_seq, records FROM jobs WHERE first_seq IN", {first}).get(first)
        change = self._rows("SELECT number, records FROM changes WHERE number IN", {number}).get(number)
        taken: list[Any] = [None, None, None]
        at = 2 * (place.seq - first)
        if isinstance(base, list) and 0 <= at < len(base) - 1 and not _is_of_another(base[at], base[at + 1], place.seq):
            taken[:2], base[at : at + 2] = base[at : at + 2], (None, None)
            self._connection.execute("UPDATE jobs SET records = ? WHERE first_seq = ?", (_pack(base), first))
        at = change_number(place.at)
        if place.at and isinstance(change, list) and at < len(change) and not _is_of_another(change[at], None, place.seq):
            taken[2], change[at] = change[at], None
            self._connection.execute("UPDATE changes SET records = ? WHERE number = ?", (_pack(change), number))
        blobs = [blob if isinstance(blob, bytes) else None for blob in taken]
        return blobs[0], blobs[1], blobs[2]

    def drop_jobs(self, rows: Sequence[tuple[int, Iterable[int]]]) -> list[int]:
        """Take these seqs out of rows of `jobs`; return the rows that are removed thereby."""
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
        """Return the row of `jobs` that a seq would be in; 0 if all rows begin behind the seq."""
        (first,) = self._connection.execute("SELECT max(first_seq) FROM jobs WHERE first_seq <= ?", (seq,)).fetchone()
        return int(first or 0)


def _job_at(place: Place, base: Any, change: Any) -> Job | None:
    """Return the job of a place whose rows were read; None if its record is gone.

    Raises:
        StoreCorrupt: A record is not what was written.
        Damaged: The records are sound, but another job's, or not where they should be: the place is wrong.
    """
    if base is None:
        return None
    offset, number = 2 * (place.seq - base_row(place.base)), change_number(place.at)
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
    """Return whether a row may have a job's enq record; a row that cannot be read may."""
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
                yield change_at(row.number, place, size), told
