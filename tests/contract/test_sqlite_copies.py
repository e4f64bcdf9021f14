"""The mark of a copy: which file is a copy, whether it was used, and where its epochs begin."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from givalia_core.clock import SECOND_US
from givalia_core.errors import StoreCorrupt
from givalia_core.store.sqlite import copies, disk

MINUTE_US = 60 * SECOND_US


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An empty store with a name that a URL must quote."""
    path = tmp_path / "a queue?#%41.db"
    disk.create(path)
    return path


@pytest.fixture
def database(file: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = DELETE")
        yield database


def test_a_fact_is_what_was_kept_last_and_none_before(database: sqlite3.Connection) -> None:
    assert copies.fact(database, "epoch") is None

    for value in (1, [2, "text", None], 0):
        copies.keep_fact(database, "epoch", value)
        assert copies.fact(database, "epoch") == value


@pytest.mark.parametrize("change", ["crc = crc + 1", "value = x'0700'", "value = x''"])
def test_a_fact_that_is_not_what_was_written_is_corrupt_and_named(database: sqlite3.Connection, change: str) -> None:
    copies.keep_fact(database, "epoch", 7)
    database.execute(f"UPDATE facts SET {change}")

    with pytest.raises(StoreCorrupt, match="the stored epoch does not match its checksum"):
        copies.fact(database, "epoch")


@pytest.mark.parametrize(("epoch", "commits"), [(None, None), (9, (41, 5, 6, None))])
def test_a_marked_copy_is_closed_without_an_index_and_its_epoch_is_raised(
    database: sqlite3.Connection, epoch: int | None, commits: tuple[int, ...] | None
) -> None:
    for name, value in (("epoch", epoch), ("commit", commits), ("open", epoch), ("index", 5)):
        if value is not None:
            copies.keep_fact(database, name, value)

    copies.mark(database, 1_000)

    raised = (epoch or 0) + copies.STARTS
    expected = {
        "epoch": raised,
        "open": 0,
        "index": 0,
        copies.MARK: [1_000, raised],
        copies.COMMITS: commits[0] if commits else 0,
    }
    assert {name: copies.fact(database, name) for name in expected} == expected
    assert copies.fact(database, "commit") == (None if commits is None else list(commits))


@pytest.mark.parametrize("name", ["epoch", "commit"])
def test_a_store_whose_numbers_are_damaged_is_not_marked(database: sqlite3.Connection, name: str) -> None:
    copies.keep_fact(database, name, (7,))
    database.execute("UPDATE facts SET crc = 0")

    with pytest.raises(StoreCorrupt):
        copies.mark(database, 1_000)

    assert copies.fact(database, copies.MARK) is None


@pytest.mark.parametrize(
    ("since_us", "ahead"),
    [
        (-MINUTE_US, 0),  # A clock that is behind.
        (0, 0),
        (MINUTE_US - 1, 0),
        (MINUTE_US, 1),
        (10 * MINUTE_US - 1, 9),
        (copies.MINUTES_MOST * MINUTE_US, copies.MINUTES_MOST),
        ((copies.MINUTES_MOST + 1) * MINUTE_US, copies.MINUTES_MOST),  # A clock that is far ahead.
    ],
)
def test_the_epochs_of_a_copy_begin_one_higher_for_each_whole_minute_since_it_was_made(since_us: int, ahead: int) -> None:
    made_us = 1_750_000_000 * SECOND_US

    assert copies.first_epoch(made_us, 70_000, made_us + since_us) == 70_001 + ahead


def test_the_line_about_a_copy_says_when_it_was_made_and_its_first_epoch() -> None:
    words = copies.words(1_750_000_000 * SECOND_US + 999_999, 70_001)

    assert words.startswith("this is a copy of another store, made at 2025-06-15T15:06:40+00:00: ")
    assert "Fences begin at epoch 70001," in words


def test_a_file_is_as_it_was_made_from_its_mark_until_a_server_opens_it(file: Path, database: sqlite3.Connection) -> None:
    assert copies.is_as_it_was_made(file) is False
    copies.keep_fact(database, "open", 0)
    assert copies.is_as_it_was_made(file) is False, "it was closed, and is no copy"

    copies.mark(database, 1_000)
    assert copies.is_as_it_was_made(file) is True

    copies.keep_fact(database, "open", 70_001)
    assert copies.is_as_it_was_made(file) is False
    copies.keep_fact(database, "open", 0)
    copies.keep_fact(database, copies.MARK, 0)
    assert copies.is_as_it_was_made(file) is False


def test_copies_of_one_store_have_the_same_state_until_it_changes(file: Path, database: sqlite3.Connection) -> None:
    copies.keep_fact(database, "commit", (41, 5, 6, None))
    assert copies.state_of(file) is None
    states = []
    for made_us, commits in ((1_000, 41), (2_000, 41), (2_000, 42)):
        copies.keep_fact(database, "epoch", 9)
        copies.keep_fact(database, "commit", (commits, 5, 6, None))
        copies.mark(database, made_us)
        states.append(copies.state_of(file))

    assert None not in states
    assert states[0] == states[1] != states[2]


def test_a_path_without_a_file_is_no_copy(tmp_path: Path) -> None:
    assert copies.is_as_it_was_made(tmp_path / "missing.db") is False
    assert copies.state_of(tmp_path / "missing.db") is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"no database at all" * 99])
def test_what_is_no_store_is_no_copy_and_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.db"
    path.write_bytes(content)

    assert copies.is_as_it_was_made(path) is False
    assert copies.state_of(path) is None

    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_copy_whose_mark_is_damaged_is_no_copy(file: Path, database: sqlite3.Connection) -> None:
    copies.mark(database, 1_000)
    database.execute("UPDATE facts SET crc = crc + 1 WHERE name = ?", (copies.MARK,))

    assert copies.is_as_it_was_made(file) is False
    assert copies.state_of(file) is None
