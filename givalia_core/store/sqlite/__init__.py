"""The embedded store: records in one SQLite file, and an index that is derived from them."""

from givalia_core.store.sqlite.store import SQLite

__all__ = ["SQLite"]
