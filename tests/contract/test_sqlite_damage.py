"""A SQLite store whose index is damaged: stopped, killed or running. No damage is believed, and nothing hangs or is lost.

`GIVALIA_DAMAGES` is the number of damages to try; `make test-all` tries two thousand.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from sqlite_history import SEED, Script, make_small

from givalia_core.store.sqlite import SQLite, mending
from givalia_core.store.sqlite.index.upkeep import recovery

DAMAGES = int(os.environ.get("GIVALIA_DAMAGES", "150"))
HANG_S = 60
PAGE = 4_096
FILES = ("slots", "sums", "names", "lanes.keys", "runs", "sealed.0", "sealed.1")


@contextmanager
def deadline(words: str) -> Iterator[None]:
    """Fail instead of hanging."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(words)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class Damage:
    """Damages one file, as it is now and as it was earlier."""

    def __init__(self, chance: random.Random, file: Path, earlier: Path) -> None:
        self.chance = chance
        self.file = file
        self.earlier = earlier
        self.kinds: dict[str, Callable[[bytearray], None]] = {
            "zeroed page": self._zero,
            "stale page": self._stale,
            "flipped bit": self._flip,
            "flipped word": self._word,
            "swapped pages": self._swap,
            "page of noise": self._noise,
            "shorter": self._shorter,
            "all zeros": self._zeros,
            "stale file": self._stale_file,
        }

    def do(self, kind: str) -> bool:
        """Returns whether the bytes are other than before. A page of what is mapped is written in its place."""
        before = self.file.read_bytes()
        after = bytearray(before)
        self.kinds[kind](after)
        if bytes(after) == before:
            return False
        with self.file.open("r+b") as file:
            for start in range(0, len(after), PAGE):
                if after[start : start + PAGE] != before[start : start + PAGE]:
                    file.seek(start)
                    file.write(after[start : start + PAGE])
            if len(after) < len(before):
                file.truncate(len(after))
        return True

    def _page(self, bytes_: bytearray) -> int:
        """A page that has something in it."""
        pages = [start for start in range(0, len(bytes_), PAGE) if any(bytes_[start : start + PAGE])]
        return self.chance.choice(pages or [0])

    def _zero(self, bytes_: bytearray) -> None:
        start = self._page(bytes_)
        bytes_[start : start + PAGE] = bytes(len(bytes_[start : start + PAGE]))

    def _stale(self, bytes_: bytearray) -> None:
        earlier = self.earlier.read_bytes() if self.earlier.exists() else b""
        pages = [
            start
            for start in range(0, min(len(bytes_), len(earlier)), PAGE)
            if bytes_[start : start + PAGE] != earlier[start : start + PAGE]
        ]
        if pages:
            start = self.chance.choice(pages)
            part = earlier[start : start + PAGE]
            bytes_[start : start + len(part)] = part

    def _stale_file(self, bytes_: bytearray) -> None:
        if self.earlier.exists():
            earlier = self.earlier.read_bytes()
            bytes_[: len(earlier)] = earlier

    def _flip(self, bytes_: bytearray) -> None:
        if bytes_:
            bytes_[self.chance.randrange(len(bytes_))] ^= 1 << self.chance.randrange(8)

    def _word(self, bytes_: bytearray) -> None:
        start = self._page(bytes_) + 8 * self.chance.randrange(PAGE // 8)
        bytes_[start : start + 8] = self.chance.randbytes(len(bytes_[start : start + 8]))

    def _swap(self, bytes_: bytearray) -> None:
        one, other = self._page(bytes_), self._page(bytes_)
        if max(one, other) + PAGE <= len(bytes_):
            bytes_[one : one + PAGE], bytes_[other : other + PAGE] = bytes_[other : other + PAGE], bytes_[one : one + PAGE]

    def _noise(self, bytes_: bytearray) -> None:
        start = self._page(bytes_)
        bytes_[start : start + PAGE] = self.chance.randbytes(len(bytes_[start : start + PAGE]))

    def _shorter(self, bytes_: bytearray) -> None:
        del bytes_[self.chance.randrange(len(bytes_) or 1) :]

    def _zeros(self, bytes_: bytearray) -> None:
        bytes_[:] = bytes(len(bytes_))


def lived(folder: Path, seed: int) -> tuple[SQLite, Script, Path]:
    """A store in the middle of a history, with a copy of its index of an earlier moment."""
    script = Script(seed)
    store = SQLite(f"sqlite://{folder}/queue.db")
    store.open()
    earlier = folder / "earlier"
    for number in range(40):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        store.tidy()
        if number == 30:
            shutil.copytree(folder / "queue.db.index", earlier)
    return store, script, earlier


def go_on(store: SQLite, script: Script, steps: int) -> None:
    for _ in range(steps):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        for _ in range(3):
            store.tidy()


def records_of(store: SQLite) -> set[int]:
    """The seqs of the jobs that the records alone tell of."""
    forgotten, there = set(), set()
    for row in store._core.records.changes(0):
        forgotten |= {r.seq for _, r in recovery.changes_of(row) if isinstance(r, recovery.Forgotten)}
    for row in store._core.records.bases(0):
        there |= {job.seq for job in recovery.jobs_of(row)}
    return there - forgotten


def one(folder: Path, seed: int, how: str, seen: Counter[str]) -> None:
    chance = random.Random(seed)
    store, script, earlier = lived(folder, seed)
    if how == "stopped":
        store.close()
    elif how == "killed":
        store.abandon()
    name = chance.choice(FILES)
    damage = Damage(chance, folder / "queue.db.index" / name, earlier / name)
    # A mapped file that is cut ends the process with SIGBUS, which the next start repairs.
    kind = chance.choice([kind for kind in damage.kinds if how != "running" or kind != "shorter"])
    words = f"seed {seed}, {how}, {kind} in {name}"
    if not damage.file.exists() or not damage.do(kind):
        seen["nothing to damage"] += 1
        store.abandon()
        return
    with deadline(f"hangs: {words}"):
        if how != "running":
            store.open()
        elif chance.random() < 0.5:
            mending.mending(store._core, store._core.scrub.finish)  # The scrub comes first, or the next commands do.
        if how == "running":
            # Of what runs, damage is said by the end of the next round: until then answers may be wrong, but nothing is lost.
            mending.mending(store._core, store._core.scrub.finish)
        assert script.seen(store) == script.seen(script.reference), words
        go_on(store, script, 10)
        mending.mending(store._core, store._core.scrub.finish)
        assert script.seen(store) == script.seen(script.reference), words
        assert records_of(store) == {job.seq for job in script.reference._jobs.values()}, words
        found = store.check()
        seen[f"{how}: said" if store._core.rebuilds else f"{how}: harmless"] += 1
        assert all(line.startswith("the index was damaged, and has been rebuilt") for line in found), (words, found)
        store.close()
        store.open()
        assert store.check() == [], words
        store.close()


@pytest.mark.parametrize("how", ["stopped", "killed", "running"])
def test_a_damaged_index_loses_nothing_and_is_rebuilt(tmp_path: Path, how: str) -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    seen: Counter[str] = Counter()
    for number in range(DAMAGES // 3):
        seed = SEED + number
        chance = random.Random(seed)
        with pytest.MonkeyPatch.context() as patched:
            make_small(patched.setattr, chance.choice((8, 16, 64)), chance.choice((3, 4, 20)))
            one(tmp_path / str(seed), seed, how, seen)
        shutil.rmtree(tmp_path / str(seed))
    print(dict(seen))
    assert sum(seen.values()) == DAMAGES // 3


def _remove(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def _move_away(place: Path) -> None:
    place.rename(place.with_name(f"{place.name}.away"))


def _leave_a_file(place: Path) -> None:
    _remove(place)
    place.write_text("not an index")


def _leave_a_folder(place: Path) -> None:
    _remove(place)
    (place / "inner").mkdir(parents=True)


def _leave_a_link(place: Path) -> None:
    _move_away(place)
    place.symlink_to(f"{place}.away")


@pytest.mark.parametrize("how", ["running", "stopped"])
@pytest.mark.parametrize("name", [".", "lanes.keys", "sealed.0", "sealed.1"])
@pytest.mark.parametrize("act", [_remove, _move_away, _leave_a_file, _leave_a_folder, _leave_a_link])
def test_an_index_that_somebody_removed_or_replaced_is_made_again(
    tmp_path: Path, how: str, name: str, act: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch.setattr)
    store, script, _ = lived(tmp_path, SEED)
    if how == "stopped":
        store.close()
    place = tmp_path / "queue.db.index" / name
    if place.exists():
        act(place)

    if how == "stopped":
        store.open()
    for _ in range(60):
        step = script.step()
        step.do(store), step.do(script.reference)
        store.tidy()
    mending.mending(store._core, store._core.scrub.finish)

    assert script.seen(store) == script.seen(script.reference)
    for _ in range(2):  # A link is followed until the next start.
        assert all(line.startswith("the index was damaged, and has been rebuilt") for line in store.check())
        store.close()
        store.open()
    assert store.check() == []
    store.close()
