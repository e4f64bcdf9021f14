"""Notices of the system: a name that changes is told at once, what is only written is not, and no watch is half made."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite import notices
from givalia_core.store.sqlite.notices import Notices

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Only Linux has these notices.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a file, in a folder of its own."""
    folder = tmp_path / "above" / "state"
    folder.mkdir(parents=True)
    (folder / "queue.db").write_bytes(b"queue")
    return folder


@pytest.fixture
def watch(folder: Path) -> Iterator[Notices]:
    watch = Notices(folder)
    yield watch
    watch.close()


def has_news(watch: Notices) -> bool:
    readable, _, _ = select.select([watch.fd], [], [], 0)
    return bool(readable)


CHANGES: dict[str, Callable[[Path], object]] = {
    "removed": lambda folder: (folder / "queue.db").unlink(),
    "renamed": lambda folder: (folder / "queue.db").rename(folder / "other.db"),
    "moved away": lambda folder: (folder / "queue.db").rename(folder.parent / "queue.db"),
    "made": lambda folder: (folder / "queue.db-wal").touch(),
    "replaced": lambda folder: (folder.parents[1] / "new.db").rename(folder / "queue.db"),
    "folder moved": lambda folder: folder.rename(folder.with_name("elsewhere")),
    "folder above moved": lambda folder: folder.parent.rename(folder.parents[1] / "elsewhere"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_name_that_changes_is_told(folder: Path, change: str) -> None:
    (folder.parents[1] / "new.db").touch()
    watch = Notices(folder)
    assert not has_news(watch)

    CHANGES[change](folder)

    assert has_news(watch)
    watch.close()


def test_a_file_that_is_read_or_written_is_not_told(watch: Notices, folder: Path) -> None:
    file = folder / "queue.db"
    with file.open("r+b") as opened:
        opened.write(b"another queue")
        os.fsync(opened.fileno())
    os.truncate(file, 3)
    file.read_bytes()
    file.chmod(0o600)

    assert not has_news(watch)


def test_what_happens_in_the_folders_above_is_not_told(watch: Notices, folder: Path) -> None:
    (folder.parent / "other.db").touch()
    (folder.parent / "other.db").unlink()

    assert not has_news(watch)


def test_reading_never_waits_and_what_was_read_is_told_once(watch: Notices, folder: Path) -> None:
    with pytest.raises(BlockingIOError):
        os.read(watch.fd, 4_096)
    (folder / "other.db").touch()

    assert os.read(watch.fd, 4_096)

    assert not has_news(watch)


def test_a_watch_is_not_inherited_by_other_programs(watch: Notices) -> None:
    assert not os.get_inheritable(watch.fd)


def test_a_watch_that_is_closed_twice_closes_no_file_of_another(watch: Notices) -> None:
    number = watch.fd
    watch.close()
    assert watch.fd == -1
    other = os.open(os.devnull, os.O_RDONLY)
    assert other == number, "the number is free, and given out again"

    watch.close()

    os.fstat(other)
    os.close(other)


def test_a_folder_that_is_not_there_is_an_error_and_leaves_no_file_open(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with pytest.raises(FileNotFoundError) as caught:
        Notices(tmp_path / "missing")

    assert caught.value.filename == str(tmp_path / "missing")
    assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_a_system_that_allows_no_watch_is_an_error_with_its_number(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(flags: int) -> int:
        ctypes.set_errno(errno.EMFILE)
        return -1

    monkeypatch.setattr(notices, "_libc", Mock(inotify_init1=refuses))
    with pytest.raises(OSError, match="inotify_init1") as caught:
        Notices(folder)
    assert caught.value.errno == errno.EMFILE

    for missing in (None, Mock(spec=[])):
        monkeypatch.setattr(notices, "_libc", missing)
        with pytest.raises(OSError, match="no inotify"):
            Notices(folder)
