"""The file of the names of the lanes: what is whole counts, and what was changed is found."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index.keys import DUE, RUNNING, DueKey, Keys, LaneKey
from givalia_core.store.sqlite.places import Damaged

FAX: LaneKey = tuple(DueKey(DUE, False, "Fax", "any", 0))
MAIL: LaneKey = tuple(DueKey(DUE, True, "Mail", "any >=2", -3))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lanes.keys"


@pytest.fixture
def keys(path: Path) -> Iterator[Keys]:
    keys = Keys(path, 0, 0, Mock())
    keys.append(0, (RUNNING,))
    keys.append(1, FAX)
    yield keys
    keys.close()


def opened(path: Path, keys: Keys) -> Keys:
    """Open the file again, as of this moment of `keys`."""
    return Keys(path, keys.end, keys.crc, Mock())


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_names_are_read_in_the_order_in_which_they_came(path: Path, keys: Keys) -> None:
    keys.append(1, MAIL)

    again = opened(path, keys)

    assert list(again.read()) == [(0, (RUNNING,)), (1, FAX), (1, MAIL)]
    again.verify()
    again.close()
    again.close()


@pytest.mark.parametrize("half", [1, 7, 8, 12])
def test_names_behind_the_last_commit_count_as_far_as_they_are_whole(path: Path, keys: Keys, half: int) -> None:
    at_commit = Keys(path, keys.end, keys.crc, Mock())
    keys.append(2, MAIL)
    end = keys.end
    keys.append(3, FAX)
    os.truncate(path, end + half)

    assert [number for number, _ in at_commit.read()] == [0, 1, 2]

    assert path.stat().st_size == at_commit.end == end
    at_commit.verify()
    at_commit.append(3, MAIL)
    again = opened(path, at_commit)
    assert list(again.read())[-1] == (3, MAIL)
    again.close()
    at_commit.close()


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_names_of_the_last_commit_that_are_not_what_was_written_are_damage(path: Path, keys: Keys, damage: str) -> None:
    told = path.read_bytes()
    path.write_bytes(told[:-1] if damage == "cut" else told[:-1] + bytes([told[-1] ^ 1]))

    again = opened(path, keys)

    with pytest.raises(Damaged):
        list(again.read())
    with pytest.raises(Damaged):
        keys.verify()
    again.close()


@pytest.mark.parametrize("damage", ["longer", "gone", "a link"])
def test_a_file_that_was_replaced_is_found(path: Path, keys: Keys, damage: str) -> None:
    keys.verify()
    if damage == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    else:
        path.unlink()
    if damage == "a link":
        path.symlink_to("nowhere")

    with pytest.raises(Damaged):
        keys.verify()


@pytest.mark.parametrize("how", ["raises", "is short"])
def test_a_full_disk_leaves_the_names_as_they_were_unless_room_can_be_made(
    path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    real = os.pwrite

    def fails(fd: int, told: bytes, at: int) -> int:
        if how == "raises":
            raise full()
        return real(fd, told[:3], at)

    make_room = Mock()
    keys = Keys(path, 0, 0, make_room)
    keys.append(1, FAX)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", fails)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            keys.append(2, MAIL)
        assert path.read_bytes() == before
        keys.verify()
        assert make_room.call_count == 1

        make_room.side_effect = lambda: patched.setattr(os, "pwrite", real)
        keys.append(3, MAIL)

    again = opened(path, keys)
    assert list(again.read()) == [(1, FAX), (3, MAIL)]
    again.close()
    keys.close()


def test_the_file_is_rewritten_only_if_that_makes_it_much_shorter(path: Path, keys: Keys) -> None:
    lanes: list[tuple[int, LaneKey]] = [(0, (RUNNING,)), (1, MAIL)]
    size = path.stat().st_size
    keys.rewrite(lanes)
    assert path.stat().st_size == size
    for _ in range(100):
        keys.append(1, FAX)

    keys.rewrite(lanes)

    keys.verify()
    keys.append(2, FAX)
    again = opened(path, keys)
    assert list(again.read()) == [*lanes, (2, FAX)]
    assert path.stat().st_size == again.end < 2 * size
    again.close()


def test_a_full_disk_or_a_folder_that_is_gone_leaves_the_names_that_were_to_be_rewritten(
    path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(100):
        keys.append(1, FAX)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", Mock(side_effect=full()))
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            keys.rewrite([(1, MAIL)])

    assert path.read_bytes() == before
    keys.verify()
    keys.append(2, MAIL)
    keys.verify()
    path.parent.rename(path.parent.with_name("elsewhere"))
    with pytest.raises(Damaged):
        keys.rewrite([(1, MAIL)])
