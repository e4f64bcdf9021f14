"""Which stores can send a copy of themselves, and what the parts of a copy say."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from givalia_core.errors import BadRequest, Busy, NotFound
from givalia_core.store.backups import Copyable, CopyPart, as_copyable
from givalia_core.store.base import Store
from givalia_core.store.memory import Memory
from givalia_core.store.sqlite import SQLite, copying, disk
from givalia_core.store.suite import MARK, inserts, waiting

NAME = b"b" * 16


class Foreign:
    """A store of somebody else, of which nothing is known but that it can copy itself."""

    def copy_part(self, backup: bytes, part: int) -> CopyPart:
        raise NotImplementedError


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Copyable]:
    """An open store with ten jobs, whose copies have several parts."""
    monkeypatch.setattr(disk, "BALLAST_BYTES", 1 << 16)
    monkeypatch.setattr(copying, "PART_BYTES", 3_000)
    store = SQLite(f"sqlite://{tmp_path / 'queue.db'}")
    store.open()
    store.commit(inserts([waiting(seq, params=bytes(1_000)) for seq in range(1, 11)]), MARK)
    copyable = as_copyable(store)
    assert copyable is not None
    yield copyable
    store.close()


def parts_of(store: Copyable) -> list[CopyPart]:
    parts = [store.copy_part(NAME, 0)]
    while not parts[-1].is_last:
        parts.append(store.copy_part(NAME, len(parts)))
    return parts


def test_a_store_that_can_send_a_copy_is_itself_copyable(tmp_path: Path) -> None:
    for store in (SQLite(f"sqlite://{tmp_path / 'queue.db'}"), Foreign()):
        assert as_copyable(cast(Any, store)) is store


def test_a_store_that_is_backed_up_in_a_way_of_its_own_is_not_copyable() -> None:
    store: Store = Memory()

    assert as_copyable(store) is None


def test_every_part_has_the_checksum_of_all_payloads_up_to_it(store: Copyable) -> None:
    parts = parts_of(store)

    assert len(parts) > 2
    for count, part in enumerate(parts, 1):
        assert part.crc == zlib.crc32(b"".join(each.payload for each in parts[:count]))


def test_every_part_says_what_the_whole_copy_is_and_only_the_last_that_it_is_the_last(store: Copyable) -> None:
    parts = parts_of(store)

    assert [part.is_last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {(part.format, part.jobs) for part in parts} == {(disk.FORMAT, 10)}
    assert all(part.size_bytes > 10_000 for part in parts)


def test_the_last_part_can_be_fetched_again_and_the_next_one_is_no_part(store: Copyable) -> None:
    parts = parts_of(store)

    assert store.copy_part(NAME, len(parts) - 1) == parts[-1]
    with pytest.raises(BadRequest):
        store.copy_part(NAME, len(parts))


def test_another_copy_waits_and_one_that_was_never_begun_is_not_found(store: Copyable) -> None:
    with pytest.raises(NotFound):
        store.copy_part(NAME, 1)
    store.copy_part(NAME, 0)

    with pytest.raises(Busy):
        store.copy_part(b"o" * 16, 0)
