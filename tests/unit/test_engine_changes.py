"""What cancel, ext, requeue and resume decide over one job, and how an answer is found by its request."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import ME, NOW, asked, changed, connect, job, later, lend, new_batch, new_desk, running, said
from engine_rig import uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import changes
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import Desk, Names
from givalia_core.engine.records import Hook, JournalEntry, Refusal, Tell
from givalia_core.errors import BadRequest, Busy, DuplicateKey, GivaliaError, NotFound, StoreFull, WrongState
from givalia_core.model import CANCELLED, DEAD, DONE, REQUESTS_MOST, RUNNING, TEN_YEARS_US, WAITING, Answered, Job
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import Cancelled, Enqueued, LendingResumed, Moved
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Kind
from givalia_core.views import text_id

REQUEST = uid(20)
VERBS = {m.Cancel: changes.cancel, m.Ext: changes.ext, m.Requeue: changes.requeue}
ENDED: dict[str, Any] = {"ended_at_us": 5, "forget_at_us": 6}


@pytest.fixture
def desk() -> Desk:
    return new_desk()


def decide(batch: Batch, message: Any) -> Any:
    """The answer to the command, or the error it is refused with."""
    decide: Any = VERBS[type(message)]
    try:
        return decide(batch, asked(Kind.CANCEL, message), message)
    except Refusal as refused:
        return refused.error


def cancel(**fields: Any) -> m.Cancel:
    return m.Cancel(REQUEST, id=uid(1), **fields)


def ext(**fields: Any) -> m.Ext:
    return m.Ext(REQUEST, id=uid(1), **fields)


def requeue(**fields: Any) -> m.Requeue:
    return m.Requeue(REQUEST, id=uid(1), **fields)


def named(error: object) -> tuple[type, Any]:
    assert isinstance(error, GivaliaError)
    return type(error), error.details.get("state")


# Cancel.


def test_a_job_that_waits_is_called_off_and_remembers_the_request(desk: Desk) -> None:
    batch = new_batch(desk, job())

    assert decide(batch, cancel()) == Cancelled("cancelled")
    (after,) = changed(batch)
    assert (after.state, after.ended_at_us) == (CANCELLED, NOW.timer_us)
    assert after.answered == (Answered(REQUEST, "cancel", 0, NOW.timer_us),)
    assert said(batch) == [Hook("on_cancel", after, {"running": False})]


@pytest.mark.parametrize(
    ("before", "flag", "expected"),
    [
        (running(), False, (WrongState, "running")),
        (job(state=DONE, **ENDED), True, (WrongState, "done")),
        (job(state=DEAD, **ENDED), True, (WrongState, "dead")),
        (job(state=CANCELLED, **ENDED), False, None),
        (running(stop_asked=True), True, None),
    ],
    ids=lambda value: f"{value.state}" if isinstance(value, Job) else None,
)
def test_a_cancel_that_finds_nothing_to_do_changes_nothing(
    desk: Desk, before: Job, flag: bool, expected: tuple[type, str] | None
) -> None:
    batch = new_batch(desk, before)

    answer = decide(batch, cancel(running=flag))

    if expected is None:
        assert answer == Cancelled("cancelled" if before.state is CANCELLED else "stop_requested")
    else:
        assert named(answer) == expected
    assert (changed(batch), said(batch)) == ([], [])


def test_a_stop_goes_to_the_worker_that_holds_the_job(desk: Desk) -> None:
    before = running()
    lend(desk, before, connect(desk, 10))
    batch = new_batch(desk, before)

    assert decide(batch, cancel(running=True)) == Cancelled("stop_requested")
    (after,) = changed(batch)
    assert (after.state, after.stop_asked, after.answered[-1].act) == (RUNNING, True, "ask_stop")
    assert said(batch) == [Tell(10, Kind.STOP, [item(m.Stop(before.id, before.fence))])]


@pytest.mark.parametrize(("keeper", "hooks"), [(ME, ["on_cancel"]), (ME + 1, [])])
def test_a_stop_without_a_worker_is_for_the_hooks_of_the_server_that_looks_after_the_job(keeper: int, hooks: list[str]) -> None:
    batch = new_batch(new_desk(is_shared=True), running(keeper=keeper))

    assert decide(batch, cancel(running=True)) == Cancelled("stop_requested")
    assert [(effect.name, effect.extra) for effect in said(batch) if isinstance(effect, Hook)] == [
        (name, {"running": True}) for name in hooks
    ]
    assert len(changed(batch)) == 1


# Ext.


@pytest.mark.parametrize("move", [{}, {"delta_us": 1, "at_us": NOW.wall_us}])
def test_an_ext_moves_by_a_time_or_to_an_instant_and_not_by_both(desk: Desk, move: dict[str, int]) -> None:
    assert isinstance(decide(new_batch(desk, job()), ext(**move)), BadRequest)


@pytest.mark.parametrize(
    ("move", "is_refused"),
    [
        ({"delta_us": TEN_YEARS_US}, False), ({"delta_us": TEN_YEARS_US + 1}, True),
        ({"at_us": NOW.wall_us + TEN_YEARS_US}, False), ({"at_us": NOW.wall_us + TEN_YEARS_US + 1}, True),
    ],
)  # fmt: skip
def test_an_ext_moves_no_job_by_more_than_ten_years(desk: Desk, move: dict[str, int], is_refused: bool) -> None:
    batch = new_batch(desk, job())

    assert isinstance(decide(batch, ext(**move)), BadRequest if is_refused else Moved)
    assert bool(changed(batch)) is not is_refused


def test_an_ext_moves_the_due_and_with_it_the_end_of_a_job_that_never_started(desk: Desk) -> None:
    batch = new_batch(desk, job(expires_us=10, expires_at_us=NOW.timer_us + 10))

    assert decide(batch, ext(delta_us=7)) == Moved(uid(1), NOW.wall_us + 7)
    (after,) = changed(batch)
    assert (after.state, after.due_at_us, after.expires_at_us) == (WAITING, NOW.timer_us + 7, NOW.timer_us + 17)
    assert after.answered == (Answered(REQUEST, "ext", NOW.wall_us + 7, NOW.timer_us),)


def test_the_refusal_names_the_state_that_people_see_and_the_last_job_of_a_key(desk: Desk) -> None:
    batch = new_batch(desk, running(1), job(2, key="k", state=DONE, **ENDED))

    refused = decide(batch, ext(delta_us=1))
    assert (str(refused), named(refused)) == ("the job is running", (WrongState, "running"))
    refused = decide(batch, m.Ext(REQUEST, "k", delta_us=1))
    assert (str(refused), named(refused)) == ("the last job of key k is done", (WrongState, "done"))
    assert named(decide(new_batch(desk, job()), requeue())) == (WrongState, "ready")
    assert named(decide(new_batch(desk, job(due_at_us=NOW.timer_us + 1)), requeue())) == (WrongState, "waiting")


def test_the_memory_of_a_job_bounds_its_moves_but_never_its_end(desk: Desk) -> None:
    full = tuple(Answered(uid(1_000 + number), "ext", 0, NOW.timer_us) for number in range(REQUESTS_MOST))

    batch = new_batch(desk, job(answered=full))
    assert isinstance(decide(batch, ext(delta_us=1)), Busy)
    assert changed(batch) == []
    assert decide(batch, cancel()) == Cancelled("cancelled")


# Requeue.


@pytest.mark.parametrize("state", [DEAD, CANCELLED])
def test_another_life_begins_with_nothing_of_the_one_before(desk: Desk, state: Any) -> None:
    before = job(
        key="k", state=state, attempt=3, releases=2, replacements=1, deaths=2, stop_asked=True, reason="failed", error="no",
        result=b"r", result_error="lost", started_at_us=9, expires_us=10, params=b"p", **ENDED,
    )  # fmt: skip
    batch = new_batch(desk, before)

    assert decide(batch, requeue(delay_us=5)) == Moved(uid(1), NOW.wall_us + 5)
    (after,) = changed(batch)
    due_us = NOW.timer_us + 5
    assert after == before.changed(
        state=WAITING, version=2, due_at_us=due_us, expires_at_us=due_us + 10, ended_at_us=0, forget_at_us=None, attempt=0,
        releases=0, replacements=0, deaths=0, stop_asked=False, reason=None, result=None, result_error=None, started_at_us=0,
        answered=(Answered(REQUEST, "requeue", NOW.wall_us + 5, NOW.timer_us),),
    )  # fmt: skip
    assert said(batch) == [Hook("on_requeue", after, {})]


@pytest.mark.parametrize("message", [requeue(), m.Requeue(REQUEST, "k")])
def test_a_job_whose_key_a_live_one_has_gets_no_other_life(desk: Desk, message: m.Requeue) -> None:
    batch = new_batch(desk, job(1, key="k", state=DEAD, **ENDED), job(2, key="k"))

    refused = decide(batch, message)

    assert isinstance(refused, DuplicateKey)
    assert refused.id == text_id(uid(2))
    assert changed(batch) == []


def test_another_life_is_a_new_job_and_needs_room_for_it(desk: Desk) -> None:
    desk.is_full = True

    assert isinstance(decide(new_batch(desk, job(state=DEAD, **ENDED)), requeue()), StoreFull)


def test_a_requeue_reads_the_job_of_its_id_or_of_a_key_that_has_the_form_of_one(desk: Desk) -> None:
    names, form = Names(), text_id(uid(2))

    changes.needs_requeue(
        names,
        asked(Kind.REQUEUE, requeue(), m.Requeue(REQUEST, form), m.Requeue(REQUEST, "k"), BadRequest("no")),
        desk,
    )

    assert names.requeued == {uid(1), uid(2)}
    assert names.keys == {form, "k"}
    assert names.requests == {REQUEST}


# Answers that are known.

KNOWN = [
    (changes.known_enq, m.Enq(REQUEST, "Mail"), "reschedule", Enqueued(uid(1), 44, "fsync")),
    (changes.known_cancel, cancel(), "cancel", Cancelled("cancelled")),
    (changes.known_cancel, cancel(), "ask_stop", Cancelled("stop_requested")),
    (changes.known_move, ext(), "ext", Moved(uid(1), 44)),
    (changes.known_move, requeue(), "requeue", Moved(uid(1), 44)),
]


@pytest.mark.parametrize(("known", "message", "act", "expected"), KNOWN)
def test_the_job_knows_what_its_request_was_answered(desk: Desk, known: Any, message: Any, act: str, expected: Any) -> None:
    desk.durability = "fsync"
    past = Answered(REQUEST, act, 44, NOW.timer_us)
    other = Answered(uid(21), "ext", 55, NOW.timer_us)

    assert known(new_batch(desk, job(answered=(other, past), due_at_us=NOW.timer_us + 77)), message) == expected
    assert known(new_batch(desk, job(answered=(other,))), message) is None


def test_an_enq_whose_answer_the_job_has_forgotten_is_told_the_due_there_is(desk: Desk) -> None:
    desk.durability = "fsync"
    batch = new_batch(desk, job(due_at_us=NOW.timer_us + 77))

    assert changes.known_enq(batch, m.Enq(uid(1), "Mail")) == Enqueued(uid(1), NOW.wall_us + 77, "fsync")


# Resume.


def test_a_resume_reads_what_a_shared_store_may_have_answered(desk: Desk) -> None:
    names = Names()

    changes.needs_resume(names, asked(Kind.RESUME_LENDING, m.ResumeLending(REQUEST), BadRequest("no")), desk)

    assert names == Names(requests={REQUEST})


@pytest.mark.parametrize("is_holding", [False, True])
def test_a_resume_says_whether_there_was_a_hold_and_leaves_it_to_the_commit(desk: Desk, is_holding: bool) -> None:
    desk.is_holding, desk.tells_news = is_holding, True
    batch, message = new_batch(desk), m.ResumeLending(REQUEST)

    assert changes.resume_lending(batch, asked(Kind.RESUME_LENDING, message), message) == LendingResumed(is_holding)
    assert (batch.ends_hold, desk.is_holding) == (is_holding, is_holding)
    assert said(batch) == [JournalEntry("resumed", 1)] * is_holding


def test_no_job_is_an_answer_of_its_own(desk: Desk) -> None:
    batch = new_batch(desk, now=later(1))

    assert [type(decide(batch, message)) for message in (cancel(), ext(delta_us=SECOND_US), requeue())] == [NotFound] * 3
