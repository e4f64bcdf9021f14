"""`givalia store salvage`: the new store has the sound jobs of a damaged SQLite store, and the damaged ones are named."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
from sqlite_history import SEED, Script
from test_sqlite_damage import deadline

from givalia_core.errors import StoreCorrupt, StoreFailed, StoreFull, StoreLocked, StoreUnfit
from givalia_core.model import CANCELLED, WAITING, Job
from givalia_core.store.base import FENCE_COUNTER_BITS, Filter
from givalia_core.store.sqlite import SQLite, disk
from givalia_core.store.sqlite.salvage import Salvaged, salvage
from givalia_core.store.suite import MARK, NOW, changed, inserts, waiting


def salvaged(path: Path, into: str = "new.db") -> tuple[Salvaged, dict[int, Job]]:
    new = SQLite(f"sqlite://{path.with_name(into)}")
    done = salvage(path, new)
    new.open()
    assert new.check() == []
    jobs, after = {}, None
    while True:
        page = new.page(Filter(), after, 100, NOW)
        jobs |= {job.seq: job for job in page.jobs}
        if (after := page.after) is None:
            break
    new.close()
    return done, jobs


def test_a_sound_store_is_salvaged_whole_and_left_as_it_is(path: Path) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    script = Script(SEED)
    store = SQLite(f"sqlite://{path}")
    store.open()
    for _ in range(40):
        step = script.step()
        step.do(store), step.do(script.reference)
        store.tidy()
    store.abandon()  # Killed: much of it is in the log.
    before = {file: hashlib.sha256(file.read_bytes()).digest() for file in path.parent.glob("queue.db*") if file.is_file()}

    done, jobs = salvaged(path)

    assert done.lost == []
    assert jobs == dict(script.reference._jobs)
    assert {file: hashlib.sha256(file.read_bytes()).digest() for file in before} == before


def test_damaged_pages_cost_their_own_jobs_alone(path: Path) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    store = SQLite(f"sqlite://{path}")
    store.open()
    jobs = [waiting(seq, key=f"k{seq}", params=seq.to_bytes(2, "big") * 400) for seq in range(1, 1_000)]
    store.commit(inserts(jobs), MARK)
    store.close()
    pages = path.stat().st_size // 4_096
    with path.open("r+b") as file:
        for page in chance.sample(range(pages // 4, pages), 5):
            file.seek(4_096 * page)
            file.write(chance.randbytes(4_096))

    done, found = salvaged(path)

    assert done.lost
    assert len(found) > 900
    assert all(jobs[seq - 1] == job for seq, job in found.items())


PAGE = 4_096
LEAF, INTERIOR = 13, 5  # The first byte of such a page of a table.


def _pages(bytes_: bytearray, kind: int, root: int) -> list[int]:
    """Where the pages of one kind begin whose parent is this one, by SQLite's map of pages."""
    parents = {2 + at: bytes_[PAGE + 5 * at : PAGE + 5 * at + 5] for at in range(1, PAGE // 5)}
    return [(page - 1) * PAGE for page, entry in parents.items() if entry == bytes([5]) + root.to_bytes(4, "big")
            and bytes_[(page - 1) * PAGE] == kind]  # fmt: skip


def _swap(bytes_: bytearray, pages: list[int], root: int) -> None:
    one, other = pages[2], pages[6]
    bytes_[one : one + PAGE], bytes_[other : other + PAGE] = bytes_[other : other + PAGE], bytes_[one : one + PAGE]


def _repeat(bytes_: bytearray, pages: list[int], root: int) -> None:
    bytes_[pages[6] : pages[6] + PAGE] = bytes_[pages[2] : pages[2] + PAGE]


def _forget_rows(bytes_: bytearray, pages: list[int], root: int) -> None:
    at = pages[3] + 3
    bytes_[at : at + 2] = (int.from_bytes(bytes_[at : at + 2], "big") - 1).to_bytes(2, "big")


def _misplace(bytes_: bytearray, pages: list[int], root: int) -> None:
    """Give a cell of the root a number that leads past rows of the leaf that it is for."""
    start = (root - 1) * PAGE
    cell = start + int.from_bytes(bytes_[start + 14 : start + 16], "big")
    bytes_[cell + 5] = 1


@pytest.mark.parametrize("table", ["jobs", "changes"])
@pytest.mark.parametrize("damage", [_swap, _repeat, _forget_rows, _misplace])
def test_pages_that_are_not_where_they_belong_are_said(path: Path, table: str, damage: Callable[..., None]) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    jobs = [waiting(seq, key=f"k{seq}", params=bytes(300)) for seq in range(1, 300)]
    for at in range(0, len(jobs), 3):
        store.commit(inserts(jobs[at : at + 3]), MARK)
        store.commit([changed(job, due_at_us=NOW.timer_us + job.seq) for job in jobs[at : at + 3]], MARK)
    (root,) = store._core.connection().execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    store.close()
    bytes_ = bytearray(path.read_bytes())
    pages = _pages(bytes_, LEAF, root)
    assert bytes_[(root - 1) * PAGE] == INTERIOR
    damage(bytes_, pages, root)
    path.write_bytes(bytes_)
    shutil.rmtree(disk.index_folder(path))

    with pytest.raises(StoreCorrupt, match="givalia store salvage --store sqlite:///"):
        store.open()
    done, found = salvaged(path)

    assert done.lost[0].startswith("pages of the database: ")
    assert len(found) > 200
    assert all(job.params == jobs[seq - 1].params for seq, job in found.items())


def _with_a_bad_page(path: Path, swapped: tuple[int, ...]) -> list[Job]:
    """A store of three jobs a row and a row a page; the 22nd page cannot be read. Returns its jobs."""
    store = SQLite(f"sqlite://{path}")
    store.open()
    jobs = [waiting(seq, key=f"k{seq}", params=bytes(500)) for seq in range(1, 240)]
    for at in range(0, len(jobs), 3):
        store.commit(inserts(jobs[at : at + 3]), MARK)
    (root,) = store._core.connection().execute("SELECT rootpage FROM sqlite_schema WHERE name = 'jobs'").fetchone()
    store.close()
    bytes_ = bytearray(path.read_bytes())
    pages = _pages(bytes_, LEAF, root)
    if swapped:
        one, other = (pages[at] for at in swapped)
        bytes_[one : one + PAGE], bytes_[other : other + PAGE] = bytes_[other : other + PAGE], bytes_[one : one + PAGE]
    bytes_[pages[21] : pages[21] + PAGE] = b"\x99" * PAGE
    path.write_bytes(bytes_)
    return jobs


def test_rows_out_of_order_behind_a_bad_page_do_not_lead_back(path: Path) -> None:
    _with_a_bad_page(path, swapped=(1, 20))

    with deadline("the search goes in a circle"):
        done, found = salvaged(path)

    assert len(found) > 200
    assert sum(line.startswith("rows of jobs") for line in done.lost) == 1


def test_the_last_row_before_a_bad_page_is_not_lost_with_it(path: Path) -> None:
    jobs = _with_a_bad_page(path, swapped=())

    _, found = salvaged(path)

    missing = [job.seq for job in jobs if job.seq not in found]
    assert len(missing) % 3 == 0
    assert 3 <= len(missing) <= 6


def test_a_job_whose_newest_change_is_bad_is_named_and_does_not_come_back(path: Path) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    jobs = [waiting(seq, key=f"k{seq}") for seq in (1, 2)]
    store.commit(inserts(jobs), MARK)
    store.commit([changed(jobs[0], state=CANCELLED, ended_at_us=1, forget_at_us=NOW.timer_us * 2)], MARK)
    (blob,) = store._core.connection().execute("SELECT records FROM changes").fetchone()
    (record,) = msgpack.unpackb(blob)
    bad = msgpack.packb([record[:-1] + bytes([record[-1] ^ 1])])
    store._core.connection().execute("UPDATE changes SET records = ?", (bad,))
    store.close()

    done, found = salvaged(path)

    assert found == {2: jobs[1]}
    assert len(done.lost) == 1
    assert done.lost[0].startswith("job 1 ")


@pytest.mark.parametrize("fact", ["epoch", "commit"])
def test_a_store_that_is_refused_names_the_command_that_salvages_it(path: Path, fact: str) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    job = waiting(1, fence=7 << FENCE_COUNTER_BITS)
    store.commit(inserts([job]), MARK)
    store._core.connection().execute("UPDATE facts SET value = x'07' WHERE name = ?", (fact,))
    store.close()
    with pytest.raises(StoreCorrupt, match="givalia store salvage --store sqlite:///"):
        store.open()

    done, found = salvaged(path)

    assert found == {1: job}
    assert [line.split(":")[0] for line in done.lost] == [f"the stored {fact}"]
    new = SQLite(f"sqlite://{path.with_name('new.db')}")
    assert new.open().epoch > 7  # No fence is granted twice.
    new.close()


@pytest.mark.parametrize(("number", "expected"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreFailed)])
def test_an_error_of_the_system_is_named_as_one(
    path: Path, number: int, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.close()

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(shutil, "copyfile", failing)

    with pytest.raises(expected):
        salvaged(path)


def test_a_copy_that_cannot_be_read_is_not_called_damaged_and_is_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1)]), MARK)
    store.close()
    copied = shutil.copyfile
    connect = sqlite3.connect
    opened: list[sqlite3.Connection] = []

    def connecting(*given: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*given, **options))
        return opened[-1]

    def copying(old: Path, new: Path) -> None:
        copied(old, new)
        Path(f"{new}-wal").mkdir()  # As if there were no room for a file: SQLite says that it cannot open one.

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", copying)
        patched.setattr(sqlite3, "connect", connecting)
        with pytest.raises(StoreFailed, match="the copy of the damaged store"):
            salvaged(path)

    for each in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            each.total_changes  # noqa: B018
    assert salvaged(path)[0] == Salvaged(1, [])


def test_an_open_store_and_a_full_one_are_refused(path: Path) -> None:
    store = SQLite(f"sqlite://{path}")
    store.open()
    with pytest.raises(StoreLocked):
        salvage(path, SQLite(f"sqlite://{path.with_name('new.db')}"))
    store.commit(inserts([waiting(1)]), MARK)
    store.close()
    shutil.copytree(path.parent, path.parent.with_name("other"))

    with pytest.raises(StoreUnfit, match="holds jobs already"):
        salvage(path, SQLite(f"sqlite://{path.parent.with_name('other')}/queue.db"))
    assert store.open().epoch
    assert store.counts() == {("Mail", WAITING): 1}
    store.close()
