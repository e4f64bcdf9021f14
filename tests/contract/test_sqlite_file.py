"""What only the SQLite store promises: its files, its refusals, its errors, its plans, and commits that survive kill -9."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import os
import shutil
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from sqlite_history import killed

from givalia_core.errors import StoreCorrupt, StoreError, StoreFailed, StoreFull, StoreLocked, StoreTooNew, StoreUnfit
from givalia_core.model import CANCELLED, DEAD, DONE, RUNNING, WAITING, Answered, Job, JobState
from givalia_core.store.base import Change, Claim, Filter, Retention, Span, Wanted
from givalia_core.store.sqlite import SQLite, disk
from givalia_core.store.sqlite import store as sqlite_store
from givalia_core.store.suite import (
    KEEP_ALL,
    MARK,
    NOW,
    ROUTE,
    by_seq,
    changed,
    claimed,
    ended,
    inserts,
    job_id,
    request_id,
    waiting,
)  # fmt: skip

BALLAST_BYTES = 1 << 16


@pytest.fixture(autouse=True)
def _small_ballast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BALLAST_BYTES", BALLAST_BYTES)


def database(store: SQLite) -> sqlite3.Connection:
    assert store._database is not None
    return store._database


def read_anew(store: SQLite) -> SQLite:
    """The same store without what it has in memory of jobs."""
    store.tidy()
    store._recent.clear()
    store._less_recent.clear()
    return store


def digests(path: Path) -> dict[str, str]:
    """What each file of the store holds, but for the lock, whose bytes are the holder's."""
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.parent.rglob("*"))
        if file.is_file() and not file.name.endswith(".lock")
    }


def python(code: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Another process with our package."""
    root = str(Path(sqlite_store.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


# How it opens.


def test_every_pragma_is_what_the_contract_asks(store: SQLite) -> None:
    asked = {
        "locking_mode": "exclusive",
        "journal_mode": "wal",
        "synchronous": 2,
        "wal_autocheckpoint": 0,
        "trusted_schema": 0,
        "cell_size_check": 1,
        "auto_vacuum": 2,
        "application_id": disk.APPLICATION_ID,
        "user_version": disk.FORMAT,
    }

    answered = {name: database(store).execute(f"PRAGMA {name}").fetchone()[0] for name in asked}

    assert answered == asked


def test_pragmas_are_the_same_when_an_old_store_is_opened_again(store: SQLite) -> None:
    store.close()
    store.open()

    for name, _, expected in sqlite_store._PRAGMAS:
        assert database(store).execute(f"PRAGMA {name}").fetchone() == (expected,)


def test_a_pragma_that_does_not_take_is_unfit_and_lets_go_of_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLite(f"sqlite://{path}")
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_store, "_PRAGMAS", (("synchronous", "OFF", 2),))
        with pytest.raises(StoreUnfit, match="synchronous"):
            store.open()

    assert store.open().epoch >= 1
    store.close()


def test_files_are_for_their_owner_alone(path: Path) -> None:
    before = os.umask(0)
    try:
        store = SQLite(f"sqlite://{path}")
        store.open()
        store.commit(inserts([waiting(1)]), MARK)
    finally:
        os.umask(before)

    modes = {str(file.relative_to(path.parent)): stat.S_IMODE(file.stat().st_mode) for file in path.parent.rglob("*")}
    store.close()
    index = ("slots", "sums", "names", "lanes.keys", "runs")
    files = ("queue.db", "queue.db-wal", "queue.db.lock", "queue.db.ballast", *(f"queue.db.index/{name}" for name in index))
    assert modes == {**dict.fromkeys(files, 0o600), "queue.db.index": 0o700}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///var/lib/q.db", "/var/lib/q.db"),
        ("sqlite:////var/lib/q.db", "/var/lib/q.db"),
        ("sqlite://var/lib/q.db", "/var/lib/q.db"),
        ("sqlite:/var/lib/q.db", "/var/lib/q.db"),
        ("sqlite:///var/lib/a%20b.db", "/var/lib/a b.db"),
        ("sqlite:///var/lib/ü.db", "/var/lib/ü.db"),
    ],
)
def test_an_absolute_url_names_its_path(url: str, expected: str) -> None:
    assert SQLite(url).path == Path(expected)


def test_a_relative_url_is_below_the_working_folder_of_its_making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SQLite("sqlite:q.db")

    monkeypatch.chdir("/")

    assert store.path == tmp_path / "q.db"


@pytest.mark.parametrize("url", ["sqlite:", "sqlite://", "sqlite:///", "sqlite:///var/lib/", "sqlite:folder/"])
def test_a_url_without_a_file_is_unfit(url: str) -> None:
    with pytest.raises(StoreUnfit):
        SQLite(url)


def test_a_folder_in_the_place_of_the_file_is_unfit(path: Path) -> None:
    path.mkdir(parents=True)

    with pytest.raises(StoreError):
        SQLite(f"sqlite://{path}").open()


def test_a_file_in_the_place_of_the_folder_is_unfit(path: Path) -> None:
    path.parent.write_text("a file")

    with pytest.raises(StoreUnfit):
        SQLite(f"sqlite://{path}").open()


@pytest.mark.parametrize("kind", sorted(disk.NETWORK_FILESYSTEMS))
def test_a_network_file_system_is_unfit_unless_forced(path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "filesystem", lambda folder: kind)
    with pytest.raises(StoreUnfit, match=kind):
        SQLite(f"sqlite://{path}").open()

    forced = SQLite(f"sqlite://{path}", allow_network=True)

    assert forced.open().epoch >= 1
    forced.close()


@pytest.mark.parametrize("target", ["missing", "present"])
def test_a_symbolic_link_in_the_place_of_the_file_is_refused(path: Path, target: str) -> None:
    path.parent.mkdir(mode=0o700)
    elsewhere = path.parent / "elsewhere.db"
    if target == "present":
        elsewhere.write_bytes(b"precious")
    path.symlink_to(elsewhere)

    with pytest.raises(StoreUnfit, match="symbolic link"):
        SQLite(f"sqlite://{path}").open()

    assert elsewhere.exists() is (target == "present")
    if target == "present":
        assert elsewhere.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".lock", ".ballast"])
def test_a_symbolic_link_in_the_place_of_a_side_file_is_refused(path: Path, suffix: str) -> None:
    path.parent.mkdir(mode=0o700)
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_bytes(b"precious")
    Path(f"{path}{suffix}").symlink_to(elsewhere)

    with pytest.raises(StoreError):
        SQLite(f"sqlite://{path}").open()

    assert elsewhere.read_bytes() == b"precious"


def test_what_an_interrupted_making_left_is_made_anew(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    Path(f"{path}.making").write_bytes(b"half a database")
    Path(f"{path}.making-journal").write_bytes(b"and its journal")
    store = SQLite(f"sqlite://{path}")

    assert store.open().epoch >= 1

    assert not list(path.parent.glob("*.making*"))
    store.close()


# Whom it refuses.

OPENER = """
import sys, time
from givalia_core.store.sqlite import SQLite
from givalia_core.errors import StoreLocked
started = time.monotonic()
try:
    SQLite(sys.argv[1]).open()
except StoreLocked as error:
    print(error.pid, time.monotonic() - started, error, sep="|")
"""


def test_a_second_process_is_refused_at_once_and_told_who_holds_the_store(store: SQLite, path: Path) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    before = digests(path)

    with python(OPENER, f"sqlite://{path}") as other:
        assert other.stdout is not None
        pid, seconds, words = other.stdout.read().strip().split("|")

    assert int(pid) == os.getpid()
    assert float(seconds) < 1
    assert str(path) in words
    assert digests(path) == before
    assert store.commit([changed(waiting(1))], MARK).refused == ()


def test_a_second_opening_in_the_same_process_is_refused(store: SQLite, path: Path) -> None:
    with pytest.raises(StoreLocked) as caught:
        SQLite(f"sqlite://{path}").open()

    assert caught.value.pid == str(os.getpid())


def test_a_closed_store_lets_another_process_in(store: SQLite, path: Path) -> None:
    store.close()

    with python("import sys; from givalia_core.store.sqlite import SQLite; print(SQLite(sys.argv[1]).open())",
                f"sqlite://{path}") as other:  # fmt: skip
        assert other.stdout is not None
        assert "epoch=2" in other.stdout.read()


def _as_database(path: Path, statement: str) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE things (name)")
    other.execute(statement)
    other.commit()
    other.close()


FOREIGN = {
    "garbage": lambda path: path.write_bytes(os.urandom(8_192)),
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(b"SQLite format 3\x00"),
    "text": lambda path: path.write_text("dear diary\n" * 100),
    "zeros": lambda path: path.write_bytes(bytes(8_192)),
    "another database": lambda path: _as_database(path, "SELECT 1"),
    "another application": lambda path: _as_database(path, "PRAGMA application_id = 7"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(path: Path, kind: str) -> None:
    path.parent.mkdir(mode=0o700)
    FOREIGN[kind](path)
    before = digests(path)

    with pytest.raises(StoreCorrupt):
        SQLite(f"sqlite://{path}").open()

    assert digests(path) == before


def test_a_newer_format_is_refused_and_left_as_it_is(store: SQLite, path: Path) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    store.close()
    with path.open("r+b") as file:
        file.seek(60)
        file.write(struct.pack(">i", disk.FORMAT + 1))
    before = digests(path)

    with pytest.raises(StoreTooNew, match=str(disk.FORMAT + 1)):
        store.open()

    assert digests(path) == before


def test_a_refused_open_leaves_the_lock_to_the_next(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(b"garbage")
    store = SQLite(f"sqlite://{path}")
    with pytest.raises(StoreCorrupt):
        store.open()

    path.unlink()

    assert store.open().epoch == 1
    store.close()


@pytest.mark.parametrize(
    "replace",
    [Path.touch, Path.mkdir, os.mkfifo, lambda lock: lock.symlink_to("elsewhere"), lambda _: None],
    ids=["file", "folder", "pipe", "link", "nothing"],
)
def test_a_lock_file_that_is_replaced_ends_no_server_and_is_said_once(
    store: SQLite, path: Path, replace: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    lock = path.with_name(path.name + ".lock")
    lock.unlink()
    replace(lock)

    for _ in range(3):
        store._looked_s = 0.0
        store.tidy()

    assert [record.message for record in caplog.records if "removed or replaced" in record.message] != []
    assert len(caplog.records) == 1
    assert store.commit(inserts([waiting(1)]), MARK).refused == ()


def test_a_truncated_database_is_corrupt(store: SQLite, path: Path) -> None:
    store.commit(inserts(waiting(seq, params=bytes(9_000)) for seq in range(1, 30)), MARK)
    store.close()
    os.truncate(path, 8_192)

    with pytest.raises(StoreCorrupt):
        _open_and_read_all(store)


def _open_and_read_all(store: SQLite) -> None:
    store.open()
    by_seq(store, range(1, 30))


def test_a_fork_may_not_use_it(store: SQLite) -> None:
    store.commit(inserts([waiting(1)]), MARK)

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.commit(inserts([waiting(2)]), MARK)
            os.write(writing, b"committed")
        except StoreFailed:
            os.write(writing, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    assert os.read(reading, 99) == b"refused"
    os.close(reading)
    os.close(writing)
    assert store.commit([changed(waiting(1))], MARK).refused == ()


def test_a_fork_that_closes_it_takes_nothing_from_its_owner(store: SQLite, path: Path, tmp_path: Path) -> None:
    store.commit(inserts([waiting(1)]), MARK)

    child = os.fork()
    if child == 0:
        try:
            store.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    store.commit(inserts([waiting(2)]), MARK)

    # What kill -9 would leave now is still every commit.
    dropped = tmp_path / "dropped"
    dropped.mkdir(mode=0o700)
    shutil.copytree(path.parent, dropped, dirs_exist_ok=True)
    again = SQLite(f"sqlite://{dropped}/queue.db")
    again.open()
    found = by_seq(again, {1, 2})
    again.close()
    assert set(found) == {1, 2}
    with pytest.raises(StoreLocked):
        SQLite(f"sqlite://{path}").open()


@pytest.mark.parametrize("leave", [SQLite.close, lambda store: store.__dict__.clear()], ids=["closes", "drops"])
def test_a_fork_does_not_remove_the_log_of_its_parent(store: SQLite, path: Path, leave: Callable[[SQLite], None]) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    log = Path(f"{path}-wal")
    before = log.stat().st_ino, log.stat().st_size

    child = os.fork()
    if child == 0:
        try:
            leave(store)
            gc.collect()
        finally:
            os._exit(0)
    os.waitpid(child, 0)

    assert (log.stat().st_ino, log.stat().st_size) == before
    store.tidy()
    store.commit(inserts([waiting(2)]), MARK)


def test_a_fork_does_not_keep_the_store_locked(path: Path) -> None:
    first = SQLite(f"sqlite://{path}")
    first.open()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            os.read(reading, 1)
        finally:
            os._exit(0)

    first.close()
    second = SQLite(f"sqlite://{path}")
    second.open()

    second.close()
    os.close(writing)
    os.close(reading)
    os.waitpid(child, 0)


def test_a_store_that_is_not_open_fails_every_call(path: Path) -> None:
    store = SQLite(f"sqlite://{path}")

    for call in CALLS.values():
        with pytest.raises(StoreFailed):
            call(store)


# What it finds damaged.


def _of_another(records: list[bytes], other: list[bytes]) -> list[bytes]:
    return [other[0], records[1]]


DAMAGE: dict[str, Callable[[list[bytes], list[bytes]], Any]] = {
    "a byte of the record": lambda records, other: [records[0][:20] + b"?" + records[0][21:], records[1]],
    "params": lambda records, other: [records[0], b"13"],
    "checksum": lambda records, other: [records[0][:-1] + bytes([records[0][-1] ^ 1]), records[1]],
    "record that is cut": lambda records, other: [records[0][:-1], records[1]],
    "empty record": lambda records, other: [b"", records[1]],
    "record of another job": _of_another,
    "another job": lambda records, other: other,
    "no list": lambda records, other: 7,
}


def set_aside(store: SQLite, seq: int) -> None:
    """Job `seq` is in quarantine, and the store goes on without it, before and after a restart."""
    store.tidy()
    assert store.describe()["quarantined"] == 1
    assert [line for line in store.check() if line.startswith(f"job {seq} is in quarantine")]
    store.close()
    store.open()
    assert store.describe()["quarantined"] == 1
    assert len(store.check()) == 1
    assert store.commit(inserts([waiting(9, key="k")]), MARK).refused == ()


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"record of another job", "another job", "no list"}))
def test_a_job_whose_record_is_bad_is_set_aside_and_the_others_go_on(store: SQLite, damage: str) -> None:
    jobs = [waiting(seq, key=key, params=b"12") for seq, key in ((1, "k"), (2, None))]
    store.commit(inserts(jobs), MARK)
    (blob,) = database(store).execute("SELECT records FROM jobs").fetchone()
    records = msgpack.unpackb(blob)
    records[:2] = DAMAGE[damage](records[:2], records[2:])
    database(store).execute("UPDATE jobs SET records = ?", (msgpack.packb(records),))
    read_anew(store)

    found = store.find(Wanted(frozenset({job_id(1), job_id(2)}), frozenset({"k"})), NOW)

    assert found.ids == {job_id(2): jobs[1]}
    assert found.live == {}
    set_aside(store, 1)
    assert by_seq(store, {2}) == {2: jobs[1]}


@pytest.mark.parametrize("damage", ["a byte of the record", "checksum", "record that is cut", "empty record"])
@pytest.mark.parametrize("how", ["find", "rebuild"])
def test_a_job_whose_newest_change_is_bad_does_not_come_back_as_it_was_before(
    store: SQLite, path: Path, damage: str, how: str
) -> None:
    job, other = waiting(1, key="k"), waiting(2)
    store.commit(inserts([job, other]), MARK)
    store.commit([changed(job, state=CANCELLED, ended_at_us=1, forget_at_us=NOW.timer_us * 2)], MARK)
    (blob,) = database(store).execute("SELECT records FROM changes").fetchone()
    (record,) = msgpack.unpackb(blob)
    database(store).execute("UPDATE changes SET records = ?", (msgpack.packb(DAMAGE[damage]([record, b""], [])[:1]),))
    read_anew(store)

    if how == "rebuild":
        store.close()
        (disk.index_folder(path) / "lanes.keys").unlink()
        store.open()

    assert by_seq(store, {1, 2}) == {2: other}
    assert store.page(Filter(), None, 10, NOW).jobs == [other]
    if how == "find":
        set_aside(store, 1)
    else:
        assert any(line.startswith("job 1 is in quarantine") for line in store.check())


@pytest.mark.parametrize("damage", ["record of another job", "another job"])
def test_a_place_that_has_the_record_of_another_job_is_not_believed(store: SQLite, damage: str) -> None:
    for job in (waiting(1, key="k", params=b"12"), waiting(2, params=b"12")):
        store.commit(inserts([job]), MARK)
    rows = [
        msgpack.unpackb(blob) for (blob,) in database(store).execute("SELECT records FROM jobs ORDER BY first_seq").fetchall()
    ]
    damaged = msgpack.packb(DAMAGE[damage](*rows))
    database(store).execute("UPDATE jobs SET records = ? WHERE first_seq = 1", (damaged,))
    read_anew(store)

    found = store.find(Wanted(frozenset({job_id(1)}), frozenset({"k"})), NOW)

    assert found.ids == found.live == {}
    assert set(by_seq(store, {2})) == {2}
    assert store.check() != []


def test_a_row_that_cannot_be_read_is_named_and_the_others_go_on(store: SQLite) -> None:
    for job in (waiting(1, key="k"), waiting(2)):
        store.commit(inserts([job]), MARK)
    database(store).execute("UPDATE jobs SET records = ? WHERE first_seq = 1", (msgpack.packb(7),))
    read_anew(store)

    assert set(by_seq(store, {1, 2})) == {2}
    assert [job.seq for job in store.page(Filter(), None, 10, NOW).jobs] == [2]
    assert any("row 1 of jobs" in line for line in store.check())


def test_a_row_that_is_gone_is_missed_and_no_job_that_never_was(store: SQLite, caplog: pytest.LogCaptureFixture) -> None:
    store.commit(inserts([waiting(1), waiting(2)]), MARK)
    store.commit(inserts([waiting(3)]), MARK)
    database(store).execute("DELETE FROM jobs WHERE first_seq = 1")
    read_anew(store)

    assert by_seq(store, {1, 2, 3}) == {3: waiting(3)}

    assert "the records have 1 jobs, the stored counts had 3" in caplog.text
    assert store.counts() == {("Mail", WAITING): 1}
    assert store.check() != []


@pytest.mark.parametrize("fact", ["epoch", "commit"])
def test_a_damaged_fact_is_corrupt_at_open(store: SQLite, fact: str) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    database(store).execute("UPDATE facts SET value = x'07' WHERE name = ?", (fact,))
    store.close()

    with pytest.raises(StoreCorrupt, match=fact):
        store.open()


def test_check_finds_counts_that_are_not_those_of_the_rows(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "_UNCOUNTED_MOST", 0)
    store.commit(inserts([waiting(1)]), MARK)
    assert store.check() == []

    database(store).execute("UPDATE counts SET jobs = jobs + 1")
    store.close()
    store.open()

    assert len(store.check()) == 1


@pytest.mark.parametrize("place", range(1, 12))
def test_a_page_of_rubbish_is_found_and_never_shown_as_a_job(store: SQLite, path: Path, place: int) -> None:
    jobs = [waiting(seq, key=f"k{seq}", params=seq.to_bytes(2, "big") * 400) for seq in range(1, 60)]
    store.commit(inserts(jobs), MARK)
    store.close()
    with path.open("r+b") as file:
        file.seek(4_096 * place)
        file.write(b"\xa5" * 4_096)

    errors = 0
    try:
        store.open()
        for job in jobs:
            try:
                found = store.find(Wanted(ids=frozenset({job.id}), keys=frozenset({job.key or ""})), NOW)
            except StoreCorrupt:
                errors += 1
            else:
                assert found.ids.get(job.id, job) == job
        if not errors:
            errors = len(store.check())
    except StoreCorrupt:
        errors += 1

    assert errors


# When the disk is full, or worse.


def fill(store: SQLite) -> None:
    """Let the file grow no further."""
    (pages,) = database(store).execute("PRAGMA page_count").fetchone()
    database(store).execute(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_leaves_nothing_of_the_commit(store: SQLite) -> None:
    first = waiting(1, key="k", answered=(Answered(job_id(1), "enq", 0), Answered(request_id(1), "ext", 0)))
    store.commit(inserts([first]), MARK)
    fill(store)

    later = MARK._replace(timer_us=MARK.timer_us + 1)
    big = [waiting(seq, params=bytes(50_000)) for seq in range(2, 9)]
    with pytest.raises(StoreFull):
        store.commit([ended(first), *inserts(big)], later)

    assert by_seq(store, range(9)) == {1: first}
    assert store.counts() == {("Mail", WAITING): 1}
    assert store.check() == []


def test_a_full_disk_costs_the_ballast_and_settling_goes_on(store: SQLite, path: Path) -> None:
    first = waiting(1, state=RUNNING)
    store.commit(inserts([first]), MARK)
    ballast = Path(f"{path}.ballast")
    assert ballast.stat().st_size == BALLAST_BYTES
    fill(store)
    with pytest.raises(StoreFull):
        store.commit(inserts([waiting(2, params=bytes(500_000))]), MARK)

    assert ballast.stat().st_size == 0
    assert store.commit([ended(first)], MARK).refused == ()


def test_room_that_comes_back_is_noticed_and_held_back_again(
    store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store)
    with pytest.raises(StoreFull):
        store.commit(inserts([waiting(1, params=bytes(500_000))]), MARK)
    free = os.statvfs(path.parent)
    with monkeypatch.context() as patched:
        none = os.statvfs_result((free.f_bsize, free.f_frsize, free.f_blocks, 0, 0, 9, 9, 9, 0, 255))
        patched.setattr(os, "statvfs", lambda place: none)
        assert store.has_room() is False
    database(store).execute("PRAGMA max_page_count = 1000000")

    assert store.has_room() is True

    assert Path(f"{path}.ballast").stat().st_size == BALLAST_BYTES
    assert store.commit(inserts([waiting(1, params=bytes(500_000))]), MARK).refused == ()


def test_a_disk_that_is_full_at_start_does_not_hinder_opening(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(path.parent.parent)
    monkeypatch.setattr(os, "statvfs", lambda place: os.statvfs_result((free[0], free[1], 9, 0, 0, 9, 9, 9, 0, 255)))
    store = SQLite(f"sqlite://{path}")

    assert store.open().epoch == 1

    assert store.has_room() is False
    store.close()


class Broken:
    """A connection on which one kind of statement fails, as a disk would make it fail."""

    def __init__(self, real: sqlite3.Connection, code: int, *words: str) -> None:
        self.real, self.code, self.words = real, code, words

    def _fail(self, statement: str) -> None:
        if any(statement.lstrip().startswith(word) for word in self.words):
            error = sqlite3.OperationalError("disk trouble")
            error.sqlite_errorcode = self.code
            raise error

    def execute(self, statement: str, *values: Any) -> Any:
        self._fail(statement)
        return self.real.execute(statement, *values)

    def executemany(self, statement: str, *values: Any) -> Any:
        self._fail(statement)
        return self.real.executemany(statement, *values)

    @property
    def in_transaction(self) -> bool:
        return self.real.in_transaction

    def close(self) -> None:
        self.real.close()


@pytest.fixture
def broken(store: SQLite) -> Iterator[Any]:
    real = database(store)

    def breaks(code: int, *words: str) -> None:
        store._database = Broken(real, code, *words)  # type: ignore[assignment]

    yield breaks
    if store._database is not None:
        store._database = real


CALLS = {
    "commit": lambda store: store.commit(inserts([waiting(9)]), MARK),
    "find": lambda store: by_seq(store, {1}),
    "claim": lambda store: claimed(store),
    "running": lambda store: list(store.running()),
    "expired": lambda store: store.expired(NOW, 5),
    "page": lambda store: store.page(Filter(), None, 5, NOW),
}
"""What cannot be done without the file; the rest is known from the index and from memory."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_IOERR_READ, StoreFailed),
        (sqlite3.SQLITE_IOERR_FSYNC, StoreFailed),
        (sqlite3.SQLITE_READONLY, StoreFailed),
        (sqlite3.SQLITE_BUSY, StoreFailed),
        # A failed read is called corruption, too: the file is looked through, and it is whole.
        (sqlite3.SQLITE_CORRUPT, StoreFailed),
        (sqlite3.SQLITE_NOTADB, StoreFailed),
    ],
)
def test_an_error_of_sqlite_is_never_shown_as_it_is(
    store: SQLite, broken: Any, call: str, code: int, expected: type[Exception]
) -> None:
    due = waiting(2, due_at_us=NOW.timer_us - 9, expires_at_us=NOW.timer_us - 1)
    store.commit(inserts([waiting(1), due, waiting(3, state=RUNNING)]), MARK)
    read_anew(store)
    broken(code, "SELECT", "INSERT", "UPDATE")

    with pytest.raises(expected):
        CALLS[call](store)


def test_a_read_that_fails_at_the_start_is_not_called_corruption(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing() -> int:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    store = SQLite(f"sqlite://{path}")
    monkeypatch.setattr(store, "_first_checkpoint", failing)

    with pytest.raises(StoreFailed):
        store.open()


def test_pages_that_the_disk_does_not_give_are_not_called_corrupt(
    store: SQLite, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    read_anew(store)
    broken(sqlite3.SQLITE_CORRUPT, "SELECT", "quick_check")
    monkeypatch.setattr(disk, "is_readable", lambda path: False)

    with pytest.raises(StoreFailed):
        by_seq(store, {1})


@pytest.mark.parametrize("word", ["BEGIN", "INSERT INTO jobs", "INSERT OR REPLACE", "INSERT INTO counts", "COMMIT"])
def test_whichever_statement_fails_nothing_of_the_commit_is_stored(
    store: SQLite, broken: Any, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "_UNCOUNTED_MOST", 0)
    first = waiting(1)
    store.commit(inserts([first]), MARK)
    real = database(store)
    broken(sqlite3.SQLITE_FULL, word)

    with pytest.raises(StoreFull):
        store.commit([changed(first, module="Fax"), *inserts([waiting(2)])], MARK)

    store._database = real
    assert not real.in_transaction
    assert by_seq(store, {1, 2}) == {1: first}
    assert store.check() == []


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_WRITE, sqlite3.SQLITE_CANTOPEN])
@pytest.mark.parametrize("word", ["BEGIN", "INSERT INTO jobs", "COMMIT", "PRAGMA wal_checkpoint"])
def test_a_used_up_quota_is_a_full_disk(
    store: SQLite, broken: Any, word: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite has one error for each write that fails; only of a disk without a block to spare it says that it is full."""
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 1)
    real = database(store)
    allocated = disk.allocate

    def no_quota(fd: int, start: int, length: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(disk, "allocate", no_quota)
    store.commit(inserts([waiting(1)]), MARK)
    broken(code, word)

    with contextlib.suppress(StoreFull):
        store.commit(inserts([waiting(2)]), MARK)
    store.tidy()

    assert store.is_full
    store._database = real
    monkeypatch.setattr(disk, "allocate", allocated)
    assert store.has_room()
    store.commit(inserts([waiting(3)]), MARK)
    assert store.check() == []


def test_a_new_store_on_a_full_disk_is_refused_for_now(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SCHEMA", "PRAGMA max_page_count = 3; " + disk.SCHEMA)

    with pytest.raises(StoreFull):
        SQLite(f"sqlite://{path}").open()


def test_a_checkpoint_that_fails_stops_the_server(store: SQLite, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 1)
    store.commit(inserts([waiting(1)]), MARK)
    broken(sqlite3.SQLITE_IOERR_FSYNC, "PRAGMA")

    with pytest.raises(StoreFailed):
        store.tidy()


def test_a_checkpoint_without_room_costs_the_ballast_only(
    store: SQLite, path: Path, broken: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 1)
    store.commit(inserts([waiting(1)]), MARK)
    broken(sqlite3.SQLITE_FULL, "PRAGMA")

    store.tidy()

    assert Path(f"{path}.ballast").stat().st_size == 0


def test_a_close_that_fails_says_so_and_still_lets_go(store: SQLite, path: Path, broken: Any) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    broken(sqlite3.SQLITE_IOERR_FSYNC, "PRAGMA")

    with pytest.raises(StoreFailed):
        store.close()

    again = SQLite(f"sqlite://{path}")
    assert again.open().last_seq == 1
    again.close()


# What survives.

WRITER = """
import sys
from givalia_core.store.sqlite import store as sqlite_store, disk
from givalia_core.store.sqlite import SQLite
from givalia_core.store.suite import MARK, changed, ended, inserts, waiting
disk.BALLAST_BYTES = 1 << 16
sqlite_store.CHECKPOINT_PAGES = 40
store = SQLite(sys.argv[1])
seq = store.open().last_seq
while True:
    jobs = [waiting(seq + number, key=f"k{seq + number}", params=bytes(300)) for number in range(1, 6)]
    store.commit(inserts(jobs), MARK)
    seq += 5
    print("+", seq, flush=True)
    store.commit([ended(jobs[0], forget_in_us=10**9)], MARK)
    print("-", seq - 4, flush=True)
    store.tidy()
"""


def test_kill_9_in_the_middle_of_commits_loses_no_acknowledged_one(path: Path) -> None:
    url = f"sqlite://{path}"
    last, ended_seqs = 0, set()
    for acks in (1, 8, 21, 34):
        with python(WRITER, url) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline() for _ in range(acks)]
            os.kill(writer.pid, signal.SIGKILL)
            lines += writer.stdout.readlines()
        for line in lines:
            if line.endswith("\n"):
                sign, seq = line.split()
                last = max(last, int(seq)) if sign == "+" else last
                ended_seqs |= {int(seq)} if sign == "-" else set()

        store = SQLite(url)
        opened = store.open()
        found = by_seq(store, range(1, last + 1))
        wrong = store.check()
        store.close()

        assert opened.last_seq >= last
        assert set(found) == set(range(1, last + 1))
        assert all(found[seq].state is DONE for seq in ended_seqs)
        assert wrong == []


@pytest.mark.parametrize("modules", [1, 40])
def test_counts_are_right_after_a_kill_however_many_modules_there_are(store: SQLite, modules: int) -> None:
    jobs = [waiting(seq, module=f"m{seq % modules}") for seq in range(1, 81)]
    for job in jobs:
        store.commit(inserts([job]), MARK)
    for job in jobs[:60]:
        store.commit([ended(job)], MARK)
    before = store.counts()

    again = killed(store)
    again.open()

    assert again.counts() == before
    assert sum(count for (_, state), count in before.items() if state is DONE) == 60
    assert again.check() == []
    again.close()


def test_a_torn_end_of_the_log_is_dropped_and_the_rest_stands(store: SQLite, path: Path, tmp_path: Path) -> None:
    in_second_page = 32 + 24 + 4_096 + 512
    sizes = []
    for seq in range(1, 6):
        store.commit(inserts([waiting(seq)]), MARK)
        sizes.append(Path(f"{path}-wal").stat().st_size)

    for cut, expected in ((sizes[4] - 1, 4), (sizes[3] + 512, 4), (sizes[2], 3), (in_second_page, 0)):
        folder = tmp_path / str(cut)
        folder.mkdir(mode=0o700)
        (folder / "queue.db").write_bytes(path.read_bytes())
        (folder / "queue.db-wal").write_bytes(Path(f"{path}-wal").read_bytes()[:cut])
        torn = SQLite(f"sqlite://{folder}/queue.db")
        assert torn.open().last_seq == expected
        assert torn.check() == []
        torn.close()


# How it works.


def test_the_log_is_used_again_and_does_not_grow_without_bound(
    store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 50)
    log = Path(f"{path}-wal")
    sizes = []
    for seq in range(1, 401):
        store.commit(inserts([waiting(seq, key=f"k{seq}", params=bytes(500))]), MARK)
        store.tidy()
        sizes.append(log.stat().st_size)

    assert max(sizes) < 4 * 50 * 4_200
    assert max(sizes[200:]) < 1.5 * max(sizes[:200])
    assert sizes[-1] > 0  # Used again from its start, not truncated.


def test_the_file_shrinks_when_most_jobs_were_forgotten(store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "CHECKPOINT_PAGES", 1)
    monkeypatch.setattr(sqlite_store, "VACUUM_PAGES", 20)
    jobs = [waiting(seq, state=DONE, ended_at_us=seq, forget_at_us=1, params=bytes(3_000)) for seq in range(1, 801)]
    store.commit(inserts(jobs), MARK)
    store.tidy()
    before = path.stat().st_size
    store.commit([], MARK, KEEP_ALL)

    for seq in range(1_000, 1_200):
        store.commit(inserts([waiting(seq)]), MARK)
        store.tidy()

    assert path.stat().st_size < before // 2
    assert store.check() == []


def test_nothing_but_a_listing_scans_the_jobs(store: SQLite) -> None:
    states = (WAITING, RUNNING, DONE, DEAD)
    store.commit(
        inserts(
            waiting(
                seq, key=f"k{seq}", state=states[seq % 4], expires_at_us=5, priority=seq % 5, on_wall=bool(seq % 3),
                ended_at_us=seq * (seq % 4 > 1), forget_at_us=seq if seq % 4 > 1 else None,
            )
            for seq in range(1, 400)
        ),
        MARK,
    )  # fmt: skip
    read_anew(store)
    statements: list[str] = []
    database(store).set_trace_callback(statements.append)

    for name in ("find", "claim", "running", "expired"):
        CALLS[name](store)
    names = frozenset(f"k{seq}" for seq in range(30))
    store.find(Wanted(frozenset({job_id(1)}), names, names, frozenset({request_id(1)}), (Claim(ROUTE, 10),)), NOW)
    store.upcoming([Span(ROUTE, 10)], NOW)
    store.commit([], MARK, Retention(5, NOW.timer_us, 10, 10, 20))
    store.commit([changed(waiting(400)._replace(seq=4, id=job_id(4)))], MARK)
    for _ in range(20):
        store.tidy()
    for state in (RUNNING, DONE, DEAD):
        store.page(Filter(state), None, 5, NOW)

    database(store).set_trace_callback(None)
    planned = [each for each in dict.fromkeys(statements) if each.startswith(("SELECT", "UPDATE", "DELETE"))]
    plans = {statement: [row[3] for row in database(store).execute(f"EXPLAIN QUERY PLAN {statement}")] for statement in planned}
    assert len(plans) > 5
    assert {statement: plan for statement, plan in plans.items() if any(step.startswith("SCAN") for step in plan)} == {}


def test_a_commit_is_one_transaction_and_one_sync_whatever_its_size(store: SQLite) -> None:
    statements: list[str] = []
    database(store).set_trace_callback(statements.append)

    store.commit(inserts(waiting(seq) for seq in range(1, 1_001)), MARK)

    database(store).set_trace_callback(None)
    assert statements[0].startswith("BEGIN IMMEDIATE")
    assert [each for each in statements if each in ("COMMIT", "ROLLBACK")] == ["COMMIT"]


def test_opening_reads_no_jobs(store: SQLite, path: Path) -> None:
    store.commit(inserts(waiting(seq, params=bytes(200)) for seq in range(1, 20_001)), MARK)
    store.close()

    started = time.perf_counter()
    opened = store.open()

    assert opened.last_seq == 20_000
    assert time.perf_counter() - started < 0.5


def test_a_description_says_where_and_how_large(store: SQLite, path: Path) -> None:
    store.commit(inserts([waiting(1)]), MARK)

    described = store.describe()

    assert described["url"] == f"sqlite://{path}"
    assert described["format"] == disk.FORMAT
    assert described["bytes"] == path.stat().st_size
    assert described["log_bytes"] > 0


def test_a_large_fence_and_far_times_keep_all_their_bits(store: SQLite) -> None:
    job = waiting(1, fence=(1 << 63) - 1, due_at_us=-(1 << 50), expires_at_us=1 << 60, enq_at_us=1 << 60)
    store.commit([Change(None, job)], MARK)

    found: dict[int, Job] = by_seq(store, {1})

    assert found == {1: job}
    assert claimed(store) == [job]
    assert store.page(Filter(JobState.READY), None, 1, NOW).jobs == [job]


def test_a_file_is_told_from_every_other_by_its_device_and_its_number_on_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).touch()
    one, other = (disk.identity(os.fsencode(tmp_path / name)) for name in ("one", "other"))
    status = (tmp_path / "one").stat()

    assert one != other
    assert one == (status.st_ino, os.major(status.st_dev), os.minor(status.st_dev))
    with pytest.raises(FileNotFoundError, match="none"):
        disk.identity(os.fsencode(tmp_path / "none"))
