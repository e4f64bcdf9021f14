"""A pooler in transaction mode in front of the database is detected, whatever it does with the first connections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from givalia_postgres import Postgres, enq
from postgres_fleet import Fleet
from postgres_rig import Postgres as Rig
from system_install import Installed
from transaction_pooler import Pooler

from givalia_core.clock import Now
from givalia_core.errors import StoreAway, StoreUnfit
from givalia_core.store.base import Wanted

NOW = Now(0, 0, 0)
KINDS = [
    {"size": 1},
    {"size": 1, "tracking": True},
    {"size": 2},
    {"size": 20},
    {"size": 20, "tracking": True},
    {"size": 20, "newest_first": False},
    {"size": 20, "newest_first": False, "tracking": True},
]


def through(pooler: Pooler, url: str) -> str:
    """The same database, by way of the pooler."""
    return f"postgresql://postgres@127.0.0.1:{pooler.port}/{url.rpartition('/')[2]}"


@contextlib.contextmanager
def busy(url: str, clients: int) -> Iterator[None]:
    """Other clients of the pooler, of which each has had a session of its own."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(psycopg.connect(url, prepare_threshold=None)) for _ in range(clients)]
        for other in others:
            other.execute("SELECT")
        for other in others:
            other.commit()
        yield


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("clients", [0, 5])
def test_pooler_that_gives_each_transaction_another_session_is_refused(
    database_url: str, postgres: Rig, kind: dict[str, int], clients: int
) -> None:
    # given
    with Pooler(postgres.port, **kind) as pooler, busy(through(pooler, database_url), min(clients, kind["size"])):  # type: ignore[arg-type]
        for name in ("open", "upgrade"):
            store = Postgres(through(pooler, database_url))

            # when, then
            with pytest.raises(StoreUnfit, match="pooler in transaction mode"):
                getattr(store, name)()
            store.close()

    # then
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass('givalia.jobs')").fetchone() == (None,)


def test_programs_end_with_78_behind_a_pooler(database_url: str, postgres: Rig, shared: Installed, tmp_path: Path) -> None:
    # given
    with Pooler(postgres.port) as pooler, Fleet(shared, tmp_path, through(pooler, database_url)) as fleet:
        # when
        refused = fleet.run("givalia-server", "-p", 0, "-w", 0, "--store", fleet.url)

        # then
        assert refused.returncode == 78
        assert "pooler in transaction mode" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_session_that_is_another_one_in_a_later_batch_is_recognised(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    try:
        # when what a session keeps is not kept
        store._connection.ask(("RESET givalia.session", ()))

        # then
        with pytest.raises(StoreUnfit, match="pooler in transaction mode"):
            store.find(Wanted(numbers=True), NOW)
    finally:
        store.close()


def test_server_goes_on_when_a_statement_that_it_has_prepared_is_gone(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    try:
        before = store.find(Wanted(numbers=True), NOW).floor

        # when
        store._connection.make().pgconn.exec_(b"DEALLOCATE ALL")

        # then
        end = time.monotonic() + 10
        while True:
            try:
                assert store.find(Wanted(numbers=True), NOW).floor > before
                break
            except StoreAway:
                assert time.monotonic() < end
    finally:
        store.close()


def test_transaction_of_an_application_may_go_through_such_a_pooler(database_url: str, postgres: Rig) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    try:
        with Pooler(postgres.port) as pooler:
            for number in range(5):
                # when
                with psycopg.connect(through(pooler, database_url), prepare_threshold=None) as connection:
                    enq(connection, "Note", time=60, key=f"k{number}")

        # then
        assert sum(store.counts().values()) == 5
    finally:
        store.close()
