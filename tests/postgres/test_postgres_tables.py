"""A server or the owner creates the tables, and a database that cannot keep the promise is refused."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Final

import psycopg
import pytest
from engine_rig import EngineRig
from givalia_postgres import Postgres, schema, shape, statements
from postgres_fleet import Fleet
from postgres_rig import Postgres as Rig
from shared_rig import Make, drive, rest, url_of

from givalia_core.errors import StoreAway, StoreMissing, StoreTooNew, StoreUnfit
from givalia_core.server.stores import open_store
from givalia_core.settings import ServerSettings


def test_ten_servers_that_start_at_once_make_the_tables_once(database_url: str) -> None:
    # given
    opened: list[object] = []

    def start() -> None:
        store = Postgres(database_url)
        opened.append(store.open().epoch)
        store.close()

    # when
    threads = [threading.Thread(target=start) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    # then
    assert len(set(opened)) == 10


def test_server_waits_for_somebody_who_takes_his_time_to_make_the_tables(database_url: str) -> None:
    # given
    opened: list[int] = []

    def start() -> None:
        store = Postgres(database_url)
        opened.append(store.open().epoch)
        store.close()

    # when
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s::bigint)", (schema.LOCK,))
        thread = threading.Thread(target=start)
        thread.start()
        thread.join(1)
        assert opened == []
    thread.join(30)

    # then
    assert opened == [1]


def test_server_waits_for_another_that_enters_the_store(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    store.close()
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM givalia.facts WHERE name = 'store'")
        connection.commit()
        connection.execute("INSERT INTO givalia.facts VALUES ('store', 'x')")

        # when
        thread = threading.Thread(target=store.open)
        thread.start()
        thread.join(0.3)

    # then
    thread.join(30)
    assert store._promise.identity == "x"
    store.close()


def test_owner_makes_the_tables_and_a_user_with_few_rights_runs_the_server(fleet: Fleet) -> None:
    # given
    with psycopg.connect(fleet.url, autocommit=True) as connection:
        connection.execute("CREATE ROLE few LOGIN" if not _has_role(connection) else "SELECT 1")
    missing = fleet.run("givalia", "store", "upgrade", "--store", fleet.url)
    assert (missing.returncode, "givalia store create" in missing.stderr) == (78, True)
    made = fleet.run("givalia", "store", "create", "--store", fleet.url, "--json")
    assert json.loads(made.stdout) == {"created": True}
    few = fleet.url.replace("postgres@", "few@")

    # when the rights are missing, then the server says so and does not start
    refused = fleet.run("givalia-server", "-p", 0, "-w", 0, "--store", few)
    assert refused.returncode == 78
    assert "permission denied" in refused.stderr

    # when
    with psycopg.connect(fleet.url, autocommit=True) as connection:
        connection.execute("GRANT USAGE ON SCHEMA givalia TO few")
        connection.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA givalia TO few")
        connection.execute("GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA givalia TO few")
    fleet.url = few
    server = fleet.add_server()
    fleet.add_worker()

    # then
    assert fleet.client_of().enq("Echo", params=1).wait(10) == 1
    assert fleet.check() == []
    refused = fleet.run("givalia", "-p", server.port, "backup", "copy.db")
    assert (refused.returncode, "pg_dump" in refused.stderr) == (64, True)


def test_store_says_whether_it_was_made_by_its_opening(database_url: str) -> None:
    # given
    store = Postgres(database_url)

    # when, then
    for is_new in (True, False):
        assert store.open().is_new is is_new
        store.close()


def _has_role(connection: psycopg.Connection) -> bool:
    return connection.execute("SELECT FROM pg_roles WHERE rolname = 'few'").fetchone() is not None


def test_tables_of_a_later_format_are_left_alone(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    store.close()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE givalia.facts SET value = '99' WHERE name = 'format'")

    # when, then
    with pytest.raises(StoreTooNew, match="format 99"):
        store.open()
    with pytest.raises(StoreTooNew, match="format 99"):
        store.upgrade()


@pytest.mark.parametrize(
    ("setting", "durability"), [("fsync", "memory"), ("full_page_writes", "memory"), ("synchronous_commit", "flush")]
)
def test_database_that_may_lose_what_it_acknowledged_is_refused_unless_said(
    fleet: Fleet, setting: str, durability: str
) -> None:
    # given
    with Rig.start({setting: "off"}) as rig:
        fleet.url = rig.create_database()

        # when
        refused = fleet.run("givalia-server", "-p", 0, "-w", 0, "--store", fleet.url)

        # then
        assert refused.returncode == 78
        assert f"{setting} off" in refused.stderr
        with psycopg.connect(fleet.url) as connection:
            assert connection.execute("SELECT to_regclass('givalia.jobs')").fetchone() == (None,)

        # when
        fleet.add_server("--store-unsafe")

        # then
        client = fleet.client_of()
        assert client.enq("Echo", time=60).durability == durability
        assert client.info()["durability"] == durability
        fleet.servers[0].stop()


def test_where_nobody_listens_and_whom_the_database_refuses(postgres: Rig) -> None:
    with pytest.raises(StoreAway):
        Postgres("postgresql://postgres@127.0.0.1:1/none").open()
    with pytest.raises(StoreUnfit, match="does not exist"):
        Postgres(postgres.url("nowhere")).open()
    with pytest.raises(StoreUnfit, match="does not exist"):
        Postgres(postgres.url(user="stranger")).open()


def test_socket_and_both_schemes_lead_to_the_same_queue(postgres: Rig, database_url: str) -> None:
    # given
    name = database_url.rpartition("/")[2]
    by_socket = Postgres(postgres.socket_url(name))

    # when
    epochs = []
    for store in (by_socket, Postgres(database_url.replace("postgresql:", "postgres:"))):
        epochs.append(store.open().epoch)
        store.close()

    # then
    assert epochs == [1, 2]


def test_tables_are_not_made_where_none_may_be_made(database_url: str) -> None:
    settings = ServerSettings(store=database_url, create=False)

    with pytest.raises(StoreMissing, match="create is false"):
        open_store(settings).open()

    first = open_store(replace(settings, create=True))
    assert first.open().is_new
    first.close()
    again = open_store(settings)
    assert not again.open().is_new
    again.close()


def test_counts_of_many_modules_that_have_no_job_any_more_leave_nothing_behind(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    with psycopg.connect(database_url, autocommit=True) as connection:
        for jobs in (1, -1):
            connection.execute(
                "INSERT INTO givalia.counts SELECT 'M' || number, 0, %s FROM generate_series(1, 20000) AS number", (jobs,)
            )
        connection.execute("INSERT INTO givalia.counts SELECT 'Hot', 0, 1 FROM generate_series(1, 20000)")

        # when
        for _ in range(80):
            connection.execute(statements.FOLD)

        # then
        assert connection.execute("SELECT module, jobs FROM givalia.counts").fetchall() == [("Hot", 20_000)]
    store.close()


# Tables that somebody has changed.

RETYPED: Final = [
    ("ALTER TABLE givalia.facts ALTER value TYPE bytea USING convert_to(value, 'UTF8')", "the fact 'format' of the store"),
    ("ALTER TABLE givalia.servers ALTER about TYPE text USING ''", "column about of givalia.servers is text, not bytea"),
    ("ALTER TABLE givalia.jobs ALTER due_at_us TYPE numeric", "column due_at_us of givalia.jobs is numeric, not bigint"),
    ("ALTER TABLE givalia.jobs ALTER key TYPE varchar(255)", "column key of givalia.jobs"),
    ("ALTER TABLE givalia.jobs ALTER id TYPE text", "column id of givalia.jobs"),
    ("ALTER TABLE givalia.counts ALTER state TYPE text", "column state of givalia.counts"),
    ("ALTER TABLE givalia.requests RENAME until_us TO until", "column until_us of givalia.requests is missing"),
]
CHANGED: Final = [
    *RETYPED,
    ("ALTER TABLE givalia.counts ALTER jobs TYPE numeric", "column jobs of givalia.counts"),
    ("ALTER TABLE givalia.requests DROP CONSTRAINT requests_pkey", "givalia.requests has no unique index on request"),
    ("ALTER TABLE givalia.facts DROP CONSTRAINT facts_pkey", "givalia.facts has no unique index on name"),
    ("DROP INDEX givalia.jobs_live_key", "givalia.jobs has no unique index on key"),
]


@pytest.mark.parametrize(("change", "words"), CHANGED)
def test_tables_that_somebody_has_changed_are_not_opened(database_url: str, change: str, words: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    store.close()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(change.encode())

    # when, then
    with pytest.raises(StoreUnfit, match=words):
        store.open()


@pytest.mark.parametrize("change", [change for change, _ in RETYPED])
def test_column_whose_type_somebody_changes_ends_a_running_server_with_words(make: Make, change: str) -> None:
    # given
    here = make()
    here.worker(10, capacity=2)
    for key in ("a", "b"):
        here.enq(key=key, delay_us=10**6)
    drive(here, 3.0)

    # when
    with psycopg.connect(url_of(here), autocommit=True) as connection:
        connection.execute(change.encode())

    # then
    with pytest.raises(StoreUnfit):
        _work_on(here)


def _work_on(rig: EngineRig) -> None:
    for number in range(40):
        rest(rig, 0.1)
        with suppress(StoreAway):
            rig.enq(key=f"more-{number}")
            drive(rig, 0.3)


def test_shape_that_is_asked_for_is_that_of_tables_that_are_made(database_url: str) -> None:
    store = Postgres(database_url)
    store.open()
    columns, unique = store._connection.ask(*shape.LOOK)
    store.close()

    assert {(table, column): kind for table, column, kind in columns} == {
        (table, column): kind for table, wanted in shape.COLUMNS.items() for column, kind in wanted.items()
    }
    assert set(unique) >= shape.UNIQUE


def test_sequence_that_is_used_up_is_said(database_url: str) -> None:
    # given
    store = Postgres(database_url)
    store.open()
    store.close()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(f"SELECT setval('givalia.tick', {2**63 - 1})")

    # when, then
    with pytest.raises(StoreUnfit, match=r'a sequence of the store is used up; .*"tick"'):
        store.open()
