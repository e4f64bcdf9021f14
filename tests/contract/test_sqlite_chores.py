"""Housekeeping of the SQLite store: what is done once a period or from a threshold on, and what trouble it may end in."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_rig import BALLAST_BYTES, database, read_anew

from givalia_core.errors import StoreFailed
from givalia_core.model import DONE, WAITING
from givalia_core.store.base import Change
from givalia_core.store.sqlite import SQLite, chores
from givalia_core.store.sqlite.chores import Duty, begin, checkpoint, do, sweep
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.index import Sweeper
from givalia_core.store.sqlite.index.upkeep import sweeper
from givalia_core.store.sqlite.places import Damaged
from givalia_core.store.suite import MARK, by_seq, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_ballast")


class Time:
    """A monotonic clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(chores, "time", clock)
    return clock


@pytest.fixture
def core(store: SQLite) -> Core:
    """The parts of an open store in which nothing is due."""
    begin(store._core, time.monotonic() + 1_000)
    store._core.rebuilds = 0  # The first index was made as all others are.
    return store._core


def trouble(code: int) -> Callable[[object], None]:
    def fails(_: object) -> None:
        error = sqlite3.OperationalError("disk trouble")
        error.sqlite_errorcode = code
        raise error

    return fails


def test_each_chore_is_done_once_its_period_has_passed_and_not_again_before_the_next(
    core: Core, clock: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    duties = (Duty(5.0, lambda _: done.append("often")), Duty(7.0, lambda _: done.append("seldom")))
    monkeypatch.setattr(chores, "CHORES", duties)
    begin(core)
    assert core.chore_due_s == clock.now_s + 5

    seen: dict[float, list[str]] = {}
    for passed_s in (4.9, 5.0, 5.1, 7.0, 9.9, 30.0, 30.0):
        clock.now_s = 1_000 + passed_s
        do(core)
        seen.setdefault(passed_s, []).extend(done)
        done.clear()

    assert {at: names for at, names in seen.items() if names} == {5.0: ["often"], 7.0: ["seldom"], 30.0: ["often", "seldom"]}
    assert core.chore_due_s == 1_035


def test_chores_that_are_due_at_once_are_all_done(core: Core, clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(chores, "CHORES", [Duty(5.0, lambda core: done.append(core.chores_due_s.count(0.0)))] * 3)

    begin(core, due_s=0.0)
    do(core)

    assert done == [2, 1, 0]
    assert core.chores_due_s == [clock.now_s + 5] * 3


def test_a_chore_that_fails_is_due_again_only_a_period_later(core: Core, clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chores, "CHORES", (Duty(5.0, trouble(sqlite3.SQLITE_IOERR)),))
    begin(core, due_s=0.0)

    with pytest.raises(sqlite3.OperationalError):
        do(core)

    do(core)
    assert core.chore_due_s == clock.now_s + 5


def test_a_moved_file_is_noticed_when_the_files_are_due_and_not_before(store: SQLite, core: Core, path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))
    do(core)

    begin(core, due_s=0.0)
    with pytest.raises(StoreFailed, match="is gone, moved or removed while it was open"):
        do(core)

    store.abandon()


@pytest.mark.parametrize("place", ["sweep", "checkpoint"])
@pytest.mark.parametrize(
    ("code", "is_full"), [(sqlite3.SQLITE_FULL, True), (sqlite3.SQLITE_IOERR_FSYNC, False), (sqlite3.SQLITE_CORRUPT, False)]
)
def test_a_full_disk_costs_the_reserve_alone_and_any_other_trouble_is_raised(
    store: SQLite, core: Core, path: Path, place: str, code: int, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    core.rows_since_checkpoint = chores.CHECKPOINT_PAGES
    monkeypatch.setattr(chores, place, trouble(code))

    if is_full:
        do(core)
    else:
        with pytest.raises(sqlite3.OperationalError):
            do(core)

    assert store.is_full is is_full
    assert path.with_name("queue.db.ballast").stat().st_size == (0 if is_full else BALLAST_BYTES)


@pytest.mark.parametrize("error", [Damaged("a note is about another job"), IndexError("beyond the end")])
def test_damage_that_a_chore_meets_rebuilds_the_index(
    store: SQLite, core: Core, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    store.tidy()

    def fails(_: Core) -> None:
        raise error

    monkeypatch.setattr(chores, "sweep", fails)
    do(core)

    assert core.rebuilds == 1
    assert set(by_seq(store, {1})) == {1}


def test_past_records_are_removed_when_they_are_enough(store: SQLite, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper, "ROWS_AT_ONCE", 2)
    job = waiting(1)
    store.commit(inserts([job]), MARK)
    store.tidy()
    while core.sweeper.look_back():
        pass
    counts = []
    for _ in range(4):
        was, job = job, job.changed(version=job.version + 1)
        store.commit([Change(was, job)], MARK)
        assert by_seq(store, {1}) == {1: job}
        sweep(core)
        counts.append(core.one("SELECT count(*) FROM changes")[0])

    assert counts == [1, 2, 1, 2]
    assert core.sweeper.is_behind is False
    assert by_seq(read_anew(store), {1}) == {1: job}
    assert store.check() == []


def test_a_sweep_that_a_full_disk_ends_is_done_again(store: SQLite, core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (("has_work", True), ("look_back", False)):
        monkeypatch.setattr(Sweeper, name, lambda self, answer=answer: answer)
    monkeypatch.setattr(Sweeper, "write", trouble(sqlite3.SQLITE_FULL))
    core.sweeper.is_behind = False

    do(core)

    assert store.is_full
    assert core.sweeper.is_behind is True
    assert database(store).in_transaction is False


def test_a_checkpoint_empties_the_log_and_learns_how_many_pages_a_row_takes(store: SQLite, core: Core) -> None:
    checkpoint(core)
    store.commit(inserts([waiting(seq, params=bytes(50_000)) for seq in range(1, 11)]), MARK)
    rows = core.rows_since_checkpoint
    assert rows == 11

    checkpoint(core)

    assert core.rows_since_checkpoint == 0
    assert core.pages_per_row >= 10
    learned = core.pages_per_row
    checkpoint(core)
    assert core.pages_per_row == learned, "nothing is learned from no row"


@pytest.mark.parametrize(("rows", "is_done"), [(chores.CHECKPOINT_PAGES // 4 - 1, False), (chores.CHECKPOINT_PAGES // 4, True)])
def test_the_log_is_copied_back_from_so_many_pages_on(core: Core, rows: int, is_done: bool) -> None:
    core.rows_since_checkpoint, core.pages_per_row = rows, 4.0

    do(core)

    assert (core.rows_since_checkpoint == 0) is is_done


@pytest.mark.parametrize(("modules", "is_dropped"), [(10, False), (11, True)])
def test_counts_of_modules_without_jobs_are_dropped_when_they_are_many(
    store: SQLite, core: Core, modules: int, is_dropped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "_EMPTY_COUNTS_MOST", 10)
    store.commit(inserts([waiting(1)]), MARK)
    by_seq(store, ())
    empty = [(f"Module{number}", DONE) for number in range(modules + 4)]  # The module with a job may have five states.
    core.count_from({("Mail", WAITING): 1, **dict.fromkeys(empty, 0)})
    core.connection().executemany("INSERT INTO counts VALUES (?, 2, 0)", [(module,) for module, _ in empty])
    core.connection().execute("INSERT INTO counts VALUES ('Kept', 0, 1)")

    chores._drop_empty_counts(core)

    assert core.counted == ({("Mail", WAITING): 1} if is_dropped else {("Mail", WAITING): 1, **dict.fromkeys(empty, 0)})
    assert core.one("SELECT count(*) FROM counts") == (1 if is_dropped else len(empty) + 1,)
    core.connection().execute("DELETE FROM counts")


def test_pages_that_are_free_are_given_back_a_few_at_a_time_when_they_are_many(
    store: SQLite, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chores, "VACUUM_PAGES", 5)
    core.connection().execute("CREATE TABLE filler (bytes BLOB)")
    core.connection().executemany("INSERT INTO filler VALUES (zeroblob(4000))", [()] * 60)
    core.connection().execute("DELETE FROM filler WHERE rowid > 9")
    (before,) = core.one("PRAGMA freelist_count")
    assert before > 50

    core.rows_since_checkpoint = chores.CHECKPOINT_PAGES
    do(core)

    assert core.one("PRAGMA freelist_count") == (before - 5,)
    core.connection().execute("DROP TABLE filler")
