"""Opening and closing of the parts of a SQLite store: what an opening says and refuses, and that none stays half open."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_rig import digests

from givalia_core.clock import Mark
from givalia_core.errors import StoreCorrupt, StoreMissing
from givalia_core.model import DONE, WAITING
from givalia_core.store.sqlite import SQLite, copies, disk, opening
from givalia_core.store.sqlite.core import Core
from givalia_core.store.sqlite.opening import Allowed, abandon, after_fork, close_core, open_core, upgrade
from givalia_core.store.suite import MARK, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_ballast")

ALLOWED = Allowed(create=True, upgrade=False, network=False)


@pytest.fixture
def told() -> list[bool]:
    """What the core said of the disk: whether it is full."""
    return []


@pytest.fixture
def core(path: Path, told: list[bool]) -> Iterator[Core]:
    core = Core(path, told.append)
    yield core
    abandon(core)


def lived(path: Path) -> None:
    """Leave a store with two jobs, closed."""
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1), waiting(2, module="Fax")]), MARK)
    store.close()


@pytest.fixture
def killed(path: Path, tmp_path: Path) -> Core:
    """A store with a large job, as a kill leaves it."""
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1, params=bytes(50_000))]), MARK)
    left = tmp_path / "left"
    shutil.copytree(path.parent, left)
    store.close()
    return Core(left / path.name, lambda is_full: None)


def keep(path: Path, **facts: Any) -> None:
    """Write facts into a store that is closed, as another run would leave them."""
    core = Core(path, lambda is_full: None)
    core.database = sqlite3.connect(path, isolation_level=None)
    for name, value in facts.items():
        core.keep_fact(name, value)
    core.database.close()


def is_shut(core: Core) -> bool:
    return core.database is None and core.lock is None and not core.has_index and core.files.news_fd == -1


def full(_: object) -> None:
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    raise error


def test_an_opening_says_what_the_last_run_left(core: Core, path: Path) -> None:
    assert open_core(core, ALLOWED) == (1, None, 0, 0, True)
    close_core(core)
    lived(path)

    opened = open_core(core, ALLOWED)

    assert (opened.epoch, opened.mark, opened.last_seq) == (3, Mark(*MARK), 2)
    assert (opened.recovered, opened.is_new) == (0, False)
    assert core.counted == {("Mail", WAITING): 1, ("Fax", WAITING): 1}
    assert core.in_state == {WAITING: 2}


def test_pages_of_a_log_that_was_left_behind_are_counted_and_copied_back(killed: Core) -> None:
    opened = open_core(killed, ALLOWED)

    assert opened.recovered > 10
    assert (opened.last_seq, killed.counted) == (1, {("Mail", WAITING): 1})
    close_core(killed)
    assert open_core(killed, ALLOWED).recovered == 0
    close_core(killed)


STEPS = ("_prepare_log", "_open_database", "_open_index", "write_or_make_room", "_first_checkpoint", "trim_if_large")


@pytest.mark.parametrize("step", STEPS)
def test_an_opening_that_fails_at_any_step_leaves_nothing_open(
    core: Core, path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived(path)

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(opening, step, fails)
        with pytest.raises(KeyboardInterrupt):
            open_core(core, ALLOWED)
    assert is_shut(core)

    open_core(core, ALLOWED)
    assert core.last_seq == 2
    assert core.counted == {("Mail", WAITING): 1, ("Fax", WAITING): 1}


@pytest.mark.parametrize("damage", [Path.unlink, lambda log: os.truncate(log, 0)], ids=["missing", "empty"])
def test_a_store_that_was_not_closed_is_not_opened_without_its_log(killed: Core, damage: Callable[[Path], None]) -> None:
    damage(Path(f"{killed.path}-wal"))
    before = killed.path.read_bytes()

    for _ in range(2):
        with pytest.raises(StoreCorrupt, match=r"its log \(queue\.db-wal\) is missing or empty: .*givalia store salvage"):
            open_core(killed, ALLOWED)
        assert is_shut(killed)

    assert killed.path.read_bytes() == before


@pytest.mark.parametrize("state", [-1, 5])
@pytest.mark.parametrize("where", ["table", "fact"])
def test_counts_of_a_state_that_no_job_can_have_are_corrupt(core: Core, path: Path, state: int, where: str) -> None:
    lived(path)
    if where == "table":
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("INSERT INTO counts VALUES ('Mail', ?, 1)", (state,))
        database.close()
    else:
        keep(path, commit=(1, 0, 2, MARK, [("Mail", state, 1)]))

    with pytest.raises(StoreCorrupt, match="the stored counts name a state that no job can have"):
        open_core(core, ALLOWED)


def test_counts_are_those_of_their_table_with_the_changes_of_the_last_commits(core: Core, path: Path) -> None:
    lived(path)
    database = sqlite3.connect(path, isolation_level=None)
    database.executemany("INSERT INTO counts VALUES (?, ?, ?)", [("Mail", 0, 4), ("Fax", 0, 1), ("Gone", 2, 3)])
    database.close()
    keep(path, commit=(1, 0, 2, MARK, [("Mail", 0, -3), ("Gone", 2, -3)]))

    open_core(core, ALLOWED)

    assert core.counted == {("Mail", WAITING): 1, ("Fax", WAITING): 1}
    assert core.in_state == {WAITING: 2}
    assert core.uncounted == {("Mail", WAITING): -3, ("Gone", DONE): -3}
    assert core.commits == 1


def test_a_store_that_is_not_there_is_neither_upgraded_nor_made(core: Core, path: Path) -> None:
    with pytest.raises(StoreMissing, match="there is no store at"):
        upgrade(core, ALLOWED)
    assert not path.parent.exists()

    with pytest.raises(StoreMissing):
        open_core(core, ALLOWED._replace(create=False))
    assert is_shut(core)
    assert not path.exists()


def test_an_upgrade_says_both_formats_and_leaves_the_store_closed(core: Core, path: Path) -> None:
    lived(path)
    assert upgrade(core, ALLOWED) == (disk.FORMAT, disk.FORMAT)
    database = sqlite3.connect(path, isolation_level=None)
    database.execute(f"PRAGMA user_version = {disk.READABLE}")
    database.close()

    assert upgrade(core, ALLOWED) == (disk.READABLE, disk.FORMAT)

    assert is_shut(core)
    assert disk.format_of(path) == disk.FORMAT
    assert open_core(core, ALLOWED).last_seq == 2


def test_a_store_that_was_closed_needs_no_log_and_may_be_closed_again(core: Core, path: Path) -> None:
    lived(path)
    open_core(core, ALLOWED)

    close_core(core)
    assert is_shut(core)
    before = digests(path)
    close_core(core)
    abandon(core)

    assert digests(path) == before
    Path(f"{path}-wal").unlink(missing_ok=True)
    open_core(core, ALLOWED)
    assert core.rebuilds == 0, "and its index is whole"


@pytest.mark.parametrize("failures", [1, 1_000])
def test_a_full_disk_at_the_close_costs_the_reserve_and_if_that_is_too_little_the_log_stays(
    core: Core, path: Path, told: list[bool], failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[sqlite3.Connection] = []
    monkeypatch.setattr(opening, "_left_open", left)
    lived(path)
    open_core(core, ALLOWED)
    told.clear()
    keep_fact, calls = core.keep_fact, [0]

    def fails(name: str, value: Any, database: sqlite3.Connection | None = None) -> None:
        calls[0] += 1
        if calls[0] <= failures:
            full(None)
        keep_fact(name, value, database)

    monkeypatch.setattr(core, "keep_fact", fails)
    close_core(core)

    assert True in told
    assert path.with_name("queue.db.ballast").stat().st_size == 0
    assert is_shut(core)
    log = Path(f"{path}-wal")
    assert (log.exists() and log.stat().st_size > 0) is (failures > 1)
    assert len(left) == (failures > 1), "closing it would remove the log, and the next start would miss it"
    if failures == 1:
        open_core(core, ALLOWED)
        assert core.index.was_closed, "the room of the reserve was enough to close the index too"
    for database in left:
        assert copies.fact(database, "open") == core.epoch
        database.close()


@pytest.mark.parametrize(("number", "is_full"), [(errno.ENOSPC, True), (errno.EIO, False)])
def test_an_index_that_cannot_be_sealed_is_made_whole_at_the_next_start(
    core: Core, path: Path, number: int, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lived(path)
    open_core(core, ALLOWED)

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(opening, "seal", fails)
        if is_full:
            close_core(core)
        else:
            with pytest.raises(Exception, match="Input/output error"):
                close_core(core)

    assert is_shut(core)
    open_core(core, ALLOWED)
    assert sum(core.counted.values()) == 2


def test_a_fork_closes_its_files_and_writes_nothing(core: Core, path: Path) -> None:
    lived(path)
    open_core(core, ALLOWED)
    database = core.database
    assert database is not None
    before = digests(path)

    after_fork(core)

    assert is_shut(core)
    assert digests(path) == before
    assert database.execute("SELECT count(*) FROM jobs").fetchone() == (1,), "the connection of SQLite stays"
    database.close()
