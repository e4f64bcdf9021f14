"""Commits of the SQLite store: which changes are admitted, what one of them writes, and what a failed one leaves."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from sqlite_rig import database

from givalia_core.errors import StoreFailed
from givalia_core.model import CANCELLED, DEAD, DONE, RUNNING, WAITING, Job
from givalia_core.store.base import FENCE_COUNTER_BITS, Change, Retention
from givalia_core.store.sqlite import SQLite
from givalia_core.store.sqlite.commits import UNCOUNTED_MOST, Admission, Rows, raise_numbers, refuse_moved, retire, write
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index import questions
from givalia_core.store.sqlite.records import base_rows, change_rows, pack
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, by_seq, changed, ended, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_ballast")

FORGET_ALL = Retention(NOW.timer_us, NOW.timer_us, 0, 0, 1_000)


def admitted(store: SQLite, changes: Iterable[Change], absent: dict[bytes | str, int] | None = None) -> Admission:
    store.tidy()  # The last commit is filed now.
    return Admission(store._core.index, absent or {}, changes)


def numbers(core: Core) -> tuple[object, ...]:
    """What a commit moves: the numbers, the counts, and what is written of both."""
    facts = core.fact("commit"), core.all("SELECT * FROM counts ORDER BY module, state")
    held = (
        core.commits,
        core.last_number,
        core.last_seq,
        core.mark,
        dict(core.uncounted),
        dict(core.counted),
        dict(core.in_state),
    )
    return *held, core.rows_since_checkpoint, core.is_copy, *facts


def rows_of(jobs: list[Job]) -> Rows:
    return Rows(base_rows(jobs)[0], (), dict.fromkeys([(job.module, job.state) for job in jobs], 1), jobs[-1].seq)


# Which changes are admitted.


def test_an_insert_is_refused_if_its_id_or_the_key_that_it_would_hold_is_there(store: SQLite) -> None:
    store.commit(inserts([waiting(1, key="k"), waiting(2)]), MARK)

    admission = admitted(
        store,
        inserts([
            waiting(9, id=waiting(2).id),
            waiting(3, key="k"),
            waiting(4, key="new"),
            waiting(5, key="new"),
            waiting(6, id=waiting(4).id),
            waiting(7, key="k", state=DONE, ended_at_us=1),  # It holds no key.
        ]),
    )  # fmt: skip

    assert admission.refused == [0, 1, 3, 4]
    assert [job.seq for job in admission.inserts.values()] == [4, 7]
    assert admission.counts == {("Mail", WAITING): 1, ("Mail", DONE): 1}


def test_names_that_are_known_to_be_absent_are_not_searched_for_and_still_clash_with_each_other(
    store: SQLite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def searched(*names: object) -> None:
        raise AssertionError(names)

    for name in ("has_id", "holder"):
        monkeypatch.setattr(questions, name, searched)
    absent: dict[bytes | str, int] = {"k": 0, **{waiting(seq).id: 0 for seq in (1, 2)}}

    admission = admitted(store, inserts([waiting(1, key="k"), waiting(2, key="k"), waiting(1)]), absent)

    assert admission.refused == [1, 2]


def test_a_change_is_refused_unless_its_job_is_there_at_just_this_version(store: SQLite) -> None:
    first = waiting(1)
    store.commit(inserts([first]), MARK)
    store.commit([changed(first)], MARK)
    present = first.changed(version=2)

    for was, is_admitted in ((first, False), (present.changed(version=3), False), (waiting(2), False), (present, True)):
        for is_in_memory in (True, False):
            admission = admitted(store, [changed(was, state=RUNNING)])
            assert (admission.refused == []) is is_admitted, (was.seq, was.version, is_in_memory)
            store._core.index.jobs.clear()


def test_changes_of_one_job_follow_each_other_and_only_the_last_is_written(store: SQLite) -> None:
    first = waiting(1)
    store.commit(inserts([first]), MARK)
    second, third = first.changed(version=2, state=RUNNING), first.changed(version=3, state=DONE, ended_at_us=5)

    admission = admitted(store, [Change(first, second), changed(first), Change(second, third)])

    assert admission.refused == [1]
    ((_, was, job),) = admission.updates.values()
    assert (was, job) == (first, third)
    assert {name: count for name, count in admission.counts.items() if count} == {("Mail", WAITING): -1, ("Mail", DONE): 1}


def test_a_job_that_changes_in_the_commit_of_its_enq_is_inserted_as_it_is_then(store: SQLite) -> None:
    first = waiting(1, key="k")
    running = first.changed(version=2, state=RUNNING)

    admission = admitted(store, [*inserts([first]), Change(first, running), changed(first), *inserts([waiting(2, key="k")])])

    assert admission.refused == [2, 3]
    assert (admission.inserts, admission.updates) == ({first.id: running}, {})
    assert {name: count for name, count in admission.counts.items() if count} == {("Mail", RUNNING): 1}


def test_a_key_goes_from_job_to_job_in_the_order_of_the_changes(store: SQLite) -> None:
    holder, dead = waiting(1, key="k"), waiting(2, key="k", state=DEAD, ended_at_us=5)
    store.commit(inserts([holder, dead]), MARK)
    revive, call_off = changed(dead, state=WAITING, ended_at_us=0), changed(holder, state=CANCELLED, ended_at_us=6)
    another = inserts([waiting(3, key="k")])[0]

    for changes, refused in (
        ([revive, call_off], [0]),
        ([call_off, revive], []),
        ([call_off, another, revive], [2]),
        ([call_off, revive, another], [2]),
        ([another, call_off], [0]),
    ):
        assert admitted(store, changes).refused == refused


# What a commit writes.


@pytest.mark.parametrize("names", [UNCOUNTED_MOST, UNCOUNTED_MOST + 1])
def test_a_few_changes_of_counts_are_in_the_fact_of_the_commit_and_more_in_their_table(store: SQLite, names: int) -> None:
    core = store._core
    jobs = [waiting(seq, module=f"Module{seq}") for seq in range(1, names + 1)]

    write(core, rows_of(jobs[:1]), MARK)
    write(core, rows_of(jobs[1:]), MARK._replace(timer_us=MARK.timer_us + 1))

    table, (number, _, seq, mark, deltas) = core.all("SELECT module, state, jobs FROM counts"), core.fact("commit")
    is_few = names == UNCOUNTED_MOST
    assert sorted(deltas if is_few else table) == sorted(
        [(job.module, 0, 1) if not is_few else [job.module, 0, 1] for job in jobs]
    )
    assert (table if is_few else deltas) == []
    assert len(core.uncounted) == (names if is_few else 0)
    assert (number, seq, mark[2]) == (2, names, MARK.timer_us + 1)
    assert core.counted == {(job.module, WAITING): 1 for job in jobs}
    store.abandon()
    store.open()
    assert store.counts() == {(job.module, WAITING): 1 for job in jobs}


@pytest.mark.parametrize("fails", ["jobs", "changes", "facts"])
def test_a_commit_that_fails_leaves_the_numbers_and_the_file_as_they_were(store: SQLite, fails: str) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    store.tidy()
    core, before = store._core, numbers(store._core)
    database(store).execute(f"CREATE TEMP TRIGGER t BEFORE INSERT ON main.{fails} BEGIN SELECT RAISE(FAIL, 'trouble'); END")
    rows = rows_of([waiting(2)])._replace(changes=change_rows([pack(waiting(1, version=2).front())], core.last_number)[0])

    with pytest.raises(sqlite3.Error, match="trouble"):
        write(core, rows, MARK._replace(timer_us=MARK.timer_us + 1))

    database(store).execute("DROP TRIGGER t")
    assert numbers(core) == before
    assert database(store).in_transaction is False
    assert core.all("SELECT first_seq FROM jobs") == [(1,)]
    write(core, rows, MARK)
    assert core.all("SELECT first_seq FROM jobs") == [(1,), (2,)]


MOVES: dict[str, Callable[[Path], object]] = {
    "removed": Path.unlink,
    "moved": lambda path: path.rename(path.with_name("elsewhere.db")),
    "replaced": lambda path: Path(shutil.copy(path, path.with_name("other.db"))).replace(path),
    "log": lambda path: Path(f"{path}-wal").unlink(),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("has_notices", [True, False])
def test_a_file_that_is_gone_is_not_written_to(path: Path, store: SQLite, move: str, has_notices: bool) -> None:
    files = store._core.files
    if not has_notices:
        files.close()
    refuse_moved(store._core)
    path.with_name("another").touch()
    refuse_moved(store._core)

    MOVES[move](path)

    with pytest.raises(StoreFailed, match=r"queue\.db"):
        refuse_moved(store._core)
    if has_notices:
        with pytest.raises(BlockingIOError):
            os.read(files.news_fd, 1)
    store.abandon()


def test_forgotten_jobs_leave_the_counts_and_stay_when_the_disk_is_full(store: SQLite) -> None:
    jobs = [waiting(seq, key=f"k{seq}") for seq in (1, 2, 3)]
    store.commit(inserts(jobs), MARK)
    store.commit([ended(job) for job in jobs[:2]], MARK)
    store.tidy()
    core, before = store._core, numbers(store._core)
    assert retire(core, KEEP_ALL, MARK) == 0
    assert numbers(core) == before, "nothing is written for nothing"
    (pages,) = core.one("PRAGMA page_count")
    core.connection().execute(f"PRAGMA max_page_count = {pages}")
    core.connection().execute(
        "CREATE TEMP TRIGGER t BEFORE INSERT ON main.changes BEGIN"
        " INSERT INTO changes VALUES (new.number + 1000, zeroblob(1000000)); END"
    )

    assert retire(core, FORGET_ALL, MARK) == 0
    assert store.is_full
    assert set(by_seq(store, {1, 2, 3})) == {1, 2, 3}

    core.connection().execute("DROP TRIGGER temp.t")
    assert retire(core, FORGET_ALL._replace(limit=1), MARK) == 1
    assert retire(core, FORGET_ALL, MARK) == 1
    assert store.counts() == {("Mail", WAITING): 1}
    assert set(by_seq(store, {1, 2, 3})) == {3}
    assert store.check() == []


def test_numbers_are_raised_for_the_next_opening_and_never_lowered(store: SQLite) -> None:
    store.commit(inserts([waiting(7)]), MARK)
    store.tidy()
    before = store._core.fact("commit")

    raise_numbers(store._core, 5, 0)
    assert (store._core.fact("commit"), store._core.fact("epoch"), store._core.last_seq) == (before, 1, 7)
    raise_numbers(store._core, 50, 9 << FENCE_COUNTER_BITS | 3)

    assert store._core.last_seq == 50
    assert store._core.fact("commit")[3:] == before[3:]
    store.close()
    opened = store.open()
    assert (opened.last_seq, opened.epoch) == (50, 10)
    assert set(by_seq(store, {7})) == {7}
