"""What workers say about themselves: join, announce, credit, beat and resume, and connections that are gone."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import ME, NOW, asked, changed, connect, job, later, lend, new_batch, new_desk, running, said
from engine_rig import uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import workers
from givalia_core.engine.batch import NOBODY
from givalia_core.engine.desk import Desk, Names
from givalia_core.engine.records import Close, JournalEntry, Refusal, Tell
from givalia_core.errors import BadRequest, Stale
from givalia_core.model import DONE, WAITING, Job
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import TAKEN, Joined
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import PROCESSES_MAX, Kind
from givalia_core.store.base import Route

LEASE_US = 30 * SECOND_US


@pytest.fixture
def desk() -> Desk:
    desk = new_desk()
    desk.tells_news = True
    return desk


def named(*jobs: Job, kind: Kind = Kind.BEAT, conn: int = 10) -> Any:
    return asked(kind, *(m.NamedLease(each.id, each.fence) for each in jobs), conn=conn)


# Join and leave.


def test_a_worker_that_joins_is_told_the_lease_and_where_clients_go(desk: Desk) -> None:
    desk.client_port = 4_747
    batch, message = new_batch(desk), m.Join("w", uid(10))

    assert workers.join(batch, asked(Kind.JOIN, message, conn=10), message) == Joined(LEASE_US, 4_747)
    session = desk.routing.sessions[10]
    assert (session.join, session.beat_mono_us, session.has_resumed) == (message, NOW.mono_us, False)
    assert said(batch) == [JournalEntry("joined", session)]


@pytest.mark.parametrize("conn", [10, 11])
def test_a_process_that_joins_again_is_connected_once_and_only_an_older_connection_is_closed(desk: Desk, conn: int) -> None:
    before = connect(desk, 10)
    lease = lend(desk, running(), before)
    desk.losses.gone = {}
    batch, message = new_batch(desk), m.Join("w", uid(10))

    workers.join(batch, asked(Kind.JOIN, message, conn=conn), message)

    assert list(desk.routing.sessions) == [conn]
    assert desk.routing.sessions[conn] is not before
    assert [effect.conn for effect in said(batch) if isinstance(effect, Close)] == [10] * (conn != 10)
    assert (desk.leases[uid(1)], lease.room) == (lease, None)
    assert desk.losses.gone == {}


def test_the_leases_of_a_connection_that_is_gone_live_on_without_its_waits(desk: Desk) -> None:
    gone, other = connect(desk, 10), connect(desk, 11)
    kept, its = lend(desk, running(1, holder=uid(11)), other), lend(desk, running(2), gone)
    desk.waits.add(uid(5), 10, 1, wants_progress=False)

    workers.leave(new_batch(desk), 10)

    assert desk.leases.keys() == {uid(1), uid(2)}
    assert (kept.session, its.session) == (other, None)
    assert len(desk.waits) == 0
    assert desk.losses.gone == {uid(10): NOW.mono_us}


def test_a_lease_that_another_connection_of_the_process_took_up_stays_with_that(desk: Desk) -> None:
    old, new = connect(desk, 10), connect(desk, 11, instance=10)
    lease = lend(desk, running(), new)

    workers.leave(new_batch(desk), old.conn)

    assert lease.session is new


@pytest.mark.parametrize(
    ("capacity", "held", "expected"),
    [(1, 0, ("gone", 0, "why")), (0, 1, ("gone", 1, "why")), (2, 1, ("gone", 1, "why")), (0, 0, ("left", 0, ""))],
)
def test_the_log_says_whether_a_worker_left_as_it_should(
    desk: Desk, capacity: int, held: int, expected: tuple[str, int, str]
) -> None:
    session = connect(desk, 10, capacity=capacity)
    session.rooms["process"].held = held
    batch = new_batch(desk)

    workers.lose(batch, 10, "why")

    act, jobs, why = expected
    assert said(batch) == [JournalEntry(act, session, jobs, why)]
    assert desk.routing.sessions == {}


def test_the_log_does_not_say_that_workers_leave_a_server_that_drains(desk: Desk) -> None:
    connect(desk, 10)
    desk.is_draining = True
    batch = new_batch(desk)

    workers.lose(batch, 10, "why")
    workers.lose(batch, 1, "a client")

    assert said(batch) == []
    assert desk.routing.sessions == {}


def test_a_silent_worker_is_cut_off(desk: Desk) -> None:
    session = connect(desk, 10)
    batch = new_batch(desk)

    workers.silence(batch, 10)

    why = "it missed two beats"
    assert said(batch) == [Close(10, why), JournalEntry("gone", session, 0, why)]


# What a worker says.


@pytest.mark.parametrize(
    ("decide", "kind", "message"),
    [
        (workers.announce, Kind.ANNOUNCE, m.Announce("Mail", "d", "1")),
        (workers.resume, Kind.RESUME, m.NamedLease(uid(1), 51)),
        (workers.beat, Kind.BEAT, m.NamedLease(uid(1), 51)),
        (workers.processes, Kind.PROCESSES, m.Process(5, "host", "ready")),
        (lambda batch, frame: workers.credit(batch, frame, frame.messages[0]), Kind.CREDIT, m.Credit(3)),
    ],
)
def test_a_worker_joins_first(desk: Desk, decide: Any, kind: Kind, message: Any) -> None:
    connect(desk, 10)

    with pytest.raises(Refusal) as refused:
        decide(new_batch(desk, running()), asked(kind, message, conn=11))
    assert isinstance(refused.value.error, BadRequest)


def test_an_announcement_replaces_the_one_before(desk: Desk) -> None:
    session, unreadable = connect(desk, 10, "Mail"), BadRequest("no")
    frame = asked(Kind.ANNOUNCE, m.Announce("Fax", "d", "1"), unreadable, conn=10)

    assert workers.announce(new_batch(desk), frame) == [TAKEN, unreadable]
    assert list(session.announced) == ["Fax"]
    assert desk.routing.windows.keys() == {Route("Fax", "any")}


def test_a_credit_is_for_greenlets_and_for_processes(desk: Desk) -> None:
    rooms, message = connect(desk, 10).rooms, m.Credit(3, 2)

    assert workers.credit(new_batch(desk), asked(Kind.CREDIT, message, conn=10), message) == TAKEN
    assert (rooms["greenlet"].capacity, rooms["process"].capacity) == (3, 2)


def test_the_processes_of_a_worker_are_kept_up_to_a_bound_and_replaced(desk: Desk) -> None:
    session, unreadable = connect(desk, 10), BadRequest("no")
    many = [m.Process(pid, "host", "ready") for pid in range(PROCESSES_MAX + 2)]

    told = workers.processes(new_batch(desk), asked(Kind.PROCESSES, unreadable, *many, conn=10))
    assert told == [unreadable] + [TAKEN] * len(many)
    assert session.processes == many[:PROCESSES_MAX]

    workers.processes(new_batch(desk), asked(Kind.PROCESSES, many[-1], conn=10))
    assert session.processes == many[-1:]


# Beat and resume.


def test_a_beat_renews_the_leases_that_it_names_and_no_others(desk: Desk) -> None:
    session = connect(desk, 10)
    first, second = lend(desk, running(1), session, seconds=1), lend(desk, running(2), session, seconds=1)

    assert workers.beat(new_batch(desk, now=later(0.5)), named(first.job)) == [TAKEN]
    assert first.expires_mono_us == later(0.5).mono_us + LEASE_US
    assert second.expires_mono_us == later(1).mono_us
    assert session.rooms["greenlet"].held == 2


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (running(1, fence=50), Stale),
        (running(1, holder=uid(11)), Stale),
        (job(1, fence=51, holder=uid(10)), Stale),
        (job(1, state=DONE, fence=50), Stale),
        (job(1, state=DONE, fence=51), type(TAKEN)),
        (None, Stale),
    ],
    ids=["another fence", "another process", "it waits", "another attempt is done", "its own attempt is done", "gone"],
)
def test_only_the_attempt_that_a_worker_holds_is_its_own(desk: Desk, stored: Job | None, expected: type) -> None:
    connect(desk, 10)
    batch = new_batch(desk, *([] if stored is None else [stored]))

    (told,) = workers.beat(batch, named(running(1)))

    assert type(told) is expected
    assert changed(batch) == []


def test_what_cannot_be_read_is_answered_in_its_place_and_each_is_its_own_author(desk: Desk) -> None:
    connect(desk, 10)
    batch, unreadable = new_batch(desk, running(1)), BadRequest("no")
    frame = asked(Kind.BEAT, unreadable, m.NamedLease(uid(1), 50), conn=10)

    assert [type(each) for each in workers.beat(batch, frame)] == [BadRequest, Stale]
    assert batch.touched == [(1, (0, 1))]


def test_a_stop_is_told_again_with_each_beat(desk: Desk) -> None:
    stopped = running(stop_asked=True)
    lend(desk, stopped, connect(desk, 10))
    batch = new_batch(desk)

    workers.beat(batch, named(stopped))

    assert said(batch) == [Tell(10, Kind.STOP, [item(m.Stop(uid(1), stopped.fence, again=True))])]


def test_a_worker_that_comes_back_takes_its_lease_up_and_the_credit_for_it(desk: Desk) -> None:
    lease, session = lend(desk, running()), connect(desk, 12, instance=10)

    assert workers.beat(new_batch(desk), named(lease.job, conn=12)) == [TAKEN]
    workers.beat(new_batch(desk), named(lease.job, conn=12))

    assert lease.session is session
    assert session.rooms["greenlet"].held == 1


def test_what_a_worker_does_not_name_after_joining_never_reached_it(desk: Desk) -> None:
    session = connect(desk, 10)
    kept, lost, others = running(1), running(2, attempt=3), running(3, holder=uid(11))
    for each in (kept, lost, others):
        lend(desk, each)
    batch = new_batch(desk)

    assert workers.resume(batch, named(kept, kind=Kind.RESUME)) == [TAKEN]

    assert [(each.id, each.state, each.attempt, each.releases) for each in changed(batch)] == [(uid(2), WAITING, 2, 1)]
    assert (2, NOBODY) in batch.touched
    assert session in batch.resumed


def test_what_a_worker_was_lent_since_it_has_resumed_is_not_for_it_to_name(desk: Desk) -> None:
    session = connect(desk, 10)
    lend(desk, running(1), session)
    first = new_batch(desk)
    first.resumed.append(session)
    assert not session.has_resumed
    workers.conclude(first)
    assert session.has_resumed

    batch = new_batch(desk)
    workers.resume(batch, asked(Kind.RESUME, conn=10))

    assert changed(batch) == []
    assert batch.resumed == []


def test_a_lease_that_another_server_granted_is_taken_over_from_its_worker(desk: Desk) -> None:
    desk.me, session = ME, connect(desk, 10)
    batch = new_batch(desk, running(keeper=99))

    assert workers.beat(batch, named(running())) == [TAKEN]
    (after,) = changed(batch)
    assert (after.keeper, batch.taken) == (ME, {1: (session, LEASE_US)})
    assert desk.leases == {}

    workers.take_over(batch, after)
    lease = desk.leases[uid(1)]
    assert (lease.job, lease.session, lease.expires_mono_us) == (after, session, NOW.mono_us + LEASE_US)
    assert session.rooms["greenlet"].held == 1


def test_a_lease_is_taken_over_without_a_worker_that_has_gone_meanwhile(desk: Desk) -> None:
    session = connect(desk, 10)
    batch = new_batch(desk, running(keeper=99))
    workers.adopt(batch, running(keeper=99), session, 5)
    workers.leave(batch, 10)

    workers.take_over(batch, changed(batch)[0])

    assert desk.leases[uid(1)].session is None
    assert desk.leases[uid(1)].expires_mono_us == NOW.mono_us + 5


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_resume_reads_what_memory_does_not_know_and_where_the_store_is_shared_all(is_shared: bool) -> None:
    desk, names = new_desk(is_shared=is_shared), Names()
    lend(desk, running(1))

    workers.needs_resumed(names, asked(Kind.RESUME, m.NamedLease(uid(1), 1), m.NamedLease(uid(2), 1), BadRequest("no")), desk)

    assert names.ids == {uid(2)}
    assert names.resumed == ({uid(1)} if is_shared else set())


@pytest.mark.parametrize("ends_hold", [False, True])
def test_a_hold_ends_with_the_commit_and_the_windows_are_read_again(desk: Desk, ends_hold: bool) -> None:
    connect(desk, 10)
    desk.is_holding, batch = True, new_batch(desk)
    batch.ends_hold = ends_hold

    workers.conclude(batch)

    assert desk.is_holding is not ends_hold
    assert [span.route for span in desk.routing.tick(NOW)] == [Route("Mail", "any")] * ends_hold
