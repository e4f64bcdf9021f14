"""The disk space of removed jobs is given back, by the server or by moving the other jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_rig import EngineRig

from givalia_core.cli import main as command
from givalia_core.model import REMEMBERED_AT_LEAST_US
from givalia_core.store import SQLite
from givalia_core.store.sqlite import chores


def test_space_of_jobs_that_are_gone_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a store from which most jobs are gone
    monkeypatch.setattr(chores, "VACUUM_PAGES", 10)
    path, new = tmp_path / "queue.db", tmp_path / "new.db"
    store = SQLite(f"sqlite://{path}")
    rig = EngineRig(store, retain_us=0)
    for number in range(1_000):
        rig.enq(key=f"gone-{number}", params=b"\xc5\x10\x00" + bytes(4_096), delay_us=10**9)
    rig.enq(key="kept", delay_us=10**9)
    for number in range(1_000):
        rig.cancel(f"gone-{number}")
    chores.checkpoint(store._core)
    full = path.stat().st_size

    # when they are forgotten, and the store has time for itself
    rig.tick(REMEMBERED_AT_LEAST_US / 1_000_000 + 60)
    for _ in range(3_000):
        store.tidy()
        rig.turn()
        store._core.rows_since_checkpoint = chores.CHECKPOINT_PAGES * 1_000  # As if others came and went.
    store.close()

    # then the file is smaller, and a new one has what is left
    assert path.stat().st_size < full / 2
    assert command.main(["store", "export", "--store", f"sqlite://{path}", str(tmp_path / "export")]) == 0
    assert command.main(["store", "import", "--store", f"sqlite://{new}", str(tmp_path / "export")]) == 0
    assert new.stat().st_size < full / 10
