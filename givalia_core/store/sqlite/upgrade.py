"""Bring a SQLite store of an earlier format to the present one.

A copy of the old store is kept beside it, complete before anything else is done. A format that this version cannot read has
a row for each job: its rows are written to a new file, which replaces the old one in one step. The other formats only get the
new number, with the first transaction of the opening. A kill at any moment leaves the store as it was or upgraded, and the next
process does the rest.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import sqlite3
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgpack

from givalia_core.clock import SystemClock
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreUnfit
from givalia_core.model import Job
from givalia_core.store import packing
from givalia_core.store.sqlite import copies, disk
from givalia_core.store.sqlite.records import base_rows

_ROWS: Final = 10_000
_SELECT: Final = (
    "SELECT seq, id, key, state, module, target_worker, rank, on_wall, due_at_us, expires_at_us, ended_at_us, forget_at_us,"
    " version, body, params, result, crc FROM jobs ORDER BY seq"
)
_NAMES_MOST: Final = 100
_MARGIN_BYTES: Final = 4 << 20  # For the first commits of the new version; the reserve of the store is kept besides.
_LEFTOVERS: Final = ("", "-journal", "-wal", "-shm")

log = logging.getLogger("givalia.store")
_pack = msgpack.Packer(autoreset=True).pack


def upgrade(path: Path, *, may_upgrade: bool) -> None:
    """Upgrade the store at this path, if there is one of an earlier format; call it with the lock held, before the opening.

    The opening then raises the number of a format that this version reads.

    Raises:
        StoreUnfit: The store may not be upgraded, and is as it was; the words name the command.
        StoreCorrupt, StoreTooNew, StoreFull, StoreFailed: The store is as it was.
    """
    with disk.ours(path):
        if not path.is_file() or path.is_symlink():
            return
        disk.check_header(path, least=1)
        if (before := disk.format_of(path)) == disk.FORMAT:
            return
        if not may_upgrade:
            raise StoreUnfit(
                f"{path} has format {before}, this Givalia needs {disk.FORMAT}: with no server on it, run"
                f" {command(path, 'upgrade')}"
            )
        _upgrade(path, before)


def command(path: Path, verb: str) -> str:
    """Return the command by which root, or the user who owns the store at this path, upgrades or checks it."""
    program = Path(sys.executable).with_name("givalia")
    said = f"{shlex.quote(str(program)) if program.exists() else 'givalia'} store {verb} --store {url(path)}"
    owner = path.stat().st_uid if path.exists() else path.parent.stat().st_uid
    if owner == 0:
        return said if os.geteuid() == 0 else f"{said} as root"
    return f"{said} as its user, or as root runuser -u {disk.user(owner)} -- {said}"


def url(path: Path) -> str:
    """Return the URL of the store at this path, quoted for a shell."""
    return shlex.quote("sqlite://" + quote(str(path)))


def kept_path(path: Path, before: int) -> Path:
    """Return the path of the kept copy of a store that had this format."""
    return path.with_name(f"{path.name}.format-{before}")


def _free_path(path: Path, before: int, making: Path) -> Path:
    """Return the path for this copy of a store: where it is kept already, or a free name."""
    state = copies.state_of(making)
    for number in range(1, _NAMES_MOST):
        kept = kept_path(path, before)
        if number > 1:
            kept = kept.with_name(f"{kept.name}.{number}")
        if not os.path.lexists(kept) or (state is not None and copies.state_of(kept) == state):
            return kept
    raise StoreUnfit(f"there are {_NAMES_MOST - 1} copies of earlier formats beside {path}, and no name for another")


def _upgrade(path: Path, before: int) -> None:
    making = path.with_name(path.name + ".upgrading")
    rewrites = before < disk.READABLE
    try:
        _remove(making)
        _refuse_without_room(path, 2 if rewrites else 1)
        _tell(path, before, _keep_copy(path, making, before))
        if rewrites:
            _rewrite(path, making)
    except (sqlite3.Error, OSError) as error:
        kind = StoreFull if disk.is_full(error, path.parent) else StoreFailed
        raise kind(f"{path}: {error}; the store is as it was") from error
    finally:
        with contextlib.suppress(OSError):
            _remove(making)


def _tell(path: Path, before: int, kept_at: Path) -> None:
    name, kept = shlex.quote(path.name), shlex.quote(kept_at.name)
    log.warning("%s goes from format %d to %d. As it was, it is kept as %s", path, before, disk.FORMAT, kept)
    # A line of its own and short, so that no form of the log cuts it.
    log.warning(
        "The way back, with the server stopped: cd %s && rm -rf %s-wal %s.index && mv %s %s, and start the earlier version",
        shlex.quote(str(path.parent)), name, name, kept, name,
    )  # fmt: skip


def _refuse_without_room(path: Path, times: int) -> None:
    needed = times * sum(each.stat().st_size for each in (path, _wal(path)) if each.exists()) + _MARGIN_BYTES
    usage = os.statvfs(path.parent)
    if (free := usage.f_bavail * usage.f_frsize) < needed:
        raise StoreFull(
            f"{path} has to be upgraded, and a copy of it is kept: that needs {needed >> 20} MiB on its disk, which has"
            f" {free >> 20}. The store is as it was"
        )


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _remove(making: Path) -> None:
    for leftover in _LEFTOVERS:
        making.with_name(making.name + leftover).unlink(missing_ok=True)


# The copy.


def _keep_copy(path: Path, making: Path, before: int) -> Path:
    """Copy the store and its log into one file beside it, marked as a copy; return the path of that file."""
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            _copy_file(source, making.with_name(making.name + suffix))
    database = sqlite3.connect(making, isolation_level=None)
    try:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        ((found,),) = database.execute("PRAGMA user_version")
        if found != before:  # By its log the store is upgraded already, and the kept copy is older.
            return kept_path(path, before)
        database.execute("BEGIN IMMEDIATE")
        copies.mark(database, SystemClock().read().wall_us)
        database.execute("COMMIT")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        database.close()
    disk.sync(making)
    kept = _free_path(path, before, making)
    making.rename(kept)
    disk.sync(path.parent)
    return kept


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file; the new one has its mode and, as far as this process may, its owner."""
    status = source.stat()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with source.open("rb") as reading, os.fdopen(fd, "wb") as writing:
        _own_alike(fd, status)
        shutil.copyfileobj(reading, writing, 1 << 20)


def _own_alike(fd: int, status: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, status.st_mode & 0o777)


# A format with a row for each job.


def _rewrite(path: Path, making: Path) -> None:
    """Replace the file by one of this format with the same jobs."""
    old = sqlite3.connect(path, isolation_level=None)
    try:
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        disk.create(making)
        new = sqlite3.connect(making, isolation_level=None)
        try:
            _fill(old, new)
        finally:
            new.close()
    finally:
        old.close()
    with making.open("rb") as file:
        _own_alike(file.fileno(), path.stat())
    disk.sync(making)
    shutil.rmtree(disk.index_folder(path), ignore_errors=True)
    for leftover in _LEFTOVERS[1:]:
        path.with_name(path.name + leftover).unlink(missing_ok=True)
    making.rename(path)
    disk.sync(path.parent)


def _fill(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    new.execute("PRAGMA journal_mode = DELETE")  # One file, to be renamed.
    new.execute("PRAGMA synchronous = OFF")  # The file is synced once, when it is whole.
    new.execute("BEGIN IMMEDIATE")
    last_seq = 0
    for jobs in _parts(old):
        rows, _ = base_rows(jobs)
        new.executemany("INSERT INTO jobs VALUES (?, ?)", rows)
        last_seq = jobs[-1].seq
    new.executemany("INSERT INTO counts VALUES (?, ?, ?)", old.execute("SELECT module, state, jobs FROM counts"))
    last_seq = max(last_seq, copies.fact(old, "last_seq") or 0)
    epoch, at = copies.fact(old, "epoch") or 0, copies.fact(old, "mark")
    for name, value in (("epoch", epoch), ("commit", (0, 0, last_seq, at))):
        copies.keep_fact(new, name, value)
    new.execute("COMMIT")
    new.execute("PRAGMA journal_mode = WAL")


def _parts(old: sqlite3.Connection) -> Iterator[list[Job]]:
    cursor = old.execute(_SELECT)
    while rows := cursor.fetchmany(_ROWS):
        yield [_to_job(row) for row in rows]


def _to_job(row: tuple[Any, ...]) -> Job:
    *head, body, params, result, crc = row
    if crc != zlib.crc32(result or b"", zlib.crc32(params, zlib.crc32(body, zlib.crc32(_pack(tuple(head)))))):
        raise StoreCorrupt(f"the row of job {head[0]} does not match its checksum")
    return packing.to_job(head, body, params, result)
