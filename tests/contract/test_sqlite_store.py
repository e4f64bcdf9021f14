"""The default store passes the suite, both closed properly and dropped as by kill -9."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from givalia_core.model import Answered
from givalia_core.store.base import Opened, Store, Wanted
from givalia_core.store.sqlite import SQLite, disk
from givalia_core.store.suite import NOW, StoreSuite, job_id, request_id, waiting


@pytest.fixture(autouse=True)
def _small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BALLAST_BYTES", 1 << 16)


class Earlier(NamedTuple):
    """An `Answered` of such a version."""

    request: bytes
    act: str
    due_at_us: int


class TestSQLite(StoreSuite):
    examples = 30

    def make_store(self, folder: Path) -> Store:
        return SQLite(f"sqlite://{folder}/queue.db")

    def test_records_whose_answers_have_no_instant_are_read(self, tmp_path: Path) -> None:
        """As versions wrote them that remembered the last four."""
        earlier: Any = (Earlier(job_id(1), "enq", 5), Earlier(request_id(1), "ext", 6))
        store = self.opened(tmp_path, waiting(1, answered=earlier))

        again, _ = self.reopen(store)
        found = again.find(Wanted(requests=frozenset({request_id(1)})), NOW)
        again.close()

        assert found.requests[request_id(1)].answered == (Answered(job_id(1), "enq", 5), Answered(request_id(1), "ext", 6))


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
