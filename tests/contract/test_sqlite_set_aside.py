"""Damaged records of the SQLite store are set aside, and the other jobs go on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from sqlite_rig import database, read_anew

from givalia_core.errors import StoreCorrupt
from givalia_core.model import CANCELLED, WAITING
from givalia_core.store.base import Filter, Wanted
from givalia_core.store.sqlite import SQLite, commits, disk
from givalia_core.store.suite import (
    MARK,
    NOW,
    by_seq,
    changed,
    inserts,
    job_id,
    waiting,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("small_ballast")


def _of_another(records: list[bytes], other: list[bytes]) -> list[bytes]:
    return [other[0], records[1]]


DAMAGE: dict[str, Callable[[list[bytes], list[bytes]], Any]] = {
    "a byte of the record": lambda records, other: [records[0][:20] + b"?" + records[0][21:], records[1]],
    "params": lambda records, other: [records[0], b"13"],
    "checksum": lambda records, other: [records[0][:-1] + bytes([records[0][-1] ^ 1]), records[1]],
    "record that is cut": lambda records, other: [records[0][:-1], records[1]],
    "empty record": lambda records, other: [b"", records[1]],
    "record of another job": _of_another,
    "another job": lambda records, other: other,
    "no list": lambda records, other: 7,
}


def set_aside(store: SQLite, seq: int) -> None:
    """Job `seq` is in quarantine, and the store goes on without it, before and after a restart."""
    store.tidy()
    assert store.describe()["quarantined"] == 1
    assert [line for line in store.check() if line.startswith(f"job {seq} is in quarantine")]
    store.close()
    store.open()
    assert store.describe()["quarantined"] == 1
    assert len(store.check()) == 1
    assert store.commit(inserts([waiting(9, key="k")]), MARK).refused == ()


@pytest.mark.parametrize("damage", sorted(DAMAGE.keys() - {"record of another job", "another job", "no list"}))
def test_a_job_whose_record_is_bad_is_set_aside_and_the_others_go_on(store: SQLite, damage: str) -> None:
    jobs = [waiting(seq, key=key, params=b"12") for seq, key in ((1, "k"), (2, None))]
    store.commit(inserts(jobs), MARK)
    (blob,) = database(store).execute("SELECT records FROM jobs").fetchone()
    records = msgpack.unpackb(blob)
    records[:2] = DAMAGE[damage](records[:2], records[2:])
    database(store).execute("UPDATE jobs SET records = ?", (msgpack.packb(records),))
    read_anew(store)

    found = store.find(Wanted(frozenset({job_id(1), job_id(2)}), frozenset({"k"})), NOW)

    assert found.ids == {job_id(2): jobs[1]}
    assert found.live == {}
    set_aside(store, 1)
    assert by_seq(store, {2}) == {2: jobs[1]}


@pytest.mark.parametrize("damage", ["a byte of the record", "checksum", "record that is cut", "empty record"])
@pytest.mark.parametrize("how", ["find", "rebuild"])
def test_a_job_whose_newest_change_is_bad_does_not_come_back_as_it_was_before(
    store: SQLite, path: Path, damage: str, how: str
) -> None:
    job, other = waiting(1, key="k"), waiting(2)
    store.commit(inserts([job, other]), MARK)
    store.commit([changed(job, state=CANCELLED, ended_at_us=1, forget_at_us=NOW.timer_us * 2)], MARK)
    (blob,) = database(store).execute("SELECT records FROM changes").fetchone()
    (record,) = msgpack.unpackb(blob)
    database(store).execute("UPDATE changes SET records = ?", (msgpack.packb(DAMAGE[damage]([record, b""], [])[:1]),))
    read_anew(store)

    if how == "rebuild":
        store.close()
        (disk.index_folder(path) / "lanes.keys").unlink()
        store.open()

    assert by_seq(store, {1, 2}) == {2: other}
    assert store.page(Filter(), None, 10, NOW).jobs == [other]
    if how == "find":
        set_aside(store, 1)
    else:
        assert any(line.startswith("job 1 is in quarantine") for line in store.check())


@pytest.mark.parametrize("damage", ["record of another job", "another job"])
def test_a_place_that_has_the_record_of_another_job_is_not_believed(store: SQLite, damage: str) -> None:
    for job in (waiting(1, key="k", params=b"12"), waiting(2, params=b"12")):
        store.commit(inserts([job]), MARK)
    rows = [
        msgpack.unpackb(blob) for (blob,) in database(store).execute("SELECT records FROM jobs ORDER BY first_seq").fetchall()
    ]
    damaged = msgpack.packb(DAMAGE[damage](*rows))
    database(store).execute("UPDATE jobs SET records = ? WHERE first_seq = 1", (damaged,))
    read_anew(store)

    found = store.find(Wanted(frozenset({job_id(1)}), frozenset({"k"})), NOW)

    assert found.ids == found.live == {}
    assert set(by_seq(store, {2})) == {2}
    assert store.check() != []


def test_a_row_that_cannot_be_read_is_named_and_the_others_go_on(store: SQLite) -> None:
    for job in (waiting(1, key="k"), waiting(2)):
        store.commit(inserts([job]), MARK)
    database(store).execute("UPDATE jobs SET records = ? WHERE first_seq = 1", (msgpack.packb(7),))
    read_anew(store)

    assert set(by_seq(store, {1, 2})) == {2}
    assert [job.seq for job in store.page(Filter(), None, 10, NOW).jobs] == [2]
    assert any("row 1 of jobs" in line for line in store.check())


def test_a_row_that_is_gone_is_missed_and_no_job_that_never_was(store: SQLite, caplog: pytest.LogCaptureFixture) -> None:
    store.commit(inserts([waiting(1), waiting(2)]), MARK)
    store.commit(inserts([waiting(3)]), MARK)
    database(store).execute("DELETE FROM jobs WHERE first_seq = 1")
    read_anew(store)

    assert by_seq(store, {1, 2, 3}) == {3: waiting(3)}

    assert "the records have 1 jobs, the stored counts had 3" in caplog.text
    assert store.counts() == {("Mail", WAITING): 1}
    assert store.check() != []


@pytest.mark.parametrize("fact", ["epoch", "commit"])
def test_a_damaged_fact_is_corrupt_at_open(store: SQLite, fact: str) -> None:
    store.commit(inserts([waiting(1)]), MARK)
    database(store).execute("UPDATE facts SET value = x'07' WHERE name = ?", (fact,))
    store.close()

    with pytest.raises(StoreCorrupt, match=fact):
        store.open()


def test_check_finds_counts_that_are_not_those_of_the_rows(store: SQLite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "UNCOUNTED_MOST", 0)
    store.commit(inserts([waiting(1)]), MARK)
    assert store.check() == []

    database(store).execute("UPDATE counts SET jobs = jobs + 1")
    store.close()
    store.open()

    assert len(store.check()) == 1


@pytest.mark.parametrize("place", range(1, 12))
def test_a_page_of_rubbish_is_found_and_never_shown_as_a_job(store: SQLite, path: Path, place: int) -> None:
    jobs = [waiting(seq, key=f"k{seq}", params=seq.to_bytes(2, "big") * 400) for seq in range(1, 60)]
    store.commit(inserts(jobs), MARK)
    store.close()
    with path.open("r+b") as file:
        file.seek(4_096 * place)
        file.write(b"\xa5" * 4_096)

    errors = 0
    try:
        store.open()
        for job in jobs:
            try:
                found = store.find(Wanted(ids=frozenset({job.id}), keys=frozenset({job.key or ""})), NOW)
            except StoreCorrupt:
                errors += 1
            else:
                assert found.ids.get(job.id, job) == job
        if not errors:
            errors = len(store.check())
    except StoreCorrupt:
        errors += 1

    assert errors
