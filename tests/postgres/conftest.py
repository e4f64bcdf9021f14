"""Puts this folder on the path for its helper (`postgres_rig`), and starts a PostgreSQL for every test here."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import EngineRig
from givalia_postgres import Postgres as Store

from givalia_core.clock import ManualClock

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

# It mounts file systems, which only root may: `make test-all` asks for it.
collect_ignore = [] if os.environ.get("GIVALIA_FULL_S") else ["test_full_disk_of_postgres.py"]

from postgres_fleet import Fleet  # noqa: E402
from postgres_rig import Postgres  # noqa: E402
from shared_rig import Make, let_waits_count  # noqa: E402
from system_install import Installed, Wheels  # noqa: E402


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests. A test may restart it; one that changes its settings starts one of its own."""
    with Postgres.start() as postgres:
        yield postgres


@pytest.fixture
def database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh database, dropped after the test."""
    postgres.start_again()
    url = postgres.create_database()
    yield url
    postgres.start_again()
    postgres.drop_database(url)


@pytest.fixture
def make(database_url: str) -> Iterator[Make]:
    """Makes engines that share a database and a clock."""
    clock = ManualClock(wall_us=time.time_ns() // 1000)  # That of the database, which people's transactions go by.
    made: list[EngineRig] = []

    def new(**policy: Any) -> EngineRig:
        rig = EngineRig(Store(database_url), clock, **policy)
        let_waits_count(rig.store, clock)
        rig._id += 10_000 * len(made)
        made.append(rig)
        return rig

    yield new
    for rig in made:
        rig.store.close()


@pytest.fixture(scope="session")
def shared(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """An environment with the core, the modules of the tests and the store that servers share."""
    return Installed(tmp_path_factory.mktemp("shared"), wheels.shared)


@pytest.fixture
def fleet(shared: Installed, database_url: str, tmp_path: Path) -> Iterator[Fleet]:
    """Servers on one fresh database, and what connects to them; whatever is left is ended with the test."""
    with Fleet(shared, tmp_path, database_url) as fleet:
        yield fleet
