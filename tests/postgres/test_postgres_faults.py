"""The database restarts, crashes, ends connections, refuses and is full (F28): no promise is broken, and the work goes on."""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_fleet import Fleet
from postgres_rig import Postgres as Rig
from system_install import Installed
from system_rig import lines_of
from waits import await_true

from givalia_core import Client, DuplicateKey, WrongState
from givalia_core.errors import Busy, GivaliaError, StoreFull

LOAD_LEAST = 30  # Jobs.
LOAD_S = 3.5


@pytest.fixture(scope="module")
def own() -> Iterator[Rig]:
    """A database server that these tests may do anything to."""
    with Rig.start() as rig:
        yield rig


@pytest.fixture
def fleet(own: Rig, shared: Installed, tmp_path: Path) -> Iterator[Fleet]:
    """Two servers with a worker each, on that."""
    own.start_again()
    with Fleet(shared, tmp_path, own.create_database()) as fleet:
        for _ in range(2):
            fleet.add_server("--lease", "5")
        fleet.await_known(2)
        for place in range(2):
            fleet.add_worker("-c", "20", at=[place, 1 - place])
        fleet.client_of().enq("Echo").wait(10)
        yield fleet


class Load:
    """Jobs through all servers for a while; what was answered, and what was refused."""

    def __init__(self, fleet: Fleet, ran: Path) -> None:
        self._client = fleet.client_of()
        self._ran = str(ran)
        self._end = time.monotonic() + LOAD_S
        self.acknowledged: dict[str, float] = {}
        self.cancelled: dict[str, float] = {}
        self.refused: list[GivaliaError] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        # For a while, and on a machine that does much else until there is something to look at.
        while (left := self._end - time.monotonic()) > 0 or (len(self.acknowledged) <= LOAD_LEAST and left > -LOAD_S):
            try:
                job = self._client.enq("Note", time=random.choice((0, 0.3, 1)), params=self._ran)
                self.acknowledged[job.id] = job.due.timestamp()
                if random.random() < 0.1 and job.cancel() == "cancelled":
                    self.cancelled[job.id] = time.time()
            except WrongState:
                pass  # It was faster than its cancel.
            except GivaliaError as error:
                self.refused.append(error)
            time.sleep(0.005)  # The pace of the load.

    def await_acknowledged(self) -> None:
        """Wait until the load is under way."""
        await_true(lambda: len(self.acknowledged) >= LOAD_LEAST, "jobs to be acknowledged")

    def await_refused(self) -> None:
        """Wait until another job was refused, or the load is over."""
        before = len(self.refused)
        await_true(lambda: len(self.refused) > before or not self.thread.is_alive(), "a job to be refused")

    def check(self, fleet: Fleet, ran: Path) -> None:
        """Every job that was acknowledged has run, in its time and once, unless it was cancelled before."""
        self.thread.join(60)
        live = "SELECT count(*) FROM givalia.jobs WHERE state < 2"
        await_true(lambda: fleet.ask(live) == [(0,)], "every job to end", seconds=40, every=0.1)
        states = dict(fleet.ask("SELECT id::text, state FROM givalia.jobs WHERE module = 'Note'"))
        starts = [(words[0], float(words[1])) for words in lines_of(ran)]
        started = {job for job, _ in starts}
        assert len(self.acknowledged) > LOAD_LEAST
        assert {job for job in self.acknowledged if states.get(job) != 2} <= self.cancelled.keys()
        assert started >= self.acknowledged.keys() - self.cancelled.keys()
        assert {job for job, at in starts if at > self.cancelled.get(job, at)} == set()
        assert {job for job, at in starts if at < self.acknowledged.get(job, at)} == set()
        assert fleet.check() == []


def end_connections(own: Rig, _: Fleet, __: Load) -> None:
    own.kill_backends()


def kill_a_backend(own: Rig, _: Fleet, __: Load) -> None:
    own.kill_backends(crash=True)


def restart_fast(own: Rig, _: Fleet, __: Load) -> None:
    own.restart("fast")


def restart_immediately(own: Rig, _: Fleet, __: Load) -> None:
    own.restart("immediate")


def be_gone_for_a_while(own: Rig, fleet: Fleet, load: Load) -> None:
    own.stop("immediate")
    load.await_refused()
    own.start_again()


def lose_all_news(own: Rig, fleet: Fleet, _: Load) -> None:
    for _ in range(10):
        fleet.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'givalia listener'")
        time.sleep(0.1)  # For a second, servers whose listeners come back lose them again.


def be_a_standby_for_a_while(own: Rig, fleet: Fleet, load: Load) -> None:
    for mode in ("on", "off"):
        with psycopg.connect(fleet.url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {mode}")
            connection.execute("SELECT pg_reload_conf()")
        if mode == "on":
            load.await_refused()


FAULTS: tuple[Callable[[Rig, Fleet, Load], None], ...] = (
    end_connections, kill_a_backend, restart_fast, restart_immediately, be_gone_for_a_while, be_a_standby_for_a_while,
    lose_all_news,
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost_or_hurried_by(own: Rig, fleet: Fleet, fault: Any, tmp_path: Path) -> None:
    # given
    load = Load(fleet, tmp_path / "ran")
    load.await_acknowledged()

    # when
    fault(own, fleet, load)

    # then
    load.check(fleet, tmp_path / "ran")
    assert {type(error) for error in load.refused} <= {Busy}
    assert all(server.is_alive for server in fleet.servers)


def test_client_is_told_to_come_again_while_the_database_is_away_and_a_waiter_is_answered_later(
    own: Rig, fleet: Fleet, tmp_path: Path
) -> None:
    # given
    client = fleet.client_of()
    started = tmp_path / "started"
    job = client.enq("Stay", params={"file": str(started), "seconds": 2})
    await_true(lambda: lines_of(started), "the job to start")
    results: list[object] = []
    waiter = threading.Thread(target=lambda: results.append(job.wait(30)))
    waiter.start()

    # when
    own.stop("immediate")
    began = time.monotonic()
    with pytest.raises(Busy) as refused:
        fleet.client_of().enq("Echo")
    seconds = time.monotonic() - began
    time.sleep(1)  # The job ends while the database is away: it stays for 2 s, and the refusal took one.
    own.start_again()

    # then
    assert refused.value.retry_after == 1
    assert 0.5 < seconds < 4
    waiter.join(30)
    assert results == [1]
    assert client.enq("Echo", params=3).wait(10) == 3


def test_standby_takes_over_and_nothing_that_was_acknowledged_is_lost(shared: Installed, tmp_path: Path) -> None:
    # given
    with Rig.start() as primary:
        name = primary.create_database().rpartition("/")[2]
        with primary.standby() as standby:
            url = f"postgresql://postgres@127.0.0.1:{primary.port},127.0.0.1:{standby.port}/{name}"
            with Fleet(shared, tmp_path, url) as fleet:
                for _ in range(2):
                    fleet.add_server("--lease", "5")
                    fleet.add_worker("-c", "20")
                fleet.client_of().enq("Echo").wait(10)
                load = Load(fleet, tmp_path / "ran")
                load.await_acknowledged()

                # when
                primary.stop("immediate")
                standby.promote()

                # then
                load.check(fleet, tmp_path / "ran")
                assert {type(error) for error in load.refused} <= {Busy}


def test_client_is_told_to_come_again_while_a_statement_hangs(own: Rig, fleet: Fleet) -> None:
    # given
    client = fleet.client_of(0)
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'givalia' AND datname = current_database()"
    pids = [pid for (pid,) in fleet.ask(query)]
    assert len(pids) == 2

    # when
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        first = threading.Thread(target=lambda: fleet.client_of(0).enq("Echo"))
        first.start()  # This one may be under way when it begins to hang.
        time.sleep(0.5)  # Nothing tells when the server has begun the statement that hangs.
        began = time.monotonic()
        with pytest.raises(Busy):
            client.enq("Echo")
        seconds = time.monotonic() - began
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    # then
    assert seconds < 8
    first.join(30)
    assert client.enq("Echo", params=5).wait(20) == 5


TROUBLE = """
CREATE TABLE public.trouble (code text, share float8);
CREATE FUNCTION public.trouble() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE code text; BEGIN
    SELECT t.code INTO code FROM public.trouble t WHERE random() < t.share;
    IF code IS NOT NULL THEN RAISE EXCEPTION 'trouble' USING ERRCODE = code; END IF;
    RETURN NULL;
END $$;
"""


@pytest.mark.parametrize("moment", ["in the statement", "at the commit"])
@pytest.mark.parametrize("code", ["40001", "40P01"])
def test_transactions_that_the_database_wants_again_are_done_again(
    own: Rig, fleet: Fleet, tmp_path: Path, code: str, moment: str
) -> None:
    # given
    late = moment == "at the commit"
    kind = "CONSTRAINT TRIGGER trouble AFTER INSERT OR UPDATE" if late else "TRIGGER trouble AFTER INSERT OR UPDATE"
    when = "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW" if late else "FOR EACH STATEMENT"
    with psycopg.connect(fleet.url) as connection:
        connection.execute(TROUBLE)
        connection.execute(f"CREATE {kind} ON givalia.jobs {when} EXECUTE FUNCTION public.trouble()")
        # Of rows; of statements. With more of them some transaction of the many fails at each of its tries.
        connection.execute("INSERT INTO public.trouble VALUES (%s, %s)", (code, 0.02 if late else 0.05))

    # when
    load = Load(fleet, tmp_path / "ran")

    # then
    load.check(fleet, tmp_path / "ran")
    assert load.refused == []


def test_full_disk_refuses_new_jobs_alone_and_for_no_longer_than_it_is_full(own: Rig, fleet: Fleet, tmp_path: Path) -> None:
    # given
    client = fleet.client_of(0)
    kept = client.enq("Note", time=2, params=str(tmp_path / "ran"))
    other = client.enq("Note", time=60, params="")
    with psycopg.connect(fleet.url) as connection:
        connection.execute(TROUBLE)
        connection.execute(
            "CREATE TRIGGER trouble AFTER INSERT ON givalia.jobs FOR EACH STATEMENT EXECUTE FUNCTION public.trouble()"
        )
        connection.execute("INSERT INTO public.trouble VALUES ('53100', 1)")

    # when, then
    with pytest.raises(StoreFull):
        client.enq("Echo")
    assert other.cancel() == "cancelled"
    await_true(lambda: kept.stat().state == "done", "what was there to go on", 10)

    # when
    fleet.ask("UPDATE public.trouble SET share = 0 RETURNING 1")

    # then
    await_true(lambda: _takes(client), "room again", 10, every=0.2)


def _takes(client: Client) -> bool:
    try:
        return bool(client.enq("Echo").id)
    except StoreFull:
        return False


def test_key_that_an_open_transaction_is_about_to_take_holds_up_nobody_else(fleet: Fleet) -> None:
    # given
    import givalia_postgres

    client, other = fleet.client_of(0), fleet.client_of(0)
    there = client.enq("Note", time=60, params="", key="there")
    outcome: list[object] = []
    with psycopg.connect(fleet.url) as connection:
        mine = givalia_postgres.enq(connection, "Note", time=60, key="mine")
        givalia_postgres.cancel(connection, "there")

        # when
        def take() -> None:
            for act in (lambda: client.enq("Note", key="mine"), lambda: client.ext("there", 5)):
                try:
                    outcome.append(act())
                except GivaliaError as error:
                    outcome.append((error.code, getattr(error, "id", getattr(error, "state", None))))

        thread = threading.Thread(target=take)
        thread.start()
        took: list[float] = []
        for number in range(100):
            began = time.monotonic()
            assert other.enq("Echo", params=number, key=f"other-{number}").wait(10) == number
            took.append(time.monotonic() - began)

        # then
        assert outcome == []
        # Some meet a try of the held key, which waits a tenth of a second for it, and the disk may stall; most meet nothing.
        assert statistics.median(took) < 0.1
    thread.join(10)
    assert outcome[0] == ("DUPLICATE_KEY", mine.id)
    assert outcome[1] in (("NOT_FOUND", None), ("WRONG_STATE", "cancelled"))
    assert client.stat(id=there.id).state == "cancelled"


def test_transaction_that_is_open_for_longer_than_a_lease_costs_no_other_job_its_lease(fleet: Fleet, tmp_path: Path) -> None:
    # given a long job at each server, and clients that ask for what a transaction holds
    import givalia_postgres

    started = tmp_path / "started"
    client = fleet.client_of()
    long = [client.enq("Stay", params={"file": str(started), "seconds": 9}) for _ in range(4)]
    await_true(lambda: len(lines_of(started)) == 4, "the jobs to start")
    ended = threading.Event()
    refused: list[GivaliaError] = []

    def ask(asking: Client, number: int) -> None:
        while not ended.is_set():
            try:
                asking.enq("Note", key=f"held-{number % 4}", id=None if number % 2 else taken.id)
            except GivaliaError as error:
                refused.append(error)

    with psycopg.connect(fleet.url) as connection:
        for number in range(4):
            givalia_postgres.enq(connection, "Note", time=60, key=f"held-{number}")
        taken = givalia_postgres.enq(connection, "Note", time=60)
        askers = [threading.Thread(target=ask, args=(fleet.client_of(), number)) for number in range(8)]
        for asker in askers:
            asker.start()

        # when
        took: list[float] = []
        end = time.monotonic() + 8
        while time.monotonic() < end:
            began = time.monotonic()
            assert client.enq("Echo", params=1).wait(10) == 1
            took.append(time.monotonic() - began)
            time.sleep(0.05)  # The pace of the load.
        ended.set()
        connection.rollback()
    for asker in askers:
        asker.join(20)

    # then
    assert [job.wait(20) for job in long] == [1] * 4
    assert max(took) < 4  # It was until the transaction ended.
    assert statistics.median(took) < 0.5
    assert type(refused[0]) is Busy
    assert "held by another transaction" in str(refused[0])
    assert {type(error) for error in refused} <= {Busy, DuplicateKey}  # Of those that ask when it has ended, one is first.
    assert fleet.check() == []
