"""Jobs in a user's own transaction exist, are gone, moved or done if and only if the transaction commits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import givalia_postgres
import psycopg
import pytest
import sqlalchemy
from django.conf import settings
from django.db import connections, transaction
from postgres_fleet import Fleet
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from sqlalchemy.orm import Session
from system_rig import lines_of
from waits import await_true

from givalia_core import DuplicateKey, NotFound, WrongState
from givalia_core.errors import BadRequest, StoreUnfit


class Undo(Exception):
    """Ends a transaction without its commit."""


@contextlib.contextmanager
def by_psycopg(url: str) -> Iterator[Any]:
    """A transaction of psycopg, with rows that are dictionaries as its user likes them."""
    with psycopg.connect(url, row_factory=dict_row) as connection:  # type: ignore[arg-type]
        yield connection


@contextlib.contextmanager
def by_psycopg_block(url: str) -> Iterator[Any]:
    """A block within a connection in autocommit, and in it another: a savepoint."""
    with psycopg.connect(url, autocommit=True) as connection, connection.transaction(), connection.transaction():
        yield connection


@contextlib.contextmanager
def by_sqlalchemy(url: str) -> Iterator[Any]:
    """A transaction of SQLAlchemy that nothing has begun before."""
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with engine.connect() as connection:
            yield connection
            connection.commit()
    finally:
        engine.dispose()


@contextlib.contextmanager
def by_session(url: str) -> Iterator[Any]:
    """A session of SQLAlchemy."""
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    try:
        with Session(engine) as session, session.begin():
            yield session
    finally:
        engine.dispose()


@contextlib.contextmanager
def by_django(url: str) -> Iterator[Any]:
    """An atomic block of Django."""
    known = conninfo_to_dict(url)
    database = {
        "ENGINE": "django.db.backends.postgresql", "NAME": known["dbname"], "USER": known["user"], "HOST": known["host"],
        "PORT": known["port"],
    }  # fmt: skip
    if not settings.configured:
        settings.configure(DATABASES={"default": database})
        django.setup()
    connections.settings["default"].update(database)
    try:
        with transaction.atomic():
            yield connections["default"]
    finally:
        connections["default"].close()


WAYS = (by_psycopg, by_psycopg_block, by_sqlalchemy, by_session, by_django)


@pytest.mark.parametrize("way", WAYS)
def test_job_exists_if_and_only_if_the_transaction_commits(fleet: Fleet, way: Any) -> None:
    # given
    fleet.add_server()
    client = fleet.client_of()

    # when
    with contextlib.suppress(Undo), way(fleet.url) as connection:
        undone = givalia_postgres.enq(connection, "Note", time=60, params="x", key="undone")
        raise Undo
    with way(fleet.url) as connection:
        job = givalia_postgres.enq(connection, "Note", time=60, params="x", key="done")
        with pytest.raises(NotFound):
            client.stat("done")

    # then
    with pytest.raises(NotFound):
        client.stat(id=undone.id)
    status = client.stat("done")
    assert (status.id, status.due, status.state) == (job.id, job.due, "waiting")
    assert client.info()["jobs"]["Note"] == {"waiting": 1}

    # when the same is done to what is there
    with contextlib.suppress(Undo), way(fleet.url) as connection:
        assert givalia_postgres.cancel(connection, "done") == "cancelled"
        raise Undo
    assert client.stat("done").state == "waiting"
    with way(fleet.url) as connection:
        due = givalia_postgres.ext(connection, "done", 30)
        with pytest.raises(DuplicateKey):
            givalia_postgres.enq(connection, "Note", key="done")
    assert client.stat("done").due == due
    with way(fleet.url) as connection:
        givalia_postgres.cancel(connection, "done")
    assert client.stat(id=job.id).state == "cancelled"
    assert fleet.check() == []


def test_committed_job_starts_at_once_at_whatever_server_has_the_worker(fleet: Fleet, tmp_path: Path) -> None:
    # given
    fleet.add_server()
    fleet.add_server()
    fleet.await_known(2)
    fleet.add_worker(at=[1])
    ran = tmp_path / "ran"
    fleet.client_of().enq("Echo").wait(10)

    # when
    committed = []
    with psycopg.connect(fleet.url) as connection:
        for number in range(20):
            givalia_postgres.enq(connection, "Note", params=str(ran))
            connection.commit()
            committed.append(time.time())
            await_true(lambda number=number: len(lines_of(ran)) == number + 1, "the job", every=0.005)  # type: ignore[misc]

    # then nobody had to look for it
    late = sorted(float(words[1]) - at for words, at in zip(lines_of(ran), committed, strict=True))
    assert late[10] < 0.3


def test_version_that_is_asked_for_in_a_transaction_counts(fleet: Fleet) -> None:
    # given
    fleet.add_server()
    fleet.add_worker()
    client = fleet.client_of()
    client.enq("Echo").wait(10)

    # when
    with psycopg.connect(fleet.url) as connection:
        never = givalia_postgres.enq(connection, "Echo", version=">=99")
        job = givalia_postgres.enq(connection, "Echo", params="here", version="<99")
        with pytest.raises(BadRequest):
            givalia_postgres.enq(connection, "Echo", version="new")
        connection.commit()

    # then
    assert client.wait(job.id, 10) == "here"
    status = client.stat(id=never.id)
    assert (status.state, status.version) == ("ready", ">=99")
    assert "no worker has Echo >=99; connected: " in status.why


def test_delayed_jobs_and_those_brought_forward_start_on_time(fleet: Fleet, tmp_path: Path) -> None:
    # given
    fleet.add_server()
    fleet.add_worker()
    ran = tmp_path / "ran"

    # when
    with psycopg.connect(fleet.url) as connection:
        dues = [givalia_postgres.enq(connection, "Note", time=0.3 * n, params=str(ran)).due for n in (1, 2, 5)]
        givalia_postgres.enq(connection, "Note", time=900, params=str(ran), key="k")
        connection.commit()
        dues.append(givalia_postgres.ext(connection, "k", -899))

    # then
    await_true(lambda: len(lines_of(ran)) == 4, "all jobs")
    started = [float(words[1]) for words in lines_of(ran)]
    assert all(0 <= at - due.timestamp() < 0.5 for at, due in zip(started, sorted(dues), strict=True))


def test_running_job_is_stopped_by_a_transaction(fleet: Fleet, tmp_path: Path) -> None:
    # given
    fleet.add_server()
    fleet.add_worker()
    started = tmp_path / "started"
    job = fleet.client_of().enq("Stay", params={"file": str(started), "seconds": 60}, key="k")
    await_true(lambda: lines_of(started), "the job to start")

    # when
    with psycopg.connect(fleet.url) as connection:
        with pytest.raises(WrongState):
            givalia_postgres.cancel(connection, "k")
        assert givalia_postgres.cancel(connection, "k", running=True) == "stop_requested"

    # then
    await_true(lambda: job.stat().state == "cancelled", "the stop", 5)


def test_two_transactions_that_take_one_key_leave_one_job(fleet: Fleet) -> None:
    # given
    fleet.add_server()
    outcome: list[object] = []

    def other() -> None:
        with psycopg.connect(fleet.url) as connection:
            try:
                outcome.append(givalia_postgres.enq(connection, "Note", time=60, key="k"))
            except DuplicateKey as error:
                outcome.append(error.id)

    # when
    with psycopg.connect(fleet.url) as connection:
        first = givalia_postgres.enq(connection, "Note", time=60, key="k")
        thread = threading.Thread(target=other)
        thread.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await_true(lambda: fleet.ask(waiting) == [(1,)], "the other one waits for the lock")
        assert outcome == []
    thread.join(10)

    # then
    assert outcome == [first.id]


def test_same_id_twice_is_one_job_and_a_batch_of_jobs_is_whole(fleet: Fleet) -> None:
    # given
    fleet.add_server()
    client = fleet.client_of()

    # when
    with psycopg.connect(fleet.url) as connection:
        job = givalia_postgres.enq(connection, "Note", time=60)
        assert givalia_postgres.enq(connection, "Note", time=90, id=job.id) == job._replace(key=None)
        for number in range(100):
            givalia_postgres.enq(connection, "Note", time=60, key=f"k{number}")

    # then
    assert client.info()["jobs"]["Note"] == {"waiting": 101}
    assert client.enq("Note", time=5, id=job.id).due == job.due


def test_job_done_in_its_own_transaction_is_done_if_and_only_if_that_commits(fleet: Fleet, tmp_path: Path) -> None:
    # given
    with psycopg.connect(fleet.url) as connection:
        connection.execute("CREATE TABLE public.paid (id uuid, attempt int)")
    fleet.add_server(**fleet.with_hooks(tmp_path / "hooks"))
    fleet.add_worker()
    await_true(lambda: fleet.ask("SELECT count(*) FROM givalia.servers WHERE terms <> ''") == [(1,)], "its terms")
    client = fleet.client_of()

    # when the first attempt fails before its commit, and the second one after it
    job = client.enq("Pay", params=fleet.url)

    # then
    assert job.wait(20) == "paid in attempt 2"
    assert fleet.ask("SELECT id::text, attempt FROM public.paid") == [(job.id, 2)]
    assert client.stat(id=job.id).attempts == 2
    await_true(lambda: client.info()["stale_reports"] == 1, "the report of the second attempt")
    assert client.stat(id=job.id).state == "done"
    await_true(lambda: ["on_done", job.id] in lines_of(tmp_path / "hooks"), "the hook is called", 5)
    assert lines_of(tmp_path / "hooks") == [["on_enq", job.id], ["on_done", job.id]]
    assert fleet.check() == []


def test_what_is_no_connection_and_a_database_without_tables_are_refused(database_url: str) -> None:
    with pytest.raises(BadRequest, match=r"SQLAlchemy or Django is wanted, and not a builtins\.str"):
        givalia_postgres.enq("postgresql://", "Note")
    with psycopg.connect(database_url) as connection, pytest.raises(StoreUnfit, match="start a server"):
        givalia_postgres.enq(connection, "Note")


@pytest.mark.parametrize("options", [{"time": -1}, {"time": float("nan")}, {"key": ""}, {"priority": 10}, {"colour": 1}])
def test_bad_options_are_refused_before_anything_is_written(fleet: Fleet, options: dict[str, Any]) -> None:
    # given
    fleet.add_server()

    # when
    with psycopg.connect(fleet.url) as connection:
        with pytest.raises(BadRequest):
            givalia_postgres.enq(connection, "Note", **options)
        job = givalia_postgres.enq(connection, "Note", time=60)

    # then
    assert fleet.client_of().stat(id=job.id).state == "waiting"


def test_hooks_of_such_changes_are_called_once_over_all_servers(fleet: Fleet, tmp_path: Path) -> None:
    # given
    for _ in range(3):
        fleet.add_server(**fleet.with_hooks(tmp_path / "hooks"))
    fleet.await_known(3)
    await_true(lambda: fleet.ask("SELECT count(*) FROM givalia.servers WHERE terms <> ''") == [(3,)], "their terms")

    # when
    with psycopg.connect(fleet.url) as connection:
        jobs = [givalia_postgres.enq(connection, "Note", time=60, key=f"k{n}").id for n in range(10)]
        connection.commit()
        givalia_postgres.ext(connection, "k1", 5)
        givalia_postgres.cancel(connection, "k2")

    # then
    expected = sorted([["on_enq", job] for job in jobs] + [["on_ext", jobs[1]], ["on_cancel", jobs[2]]])
    await_true(lambda: fleet.ask("SELECT count(*) FROM givalia.events") == [(0,)], "no call is owed any more")
    await_true(lambda: len(lines_of(tmp_path / "hooks")) >= len(expected), "each call")
    assert sorted(words[:2] for words in lines_of(tmp_path / "hooks")) == expected
