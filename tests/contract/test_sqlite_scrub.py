"""The scrub: it waits for quiet, and gives back unused space."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from givalia_core.model import WAITING
from givalia_core.store.base import Route, Wanted
from givalia_core.store.sqlite import SQLite, chores
from givalia_core.store.sqlite.index import names, words
from givalia_core.store.sqlite.index.upkeep import pages
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, ended, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_index")


def test_the_scrub_waits_for_a_moment_of_quiet_and_for_some_seconds_at_most(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = Mock()
    monkeypatch.setattr(store._core.scrub, "go_on", went_on)
    scrub = store._core.scrub
    scrub.rest_until_s, scrub._owed_s = 0.0, 0.0

    def later() -> None:
        scrub._last -= 1.0
        chores.begin(store._core, due_s=0.0)
        store.tidy()

    for _ in range(3):
        later()
    assert not went_on.called

    store.rest()
    (seconds,) = went_on.call_args.args
    assert seconds <= 0.005

    for _ in range(2):
        later()
    assert went_on.call_count == 2


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("name", ["module", "target_worker", "specifier"])
def test_names_that_were_used_once_leave_nothing_behind(store: SQLite, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_CUT_LEAST", 64)
    lanes_before = len(store._core.index.lanes.by_key)
    for first in range(1, 3_000, 500):
        jobs = [waiting(seq, key=f"k{seq}", **{name: f"N{seq}"}) for seq in range(first, first + 500)]
        store.commit(inserts(jobs), MARK)
        store.commit([ended(job, forget_in_us=-1) for job in jobs], MARK)
    stays = waiting(9_000, key="stays", module="Stays")
    store.commit(inserts([stays]), MARK)
    bytes_before = store.describe()["index_bytes"]

    while store.commit([], MARK, KEEP_ALL).forgotten or store._core.sweeper.has_work():
        store.tidy()
    for _ in range(20):
        store._core.scrub.finish()

    assert len(store._core.index.lanes.by_key) == lanes_before + 1
    assert list(store._core.index.routes) == [Route("Stays", "any")]
    assert store._core.index.targets == {"Stays": {"any"}}
    assert store.describe()["index_bytes"] < bytes_before
    assert store.check() == []
    store.close()
    store.open()
    assert store.check() == []
    assert len(store._core.index.lanes.by_key) == lanes_before + 1
    assert store.find(Wanted(keys=frozenset({"stays"})), NOW).live == {"stays": stays}
    more = inserts(waiting(seq, key=f"k{seq}") for seq in range(10_000, 11_000))
    assert store.commit(more, MARK).refused == ()
    assert store.check() == []


@pytest.mark.usefixtures("larger")
def test_a_disk_that_is_full_while_the_index_is_made_smaller_ends_nothing(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [waiting(seq, key=f"k{seq}", module=f"N{seq}") for seq in range(1, 1_001)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job, forget_in_us=-1) for job in jobs], MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten or store._core.sweeper.has_work():
        store.tidy()
    real = os.open

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def without_new_files(name: Any, *rest: Any) -> int:
        return full() or real(name, *rest) if str(name).endswith(".making") else real(name, *rest)

    monkeypatch.setattr(store._core.scrub, "step", lambda **_: store._core.scrub.finish())
    with monkeypatch.context() as patched:
        patched.setattr(words, "allocate", full)
        patched.setattr(os, "open", without_new_files)
        patched.setattr(names.NameTable, "_room", full)
        for _ in range(4):
            store._core.scrub.rest_until_s = 0.0
            store.rest()

    assert list(store._core.index.routes) == []
    store.commit(inserts(waiting(seq, module=f"N{seq}") for seq in range(2_000, 2_100)), MARK)
    assert len(store._core.index.routes) == 100
    store.tidy()
    assert store.check() == []


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("left", [0, 20, 400])
def test_runs_whose_entries_are_past_are_laid_together(store: SQLite, path: Path, left: int) -> None:
    runs_of, file = store._core.index.lanes.runs, path.with_name("queue.db.index") / "runs"
    jobs = [waiting(seq, due_at_us=seq * 7 % 1_000, expires_at_us=10**15 if seq % 2 else None) for seq in range(1, 6_001)]
    for first in range(0, 6_000, 500):
        store.commit(inserts(jobs[first : first + 500]), MARK)
    store.commit([ended(job, forget_in_us=-1) for job in jobs[: 6_000 - left]], MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten or store._core.sweeper.has_work():
        store.tidy()
    many, large = len(runs_of), file.stat().st_size

    for _ in range(4):
        store._core.scrub.finish()

    assert len(runs_of) <= 3 + left // 64 < many / 4
    assert file.stat().st_size < large / 2
    assert store.check() == []
    store.abandon()  # As a kill does.
    store.open()
    assert not store._core.index.strangeness
    assert store.check() == []
    assert store.counts() == ({("Mail", WAITING): left} if left else {})
