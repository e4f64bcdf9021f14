"""The table of the names: its checks, and its room."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest

from givalia_core.store.sqlite.index import names, slots, words
from givalia_core.store.sqlite.index.upkeep import shards

pytestmark = pytest.mark.usefixtures("small_index")


def test_the_table_of_names_is_as_small_as_a_new_one_when_its_names_are_gone_little_by_little(tmp_path: Path) -> None:
    there = slots.Slots(tmp_path, Mock())
    table = names.NameTable(tmp_path / "names", b"secret", there, Mock())
    new = (tmp_path / "names").stat().st_size
    hashes = [table.hash(b"%d" % number) for number in range(40_000)]
    for hashed in hashes:
        table.add(hashed, slots.FIRST)
    for first, end in ((0, 20_000), (20_000, 30_000), (30_000, 35_000), (35_000, 40_000), *[(0, 0)] * 4):
        for hashed in hashes[first:end]:
            table.remove(hashed, slots.FIRST)

        for shard in range(names.SHARDS):
            shards.tidy(table, shard)
        shards.cut(table)

    assert (tmp_path / "names").stat().st_size < 2 * new
    table.close()
    there.close()


@pytest.mark.parametrize("bit", range(63))
def test_a_flipped_bit_of_a_name_is_found(tmp_path: Path, bit: int) -> None:
    there = slots.Slots(tmp_path, Mock())
    table = names.NameTable(tmp_path / "names", b"secret", there, Mock())
    hashed = table.hash(b"a name")
    table.add(hashed, slots.FIRST)
    at = table.words.at
    (place,) = (place for place in range(names._DATA, len(table.words)) if at[place])

    at[place] ^= 1 << bit

    with pytest.raises(words.Damaged):
        table.verify(hashed >> 54)
    table.close()
    there.close()
