"""A SQLite store in a file, for the tests that know it from the inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from givalia_core.store.sqlite import SQLite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLite]:
    store = SQLite(f"sqlite://{path}")
    store.open()
    yield store
    store.close()
