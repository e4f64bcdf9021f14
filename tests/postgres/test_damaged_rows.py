"""A damaged row is never shown, is set aside and logged once; all other jobs go on."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import givalia_postgres
import psycopg
import pytest
from givalia_postgres import Postgres
from postgres_fleet import Fleet
from waits import await_true

from givalia_core.clock import Mark, Now
from givalia_core.errors import StoreAway, StoreCorrupt
from givalia_core.model import DONE, RUNNING, WAITING, Answered, Job
from givalia_core.store.base import Change, Claim, Filter, Found, Retention, Route, Wanted

US = 1_000_000
NOW = Now(1_000 * US, 1_000 * US, 0)
MARK = Mark("", 0, 1_000 * US, 1_000 * US)
ROUTE = Route("Sample", "any")
BAD = 2

DAMAGES = {
    "record cut": "record = substr(record, 1, length(record) - 9)",
    "record empty": "record = ''",
    "record longer": "record = record || '\\x00'",
    "record flipped": "record = set_byte(record, 5, get_byte(record, 5) # 4)",
    "checksum flipped": "record = set_byte(record, length(record) - 1, get_byte(record, length(record) - 1) # 1)",
    "params flipped": "params = set_byte(params, 3, get_byte(params, 3) # 16)",
    "params cut": "params = substr(params, 1, 4)",
    "params empty": "params = ''",
    "result": "result = '\\xc0'",
    "bytes moved": "record = record || substr(params, 1, 1), params = substr(params, 2)",
    "state unknown": "state = 7",
    "state negative": "state = -1",
    "state done": "state = 2",
    "state running": "state = 1",
    "key changed": "key = 'other'",
    "key gone": "key = NULL",
    "id changed": "id = '00000000-0000-0000-0000-0000000000ff'",
    "module changed": "module = 'Other'",
    "target changed": "target_worker = 'w9'",
    "priority": "rank = 5",
    "clock": "on_wall = NOT on_wall",
    "due": "due_at_us = due_at_us - 1",
    "expiry": "expires_at_us = 1",
    "ended": "ended_at_us = 5",
    "forget": "forget_at_us = 5",
    "version": "version = version + 1",
    "keeper": "keeper = 44",
    "stop": "stop_asked = NOT stop_asked",
    "key no text": "key = ('\\xff61'::bytea)::text",
    "module no text": "module = ('\\xff61'::bytea)::text",
    "module cut in a letter": "module = ('\\x61e2'::bytea)::text",
    "target no text": "target_worker = ('\\x80'::bytea)::text",
}
NO_TEXT = "CREATE CAST (bytea AS text) WITHOUT FUNCTION"  # So that a text can be what no statement would let it be.


def job(number: int, **fields: Any) -> Job:
    shown = Job(
        number, bytes([number]) * 16, f"k{number}", WAITING, *ROUTE, priority=0, on_wall=False, due_at_us=number * US,
        enq_at_us=7, params=b"\xa6params",
    )  # fmt: skip
    return shown.changed(**fields)


@pytest.fixture
def open_store(database_url: str) -> Iterator[Callable[[], Postgres]]:
    """Opens stores of one database, and closes them after the test."""
    stores: list[Postgres] = []

    def opens() -> Postgres:
        stores.append(Postgres(database_url))
        stores[-1].open()
        return stores[-1]

    yield opens
    for store in stores:
        store.close()


def filled(store: Postgres, *jobs: Job) -> None:
    assert store.commit([Change(None, each) for each in jobs], MARK).refused == ()
    store.tidy()


def say(url: str, words: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(words)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description is not None else []


def meet_all(store: Postgres) -> list[Job]:
    """Whatever the store shows of any job, by every way there is, until a moment after the bad rows were set aside."""
    shown: list[Job] = []
    keys = frozenset({f"k{number}" for number in range(10)} | {"other"})
    ids = frozenset(bytes([number]) * 16 for number in (*range(10), 255))
    for _ in range(2):
        found = store.find(Wanted(ids=ids, keys=keys, past_keys=keys, requests=ids, claims=(Claim(ROUTE, 1),)), NOW)
        shown += [each for named in found[:4] for each in named.values()] + [
            each for some in found.ready.values() for each in some
        ]
        store.tidy()
    shown += store.page(Filter(), None, 100, NOW).jobs
    shown += [each for state in (WAITING, RUNNING, DONE) for each in store.page(Filter(state), None, 100, NOW).jobs]
    shown += store.expired(NOW, 100)
    shown += [each for each, _ in store.watch(NOW, 0, b"", all_own=True).strayed]
    return shown


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_row_is_shown_to_nobody_and_the_others_go_on(
    open_store: Any, database_url: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given
    store, other = open_store(), open_store()
    sound = [job(1), job(3)]
    filled(store, job(BAD, result=b"\x01" if damage == "result" else None), *sound)

    # when
    say(database_url, NO_TEXT)
    say(database_url, f"UPDATE givalia.jobs SET {DAMAGES[damage]} WHERE seq = {BAD}")
    shown = meet_all(store) + meet_all(other)

    # then
    assert {each.seq for each in shown} == {1, 3}
    assert {each for each in shown if each.state is WAITING} == set(sound)
    assert store.describe()["quarantined"] == other.describe()["quarantined"] == 1
    assert [record.levelname for record in caplog.records if f"seq {BAD}" in record.getMessage()] == ["ERROR"]
    assert say(database_url, "SELECT seq FROM givalia.quarantine") == [(BAD,)]

    # then the counts are right, and nothing else is wrong
    store.close()
    third = open_store()
    (wrong,) = third.check()
    assert "is in quarantine since" in wrong
    assert third.counts() == {("Sample", WAITING): 2}


def test_ready_jobs_are_counted_to_an_end_although_the_modules_of_some_are_no_text(open_store: Any, database_url: str) -> None:
    # given
    store = open_store()
    filled(store, *(job(number, module=f"M{number:02}", due_at_us=1) for number in range(1, 20)))

    # when
    say(database_url, NO_TEXT)
    say(database_url, "UPDATE givalia.jobs SET module = ('\\xff61'::bytea)::text WHERE seq = 19")
    say(
        database_url,
        "UPDATE givalia.jobs SET module = (set_byte('\\x8061'::bytea, 1, 60 + seq::int))::text WHERE seq IN (7, 8)",
    )

    # then
    counted = [found.route.module for found in store.ready(NOW)]
    assert len(counted) < 30
    assert {f"M{number:02}" for number in range(1, 19) if number not in (7, 8)} <= set(counted)


@pytest.mark.parametrize("damage", ["record cut", "params flipped", "state unknown", "key changed"])
def test_check_names_a_damaged_row_that_nobody_has_met(open_store: Any, database_url: str, damage: str) -> None:
    # given
    store = open_store()
    filled(store, job(1), job(BAD), job(3))

    # when
    say(database_url, f"UPDATE givalia.jobs SET {DAMAGES[damage]} WHERE seq = {BAD}")

    # then
    (wrong,) = store.check()
    assert f"the row of job {BAD} " in wrong


def test_bad_row_at_the_head_of_a_route_holds_up_nobody_behind_it(open_store: Any, database_url: str) -> None:
    # given
    store = open_store()
    filled(store, *(job(number) for number in range(1, 8)))
    say(database_url, "UPDATE givalia.jobs SET params = '' WHERE seq < 6")

    # when
    lent: list[int] = []
    for _ in range(7):
        found: Found = store.find(Wanted(claims=(Claim(ROUTE, 1),)), NOW)
        lent += [each.seq for each in found.ready.get(ROUTE, ())]
        store.tidy()

    # then
    assert lent == [6, 6]
    assert store.news().must_watch


def test_key_and_id_of_a_row_that_was_set_aside_are_free(open_store: Any, database_url: str) -> None:
    # given
    store = open_store()
    filled(store, job(BAD))
    say(database_url, "UPDATE givalia.jobs SET params = ''")
    assert store.find(Wanted(keys=frozenset({"k2"})), NOW).live == {}

    # when, then
    filled(store, job(9, key="k2", id=job(BAD).id))
    assert store.find(Wanted(keys=frozenset({"k2"})), NOW).live["k2"].seq == 9


def test_sweeper_does_not_believe_a_damaged_row_that_it_is_past(open_store: Any, database_url: str) -> None:
    # given
    store = open_store()
    filled(store, job(1), job(BAD), job(3, state=DONE, ended_at_us=5, forget_at_us=6))
    say(database_url, f"UPDATE givalia.jobs SET forget_at_us = 5 WHERE seq = {BAD}")

    # when
    store.commit([], MARK, Retention(NOW.timer_us, NOW.timer_us, 100, 100, 100))

    # then
    assert say(database_url, "SELECT seq FROM givalia.jobs ORDER BY seq") == [(1,), (BAD,)]


def test_row_that_nobody_asks_for_is_met_by_the_scrub_of_one_server(
    open_store: Any, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr("givalia_postgres.store.SCRUB_EACH_S", 0.0)
    monkeypatch.setattr("givalia_postgres.scrubbing.ROWS", 64)
    store, other = open_store(), open_store()
    filled(store, *(job(number, key=None) for number in range(1, 201)))
    say(database_url, "UPDATE givalia.jobs SET state = 2, ended_at_us = 7, forget_at_us = 9e18 WHERE seq IN (1, 150, 200)")

    # when
    for _ in range(5):
        other.watch(NOW, 0, b"", all_own=False)
    assert other.describe()["quarantined"] == 0
    for _ in range(5):
        store.watch(NOW, 0, b"", all_own=False)

    # then
    assert say(database_url, "SELECT seq FROM givalia.quarantine ORDER BY seq") == [(1,), (150,), (200,)]
    assert store.describe()["scrub_seconds"] >= 0


@pytest.mark.parametrize("seed", [random.randrange(10**9) for _ in range(3)])
def test_no_flipped_byte_is_ever_shown(open_store: Any, database_url: str, seed: int) -> None:
    # given
    print(f"seed {seed}")
    choice = random.Random(seed)
    store = open_store()
    jobs = [
        job(number, key=None, id=choice.randbytes(16), params=choice.randbytes(choice.randrange(1, 300)))
        for number in range(1, 201)
    ]
    filled(store, *jobs)
    bad = set(choice.sample(range(1, 201), 60))
    with psycopg.connect(database_url) as connection:
        for seq in bad:
            column = choice.choice(("record", "params"))
            ((length,),) = connection.execute(f"SELECT length({column}) FROM givalia.jobs WHERE seq = {seq}").fetchall()
            place, bits = choice.randrange(length), choice.randrange(1, 256)
            connection.execute(
                f"UPDATE givalia.jobs SET {column} = set_byte({column}, {place}, get_byte({column}, {place}) # {bits})"
                f" WHERE seq = {seq}"
            )

    # when
    shown = store.page(Filter(), None, 1_000, NOW).jobs

    # then
    assert shown == [each for each in jobs if each.seq not in bad]
    assert store.describe()["quarantined"] == 60


def test_request_that_leads_to_another_job_is_not_believed(open_store: Any, database_url: str) -> None:
    # given
    store = open_store()
    request = b"r" * 16
    filled(store, job(1))
    store.commit([Change(job(1), job(1, version=2, answered=(Answered(request, "ext", 0),)))], MARK)
    filled(store, job(3))
    assert store.find(Wanted(requests=frozenset({request})), NOW).requests[request].seq == 1

    # when
    say(database_url, "UPDATE givalia.requests SET seq = 3")

    # then
    assert store.find(Wanted(requests=frozenset({request})), NOW).requests == {}


def test_rubbish_in_counts_and_in_what_servers_say_harms_nobody(open_store: Any, database_url: str) -> None:
    # given
    store, other = open_store(), open_store()
    filled(store, job(1))
    other.watch(NOW, 0, b"\x80", all_own=False)

    # when
    say(database_url, "INSERT INTO givalia.counts VALUES ('Sample', 9, 3), ('Sample', -1, 3)")
    say(database_url, "UPDATE givalia.servers SET about = '\\x81a3', terms = '\\xc1', lease_us = 9000000000000000000")

    # then
    assert store.counts() == {("Sample", WAITING): 1}
    assert store.watch(NOW, 0, b"", all_own=False).others == [b""]
    with psycopg.connect(database_url) as connection:
        assert givalia_postgres.enq(connection, "Sample").id


def test_damaged_row_is_raised_to_a_transaction_that_names_it(open_store: Any, database_url: str) -> None:
    # given
    store = open_store()
    filled(store, job(1), job(BAD))
    say(database_url, f"UPDATE givalia.jobs SET params = '' WHERE seq = {BAD}")

    # when, then
    with psycopg.connect(database_url) as connection:
        with pytest.raises(StoreCorrupt, match="does not match its checksum"):
            givalia_postgres.cancel(connection, "k2")
        assert givalia_postgres.cancel(connection, "k1") == "cancelled"


def test_servers_go_on_and_say_it_when_rows_are_damaged(fleet: Fleet, tmp_path: Any) -> None:
    # given
    for _ in range(2):
        fleet.add_server()
    fleet.await_known(2)
    fleet.add_worker("-c", "1")
    client = fleet.client_of()
    for number in range(12):
        client.enq("Note", time=8, params=str(tmp_path / "ran"), key=f"k{number}")

    # when
    for number, damage in enumerate(
        ("record cut", "params flipped", "state unknown", "key changed", "version", "state running")
    ):
        fleet.ask(f"UPDATE givalia.jobs SET {DAMAGES[damage]} WHERE key = 'k{number}' RETURNING 1")
    waiting = "SELECT count(*) FROM givalia.jobs WHERE state < 2 OR state > 4"
    await_true(lambda: fleet.ask(waiting) == [(0,)] or _met(client), "all others to end, and the bad ones to be met", 30)

    # then
    assert len((tmp_path / "ran").read_text().splitlines()) == 6
    assert all(server.is_alive for server in fleet.servers)
    await_true(lambda: client.info()["store"]["quarantined"] == 6, "info to say it", 10)
    said = [line for server in fleet.servers for line in server.log.splitlines() if "set aside in givalia.quarantine" in line]
    assert len(said) == 6

    # when a server is started again, then it starts, and the check names them
    fleet.servers[0].stop()
    fleet.restart(0)
    assert client.enq("Echo", params=1).wait(10) == 1
    checked = fleet.run("givalia", "store", "check", "--store", fleet.url)
    assert checked.returncode == 65
    assert checked.stderr.count("is in quarantine since") == 6


def _met(client: Any) -> bool:
    """Name the damaged jobs, which nobody else would ask for; False."""
    with suppress(Exception):
        list(client.list())
    return False


def test_counts_are_right_again_while_other_servers_change_them(open_store: Any, database_url: str, caplog: Any) -> None:
    # given
    caplog.set_level(logging.ERROR)
    store, other = open_store(), open_store()
    filled(store, *(job(number) for number in range(1, 40)))

    # when
    for seq in (2, 4, 6):
        say(database_url, f"UPDATE givalia.jobs SET state = 2, module = 'Wrong' WHERE seq = {seq}")
        store.find(Wanted(ids=frozenset({bytes([seq]) * 16})), NOW)
        filled(other, job(100 + seq))
    store.close()

    # then
    end = time.monotonic() + 10
    while other.counts() != {("Sample", WAITING): 39}:
        assert time.monotonic() < end
        with suppress(StoreAway):
            other.tidy()
