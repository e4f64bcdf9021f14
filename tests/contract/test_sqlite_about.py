"""What a SQLite store says of itself: its place, its sizes, how often its index was made anew, and its faults."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import msgpack
import pytest
from sqlite_rig import database, read_anew

from givalia_core.clock import SystemClock
from givalia_core.model import DONE, WAITING
from givalia_core.store.sqlite import SQLite, about, disk, mending
from givalia_core.store.suite import MARK, by_seq, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_ballast")


def test_a_store_says_its_place_and_its_format(store: SQLite, path: Path) -> None:
    said = about.describe(store._core)

    assert said["url"] == f"sqlite://{path}"
    assert SQLite(said["url"]).path == path
    assert (said["format"], said["sqlite"]) == (disk.FORMAT, sqlite3.sqlite_version)


def test_sizes_are_those_of_the_files(store: SQLite, path: Path) -> None:
    store.commit(inserts([waiting(1, params=bytes(50_000))]), MARK)

    said = about.describe(store._core)

    assert said["bytes"] == path.stat().st_size > 0
    assert said["log_bytes"] == Path(f"{path}-wal").stat().st_size > 50_000
    assert said["index_bytes"] == sum(file.stat().st_size for file in disk.index_folder(path).iterdir()) > 0


def test_files_that_somebody_removed_have_no_size(store: SQLite, path: Path) -> None:
    shutil.rmtree(disk.index_folder(path))
    Path(f"{path}-wal").rename(f"{path}-elsewhere")

    said = about.describe(store._core)

    assert (said["log_bytes"], said["index_bytes"]) == (0, 0)
    Path(f"{path}-elsewhere").rename(f"{path}-wal")
    disk.index_folder(path).touch()
    assert about.describe(store._core)["index_bytes"] == 0, "a file in the place of the folder"


def test_the_disk_has_what_its_users_may_fill_and_not_what_root_may(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(folder: Path) -> os.statvfs_result:
        asked.append(folder)
        return os.statvfs_result((512, 1_000, 70, 30, 20, 9, 9, 9, 0, 255))

    monkeypatch.setattr(os, "statvfs", usage)
    said = about.describe(store._core)

    assert asked == [store.path.parent]
    assert (said["disk_bytes"], said["disk_free_bytes"]) == (70_000, 20_000)


def test_a_store_is_new_until_it_is_opened_again(store: SQLite) -> None:
    assert about.describe(store._core)["is_new"] is True

    store.close()
    store.open()

    assert about.describe(store._core)["is_new"] is False


def test_rounds_of_the_scrub_and_rebuilds_are_told_once_there_was_one(store: SQLite) -> None:
    store._core.scrub.last, store._core.index.is_verified = None, False
    said = about.describe(store._core)["index"]
    assert (said["is_verified"], said["scrub_rounds"]) == (False, 0)
    assert said["scrub_ended_at_us"] is said["scrub_seconds"] is None
    before = said["rebuilds"]

    mending.rebuild(store._core, "a test")
    store._core.scrub.finish()

    said = about.describe(store._core)["index"]
    assert (said["rebuilds"], said["is_verified"], said["scrub_rounds"]) == (before + 1, True, 1)
    assert abs(said["scrub_ended_at_us"] - SystemClock().read().wall_us) < 60_000_000
    assert 0 <= said["scrub_seconds"] < 60
    assert said["scrub_seconds"] == round(said["scrub_seconds"], 3)


def test_a_full_disk_is_told_until_there_is_room(store: SQLite) -> None:
    assert about.describe(store._core)["is_full"] is False

    store._core.room.note_full()
    assert about.describe(store._core)["is_full"] is True

    assert store.has_room()
    assert about.describe(store._core)["is_full"] is False


def test_a_sound_store_has_no_fault_and_counts_of_none_are_none(store: SQLite) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    by_seq(store, ())
    store._core.counted["Fax", DONE] = 0

    assert about.check(store._core) == []


def test_counts_that_are_not_those_of_the_records_are_a_fault(store: SQLite) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    by_seq(store, ())
    store._core.counted["Mail", WAITING] = 2

    (line,) = about.check(store._core)

    assert line.startswith("the stored counts ")


def test_damages_come_first_then_what_was_set_aside_then_what_is_wrong_now(store: SQLite) -> None:
    store.commit(inserts(waiting(seq) for seq in (1, 2)), MARK)
    (blob,) = database(store).execute("SELECT records FROM jobs").fetchone()
    records = msgpack.unpackb(blob)
    for place in (0, 2):
        records[place] = records[place][:-1] + b"?"
        database(store).execute("UPDATE jobs SET records = ?", (msgpack.packb(records),))
        read_anew(store)
        if place == 0:
            assert set(by_seq(store, {1, 2})) == {2}
            mending.set_bad_aside(store._core)
            (blob,) = database(store).execute("SELECT records FROM jobs").fetchone()
            records = msgpack.unpackb(blob)
    store._core.damages.append("the index was damaged")

    assert about.describe(store._core)["quarantined"] == 1
    damage, set_aside, *wrong = about.check(store._core)

    assert damage == "the index was damaged"
    assert set_aside == "job 1 is in quarantine: a record does not match its checksum"
    assert wrong
    assert all("job 2" in line or "row 1 of jobs" in line for line in wrong)
