"""The receiving end of a copy: only what was sent becomes a store, and every job of it is counted once, as it is by now."""

from __future__ import annotations

import errno
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack
import pytest

from givalia_core.errors import GivaliaError, StoreCorrupt, StoreFailed, StoreFull, StoreTooNew
from givalia_core.model import DONE, RUNNING, WAITING
from givalia_core.store.backups import CopyPart
from givalia_core.store.sqlite import SQLite, copies, disk, received
from givalia_core.store.sqlite.copying import FACTS
from givalia_core.store.sqlite.received import Received, Receiver
from givalia_core.store.sqlite.records import Forgotten, base_rows, change_rows, pack, pack_forgotten
from givalia_core.store.suite import by_seq, waiting

pytestmark = pytest.mark.usefixtures("small_ballast")

JOBS, CHANGES, QUARANTINE = range(3)
ALL = [waiting(seq, key=f"k{seq}") for seq in (1, 2, 3, 4)]
STATES = [
    pack(ALL[1].changed(version=3, state=DONE, ended_at_us=5, forget_at_us=1 << 60).front()),
    pack(ALL[1].changed(version=2, state=RUNNING).front()),  # Behind a later one, as after a rewrite of rows.
    pack_forgotten(Forgotten(3, 2, 0)),
    pack(waiting(99, version=2).front()),  # Of a job that was forgotten long ago.
]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    with closing(Receiver(tmp_path / "copy.db")) as receiver:
        yield receiver


def fact(name: str, value: Any) -> tuple[Any, ...]:
    packed = msgpack.packb(value)
    return FACTS, name, (packed, zlib.crc32(packed))


def parts_of(*parts: Sequence[Any], jobs: int = 3, version: int = disk.FORMAT) -> list[CopyPart]:
    """Return the parts with these entries, as a server would send them."""
    made: list[CopyPart] = []
    crc = 0
    for number, entries in enumerate(parts, 1):
        payload = msgpack.packb(entries)
        crc = zlib.crc32(payload, crc)
        made.append(CopyPart(payload, number == len(parts), 1 << 20, version, jobs, 1_000, crc))
    return made


def sent(jobs: int = 3) -> list[CopyPart]:
    rows = [(JOBS, number, [row]) for number, row in base_rows(ALL)[0]]
    changes = [(CHANGES, number, [row]) for number, row in change_rows(STATES, 0)[0]]
    facts = [fact("epoch", 9), fact("open", 9), fact("commit", (41, 1, 4, None, [("Mail", 0, 70)]))]
    return parts_of(rows, changes + facts, jobs=jobs)


def finished(receiver: Receiver, parts: list[CopyPart]) -> Received:
    for part in parts:
        receiver.add(part)
    return receiver.finish(parts[-1])


def test_what_was_sent_is_a_store_of_its_own_with_every_job_counted_as_it_is_by_now(receiver: Receiver, tmp_path: Path) -> None:
    assert finished(receiver, sent()) == Received(3, [])

    path = tmp_path / "copy.db"
    assert copies.is_as_it_was_made(path)
    assert [file.name for file in tmp_path.iterdir()] == ["copy.db"]
    with closing(sqlite3.connect(path)) as database:
        assert sorted(database.execute("SELECT * FROM counts")) == [("Mail", 0, 2), ("Mail", 2, 1)]
        assert copies.fact(database, "commit") == [41, 1, 4, None], "the counts are in their table alone"
    store = SQLite(f"sqlite://{path}")
    store.open()
    assert store.counts() == {("Mail", WAITING): 2, ("Mail", DONE): 1}
    assert {seq: job.state for seq, job in by_seq(store, range(9)).items()} == {1: WAITING, 2: DONE, 4: WAITING}
    assert store.check() == []
    store.close()


@pytest.mark.parametrize("version", [disk.READABLE - 1, disk.FORMAT + 1])
def test_a_part_of_another_format_is_refused_and_one_that_can_be_read_makes_a_store_of_its_format(
    receiver: Receiver, tmp_path: Path, version: int
) -> None:
    (part,) = parts_of([], version=version)
    with pytest.raises(StoreTooNew, match=f"format {version}"):
        receiver.add(part)

    finished(receiver, parts_of([], jobs=0, version=disk.READABLE))

    assert disk.format_of(tmp_path / "copy.db") == disk.READABLE


@pytest.mark.parametrize("change", [{"payload": b"\x90\x90"}, {"payload": b""}, {"crc": 7}])
def test_a_part_that_is_not_what_was_sent_is_refused(receiver: Receiver, change: dict[str, Any]) -> None:
    first, second = sent()
    receiver.add(first)

    with pytest.raises(StoreCorrupt, match="not what the server has sent"):
        receiver.add(second._replace(**change))


def test_a_row_that_comes_again_counts_as_it_came_last_and_one_that_is_gone_not_at_all(receiver: Receiver) -> None:
    rows = [(number, [row]) for number, row in base_rows([ALL[0], ALL[2], waiting(9)])[0]]
    (_, other), *_ = base_rows([waiting(9, module="Fax")])[0]
    first = [(JOBS, *row) for row in rows]
    second = [(JOBS, 9, [other]), (JOBS, 3, None), (JOBS, 77, None)]

    assert finished(receiver, parts_of(first, second, jobs=2)) == Received(2, [])

    with closing(sqlite3.connect(receiver._path)) as database:
        assert sorted(database.execute("SELECT * FROM counts")) == [("Fax", 0, 1), ("Mail", 0, 1)]


def test_a_change_that_is_no_later_than_the_record_of_its_enq_is_not_counted(receiver: Receiver) -> None:
    """The record of the enq is written again when the params are replaced, and older changes may still be there."""
    rows, _ = base_rows([ALL[0].changed(version=3), ALL[1].changed(version=3)])
    changes, _ = change_rows(
        [pack(job.changed(version=version, state=RUNNING).front()) for job, version in zip(ALL, (3, 4), strict=False)], 0
    )

    finished(receiver, parts_of([(JOBS, *rows[0][:1], rows[0][1:]), (CHANGES, *changes[0][:1], changes[0][1:])], jobs=2))

    with closing(sqlite3.connect(receiver._path)) as database:
        assert sorted(database.execute("SELECT * FROM counts")) == [("Mail", 0, 1), ("Mail", 1, 1)]


@pytest.mark.parametrize("jobs", [2, 4])
def test_jobs_that_are_not_as_many_as_the_server_has_make_no_copy(receiver: Receiver, jobs: int) -> None:
    with pytest.raises(StoreCorrupt, match=f"the server has {jobs} jobs, and 3 of them arrived"):
        finished(receiver, sent(jobs))


def test_faults_and_jobs_in_quarantine_are_named_and_the_copy_is_made(receiver: Receiver) -> None:
    first, _ = sent()
    entries = msgpack.unpackb(first.payload)
    row = msgpack.unpackb(entries[0][2][0])
    row[0] = row[0][:-1] + b"?"
    set_aside = (QUARANTINE, 1, [5, 8, "bad luck", None, None, b"change"])
    bad_change = (CHANGES, 7, [msgpack.packb([b"cut"])])

    copied = finished(receiver, parts_of([(JOBS, 1, [msgpack.packb(row)]), set_aside, bad_change], jobs=4))

    assert copied.jobs == 3
    assert copied.wrong == [
        "row 7 of changes, record 0: a record does not match its checksum",
        "row 1 of jobs, record 0: a record does not match its checksum",
        "job 8 is in quarantine: bad luck",
    ]


def test_progress_is_told_now_and_then_while_rows_are_read(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "_TICK_ROWS", 3)
    told: list[int] = []
    rows, _ = base_rows([waiting(seq) for seq in range(1, 16, 2)])
    (part,) = parts_of([(JOBS, number, [row]) for number, row in rows], jobs=8)
    receiver.add(part)

    receiver.finish(part, told.append)

    assert told == [3, 6]


def trouble(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("disk trouble")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (trouble(sqlite3.SQLITE_FULL), StoreFull),
        (trouble(sqlite3.SQLITE_IOERR), StoreFailed),
        (OSError(errno.ENOSPC, "no room"), StoreFull),
        (OSError(errno.EIO, "no disk"), StoreFailed),
    ],
)
@pytest.mark.parametrize("when", ["add", "finish"])
def test_a_disk_that_is_full_or_fails_is_said_as_such(
    receiver: Receiver, error: Exception, kind: type[GivaliaError], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(Receiver, "_take", fails) if when == "add" else monkeypatch.setattr(copies, "mark", fails)

    with pytest.raises(kind, match=r"copy\.db") as caught:
        finished(receiver, sent())

    assert type(caught.value) is kind


def test_a_file_that_cannot_be_synced_is_no_copy(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []

    def fails(path: Path) -> None:
        synced.append(path)
        raise StoreFailed("disk trouble")

    monkeypatch.setattr(disk, "sync", fails)

    with pytest.raises(StoreFailed, match="disk trouble"):
        finished(receiver, sent())

    assert synced == [receiver._path]


def test_a_receiver_can_be_closed_at_any_time_and_twice(tmp_path: Path) -> None:
    for count in (0, 1, 2):
        path = tmp_path / f"copy{count}.db"
        receiver = Receiver(path)
        for part in sent()[:count]:
            receiver.add(part)

        receiver.close()
        receiver.close()

        assert not copies.is_as_it_was_made(path)
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("SELECT count(*) FROM jobs").fetchone() == (0,), "nothing is kept before it is checked"


def test_no_entry_can_write_anything_but_rows_and_facts(receiver: Receiver) -> None:
    for entry in (
        [-1, 1, [b""]],
        [FACTS + 1, 1, [b""]],
        [JOBS, 1, [b"", b""]],
        [FACTS, "epoch", [b"x"]],
        [JOBS, "one", [b""]],
        [],
    ):
        payload = msgpack.packb([entry])
        with closing(Receiver(receiver._path.with_name("other.db"))) as other, pytest.raises(StoreCorrupt):
            other.add(CopyPart(payload, True, 0, disk.FORMAT, 0, 0, zlib.crc32(payload)))
