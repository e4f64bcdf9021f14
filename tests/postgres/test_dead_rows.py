"""Rows that vacuum may not remove yet slow no command, and no job is missed because of them."""

from __future__ import annotations

import os
import random
import time
from typing import Any

import givalia_postgres
import msgpack
import psycopg
import pytest
from engine_rig import EngineRig, WorkerRig, uid
from givalia_postgres import Postgres, reads
from shared_rig import Make, await_news, rest, url_of

from givalia_core.clock import SECOND_US
from givalia_core.model import DONE, RUNNING, JobState
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import ROW_BYTES, SCAN_MAX, Claim, Filter, Route, Wanted
from givalia_core.store.shared import as_shared
from givalia_core.store.suite import changed

HOUR_US = 3_600 * SECOND_US
DEAD = 6_000
PAGES_MOST = 150  # To go down the index for each rank and clock; the dead rows fill 220 more.


def pages_read(rig: EngineRig) -> int:
    """Return the number of pages read so far, of the jobs and of the index of their dues."""
    assert isinstance(rig.store, Postgres)
    rig.store._connection.ask(("SELECT pg_stat_force_next_flush()", ()))
    rig.store._connection.ask(("SELECT 1", ()))
    query = """
    SELECT heap_blks_hit + heap_blks_read + (SELECT idx_blks_hit + idx_blks_read FROM pg_statio_all_indexes
        WHERE indexrelname = 'jobs_due') FROM pg_statio_all_tables WHERE schemaname = 'givalia' AND relname = 'jobs'"""
    with psycopg.connect(url_of(rig), autocommit=True) as connection:
        ((pages,),) = connection.execute(query).fetchall()
    return int(pages)


def run_all(worker: WorkerRig, first: int = 0) -> None:
    """The worker is done with what it was given since then."""
    done = [m.Succeed(job.id, job.fence, None, b"") for job in worker.jobs[first:]]
    for start in range(0, len(done), 1_000):
        worker.ask(Kind.SUCCEED, *done[start : start + 1_000])


def test_jobs_that_ran_while_a_snapshot_is_open_cost_the_next_ones_nothing(make: Make) -> None:
    # given many that waited, and ran
    here = make()
    ids = [uid(number) for number in range(1, DEAD + 1)]
    here.ask(Kind.ENQ, *(m.Enq(job_id, "Mail", SECOND_US) for job_id in ids))
    with psycopg.connect(url_of(here)) as snapshot:
        snapshot.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot.execute("SELECT 1")
        rest(here, 1.1)
        worker = here.worker(10, capacity=DEAD)
        for _ in range(20):
            here.turn()
        run_all(worker)
        here.tick(3)

        # when some more fall due
        costs = []
        for number in range(5):
            here.ask(Kind.ENQ, m.Enq(uid(10_000 + number), "Mail", SECOND_US // 10))
            here.turn()
            before = pages_read(here)
            rest(here, 0.11)
            here.turn()
            costs.append(pages_read(here) - before)

        # then
        assert worker.ids[-5:] == [uid(10_000 + number) for number in range(5)]
        assert sorted(costs)[2] < PAGES_MOST, costs


def late_transaction(here: EngineRig, there: EngineRig) -> None:
    with psycopg.connect(url_of(here)) as connection:
        givalia_postgres.enq(connection, "Mail", id="00000000-0000-0000-0000-000000000001")
        rest(here, 0.2)
        here.enq(id=uid(2))  # The floor moves past the due of the one above.
        here.turn()


def enq_elsewhere(here: EngineRig, there: EngineRig) -> None:
    there.enq(id=uid(1), priority=-3)


def enq_elsewhere_for_earlier(here: EngineRig, there: EngineRig) -> None:
    there.enq(id=uid(1), at_us=here.now.wall_us - 1)


def brought_forward_elsewhere(here: EngineRig, there: EngineRig) -> None:
    there.enq(id=uid(1), key="k", delay_us=HOUR_US)
    there.ext("k", delta_us=-2 * HOUR_US)


@pytest.mark.parametrize("how", ["told", "found by looking", "found by looking piece by piece"])
@pytest.mark.parametrize("way", [late_transaction, enq_elsewhere, enq_elsewhere_for_earlier, brought_forward_elsewhere])
def test_job_that_comes_to_wait_before_what_was_looked_at_is_lent(make: Make, way: Any, how: str) -> None:
    # given a server that has looked past its due
    here, there = make(), make()
    here.tick(3)
    there.tick(3)
    here.worker(10, capacity=100)
    here.enq(id=uid(900))
    here.tick(0.1)

    # when
    assert isinstance(here.store, Postgres)
    if how == "found by looking piece by piece":
        here.store._floors.looked(1.0)
    way(here, there)
    there.store.tidy()
    await_news(here)
    if how != "told":
        here.store._listener.take()  # type: ignore[union-attr]
    here.tick(0.1 if how == "told" else 3)

    # then
    assert here.stored(uid(1)).state is RUNNING


def test_job_that_is_given_back_with_its_old_due_is_lent_again(make: Make) -> None:
    # given
    here = make()
    worker = here.worker(10, capacity=1)
    first = here.enq(id=uid(1))[0]
    rest(here, 0.2)
    here.enq(id=uid(2))
    given = worker.last

    # when
    worker.release(given)
    here.turn()

    # then
    assert [job.id for job in worker.jobs] == [first, first]


@pytest.mark.parametrize("place", range(4))
def test_no_job_is_missed_whatever_happens_to_it(make: Make, place: int) -> None:
    # given two servers, one of them with a worker
    seed = f"{os.environ.get('GIVALIA_SEED') or random.SystemRandom().randrange(1 << 32)}"
    print(f"GIVALIA_SEED={seed} replays this run")
    choice = random.Random(f"{seed}-{place}")
    here, there = make(), make()
    worker = here.worker(10, capacity=8)
    keys = [f"k{number}" for number in range(12)]
    settled: set[int] = set()

    def enq(rig: EngineRig) -> None:
        delay_us = choice.choice((0, 0, SECOND_US // 5, 2 * SECOND_US))
        rig.enq(key=choice.choice(keys), delay_us=delay_us, priority=choice.randrange(-9, 10))

    def at(rig: EngineRig) -> None:
        rig.enq(key=choice.choice(keys), at_us=rig.now.wall_us + choice.choice((-HOUR_US, 0, SECOND_US // 3)))

    def ext(rig: EngineRig) -> None:
        rig.ext(choice.choice(keys), delta_us=choice.choice((-HOUR_US, -SECOND_US, SECOND_US // 2)))

    def report(_: EngineRig) -> None:
        for number, job in enumerate(worker.jobs):
            if number not in settled and choice.random() < 0.6:
                settled.add(number)
                choice.choice((worker.succeed, worker.release, lambda job: worker.fail(job, after_us=1)))(job)

    def transaction(rig: EngineRig) -> None:
        with psycopg.connect(url_of(rig)) as connection:
            givalia_postgres.enq(connection, "Mail", time=choice.choice((0, 0.1)))
            if choice.random() < 0.5:
                rest(rig, 0.05)
                enq(here)

    acts = (enq, enq, at, ext, report, report, transaction, lambda rig: rig.cancel(choice.choice(keys)))

    # when
    for _ in range(120):
        choice.choice(acts)(choice.choice((here, there)))
        rest(here, choice.choice((0, 0, 0.02)))
        choice.choice((here, there)).turn()

    # then all that is due runs in the end
    for _ in range(40):
        rest(here, 0.3)
        there.turn()
        here.turn()
        report(here)
        if not [job for job in here.store.page(Filter(), None, 500, here.now).jobs if job.is_live]:
            break
    left = [job for job in here.store.page(Filter(), None, 500, here.now).jobs if job.is_live]
    assert left == []


def claimed(rig: EngineRig, most_bytes: int) -> list[bytes]:
    """The ids of the ready jobs that a look for up to a hundred brings, which may stop behind so many bytes of params."""
    route = Route("Mail", "any")
    found = rig.store.find(Wanted(claims=(Claim(route, 100),), claimed_bytes=most_bytes), rig.now)
    rig.store.tidy()
    return [job.id for job in found.ready[route]]


def test_look_that_is_cut_by_its_bytes_hides_no_job_from_the_next_one(make: Make) -> None:
    # given jobs of two priorities on both clocks
    here = make()
    ids = [uid(number) for number in range(1, 9)]
    for number, job_id in enumerate(ids):
        when = {"at_us": here.now.wall_us + number} if number % 2 else {"delay_us": number}
        here.enq(id=job_id, priority=5 if number < 4 else -5, params=bytes(1_000), **when)
    rest(here, 0.1)

    # when, then
    assert claimed(here, 2_500) == ids[:3]
    assert claimed(here, 1 << 40) == ids


def test_jobs_that_a_look_has_locked_and_not_read_are_found_by_other_servers_at_once(make: Make) -> None:
    # given two servers, and one look that reads the first of four jobs and locks them all
    here, there = make(), make()
    rest(here, 0.1)
    for rig in (here, there):
        rig.turn()
        rig.store.tidy()
    ids = [here.enq(id=uid(number), priority=9 - number, params=bytes(1_000))[0] for number in range(1, 5)]
    here.store.tidy()
    rest(here, 0.3)
    there.turn()
    route = Route("Mail", "any")
    found = here.store.find(Wanted(claims=(Claim(route, 4),), claimed_bytes=500), here.now)
    (first,) = found.ready[route]
    assert found.cut == {route}

    # when the other one has looked for them, and the first job is lent
    assert not there.store.find(Wanted(claims=(Claim(route, 4),)), there.now).ready
    there.store.tidy()
    mark = here.timer.mark(here.now, SECOND_US)
    assert here.store.commit([changed(first, state=RUNNING, keeper=1)], mark).refused == ()
    here.store.tidy()
    await_news(there)

    # then
    shared = as_shared(there.store)
    assert shared is not None
    assert shared.news().ready == {route}
    assert claimed(there, 1 << 40) == ids[1:]


def waiting_in_pages(rig: EngineRig, limit: int, **filters: Any) -> list[list[bytes]]:
    """The ids that each page of a listing shows."""
    after: tuple[Any, ...] = (None, None)
    pages = []
    for _ in range(100):
        frame = rig.frame(Kind.LIST, m.List("waiting", limit=limit, after_a=after[0], after_b=after[1], **filters))
        rig.turn(frame)
        after = rig.answers(frame)[0]
        payload = rig.replies[frame.conn, frame.request][0][1]
        pages.append([each["id"] for each in msgpack.unpackb(payload)])
        if not after:
            return pages
    raise AssertionError("the pages never end")


def test_waiting_jobs_are_listed_past_all_that_have_ended(make: Make) -> None:
    # given
    here = make()
    ended = [uid(number) for number in range(1, SCAN_MAX + 2)]
    here.ask(Kind.ENQ, *(m.Enq(job_id, "Mail", HOUR_US) for job_id in ended))
    here.ask(Kind.CANCEL, *(m.Cancel(here.fresh_id(), None, job_id) for job_id in ended))
    waits = [here.enq(id=uid(20_000 + number), delay_us=(10 - number) * SECOND_US)[0] for number in range(5)]

    # when, then
    assert waiting_in_pages(here, 500) == [waits[::-1]]
    assert waiting_in_pages(here, 2) == [[waits[4], waits[3]], [waits[2], waits[1]], [waits[0]]]


def test_page_of_waiting_jobs_is_bounded_in_the_bytes_of_its_jobs(make: Make) -> None:
    # given
    here = make()
    ids = [here.enq(params=bytes(4 * ROW_BYTES), delay_us=number * HOUR_US)[0] for number in range(1, 6)]

    # when
    first = here.store.page(Filter(JobState.WAITING), None, 500, here.now, 10)
    second = here.store.page(Filter(JobState.WAITING), first.after, 500, here.now, 100)

    # then
    assert [job.id for job in first.jobs] == ids[:2]
    assert [job.id for job in second.jobs] == ids[2:]
    assert second.after is None


@pytest.mark.parametrize("hops", [reads.HOPS_MAX, 3], ids=["by hops", "on too many routes"])
def test_listing_of_waiting_jobs_shows_each_once_whatever_its_route(
    make: Make, monkeypatch: pytest.MonkeyPatch, hops: int
) -> None:
    # given
    monkeypatch.setattr(reads, "HOPS_MAX", hops)
    here = make()
    choice = random.Random(7)
    expected: dict[bytes, tuple[str, str]] = {}
    for number in range(1, 61):
        module, target = choice.choice("ABC"), choice.choice(("any", "w1", "w11"))
        when = {"delay_us": number * SECOND_US} if choice.random() < 0.5 else {"at_us": here.now.wall_us + number * SECOND_US}
        more = {"version": ">=2"} if choice.random() < 0.2 else {}
        here.enq(module, id=uid(number), target_worker=target, priority=choice.randrange(-9, 10), **when, **more)
        expected[uid(number)] = module, target

    # when, then
    for module in (None, "A", "none"):
        for target in (None, "w1"):
            pages = waiting_in_pages(here, 7, module=module, target_worker=target)
            shown = [job_id for page in pages for job_id in page]
            wanted = [i for i, (mod, tar) in expected.items() if module in (None, mod) and target in (None, tar)]
            assert sorted(shown) == sorted(wanted)
            assert hops == 3 or shown == wanted  # By due.


def test_server_looks_seldom_at_what_takes_long(make: Make) -> None:
    # given
    here = make()
    worker = here.worker(10)
    here.enq()
    here.tick(3)
    assert isinstance(here.store, Postgres)

    # when
    here.store._floors.counted(10.0, time.monotonic())

    # then
    watched = here.store.watch(here.now, SECOND_US, here.store._about, all_own=False)
    assert watched is not None
    assert watched.looked_after is None
    assert len(here.engine.desk.leases) == 1
    worker.succeed()
    assert here.stored(worker.last.id).state is DONE
    assert here.state(id=worker.last.id) == JobState.DONE
