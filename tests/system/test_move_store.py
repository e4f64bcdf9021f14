"""A queue moves to another store between two servers: waiting jobs go on waiting, and their workers settle running jobs."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from system_rig import Rig, lines_of
from waits import await_true


def _url(path: Path) -> str:
    return f"sqlite://{path}"


def _store(rig: Rig, *words: object, stdin: Any = subprocess.DEVNULL, stdout: Any = subprocess.PIPE) -> Any:
    command = [rig.installed.program("givalia"), "store", *map(str, words)]
    return subprocess.run(
        command, env=rig.environ, cwd=rig.folder, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, timeout=30, check=False
    )


@pytest.fixture
def url(rig: Rig) -> str:
    """A store with three jobs that no server has open."""
    server = rig.start_server()
    rig.client().enq_many([{"module": "Echo", "time": 600, "params": number} for number in range(3)])
    assert server.stop() == 0
    return _url(rig.store)


def test_a_queue_goes_on_in_another_store_with_what_waits_and_what_runs(rig: Rig) -> None:
    server = rig.start_server()
    rig.start_worker()
    client = rig.client()
    notes, file = rig.folder / "notes", rig.folder / "queue.export"
    assert client.enq("Echo", params="before", key="ended").wait(10) == "before"
    waits = client.enq("Echo", time=3_600, params="after", key="waits")
    runs = client.enq("Stay", params={"file": str(notes), "seconds": 3}, key="runs")
    await_true(lambda: lines_of(notes), "its start")
    server.kill()

    summary = json.loads(_store(rig, "export", "--json", "--store", _url(rig.store), file).stdout)
    moved = _url(rig.folder / "moved" / "queue.db")
    assert json.loads(_store(rig, "import", file, "--store", moved, "--json").stdout) == summary
    rig.store = rig.folder / "moved" / "queue.db"
    rig.start_server()

    assert summary["jobs"] == 3
    assert runs.wait(20) == 1, "its first attempt must be its only one"
    assert len(lines_of(notes)) == 1
    assert client.stat("ended").result == "before"
    assert abs(client.stat("waits").due - waits.due) < timedelta(milliseconds=1)
    client.ext("waits", at=0)
    assert waits.wait(10) == "after"
    assert client.enq("Echo", params="new").wait(10) == "new"


def test_an_export_goes_through_a_pipe(rig: Rig, url: str) -> None:
    target = rig.folder / "other" / "queue.db"
    exported = _store(rig, "export", "--store", url)
    read, write = os.pipe()
    os.write(write, exported.stdout)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        imported = _store(rig, "import", "-", "--store", _url(target), stdin=pipe)

    assert (exported.returncode, exported.stderr) == (0, b"3 jobs exported\n")
    assert (imported.returncode, imported.stdout, imported.stderr) == (0, b"", b"3 jobs imported\n")
    assert _store(rig, "check", "--store", _url(target)).returncode == 0
    assert json.loads(_store(rig, "info", "--store", _url(target), "--json").stdout)["jobs"] == {"Echo waiting": 3}


def test_a_file_is_whole_its_owners_alone_and_never_overwritten_unasked(rig: Rig, url: str) -> None:
    folder = rig.folder / "exports"
    folder.mkdir()
    file = folder / "queue.export"

    assert _store(rig, "export", "--store", url, file).returncode == 0
    before = file.read_bytes()
    refused = _store(rig, "export", "--store", url, file)
    assert (refused.returncode, file.read_bytes()) == (64, before)
    assert b"--force" in refused.stderr
    file.write_bytes(b"something else")
    assert _store(rig, "export", "--force", "--store", url, file).returncode == 0

    assert len(file.read_bytes()) == len(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(folder.iterdir()) == [file], "nothing else is left behind"
    assert _store(rig, "export", "--store", url, folder, "--force").returncode == 64
    assert _store(rig, "export", "--store", url, folder / "no" / "folder").returncode == 78


def test_nothing_of_a_damaged_file_is_written_and_nothing_is_added_to_jobs(rig: Rig, url: str) -> None:
    file, target = rig.folder / "queue.export", rig.folder / "other" / "queue.db"
    assert _store(rig, "export", "--store", url, file).returncode == 0
    whole = file.read_bytes()

    file.write_bytes(whole[:-1])
    done = _store(rig, "import", "--store", _url(target), file)
    assert (done.returncode, target.exists()) == (65, False)
    with file.open("rb") as again:
        assert _store(rig, "import", "--store", _url(target), stdin=again).returncode == 65
    assert not target.exists()

    file.write_bytes(whole)
    done = _store(rig, "import", "--store", url, file)
    assert done.returncode == 78
    assert b"holds 3 jobs" in done.stderr


def test_damage_in_a_pipe_leaves_a_target_that_is_said_to_be_incomplete(rig: Rig, url: str) -> None:
    whole = _store(rig, "export", "--store", url).stdout
    read, write = os.pipe()
    os.write(write, whole[:-1])
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        done = _store(rig, "import", "--store", _url(rig.folder / "other.db"), stdin=pipe)

    assert done.returncode == 65
    assert b"incomplete: throw its target away" in done.stderr


def test_what_cannot_be_moved_is_refused_with_its_exit_code(rig: Rig, url: str) -> None:
    file = rig.folder / "queue.export"
    assert _store(rig, "export", "--store", "memory:", file).returncode == 78
    assert _store(rig, "import", "--store", _url(rig.folder / "x.db"), file).returncode == 66
    assert _store(rig, "export", "--store", _url(rig.folder / "x.db"), file).returncode == 66
    assert _store(rig, "import", "--force", "--store", url, file).returncode == 64
    assert _store(rig, "check", "--store", url, file).returncode == 64
    rig.start_server()
    assert _store(rig, "export", "--store", url, file).returncode == 75
    assert not file.exists()


def test_no_terminal_is_written_to_or_read(rig: Rig, url: str) -> None:
    main, terminal = os.openpty()
    try:
        assert _store(rig, "export", "--store", url, stdout=terminal).returncode == 64
        assert _store(rig, "import", "--store", _url(rig.folder / "x.db"), stdin=terminal).returncode == 64
    finally:
        os.close(main)
        os.close(terminal)


def test_a_reader_that_goes_away_fails_the_export(rig: Rig, url: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = _store(rig, "export", "--store", url, stdout=write)
    finally:
        os.close(write)

    assert done.returncode == 74
    assert done.stderr.count(b"\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a device that is always full")
def test_an_export_that_finds_no_room_says_that_the_disk_is_full(rig: Rig, url: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = _store(rig, "export", "--store", url, stdout=full)

    assert done.returncode == 75
    assert b"STORE_FULL" in done.stderr
    assert b"No space left" in done.stderr
