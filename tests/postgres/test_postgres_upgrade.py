"""Tables of the previous format are upgraded row by row; after a kill at any moment, the upgrade continues where it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

import givalia_postgres
import psycopg
import pytest
from engine_rig import EngineRig
from givalia_postgres import Postgres, schema, upgrading
from givalia_postgres.connection import Connection
from postgres_fleet import Fleet

from givalia_core.clock import Now
from givalia_core.errors import StoreLocked, StoreMissing, StoreUnfit
from givalia_core.model import CANCELLED, DEAD, DONE, RUNNING, WAITING, Job
from givalia_core.store.base import Filter, Wanted

FORMAT_1 = Path(__file__).with_name("format-1.sql").read_text()
NOW = Now(0, 0, 0)


class Killed(BaseException):
    """The program ends here."""


@pytest.fixture
def old(database_url: str) -> str:
    """A database with the store of the fixture."""
    say(database_url, FORMAT_1)
    return database_url


def say(url: str, words: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(words)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description is not None else []


def uuid(text: str) -> bytes:
    return UUID(text).bytes


def contents(url: str) -> tuple[list[Job], list[str]]:
    """The jobs of a store, and what it finds wrong."""
    store = Postgres(url)
    with closing(store):
        store.open()
        return store.page(Filter(), None, 100, NOW).jobs, store.check()


def upgraded(url: str) -> tuple[int, int]:
    return Postgres(url).upgrade()


def test_store_of_the_format_before_is_whole_after_its_upgrade(old: str) -> None:
    # given
    with pytest.raises(StoreUnfit, match="run givalia store upgrade"):
        contents(old)

    # when
    assert upgraded(old) == (1, schema.FORMAT)

    # then
    jobs, wrong = contents(old)
    assert wrong == []
    assert [job.state for job in jobs] == [WAITING, WAITING, RUNNING, DONE, DEAD, CANCELLED, RUNNING, WAITING]
    first, variant, runs, done, dead, cancelled, asked, pushed = jobs
    assert (first.key, first.params, first.keeper) == ("cart-7", b"\xa9parameter", 0)
    assert (variant.specifier, variant.priority, variant.on_wall, variant.expires_us) == (">=2", -3, True, 5)
    assert (runs.worker, runs.fence, runs.keeper, runs.backoff_us) == ("w1", (2 << 20) + 5, 2, (1_000_000, 600_000_000))
    assert (done.result, done.params, dead.error) == (b"\x07", b"", "ValueError: x")
    assert cancelled.answered[0].act == "cancel"
    assert asked.stop_asked
    assert [request.act for request in pushed.answered] == ["ext"] * 4
    assert upgraded(old) == (schema.FORMAT, schema.FORMAT)


def test_tables_of_format_2_get_an_index_and_no_row_is_written(old: str) -> None:
    upgraded(old)
    before = say(old, "SELECT seq, xmin::text FROM givalia.jobs ORDER BY seq")
    say(old, "DROP INDEX givalia.jobs_newest")
    say(old, "UPDATE givalia.facts SET value = '2' WHERE name = 'format'")
    with pytest.raises(StoreUnfit, match="run givalia store upgrade"):
        contents(old)

    assert upgraded(old) == (2, 3)

    assert say(old, "SELECT to_regclass('givalia.jobs_newest') IS NOT NULL") == [(True,)]
    assert say(old, "SELECT seq, xmin::text FROM givalia.jobs ORDER BY seq") == before
    assert contents(old)[1] == []


def test_requests_and_numbers_go_on_after_an_upgrade(old: str) -> None:
    # given
    upgraded(old)
    store = Postgres(old)
    with closing(store):
        store.open()

        # when
        request = bytes.fromhex("0195d6c07a8070008000000000000064")
        found = store.find(Wanted(requests=frozenset({request}), numbers=True), NOW)

        # then
        assert found.requests[request].state is CANCELLED
        assert found.floor > (1 << 20) + 6


def test_command_that_was_answered_before_an_upgrade_is_answered_alike_after_it(old: str) -> None:
    # given
    upgraded(old)
    store = Postgres(old)
    with closing(store):
        rig = EngineRig(store)
        pushed, asked = uuid("00000000-0000-0000-0000-000000000001"), uuid("0195d6c0-7a80-7000-8000-000000000065")
        due_us = rig.stored(pushed).due_at_us

        # when, then
        assert rig.cancel("asked", running=True, request=asked) == ("stop_requested",)
        assert rig.ext("waits", delta_us=10**6, request=uuid("00000000-0000-0000-0000-000000000069"))[0] == pushed
        assert rig.stored(pushed).due_at_us == due_us
        assert rig.ext("waits", delta_us=10**6)[0] == pushed
        assert rig.stored(pushed).due_at_us == due_us + 10**6


def test_an_upgrade_waits_for_whoever_uses_a_table(old: str) -> None:
    # given
    ended: list[tuple[int, int]] = []
    with psycopg.connect(old) as connection:
        connection.execute("SELECT FROM givalia.requests")

        # when
        thread = threading.Thread(target=lambda: ended.append(upgraded(old)))
        thread.start()
        thread.join(0.5)
        assert ended == []
    thread.join(30)

    # then
    assert ended == [(1, schema.FORMAT)]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrading, "_FIRST_ROWS", 1)
    monkeypatch.setattr(upgrading, "_ROWS", 2)


def is_killed(
    url: str, trip: int, monkeypatch: pytest.MonkeyPatch, *, after: bool, act: Callable[[str], Any] = upgraded
) -> bool:
    """Upgrade (or `act`), and end the program instead of, or after, this trip to the database; False if it was over before."""
    ask = Connection.ask
    left = trip

    def counted(self: Connection, *statements: Any) -> Any:
        nonlocal left
        left -= 1
        answers = ask(self, *statements) if left or after else None
        if not left:
            self.close()
            raise Killed
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "ask", counted)
        try:
            act(url)
        except Killed:
            return True
    return False


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("after", [False, True])
def test_upgrade_that_is_killed_at_any_trip_goes_on(old: str, after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    before = say(old, "SELECT seq, params FROM givalia.jobs ORDER BY seq")
    for trip in range(1, 100):
        say(old, "DROP SCHEMA givalia CASCADE")
        say(old, FORMAT_1)

        # when
        killed = is_killed(old, trip, monkeypatch, after=after)

        # then
        if say(old, "SELECT FROM givalia.facts WHERE name = 'upgrade' OR (name, value) = ('format', '1')"):
            assert killed
            with pytest.raises(StoreUnfit, match="run givalia store upgrade"):
                contents(old)
        upgraded(old)
        jobs, wrong = contents(old)
        assert wrong == []
        assert [(job.seq, job.params) for job in jobs] == before
        if not killed:
            break
    assert trip > 8


def test_fresh_tables_are_made_whole_or_not_at_all(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for trip in range(1, 100):
        # when
        killed = is_killed(database_url, trip, monkeypatch, after=False, act=opened_by_a_server)

        # then
        if say(database_url, "SELECT to_regclass('givalia.facts') IS NOT NULL") == [(True,)]:
            break
        assert killed
    assert contents(database_url) == ([], [])


def test_row_that_is_damaged_already_is_set_aside_by_the_upgrade(old: str) -> None:
    # given
    say(
        old,
        "UPDATE givalia.jobs SET state = -1 WHERE key = 'cart-7';"
        "UPDATE givalia.jobs SET body = substr(body, 1, 20) WHERE key = 'runs';"
        "UPDATE givalia.jobs SET keeper = 99 WHERE key = 'asked';",
    )

    # when
    upgraded(old)

    # then
    jobs, wrong = contents(old)
    assert [job.key for job in jobs] == [None, "done", "done", None, "waits"]
    assert len(wrong) == 3
    assert all("is in quarantine" in line for line in wrong)


@pytest.mark.usefixtures("small_steps")
def test_job_that_an_application_enqueues_during_an_upgrade_is_kept(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    with psycopg.connect(old) as connection, pytest.raises(StoreUnfit, match="run givalia store upgrade"):
        givalia_postgres.enq(connection, "Sample", time=60)
    assert is_killed(old, 8, monkeypatch, after=True)
    assert say(old, "SELECT FROM givalia.facts WHERE name = 'upgrade'")

    # when
    with psycopg.connect(old) as connection:
        givalia_postgres.enq(connection, "Sample", time=60, key="meanwhile")
    upgraded(old)

    # then
    jobs, wrong = contents(old)
    assert wrong == []
    assert "meanwhile" in {job.key for job in jobs}
    assert len(jobs) == 9


def test_upgrade_waits_for_nobody_who_has_the_store_open(old: str) -> None:
    # given
    say(
        old,
        "INSERT INTO givalia.servers VALUES (7, (extract(epoch FROM now()) * 1000000)::bigint + 9000000, 0, '', '')",
    )
    before = say(old, "SELECT * FROM givalia.jobs ORDER BY seq")

    # when, then
    with pytest.raises(StoreLocked, match="stop them"):
        upgraded(old)
    assert say(old, "SELECT * FROM givalia.jobs ORDER BY seq") == before


def opened_by_a_server(url: str) -> list[Job]:
    """The jobs of a store that a server with `upgrade = "auto"` has opened."""
    store = Postgres(url)
    store.may_upgrade = True
    with closing(store):
        store.open()
        return store.page(Filter(), None, 100, NOW).jobs


def test_start_upgrades_the_tables_and_says_that_there_is_no_copy(old: str, caplog: pytest.LogCaptureFixture) -> None:
    # when
    jobs = opened_by_a_server(old)

    # then
    assert len(jobs) == 8
    assert say(old, "SELECT value FROM givalia.facts WHERE name = 'format'") == [(str(schema.FORMAT),)]
    assert [line for line in caplog.messages if f"from format 1 to {schema.FORMAT}" in line and "no copy" in line]
    assert len(opened_by_a_server(old)) == 8


def test_start_beside_a_living_server_upgrades_nothing_and_names_the_command(old: str) -> None:
    # given
    say(
        old,
        "INSERT INTO givalia.servers VALUES (7, (extract(epoch FROM now()) * 1000000)::bigint + 9000000, 0, '', '')",
    )

    # when, then
    with pytest.raises(StoreLocked, match="givalia store upgrade --store postgresql:"):
        opened_by_a_server(old)
    assert say(old, "SELECT value FROM givalia.facts WHERE name = 'format'") == [("1",)]


def test_start_of_a_user_who_may_not_upgrade_names_the_command_and_no_password(old: str) -> None:
    # given
    say(
        old,
        "DO $$ BEGIN CREATE ROLE serves LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        "GRANT USAGE ON SCHEMA givalia TO serves;"
        "GRANT SELECT ON ALL TABLES IN SCHEMA givalia TO serves",
    )

    # when, then
    with pytest.raises(StoreUnfit, match="givalia store upgrade --store") as refused:
        opened_by_a_server(old.replace("postgres@", "serves:hidden@"))
    assert "hidden" not in str(refused.value)
    assert say(old, "SELECT value FROM givalia.facts WHERE name = 'format'") == [("1",)]


def test_upgrade_makes_no_tables(database_url: str) -> None:
    with pytest.raises(StoreMissing, match="givalia store create"):
        upgraded(database_url)
    assert say(database_url, "SELECT to_regclass('givalia.facts') IS NULL") == [(True,)]


def test_program_of_the_version_before_cannot_write_a_row_without_a_checksum(old: str) -> None:
    # given
    upgraded(old)

    # when, then
    for words in ("UPDATE givalia.jobs SET version = 2, body = '' WHERE key = 'cart-7'", "SELECT body FROM givalia.jobs"):
        with pytest.raises(psycopg.errors.UndefinedColumn):
            say(old, words)


def test_servers_user_keeps_its_rights_over_an_upgrade(fleet: Fleet, database_url: str) -> None:
    # given
    say(database_url, FORMAT_1)
    say(
        database_url,
        "DO $$ BEGIN CREATE ROLE serves LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"
        "GRANT USAGE ON SCHEMA givalia TO serves;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON givalia.jobs, givalia.requests, givalia.counts, givalia.servers TO serves;"
        "GRANT SELECT, UPDATE, DELETE ON givalia.events TO serves;"
        "GRANT SELECT, INSERT, UPDATE ON givalia.facts TO serves;"
        "GRANT USAGE ON SEQUENCE givalia.tick TO serves;",
    )

    # when
    assert fleet.run("givalia", "store", "upgrade", "--store", database_url).returncode == 0

    # then
    jobs, wrong = contents(database_url.replace("postgres@", "serves@"))
    assert (len(jobs), wrong) == (8, [])

    # when the rights are taken away, then it is said at the start, and not when a row is damaged
    say(database_url, "REVOKE ALL ON givalia.quarantine FROM serves")
    with pytest.raises(StoreUnfit, match=r"GRANT SELECT, INSERT ON givalia\.quarantine"):
        contents(database_url.replace("postgres@", "serves@"))
