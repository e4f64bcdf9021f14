"""The disk of the database is full: reads and all that fits go on, new jobs are refused, and the outage ends by itself."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from engine_rig import EngineRig, uid
from givalia_postgres.connection import Again, Connection, Held, meaning_of
from shared_rig import Make, drive, rest, said, url_of

from givalia_core.clock import SECOND_US
from givalia_core.errors import Busy, StoreAway, StoreFailed, StoreFull, StoreUnfit
from givalia_core.model import CANCELLED, DONE, RUNNING, STORED_STATES
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind

HOUR_US = 3_600 * SECOND_US
TROUBLE = """
CREATE TABLE public.full_for (how text);
CREATE FUNCTION public.trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF EXISTS (SELECT FROM public.full_for f WHERE TG_OP = f.how OR NEW.key LIKE f.how OR NEW.state::text = f.how) THEN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER trouble BEFORE INSERT OR UPDATE ON givalia.jobs FOR EACH ROW EXECUTE FUNCTION public.trouble();
"""


def fill(rig: EngineRig, *how: str) -> None:
    """Leave no room for these statements, these keys, or jobs in this state; for none, there is room again."""
    with psycopg.connect(url_of(rig)) as connection:
        if connection.execute("SELECT to_regclass('public.full_for')").fetchone() == (None,):
            connection.execute(TROUBLE)
        connection.execute("DELETE FROM public.full_for")
        for each in how:
            connection.execute("INSERT INTO public.full_for VALUES (%s)", (each,))


def test_only_what_needs_room_is_refused_while_the_disk_is_full_and_all_of_it_goes_on_when_it_is_not(make: Make) -> None:
    # given
    here = make()
    worker = here.worker(10, "other", "Beat", capacity=1)
    here.enq("Beat", id=uid(7))
    lease = m.NamedLease(uid(7), worker.last.fence)
    for key in ("fits", "bad", "kept"):
        here.enq(key=key, delay_us=HOUR_US)
    fill(here, "INSERT", "bad%")

    # when
    enq = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "new"))
    bad, fits = (here.frame(Kind.CANCEL, m.Cancel(here.fresh_id(), key), conn=n) for n, key in ((2, "bad"), (3, "fits")))
    beat, settle = here.frame(Kind.BEAT, lease, conn=10), here.frame(Kind.SUCCEED, m.Succeed(*lease), conn=10)
    asked = [here.frame(Kind.STAT, m.Stat("bad"), conn=4), here.frame(Kind.LIST, m.List(), conn=5)]
    asked.append(here.frame(Kind.INFO, m.Info(), conn=6))
    here._turn_once(enq, bad, fits, beat, settle, *asked)
    for _ in range(2):
        here._turn_once()

    # then
    assert isinstance(said(here, enq), StoreFull)
    assert said(here, fits) == ("cancelled",)
    assert said(here, beat) == said(here, settle) == ()
    assert here.stored(uid(7)).state is DONE
    drive(here, 0.1)
    assert all(said(here, frame) is not None for frame in asked)
    assert said(here, bad) is None
    assert "no room" in here.stat("bad")["why"]
    assert here.ext("kept", delta_us=5)

    # when there is room again
    fill(here)
    rest(here, 2.1)
    drive(here, 1.0)

    # then
    assert said(here, bad) == ("cancelled",)
    assert here.enq(key="new", delay_us=HOUR_US)[0]


def test_cancel_that_finds_no_room_for_long_is_busy_and_says_so(make: Make) -> None:
    # given
    here = make()
    here.enq(key="bad", delay_us=HOUR_US)
    fill(here, "bad%")

    # when
    bad = here.frame(Kind.CANCEL, m.Cancel(uid(1), "bad"))
    here._turn_once(bad)
    drive(here, 5.5)

    # then
    answer = said(here, bad)
    assert isinstance(answer, Busy)
    assert str(answer).startswith("key bad is kept back, for the disk of the database has no room for the change, since 20")
    assert here.state("bad") == "waiting"


def test_jobs_that_cannot_be_lent_for_want_of_room_are_lent_when_there_is_some(make: Make) -> None:
    # given
    here = make()
    for number in range(1, 101):
        here.enq(id=uid(number), key=f"k{number}", delay_us=SECOND_US)
    fill(here, str(STORED_STATES.index(RUNNING)))
    worker = here.worker(10, capacity=200)

    # when
    rest(here, 1.1)
    turns = drive(here, 5.0)

    # then
    assert worker.jobs == []
    assert turns < 100
    assert here.stat("k1")["state"] == "ready"

    # when
    fill(here)
    rest(here, 2.1)
    drive(here, 6.0)

    # then
    assert len(worker.jobs) == 100
    assert {here.stored(uid(number)).state for number in range(1, 101)} == {RUNNING}


def test_server_that_cannot_say_that_it_is_alive_for_want_of_room_goes_on(make: Make) -> None:
    # given
    here = make()
    here.enq(key="k", delay_us=HOUR_US)
    with psycopg.connect(url_of(here)) as connection:
        words = TROUBLE.replace("givalia.jobs", "givalia.servers")
        connection.execute(words.replace("OR NEW.key LIKE f.how OR NEW.state::text = f.how", ""))
        connection.execute("INSERT INTO public.full_for VALUES ('INSERT'), ('UPDATE')")

    # when
    drive(here, 6.0)

    # then
    assert here.cancel("k") == ("cancelled",)
    assert here.state("k") == CANCELLED


@pytest.mark.parametrize(("code", "meaning"), [("53100", StoreFull), ("55P03", Held)])
@pytest.mark.parametrize("way", ["ask", "alone"])
def test_error_whose_consequences_come_later_is_told_as_it_is_and_costs_no_connection(
    database_url: str, way: str, code: str, meaning: type[Exception]
) -> None:
    # given
    connection = Connection(database_url, "test")
    pid = connection.pid
    fails = f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{code}'; END $$"
    takes_long_to_send = ("SELECT length($1::text)", ["x" * (30 << 20)])

    # when
    with pytest.raises(meaning):
        getattr(connection, way)((fails, ()), takes_long_to_send)

    # then
    assert connection.pid == pid
    assert connection.ask(("SELECT 1", ())) == [[(1,)]]
    connection.close()


class _Said(psycopg.OperationalError):
    """An error as PostgreSQL sends it."""

    def __init__(self, state: str, function: str) -> None:
        self._state, self._function = state, function
        super().__init__("no room")

    sqlstate = property(lambda self: self._state)  # type: ignore[assignment]

    @property
    def diag(self) -> Any:
        class Diag:
            message_primary = "could not extend file: Disk quota exceeded"
            source_function = self._function
            constraint_name = None

        return Diag()


@pytest.mark.parametrize(
    ("state", "function", "meaning"),
    [
        ("53100", "mdextend", StoreFull),
        ("58030", "mdzeroextend", StoreFull),
        ("58030", "mdwritev", StoreAway),
        ("XX000", "FileWriteV", StoreFull),
        ("XX000", "mdwritev", StoreFull),
        ("XX000", "mdcreate", StoreFull),
        ("XX000", "SlruReportIOError", StoreFull),
        ("XX000", "OpenTemporaryFileInTablespace", StoreFull),
        ("53200", "ShmemAlloc", Again),
        ("53400", "FileWrite", Again),
        ("25P04", "ProcessInterrupts", StoreAway),
        ("42P07", "heap_create_with_catalog", StoreUnfit),
        ("XX000", "heap_update", StoreFailed),
    ],
)
def test_error_of_the_database_means_as_much_as_it_says(state: str, function: str, meaning: type[Exception]) -> None:
    assert type(meaning_of(_Said(state, function))) is meaning
