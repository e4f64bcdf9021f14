"""`givalia store`: its verbs make no store unasked, and leave nothing in the store of another user."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from pathlib import Path

import pytest

from givalia_core.cli.main import main
from givalia_core.store import SQLite
from givalia_core.store.sqlite import disk
from givalia_core.store.suite import MARK, inserts, waiting

LOOKING = ("check", "info", "upgrade", "export")
STRANGER = 54_321


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that no server has open."""
    path = tmp_path / "store" / "queue.db"
    store = SQLite(f"sqlite://{path}")
    store.open()
    store.commit(inserts([waiting(1)]), MARK)
    store.close()
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    """The exit code of the command, and what it said on standard error."""
    try:
        code = main(["store", *map(str, words)])
    except SystemExit as end:
        code = int(end.code or 0)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("what", LOOKING)
def test_verb_makes_no_store(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none" / "queue.db"

    code, said = run(capsys, what, "--store", f"sqlite://{path}")

    assert code == 66
    assert str(path) in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", [*LOOKING, "salvage"])
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_store_of_another_user_is_refused_with_the_command_and_untouched(
    path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for each in (path.parent, *path.parent.rglob("*")):
        os.chown(each, STRANGER, STRANGER)
    before = {each: (each.stat().st_uid, each.stat().st_mode, each.stat().st_mtime_ns) for each in path.parent.rglob("*")}
    words = [path.with_name("other.db")] if what == "salvage" else []

    code, said = run(capsys, what, "--store", f"sqlite://{path}", *words)

    assert code == 78
    command = f"{Path(sys.executable).with_name('givalia')} store {what} --store sqlite://{path}"
    assert f"run {command} as its user, or as root runuser -u {STRANGER} -- {command}" in said
    assert before == {
        each: (each.stat().st_uid, each.stat().st_mode, each.stat().st_mtime_ns) for each in path.parent.rglob("*")
    }


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_root_makes_no_store_in_the_folder_of_another_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(tmp_path, STRANGER, STRANGER)

    assert run(capsys, "create", "--store", f"sqlite://{tmp_path / 'queue.db'}")[0] == 78

    assert list(tmp_path.iterdir()) == []


def test_create_makes_an_empty_store_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite://{tmp_path / 'queue.db'}"

    assert run(capsys, "create", "--store", url) == (0, "")
    assert run(capsys, "create", "--store", url)[0] == 64

    assert run(capsys, "check", "--store", url)[0] == 0


def test_only_upgrade_changes_the_format_and_it_keeps_owner_and_mode(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.close()
    path.chmod(0o640)
    url = f"sqlite://{path}"

    for what in (["check"], ["info"], ["export", path.with_name("exported")]):
        code, said = run(capsys, *what, "--store", url)
        assert (code, f"givalia store upgrade --store {url}" in said) == (78, True)
    assert disk.format_of(path) == 2
    assert main(["store", "upgrade", "--store", url, "--json"]) == 0

    assert json.loads(capsys.readouterr().out) == {"before": 2, "after": disk.FORMAT}
    status = path.stat()
    assert (status.st_uid, status.st_mode & 0o777, disk.format_of(path)) == (os.geteuid(), 0o640, disk.FORMAT)


def test_file_that_is_no_store_is_not_upgraded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "queue.db"
    path.write_text("something else")

    assert run(capsys, "upgrade", "--store", f"sqlite://{path}")[0] == 65

    assert path.read_text() == "something else"
