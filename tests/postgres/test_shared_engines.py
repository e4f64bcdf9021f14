"""Two engines on one database, batch by batch on a clock that tests set: the decisions of one while the other decides.

The clock also advances by the real time of each call to the store: an engine that waits for a lock loses that time, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import givalia_postgres
import psycopg
import pytest
from engine_rig import EngineRig, uid
from givalia_postgres import Postgres
from postgres_rig import Postgres as Rig
from shared_rig import Make, await_news, rest, url_of

from givalia_core.clock import SECOND_US
from givalia_core.engine.records import Gone
from givalia_core.errors import BadRequest, Busy, DuplicateKey, StoreUnfit, WrongState
from givalia_core.model import DONE, RUNNING, WAITING
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import VARIANTS_MAX
from givalia_core.views import text_id


def before_commit(rig: EngineRig, act: Callable[[], object]) -> None:
    """Let something happen between the next decision of an engine and its commit."""
    right = rig.store.commit

    def commit(*values: Any) -> Any:
        rig.store.commit = right  # type: ignore[method-assign]
        act()
        return right(*values)

    rig.store.commit = commit  # type: ignore[method-assign]


def hear(*rigs: EngineRig) -> None:
    """Let the notifications of these rigs arrive, and take a turn."""
    for rig in rigs:
        rig.store.tidy()
    await_news(*rigs)
    for rig in rigs:
        rig.turn()


def test_fences_grow_over_servers_whatever_makes_a_job_ready(make: Make) -> None:
    # given
    rigs = [make(), make(), make()]
    job_id = rigs[0].enq(key="k", delay_us=3_600 * SECOND_US)[0]
    rigs[0].cancel("k")
    fences = []

    # when it is lent by one server after the other, each time in a batch that asked for no job to lend
    for number, rig in enumerate((rigs[1], rigs[0], rigs[2], rigs[1]), 10):
        worker = rig.worker(number, capacity=1)
        rig.tick(1)
        rig.requeue("k")
        fences.append(next(each.fence for each in worker.jobs[::-1] if each.id == job_id))
        rig.ask(Kind.FAIL, m.FailReport(job_id, fences[-1], "failed", "no", None, True), conn=number)
        rig.turn(Gone(number))

    # then
    assert fences == sorted(set(fences))


def test_whoever_was_told_of_a_job_that_came_to_nothing_is_told_anew(make: Make) -> None:
    # given
    here, there = make(), make()
    taken: list[bytes] = []
    before_commit(here, lambda: taken.append(there.enq(key="k", delay_us=SECOND_US)[0]))

    # when
    first = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", SECOND_US, "k"))
    kept = here.frame(Kind.ENQ, m.Enq(uid(2), "Mail", SECOND_US, "k", if_exists="keep"), conn=2)
    resent = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", SECOND_US, "k"), conn=3)
    answers = here.batch(first, kept, resent)

    # then
    assert isinstance(answers[0][0], DuplicateKey)
    assert answers[1][0][0] == taken[0]
    assert isinstance(answers[2][0], DuplicateKey)


def test_success_reported_twice_while_another_server_settles_is_no_success(make: Make) -> None:
    # given
    here, there = make(), make()
    worker = here.worker(10)
    job_id = here.enq()[0]
    fence = worker.last.fence
    there.worker(11, capacity=0, instance=uid(10))
    before_commit(here, lambda: there.ask(Kind.FAIL, m.FailReport(job_id, fence, "failed", "lost", 3_600 * SECOND_US), conn=11))

    # when
    frames = [here.frame(Kind.SUCCEED, m.Succeed(job_id, fence, None, b"1"), conn=conn) for conn in (10, 12)]
    answers = here.batch(*frames)

    # then
    assert [type(each[0]).__name__ for each in answers] == ["Stale", "Stale"]
    assert here.stored(job_id).state is WAITING


def test_cancel_sent_twice_while_another_server_lends_says_no_twice(make: Make) -> None:
    # given
    here, there = make(), make()
    job_id = here.enq()[0]
    before_commit(here, lambda: there.worker(20))

    # when
    frames = [here.frame(Kind.CANCEL, m.Cancel(uid(9), None, job_id), conn=conn) for conn in (5, 6)]
    answers = here.batch(*frames)

    # then
    assert [type(each[0]) for each in answers] == [WrongState, WrongState]
    assert here.stored(job_id).state is RUNNING


def test_wait_that_is_asked_again_is_answered_once(make: Make) -> None:
    # given
    here, there = make(), make()
    job_id = here.enq(delay_us=3_600 * SECOND_US)[0]
    before_commit(here, lambda: there.cancel(id=job_id))

    # when
    waiting = here.frame(Kind.WAIT, m.Wait(None, job_id), conn=5)
    here.turn(waiting, here.frame(Kind.EXT, m.Ext(uid(9), None, job_id, delta_us=5), conn=6))
    here.tick(1)

    # then the rig would have said so if it had been answered twice
    assert here.answers(waiting) == [("cancelled",)]


def test_commands_of_a_frame_that_took_effect_are_not_done_again_for_the_one_that_did_not(make: Make) -> None:
    # given
    here, there = make(), make()
    one, two = (here.enq(key=key, delay_us=3_600 * SECOND_US)[0] for key in "ab")
    before = here.stored(one).due_at_us
    before_commit(here, lambda: there.ext("b", delta_us=1))

    # when
    frame = here.frame(
        Kind.EXT,
        *(m.Ext(uid(100 + number), "a", delta_us=SECOND_US) for number in range(6)),
        m.Ext(uid(200), "b", delta_us=1),
    )
    here.turn(frame)

    # then
    assert len(here.answers(frame)) == 7
    assert here.stored(one).due_at_us - before == 6 * SECOND_US
    assert here.stored(two).version == 3


def test_requeue_of_a_key_that_an_open_transaction_takes_waits_alone(make: Make) -> None:
    # given
    (here,) = (make(),)
    here.enq(key="k", delay_us=SECOND_US)
    here.cancel("k")
    with psycopg.connect(url_of(here)) as connection:
        givalia_postgres.enq(connection, "Mail", time=60, key="k")

        # when
        requeue = here.frame(Kind.REQUEUE, m.Requeue(uid(9), "k"))
        enq = here.frame(Kind.ENQ, m.Enq(uid(1), "Mail", SECOND_US, "other"), conn=2)
        for inputs in ((requeue, enq), (), ()):
            here._turn_once(*inputs)

        # then
        assert here.answers(enq)[0][0] == uid(1)
        assert (1, requeue.request) not in here.replies
    rest(here, 0.3)
    here.turn()
    assert isinstance(here.answers(requeue)[0], DuplicateKey)


def test_lease_of_a_server_that_left_lasts_as_long_as_its_worker_was_told(make: Make) -> None:
    # given
    here, there = make(lease_us=300 * SECOND_US), make(lease_us=5 * SECOND_US)
    here.worker(10)
    job_id = here.enq()[0]
    here.tick(3)
    there.tick(1)

    # when
    here.store.close()
    there.tick(20)

    # then
    assert there.stored(job_id).state is RUNNING
    there.tick(290)
    assert there.stored(job_id).state is WAITING


def test_worker_that_resumes_while_its_job_is_locked_is_not_lent_the_same_job_again_and_again(make: Make) -> None:
    # given a worker with one job, a second one ready, and the transaction of the first one's own code open
    here, there = make(), make()
    worker = here.worker(10, capacity=1, instance=uid(777))
    first = here.enq()[0]
    second = here.enq()[0]
    fence = worker.last.fence
    there.tick(3)
    with psycopg.connect(url_of(here)) as connection:
        Postgres.complete_in(connection, first, fence)
        here.turn(Gone(10))

        # when it comes to another server
        frames = [
            there.frame(Kind.JOIN, m.Join("any", uid(777)), conn=20),
            there.frame(Kind.ANNOUNCE, m.Announce("Mail", "d", "1"), conn=20),
            there.frame(Kind.RESUME, m.NamedLease(first, fence), conn=20),
            there.frame(Kind.CREDIT, m.Credit(2), conn=20),
        ]
        there._turn_once(*frames)
        pauses: list[int] = []
        for _ in range(20):
            there.clock.advance(us=10_000)
            there._turn_once()
            pauses.append(there.engine.wake_in_us(there.now))
    assert all(pauses[2:])  # It does not spin meanwhile.
    there.tick(1)

    # then
    assert [each.job.id for each in there.dispatched[20]] == [second]
    assert [type(each) for each in there.answers(frames[2])] == [Busy]
    assert there.stored(first).state is DONE


def test_worker_that_comes_back_to_a_server_which_lost_every_hint_is_looked_after_there(make: Make) -> None:
    # given
    here, there = make(lease_us=6 * SECOND_US), make(lease_us=6 * SECOND_US)
    worker = here.worker(10, capacity=200, instance=uid(777))
    ids = [here.enq()[0] for _ in range(160)]
    here.tick(1)
    fences = {each.id: each.fence for each in worker.jobs}
    holds = [m.NamedLease(job_id, fences[job_id]) for job_id in ids]

    # when it goes to the other server and comes back
    for rig, conn, before in ((there, 20, None), (here, 11, there)):
        if before is not None:
            before.turn(Gone(20))
        rig.turn(
            rig.frame(Kind.JOIN, m.Join("any", uid(777)), conn=conn),
            rig.frame(Kind.ANNOUNCE, m.Announce("Mail", "d", "1"), conn=conn),
        )
        assert rig.ask(Kind.RESUME, *holds, conn=conn) == [()] * 160

    # then
    assert {here.stored(job_id).keeper for job_id in ids} == {here.engine.desk.me}
    for _ in range(12):
        here.clock.advance(us=SECOND_US)
        assert here.ask(Kind.BEAT, *holds, conn=11) == [()] * 160
        there.turn()
    assert {here.stored(job_id).state for job_id in ids} == {RUNNING}


def test_hooks_are_called_by_a_server_that_has_them(make: Make) -> None:
    # given
    here, there = make(), make()
    here.engine.desk.listening, there.engine.desk.listening = frozenset(), frozenset({"on_enq"})
    here.tick(3)
    there.tick(3)

    # when
    with psycopg.connect(url_of(here)) as connection:
        givalia_postgres.enq(connection, "Mail", time=60)
    here.tick(3)
    there.tick(3)

    # then
    assert (len(here.hooks), len(there.hooks)) == (0, 1)


@pytest.mark.parametrize(
    "words", ['{"n":[["a","b",1e999]]}', "no json", '{"c":["no id"]}', "[" * 5_000, '{"r":[["a"]]}', "[1]"]
)
def test_somebody_elses_words_on_the_channel_are_no_harm(make: Make, words: str) -> None:
    # given
    here, there = make(), make()
    here.worker(10)
    hear(here, there)

    # when
    with psycopg.connect(url_of(here), autocommit=True) as connection:
        connection.execute("SELECT pg_notify('givalia', %s)", (words,))
    hear(here, there)

    # then
    job_id = there.enq()[0]
    hear(there, here)
    assert here.stored(job_id).state is RUNNING


def test_connections_that_nothing_can_be_decided_on_are_refused(make: Make) -> None:
    here = make()
    with psycopg.connect(url_of(here), client_encoding="latin1") as connection, pytest.raises(BadRequest, match="UTF8"):
        givalia_postgres.enq(connection, "Mail", key="ü")
    with psycopg.connect(url_of(here)) as connection, connection.pipeline(), pytest.raises(BadRequest, match="pipeline"):
        givalia_postgres.enq(connection, "Mail")


def test_database_that_cannot_hold_any_text_is_refused(postgres: Rig) -> None:
    # given
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute("CREATE DATABASE narrow ENCODING 'LATIN1' TEMPLATE template0")

    # when, then
    with pytest.raises(StoreUnfit, match="LATIN1"):
        Postgres(postgres.url("narrow")).open()


def test_job_with_a_version_is_lent_by_whichever_server_has_a_worker_for_it(make: Make) -> None:
    # given
    here, there = make(), make()
    old = here.worker(10, "old", m.Announce("Mail", "d", "1.4"), capacity=9)
    new = there.worker(20, "new", m.Announce("Mail", "d", "2.0"), capacity=9)
    here.tick(3)
    there.tick(3)
    here.tick(3)

    # when it is enqueued at the one without it, for now and for later
    here.enq(id=uid(1), version=">=2")
    hear(here, there)
    here.enq(id=uid(2), version=">1.9", delay_us=SECOND_US)
    hear(here, there)
    assert new.ids == [uid(1)]
    there.clock.advance(us=SECOND_US)
    there.turn()

    # then
    assert new.ids == [uid(1), uid(2)]
    assert old.ids == []
    assert "no worker has Mail >=3; connected: old with 1.4, new with 2.0" in why(here, version=">=3")


def why(rig: EngineRig, **asked: Any) -> str:
    """Return the explanation for a ready job that no worker takes."""
    rig.enq(id=uid(777), **asked)
    return str(rig.stat(id=uid(777))["why"])


def test_version_of_which_no_news_came_is_found_by_looking(make: Make) -> None:
    # given
    here, there = make(), make()
    new = there.worker(20, "new", m.Announce("Mail", "d", "2.0"), capacity=9)
    there.tick(1)
    here.enq(id=uid(1), version=">=2")
    # when what was said is lost
    here.store.tidy()
    await_news(there)
    assert isinstance(there.store, Postgres)
    there.store.news()
    assert new.ids == []

    # then
    there.tick(3)
    assert new.ids == [uid(1)]


def test_too_many_different_versions_are_refused_in_a_transaction_too(make: Make) -> None:
    # given
    here = make()
    here.ask(Kind.ENQ, *(m.Enq(uid(number), "Mail", version=f">={number}") for number in range(1, VARIANTS_MAX + 1)))

    # when
    with psycopg.connect(url_of(here)) as connection:
        with pytest.raises(Busy):
            givalia_postgres.enq(connection, "Mail", version="<9")
        job = givalia_postgres.enq(connection, "Mail", version=">=3", time=60, key="k")

    # then
    assert here.stat("k")["version"] == ">=3"
    assert text_id(here.stat("k")["id"]) == job.id
