"""Records of the SQLite store as bytes: of a job as it was enqueued, of each later state, and of its forgetting.

Records are appended in rows that fill a page (`tables`). Every record ends with a checksum; that of an enq also covers the
params, which follow the record. A record of an earlier version may have fewer fields.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack

from givalia_core.errors import StoreCorrupt
from givalia_core.model import JOB_DEFAULTS, JOB_FIELDS, STORED_STATES, Answered, Job
from givalia_core.store.sqlite.places import BASE_SHIFT, CHANGE_SHIFT, NUMBER_SHIFT, ROW_RECORDS

_PAGE_BYTES: Final = 3_900  # The most bytes of a row that fits a page.
_CRC_BYTES: Final = 4

_RESULT: Final = JOB_FIELDS.index("result")
_STATE: Final = JOB_FIELDS.index("state")
_ANSWERED: Final = JOB_FIELDS.index("answered")
_STATES: Final = {str(state): state for state in STORED_STATES}
_DEFAULTS: Final = JOB_DEFAULTS[:_RESULT]

_pack = msgpack.Packer(autoreset=True).pack


class Forgotten(NamedTuple):
    """The record that a job is forgotten; `slot`, its slot in the index at that time, is a hint."""

    seq: int
    version: int
    slot: int


def pack_base(job: Job) -> bytes:
    """Pack a job as it was enqueued, without its params, which follow the record."""
    return pack(job.front(), job.params)


def pack_forgotten(forgotten: Forgotten) -> bytes:
    """Pack the record that a job is forgotten."""
    return pack(tuple(forgotten))


def pack(fields: tuple[Any, ...], params: bytes = b"") -> bytes:
    """Pack a record: the fields, and a checksum that covers the params too."""
    packed: bytes = _pack(fields)
    crc = zlib.crc32(packed)
    return packed + (zlib.crc32(params, crc) if params else crc).to_bytes(_CRC_BYTES, "little")


def unpack(record: bytes | None, params: bytes | None = None) -> Job | Forgotten:
    """Return the content of a record; with `params`, of the record of an enq.

    Raises:
        StoreCorrupt: The record is not what was written.
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
    front += _DEFAULTS[len(front) :]  # Defaults of fields that are younger than the record.
    front[_STATE] = _STATES[front[_STATE]]
    front[_ANSWERED] = tuple([Answered(*past) for past in front[_ANSWERED]])
    values = (*front, result, specifier, params or b"")
    return Job(*values)


def likely_seq(record: object) -> int | None:
    """Return the seq that a damaged record seems to have; None if the record cannot be read at all."""
    with contextlib.suppress(Exception):  # The bytes may be anything, and a hint is enough.
        unpacker: Any = msgpack.Unpacker()
        unpacker.feed(record)
        if unpacker.read_array_header():
            seq = unpacker.unpack()
            return seq if type(seq) is int else None
    return None


def base_rows(jobs: Sequence[Job]) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Pack new jobs, in the order of their seqs, into rows; return the numbered rows, and each record's place."""
    rows: list[tuple[int, bytes]] = []
    places: list[int] = []
    records = [(pack(job.front(), job.params), job.params) for job in jobs]
    lengths = [len(record) + len(params) + 8 for record, params in records]
    for start, end in _cut(lengths, [job.seq for job in jobs]):
        first, count = jobs[start].seq, end - start
        rows.append((first, _pack([part for record in records[start:end] for part in record])))
        places += [first << BASE_SHIFT | count] * count
    return rows, places


def change_rows(records: Sequence[bytes], last: int) -> tuple[list[tuple[int, bytes]], list[int]]:
    """Pack changes into rows, whose numbers follow `last`; return the numbered rows, and each record's place."""
    rows: list[tuple[int, bytes]] = []
    places: list[int] = []
    for start, end in _cut([len(record) + 4 for record in records], None):
        last += 1
        rows.append((last, _pack(records[start:end])))
        count = end - start
        places += [last << CHANGE_SHIFT | number << NUMBER_SHIFT | count for number in range(count)]
    return rows, places


def _cut(lengths: list[int], seqs: list[int] | None) -> list[tuple[int, int]]:
    """Cut records into rows that fit a page, of consecutive seqs if these are given; return where each begins and ends."""
    rows: list[tuple[int, int]] = []
    start = size = 0
    for place, length in enumerate(lengths):
        is_apart = seqs is not None and seqs[place] - seqs[start] != place - start
        if place > start and (is_apart or size + length > _PAGE_BYTES or place - start == ROW_RECORDS):
            rows.append((start, place))
            start, size = place, 0
        size += length
    if lengths:
        rows.append((start, len(lengths)))
    return rows
