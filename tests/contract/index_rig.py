"""An index beside records in memory; a test may write to one without the other, as a kill leaves them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest.mock import Mock

from givalia_core.model import Job, JobState
from givalia_core.store.base import Change
from givalia_core.store.sqlite.index.index import Index
from givalia_core.store.sqlite.index.opening import Sealed, begin, close_index, open_index, remake
from givalia_core.store.sqlite.records import Forgotten, base_rows, change_rows, pack, pack_forgotten
from givalia_core.store.sqlite.tables import Records

BOOT = "boot"
EPOCH = 3


class Killed(BaseException):
    """Stands for the end of the process: nothing in our code catches it."""


class IndexRig:
    """One index with its records, written as the store writes them."""

    def __init__(self, folder: Path) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.execute("CREATE TABLE jobs (first_seq INTEGER PRIMARY KEY, records BLOB NOT NULL)")
        self.database.execute("CREATE TABLE changes (number INTEGER PRIMARY KEY, records BLOB NOT NULL)")
        self.records = Records(lambda: self.database)
        self.commits = self.last_number = self.last_seq = 0
        self.counts: dict[tuple[str, JobState], int] = {}
        self.make_room = Mock()
        self.folder = folder / "index"
        self.index = Index(self.folder, self.records.read, self.make_room)
        remake(self.index, BOOT)
        begin(self.index, EPOCH, BOOT)

    # The records alone.

    def write_jobs(self, jobs: Sequence[Job]) -> list[int]:
        """Append the records of new jobs; return their places."""
        rows, places = base_rows(jobs)
        self.database.executemany("INSERT INTO jobs VALUES (?, ?)", rows)
        self.last_seq = max(self.last_seq, *(job.seq for job in jobs))
        return places

    def write_changes(self, records: Sequence[Job | Forgotten]) -> list[int]:
        """Append the records of later states and of forgettings; return their places."""
        packed = [pack(record.front()) if isinstance(record, Job) else pack_forgotten(record) for record in records]
        rows, places = change_rows(packed, self.last_number)
        self.database.executemany("INSERT INTO changes VALUES (?, ?)", rows)
        self.last_number += len(rows)
        return places

    def spoil(self, table: str, number: int, old: bytes, new: bytes) -> None:
        """Change bytes in a row of records."""
        name = "first_seq" if table == "jobs" else "number"
        ((records,),) = self.database.execute(f"SELECT records FROM {table} WHERE {name} = ?", (number,)).fetchall()
        assert old in records
        self.database.execute(f"UPDATE {table} SET records = ? WHERE {name} = ?", (records.replace(old, new), number))

    # The records and the index.

    def enq(self, *jobs: Job) -> list[int]:
        """Bring in new jobs; return their slots."""
        lanes = self.index.prepare(jobs, ())
        bases = self.write_jobs(jobs)
        slots = [self.index.insert(job, base, lane) for job, base, lane in zip(jobs, bases, lanes, strict=True)]
        for job in jobs:
            self._count(job, 1)
        self._conclude()
        return slots

    def change(self, *changes: Change) -> list[int]:
        """Change jobs; return the places of their new records."""
        updates = []
        for was, job in changes:
            assert was is not None
            known = self.index.jobs.locate(was)
            assert known is not None
            updates.append((known, was, job))
            self._count(was, -1)
            self._count(job, 1)
        lanes = self.index.prepare((), updates)
        places = self.write_changes([job for _, job in changes])
        for (known, was, job), place, lane in zip(updates, places, lanes, strict=True):
            self.index.change(known, was, job, place, lane)
        self._conclude()
        return places

    def _count(self, job: Job, by: int) -> None:
        self.counts[job.module, job.state] = self.counts.get((job.module, job.state), 0) + by

    def _conclude(self) -> None:
        self.commits += 1
        self.index.conclude(self.commits, self.last_number, self.last_seq)

    def slot(self, job: Job) -> int:
        """Return the slot of a job."""
        slot = self.index.jobs.slot_with(job)
        assert slot is not None
        return slot

    def kill(self) -> Sealed | None:
        """Open the index again as a kill leaves it."""
        name = self.index.name
        close_index(self.index, sync=False)
        self.index = Index(self.folder, self.records.read, self.make_room)
        return open_index(self.index, EPOCH, self.commits, BOOT, name)

    def close(self) -> None:
        close_index(self.index, sync=False)
        self.database.close()


def opened(tmp_path: Path) -> Iterator[IndexRig]:
    """Make a fixture of it: `rig = pytest.fixture(opened)`."""
    rig = IndexRig(tmp_path)
    yield rig
    rig.close()
