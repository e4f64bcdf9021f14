"""The engine's memory: leases by job and by worker, waits within bounds, and why no new job is taken."""

from __future__ import annotations

import pytest
from engine_parts import NOW, connect, job, lend, new_desk, running
from engine_rig import uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import desk as desk_module
from givalia_core.engine.desk import BusyFor, Lease, Leases, Names, Waits, wanted
from givalia_core.store.base import Claim, Route


def test_leases_are_found_by_job_and_by_the_worker_process_that_holds_them() -> None:
    leases = Leases()
    made = {seq: Lease(running(seq, holder=uid(10 + seq % 2)), None, 0) for seq in (1, 2, 3)}
    for seq, lease in made.items():
        leases[uid(seq)] = lease

    assert leases.of_holder(uid(11)) == [made[1], made[3]]
    del leases[uid(1)]
    assert leases.of_holder(uid(11)) == [made[3]]
    del leases[uid(3)]

    assert leases.of_holder(uid(11)) == leases.of_holder(uid(99)) == []
    assert list(leases) == [uid(2)]


def test_a_lease_that_went_to_another_worker_is_no_longer_the_first_ones() -> None:
    leases = Leases()
    leases[uid(1)] = Lease(running(1, holder=uid(10)), None, 0)
    leases[uid(1)] = later = Lease(running(1, holder=uid(11)), None, 0)

    assert leases.of_holder(uid(10)) == []
    assert leases.of_holder(uid(11)) == [later]


def test_waiters_of_a_job_are_told_once_and_forgotten() -> None:
    waits = Waits()
    assert waits.add(uid(1), 5, 7, wants_progress=True)
    assert waits.add(uid(1), 6, 7, wants_progress=False)
    assert waits.add(uid(2), 5, 8, wants_progress=False)
    assert waits.of(uid(1)) == {(5, 7): True, (6, 7): False}

    assert list(waits.end(uid(1))) == [(5, 7), (6, 7)]
    assert list(waits.end(uid(1))) == []

    assert (len(waits), uid(1) in waits, list(waits)) == (1, False, [uid(2)])


def test_a_request_that_waits_again_waits_for_the_new_job_only() -> None:
    waits = Waits()
    waits.add(uid(1), 5, 7, wants_progress=False)
    waits.add(uid(2), 5, 7, wants_progress=False)

    assert (len(waits), list(waits)) == (1, [uid(2)])
    waits.drop(5, 7)
    waits.drop(5, 7)
    assert len(waits) == 0


def test_a_connection_that_leaves_waits_for_nothing() -> None:
    waits = Waits()
    for request in (1, 2):
        waits.add(uid(1), 5, request, wants_progress=False)
    waits.add(uid(1), 6, 1, wants_progress=False)

    waits.leave(5)
    waits.leave(5)

    assert (len(waits), dict(waits.of(uid(1)))) == (1, {(6, 1): False})


def test_a_connection_may_always_wait_for_some_and_for_more_only_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "WAITS_ALWAYS", 2)
    monkeypatch.setattr(desk_module, "WAITS_PER_CONNECTION", 4)
    monkeypatch.setattr(desk_module, "WAITS_MAX", 5)
    waits = Waits()

    assert [waits.add(uid(1), 1, request, wants_progress=False) for request in range(5)] == [True] * 4 + [False]
    assert [waits.add(uid(1), 2, request, wants_progress=False) for request in range(3)] == [True, True, False]
    assert len(waits) == 6


def test_reasons_for_being_busy_have_owners_and_end_one_by_one() -> None:
    desk = new_desk(live_max=10)
    assert desk.why_busy == ""
    desk.live = 10
    assert desk.why_busy == desk.all_taken == "10 jobs are live, and the server takes no more than 10"

    desk.note_busy(BusyFor.MEMORY, "memory")
    desk.note_busy(BusyFor.SYNCS, "syncs")
    assert desk.why_busy == "memory"
    desk.note_busy(BusyFor.MEMORY, "")
    assert desk.why_busy == "syncs"
    desk.note_busy(BusyFor.SYNCS, "")
    desk.note_busy(BusyFor.SYNCS, "")

    assert desk.why_busy == desk.all_taken


def test_numbers_never_go_back() -> None:
    desk = new_desk()
    desk.use_numbers(1 << 60)
    assert (desk.last_seq, desk.last_fence) == (1 << 60, 1 << 60)
    desk.use_numbers(5)

    assert (desk.last_seq, desk.last_fence) == (1 << 60, 1 << 60)


def test_a_server_that_shares_its_store_takes_fences_from_there_and_others_from_their_epoch() -> None:
    assert new_desk(is_shared=True).last_fence == 0
    assert new_desk().last_fence > 0


@pytest.mark.parametrize(
    ("attempt", "first_s", "most_s", "delay_s"), [(1, 2, 100, 2), (3, 2, 100, 8), (9, 2, 100, 100), (99, 1, 7, 7)]
)
def test_a_backoff_is_doubled_bounded_and_has_jitter_of_a_fifth(attempt: int, first_s: int, most_s: int, delay_s: int) -> None:
    desk = new_desk()
    failed = job(attempt=attempt, backoff_us=(first_s * SECOND_US, most_s * SECOND_US))

    delays = [desk.backoff_us(failed) / SECOND_US for _ in range(200)]

    assert min(delays) >= 0.8 * delay_s
    assert max(delays) <= min(1.2 * delay_s, most_s)
    assert max(delays) - min(delays) > 0.1 * delay_s


def test_a_job_without_a_backoff_of_its_own_has_that_of_the_server() -> None:
    desk = new_desk(backoff_us=4 * SECOND_US, backoff_max_us=4 * SECOND_US)

    assert 3.2 * SECOND_US <= desk.backoff_us(job(attempt=1)) <= 4 * SECOND_US


def test_hints_that_a_batch_has_spoiled_are_made_again_from_the_leases() -> None:
    desk = new_desk()
    session = connect(desk, capacity=5)
    lend(desk, running(1), session)
    lend(desk, running(2))
    session.room("Mail").held = 4
    desk.routing.tick(NOW)

    desk.drop_hints()

    assert session.room("Mail").held == 1
    assert desk.routing.unlearned == {Route("Mail", "any")}


def test_all_that_is_named_is_one_question() -> None:
    names = Names(ids={uid(1)}, keys={"k"}, past_keys={"p"}, requests={uid(2)}, variants={Route("Mail", "any")})
    claims = (Claim(Route("Mail", "any"), 3),)

    question = wanted(names, claims)

    assert (question.ids, question.keys, question.past_keys, question.requests) == ({uid(1)}, {"k"}, {"p"}, {uid(2)})
    assert (question.claims, question.variants) == (claims, {Route("Mail", "any")})
    assert [
        wanted(Names(has_enq=has), may_lend=may).numbers for has, may in ((False, False), (True, False), (False, True))
    ] == [
        False,
        True,
        True,
    ]
    assert question.numbers
