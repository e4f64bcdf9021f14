"""The reference store passes the suite."""

from __future__ import annotations

from pathlib import Path

from givalia_core.store.base import Store
from givalia_core.store.memory import Memory
from givalia_core.store.suite import StoreSuite


class TestMemory(StoreSuite):
    examples = 60

    def make_store(self, folder: Path) -> Store:
        return Memory()
