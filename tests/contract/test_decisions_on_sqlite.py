"""The engine decides the same on SQLite: the tests of the engine, again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import engine_rig
import pytest
from test_answers_stand import *  # noqa: F403
from test_engine_attempts import *  # noqa: F403
from test_engine_clocks import *  # noqa: F403
from test_engine_leases import *  # noqa: F403
from test_engine_limits import *  # noqa: F403
from test_engine_memory import *  # noqa: F403
from test_engine_names import *  # noqa: F403
from test_engine_verbs import *  # noqa: F403
from test_engine_versions import *  # noqa: F403
from test_engine_waits import *  # noqa: F403
from test_engine_words import *  # noqa: F403
from test_hold import *  # noqa: F403

from givalia_core.store import SQLite
from givalia_core.store.base import Store


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each rig that brings no store have a file of its own."""
    made: list[Store] = []

    def new_store() -> Store:
        made.append(SQLite(f"sqlite://{tmp_path}/{len(made)}.db"))
        return made[-1]

    monkeypatch.setattr(engine_rig, "new_store", new_store)
    yield
    for store in made:
        store.close()
