"""Describes a SQLite store: its place, its sizes, and its faults."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from givalia_core.store.sqlite import disk
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index import Check


def describe(core: Core) -> dict[str, Any]:
    """Describe a store for a person."""
    log = Path(f"{core.path}-wal")
    folder = disk.index_folder(core.path)
    usage = os.statvfs(core.path.parent)
    last = core.scrub.last
    return {
        "url": f"sqlite://{core.path}",
        "format": disk.FORMAT,
        "sqlite": sqlite3.sqlite_version,
        "bytes": core.path.stat().st_size,
        "log_bytes": log.stat().st_size if log.exists() else 0,
        "index_bytes": sum(path.stat().st_size for path in folder.iterdir()) if folder.is_dir() else 0,
        "disk_free_bytes": usage.f_bavail * usage.f_frsize,
        "disk_bytes": usage.f_blocks * usage.f_frsize,
        "index": {
            "rebuilds": core.rebuilds,
            "is_verified": core.index.is_verified,
            "scrub_rounds": 0 if last is None else last.number,
            "scrub_ended_at_us": None if last is None else last.ended_at_us,
            "scrub_seconds": None if last is None else round(last.seconds, 3),
        },
        "quarantined": core.quarantine.count,
        "is_new": core.files.is_new,
        "is_full": core.room.is_full,
    }


def check(core: Core) -> list[str]:
    """Return a sentence about each fault, and about each damage that was found since the opening."""
    counts = {name: count for name, count in core.counted.items() if count}
    wrong = Check(core.connection(), core.records, core.index, counts).run()
    return [*core.damages, *core.quarantine.lines(), *wrong]
