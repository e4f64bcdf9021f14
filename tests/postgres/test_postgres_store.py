"""PostgreSQL passes the suite that every store passes."""

from __future__ import annotations

from pathlib import Path

import pytest
from givalia_postgres import Postgres
from postgres_rig import Postgres as Rig

from givalia_core.store.base import Store
from givalia_core.store.suite import StoreSuite


class TestPostgres(StoreSuite):
    """Each store is a database of its own."""

    @pytest.fixture(autouse=True)
    def _rig(self, postgres: Rig) -> None:
        postgres.start_again()
        self._postgres = postgres

    def make_store(self, folder: Path) -> Store:
        return Postgres(self._postgres.create_database())
