"""The database changes while a server runs: no answer names a class of durability that does not hold."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import givalia_postgres
import psycopg
import pytest
from givalia_postgres import Postgres
from postgres_fleet import Fleet
from postgres_rig import Postgres as Rig
from system_install import Installed
from waits import await_true

from givalia_core.clock import Mark, Now
from givalia_core.errors import StoreAway, StoreError, StoreTooNew, StoreUnfit
from givalia_core.model import WAITING, Job
from givalia_core.store.base import Change, Wanted

PATIENCE_S = 15.0
MARK = Mark("", 0, 0, 0)
NOW = Now(0, 0, 0)


@pytest.fixture(scope="module")
def own() -> Iterator[Rig]:
    """A database server whose settings these tests change; what is not flushed by a commit is not flushed for long."""
    with Rig.start({"wal_writer_delay": "10000"}) as rig:
        yield rig


@pytest.fixture
def url(own: Rig) -> Iterator[str]:
    """A fresh database there, with the settings as they were afterwards."""
    own.start_again()
    yield own.create_database()
    own.start_again()
    say(own.url(), "ALTER SYSTEM RESET ALL", "ALTER ROLE postgres RESET ALL", "SELECT pg_reload_conf()")
    await_setting(own, "fsync", "on")


def say(url: str, *words: str) -> list[tuple[Any, ...]]:
    """Run statements as the superuser; the rows of the last."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursors = [connection.execute(each) for each in words]  # type: ignore[arg-type]
        return cursors[-1].fetchall() if cursors[-1].description is not None else []


def await_setting(own: Rig, name: str, value: str) -> None:
    """Wait until new sessions have this setting."""
    await_true(lambda: say(own.url(), f"SHOW {name}") == [(value,)], f"{name} = {value}", PATIENCE_S)


Opens = Callable[..., Postgres]


@pytest.fixture
def opened(url: str) -> Iterator[Opens]:
    """Opens stores, and closes them after the test."""
    stores: list[Postgres] = []

    def opens(*, unsafe: bool = False) -> Postgres:
        stores.append(Postgres(url))
        stores[-1].open(unsafe=unsafe)
        return stores[-1]

    yield opens
    for store in stores:
        store.close()


def insert(store: Postgres) -> int:
    """Commit a job; its seq."""
    seq = store.find(Wanted(numbers=True), NOW).floor
    store.commit([Change(None, Job(seq, seq.to_bytes(16, "big"), None, WAITING, "Note", "any", 0, False, 2**60))], MARK)
    return seq


def watch(store: Postgres) -> None:
    store.watch(NOW, 0, b"", all_own=False)


def until_it_raises(kind: type[StoreError], act: Callable[[], object]) -> StoreError:
    """Act repeatedly, also while the database is away, until it raises this error."""

    def raised() -> StoreError | None:
        try:
            act()
        except kind as error:
            return error
        except StoreAway:
            return None
        return None

    error = await_true(raised, f"{kind.__name__} is raised", PATIENCE_S, 0.01)
    assert error is not None
    return error


def again(act: Callable[[], Any]) -> Any:
    """Act until the database is not away."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return act()
        except StoreAway:
            assert time.monotonic() < end


WAYS = {
    "system": "ALTER SYSTEM SET synchronous_commit = off",
    "database": "ALTER DATABASE {} SET synchronous_commit = off",
    "role": "ALTER ROLE postgres SET synchronous_commit = off",
}


@pytest.mark.parametrize("reconnects", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_commits_of_a_server_are_synced_whatever_is_configured_since(
    opened: Opens, own: Rig, url: str, way: str, reconnects: bool
) -> None:
    # given
    store = opened()
    name = url.rpartition("/")[2]
    say(
        url,
        "CREATE TABLE public.said (value text)",
        "CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO public.said VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$",
        "CREATE TRIGGER note AFTER INSERT ON givalia.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.note()",
    )

    # when
    say(own.url(), WAYS[way].format(name), "SELECT pg_reload_conf()")
    end = time.monotonic() + PATIENCE_S
    while say(url, "SHOW synchronous_commit") != [("off",)]:
        assert time.monotonic() < end
    if reconnects:
        own.kill_backends()
    again(lambda: watch(store))
    for _ in range(3):
        insert(store)

    # then
    assert say(url, "SELECT DISTINCT value FROM public.said") == [("on",)]


def test_crash_of_the_database_takes_nothing_that_was_acknowledged(
    own: Rig, url: str, shared: Installed, tmp_path: Path
) -> None:
    # given
    with Fleet(shared, tmp_path, url) as fleet:
        server = fleet.add_server()
        client = fleet.client_of()
        client.enq("Note", time=60)

        # when
        say(own.url(), "ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()")
        await_setting(own, "synchronous_commit", "off")
        acknowledged = {job.id for job in (client.enq("Note", time=600) for _ in range(300)) if job.durability == "fsync"}
        own.stop("immediate")
        own.start_again()

        # then
        assert len(acknowledged) == 300
        kept = {text for (text,) in fleet.ask("SELECT id::text FROM givalia.jobs")}
        assert acknowledged - kept == set()
        assert server.is_alive
        server.await_log("synchronous_commit off")


@pytest.mark.parametrize("look", ["numbers", "watch", "connection"])
@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
def test_server_names_no_class_that_the_settings_do_not_give_any_more(
    opened: Opens, own: Rig, url: str, setting: str, look: str
) -> None:
    # given
    store = opened()
    acts: dict[str, Callable[[], object]] = {
        "numbers": lambda: insert(store),
        "watch": lambda: watch(store),
        "connection": lambda: (own.kill_backends(), store.counts()),
    }

    # when
    say(own.url(), f"ALTER SYSTEM SET {setting} = off", "SELECT pg_reload_conf()")
    error = until_it_raises(StoreUnfit, acts[look])

    # then
    assert f"{setting} off" in str(error)
    with pytest.raises(StoreUnfit, match=f"{setting} off"):
        opened()


def test_running_server_ends_with_78_when_the_database_syncs_no_more(
    own: Rig, url: str, shared: Installed, tmp_path: Path
) -> None:
    # given
    with Fleet(shared, tmp_path, url) as fleet:
        server = fleet.add_server()

        # when
        say(own.url(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")

        # then
        assert server.wait(PATIENCE_S) == 78
        assert "fsync off" in server.log


def test_store_that_is_opened_again_is_refused_by_the_settings_of_that_moment(opened: Opens, own: Rig, url: str) -> None:
    # given
    store = opened()
    store.close()

    # when
    say(own.url(), "ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()")
    await_setting(own, "synchronous_commit", "off")

    # then
    with pytest.raises(StoreUnfit, match="synchronous_commit off"):
        store.open()


def test_database_that_keeps_more_than_it_was_taken_for_is_no_reason_to_stop(opened: Opens, own: Rig, url: str) -> None:
    # given
    say(own.url(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    await_setting(own, "fsync", "off")
    store = opened(unsafe=True)
    assert store.durability == "memory"

    # when
    say(own.url(), "ALTER SYSTEM SET fsync = on", "SELECT pg_reload_conf()")
    await_setting(own, "fsync", "on")
    own.kill_backends()

    # then
    again(lambda: watch(store))
    again(lambda: insert(store))


@pytest.mark.parametrize("table", ["jobs", "requests", "counts", "facts"])
def test_table_that_a_crash_would_empty_is_not_synced(opened: Opens, url: str, table: str) -> None:
    # given
    store = opened()

    # when
    say(url, f"ALTER TABLE givalia.{table} SET UNLOGGED")

    # then
    for act in (lambda: watch(store), lambda: opened()):
        with pytest.raises(StoreUnfit, match=rf"unlogged tables \({table}\)"):
            act()
    assert opened(unsafe=True).durability == "memory"


@pytest.mark.parametrize("reconnects", [False, True])
def test_store_that_was_made_anew_behind_the_url_is_not_used(opened: Opens, own: Rig, url: str, reconnects: bool) -> None:
    # given
    store = opened()
    insert(store)

    # when
    say(url, "DROP SCHEMA givalia CASCADE")
    opened()
    if reconnects:
        own.kill_backends()
    error = until_it_raises(StoreUnfit, (lambda: insert(store)) if reconnects else (lambda: watch(store)))

    # then
    assert "another store" in str(error)
    assert say(url, "SELECT count(*) FROM givalia.jobs") == [(0,)]


@pytest.mark.parametrize(
    "words",
    [
        "DROP SCHEMA givalia CASCADE",
        "DROP TABLE givalia.facts",
        "DROP TABLE givalia.jobs",
        "DROP SEQUENCE givalia.tick",
        "ALTER TABLE givalia.servers RENAME COLUMN about TO other",
        "DELETE FROM givalia.facts",
        "UPDATE givalia.facts SET value = 'rubbish' WHERE name = 'format'",
        "DELETE FROM givalia.facts WHERE name = 'store'",
    ],
)
@pytest.mark.parametrize("reconnects", [False, True])
def test_tables_that_are_gone_or_others_while_a_server_runs_are_said_in_words(
    opened: Opens, own: Rig, url: str, words: str, reconnects: bool
) -> None:
    # given
    store = opened()
    insert(store)

    # when
    say(url, words)
    if reconnects:
        own.kill_backends()

    # then
    assert str(until_it_raises(StoreUnfit, lambda: watch(store)))


RUBBISH = [
    "DELETE FROM givalia.facts WHERE name = 'format'",
    *(
        f"INSERT INTO givalia.facts VALUES ('{name}', '{value}') ON CONFLICT (name) DO UPDATE SET value = excluded.value"
        for name, values in {
            "format": ("", "x", "-1", "0", "1.0", "\N{ARABIC-INDIC DIGIT TWO}", "9" * 5000),
            "last_seq": ("", "x", "-1", "9" * 30),
            "mark": ("{", "[" * 100_000, "null", "[]", "7", '["a"]', "[1, 2, 3, 4]", '["", 1, 2, "x"]', '["", 1, 2, 1e400, 5]'),
        }.items()
        for value in values
    ),
    "ALTER TABLE givalia.facts DROP COLUMN value",
    "DROP SEQUENCE givalia.tick",
    "SELECT setval('givalia.tick', 4611686018427387904)",
]


@pytest.mark.parametrize("words", RUBBISH)
def test_facts_that_are_missing_or_rubbish_are_refused_in_words(opened: Opens, url: str, words: str) -> None:
    # given
    opened().close()

    # when
    say(url, words)

    # then
    with pytest.raises(StoreUnfit) as refused:
        opened()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("words", [RUBBISH[0], RUBBISH[2], RUBBISH[-3]])
def test_programs_end_with_78_and_without_a_traceback_where_facts_are_rubbish(
    opened: Opens, url: str, words: str, shared: Installed, tmp_path: Path
) -> None:
    # given
    opened().close()
    say(url, words)
    with Fleet(shared, tmp_path, url) as fleet:
        # when
        for command in (("givalia-server", "-p", 0, "-w", 0), ("givalia", "store", "check"), ("givalia", "store", "upgrade")):
            ended = fleet.run(*command, "--store", url)

            # then
            assert ended.returncode == 78, command
            assert "Traceback" not in ended.stderr


def test_answer_of_a_transaction_names_no_class_that_the_tables_do_not_give(opened: Opens, url: str) -> None:
    # given
    opened()
    say(url, "ALTER TABLE givalia.jobs SET UNLOGGED")

    # when, then
    with psycopg.connect(url) as connection:
        assert givalia_postgres.enq(connection, "Note", time=60).durability == "memory"


def test_numbers_that_are_rubbish_stop_a_running_server_in_words(opened: Opens, url: str) -> None:
    # given
    store = opened()

    # when
    say(url, "SELECT setval('givalia.tick', 4611686018427387904)")

    # then
    with pytest.raises(StoreUnfit, match=r"givalia\.tick"):
        insert(store)


def test_later_format_that_appears_while_a_server_runs_stops_it(opened: Opens, url: str) -> None:
    # given
    store = opened()

    # when
    say(url, "UPDATE givalia.facts SET value = '99' WHERE name = 'format'")

    # then
    with pytest.raises(StoreTooNew, match="format 99"):
        watch(store)


@pytest.mark.parametrize("reconnects", [False, True])
def test_database_that_was_set_back_gives_no_number_a_second_time(opened: Opens, own: Rig, url: str, reconnects: bool) -> None:
    # given
    store = opened()
    before = [insert(store) for _ in range(50)]

    # when
    say(url, "SELECT setval('givalia.tick', 5)")
    if reconnects:
        own.kill_backends()

    # then
    assert again(lambda: insert(store)) > max(before)
