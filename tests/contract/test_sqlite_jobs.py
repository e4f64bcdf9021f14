"""The SQLite store's cache of jobs, and what a `find` learns for its commit: neither changes an answer."""

from __future__ import annotations

import pytest
from sqlite_history import SEED, Script

from givalia_core.model import RUNNING
from givalia_core.store.base import Wanted
from givalia_core.store.sqlite import SQLite, mending
from givalia_core.store.sqlite.index import jobs as rooms
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, changed, claimed, ended, inserts, job_id, waiting


def statements_of(store: SQLite) -> list[str]:
    statements: list[str] = []
    store._core.connection().set_trace_callback(statements.append)
    return statements


def test_jobs_that_were_just_written_are_found_and_lent_without_the_disk(store: SQLite) -> None:
    jobs = [waiting(seq, key=f"k{seq}", due_at_us=NOW.timer_us) for seq in (1, 2)]
    store.commit(inserts(jobs), MARK)
    store.tidy()
    statements = statements_of(store)

    assert list(store.find(Wanted(ids=frozenset({job_id(1)})), NOW).ids.values()) == jobs[:1]
    assert store.find(Wanted(keys=frozenset({"k2"})), NOW).live == {"k2": jobs[1]}
    assert claimed(store) == jobs

    assert statements == []


def test_a_large_job_is_read_again_and_is_as_it_was_written(store: SQLite) -> None:
    large = waiting(1, params=bytes(rooms.KEPT_BYTES + 1), due_at_us=NOW.timer_us)
    store.commit(inserts([large]), MARK)
    store.tidy()
    statements = statements_of(store)

    assert claimed(store) == [large]
    assert len(statements) == 1
    lent = changed(large, state=RUNNING)
    assert not store.commit([lent], MARK).refused
    assert list(store.running()) == [lent.job]


@pytest.mark.parametrize("most", [0, 5, 50])
def test_a_store_that_remembers_few_jobs_says_the_same_as_one_that_remembers_many(
    store: SQLite, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    monkeypatch.setattr(rooms, "KEPT_MOST", most)
    monkeypatch.setattr(rooms, "_DROPPED_AT_ONCE", 3)
    script = Script(SEED)

    for _ in range(40):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        store.tidy()
        store._core.index.jobs.shed()

    assert len(store._core.index.jobs.by_slot) <= most
    assert script.seen(store) == script.seen(script.reference)
    assert store.check() == []


def test_the_id_and_the_key_of_a_forgotten_job_are_those_of_nobody(store: SQLite) -> None:
    first = waiting(1, key="k")
    store.commit(inserts([first]), MARK)
    assert store.commit([ended(first, forget_in_us=-1)], MARK, KEEP_ALL).forgotten == 1

    assert store.find(Wanted(ids=frozenset({first.id})), NOW).ids == {}
    again = waiting(2, id=first.id, key="k")
    assert not store.commit(inserts([again]), MARK).refused
    assert store.find(Wanted(ids=frozenset({first.id})), NOW).ids == {first.id: again}
    assert store.commit([changed(first)], MARK).refused == (0,)


# What find learned.


@pytest.mark.parametrize("is_told", [True, False])
def test_a_commit_refuses_the_same_with_what_find_learned_and_without(store: SQLite, is_told: bool) -> None:
    held = waiting(1, key="held")
    store.commit(inserts([held]), MARK)
    new = [waiting(2, key="free"), waiting(3, key="held"), waiting(4, id=held.id), waiting(5, key="free"), waiting(6)]
    wanted = Wanted(ids=frozenset(job.id for job in new), keys=frozenset({"free", "held"}))
    learned = store.find(wanted, NOW).learned

    refused = store.commit(inserts(new), MARK, None, learned if is_told else None).refused

    assert refused == (1, 2, 3)
    assert store.check() == []


def test_what_was_learned_before_another_commit_is_of_no_use(store: SQLite) -> None:
    learned = store.find(Wanted(ids=frozenset({job_id(1)}), keys=frozenset({"k"})), NOW).learned
    assert not store.commit(inserts([waiting(1, key="k")]), MARK, None, learned).refused

    refused = store.commit(inserts([waiting(2, id=job_id(1)), waiting(3, key="k")]), MARK, None, learned).refused

    assert refused == (0, 1)
    assert store.check() == []


def test_what_was_learned_of_an_index_that_was_rebuilt_since_is_of_no_use(store: SQLite) -> None:
    keys = [f"k{number}" for number in range(50)]
    learned = store.find(Wanted(keys=frozenset(keys)), NOW).learned
    mending.rebuild(store._core, "a test wants it")  # Names are hashed with another secret from now on.

    new = [waiting(seq, key=key) for seq, key in enumerate(keys, 1)]
    assert not store.commit(inserts(new), MARK, None, learned).refused

    assert len(store.find(Wanted(keys=frozenset(keys)), NOW).live) == 50
    assert store.check() == []
