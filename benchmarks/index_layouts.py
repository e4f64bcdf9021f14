"""The layouts of an index that `store_index.py` compares, each behind the same few methods.

Only Givalia's own layouts import Givalia, so a Python with only a layout's package can run that layout.
"""

from __future__ import annotations

import heapq
import importlib
import sqlite3
import struct
from array import array
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, NamedTuple

CACHE: Final = 24 << 20  # The cache of SQLite and of the LSM: as much as the store allows SQLite.
_SEQ: Final = struct.Struct(">Q")
_DUE: Final = struct.Struct(">QQ")


class Entry(NamedTuple):
    """The indexed values of a job."""

    seq: int
    id: bytes
    key: str
    due_us: int


Taken = list[tuple[int, int, int]]  # The due of a job, its seq, and the layout's own name for the job.


def entry_of(seq: int, due_us: int) -> Entry:
    """Return the job of a seq as its record would have it: an id and a key of 24 characters, in no order."""
    digest = blake2b(_SEQ.pack(seq), digest_size=28).digest()
    return Entry(seq, digest[:16], digest[16:].hex(), due_us)


_TRIM_COMMITS = 20


def hashes_of(entry: Entry) -> tuple[int, int]:
    """Return id and key as signed 64-bit numbers, for the layouts that keep hashes."""
    first, second = blake2b(b"i" + entry.id, digest_size=8), blake2b(b"k" + entry.key.encode(), digest_size=8)
    return int.from_bytes(first.digest(), signed=True), int.from_bytes(second.digest(), signed=True)


def rows_of(entries: Iterable[Entry]) -> list[tuple[bytes, bytes]]:
    """Return the names as bytes beside the seq, sorted, which suits B-trees best."""
    return sorted((hashed.to_bytes(8, signed=True), _SEQ.pack(entry.seq)) for entry in entries for hashed in hashes_of(entry))


class Ours:
    """Givalia's own index, in mapped files."""

    is_on_disk = True
    package = "givalia_core.store.sqlite"

    def __init__(self, folder: Path, last_seq: int = 0, commits: int = 0, name: int | None = None) -> None:
        from givalia_core.model import WAITING, Job
        from givalia_core.store.sqlite.index import Index, begin, open_index, remake, slots, trim_if_large
        from givalia_core.store.sqlite.index.upkeep import filing

        def job(entry: Entry) -> Any:
            return Job(entry.seq, entry.id, entry.key, WAITING, "Noop", "any", 0, False, entry.due_us)

        self._job = job
        self._filing, self._trim = filing, trim_if_large
        self._index = Index(folder / "index", lambda *_: {}, lambda: None)
        self._commits = commits
        sealed = open_index(self._index, 1, commits, "boot", name)
        if sealed is None:
            remake(self._index, "boot")
        begin(self._index, 1, "boot")
        at = self._index.slots.at
        # As after a kill of the store: unsealed changes are applied again. The dues are in records, which are not read here.
        for seq in range(sealed.seq + 1 if sealed else last_seq + 1, last_seq + 1):
            slot = self._index.jobs.slot_with(job(entry_of(seq, 0)))
            if slot is not None:
                filing.stand_again(self._index, slot, job(entry_of(seq, at[slot + slots.WHEN])))
        self._lane = self._index.lane_of(job(entry_of(0, 0)))
        self._last_seq = last_seq
        self._absent: dict[bytes | str, int] = {}  # Names that were looked up last, with their hashes.

    def made(self, entries: Sequence[Entry]) -> list[Any]:
        """Return the jobs in the form that the server has anyway."""
        return [self._job(entry) for entry in entries]

    def look_up(self, jobs: Sequence[Any]) -> int:
        """Return the number of ids and keys found; keep their hashes for the insert."""
        look_up, self._absent = self._index.names.look_up, {}
        found = 0
        for job in jobs:
            found += len(look_up(b"i" + job.id, job.id, self._absent))
            found += len(look_up(b"k" + job.key.encode(), job.key, self._absent))
        return found

    def insert(self, jobs: Sequence[Any]) -> None:
        """Index the jobs that were looked up last."""
        for job in jobs:
            self._index.insert(job, job.seq << 8 | 1, self._lane, self._absent)
        self._last_seq = jobs[-1].seq
        self._conclude()

    def take(self, until_us: int) -> Taken:
        """Return the earliest jobs that are due by then."""
        return self._index.lanes.first(self._lane, until_us, 1 << 40)

    def remove(self, taken: Taken, jobs: Sequence[Any]) -> None:
        """Remove the taken jobs from the index."""
        self._filing.unname(self._index, {slot: job for (_, _, slot), job in zip(taken, jobs, strict=True)})
        for (_, _, slot), job in zip(taken, jobs, strict=True):
            self._filing.drop(self._index, slot, job)
        self._conclude()

    def left(self) -> dict[str, int]:
        """Return the facts that a process which opens the layout again would get from the records."""
        return {"last_seq": self._last_seq, "commits": self._commits, "name": self._index.name}

    def _conclude(self) -> None:
        self._commits += 1
        self._index.conclude(self._commits, 0, self._last_seq)
        if self._commits % _TRIM_COMMITS == 0:
            self._trim(self._index)


class Packed(Ours):
    """The same algorithms on arrays in memory."""

    is_on_disk = False

    def __init__(self, folder: Path) -> None:
        from givalia_core.store.sqlite.index import names, runs, slots

        for module in (names, runs, slots):
            setattr(module, "Words", _ArrayWords)  # noqa: B010 It is another class.
        super().__init__(folder)


class _ArrayWords:
    """`Words` without a file."""

    def __init__(self, path: Path, words: int, _make_room: Callable[[], None]) -> None:
        path.touch()
        self._array = array("q")
        self.at = memoryview(self._array)
        self.grow(words)

    def __len__(self) -> int:
        return len(self._array)

    @property
    def raw(self) -> Any:
        return self._array

    def grow(self, words: int) -> None:
        size = len(self._array)
        if words > size:
            self.at.release()
            self._array.frombytes(bytes(8 * (max(words, size + size // 8, size + 8_192) - size)))
            self.at = memoryview(self._array)

    def close(self) -> None:
        self.at = memoryview(b"").cast("q")

    def trim(self) -> None:
        pass


class Dicts:
    """Plain Python: two dicts and a heap."""

    is_on_disk = False
    package = "heapq"

    def __init__(self, _folder: Path) -> None:
        self._ids: dict[bytes, int] = {}
        self._keys: dict[str, int] = {}
        self._heap: list[tuple[int, int]] = []

    def made(self, entries: Sequence[Entry]) -> list[Any]:
        return list(entries)

    def look_up(self, jobs: Sequence[Entry]) -> int:
        return sum((job.id in self._ids) + (job.key in self._keys) for job in jobs)

    def insert(self, jobs: Sequence[Entry]) -> None:
        for seq, job_id, key, due_us in jobs:
            self._ids[job_id] = self._keys[key] = seq
            heapq.heappush(self._heap, (due_us, seq))

    def take(self, until_us: int) -> Taken:
        taken = []
        while self._heap and self._heap[0][0] <= until_us:
            taken.append((*heapq.heappop(self._heap), 0))
        return taken

    def remove(self, _taken: Taken, jobs: Sequence[Entry]) -> None:
        for job in jobs:
            del self._ids[job.id], self._keys[job.key]

    def left(self) -> dict[str, int]:
        return {}


class Tables(Dicts):
    """Two B-trees of SQLite, never synced."""

    is_on_disk = True

    def __init__(self, folder: Path) -> None:
        self._database = sqlite3.connect(folder / "index.db", isolation_level=None)
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = OFF", f"cache_size = {-(CACHE >> 10)}"):
            self._database.execute(f"PRAGMA {pragma}")
        names = "name INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (name, seq)"
        self._database.execute(f"CREATE TABLE IF NOT EXISTS names ({names}) WITHOUT ROWID")
        dues = "due INTEGER NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (due, seq)"
        self._database.execute(f"CREATE TABLE IF NOT EXISTS dues ({dues}) WITHOUT ROWID")

    def look_up(self, jobs: Sequence[Entry]) -> int:
        self._hashes = sorted((hashed, job.seq) for job in jobs for hashed in hashes_of(job))
        ask = "SELECT seq FROM names WHERE name = ?"
        return sum(self._database.execute(ask, (hashed,)).fetchone() is not None for hashed, _ in self._hashes)

    def insert(self, jobs: Sequence[Entry]) -> None:
        dues = sorted((job.due_us, job.seq) for job in jobs)
        self._write("INSERT INTO names VALUES (?, ?)", self._hashes, "INSERT INTO dues VALUES (?, ?)", dues)

    def take(self, until_us: int) -> Taken:
        return self._database.execute("SELECT due, seq, 0 FROM dues WHERE due <= ? ORDER BY due, seq", (until_us,)).fetchall()

    def remove(self, taken: Taken, jobs: Sequence[Entry]) -> None:
        hashes = sorted((hashed, job.seq) for job in jobs for hashed in hashes_of(job))
        dues = [(due, seq) for due, seq, _ in taken]
        self._write("DELETE FROM names WHERE (name, seq) = (?, ?)", hashes, "DELETE FROM dues WHERE (due, seq) = (?, ?)", dues)

    def _write(self, names: str, hashes: list[tuple[int, int]], dues: str, pairs: list[tuple[int, int]]) -> None:
        self._database.execute("BEGIN")
        self._database.executemany(names, hashes)
        self._database.executemany(dues, pairs)
        self._database.execute("COMMIT")


class Lmdb(Dicts):
    """Two B-trees of LMDB that are written in place, never synced."""

    is_on_disk = True
    package = "lmdb"

    def __init__(self, folder: Path) -> None:
        lmdb = importlib.import_module(self.package)
        self._env = lmdb.open(str(folder), map_size=64 << 30, max_dbs=2, sync=False, metasync=False, writemap=True)
        self._names, self._dues = self._env.open_db(b"names"), self._env.open_db(b"dues")

    def look_up(self, jobs: Sequence[Entry]) -> int:
        with self._env.begin(db=self._names) as txn, txn.cursor() as cursor:
            self._named = rows_of(jobs)
            return len(list(cursor.getmulti([name for name, _ in self._named])))

    def insert(self, jobs: Sequence[Entry]) -> None:
        with self._env.begin(write=True) as txn:
            txn.cursor(self._names).putmulti(self._named)
            txn.cursor(self._dues).putmulti(sorted((_DUE.pack(job.due_us, job.seq), b"") for job in jobs))

    def take(self, until_us: int) -> Taken:
        with self._env.begin(db=self._dues) as txn:
            pairs = map(_DUE.unpack, txn.cursor().iternext(values=False))
            return [(due, seq, 0) for due, seq in takewhile(lambda pair: pair[0] <= until_us, pairs)]

    def remove(self, taken: Taken, jobs: Sequence[Entry]) -> None:
        with self._env.begin(write=True) as txn:
            for name, _ in rows_of(jobs):
                txn.delete(name, db=self._names)
            for due, seq, _ in taken:
                txn.delete(_DUE.pack(due, seq), db=self._dues)


class Rocks(Dicts):
    """One LSM of RocksDB with a log that is never synced; names and dues begin with a letter of their own."""

    is_on_disk = True
    package = "rocksdict"

    def __init__(self, folder: Path) -> None:
        rocksdict = importlib.import_module(self.package)
        options, blocks = rocksdict.Options(raw_mode=True), rocksdict.BlockBasedOptions()
        blocks.set_block_cache(rocksdict.Cache(CACHE))
        blocks.set_bloom_filter(10, False)
        options.set_block_based_table_factory(blocks)
        self._batch = rocksdict.WriteBatch
        self._rows = rocksdict.Rdict(str(folder / "rows"), options)
        self._low = 0  # Nothing is before it but what was removed: reading over that would be slow.

    def look_up(self, jobs: Sequence[Entry]) -> int:
        self._named = [(b"n" + name, seq) for name, seq in rows_of(jobs)]
        return sum(value is not None for value in self._rows[[name for name, _ in self._named]])

    def insert(self, jobs: Sequence[Entry]) -> None:
        batch = self._batch(raw_mode=True)
        for name, seq in self._named:
            batch.put(name, seq)
        for job in jobs:
            batch.put(b"d" + _DUE.pack(job.due_us, job.seq), b"")
        self._rows.write(batch)
        self._low = min(self._low, *(job.due_us for job in jobs))

    def take(self, until_us: int) -> Taken:
        rows = takewhile(lambda row: row < b"e", self._rows.keys(from_key=b"d" + _DUE.pack(self._low, 0)))
        pairs = takewhile(lambda pair: pair[0] <= until_us, (_DUE.unpack(row[1:]) for row in rows))
        return [(due, seq, 0) for due, seq in pairs]

    def remove(self, taken: Taken, jobs: Sequence[Entry]) -> None:
        batch = self._batch(raw_mode=True)
        for name, _ in rows_of(jobs):
            batch.delete(b"n" + name)
        for due, seq, _ in taken:
            batch.delete(b"d" + _DUE.pack(due, seq))
        self._rows.write(batch)
        self._low = taken[-1][0] if taken else self._low


LAYOUTS: Final[dict[str, Any]] = {
    "ours": Ours, "arrays": Packed, "dicts": Dicts, "lmdb": Lmdb, "rocksdb": Rocks, "sqlite": Tables,
}  # fmt: skip
