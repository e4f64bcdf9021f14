"""The engine decides the same on PostgreSQL: the tests of the engine, again."""

from __future__ import annotations

from collections.abc import Iterator

import engine_rig
import pytest
from givalia_postgres import Postgres
from postgres_rig import Postgres as Rig
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

from givalia_core.store.base import Store


@pytest.fixture(autouse=True)
def _store(postgres: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each rig that brings no store have a database of its own."""
    postgres.start_again()
    made: list[Store] = []

    def new_store() -> Store:
        made.append(Postgres(postgres.create_database()))
        return made[-1]

    monkeypatch.setattr(engine_rig, "new_store", new_store)
    yield
    for store in made:
        store.close()
