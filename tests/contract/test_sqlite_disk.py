"""A SQLite store when the system fails: each call in turn returns each error, files are gone, the disk is full.

`GIVALIA_EACH` lets each call fail at each place, as `make test-all` does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from givalia_core.errors import StoreCorrupt, StoreError, StoreFailed, StoreFull, StoreLocked, StoreMissing
from givalia_core.model import RUNNING, Job
from givalia_core.store.base import Filter
from givalia_core.store.sqlite import SQLite, chores, core, disk, opening
from givalia_core.store.sqlite import store as sqlite_store
from givalia_core.store.suite import KEEP_ALL, MARK, NOW, changed, ended, inserts, waiting

CALLS = ("open", "fsync", "ftruncate", "truncate", "pwrite", "posix_fallocate", "mkdir", "rename", "stat", "statvfs", "unlink")
ERRORS = (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE)
EACH = range(1, 60) if os.environ.get("GIVALIA_EACH") else (1, 2, 4, 7, 12, 20, 33)  # `make test-all` tries every one.


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "BALLAST_BYTES", 1 << 16)
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 10)


class Failing:
    """A call of the system that fails the `at`-th time it names a file of the store."""

    def __init__(self, real: Callable[..., Any], number: int, at: int) -> None:
        self.real, self.number, self.left = real, number, at
        self.has_failed = False

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.left -= 1
        if not self.left:
            self.has_failed = True
            raise OSError(self.number, os.strerror(self.number))
        return self.real(*args, **named)


def live(path: Path, acknowledged: set[int]) -> None:
    """Open a store, work with it and close it; note which jobs were acknowledged."""
    store = SQLite(f"sqlite://{path}")
    store.open()
    try:
        done: list[Job] = []
        for first in range(1, 60, 10):
            jobs = [waiting(seq, key=f"k{seq}", target_worker=f"w{seq}", params=bytes(900)) for seq in range(first, first + 10)]
            try:
                store.commit(inserts(jobs), MARK)
            except StoreFull:
                store.has_room()
                continue
            acknowledged.update(job.seq for job in jobs)
            done += jobs[5:]
            store.tidy()
        for job in done:
            try:
                store.commit([ended(job)], MARK, KEEP_ALL)
            except StoreFull:
                store.has_room()
            store.tidy()
    finally:
        store.close()


@pytest.mark.parametrize("number", ERRORS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("call", CALLS)
def test_whichever_call_fails_and_how_nothing_acknowledged_is_lost(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    for at in EACH:
        shutil.rmtree(path.parent, ignore_errors=True)
        acknowledged: set[int] = set()
        failing = Failing(getattr(os, call), number, at)
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            try:
                live(path, acknowledged)
            except StoreCorrupt:
                pytest.fail(f"call {at}: nothing is corrupt")
            except (StoreError, StoreFull):
                pass  # Anything else ends the test.
        if not failing.has_failed:
            return
        shutil.rmtree(path.with_name("queue.db.making"), ignore_errors=True)
        store = SQLite(f"sqlite://{path}")
        store.open()
        jobs, after = set(), None
        while True:
            page = store.page(Filter(), after, 100, NOW)
            jobs |= {job.seq for job in page.jobs}
            if (after := page.after) is None:
                break
        assert acknowledged <= jobs, (at, acknowledged - jobs)
        assert store.check() == [], at
        store.close()


def test_a_new_folder_and_its_parents_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    real = disk.sync
    monkeypatch.setattr(disk, "sync", lambda path: (synced.append(path), real(path)))

    store = SQLite(f"sqlite://{tmp_path}/a/b/c/queue.db")
    store.open()
    store.close()

    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"} <= set(synced)


def test_an_error_of_the_disk_in_reading_is_no_corruption(store: SQLite) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    error = sqlite3.DatabaseError("database disk image is malformed")  # So SQLite says when a read fails.
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    with pytest.raises(StoreFailed):
        store._core.fail(error)


# Files that are gone.


def _move(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


def _remove(path: Path) -> None:
    shutil.rmtree(path.parent)


def _remove_log(path: Path) -> None:
    path.with_name("queue.db-wal").unlink()


def _replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)


def _move_parent(path: Path) -> None:
    path.parent.parent.rename(path.parent.parent.with_name("elsewhere"))


def _move_file(path: Path) -> None:
    path.rename(path.with_name("other.db"))


GONE = {
    "moved": _move,
    "its parent moved": _move_parent,
    "file moved": _move_file,
    "removed": _remove,
    "log": _remove_log,
    "replaced": _replace,
}


@pytest.mark.parametrize("has_notices", [True, False], ids=["inotify", "none"])
@pytest.mark.parametrize("how", GONE.values(), ids=GONE)
@pytest.mark.parametrize("then", ["commit", "tidy"])
def test_a_store_that_is_gone_acknowledges_nothing_and_stops_the_server(
    path: Path, how: Callable[[Path], None], then: str, has_notices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_notices:
        monkeypatch.setattr(disk, "Notices", Mock(side_effect=OSError("none")))
    path = path.parent / "store" / "queue.db"
    store = SQLite(f"sqlite://{path}")
    store.open()
    assert has_notices == (store._core.files._notices is not None)
    store.commit(inserts([waiting(1)]), MARK)

    how(path)

    chores.begin(store._core, due_s=0.0)
    with pytest.raises(StoreFailed) as raised:
        store.commit(inserts([waiting(2)]), MARK) if then == "commit" else store.tidy()
    assert raised.value.exit_code == 74
    store.abandon()


def test_a_commit_looks_at_the_files_only_if_something_may_have_happened_to_them(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    with contextlib.suppress(BlockingIOError):
        os.read(store._core.files.news_fd, 1 << 14)  # Opening has made files.
    look = Mock(wraps=store._core.files.look)
    monkeypatch.setattr(store._core.files, "look", look)

    store.commit(inserts([waiting(1)]), MARK)
    assert not look.called

    path.with_name("another").touch()
    store.commit(inserts([waiting(2)]), MARK)
    assert look.called
    store.close()


def test_a_copy_without_its_log_is_not_taken_for_a_sound_store(path: Path) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    for seq in range(1, 300):
        store.commit(inserts([waiting(seq, params=bytes(500))]), MARK)
        store.tidy()
    (path.parent / "copy").mkdir()
    copy = path.parent / "copy" / "queue.db"
    shutil.copy(path, copy)
    store.close()

    with pytest.raises(StoreCorrupt, match=r"its log .* is missing"):
        SQLite(f"sqlite://{copy}").open()

    store.open()  # This one was closed, and needs none.
    assert store.check() == []
    store.close()


def _killed(path: Path) -> Path:
    """Return a copy of a store as a kill leaves it."""
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1), waiting(2)]), MARK)
    copy = path.parent / "killed" / "queue.db"
    copy.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    store.close()
    return copy


@pytest.mark.parametrize(
    "step",
    [
        (opening, "_open_database"), (core.Core, "fact"), (opening, "_first_checkpoint"), (opening, "_read_counts"),
        (opening, "rebuild"), (opening, "write_or_make_room"),
    ],
    ids=lambda step: step[1],
)  # fmt: skip
def test_a_start_that_fails_does_not_take_away_the_log_of_a_killed_store(
    path: Path, step: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = _killed(path)
    store = SQLite(f"sqlite://{killed}")

    def failing(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(*step, failing)
        with pytest.raises(StoreFailed):
            store.open()

    store.open()

    assert store.check() == []
    assert sum(store.counts().values()) == 2
    store.close()


def _refuse(*_: object) -> None:
    raise StoreFailed("no")


@pytest.mark.parametrize(
    "step", [(disk.Reserve, "take"), (opening, "_first_checkpoint"), (opening, "_read_counts"), (opening, "open_index")]
)
def test_a_start_that_fails_at_any_step_leaves_what_the_log_of_a_killed_store_has(
    path: Path, step: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLite(f"sqlite://{_killed(path)}")
    with monkeypatch.context() as patched:
        patched.setattr(*step, _refuse)
        with pytest.raises(StoreFailed):
            store.open()

    store.open()

    assert sum(store.counts().values()) == 2
    store.close()


def test_a_log_for_which_the_disk_has_no_room_is_a_full_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.close()
    real = os.open

    def no_inode(name: Any, *rest: Any) -> int:
        if str(name).endswith("-wal"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(name, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", no_inode)
        with pytest.raises(StoreFull):
            store.open()

    store.open()
    store.close()


def _cut(log: bytes) -> bytes:
    return log[: len(log) // 2]


def _without_header(log: bytes) -> bytes:
    return bytes(100) + log[100:]


def _with_a_hole(log: bytes) -> bytes:
    third = len(log) // 3
    return log[:third] + bytes(third) + log[2 * third :]


@pytest.mark.parametrize("damage", [_cut, _without_header, _with_a_hole])
def test_commits_that_are_lost_with_a_damaged_log_are_said(path: Path, damage: Callable[[bytes], bytes]) -> None:
    store = SQLite(f"sqlite://{path}")
    if not (pid := os.fork()):
        try:
            store.open()
            for seq in range(1, 40):
                store.commit(inserts([waiting(seq)]), MARK)
        finally:
            os._exit(0)  # As a kill: nothing is closed.
    os.waitpid(pid, 0)

    log = Path(f"{path}-wal")
    log.write_bytes(damage(log.read_bytes()))
    store.open()

    assert [line for line in store.check() if "commits are missing" in line]
    store.close()
    store.open()
    assert store.check() == []
    store.close()


def test_a_kill_between_a_commit_and_its_index_is_no_loss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1)]), MARK)
    monkeypatch.setattr(store._core.index, "conclude", lambda *_: None)
    store.commit(inserts([waiting(2)]), MARK)
    store.abandon()
    monkeypatch.undo()

    store.open()

    assert store.check() == []
    assert sum(store.counts().values()) == 2
    store.close()


def _make_link(file: Path) -> None:
    kept = file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(kept)


def _make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("file", ["slots", "sums", "names", "lanes.keys", "runs"])
@pytest.mark.parametrize("damage", [_make_link, _make_folder], ids=["link", "folder"])
def test_what_is_no_file_in_the_index_makes_it_anew(path: Path, file: str, damage: Callable[[Path], None]) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1)]), MARK)
    store.close()
    damage(disk.index_folder(path) / file)

    store.open()
    store.close()  # It says at most once that it rebuilt the index.

    store.open()
    assert store.check() == []
    assert sum(store.counts().values()) == 1
    store.close()


def test_a_store_is_not_made_where_none_may_be_made(path: Path) -> None:
    store = SQLite(f"sqlite://{path}", create=False)
    with pytest.raises(StoreMissing, match="create is false"):
        store.open()
    assert not path.exists()

    first = SQLite(f"sqlite://{path}")
    assert first.open().is_new
    assert first.describe()["is_new"]
    first.close()
    assert not store.open().is_new
    store.close()


def test_a_file_system_in_memory_is_named_in_every_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "filesystem", lambda folder: "tmpfs")
    store = SQLite(f"sqlite://{path}")
    store.open()

    assert store.durability == "memory"
    store.close()


SECOND = """
import sys
from givalia_core.errors import StoreError
from givalia_core.store.sqlite import SQLite
try:
    SQLite("sqlite://" + sys.argv[1]).open()
except StoreError as error:
    print(type(error).__name__)
    raise SystemExit(error.exit_code)
"""


def sums(path: Path) -> str:
    """What the files hold, read by another process: who closes a file gives back the locks that SQLite has on it."""
    files = [str(path), f"{path}-wal"]
    return subprocess.run(["cksum", *files], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize("has_looked", [False, True])
def test_a_second_process_that_finds_no_lock_file_is_refused_as_one_that_does(
    store: SQLite, path: Path, has_looked: bool
) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    path.with_name("queue.db.lock").unlink()
    if has_looked:
        chores.begin(store._core, due_s=0.0)
        store.tidy()
    before = sums(path)

    environment = {**os.environ, "PYTHONPATH": str(Path(sqlite_store.__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", SECOND, str(path)], env=environment, capture_output=True, text=True, timeout=60
    )

    assert (done.returncode, done.stdout.strip()) == (75, StoreLocked.__name__), done.stderr
    assert sums(path) == before
    assert store.commit(inserts([waiting(2)]), MARK).refused == ()


# A disk that is full.


def test_a_checkpoint_or_sweep_that_meets_a_full_disk_tells_the_engine(
    store: SQLite, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    with monkeypatch.context() as patched:

        def fails(_: object) -> None:
            raise full

        patched.setattr(chores, "checkpoint", fails)
        store._core.rows_since_checkpoint = 10_000
        store.tidy()
    assert store.is_full
    assert path.with_name("queue.db.ballast").stat().st_size == 0

    assert store.has_room()
    assert not store.is_full
    assert store.commit([changed(waiting(1), state=RUNNING)], MARK).refused == ()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS], ids=lambda number: errno.errorcode[number])
def test_a_file_system_that_cannot_allocate_is_written_to_instead(
    path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", fails)
    store = SQLite(f"sqlite://{path}")
    store.open()
    jobs = [waiting(seq, key=f"k{seq}") for seq in range(1, 3_000)]

    assert store.commit(inserts(jobs), MARK).refused == ()

    for file in path.parent.rglob("*"):
        if file.is_file() and file.stat().st_size > 1 << 15:
            assert file.stat().st_blocks * 512 >= file.stat().st_size * 0.9, file  # No holes: a write to one may find no room.
    assert store.check() == []
    store.close()
