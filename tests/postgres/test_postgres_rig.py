"""The PostgreSQL that the tests run against is real, durable, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import psycopg
import pytest
from postgres_rig import FOLDERS, NotStarted, Postgres
from waits import await_true

HERE = Path(__file__).parent


def ask(url: str, query: str) -> str:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def end_of(pids: list[int]) -> None:
    left = []
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):  # It may end while it is looked for.
            left.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(left, timeout=15)
    assert not alive


def test_fresh_server_is_durable_and_answers_on_loopback_and_socket(postgres: Postgres) -> None:
    # given a server; when it is asked, then it answers
    assert [ask(postgres.url(), f"SHOW {name}") for name in ("fsync", "synchronous_commit", "full_page_writes")] == ["on"] * 3
    assert ask(postgres.socket_url(), "SHOW unix_socket_directories") == str(postgres.folder)
    assert ask(postgres.socket_url(), "SELECT inet_client_addr() IS NULL") == "True"
    assert "ready to accept connections" in postgres.log_text()


@pytest.mark.parametrize("version", FOLDERS)
def test_server_has_the_version_and_settings_asked_for(version: int) -> None:
    # given
    with Postgres.start({"max_connections": "7", "application_name": "it's"}, version) as postgres:
        # when
        shown = [ask(postgres.url(), f"SHOW {name}") for name in ("max_connections", "application_name", "server_version_num")]

        # then
        assert shown == ["7", "it's", shown[2]]
        assert shown[2].startswith(str(version))


def test_each_database_is_fresh(postgres: Postgres, database_url: str) -> None:
    # given
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE only_here (n int)")

    # when
    other = postgres.create_database()

    # then
    assert other != database_url
    assert ask(other, "SELECT to_regclass('only_here')") == "None"

    # when
    with psycopg.connect(other):
        postgres.drop_database(other)
    postgres.drop_database(other)

    # then
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(other)


@pytest.mark.parametrize("mode", ["smart", "fast", "immediate"])
def test_restart_keeps_what_was_committed(postgres: Postgres, database_url: str, mode: str) -> None:
    # given
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    before = postgres.pids()

    # when
    postgres.restart(mode)

    # then
    assert ask(database_url, "SELECT n FROM kept") == "42"
    assert not set(before) & set(postgres.pids())


def test_restart_adds_settings_and_a_wrong_one_is_told() -> None:
    # given
    with Postgres.start() as postgres:
        # when
        postgres.restart(settings={"work_mem": "5MB"})

        # then
        assert ask(postgres.url(), "SHOW work_mem") == "5MB"
        with pytest.raises(NotStarted, match="no_such_setting"):
            postgres.restart(settings={"no_such_setting": "1"})
        assert not postgres.is_running
        assert postgres.pids() == []


def test_stopped_server_refuses_until_it_is_started_again(postgres: Postgres, database_url: str) -> None:
    # given
    postgres.stop()

    # when / then
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(database_url)
    postgres.start_again()
    assert ask(database_url, "SELECT 1") == "1"


@pytest.mark.parametrize("crash", [False, True])
def test_kill_backends_ends_every_connection_but_not_the_server(postgres: Postgres, database_url: str, crash: bool) -> None:
    # given
    first, second = psycopg.connect(database_url), psycopg.connect(postgres.socket_url())
    first.execute("CREATE TABLE kept AS SELECT 42 AS n")
    first.commit()

    # when
    ended = postgres.kill_backends(crash=crash)

    # then
    assert ended == 2
    for connection in (first, second):
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
        connection.close()
    assert ask(database_url, "SELECT n FROM kept") == "42"


def test_closed_server_leaves_neither_process_nor_folder() -> None:
    # given
    postgres = Postgres.start()
    pids = postgres.pids()

    # when
    postgres.close()
    postgres.close()

    # then
    end_of(pids)
    assert not postgres.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_with_the_process_that_started_it(number: signal.Signals) -> None:
    # given
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from postgres_rig import Postgres; postgres = Postgres.start();"
        "print(postgres.folder.parent, *postgres.pids(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        base, *pids = child.stdout.readline().split()
        assert len(pids) > 1

        # when
        os.kill(child.pid, number)

    # then
    end_of([int(pid) for pid in pids])
    await_true(lambda: not Path(base).exists(), f"{base} is gone", 15)
