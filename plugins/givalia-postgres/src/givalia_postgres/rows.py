"""Jobs as rows of PostgreSQL, and columns of many rows as the arrays that one statement takes.

A statement over a thousand jobs takes an array for each column. This module packs the arrays, in the binary form of the
protocol, at a fraction of the cost of adapting each value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from givalia_core.errors import StoreCorrupt
from givalia_core.model import Job
from givalia_core.store import packing
from givalia_core.store.packing import HEAD, NUMBER
from psycopg.adapt import Buffer, Dumper, Loader, Transformer
from psycopg.pq import Format

from givalia_postgres import checksums

COLUMNS: Final = (
    "seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us,"
    " version, record, params, result, keeper, stop_asked"
)
RECORD: Final = HEAD
"""The place of the record; params and result follow it."""
WIDTH: Final = HEAD + 5

_BOOL, _BYTEA, _INT8, _INT2, _TEXT, _UUID = 16, 17, 20, 21, 25, 2950
_ARRAY_OF: Final = {_BOOL: 1000, _BYTEA: 1001, _INT8: 1016, _INT2: 1005, _TEXT: 1009, _UUID: 2951}
_NULL: Final = struct.pack(">i", -1)
_length: Final = struct.Struct(">i").pack
_int8: Final = struct.Struct(">iq").pack
_int2: Final = struct.Struct(">ih").pack
_flags: Final = {False: b"\0\0\0\1\0", True: b"\0\0\0\1\1"}


class Array:
    """A column of many rows, packed; `oid` is the type of the array."""

    __slots__ = ("data", "oid")

    def __init__(self, element: int, count: int, data: bytes) -> None:
        self.oid = _ARRAY_OF[element]
        # One dimension that begins at 1, with nulls allowed.
        self.data = struct.pack(">iiiii", 1, 1, element, count, 1) + data


def _packed(element: int, cells: Iterable[bytes], count: int) -> Array:
    return Array(element, count, b"".join(cells))


def int8s(values: Sequence[int | None]) -> Array:
    """Return a column of bigint."""
    return _packed(_INT8, (_NULL if value is None else _int8(8, value) for value in values), len(values))


def int2s(values: Sequence[int]) -> Array:
    """Return a column of smallint."""
    return _packed(_INT2, (_int2(2, value) for value in values), len(values))


def bools(values: Sequence[bool | None]) -> Array:
    """Return a column of boolean."""
    return _packed(_BOOL, (_NULL if value is None else _flags[value] for value in values), len(values))


def texts(values: Sequence[str | None]) -> Array:
    """Return a column of text."""
    return _blobs(_TEXT, [None if value is None else value.encode() for value in values])


def bytes_(values: Sequence[bytes | None]) -> Array:
    """Return a column of bytea."""
    return _blobs(_BYTEA, values)


def uuids(values: Sequence[bytes]) -> Array:
    """Return a column of uuid, each as its 16 bytes."""
    return _blobs(_UUID, values)


def _blobs(element: int, values: Sequence[bytes | None]) -> Array:
    return _packed(element, (_NULL if value is None else _length(len(value)) + value for value in values), len(values))


_ARRAYS: Final[tuple[Callable[[Any], Array], ...]] = (
    int8s, uuids, texts, int2s, texts, texts, int2s, bools, int8s, int8s, int8s, int8s, int8s, bytes_, bytes_, bytes_, int8s,
    bools,
)  # fmt: skip
"""The packer of each of `COLUMNS`."""


def job_columns(jobs: Sequence[Job]) -> list[Array]:
    """Return the arrays of all `COLUMNS` of these jobs."""
    seq, job_id, key, state, module, _, priority, on_wall, *times = zip(*(job.front()[:HEAD] for job in jobs), strict=True)
    bodies = [packing.pack_body(job) for job in jobs]
    columns: list[Sequence[Any]] = [
        seq,
        job_id,
        key,
        [NUMBER[each] for each in state],
        module,
        [job.target for job in jobs],
        [-each for each in priority],
        [bool(each) for each in on_wall],
        *times,
        bodies,
        [job.params for job in jobs],
        [job.result for job in jobs],
        [job.keeper for job in jobs],
        [bool(job.stop_asked) for job in jobs],
    ]
    rows = zip(*columns, strict=True)
    columns[RECORD] = [body + checksums.of_row(row) for body, row in zip(bodies, rows, strict=True)]
    return [array(column) for array, column in zip(_ARRAYS, columns, strict=True)]


def to_job(row: Sequence[Any]) -> Job:
    """Return the job of a row of `COLUMNS`.

    Raises:
        StoreCorrupt: The row is not what was written.
    """
    try:
        if is_sealed(row):
            return packing.to_job(row[:HEAD], row[RECORD][: -checksums.BYTES], row[RECORD + 1], row[RECORD + 2])
    except (ValueError, TypeError, LookupError) as error:
        raise StoreCorrupt(f"the row of job {row[0]} cannot be read: {error}") from error
    raise StoreCorrupt(f"the row of job {row[0]} does not match its checksum")


def is_sealed(row: Sequence[Any]) -> bool:
    """Return whether the record of a row of `COLUMNS` ends with the checksum of the row."""
    record: bytes = row[RECORD]
    checksum = checksums.of_row((*row[:RECORD], record[: -checksums.BYTES], *row[RECORD + 1 : WIDTH]))
    return checksum == record[-checksums.BYTES :]


def sealed_record(row: Sequence[Any]) -> bytes:
    """Return the sealed record of a row of format 1, whose `record` has no checksum.

    Raises:
        StoreCorrupt: The row is not a job's.
    """
    body, params, result, keeper, stop_asked = row[RECORD:WIDTH]
    record: bytes = body + checksums.of_row(row[:WIDTH])
    try:
        job = packing.to_job(row[:HEAD], body, params, result)
    except (ValueError, TypeError, LookupError) as error:
        raise StoreCorrupt(f"the row of job {row[0]} cannot be read: {error}") from error
    if (job.keeper, job.stop_asked) != (keeper, stop_asked):
        raise StoreCorrupt(f"the row of job {row[0]} contradicts its record")
    return record


class _ArrayDumper(Dumper):
    """A dumper that passes a packed array on unchanged."""

    format = Format.BINARY

    def dump(self, obj: Any) -> bytes:
        return bytes(obj.data)

    def get_key(self, obj: Any, format: Any) -> Any:  # noqa: ARG002 - All of one table take the same.
        return (self.cls, obj.oid)

    def upgrade(self, obj: Any, format: Any) -> Dumper:  # noqa: ARG002 - All of one table take the same.
        dumper = type(self)(self.cls)
        dumper.oid = obj.oid
        return dumper


class _AnyText(Loader):
    """A loader of text that may be damaged: bytes that are not UTF-8 become U+FFFD, so no checksum fits."""

    format = Format.BINARY

    def load(self, data: Buffer) -> str:
        return bytes(data).decode(errors="replace")


class _IdLoader(Loader):
    """A loader of a uuid as its 16 bytes."""

    format = Format.BINARY

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


def fetched(cursor: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a statement, an empty list if it has none; a text in them may be damaged, as on a bad disk."""
    if cursor.description is None:
        return []
    try:
        found: list[tuple[Any, ...]] = cursor.fetchall()
    except UnicodeDecodeError:
        cursor.adapters.register_loader(_TEXT, _AnyText)
        transformer = Transformer(cursor)
        transformer.set_pgresult(cursor.pgresult)
        found = transformer.load_rows(0, cursor.pgresult.ntuples, tuple)
    return found


def register(connection: Any) -> None:
    """Teach a connection of ours the packed arrays, and ids as bytes."""
    connection.adapters.register_dumper(Array, _ArrayDumper)
    connection.adapters.register_loader(_UUID, _IdLoader)
