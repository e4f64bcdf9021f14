"""The upkeep of the shards of the names: small again when their names are gone, and nearer to the front."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index.names import FIRST_LOG, SHARDS, NameTable
from givalia_core.store.sqlite.index.slots import FIRST, WIDTH, Slots
from givalia_core.store.sqlite.index.upkeep import shards

SHARD = 5


@pytest.fixture
def names(tmp_path: Path) -> Iterator[NameTable]:
    slots = Slots(tmp_path, Mock())
    names = NameTable(tmp_path / "names", b"secret", slots, Mock())
    for _ in range(2_000):
        slots.write(slots.take(), 1, 0, 0, 0, 0, 0, 0)
    yield names
    names.close()
    slots.close()


def named(number: int, shard: int = SHARD) -> tuple[int, int]:
    """A hash in a shard, and the slot that has it."""
    return shard << 54 | number * 0x9E3779B1 % (1 << 28), FIRST + number * WIDTH


def log_of(names: NameTable, shard: int = SHARD) -> int:
    return names.words.at[shard] & 63


def test_a_shard_grows_and_is_moved_to_a_smaller_table_when_it_is_mostly_empty(names: NameTable) -> None:
    for number in range(1_000):
        names.add(*named(number))
    grown = log_of(names)
    assert grown >= 10
    shards.tidy(names, SHARD)
    assert log_of(names) == grown  # It is full.
    for number in range(10, 1_000):
        names.remove(*named(number))

    shards.tidy(names, SHARD)

    assert 10 < 1 << log_of(names) < 10 * 16
    names.verify(SHARD)
    names.verify_total()
    assert sorted(shards.entries(names, SHARD)) == [named(number)[1] for number in range(10)]
    for number in range(1_000):
        hashed, slot = named(number)
        assert names.slots(hashed) == ([slot] if number < 10 else [])


def test_an_empty_shard_is_as_small_as_a_new_one_and_not_smaller(names: NameTable) -> None:
    for number in range(100):
        names.add(*named(number))
    for number in range(100):
        names.remove(*named(number))

    shards.tidy(names, SHARD)
    assert log_of(names) == FIRST_LOG
    shards.tidy(names, SHARD)

    assert log_of(names) == FIRST_LOG
    assert shards.entries(names, SHARD) == []


def test_names_that_the_disk_had_no_room_for_are_entered_when_there_is_room(
    names: NameTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(NameTable, "_room", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        for number in range(20):
            names.add(*named(number))
            names.add(*named(number, SHARD + 1))
        assert names.overflow
        shards.tidy(names, SHARD)
        assert names.overflow

    shards.tidy(names, SHARD)

    assert sorted(shards.entries(names, SHARD)) == [named(number)[1] for number in range(20)]
    assert {hashed >> 54 for hashed in names.overflow} == {SHARD + 1}  # Each shard in its turn.
    shards.tidy(names, SHARD + 1)
    assert names.is_whole
    assert sorted(shards.entries(names, SHARD + 1)) == [named(number)[1] for number in range(20)]


def test_a_shard_in_the_second_half_of_the_file_moves_to_a_gap_in_front(names: NameTable) -> None:
    for shard in (1, 2):
        for number in range(300):
            names.add(*named(number, shard))
    for number in range(300):
        names.remove(*named(number, 1))
    before = names.places[2] >> 6
    shards.tidy(names, 1)  # Leaves a gap.
    assert before * 2 > names.end

    shards.tidy(names, 2)

    assert names.places[2] >> 6 < before
    assert log_of(names, 2) == 9
    names.verify(2)
    assert sorted(shards.entries(names, 2)) == [named(number)[1] for number in range(300)]


def test_room_behind_the_last_shard_is_given_back_and_gaps_are_used_again(names: NameTable, tmp_path: Path) -> None:
    for number in range(20_000):
        names.add(number % SHARDS << 54 | number, FIRST)
    size = (tmp_path / "names").stat().st_size
    for number in range(20_000):
        names.remove(number % SHARDS << 54 | number, FIRST)
    shards.cut(names)
    assert (tmp_path / "names").stat().st_size == size  # The tables still lie there.
    for _ in range(2):
        for shard in range(SHARDS):
            shards.tidy(names, shard)

    shards.cut(names)

    assert (tmp_path / "names").stat().st_size < size / 2
    for shard in range(SHARDS):
        names.verify(shard)
    for number in range(2_000):
        names.add(*named(number))
    places = sorted((at >> 6, at & 63) for at in names.words.at[:SHARDS].tolist())
    assert all(start + (1 << log) <= following for (start, log), (following, _) in pairwise(places))
    assert sorted(shards.entries(names, SHARD)) == [named(number)[1] for number in range(2_000)]
