"""A SQLite store of format 1 becomes one of the present format: no job is lost, the old file is kept, a kill harms nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import sqlite3
import sys
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest

from givalia_core.clock import Mark
from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreLocked, StoreUnfit
from givalia_core.model import CANCELLED, DEAD, DONE, JOB_FIELDS, RUNNING, STORED_STATES, Answered, Job
from givalia_core.store import packing
from givalia_core.store.base import Filter, Wanted
from givalia_core.store.sqlite import SQLite, chores, copies, disk, upgrade
from givalia_core.store.sqlite import records as records_room
from givalia_core.store.sqlite import store as sqlite_module
from givalia_core.store.sqlite.records import base_rows
from givalia_core.store.suite import MARK, NOW, by_seq, changed, claimed, inserts, job_id, request_id, waiting

FORMAT_1 = """
CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY, id BLOB NOT NULL, key TEXT, state INTEGER NOT NULL, module TEXT NOT NULL,
    target_worker TEXT NOT NULL, rank INTEGER NOT NULL, on_wall INTEGER NOT NULL, due_at_us INTEGER NOT NULL,
    expires_at_us INTEGER, ended_at_us INTEGER NOT NULL, forget_at_us INTEGER, version INTEGER NOT NULL,
    body BLOB NOT NULL, params BLOB NOT NULL, result BLOB, crc INTEGER NOT NULL
) STRICT;
CREATE TABLE requests (request BLOB PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE counts (
    module TEXT NOT NULL, state INTEGER NOT NULL, jobs INTEGER NOT NULL, PRIMARY KEY (module, state)
) STRICT, WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, crc INTEGER NOT NULL) STRICT, WITHOUT ROWID;
PRAGMA user_version = 1;
"""

JOBS = [
    waiting(1, key="first", due_at_us=NOW.timer_us - 1, params=b"\x00" * 3_000),
    waiting(2, state=RUNNING, attempt=1, fence=77, worker="w", holder=b"h" * 16, version=2),
    waiting(4, key="first", state=DONE, ended_at_us=5, forget_at_us=NOW.timer_us + 9, result=b"it", version=3),
    waiting(5, state=DEAD, ended_at_us=6, forget_at_us=NOW.timer_us + 9, reason="failed", error="no", version=4),
    waiting(8, state=CANCELLED, ended_at_us=7, forget_at_us=NOW.timer_us + 9, version=2,
            answered=(Answered(job_id(8), "enq", 3), Answered(request_id(8), "cancel", 0))),
    waiting(9, target_worker="w", specifier=">=2", priority=3, on_wall=True, expires_at_us=NOW.wall_us + 5),
]  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store as format 1 had it."""
    path = tmp_path / "queue.db"
    database = sqlite3.connect(path)
    database.execute("PRAGMA auto_vacuum = INCREMENTAL")
    database.execute(f"PRAGMA application_id = {disk.APPLICATION_ID}")
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(FORMAT_1)
    for job in JOBS:
        database.execute(f"INSERT INTO jobs VALUES ({','.join('?' * 17)})", _row(job))
        database.execute(
            "INSERT INTO counts VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET jobs = jobs + 1",
            (job.module, STORED_STATES.index(job.state)),
        )
    for name, value in (("epoch", 41), ("mark", tuple(MARK)), ("last_seq", 11)):
        packed = msgpack.packb(value)
        database.execute("INSERT INTO facts VALUES (?, ?, ?)", (name, packed, zlib.crc32(packed)))
    database.commit()
    database.close()
    return path


def _row(job: Job) -> tuple[Any, ...]:
    head = (
        *job.front()[:3], STORED_STATES.index(job.state), job.module, job.target, -job.priority, int(job.on_wall),
        *job.front()[8 : packing.HEAD],
    )  # fmt: skip
    body = packing.pack_body(job)
    crc = zlib.crc32(job.result or b"", zlib.crc32(job.params, zlib.crc32(body, zlib.crc32(msgpack.packb(head)))))
    return (*head, body, job.params, job.result, crc)


def test_a_server_does_not_open_it_and_says_what_to_do(path: Path) -> None:
    before = path.read_bytes()

    with pytest.raises(StoreUnfit, match="givalia store upgrade"):
        SQLite(f"sqlite://{path}").open()

    assert path.read_bytes() == before
    assert disk.format_of(path) == 1


def test_every_job_and_number_is_there_afterwards(path: Path) -> None:
    store = SQLite(f"sqlite://{path}")

    assert store.upgrade() == (1, disk.FORMAT)

    opened = store.open()
    assert opened.epoch > 41
    assert opened.last_seq == 11
    assert opened.mark == Mark(*MARK)
    assert by_seq(store, range(12)) == {job.seq: job for job in JOBS}
    assert store.page(Filter(), None, 100, NOW).jobs == JOBS
    assert claimed(store) == [JOBS[0]]
    assert list(store.running()) == [JOBS[1]]
    assert sum(store.counts().values()) == len(JOBS)
    assert store.check() == []
    assert store.commit([changed(JOBS[0], state=RUNNING), *inserts([waiting(12)])], MARK).refused == ()
    store.close()


def test_doing_it_again_changes_nothing(path: Path) -> None:
    store = SQLite(f"sqlite://{path}")
    store.upgrade()

    assert store.upgrade() == (disk.FORMAT, disk.FORMAT)

    store.open()
    assert len(by_seq(store, range(12))) == len(JOBS)
    store.close()


def kept_of(path: Path, before: int) -> sqlite3.Connection:
    """The copy that an upgrade kept; it is one file, and whole."""
    kept = path.with_name(f"queue.db.format-{before}")
    assert not kept.with_name(f"{kept.name}-wal").exists()
    return sqlite3.connect(kept)


def test_a_copy_of_the_store_as_it_was_is_kept(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.chmod(0o640)

    SQLite(f"sqlite://{path}").upgrade()

    with contextlib.closing(kept_of(path, 1)) as kept:
        assert kept.execute("SELECT count(*) FROM jobs").fetchone() == (len(JOBS),)
        assert kept.execute("PRAGMA user_version").fetchone() == (1,)
        assert copies.fact(kept, "epoch") == 41 + copies.STARTS
    assert {each.stat().st_mode & 0o777 for each in (path, path.with_name("queue.db.format-1"))} == {0o640}
    assert sum("mv" in line and "queue.db.format-1" in line for line in caplog.messages) == 1


def of_format_2(path: Path, *, is_closed: bool = True, mark: Mark = MARK) -> None:
    """A store of format 2; unless closed, what its last server wrote lies in the log alone."""
    store = SQLite(f"sqlite://{path}")
    store.open()
    store._core.connection().execute("PRAGMA user_version = 2")
    chores.checkpoint(store._core)
    store.commit(inserts(JOBS), mark)
    if is_closed:
        store._core.connection().execute("PRAGMA user_version = 2")
        store.close()
    else:
        log_bytes = Path(f"{path}-wal").read_bytes()
        store.close()
        database = sqlite3.connect(path)
        database.execute("DELETE FROM jobs")
        database.execute("UPDATE facts SET value = x'01', crc = ? WHERE name = 'open'", (zlib.crc32(b"\x01"),))
        database.close()
        Path(f"{path}-wal").write_bytes(log_bytes)
    shutil.rmtree(path.with_name("queue.db.index"))


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_start_upgrades_a_store_of_the_format_before_and_keeps_a_copy(tmp_path: Path, is_closed: bool) -> None:
    path = tmp_path / "queue.db"
    of_format_2(path, is_closed=is_closed)

    store = SQLite(f"sqlite://{path}", may_upgrade=True)
    opened = store.open()

    assert disk.format_of(path) == disk.FORMAT
    assert by_seq(store, range(12)) == {job.seq: job for job in JOBS}
    assert opened.epoch == 2
    store.close()
    with contextlib.closing(kept_of(path, 2)) as kept:
        assert kept.execute("PRAGMA user_version").fetchone() == (2,)
        assert kept.execute("SELECT count(*) FROM jobs").fetchone() != (0,)
        assert copies.fact(kept, "open") == 0


def test_the_way_back_leads_to_fences_above_all_that_were_granted_since(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    of_format_2(path)
    store = SQLite(f"sqlite://{path}", may_upgrade=True)
    store.open()
    store.close()
    last = store.open().epoch
    store.close()

    path.with_name("queue.db.format-2").rename(path)

    assert store.open().epoch > last + copies.STARTS - 10
    assert by_seq(store, range(12)) == {job.seq: job for job in JOBS}
    store.close()


@pytest.mark.parametrize("before", [1, 2])
def test_manual_upgrade_is_refused_with_the_exact_command(path: Path, tmp_path: Path, before: int) -> None:
    if before == 2:
        path = tmp_path / "a b" / "queue.db"
        of_format_2(path)
    files = {each: each.read_bytes() for each in path.parent.glob("queue.db*") if each.is_file()}

    with pytest.raises(StoreUnfit, match=r"run /\S+/givalia store upgrade --store (sqlite:\S+)") as refused:
        SQLite(f"sqlite://{path}").open()

    named = str(refused.value).split("--store ")[1].split(" as its user")[0]
    assert SQLite(*shlex.split(named)).path == path
    files[path.with_name("queue.db.lock")] = path.with_name("queue.db.lock").read_bytes()
    assert files == {each: each.read_bytes() for each in path.parent.glob("queue.db*") if each.is_file()}


def test_a_copy_that_is_kept_already_is_replaced_only_by_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "queue.db"
    of_format_2(path)
    kept = tmp_path / "queue.db.format-2"
    kept.write_text("precious")
    again = path.read_bytes()

    SQLite(f"sqlite://{path}", may_upgrade=True).upgrade()
    path.write_bytes(again)  # As if it had been killed behind the copy.
    SQLite(f"sqlite://{path}", may_upgrade=True).upgrade()

    assert kept.read_text() == "precious"
    assert sorted(each.name for each in tmp_path.glob("*.format-*")) == ["queue.db.format-2", "queue.db.format-2.2"]
    assert sum("mv queue.db.format-2.2 queue.db" in line for line in caplog.messages) == 2


def test_a_copy_of_another_store_of_the_same_age_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    for number in range(2):
        of_format_2(path, mark=MARK._replace(wall_us=MARK.wall_us + number))
        SQLite(f"sqlite://{path}", may_upgrade=True).upgrade()
        path.unlink()

    assert sorted(each.name for each in tmp_path.glob("*.format-*")) == ["queue.db.format-2", "queue.db.format-2.2"]


def test_upgrade_without_room_for_the_copy_is_refused_and_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "queue.db"
    of_format_2(path)
    before = path.read_bytes()
    full = os.statvfs_result((4096, 4096, 100, 10, 10, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(StoreFull, match="a copy of it is kept"):
        SQLite(f"sqlite://{path}", may_upgrade=True).open()

    assert path.read_bytes() == before
    assert not [*tmp_path.glob("queue.db.format*"), *tmp_path.glob("queue.db.upgrading*")]


def killed_before_call(path: Path, number: int) -> bool:
    """Upgrade in a fork that is killed before its call number `number` of what changes files; False if it was done before."""
    child = os.fork()
    if not child:
        left = number

        def count(frame: Any, event: str, called: Any) -> None:
            nonlocal left
            if event == "c_call" and frame.f_code.co_filename in _UPGRADING:
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            SQLite(f"sqlite://{path}", may_upgrade=True).open()
            sys.setprofile(None)
            os._exit(0)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


_UPGRADING = {module.__file__ for module in (upgrade, copies, disk, sqlite_module)}


@pytest.mark.parametrize("before", [1, 2])
def test_upgrade_that_is_killed_at_any_call_is_done_by_the_next_start(path: Path, before: int, tmp_path: Path) -> None:
    if before == 2:
        path = tmp_path / "second" / "queue.db"
        of_format_2(path)
    original = tmp_path / "original"
    shutil.copytree(path.parent, original, ignore=shutil.ignore_patterns("original"))

    for number in itertools.count(1, 3 if before == 2 else 5):
        for each in path.parent.glob("queue.db*"):
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        shutil.copytree(original, path.parent, dirs_exist_ok=True)
        was_killed = killed_before_call(path, number)

        store = SQLite(f"sqlite://{path}", may_upgrade=True)
        store.open()
        assert by_seq(store, range(12)) == {job.seq: job for job in JOBS}
        store.close()
        with contextlib.closing(kept_of(path, before)) as kept:
            assert kept.execute("PRAGMA user_version").fetchone() == (before,)
            assert kept.execute("PRAGMA quick_check").fetchone() == ("ok",)
        assert not [*path.parent.glob("queue.db.upgrading*"), *path.parent.glob("*.making*")]
        if not was_killed:
            break
    assert number > 50


def test_a_damaged_row_is_refused_and_the_store_stays_as_it_is(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE jobs SET due_at_us = due_at_us + 1 WHERE seq = 4")
    database.commit()
    database.close()

    with pytest.raises(StoreCorrupt):
        SQLite(f"sqlite://{path}").upgrade()

    assert disk.format_of(path) == 1


def test_one_that_a_server_has_open_is_refused(path: Path) -> None:
    lock = disk.Lock(path.with_name("queue.db.lock"))

    with pytest.raises(StoreLocked):
        SQLite(f"sqlite://{path}").upgrade()

    lock.release()


def record_before(fields: tuple[Any, ...], params: bytes) -> bytes:
    """The record of an enq before there was `started_at_us`."""
    place = JOB_FIELDS.index("started_at_us")
    packed: bytes = msgpack.packb((*fields[:place], *fields[place + 1 :]))
    return packed + zlib.crc32(params, zlib.crc32(packed)).to_bytes(4, "little")


@pytest.mark.parametrize("before", [2, 3])
def test_a_store_of_a_readable_format_is_read_as_it_is_and_is_of_this_format_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    path = tmp_path / "second" / "queue.db"
    store = SQLite(f"sqlite://{path}")
    store.open()
    request = request_id(7)
    job = waiting(1, key="k", answered=(Answered(job_id(1), "enq", 5), Answered(request, "ext", 6)))
    # As the records of that format have it: an answer has no time.
    store.commit(inserts([job]), MARK)
    earlier: Any = tuple(past[: before + 1] for past in job.answered)
    monkeypatch.setattr(records_room, "pack", record_before)
    ((_, records),), _ = base_rows([job.changed(answered=earlier)])
    store._core.connection().execute("UPDATE jobs SET records = ?", (records,))
    store.close()
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version = {before}")
    database.close()
    shutil.rmtree(path.with_name("queue.db.index"))

    assert SQLite(f"sqlite://{path}").upgrade() == (before, disk.FORMAT)

    assert disk.format_of(path) == disk.FORMAT
    store.open()
    assert store.find(Wanted(requests=frozenset({request})), NOW).requests == {request: job}
    assert store.check() == []
    store.close()


def test_an_upgrade_that_meets_a_full_disk_leaves_the_store_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL

    def fails(*_: object) -> None:
        raise full

    monkeypatch.setattr(upgrade, "_fill", fails)
    with pytest.raises(StoreFull):
        SQLite(f"sqlite://{path}").upgrade()

    assert path.read_bytes() == before
    assert not path.with_name("queue.db.upgrading").exists()
    monkeypatch.undo()
    assert SQLite(f"sqlite://{path}").upgrade() == (1, disk.FORMAT)


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "format_of", failing)

    with pytest.raises(StoreFailed):
        SQLite(f"sqlite://{path}").upgrade()
