"""The stores of jobs: the seam (`base`), two stores, and the suite that every store passes."""

from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite

__all__ = ["Memory", "SQLite"]
