"""The SQLite store opens its files, and refuses files and openers that do not fit."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sqlite3
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_rig import CALLS, database, digests, python

from givalia_core.errors import StoreCorrupt, StoreError, StoreFailed, StoreLocked, StoreTooNew, StoreUnfit
from givalia_core.store.sqlite import SQLite, chores, disk, opening
from givalia_core.store.suite import (
    MARK,
    by_seq,
    changed,
    inserts,
    waiting,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("small_ballast")


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

    for name, _, expected in opening._PRAGMAS:
        assert database(store).execute(f"PRAGMA {name}").fetchone() == (expected,)


def test_a_pragma_that_does_not_take_is_unfit_and_lets_go_of_the_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLite(f"sqlite://{path}")
    with monkeypatch.context() as patched:
        patched.setattr(opening, "_PRAGMAS", (("synchronous", "OFF", 2),))
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
        chores.begin(store._core, due_s=0.0)
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


@pytest.mark.parametrize("fork", [os.fork, ctypes.CDLL(None).fork])  # The second runs nothing of Python in the child.
def test_a_fork_does_not_keep_the_store_locked(path: Path, fork: Callable[[], int]) -> None:
    first = SQLite(f"sqlite://{path}")
    first.open()
    reading, writing = os.pipe()
    child = fork()
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
