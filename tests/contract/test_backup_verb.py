"""`givalia backup` against scripted servers: the copy is one whole file, or there is none."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from scripted_server import Line, Script, ScriptedServer, every, refuse

from givalia_core.cli import backup, endings
from givalia_core.cli.main import main
from givalia_core.errors import BadRequest, GivaliaError
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import refusal
from givalia_core.protocol.messages import OK, Kind
from givalia_core.protocol.session import Port
from givalia_core.store import SQLite
from givalia_core.store.sqlite import copying
from givalia_core.store.suite import MARK, by_seq, inserts, waiting

Run = Callable[..., tuple[int, str, str]]


class Deaf:
    """A connection over which nothing arrives."""

    def say(self, *_: object) -> None:
        """Say it to nobody."""


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Script]:
    """What a server says whose store has thirty jobs, in several parts."""
    monkeypatch.setattr(copying, "PART_BYTES", 6_000)
    store = SQLite(f"sqlite://{tmp_path / 'original' / 'queue.db'}")
    store.open()
    store.commit(inserts([waiting(seq, params=bytes(1_000)) for seq in range(1, 31)]), MARK)

    def script(line: Line, ask: Asked) -> None:
        (message,) = ask.messages
        try:
            part = store.copy_part(message.backup, message.part)
            line.say(ask, [((OK, *part[1:]), part.payload)])
        except GivaliaError as error:
            line.say(ask, [refusal(error)])

    yield script
    store.close()


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run the verb at a server with this script: exit code, standard output and error."""
    with ExitStack() as opened:

        def run(script: Script, *words: object) -> tuple[int, str, str]:
            server = ScriptedServer(Port.CLIENT, script)
            opened.callback(server.close)
            host, port = server.address.split(":")
            try:
                code = main(["-m", host, "-p", port, "--patience", "2", "backup", *map(str, words)])
            except SystemExit as end:
                code = int(end.code or 0)
            told = capsys.readouterr()
            return code, told.out, told.err

        yield run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the copy is to be."""
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "copy.db"


def test_copy_is_a_store_that_opens_by_itself(copied: Script, run: Run, path: Path) -> None:
    code, out, _ = run(copied, path, "--json")

    assert code == 0
    told = json.loads(out)
    assert (told["jobs"], told["bytes"], told["wrong"]) == (30, path.stat().st_size, [])
    assert [each.name for each in path.parent.iterdir()] == ["copy.db"]
    assert path.stat().st_mode & 0o777 == 0o600
    store = SQLite(f"sqlite://{path}")
    store.open()
    assert sorted(by_seq(store, range(100))) == list(range(1, 31))
    store.close()


def test_lost_connection_is_made_again_and_the_copy_goes_on(copied: Script, run: Run, path: Path) -> None:
    lost: list[int] = []

    def script(line: Line, ask: Asked) -> None:
        if ask.messages[0].part == 2 and not lost:
            lost.append(2)
            copied(Deaf(), ask)  # type: ignore[arg-type]  # The part is made, and its answer lost.
            line.hang_up()
        else:
            copied(line, ask)

    assert run(script, path)[0] == 0
    assert lost
    assert path.exists()


def test_server_that_knows_the_copy_no_more_leaves_no_file_and_a_clear_error(copied: Script, run: Run, path: Path) -> None:
    def restarted(line: Line, ask: Asked) -> None:
        (message,) = ask.messages
        copied(line, ask._replace(messages=[message._replace(backup=b"x" * 16)]) if message.part == 3 else ask)

    code, out, err = run(restarted, path)

    assert (code, out) == (74, "")
    assert "cut short, and nothing was written" in err
    assert list(path.parent.iterdir()) == []


def test_server_that_answers_no_more_leaves_no_file_and_a_clear_error(copied: Script, run: Run, path: Path) -> None:
    def silent(line: Line, ask: Asked) -> None:
        if ask.messages[0].part < 2:
            copied(line, ask)

    code, out, err = run(silent, path)

    assert (code, out) == (69, "")
    assert err == (
        "givalia: CONNECTION_LOST: the backup was cut short, and nothing was written: no answer in time."
        " --patience gives a server more time\n"
    )
    assert list(path.parent.iterdir()) == []


def test_part_that_is_spoiled_on_its_way_leaves_no_file(copied: Script, run: Run, path: Path) -> None:
    def spoiled(line: Line, ask: Asked) -> None:
        if ask.messages[0].part == 2:
            line.say(ask, [((OK, False, 1, 3, 30, 0, 7), b"\x90")])
        else:
            copied(line, ask)

    assert run(spoiled, path)[0] == 65
    assert list(path.parent.iterdir()) == []


def test_file_that_is_there_is_overwritten_only_by_force_and_only_by_a_whole_copy(copied: Script, run: Run, path: Path) -> None:
    path.write_text("precious")

    assert run(copied, path)[0] == 64
    assert run(every(Kind.BACKUP, refuse(BadRequest("use pg_dump"))), path, "--force")[0] == 64
    assert path.read_text() == "precious"

    assert run(copied, path, "--force")[0] == 0
    assert path.read_bytes().startswith(b"SQLite format 3")


@pytest.mark.parametrize(
    "name",
    [
        "queue.db", "queue.db-wal", "queue.db-journal", "queue.db.lock", "queue.db.ballast", "queue.db.format-2",
        "queue.db.format-3.2",
    ],
)  # fmt: skip
def test_files_of_a_store_that_is_open_are_not_overwritten(copied: Script, run: Run, tmp_path: Path, name: str) -> None:
    path = tmp_path / "original" / name
    before = path.read_bytes() if path.exists() else None

    code, _, err = run(copied, path, "--force")

    assert code == 64
    assert f"belongs to the store that process {os.getpid()} has open" in err
    assert (path.read_bytes() if path.exists() else None) == before


def test_no_file_is_left_when_the_command_is_ended_while_the_copy_is_made(
    copied: Script, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(making: Path) -> None:
        making.with_name(making.name + ".making").touch()
        making.with_name(making.name + "-journal").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "Receiver", interrupted)
    monkeypatch.setattr(endings, "_end_by", lambda number: sys.exit(128 + number))

    assert run(copied, path)[0] == 130
    assert list(path.parent.iterdir()) == []


def test_name_that_no_file_can_have_is_refused(copied: Script, run: Run, path: Path) -> None:
    assert run(copied, path.with_name("x" * 300))[0] == 64


def test_store_that_has_its_own_way_to_be_backed_up_says_which(run: Run, path: Path) -> None:
    code, _, err = run(every(Kind.BACKUP, refuse(BadRequest("back it up with pg_dump"))), path)

    assert code == 64
    assert "pg_dump" in err
    assert list(path.parent.iterdir()) == []


def test_server_of_an_earlier_version_is_named_as_such(run: Run, path: Path) -> None:
    code, _, err = run(every(Kind.BACKUP, refuse(BadRequest("there is no kind 24"))), path)

    assert code == 76
    assert re.search("VERSION_MISMATCH: there is no kind 24", err)


def test_terminal_shows_how_far_the_copy_is(copied: Script, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    _, _, err = run(copied, path)

    assert re.search(r"\[#+-*\] +\d+%  \d+ of about \d+ MiB", err)
