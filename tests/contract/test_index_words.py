"""Files of words that are mapped: what is written stays, and a full disk leaves all as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index import words
from givalia_core.store.sqlite.index.words import Words, allocate, no_file_is_damage
from givalia_core.store.sqlite.places import Damaged


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_new_file_is_all_zero_and_has_at_least_the_words_it_was_asked_for(tmp_path: Path) -> None:
    file = Words(tmp_path / "words", 10, Mock())

    assert len(file) >= 10
    assert not any(file.at)
    assert (tmp_path / "words").stat().st_size == 8 * len(file)
    file.close()


def test_what_is_written_is_there_when_the_file_is_opened_again_with_the_length_it_has(tmp_path: Path) -> None:
    file = Words(tmp_path / "words", 10, Mock())
    length = len(file)
    file.at[9] = -(1 << 63)
    file.close()

    again = Words(tmp_path / "words", 10, Mock())

    assert len(again) == length
    assert again.at[9] == -(1 << 63)
    again.close()


def test_a_file_that_grows_keeps_its_words_and_earlier_views_are_of_the_same_file(tmp_path: Path) -> None:
    file = Words(tmp_path / "words", 10, Mock())
    file.at[3] = 7
    before, length = file.at, len(file)

    file.grow(length + 1)

    assert len(file) > length
    assert file.at[3] == 7
    assert not any(file.at[length:])
    before[4] = 8
    assert file.at[4] == 8
    before.release()
    file.close()


def test_a_file_that_is_cut_keeps_the_words_before_the_cut(tmp_path: Path) -> None:
    file = Words(tmp_path / "words", 10, Mock())
    file.at[3] = 7

    file.shrink(4)
    file.shrink(5)  # Longer than it is: nothing happens.

    assert len(file) == len(file.at) == 4
    assert file.at.tolist() == [0, 0, 0, 7]
    assert (tmp_path / "words").stat().st_size == 32
    file.close()


def test_a_full_disk_is_tried_again_once_room_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = allocate
    make_room = Mock(side_effect=lambda: monkeypatch.setattr(words, "allocate", real))
    file = Words(tmp_path / "words", 10, make_room)
    length = len(file)
    monkeypatch.setattr(words, "allocate", full)

    file.grow(length + 1)

    assert make_room.call_count == 1
    assert len(file) > length
    file.close()


def test_a_disk_that_stays_full_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_room = Mock()
    file = Words(tmp_path / "words", 10, make_room)
    length, file.at[3] = len(file), 7
    monkeypatch.setattr(words, "allocate", full)

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        file.grow(length + 1)

    assert make_room.call_count == 1
    assert len(file) == len(file.at) == length
    assert file.at[3] == 7
    assert (tmp_path / "words").stat().st_size == 8 * length
    file.close()


@pytest.mark.parametrize("wrong", ["link", "folder", "gone"])
def test_a_file_that_is_gone_or_is_something_else_is_damage(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "words"
    if wrong == "link":
        (tmp_path / "other").write_bytes(bytes(80))
        path.symlink_to(tmp_path / "other")
    elif wrong == "folder":
        path.mkdir()
    else:
        path = tmp_path / "no folder" / "words"

    with pytest.raises(Damaged), no_file_is_damage():
        Words(path, 10, Mock())


def test_an_error_of_the_disk_is_no_damage() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), no_file_is_damage():
        full()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot allocate")
def test_room_is_written_where_it_cannot_be_allocated_and_no_byte_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "words"
    path.write_bytes(b"x" * 100)
    fd = os.open(path, os.O_RDWR)
    monkeypatch.setattr(os, "posix_fallocate", Mock(side_effect=OSError(errno.EOPNOTSUPP, "not supported")))

    allocate(fd, 50, 1_000_000)
    allocate(fd, 50, 100)  # There already.

    assert path.read_bytes() == b"x" * 100 + bytes(999_950)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        allocate(fd, 0, 2_000_000)
    os.close(fd)


def test_words_that_were_given_back_or_synced_are_read_again(tmp_path: Path) -> None:
    file = Words(tmp_path / "words", 10, Mock())
    file.at[3] = 7

    file.trim()
    assert file.at[3] == 7
    file.sync()
    assert (tmp_path / "words").read_bytes()[24] == 7

    file.close()
    file.close()
    file.trim()
    file.sync()
    assert len(file.at) == 0
