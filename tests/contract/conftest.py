"""A SQLite store in a file, for tests that know its internals; and this folder on the path, for `sqlite_history`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from givalia_core.store.sqlite import SQLite, disk

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLite]:
    store = SQLite(f"sqlite://{path}")
    store.open()
    yield store
    store.close()


@pytest.fixture
def small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlite_rig import BALLAST_BYTES

    monkeypatch.setattr(disk, "BALLAST_BYTES", BALLAST_BYTES)


@pytest.fixture
def small_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small that seals, sweeps and cut fronts happen all the time."""
    from sqlite_history import make_small

    make_small(monkeypatch.setattr)


@pytest.fixture
def larger(small_index: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a thousand jobs are a few runs."""
    from sqlite_history import make_small

    make_small(monkeypatch.setattr, 256, 20)
