"""`givalia store export` and `givalia store import`: the files and streams for `givalia_core.store.moving`.

A file gets its name only when it is complete and on stable storage. An import checks a whole file before it opens the store, so
nothing of a damaged file is written; a pipe is checked while it is read.
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from givalia_core.cli import endings, show
from givalia_core.clock import SystemClock
from givalia_core.errors import BadRequest, NotFound, StoreUnfit
from givalia_core.store import Memory, moving
from givalia_core.store.base import Opened, Store
from givalia_core.store.export_stream import ExportReader, Footer
from givalia_core.store.sqlite.disk import error_for, sync


def export(store: Store, given: argparse.Namespace) -> None:
    """Write all jobs of a store to a file or to standard output; the store may be unsafe, as nothing is written to it."""
    _refuse_memory(store)
    if given.file in (None, "-"):
        if sys.stdout.isatty():
            raise BadRequest("an export is not for a terminal: name a FILE, or send standard output elsewhere")
        # Not `sys.stdout`: at its end it would try again to write what a broken pipe refused.
        output = os.fdopen(sys.stdout.fileno(), "wb", closefd=False)
        with _opened(store, unsafe=True) as opened, failing("standard output"), output:
            footer = moving.export(store, opened, SystemClock(), output)
        _tell("exported", footer)
        return
    path = Path(given.file)
    refuse_taken(path, force=given.force)
    with _opened(store, unsafe=True) as opened, failing(given.file), _made(path, force=given.force) as file:
        footer = moving.export(store, opened, SystemClock(), file)
    _tell("exported", footer, as_json=given.json)


def import_(store: Store, given: argparse.Namespace, *, unsafe: bool) -> None:
    """Read an export from a file or standard input into an empty store; `unsafe` allows a store that may lose data."""
    _refuse_memory(store)
    if given.force:
        raise BadRequest("an import cannot be forced: it needs a store that holds no job")
    with _source(given.file) as file:
        if file.seekable():
            _prove(file)
        reader = ExportReader(file)
        with _opened(store, unsafe=unsafe) as opened:
            footer = moving.import_(store, opened, SystemClock(), reader)
    _tell("imported", footer, as_json=given.json)


def _prove(file: BinaryIO) -> None:
    """Check the whole file, and seek back to its start."""
    start = file.tell()
    for _ in ExportReader(file).records():
        pass
    file.seek(start)


def _tell(done: str, footer: Footer, *, as_json: bool = False) -> None:
    if as_json:
        show.emit(show.to_json(footer._asdict()))
    else:
        endings.say(f"{footer.jobs} jobs {done}")


def _refuse_memory(store: Store) -> None:
    if isinstance(store, Memory):
        raise StoreUnfit("this store keeps its jobs only in its server's memory: they cannot be moved from or to it")


@contextlib.contextmanager
def _opened(store: Store, *, unsafe: bool) -> Iterator[Opened]:
    opened = store.open(unsafe=unsafe)
    try:
        yield opened
    finally:
        store.close()


@contextlib.contextmanager
def failing(name: str) -> Iterator[None]:
    """Turn an `OSError` into an error of ours; a reader that goes away early is one too, as it has no whole export."""
    try:
        yield
    except OSError as error:
        raise error_for(error)(f"{name} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _made(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Yield a new file, readable only by its owner, that gets its name when it is complete and synced."""
    with new_file(path, force=force) as making, making.open("wb") as file:
        yield file


@contextlib.contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """Yield the path of an empty file, readable only by its owner; at the end the file is synced and gets its name."""
    number, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".making", dir=path.parent)
    os.close(number)
    making = Path(name)
    try:
        yield making
        sync(making)
        refuse_taken(path, force=force)  # The name may have been taken meanwhile.
        making.rename(path)
    except BaseException:
        for leftover in path.parent.glob(f"{glob.escape(making.name)}*"):  # SQLite and the store make files beside it.
            leftover.unlink(missing_ok=True)
        raise
    sync(path.parent)


def refuse_taken(path: Path, *, force: bool) -> None:
    """Refuse a name that no file can have, or that is taken, unless by a file that may be overwritten."""
    try:
        path.exists()
    except OSError as error:  # The name is too long.
        raise BadRequest(f"there can be no file of this name: {error.strerror}") from None
    if path.exists() and not path.is_file():
        raise BadRequest(f"{path} is there and is no file")
    if path.exists() and not force:
        raise BadRequest(f"{path} is there already; --force overwrites it")


@contextlib.contextmanager
def _source(name: str | None) -> Iterator[BinaryIO]:
    if name is None or name == "-":
        if sys.stdin.isatty():
            raise BadRequest("an import reads no terminal: name a FILE, or send an export to standard input")
        yield sys.stdin.buffer
        return
    path = Path(name)
    if not path.exists():
        raise NotFound(f"there is no file {path}")
    with path.open("rb") as file:
        yield file
