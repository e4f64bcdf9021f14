"""Tools for tests of the SQLite store: its connection, its files, and other processes that open them."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from givalia_core.store.base import Filter
from givalia_core.store.sqlite import SQLite
from givalia_core.store.sqlite import store as sqlite_store
from givalia_core.store.suite import (
    MARK,
    NOW,
    by_seq,
    claimed,
    inserts,
    waiting,
)

BALLAST_BYTES = 1 << 16


CALLS = {
    "commit": lambda store: store.commit(inserts([waiting(9)]), MARK),
    "find": lambda store: by_seq(store, {1}),
    "claim": lambda store: claimed(store),
    "running": lambda store: list(store.running()),
    "expired": lambda store: store.expired(NOW, 5),
    "page": lambda store: store.page(Filter(), None, 5, NOW),
}


def database(store: SQLite) -> sqlite3.Connection:
    assert store._core.database is not None
    return store._core.database


def read_anew(store: SQLite) -> SQLite:
    """The same store without what it has in memory of jobs."""
    store.tidy()
    store._core.index.jobs.clear()
    return store


def digests(path: Path) -> dict[str, str]:
    """Return a digest of each file of the store, but for the lock, whose bytes are the holder's."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.parent.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock")
    }


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Another process with our package."""
    root = str(Path(sqlite_store.__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)
