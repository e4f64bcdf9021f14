"""Bring a SQLite store of an earlier format to the present one.

Format 1 had a row a job with an index for each way to find it. A copy of the old file is kept beside the new one, which takes
its place in one step: a process that is killed meanwhile leaves the old one as it was.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull
from givalia_core.model import Job
from givalia_core.store import packing, sqlite_file
from givalia_core.store.sqlite_records import base_rows

_ROWS: Final = 10_000
_SELECT: Final = (
    "SELECT seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us,"
    " version, body, params, result, crc FROM jobs ORDER BY seq"
)

_pack = msgpack.Packer(autoreset=True).pack


def upgrade(path: Path) -> int:
    """Upgrade the store at this path, if there is one of an earlier format; returns the format it had.

    Raises:
        StoreLocked, StoreCorrupt, StoreTooNew, StoreFull, StoreFailed: The store is as it was.
    """
    with sqlite_file.ours(path):
        return _upgrade(path)


def _upgrade(path: Path) -> int:
    if not path.is_file() or path.is_symlink():
        return sqlite_file.FORMAT
    if (before := sqlite_file.format_of(path)) >= sqlite_file.READABLE:
        return before
    sqlite_file.check_header(path, least=1)
    lock = sqlite_file.Lock(path.with_name(path.name + ".lock"))
    making = path.with_name(path.name + ".upgrading")
    try:
        _copy(path, making)
        shutil.rmtree(sqlite_file.index_folder(path), ignore_errors=True)
        _keep_old(path, path.with_name(f"{path.name}.format-{before}"))
        making.rename(path)
        sqlite_file.sync(path.parent)
    except (sqlite3.Error, OSError) as error:
        kind = StoreFull if sqlite_file.is_full(error, path.parent) else StoreFailed
        with contextlib.suppress(OSError):
            making.unlink(missing_ok=True)
        raise kind(f"{path}: {error}; the store is as it was") from error
    finally:
        lock.release()
    return before


def _copy(path: Path, making: Path) -> None:
    old = sqlite3.connect(path, isolation_level=None)
    try:
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        for leftover in ("-journal", "-wal", "-shm"):  # Of a process that was killed, and not of what is made now.
            making.with_name(making.name + leftover).unlink(missing_ok=True)
        sqlite_file.create(making)
        new = sqlite3.connect(making, isolation_level=None)
        try:
            _fill(old, new)
        finally:
            new.close()
    finally:
        old.close()
    sqlite_file.sync(making)


def _fill(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    new.execute("PRAGMA journal_mode = DELETE")  # One file, to be renamed.
    new.execute("PRAGMA synchronous = OFF")  # It is synced as a whole when it is whole.
    new.execute("BEGIN IMMEDIATE")
    last_seq = 0
    for jobs in _parts(old):
        rows, _ = base_rows(jobs)
        new.executemany("INSERT INTO jobs VALUES (?, ?)", rows)
        last_seq = jobs[-1].seq
    new.executemany("INSERT INTO counts VALUES (?, ?, ?)", old.execute("SELECT module, state, jobs FROM counts"))
    facts = {name: _fact(name, value, crc) for name, value, crc in old.execute("SELECT name, value, crc FROM facts")}
    last_seq = max(last_seq, facts.get("last_seq") or 0)
    for name, value in (("epoch", facts.get("epoch") or 0), ("commit", (0, 0, last_seq, facts.get("mark")))):
        packed = _pack(value)
        new.execute("INSERT INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed)))
    new.execute("COMMIT")
    new.execute("PRAGMA journal_mode = WAL")


def _fact(name: str, value: bytes, crc: int) -> Any:
    if crc != zlib.crc32(value):
        raise StoreCorrupt(f"the stored {name} does not match its checksum")
    return msgpack.unpackb(value)


def _parts(old: sqlite3.Connection) -> Iterator[list[Job]]:
    cursor = old.execute(_SELECT)
    while rows := cursor.fetchmany(_ROWS):
        yield [_to_job(row) for row in rows]


def _to_job(row: tuple[Any, ...]) -> Job:
    *head, body, params, result, crc = row
    if crc != zlib.crc32(result or b"", zlib.crc32(params, zlib.crc32(body, zlib.crc32(_pack(tuple(head)))))):
        raise StoreCorrupt(f"the row of job {head[0]} does not match its checksum")
    return packing.to_job(head, body, params, result)


def _keep_old(path: Path, kept: Path) -> None:
    kept.unlink(missing_ok=True)
    os.link(path, kept)
    for leftover in ("-wal", "-shm"):
        path.with_name(path.name + leftover).unlink(missing_ok=True)
