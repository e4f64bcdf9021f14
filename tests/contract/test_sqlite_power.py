"""A power cut: any sector written since the last sync may be lost, and writes may have reached the disk in any order.

The files are copied after each step that syncs. An image of a cut in the middle of a step has some of the sectors that the step
changed and not the others; a sector may be torn. `GIVALIA_IMAGES` is the number of images to try; `make test-all` tries 5,000.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlite_history import SEED, Script, make_small

from givalia_core.model import Job
from givalia_core.store.base import Filter
from givalia_core.store.sqlite import SQLite, chores, opening
from givalia_core.store.sqlite.core import Core
from givalia_core.store.suite import NOW

IMAGES = int(os.environ.get("GIVALIA_IMAGES", "400"))
SECTOR = 512
LOG_HEADER = 32
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch.setattr)
    monkeypatch.setattr(chores, "CHECKPOINT_PAGES", 20)  # So that many of the cuts fall into checkpoints.


def files_of(folder: Path) -> Files:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith((".lock", ".ballast"))
    }


class Cut:
    """Makes images of a power cut between two states of the files."""

    def __init__(self, chance: random.Random, before: Files, after: Files) -> None:
        self.chance = chance
        self.before = before
        self.after = after

    def image(self) -> Files:
        """Every file with some of its changes; one that is new may be missing, if nothing was synced since it was made."""
        share = self.chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        image = {
            name: (self._log if name.endswith("-wal") else self._mixed)(self.before.get(name, b""), bytes_, share)
            for name, bytes_ in self.after.items()
        }
        for name in set(self.after) - set(self.before):
            if name.startswith("queue.db.index") and self.chance.random() < 0.3:
                del image[name]
        return image

    def _mixed(self, before: bytes, after: bytes, share: float) -> bytes:
        size = max(len(before), len(after)) if self.chance.random() < 0.7 else len(before)
        mixed = bytearray(before.ljust(size, b"\0")[:size])
        for start in range(0, size, SECTOR):
            new = after[start : start + SECTOR]
            if new != mixed[start : start + SECTOR] and self.chance.random() < share:
                if self.chance.random() < 0.05:  # Torn within the sector.
                    new = new[: self.chance.randrange(SECTOR)]
                mixed[start : start + len(new)] = new
        return bytes(mixed)

    def _log(self, before: bytes, after: bytes, share: float) -> bytes:
        """The log: SQLite syncs its header before the frames when it begins anew, or old frames would count once more."""
        if before[:LOG_HEADER] == after[:LOG_HEADER]:
            return self._mixed(before, after, share)
        if self.chance.random() < 0.2:
            return self._mixed(before[:LOG_HEADER], after[:LOG_HEADER], share) + before[LOG_HEADER:]
        return after[:LOG_HEADER] + self._mixed(before, after, share)[LOG_HEADER:]


def write(image: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, bytes_ in image.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes_)


def jobs_of(store: SQLite) -> dict[int, Job]:
    jobs: dict[int, Job] = {}
    after = None
    while True:
        page = store.page(Filter(), after, 100, NOW)
        jobs |= {job.seq: job for job in page.jobs}
        if (after := page.after) is None:
            return jobs


def states(folder: Path, seed: int, patched: pytest.MonkeyPatch) -> list[tuple[Files, dict[int, Job]]]:
    """The files after each step, and what the reference holds then; the first is the store that was just made."""
    script = Script(seed)
    store = SQLite(f"sqlite://{folder}/queue.db")
    store.open()
    seen = [(files_of(folder), dict(script.reference._jobs))]
    for part in ("sweep", "checkpoint", "_vacuum"):  # Each ends with a sync, and what comes next may overwrite the log.
        _note_after(patched, part, lambda: seen.append((files_of(folder), dict(script.reference._jobs))))
    for _ in range(40):
        step = script.step()
        for changes, retention in ((step.changes, None), ([], step.retention)):
            for each in (store, script.reference):
                each.commit(changes, step.mark, retention)
            seen.append((files_of(folder), dict(script.reference._jobs)))
        store.tidy()
    store.abandon()
    return seen


def _note_after(patched: pytest.MonkeyPatch, name: str, note: Callable[[], None]) -> None:
    real = getattr(chores, name)

    def noting(core: Core) -> None:
        real(core)
        note()

    patched.setattr(chores, name, noting)


@pytest.mark.parametrize("rebooted", [True, False], ids=["machine", "disk alone"])
def test_no_power_cut_loses_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rebooted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a reboot it is as if a kill came, and pages of the index were lost besides: the checks find that."""
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    with monkeypatch.context() as patched:
        seen = states(tmp_path / "live", SEED, patched)
    boots = iter(range(10**6))
    if rebooted:
        monkeypatch.setattr(opening, "boot_id", lambda: f"boot {next(boots)}")
    for number in range(IMAGES // 2):
        place = chance.randrange(1, len(seen))
        (before, held), (after, holds) = seen[place - 1], seen[place]
        image = Cut(chance, before, after).image()
        write(image, tmp_path / "cut")
        store = SQLite(f"sqlite://{tmp_path}/cut/queue.db")
        words = f"image {number}, step {place}"

        store.open()

        jobs = jobs_of(store)
        assert jobs in (held, holds), words
        # The index may know of commits that were cut. No disk makes that image: the index is told behind the sync.
        found = [line for line in store.check() if not line.startswith("the newest commits are missing")]
        assert found == [], words
        store.close()
    caplog.clear()


@pytest.mark.parametrize("part", ["queue.db-wal", "queue.db"])
def test_a_cut_while_the_first_commits_are_made_leaves_a_store_that_opens(tmp_path: Path, part: str) -> None:
    folder = tmp_path / "live"
    store = SQLite(f"sqlite://{folder}/queue.db")
    store.open()
    before = files_of(folder)
    write(before, tmp_path / "cut")
    again = SQLite(f"sqlite://{tmp_path}/cut/queue.db")

    assert again.open().epoch == 2
    assert again.check() == []
    again.close()
    store.close()
    assert part in before
