"""The default store passes the suite, closed properly and dropped as kill -9 would drop it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from givalia_core.store import sqlite_file
from givalia_core.store.base import Opened, Store
from givalia_core.store.sqlite import SQLite
from givalia_core.store.suite import StoreSuite


@pytest.fixture(autouse=True)
def _small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "BALLAST_BYTES", 1 << 16)


class TestSQLite(StoreSuite):
    examples = 30

    def make_store(self, folder: Path) -> Store:
        return SQLite(f"sqlite://{folder}/queue.db")


class TestSQLiteDropped(TestSQLite):
    """Each restart opens a copy of the files as they lie on the disk, while nobody has closed anything."""

    examples = 20

    def reopen(self, store: Store) -> tuple[Store, Opened]:
        assert isinstance(store, SQLite)
        folder = store.path.with_name(store.path.name + ".dropped")
        folder.mkdir()
        for name in ("queue.db", "queue.db-wal"):
            if store.path.with_name(name).exists():
                shutil.copy(store.path.with_name(name), folder / name)
        store.close()
        again = SQLite(f"sqlite://{folder}/queue.db")
        return again, again.open()
