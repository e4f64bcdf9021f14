"""Something outside a server holds a key, a row or a table: only the commands that need it wait, and all others go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import givalia_postgres
import psycopg
import pytest
from engine_rig import EngineRig, uid
from givalia_postgres import Postgres
from shared_rig import Make, drive, rest, said, sift_without_hurry, url_of

from givalia_core.clock import SECOND_US
from givalia_core.engine.records import Gone
from givalia_core.errors import Busy, DuplicateKey, NotFound, StoreAway, StoreUnfit
from givalia_core.model import CANCELLED, DONE, WAITING
from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.views import text_id

HOUR_US = 3_600 * SECOND_US
HELD_S = 5.0
MOST_S = 0.5  # That a turn which finds what is held may cost on a busy machine; it was 0.8 s for each held key.


def by_enq_of_the_key(here: EngineRig, connection: Any) -> Asked:
    givalia_postgres.enq(connection, "Mail", time=60, key="k")
    return here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "k"))


def by_enq_of_the_id(here: EngineRig, connection: Any) -> Asked:
    givalia_postgres.enq(connection, "Mail", time=60, id=text_id(uid(1)))
    return here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US))


def by_enq_of_the_id_of_a_job_with_a_key(here: EngineRig, connection: Any) -> Asked:
    givalia_postgres.enq(connection, "Mail", time=60, id=text_id(uid(1)))
    return here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "another"))


def by_ext(here: EngineRig, connection: Any) -> Asked:
    here.enq(key="k", delay_us=HOUR_US)
    givalia_postgres.ext(connection, "k", 5)
    return here.frame(Kind.EXT, m.Ext(uid(1), "k", delta_us=5))


def by_cancel(here: EngineRig, connection: Any) -> Asked:
    here.enq(key="k", delay_us=HOUR_US)
    givalia_postgres.cancel(connection, "k")
    return here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "k", if_exists="replace"))


def by_requeue_of_a_taken_key(here: EngineRig, connection: Any) -> Asked:
    here.enq(key="k", delay_us=HOUR_US)
    here.cancel("k")
    givalia_postgres.enq(connection, "Mail", time=60, key="k")
    return here.frame(Kind.REQUEUE, m.Requeue(uid(1), "k"))


def by_a_request_id(here: EngineRig, connection: Any) -> Asked:
    for key in ("k", "l"):
        here.enq(key=key, delay_us=HOUR_US)
    givalia_postgres.enq(connection, "Mail", time=60, key="l", id=text_id(uid(1)), if_exists="reschedule")
    return here.frame(Kind.EXT, m.Ext(uid(1), "k", delta_us=5))


def by_a_row_lock(here: EngineRig, connection: Any) -> Asked:
    here.enq(key="k", delay_us=HOUR_US)
    connection.execute("SELECT FROM givalia.jobs WHERE key = 'k' FOR UPDATE")
    return here.frame(Kind.CANCEL, m.Cancel(uid(1), "k"))


def by_a_share_lock(here: EngineRig, connection: Any) -> Asked:
    here.enq(key="k", delay_us=HOUR_US)
    connection.execute("SELECT FROM givalia.jobs WHERE key = 'k' FOR SHARE")
    return here.frame(Kind.CANCEL, m.Cancel(uid(1), "k"))


def by_completing_the_job(here: EngineRig, connection: Any) -> Asked:
    worker = here.worker(20, capacity=1)
    job_id = here.enq(key="k")[0]
    Postgres.complete_in(connection, job_id, worker.last.fence)
    return here.frame(Kind.FAIL, m.FailReport(job_id, worker.last.fence, "failed", "no"), conn=20)


WAYS: tuple[Callable[[EngineRig, Any], Asked], ...] = (
    by_enq_of_the_key, by_enq_of_the_id, by_enq_of_the_id_of_a_job_with_a_key, by_ext, by_cancel, by_requeue_of_a_taken_key,
    by_a_request_id, by_a_row_lock, by_a_share_lock, by_completing_the_job,
)  # fmt: skip


def seconds_of(rig: EngineRig, *frames: Asked) -> float:
    """Decide these in one turn; what it cost by the clock."""
    began_us = rig.now.mono_us
    rig._turn_once(*frames)
    return (rig.now.mono_us - began_us) / SECOND_US


@pytest.mark.parametrize("way", WAYS)
def test_command_that_an_open_transaction_holds_waits_alone_and_is_decided_when_that_ends(
    make: Make, monkeypatch: pytest.MonkeyPatch, way: Any
) -> None:
    # given
    here = make()
    sift_without_hurry(monkeypatch)
    busy = here.worker(10, "other", "Beat", capacity=1)
    here.enq("Beat", id=uid(7))
    lease = m.NamedLease(uid(7), busy.last.fence)
    with psycopg.connect(url_of(here)) as connection:
        held = way(here, connection)

        # when
        beat, settle = here.frame(Kind.BEAT, lease, conn=10), here.frame(Kind.SUCCEED, m.Succeed(*lease), conn=10)
        other = here.frame(Kind.ENQ, m.Enq(uid(2), "Mail", HOUR_US, "other"), conn=2)
        took = seconds_of(here, held, beat, settle, other)

        # then all others are decided in the same turn
        assert said(here, beat) == said(here, settle) == ()
        assert said(here, other)[0] == uid(2)
        assert here.stored(uid(7)).state is DONE
        assert took < MOST_S
        # and the one that waits costs hardly anything
        assert drive(here, 2.0) < 40
        assert said(here, held) is None
        connection.rollback()

    # when, then
    rest(here, 0.3)
    drive(here, 1.0)
    assert said(here, held) is not None
    assert not isinstance(said(here, held), Exception)


@pytest.mark.parametrize(
    ("way", "name"), [(by_enq_of_the_key, "key k"), (by_enq_of_the_id_of_a_job_with_a_key, "id "), (by_ext, "key k")]
)
def test_command_that_is_held_for_too_long_is_busy_and_told_what_is_held_since_when(make: Make, way: Any, name: str) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        held = way(here, connection)

        # when
        here._turn_once(held)
        drive(here, HELD_S + 0.5)

        # then
        answer = said(here, held)
        assert isinstance(answer, Busy)
        assert str(answer).startswith(f"{name}")
        assert "is held by another transaction that is still open, since 20" in str(answer)
        assert answer.retry_after == 1.0


def test_stat_says_what_is_held_since_when(make: Make) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        here._turn_once(by_ext(here, connection))
        givalia_postgres.enq(connection, "Mail", time=60, key="new")
        here._turn_once(here.frame(Kind.ENQ, m.Enq(uid(2), "Mail", HOUR_US, "new"), conn=2))

        # when, then
        words = "is held by another transaction that is still open, since 20"
        assert f"; key k {words}" in here.stat("k")["why"]
        unknown = here.stat("new")
        assert isinstance(unknown, NotFound)
        assert f"; key new {words}" in str(unknown)


def test_held_job_can_be_asked_about_although_its_time_to_expire_has_passed(make: Make) -> None:
    # given
    here = make()
    job_id = here.enq(key="k", expires_us=SECOND_US)[0]
    with psycopg.connect(url_of(here)) as connection:
        connection.execute("SELECT FROM givalia.jobs WHERE key = 'k' FOR UPDATE")
        rest(here, 1.1)

        # when
        stat, listed = here.frame(Kind.STAT, m.Stat("k")), here.frame(Kind.LIST, m.List(), conn=2)
        here._turn_once(stat, listed)
        drive(here, 0.2)

        # then
        assert said(here, stat)[0]["state"] == "ready"
        assert said(here, listed) is not None
    assert here.stored(job_id).state is WAITING


def test_many_keys_that_are_held_at_once_hold_up_no_other_for_long(make: Make) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        for number in range(100):
            givalia_postgres.enq(connection, "Mail", time=60, key=f"k{number}")

        # when
        frames = [here.frame(Kind.ENQ, m.Enq(uid(n), "Mail", HOUR_US, f"k{n % 200}"), conn=n) for n in range(1, 401)]
        together = here.frame(Kind.ENQ, *(m.Enq(uid(n), "Mail", HOUR_US, f"k{n}") for n in range(500, 700)), conn=999)
        here._turn_once(*frames, together)
        drive(here, 2.0)

        # then
        assert {n for n in range(1, 401) if said(here, frames[n - 1]) is None} == {n for n in range(1, 401) if n % 200 < 100}
        assert len(here.answers(together)) == 200

        # when all of them are known
        more = [here.frame(Kind.ENQ, m.Enq(uid(1_000 + n), "Mail", HOUR_US, f"k{n}"), conn=n) for n in range(1, 101)]
        other = here.frame(Kind.ENQ, m.Enq(uid(2_000), "Mail", HOUR_US, "other"), conn=2_000)

        # then they cost others nothing
        assert seconds_of(here, *more[:99], other) < MOST_S
        assert said(here, other)[0] == uid(2_000)
    rest(here, 0.3)
    drive(here, 1.0)
    assert {type(said(here, frame)) for frame in more[:99]} == {DuplicateKey}


def test_held_keys_are_found_in_a_database_without_plpgsql(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    here = make()
    sift_without_hurry(monkeypatch)
    with psycopg.connect(url_of(here)) as connection:
        connection.execute("DROP EXTENSION plpgsql")
    with psycopg.connect(url_of(here)) as connection:
        for number in range(3):
            givalia_postgres.enq(connection, "Mail", time=60, key=f"k{number}")

        # when
        frames = [here.frame(Kind.ENQ, m.Enq(uid(n), "Mail", HOUR_US, f"k{n}"), conn=n + 1) for n in range(20)]
        here._turn_once(*frames)
        drive(here, 0.5)

        # then
        assert [n for n, frame in enumerate(frames) if said(here, frame) is None] == [0, 1, 2]


def test_commands_of_a_frame_that_are_not_held_stand_while_the_held_one_waits(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    here = make()
    sift_without_hurry(monkeypatch)
    with psycopg.connect(url_of(here)) as connection:
        givalia_postgres.enq(connection, "Mail", time=60, key="k2")

        # when
        frame = here.frame(Kind.ENQ, *(m.Enq(uid(n), "Mail", HOUR_US, f"k{n}") for n in range(1, 5)))
        here._turn_once(frame)

        # then
        assert {here.stat(f"k{n}")["state"] for n in (1, 3, 4)} == {"waiting"}
        drive(here, HELD_S + 0.5)
        assert [type(answer) for answer in here.answers(frame)] == [tuple, Busy, tuple, tuple]


def test_command_that_is_held_is_dropped_with_its_connection(make: Make) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        held = by_enq_of_the_key(here, connection)
        here._turn_once(held)

        # when
        here._turn_once(Gone(held.conn))
        connection.rollback()

    # then
    drive(here, 1.0)
    assert isinstance(here.stat("k"), NotFound)


def test_command_whose_commit_may_still_come_through_is_not_refused(make: Make) -> None:
    # given a commit whose answer is lost while its backend goes on
    here = make()
    frame = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "k"))
    with psycopg.connect(url_of(here)) as connection:
        right = here.store.commit

        def lose(*_: Any) -> Any:
            here.store.commit = right  # type: ignore[method-assign]
            givalia_postgres.enq(connection, "Mail", time=3_600, key="k", id=text_id(uid(1)))
            raise StoreAway("the answer is lost")

        here.store.commit = lose  # type: ignore[method-assign]
        with pytest.raises(StoreAway):
            here._turn_once(frame)

        # when it lasts for longer than commands wait
        drive(here, HELD_S + 1)
        assert said(here, frame) is None
        assert here.engine.again.put_off(frozenset({Kind.ENQ})) == []
        connection.commit()

    # then
    rest(here, 0.3)
    drive(here, 0.5)
    assert said(here, frame)[0] == uid(1)


TROUBLE = """
CREATE FUNCTION public.trouble() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.key LIKE 'bad%' THEN {trouble}; END IF;
    RETURN NEW;
END $$;
CREATE {kind} TRIGGER trouble {when} INSERT OR UPDATE ON givalia.jobs {more} FOR EACH ROW EXECUTE FUNCTION public.trouble();
"""
AT_ONCE = {"kind": "", "when": "BEFORE", "more": ""}
AT_COMMIT = {"kind": "CONSTRAINT", "when": "AFTER", "more": "DEFERRABLE INITIALLY DEFERRED"}


def trouble(here: EngineRig, code: str, moment: dict[str, str]) -> None:
    """Let each change of a job whose key begins with `bad` fail like this, or take half a minute."""
    words = "PERFORM pg_sleep(30)" if code == "sleep" else f"RAISE EXCEPTION 'trouble' USING ERRCODE = '{code}'"
    with psycopg.connect(url_of(here)) as connection:
        connection.execute(TROUBLE.format(trouble=words, **moment))


SHARE_LOCK = "LOCK TABLE givalia.jobs IN SHARE MODE"
ADVISORY_LOCK = "SELECT pg_advisory_lock(77)"


@pytest.mark.parametrize("lock", [SHARE_LOCK, ADVISORY_LOCK])
def test_command_that_is_held_by_a_transaction_without_a_number_is_not_tried_all_the_time(make: Make, lock: str) -> None:
    # given a table that is locked, or a trigger that waits for somebody's advisory lock
    here = make()
    here.enq(key="bad", delay_us=HOUR_US)
    with psycopg.connect(url_of(here)) as connection:
        connection.execute(TROUBLE.format(trouble="PERFORM pg_advisory_xact_lock(77)", **AT_ONCE))
    with psycopg.connect(url_of(here)) as connection:
        connection.execute(lock)

        # when
        held = here.frame(Kind.CANCEL, m.Cancel(uid(1), "bad"))
        here._turn_once(held)
        turns = drive(here, 3.0)

        # then
        assert said(here, held) is None
        assert turns < 150

    # then it is decided soon when the lock is free
    rest(here, 0.3)
    drive(here, 0.5)
    assert said(here, held) == ("cancelled",)


@pytest.mark.parametrize("moment", [AT_ONCE, AT_COMMIT], ids=["in the statement", "at the commit"])
@pytest.mark.parametrize("code", ["55P03", "57014", "40001", "40P01", "53200"])
def test_command_that_the_database_keeps_back_waits_alone(
    make: Make, monkeypatch: pytest.MonkeyPatch, code: str, moment: dict[str, str]
) -> None:
    # given
    here = make()
    sift_without_hurry(monkeypatch)
    worker = here.worker(10, "other", "Beat", capacity=1)
    here.enq("Beat", id=uid(7))
    trouble(here, code, moment)

    # when
    bad = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "bad"))
    others = [here.frame(Kind.ENQ, m.Enq(uid(n), "Mail", HOUR_US, f"k{n}"), conn=n) for n in range(20, 30)]
    settle = here.frame(Kind.SUCCEED, m.Succeed(uid(7), worker.last.fence), conn=10)
    took = seconds_of(here, *others[:5], bad, *others[5:], settle)

    # then
    assert said(here, settle) == ()
    assert all(said(here, frame)[0] == uid(frame.conn) for frame in others)
    assert took < MOST_S
    drive(here, HELD_S + 0.5)
    assert isinstance(said(here, bad), Busy)
    assert str(said(here, bad)).startswith("key bad is ")


def test_statement_that_takes_too_long_is_found_and_tried_seldom(make: Make) -> None:
    # given
    here = make()
    trouble(here, "sleep", AT_ONCE)

    # when
    bad = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", HOUR_US, "bad"))
    other = here.frame(Kind.ENQ, m.Enq(uid(2), "Mail", HOUR_US, "other"), conn=2)
    took = seconds_of(here, bad, other)
    if said(here, other) is None:
        took += seconds_of(here)

    # then
    assert said(here, other)[0] == uid(2)
    assert took < 5
    others = [here.frame(Kind.ENQ, m.Enq(uid(n), "Mail", HOUR_US, f"k{n}"), conn=n) for n in range(20, 30)]
    assert sum(seconds_of(here, frame) for frame in others) < 1


def lent_within(here: EngineRig, seconds: float) -> list[bytes]:
    """The jobs that a worker gets once they are due; the server must not try those that it cannot lend all the time."""
    worker = here.worker(10, capacity=100)
    rest(here, 1.1)
    assert drive(here, seconds) < 40 * seconds
    return worker.ids


def test_ready_job_that_cannot_be_written_is_not_lent_again_and_again(make: Make) -> None:
    # given
    here = make()
    here.enq(id=uid(1), key="bad", delay_us=SECOND_US)
    here.enq(id=uid(2), key="good", delay_us=SECOND_US)
    trouble(here, "55P03", AT_ONCE)

    # when, then
    assert lent_within(here, 1.0) == [uid(2)]


def test_large_ready_jobs_that_cannot_be_written_do_not_stand_before_the_others(make: Make) -> None:
    # given more bytes than one look may bring
    here = make()
    for number in range(1, 19):
        here.enq(id=uid(number), key=f"bad{number}", delay_us=SECOND_US, params=bytes(512 << 10))
    here.enq(id=uid(100), key="good", delay_us=SECOND_US)
    trouble(here, "40P01", AT_ONCE)

    # when, then
    assert lent_within(here, 10.0) == [uid(100)]


@pytest.mark.parametrize("mode", ["SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE"])
def test_lock_on_the_table_leaves_questions_and_beats(make: Make, mode: str) -> None:
    # given
    here = make()
    worker = here.worker(10, capacity=1)
    here.enq(id=uid(7))
    lease = m.NamedLease(uid(7), worker.last.fence)
    with psycopg.connect(url_of(here)) as connection:
        connection.execute(f"LOCK TABLE givalia.jobs IN {mode} MODE")

        # when
        changes = [here.frame(Kind.ENQ, m.Enq(uid(n), "Mail", HOUR_US, f"k{n}"), conn=n) for n in range(20, 70)]
        took = seconds_of(here, *changes)
        stat, beat = here.frame(Kind.STAT, m.Stat(id=uid(7))), here.frame(Kind.BEAT, lease, conn=10)
        took += seconds_of(here, stat, beat)

        # then
        assert said(here, stat)[0]["state"] == "running"
        assert said(here, beat) == ()
        assert took < 2 * MOST_S
        drive(here, HELD_S + 0.5)
        assert {type(said(here, frame)) for frame in changes} == {Busy}
        assert "the table of jobs is held by another transaction" in str(said(here, changes[0]))
    rest(here, 0.3)
    drive(here, 0.5)
    assert here.enq(key="k")[0]


def test_row_of_the_server_itself_can_be_locked(make: Make) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        connection.execute("SELECT FROM givalia.servers FOR UPDATE")

        # when
        turns = drive(here, 6.0)

        # then
        assert here.enq(key="k")[0]
        assert turns < 60


def test_server_that_cannot_say_it_is_alive_still_sees_that_its_promise_is_broken(make: Make) -> None:
    # given
    here = make()
    here.turn()
    store = here.store
    assert isinstance(store, Postgres)
    with psycopg.connect(url_of(here)) as connection, psycopg.connect(url_of(here), autocommit=True) as other:
        connection.execute("SELECT FROM givalia.servers FOR UPDATE")
        assert store.watch(here.now, SECOND_US, store._about, all_own=False) is None

        # when
        other.execute("ALTER TABLE givalia.requests SET UNLOGGED")

        # then
        with pytest.raises(StoreUnfit, match="unlogged"):
            store.watch(here.now, SECOND_US, store._about, all_own=False)


def test_cancel_that_waited_for_a_rollback_takes_effect(make: Make) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        held = by_a_row_lock(here, connection)
        here._turn_once(held)
        drive(here, 0.3)
        connection.rollback()

    # when
    drive(here, 2.5)  # What has no number is asked for seldom, the more so the longer the database takes.

    # then
    assert said(here, held) == ("cancelled",)
    assert here.state("k") == CANCELLED


def test_key_that_a_savepoint_took_back_is_free_although_its_transaction_goes_on(make: Make) -> None:
    # given
    here = make()
    with psycopg.connect(url_of(here)) as connection:
        connection.execute("SAVEPOINT s")
        held = by_enq_of_the_key(here, connection)
        here._turn_once(held)
        drive(here, 0.1)
        assert said(here, held) is None

        # when
        connection.execute("ROLLBACK TO SAVEPOINT s")
        rest(here, 0.6)
        drive(here, 0.5)

        # then
        assert said(here, held)[0] == uid(1)
