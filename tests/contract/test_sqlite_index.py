"""The promise of the index of the SQLite store: it agrees with the records, and is rebuilt if it is strange.

`test_sqlite_kills` kills it at each instruction.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlite_history import SEED, Script, killed, make_small, power_cut

from givalia_core.errors import StoreFull
from givalia_core.model import RUNNING, WAITING, Job
from givalia_core.store import routes
from givalia_core.store.base import Claim, Route, Span, Wanted, by_module
from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite
from givalia_core.store.sqlite.index import names, runs
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, changed, claimed, ended, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_index")


def test_a_history_with_restarts_of_all_kinds_is_that_of_the_reference(tmp_path: Path) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    until = time.monotonic() + 8
    seed = SEED
    while time.monotonic() < until:
        _live_small(seed, tmp_path)
        seed += 1


# A lane that was freed twice, under two numbers, and then had both given to others.
@pytest.mark.parametrize("seed", [571_274_811])
def test_a_history_that_once_was_another_than_that_of_the_reference(tmp_path: Path, seed: int) -> None:
    _live_small(seed, tmp_path)


def _live_small(seed: int, folder: Path) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patched:
        make_small(patched.setattr, chance.choice((8, 16, 64)), chance.choice((3, 4, 20)))
        _live(seed, folder / str(seed), chance)


def _live(seed: int, folder: Path, chance: random.Random) -> None:
    script = Script(seed)
    store = SQLite(f"sqlite://{folder}/queue.db")
    store.open()
    for number in range(60):
        step = script.step()
        assert step.do(store) == step.do(script.reference), (seed, number)
        store.tidy()
        if chance.random() < 0.1:
            store._core.scrub.finish()
        if chance.random() < 0.15:
            how = chance.choice(("close", "kill", "power cut"))
            if how == "close":
                store.close()
            else:
                store = killed(store) if how == "kill" else power_cut(store, f"{folder.name}.{number}")
            store.open()
            assert store.check() == [], (seed, number, how)
        if chance.random() < 0.4:
            assert script.seen(store) == script.seen(script.reference), (seed, number)
    store.close()


@pytest.mark.parametrize("look", ["find", "tidy", "commit", "close"])
def test_answers_do_not_wait_for_the_index(store: SQLite, monkeypatch: pytest.MonkeyPatch, look: str) -> None:
    entered = Mock(wraps=store._core.index.insert)
    monkeypatch.setattr(store._core.index, "insert", entered)

    store.commit(inserts([waiting(1, key="a")]), MARK)

    assert not entered.called
    if look == "find":
        assert store.find(Wanted(keys=frozenset({"a"})), NOW).live["a"].seq == 1
    elif look == "commit":
        assert store.commit(inserts([waiting(2, key="a")]), MARK).refused == (0,)
    else:
        getattr(store, look)()
    assert entered.called


def test_a_job_that_comes_in_below_those_before_it_is_there_after_a_kill(store: SQLite) -> None:
    high = inserts(waiting(seq, key=f"k{seq}") for seq in range(100, 140))
    low = inserts(waiting(seq, key=f"k{seq}") for seq in range(1, 5))
    store.commit(high, MARK)
    store.commit(low, MARK)
    store.abandon()

    store.open()

    assert store.check() == []
    assert [timer.seq for timer in store.upcoming([Span(Route("Mail", "any"), 5)], NOW)[0].timers] == [1, 2, 3, 4, 100]


def test_half_the_name_of_a_lane_is_dropped(store: SQLite) -> None:
    jobs = [waiting(seq, target_worker=f"w{seq}", due_at_us=5) for seq in (1, 2, 3)]
    store.commit(inserts(jobs[:1]), MARK)
    store.abandon()
    with store.path.with_name("queue.db.index").joinpath("lanes.keys").open("ab") as file:
        file.write(b"\x05\0\0\0\1\2\3\4\xa3du")

    for job in (None, *jobs[1:]):
        store.open()
        store.commit(inserts([job] if job else []), MARK)
        store.abandon()
    store.open()

    assert [claimed(store, route=Route("Mail", f"w{seq}")) for seq in (1, 2, 3)] == [[job] for job in jobs]
    assert store.check() == []


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_commit_that_the_index_has_no_room_for_is_refused_before_it_is_stored(
    store: SQLite, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    first = waiting(1, key="a")
    store.commit(inserts([first]), MARK)
    many = inserts(waiting(seq, key=f"k{seq}", target_worker="w9") for seq in range(2, 1_200))
    with monkeypatch.context() as patched:
        patched.setattr(os, call, Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(StoreFull):
            store.commit(many, MARK)
        assert store.is_full
        assert store.commit([changed(first, state=RUNNING)], MARK).refused == ()  # What needs no room goes on.

    assert store.has_room()
    assert store.check() == []
    assert store.counts() == {("Mail", RUNNING): 1}
    assert store.commit(many, MARK).refused == ()


def test_a_store_that_is_opened_again_knows_nothing_of_the_index_it_had(store: SQLite, path: Path) -> None:
    jobs = [waiting(seq) for seq in range(1, 4_000)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job, forget_in_us=-1) for job in jobs[:-1]], MARK)
    while store.commit([], MARK, KEEP_ALL).forgotten:
        store.tidy()
    store.close()
    shutil.rmtree(path.with_name("queue.db.index"))

    store.open()

    assert store.commit([changed(jobs[-1])], MARK).refused == ()


# When the disk is full.


@pytest.mark.parametrize("how", ["close", "kill", "go on"])
def test_what_the_index_has_no_room_for_behind_a_commit_is_kept_in_memory_and_filed_later(
    store: SQLite, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    script = Script(SEED)
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    for number in range(60):
        step = script.step()
        # New jobs are secured before; names and runs are what grows behind a commit.
        with monkeypatch.context() as patched:
            if number > 20:
                patched.setattr(names.NameTable, "_room", full)
                patched.setattr(runs.Runs, "_write_list", full)
            assert step.do(store) == step.do(script.reference)
            store.tidy()
    assert script.seen(store) == script.seen(script.reference)

    if how == "close":
        store.close()
        store.open()
    elif how == "kill":
        store.abandon()
        store.open()
    for _ in range(20):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        store.tidy()
    store._core.scrub.finish()

    assert store.check() == []
    assert store._core.index.names.is_whole
    assert script.seen(store) == script.seen(script.reference)


@pytest.mark.usefixtures("larger")
def test_jobs_that_ended_before_they_expired_are_not_read_to_find_those_that_expired(store: SQLite) -> None:
    jobs = [waiting(seq, expires_at_us=NOW.timer_us - 1) for seq in range(1, 500)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job) for job in jobs[:-1]], MARK)
    statements: list[str] = []
    store.tidy()
    store._core.index.jobs.clear()
    assert store._core.database is not None
    store._core.database.set_trace_callback(statements.append)

    assert store.expired(NOW, 10) == jobs[-1:]

    assert len(statements) == 1
    store._core.database.set_trace_callback(None)
    again = changed(ended(jobs[0]).job, state=WAITING, expires_at_us=NOW.timer_us - 1, ended_at_us=0, forget_at_us=None)
    assert not store.commit([again], MARK).refused
    assert store.expired(NOW, 10) == [again.job, jobs[-1]]


def test_what_is_ready_is_counted_wherever_it_stands(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    reference = Memory("memory:")
    reference.open()
    jobs: list[Job] = []
    for first in range(1, 400, 20):
        new = [
            waiting(seq, due_at_us=chance.randrange(1_000), on_wall=chance.random() < 0.5) for seq in range(first, first + 20)
        ]
        for each in (store, reference):
            each.commit(inserts(new), MARK)
        jobs += new
        moved = [
            ended(jobs.pop(chance.randrange(len(jobs)))),
            changed(jobs.pop(chance.randrange(len(jobs))), due_at_us=chance.randrange(1_000)),
        ]
        for each in (store, reference):
            each.commit(moved, MARK)
        jobs.append(moved[1].job)
        monkeypatch.setattr(routes, "READY_COUNTED_TO", chance.choice((5, 50, 1_000)))
        monkeypatch.setattr(routes, "READY_COUNTED_LEAST", chance.choice((3, 30)))
        now = NOW._replace(timer_us=chance.randrange(1_000), wall_us=chance.randrange(1_000))
        if chance.random() < 0.3:
            store.find(Wanted(claims=(Claim(Route("Mail", "any"), 7),)), now)  # So that some of it has been read.

        assert by_module(store.ready(now)) == by_module(reference.ready(now))
