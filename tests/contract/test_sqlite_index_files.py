"""The files of the index are opened as they were left; if they are not, the store rebuilds the index."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlite_history import SEED, Script

from givalia_core.errors import StoreFailed
from givalia_core.store.base import Wanted
from givalia_core.store.sqlite import SQLite
from givalia_core.store.sqlite.index import opening
from givalia_core.store.suite import MARK, NOW, inserts, waiting

pytestmark = pytest.mark.usefixtures("small_index")


def lived(path: Path, seed: int = 7) -> tuple[SQLite, Script]:
    """A store that is open, in the middle of a history."""
    script = Script(seed)
    store = SQLite(f"sqlite://{path}")
    store.open()
    for _ in range(40):
        step = script.step()
        assert step.do(store) == step.do(script.reference)
        store.tidy()
    script.last += 1_100  # More than the files have room for at first.
    for each in (store, script.reference):
        each.commit(inserts(waiting(seq, key=f"k{seq}") for seq in range(script.last - 1_099, script.last + 1)), MARK)
    return store, script


def open_files() -> int:
    """How many this process has, where the system tells."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def zeros(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def noise(file: Path) -> None:
    file.write_bytes(random.Random(SEED).randbytes(file.stat().st_size))


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("name", opening._FILES)
@pytest.mark.parametrize("damage", [Path.unlink, half, zeros, noise], ids=["gone", "half", "zeros", "noise"])
def test_a_damaged_index_is_made_anew(path: Path, name: str, damage: Callable[[Path], None]) -> None:
    store, script = lived(path)
    store.close()
    damage(path.with_name("queue.db.index") / name)
    files = open_files()

    store.open()

    assert script.seen(store) == script.seen(script.reference)
    assert [line for line in store.check() if not line.startswith("the index was damaged, and has been rebuilt")] == []
    store.close()
    assert open_files() == files
    store.open()
    assert store.check() == []
    assert script.seen(store) == script.seen(script.reference)
    store.close()


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("name", opening._FILES)
def test_an_index_that_lacks_a_file_after_a_kill_is_made_anew(path: Path, name: str) -> None:
    store, script = lived(path)
    store.abandon()
    (path.with_name("queue.db.index") / name).unlink()

    store.open()

    assert script.seen(store) == script.seen(script.reference)
    store.close()


@pytest.mark.usefixtures("larger")
def test_an_index_that_cannot_be_removed_is_not_taken_for_an_empty_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = lived(path)
    store.close()
    half(path.with_name("queue.db.index") / "slots")
    monkeypatch.setattr(shutil, "rmtree", Mock(side_effect=PermissionError(errno.EPERM, "not permitted", "queue.db.index")))

    with pytest.raises(StoreFailed, match="index"):
        store.open()


def a_link(folder: Path) -> None:
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(elsewhere)


def a_dead_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"not ours")


def a_pipe(folder: Path) -> None:
    shutil.rmtree(folder)
    os.mkfifo(folder)


@pytest.mark.usefixtures("larger")
@pytest.mark.parametrize("replaced", [a_link, a_dead_link, a_file, a_pipe])
def test_what_has_the_place_of_the_index_and_is_no_folder_makes_way_for_a_new_one(
    path: Path, replaced: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store, script = lived(path)
    store.close()
    folder = path.with_name("queue.db.index")
    replaced(folder)
    elsewhere = folder.with_name("elsewhere")
    before = {each.name: each.read_bytes() for each in elsewhere.iterdir()} if elsewhere.exists() else None

    store.open()

    assert [record.message for record in caplog.records if "is no folder of its own" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    assert folder.is_dir()
    assert not folder.is_symlink()
    assert script.seen(store) == script.seen(script.reference)
    store.close()
    assert before == ({each.name: each.read_bytes() for each in elsewhere.iterdir()} if elsewhere.exists() else None)
    store.open()
    assert caplog.messages[1:] == []
    store.close()


def test_the_index_of_another_store_is_made_anew(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "queue.db"
    for place, key in ((path, "a"), (other, "b")):
        store = SQLite(f"sqlite://{place}")
        store.open()
        store.commit(inserts([waiting(1, key=key)]), MARK)
        store.close()
    other.rename(path)

    store = SQLite(f"sqlite://{path}")
    store.open()

    assert set(store.find(Wanted(keys=frozenset({"a", "b"})), NOW).live) == {"b"}
    store.close()
