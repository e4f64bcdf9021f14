"""The sweeper removes past records, whatever the state of the disk and the keys of the jobs."""

from __future__ import annotations

import sqlite3
from unittest.mock import Mock

import pytest

from givalia_core.model import Job
from givalia_core.store.sqlite import SQLite
from givalia_core.store.sqlite.index.upkeep import sweeper
from givalia_core.store.sqlite.index.upkeep.past import Past
from givalia_core.store.sqlite.places import change_at
from givalia_core.store.suite import KEEP_ALL, MARK, ended, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_index")


def test_what_a_full_disk_kept_from_being_swept_is_swept_later(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    jobs = [ended(waiting(seq, params=bytes(3_000)), forget_in_us=-1).job for seq in range(1, 41)]

    def forget(some: list[Job]) -> None:
        store.commit(inserts(some), MARK)
        store.commit([], MARK, KEEP_ALL)
        for _ in range(30):
            store.tidy()

    with monkeypatch.context() as patched:
        patched.setattr(sweeper.Records, "drop_changes", Mock(side_effect=full))
        forget(jobs[:20])
    forget(jobs[20:])

    rows = sum(1 for _ in store._core.records.bases(0))
    assert rows <= sweeper.ROWS_AT_ONCE


@pytest.mark.usefixtures("larger")
def test_forgetting_the_jobs_of_one_key_does_not_go_through_all_of_them_for_each(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeper, "ROWS_AT_ONCE", 32)
    for first in range(1, 3_000, 1_000):
        jobs = [ended(waiting(seq, key="a"), ago_us=-seq, forget_in_us=seq - 9_000).job for seq in range(first, first + 1_000)]
        store.commit(inserts(jobs), MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten:
        pass

    writes = Mock(wraps=store._core.index.slots.put)
    monkeypatch.setattr(store._core.index.slots, "put", writes)
    while store._core.sweeper.has_work():
        store.tidy()

    assert writes.call_count <= 3 * 3_000  # A job and its two neighbours, however many there are.


@pytest.mark.parametrize("size", [1, 4])
def test_rows_of_which_there_are_only_hints_are_proven_a_few_at_a_time_and_none_is_lost(size: int) -> None:
    rows, limit = range(1, 101), 2
    past = Past()
    for row in rows:
        for number in range((size + 1) // 2):
            assert past.add_change(change_at(row, number, size), seq=row)

    removed: list[int] = []
    for _ in rows:
        for row in past.take_hints(limit):
            past.add_proven(row, (1 << (size + 1) // 2) - 1, size)
        full, half = past.take_changes(limit)
        removed += [*full, *(row for row, _ in half)]

    assert set(removed) == set(rows)
    assert past.take_hints(limit) == []


def test_row_that_is_gone_is_no_hint_any_more(store: SQLite) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    core = store._core
    core.sweeper.past.add_change(change_at(10_000, 0, 1), seq=1)
    assert core.sweeper.past.take_hints(5) == [10_000]

    with core.transaction():
        core.sweeper.write()

    assert core.sweeper.past.take_hints(5) == []
    assert len(core.sweeper.past) == 0
