"""A copy that is sent while the store is written is the store of one moment, opens by itself, and then changes on its own."""

from __future__ import annotations

import logging
import random
import re
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from sqlite_history import SEED, Script, make_small

from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, NotFound, StoreCorrupt, StoreFull, StoreTooNew
from givalia_core.model import DONE
from givalia_core.store import SQLite
from givalia_core.store.backups import CopyPart
from givalia_core.store.sqlite import chores, copies, copying, disk
from givalia_core.store.sqlite.received import Received, Receiver
from givalia_core.store.suite import MARK, by_seq, changed, inserts, waiting

NAME = b"b" * 16
OTHER = b"o" * 16
DAY_US = 86_400 * SECOND_US


@pytest.fixture
def store(tmp_path: Path) -> SQLite:
    """An open store with jobs in several rows."""
    store = SQLite(f"sqlite://{tmp_path / 'original' / 'queue.db'}")
    store.open()
    store.commit(inserts([waiting(seq, params=bytes(1_000)) for seq in range(1, 101)]), MARK)
    return store


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few rows."""
    monkeypatch.setattr(copying, "PART_BYTES", 6_000)


def received(
    store: SQLite, path: Path, between: Callable[[int], None] = lambda _: None, at_end: Callable[[], None] = lambda: None
) -> Received:
    """Make a copy, doing something between its parts; `at_end` is called at the moment of which it is the copy."""
    receiver = Receiver(path)
    with closing(receiver):
        for number in range(100_000):
            part = store.copy_part(NAME, number)
            receiver.add(part)
            if part.is_last:
                at_end()
                return receiver.finish(part)
            between(number)
    raise AssertionError("a copy without an end")


def is_noting(store: SQLite) -> bool:
    """Whether the store notes which rows are written again."""
    return bool(store._core.connection().execute("SELECT count(*) FROM sqlite_temp_schema").fetchone()[0])


@pytest.mark.parametrize("seed", [SEED + more for more in range(6)])
def test_copy_under_way_is_the_store_of_its_last_part(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch.setattr)
    monkeypatch.setattr(copying, "PART_BYTES", 1_500)
    script = Script(seed)
    chance = random.Random(seed)
    original = SQLite(f"sqlite://{tmp_path / 'original' / 'queue.db'}")
    original.open()
    seen: dict[str, Any] = {}

    def go_on(steps: int) -> None:
        for _ in range(steps):
            step = script.step()
            step.do(original)
            step.do(script.reference)
            original.tidy()

    go_on(100)
    copied = received(
        original,
        tmp_path / "copy.db",
        lambda number: go_on(chance.randrange(4) if number < 300 else 0),
        lambda: seen.update(script.seen(original)),
    )

    assert copied.wrong == []
    copy = SQLite(f"sqlite://{tmp_path / 'copy.db'}")
    copy.open()
    assert copy.check() == []
    assert script.seen(copy) == seen, f"GIVALIA_SEED={seed}"
    assert copied.jobs == sum(copy.counts().values())
    go_on(20)
    assert original.check() == []
    assert not is_noting(original)
    copy.close()
    original.close()


def test_copy_is_one_file_of_its_owner_alone_in_the_format_of_the_store(store: SQLite, tmp_path: Path) -> None:
    path = tmp_path / "copies" / "copy.db"
    path.parent.mkdir()

    received(store, path)

    assert [each.name for each in path.parent.iterdir()] == ["copy.db"]
    assert (path.stat().st_mode & 0o777, disk.format_of(path)) == (0o600, disk.FORMAT)
    store.close()


@pytest.mark.usefixtures("small_parts")
def test_row_that_is_written_again_behind_the_reader_is_sent_as_it_is_then(store: SQLite, tmp_path: Path) -> None:
    job = by_seq(store, [1])[1]

    def replace(number: int) -> None:
        if number == 3:
            store.commit([changed(job, params=b"new")], MARK)

    received(store, tmp_path / "copy.db", replace)

    copy = SQLite(f"sqlite://{tmp_path / 'copy.db'}")
    copy.open()
    assert by_seq(copy, [1])[1].params == b"new"
    copy.close()
    store.close()


# A way of its own.


def test_fences_of_a_copy_begin_above_all_that_the_original_gives(
    store: SQLite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    received(store, tmp_path / "copy.db")
    last = 0
    for _ in range(20):
        store.close()
        last = store.open().epoch
    copy = SQLite(f"sqlite://{tmp_path / 'copy.db'}")

    first = copy.open().epoch

    assert first > last + copies.STARTS - 100
    assert [line for line in caplog.messages if "this is a copy of another store" in line and str(first) in line]
    store.close()
    copy.close()


def test_copy_that_is_looked_at_still_is_one_and_that_of_a_server_is_none(store: SQLite, tmp_path: Path) -> None:
    received(store, tmp_path / "copy.db")
    copy = SQLite(f"sqlite://{tmp_path / 'copy.db'}")
    copy.open()
    copy.check()
    copy.close()
    assert copy.open().epoch
    assert copy._core.fact(copies.MARK)

    copy.commit([], MARK)

    assert not copy._core.fact(copies.MARK)
    copy.close()
    store.close()


def test_copy_that_a_server_of_an_earlier_version_has_used_is_none_any_more(
    store: SQLite, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    received(store, tmp_path / "copy.db")
    copy = SQLite(f"sqlite://{tmp_path / 'copy.db'}")
    copy.open()
    marked = copy._core.fact(copies.MARK)
    copy.commit(inserts([waiting(500)]), MARK)
    copy._core.keep_fact(copies.MARK, marked)  # It does not know what that is, and leaves it.
    copy.close()
    caplog.clear()

    copy.open()

    assert "copy of another store" not in caplog.text
    assert 500 in by_seq(copy, [500])
    copy.close()
    store.close()


def test_second_restore_from_one_copy_begins_above_the_first() -> None:
    first, second = (copies.first_epoch(0, 70_000, at_us) for at_us in (DAY_US, DAY_US + 3_600 * SECOND_US))

    assert first == 70_001 + 24 * 60
    assert second == first + 60
    assert copies.first_epoch(DAY_US, 7, 0) == 8, "a clock that is behind"
    assert copies.first_epoch(0, 7, 10**18) == 8 + copies.MINUTES_MOST, "a clock that is far ahead"


def test_log_and_index_of_the_store_that_was_there_before_are_not_taken_for_the_copys(store: SQLite, tmp_path: Path) -> None:
    received(store, tmp_path / "copy.db")
    store.commit(inserts([waiting(500)]), MARK)
    log_bytes = Path(f"{store.path}-wal").read_bytes()
    assert log_bytes
    store.close()
    Path(f"{store.path}-wal").write_bytes(log_bytes)

    (tmp_path / "copy.db").rename(store.path)

    store.open()
    assert sorted(by_seq(store, range(1_000))) == list(range(1, 101))
    assert store.check() == []
    store.close()


# One at a time.


@pytest.mark.usefixtures("small_parts")
def test_part_can_be_had_once_more_and_no_other(store: SQLite) -> None:
    store.copy_part(NAME, 0)
    part = store.copy_part(NAME, 1)

    assert store.copy_part(NAME, 1) == part
    for number in (0, 3):
        with pytest.raises(BadRequest):
            store.copy_part(NAME, number)
    with pytest.raises(NotFound):
        store.copy_part(OTHER, 1)
    with pytest.raises(Busy):
        store.copy_part(OTHER, 0)
    store.close()


@pytest.mark.usefixtures("small_parts")
def test_copy_that_nobody_asks_for_is_given_up(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy_part(NAME, 0)
    assert is_noting(store)

    monkeypatch.setattr(copying, "IDLE_S", -1.0)
    chores.begin(store._core, due_s=0.0)
    store.tidy()

    assert not is_noting(store)
    with pytest.raises(NotFound, match="Begin again"):
        store.copy_part(NAME, 1)
    store.close()


@pytest.mark.usefixtures("small_parts")
def test_copy_that_is_asked_for_too_slowly_is_given_up(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "AGAIN_MOST", 2)
    for number in range(3):
        store.copy_part(NAME, number)
    jobs = by_seq(store, range(1, 9))

    store.commit([changed(job, params=b"new") for job in jobs.values()], MARK)
    chores.begin(store._core, due_s=0.0)
    store.tidy()

    assert not is_noting(store)
    store.close()


@pytest.mark.usefixtures("small_parts")
def test_another_copy_may_begin_when_the_one_before_stands_still(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy_part(NAME, 0)
    monkeypatch.setattr(copying, "TAKEN_OVER_S", 0.0)

    assert store.copy_part(OTHER, 0).payload
    with pytest.raises(NotFound):
        store.copy_part(NAME, 1)
    store.close()


def test_another_copy_may_begin_at_once_when_the_one_before_is_whole(store: SQLite) -> None:
    parts_of(store)

    assert store.copy_part(OTHER, 0).payload
    store.close()


# What is wrong is found.


def parts_of(store: SQLite) -> list[CopyPart]:
    parts = [store.copy_part(NAME, 0)]
    while not parts[-1].is_last:
        parts.append(store.copy_part(NAME, len(parts)))
    return parts


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("spoil", ["lost", "changed", "swapped", "too new", "short"])
def test_parts_that_are_not_what_was_sent_make_no_copy(store: SQLite, tmp_path: Path, spoil: str) -> None:
    parts = parts_of(store)
    if spoil == "lost":
        del parts[1]
    elif spoil == "changed":
        parts[1] = parts[1]._replace(payload=parts[1].payload[:-1] + b"x")
    elif spoil == "swapped":
        parts[1:3] = reversed(parts[1:3])
    elif spoil == "too new":
        parts[0] = parts[0]._replace(format=99)
    else:
        parts[-1] = parts[-1]._replace(jobs=101)

    with pytest.raises(StoreTooNew if spoil == "too new" else StoreCorrupt):
        taken_in(parts, tmp_path / "copy.db")
    store.close()


def taken_in(parts: list[CopyPart], path: Path) -> None:
    """Make a copy of these parts."""
    with closing(Receiver(path)) as receiver:
        add(receiver, parts)
        receiver.finish(parts[-1])


def add(receiver: Receiver, parts: list[CopyPart]) -> None:
    for part in parts:
        receiver.add(part)


@pytest.mark.parametrize(
    "entry", [(0, "x", [b""]), (0, 1, [7]), (0, 1, []), (9, 1, [b""]), (0, 1 << 70, [b""]), (1,), 7, (3, "epoch", [b"x", "y"])]
)
def test_part_with_what_is_no_row_makes_no_copy(tmp_path: Path, entry: Any) -> None:
    payload = msgpack.packb([entry]) if entry != (0, 1 << 70, [b""]) else b"\x91\x93\x00\xcf" + b"\xff" * 8 + b"\x91\xc4\x00"
    part = CopyPart(payload, True, 0, disk.FORMAT, 0, 0, zlib.crc32(payload))

    with pytest.raises(StoreCorrupt):
        taken_in([part], tmp_path / "copy.db")


@pytest.mark.usefixtures("small_parts")
def test_full_disk_of_the_caller_is_said(store: SQLite, tmp_path: Path) -> None:
    parts = parts_of(store)
    with closing(Receiver(tmp_path / "copy.db")) as receiver:
        receiver._database.execute("PRAGMA max_page_count = 8")

        with pytest.raises(StoreFull):
            add(receiver, parts)
    store.close()


def test_damage_of_the_original_is_named_and_the_copy_made(store: SQLite, tmp_path: Path) -> None:
    (first, records) = store._core.connection().execute("SELECT first_seq, records FROM jobs LIMIT 1").fetchone()
    store._core.connection().execute(
        "UPDATE jobs SET records = ? WHERE first_seq = ?", (records[:60] + b"!" + records[61:], first)
    )

    assert len(received(store, tmp_path / "copy.db").wrong) == 1

    database = sqlite3.connect(tmp_path / "copy.db")
    assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)
    database.close()
    store.close()


def test_job_that_the_original_has_set_aside_is_named_too(store: SQLite, tmp_path: Path) -> None:
    (first, records) = store._core.connection().execute("SELECT first_seq, records FROM jobs LIMIT 1").fetchone()
    store._core.connection().execute(
        "UPDATE jobs SET records = ? WHERE first_seq = ?", (records[:60] + b"!" + records[61:], first)
    )
    store.close()
    shutil.rmtree(f"{store.path}.index")
    store.open()

    (line,) = received(store, tmp_path / "copy.db").wrong

    assert re.fullmatch(r"job \d+ is in quarantine: .*checksum.*", line)
    store.close()


def test_uncounted_changes_and_ended_jobs_are_counted(store: SQLite, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = by_seq(store, [7])[7]
    store.commit([changed(job, state=DONE, ended_at_us=5, forget_at_us=1 << 60)], MARK)
    received(store, tmp_path / "copy.db")
    copy = SQLite(f"sqlite://{tmp_path / 'copy.db'}")

    with caplog.at_level(logging.ERROR):
        copy.open()

    assert copy.counts() == store.counts()
    assert caplog.records == []
    copy.close()
    store.close()
