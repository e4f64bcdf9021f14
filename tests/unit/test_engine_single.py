"""One command decided in a program's own transaction: what it reads, what it stores, and the hooks it owes."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import ME, NOW, found, job, running
from engine_rig import uid

from givalia_core.engine.single import NOBODY, Single, SingleDecision
from givalia_core.errors import Busy, DuplicateKey, NotFound, Stale
from givalia_core.model import CANCELLED, DEAD, DONE, RUNNING, WAITING, Answered, Job
from givalia_core.policy import Policy
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import TAKEN, Cancelled, Enqueued, Failed
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Change, Wanted
from givalia_core.store.shared import Event

FLOOR = 3_000_000
REQUEST = uid(20)
NOTHING: tuple[list[Change], list[Event]] = ([], [])  # No changes, no hooks.


def single(kind: Kind, message: Any, **policy: Any) -> Single:
    return Single(kind, message, Policy(**policy), "fsync")


def decide(kind: Kind, message: Any, *jobs: Job, floor: int = FLOOR, **policy: Any) -> SingleDecision:
    return single(kind, message, **policy).decide(found(*jobs, floor=floor), NOW)


def effects(decision: SingleDecision) -> tuple[list[Change], list[Event]]:
    return decision.changes, decision.events


@pytest.mark.parametrize(
    ("kind", "message", "wanted"),
    [
        (
            Kind.ENQ,
            m.Enq(uid(1), "Mail", key="k"),
            Wanted(ids=frozenset({uid(1)}), keys=frozenset({"k"}), requests=frozenset({uid(1)}), numbers=True),
        ),
        (
            Kind.CANCEL,
            m.Cancel(REQUEST, "k"),
            Wanted(keys=frozenset({"k"}), past_keys=frozenset({"k"}), requests=frozenset({REQUEST})),
        ),
        (Kind.SUCCEED, m.Succeed(uid(1), 51), Wanted(ids=frozenset({uid(1)}))),
    ],
)
def test_a_command_names_all_that_is_to_be_read_and_locked(kind: Kind, message: Any, wanted: Wanted) -> None:
    assert single(kind, message).wanted._replace(claimed_bytes=wanted.claimed_bytes) == wanted


def test_a_new_job_gets_a_number_of_those_that_the_store_gave() -> None:
    decision = decide(Kind.ENQ, m.Enq(uid(1), "Mail", delay_us=5, payload=b"p"))

    assert decision.answer == Enqueued(uid(1), NOW.wall_us + 5, "fsync")
    ((was, after),) = decision.changes
    assert was is None
    assert (after.seq, after.state, after.due_at_us, after.params) == (FLOOR + 1, WAITING, NOW.timer_us + 5, b"p")
    assert decision.events == [Event("on_enq", after, None)]


@pytest.mark.parametrize(
    ("kind", "message", "error"),
    [
        (Kind.ENQ, m.Enq(uid(2), "Mail", key="k"), DuplicateKey),
        (Kind.CANCEL, m.Cancel(REQUEST, "none"), NotFound),
        (Kind.SUCCEED, m.Succeed(uid(1), 99), Stale),
        (Kind.SUCCEED, m.Succeed(uid(8), 51), Stale),
    ],
)
def test_a_refusal_stores_nothing_and_owes_nothing(kind: Kind, message: Any, error: type[Exception]) -> None:
    decision = decide(kind, message, running(1, key="k"))

    assert isinstance(decision.answer, error)
    assert effects(decision) == NOTHING


def test_the_policy_of_the_servers_is_kept() -> None:
    assert isinstance(decide(Kind.ENQ, m.Enq(uid(1), "Mail"), live_max=0).answer, Busy)


def test_a_command_that_changed_a_job_before_is_answered_as_before() -> None:
    past = job(key="k", state=CANCELLED, answered=(Answered(REQUEST, "cancel", 0),))

    decision = decide(Kind.CANCEL, m.Cancel(REQUEST, "k"), past)

    assert decision.answer == Cancelled("cancelled")
    assert effects(decision) == NOTHING


def test_a_hook_is_owed_with_what_it_is_called_with() -> None:
    before = job(key="k")

    decision = decide(Kind.CANCEL, m.Cancel(REQUEST, "k"), before)

    ((was, after),) = decision.changes
    assert (was, after.state) == (before, CANCELLED)
    assert decision.events == [Event("on_cancel", after, running=False)]


def test_a_stop_is_stored_and_its_hook_left_to_the_server_that_looks_after_the_job() -> None:
    decision = decide(Kind.CANCEL, m.Cancel(REQUEST, "k", running=True), running(key="k", keeper=ME))

    assert decision.answer == Cancelled("stop_requested")
    assert [(change.job.state, change.job.stop_asked) for change in decision.changes] == [(RUNNING, True)]
    assert decision.events == []
    assert NOBODY != ME


def test_the_code_of_a_job_may_complete_it_without_a_connection() -> None:
    decision = decide(Kind.SUCCEED, m.Succeed(uid(1), 51, payload=b"r"), running(keeper=ME))

    assert decision.answer == TAKEN
    ((_, after),) = decision.changes
    assert (after.state, after.result, after.keeper) == (DONE, b"r", 0)
    assert decision.events == [Event("on_done", after, None)]


def test_a_job_that_is_done_already_is_taken_once_more() -> None:
    decision = decide(Kind.SUCCEED, m.Succeed(uid(1), 51), job(state=DONE, fence=51))

    assert decision.answer == TAKEN
    assert effects(decision) == NOTHING


def test_a_failure_for_good_owes_the_hook_of_a_dead_job() -> None:
    decision = decide(Kind.FAIL, m.FailReport(uid(1), 51, "failed", "no", permanent=True), running())

    assert decision.answer == Failed("dead", 5)
    ((_, after),) = decision.changes
    assert after.state is DEAD
    assert decision.events == [Event("on_dead", after, None)]


def test_it_decides_again_over_what_is_there_then_and_as_before_over_the_same() -> None:
    given = single(Kind.ENQ, m.Enq(uid(1), "Mail", key="k"))
    empty = found(floor=FLOOR)

    first = given.decide(empty, NOW)
    assert isinstance(given.decide(found(job(2, key="k"), floor=FLOOR), NOW).answer, DuplicateKey)
    assert given.decide(empty, NOW) == first


def test_a_command_that_is_answered_later_is_none_for_a_transaction() -> None:
    with pytest.raises(AssertionError):
        decide(Kind.WAIT, m.Wait(id=uid(1)), job())
