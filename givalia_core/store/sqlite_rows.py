"""Jobs as rows of the SQLite store: a few columns that statements look at, the rest packed, and a checksum over all of it."""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgpack

from givalia_core.errors import StoreCorrupt
from givalia_core.model import Job
from givalia_core.store import packing
from givalia_core.store.packing import HEAD, NUMBER

_COLUMNS: Final = (
    "seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us,"
    " version, body, params, result, crc"
)
SELECT: Final = f"SELECT {_COLUMNS} FROM jobs"
INSERT: Final = f"INSERT INTO jobs ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
# An update touches every index that has one of its columns, changed or not, so there is one for each kind of change.
_GUARD: Final = " WHERE seq=?1 AND id=?2 AND version=?18"
_LEND: Final = "UPDATE jobs SET state=?4, expires_at_us=?10, version=?13, body=?14, crc=?17" + _GUARD
_END: Final = (
    "UPDATE jobs SET state=?4, expires_at_us=?10, ended_at_us=?11, forget_at_us=?12, version=?13, body=?14, result=?16,"
    " crc=?17" + _GUARD
)
_MOVE: Final = "UPDATE jobs SET state=?4, due_at_us=?9, expires_at_us=?10, version=?13, body=?14, crc=?17" + _GUARD
_REPLACE: Final = (
    "UPDATE jobs SET key=?3, state=?4, module=?5, target_worker=?6, rank=?7, on_wall=?8, due_at_us=?9,"
    " expires_at_us=?10, ended_at_us=?11, forget_at_us=?12, version=?13, body=?14, params=?15, result=?16, crc=?17" + _GUARD
)


def update(was: Job, job: Job) -> str:
    """The statement that changes the one into the other; it takes `to_row` of the job and the version before."""
    # Key, module, target_worker, priority and clock stand in a row; only `replace` and its like touch them.
    if was[4:8] != job[4:8] or was.specifier != job.specifier or was.key != job.key or was.params != job.params:
        return _REPLACE
    has_moved = was.due_at_us != job.due_at_us
    if was.ended_at_us != job.ended_at_us or was.forget_at_us != job.forget_at_us or was.result != job.result:
        return _REPLACE if has_moved else _END
    return _MOVE if has_moved else _LEND


_pack = msgpack.Packer(autoreset=True).pack


def to_row(job: Job) -> tuple[Any, ...]:
    """The values of a job's columns."""
    head = (*job[:3], NUMBER[job.state], job.module, job.target, -job.priority, int(job.on_wall), *job[8:HEAD])
    body = packing.pack_body(job)
    return (*head, body, job.params, job.result, _checksum(head, body, job.params, job.result))


def to_job(row: tuple[Any, ...]) -> Job:
    """The job of a row that `SELECT` read.

    Raises:
        StoreCorrupt: The row is not what was written.
    """
    *head, body, params, result, crc = row
    if crc != _checksum(tuple(head), body, params, result):
        raise StoreCorrupt(f"the row of job {head[0]} does not match its checksum")
    return packing.to_job(head, body, params, result)


def _checksum(head: tuple[Any, ...], body: bytes, params: bytes, result: bytes | None) -> int:
    return zlib.crc32(result or b"", zlib.crc32(params, zlib.crc32(body, zlib.crc32(_pack(head)))))
