"""Acts by filter: each job at most once in a run, whatever happens to the job; true counts; no other job touched."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from engine_rig import EngineRig, uid

from givalia_core.client.filters import Acted, PagedAct, cancel_all, ext_all, requeue_all
from givalia_core.clock import SECOND_US
from givalia_core.errors import BadRequest, Busy, GivaliaError, StoreFull
from givalia_core.protocol import codec
from givalia_core.protocol import messages as m
from givalia_core.protocol.codec import read_answer
from givalia_core.protocol.messages import Kind
from givalia_core.times import at_to_us, to_datetime

MINUTE_US = 60 * SECOND_US
DAY_US = 1_440 * MINUTE_US


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


def enqueue(rig: EngineRig, count: int, first: int = 1, **fields: Any) -> None:
    """Jobs that wait for ten minutes; their keys are `cart-N`."""
    messages = [
        m.Enq(id=uid(n), module="Mail", delay_us=10 * MINUTE_US, key=f"cart-{n}", **fields) for n in range(first, first + count)
    ]
    rig.ask(Kind.ENQ, *messages)


def act(rig: EngineRig, act: str, request: int = 9_000, **fields: Any) -> Any:
    """The answer to one page: counts, end of the run, cursor; or the error."""
    (answer,) = rig.ask(Kind.ACT, m.Act(uid(request), act, **fields))
    return answer


def run(rig: EngineRig, run: PagedAct) -> Acted:
    """A whole run, as clients do it."""
    acted = Acted()
    while not run.is_over:
        request = run.ask()
        ((fields, payload),) = request.items
        (answer,) = rig.ask(Kind.ACT, codec.check(Kind.ACT, list(fields), payload))
        if isinstance(answer, GivaliaError):
            raise answer
        acted = run.take(request.read(read_answer(Kind.ACT, ["OK", *answer])))
    return acted


def states(rig: EngineRig, *numbers: int) -> list[str]:
    return [rig.state(id=uid(number)) for number in numbers]


def test_cancel_calls_off_what_the_filter_admits_and_nothing_else(rig: EngineRig) -> None:
    enqueue(rig, 3)
    rig.enq("Fax", id=uid(10), key="cart-10", delay_us=MINUTE_US)
    rig.enq(id=uid(11), key="visit-1", delay_us=MINUTE_US)

    acted = run(rig, cancel_all(module="Mail", key_prefix="cart-"))

    assert acted == Acted({"cancelled": 3}, None)
    assert states(rig, 1, 2, 3, 10, 11) == ["cancelled"] * 3 + ["waiting"] * 2


def test_running_jobs_are_counted_and_stopped_only_if_that_is_asked(rig: EngineRig) -> None:
    worker = rig.worker(capacity=1)
    rig.enq(id=uid(1))
    enqueue(rig, 2, first=2)

    left = run(rig, cancel_all(all=True))
    asked = run(rig, cancel_all(all=True, running=True))

    assert left.counts == {"running": 1, "cancelled": 2}
    assert asked.counts == {"stop_requested": 1}
    assert worker.last.id == uid(1)


def test_a_run_moves_each_job_once_though_that_takes_it_ahead_of_the_cursor(rig: EngineRig) -> None:
    enqueue(rig, 1_234)
    before = {number: rig.stored(uid(number)).due_at_us for number in (1, 500, 501, 1_234)}

    acted = run(rig, ext_all(60, module="Mail"))

    assert acted.counts == {"moved": 1_234}
    assert {number: rig.stored(uid(number)).due_at_us for number in before} == {
        number: due_us + MINUTE_US for number, due_us in before.items()
    }


def test_jobs_that_come_during_a_run_are_left_alone(rig: EngineRig) -> None:
    enqueue(rig, 600)
    first = act(rig, "cancel", module="Mail")
    enqueue(rig, 10, first=2_000)

    second = act(rig, "cancel", 9_001, module="Mail", **dict(zip(("end_seq", "after_a", "after_b"), first[1:], strict=True)))

    assert (first[0], second[0], len(second)) == ({"cancelled": 500}, {"cancelled": 100}, 2)
    assert states(rig, 2_000) == ["waiting"]


@pytest.mark.parametrize("restarts", [False, True])
def test_a_page_that_is_sent_again_changes_nothing_twice(rig: EngineRig, restarts: bool) -> None:
    enqueue(rig, 5)
    first = act(rig, "ext", delta_us=MINUTE_US, module="Mail")
    before = [rig.stored(uid(number)) for number in range(1, 6)]
    if restarts:
        rig.restart()

    again = act(rig, "ext", delta_us=MINUTE_US, module="Mail")

    assert again == first
    assert [rig.stored(uid(number)) for number in range(1, 6)] == before


def test_a_page_of_cancel_that_is_sent_again_is_answered_with_the_same_counts(rig: EngineRig) -> None:
    enqueue(rig, 5)

    assert act(rig, "cancel", key_prefix="cart") == act(rig, "cancel", key_prefix="cart")


def test_what_failed_since_with_this_error_is_requeued_and_only_that(rig: EngineRig) -> None:
    worker = rig.worker(capacity=10)
    for number, error in ((1, "TimeoutError: SMTP"), (2, "TimeoutError: SMTP"), (3, "ValueError: x")):
        if number == 2:
            rig.clock.advance(60)
            since_us = rig.now.wall_us
        rig.enq(id=uid(number))
        worker.fail(error=error, permanent=True)
    worker.credit(0)

    acted = run(rig, requeue_all(error="smtp", ended_after=since_us / 1e6, time=60))

    assert acted.counts == {"requeued": 1}
    assert states(rig, 1, 2, 3) == ["dead", "waiting", "dead"]


def test_requeue_without_a_state_is_for_dead_and_cancelled_jobs(rig: EngineRig) -> None:
    enqueue(rig, 2)
    rig.cancel(id=uid(1))
    worker = rig.worker(capacity=1)
    rig.enq(id=uid(3))
    worker.fail(permanent=True)
    worker.credit(0)

    assert run(rig, requeue_all(module="Mail", time=60)).counts == {"requeued": 2}
    assert states(rig, 1, 2, 3) == ["waiting"] * 3


def test_a_job_that_dies_again_during_a_run_is_not_requeued_again(rig: EngineRig) -> None:
    enqueue(rig, 600)
    run(rig, cancel_all(all=True))
    rig.clock.advance(1)
    requeue = requeue_all("cancelled", module="Mail", time=600)
    page = act(rig, "requeue", state="cancelled", module="Mail", delta_us=10 * MINUTE_US)
    requeue.take(read_answer(Kind.ACT, ["OK", *page]))  # type: ignore[arg-type]
    rig.cancel(id=uid(600))  # The last that ended is the first of the run.

    acted = run(rig, requeue)

    assert acted.counts == {"requeued": 600}
    assert states(rig, 600, 599, 1) == ["cancelled", "waiting", "waiting"]


def test_a_key_that_is_taken_is_counted_by_its_code(rig: EngineRig) -> None:
    rig.enq(id=uid(1), key="k", delay_us=MINUTE_US)
    rig.cancel("k")
    rig.enq(id=uid(2), key="k", delay_us=MINUTE_US)

    for dry_run in (True, False):
        assert run(rig, requeue_all("cancelled", module="Mail", dry_run=dry_run)).counts == {"DUPLICATE_KEY": 1}


def test_of_two_jobs_of_one_key_only_one_would_be_requeued(rig: EngineRig) -> None:
    for number in (1, 2):
        rig.enq(id=uid(number), key="k", delay_us=MINUTE_US)
        rig.cancel("k")

    for dry_run in (True, False):
        counts = run(rig, requeue_all("cancelled", module="Mail", dry_run=dry_run)).counts
        assert counts == {"requeued": 1, "DUPLICATE_KEY": 1}


def test_a_dry_run_counts_and_changes_nothing(rig: EngineRig) -> None:
    rig.worker(capacity=1)
    rig.enq(id=uid(1))
    enqueue(rig, 2, first=2)
    before = [rig.stored(uid(number)) for number in (1, 2, 3)]

    dry = [run(rig, verb).counts for verb in (cancel_all(all=True, dry_run=True), ext_all(5, all=True, dry_run=True))]

    assert dry == [{"running": 1, "cancelled": 2}, {"running": 1, "moved": 2}]
    assert [rig.stored(uid(number)) for number in (1, 2, 3)] == before


def page(rig: EngineRig, run: PagedAct) -> Any:
    """What the server answers to the next page."""
    ((fields, payload),) = run.ask().items
    (answer,) = rig.ask(Kind.ACT, codec.check(Kind.ACT, list(fields), payload))
    return answer


def test_a_run_that_was_broken_off_goes_on_from_its_cursor(rig: EngineRig) -> None:
    enqueue(rig, 1_100)
    told: list[Acted] = []
    broken = cancel_all(module="Mail", on_page=told.append)
    broken.tell()
    broken.take(broken.ask().read(read_answer(Kind.ACT, ["OK", *page(rig, broken)])))
    broken.tell()

    rest = run(rig, cancel_all(module="Mail", cursor=told[-1].cursor))

    assert [each.counts for each in told] == [{}, {"cancelled": 500}]
    assert rest == Acted({"cancelled": 600}, None)


@pytest.mark.parametrize("pages", [0, 1])
@pytest.mark.parametrize("restarts", [False, True])
def test_a_run_that_goes_on_repeats_no_page_that_was_done_and_whose_answer_was_lost(
    rig: EngineRig, pages: int, restarts: bool
) -> None:
    enqueue(rig, 1_100)
    before = [rig.stored(uid(number)).due_at_us for number in range(1, 1_101)]
    told: list[Acted] = []
    broken = ext_all(60, module="Mail", on_page=told.append)
    broken.tell()
    for _ in range(pages):
        broken.take(broken.ask().read(read_answer(Kind.ACT, ["OK", *page(rig, broken)])))
        broken.tell()
    page(rig, broken)
    if restarts:
        rig.restart()

    rest = run(rig, ext_all(60, module="Mail", cursor=told[-1].cursor))

    assert rest.counts == {"moved": 1_100 - 500 * pages}
    assert [rig.stored(uid(number)).due_at_us for number in range(1, 1_101)] == [due_us + MINUTE_US for due_us in before]


def test_a_cursor_goes_on_with_its_own_filter_only() -> None:
    told: list[Acted] = []
    cancel_all(module="Mail", key_prefix="a-", on_page=told.append).tell()

    with pytest.raises(BadRequest, match="other arguments"):
        cancel_all(module="Mail", key_prefix="b-", cursor=told[0].cursor)
    for options in ({"running": True}, {"dry_run": True}):
        with pytest.raises(BadRequest, match="other arguments"):
            cancel_all(module="Mail", key_prefix="a-", cursor=told[0].cursor, **options)
    assert not cancel_all(module="Mail", key_prefix="a-", cursor=told[0].cursor).is_over


def test_a_cursor_of_an_earlier_version_goes_on(rig: EngineRig) -> None:
    enqueue(rig, 2)

    assert run(rig, cancel_all(module="Mail", cursor=f"cancel:-:{2}:0:0")).counts == {"cancelled": 2}


@pytest.mark.parametrize(
    "cursor", ["", "x", "ext:-:5:0:5", "cancel:dead:5:0:5", "cancel:-:5:0", "cancel:-:a:b:c", "cancel:-:5:0:5:aa"]
)
def test_a_cursor_of_something_else_is_refused(cursor: str) -> None:
    with pytest.raises(BadRequest, match="no cursor"):
        cancel_all(module="Mail", cursor=cursor)


def test_lengths_and_instants_are_taken_as_by_all_verbs(rig: EngineRig) -> None:
    enqueue(rig, 2)
    due = to_datetime(rig.stat(id=uid(1))["due_us"])

    assert run(rig, ext_all(timedelta(minutes=5), due_after=due.isoformat())).counts == {"moved": 2}
    assert rig.stat(id=uid(1))["due_us"] == at_to_us(due) + 5 * MINUTE_US
    assert run(rig, cancel_all(due_before=due)).counts == {}
    assert run(rig, ext_all(at=due.isoformat(), all=True)).counts == {"moved": 2}
    assert rig.stat(id=uid(1))["due_us"] == at_to_us(due)
    with pytest.raises(BadRequest, match="ended_after '2031-03-04' has no time zone"):
        requeue_all(ended_after="2031-03-04")
    with pytest.raises(BadRequest, match="time is a number of seconds or a timedelta"):
        requeue_all("dead", time="10m")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give a filter, or all=True for all jobs"),
        ({"all": True, "module": "Mail"}, "exclude each other"),
        ({"all": "no"}, "all is True or False, not 'no'"),
        ({"module": "Mail", "key_prefix": ""}, "key_prefix is text of one character or more, not ''"),
        ({"module": "Mail", "key_prefix": []}, "key_prefix is text of one character or more"),
        ({"module": "Mail", "error": ""}, "error is text of one character or more"),
        ({"module": "Mail", "error": "\udcff"}, "error is text of one character or more"),
    ],
)
def test_neither_nothing_nor_an_empty_text_is_a_filter(given: dict[str, Any], words: str) -> None:
    for verb in (cancel_all, requeue_all):
        with pytest.raises(BadRequest, match=words):
            verb(**given)
    with pytest.raises(BadRequest, match=words):
        ext_all(5, **given)


def test_jobs_that_live_have_not_ended_whatever_the_instant(rig: EngineRig) -> None:
    enqueue(rig, 2)
    act(rig, "cancel", key_prefix="cart-1")

    assert act(rig, "cancel", 9_001, ended_after_us=0)[0] == {}
    assert act(rig, "requeue", 9_002, state="cancelled", ended_after_us=0, delta_us=0)[0] == {"requeued": 1}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_job_that_cannot_be_moved_so_far_is_counted_and_is_in_nobodys_way(rig: EngineRig, dry_run: bool) -> None:
    enqueue(rig, 3)
    rig.ext(id=uid(2), delta_us=3_640 * DAY_US)

    acted = run(rig, ext_all(timedelta(days=30), module="Mail", dry_run=dry_run))

    assert acted.counts == {"moved": 2, "BAD_REQUEST": 1}


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_instant_that_is_too_far_is_refused_before_anything_is_counted(rig: EngineRig, dry_run: bool) -> None:
    enqueue(rig, 1)

    assert isinstance(act(rig, "ext", at_us=rig.now.wall_us + 11 * 365 * DAY_US, module="Mail", dry_run=dry_run), BadRequest)


@pytest.mark.parametrize(
    "fields",
    [
        {"act": "cancel", "state": "dead"},
        {"act": "ext", "delta_us": 1, "state": "done"},
        {"act": "ext"},
        {"act": "ext", "delta_us": 1, "at_us": 1},
        {"act": "requeue", "state": "waiting"},
        {"act": "requeue"},
    ],
)
def test_nonsense_is_refused(rig: EngineRig, fields: dict[str, Any]) -> None:
    enqueue(rig, 1)

    assert isinstance(act(rig, **fields), BadRequest)
    assert states(rig, 1) == ["waiting"]


def test_a_page_that_cannot_be_decided_is_refused_as_a_whole_and_done_when_it_is_sent_again(rig: EngineRig) -> None:
    enqueue(rig, 3)
    run(rig, cancel_all(all=True))
    rig.store.is_full = True  # type: ignore[misc]
    rig.store.has_room = lambda: False  # type: ignore[method-assign]
    full = act(rig, "requeue", state="cancelled", delta_us=MINUTE_US)
    rig.store.has_room = lambda: True  # type: ignore[method-assign]

    assert isinstance(full, StoreFull)
    assert act(rig, "requeue", state="cancelled", delta_us=MINUTE_US)[0] == {"requeued": 3}


def test_a_page_that_its_client_waits_for_no_more_changes_nothing(rig: EngineRig) -> None:
    enqueue(rig, 1)
    late = rig.frame(Kind.ACT, m.Act(uid(9_000), "cancel", module="Mail"))._replace(until_us=rig.now.mono_us - 1)

    rig.turn(late)

    assert isinstance(rig.answers(late)[0], Busy)
    assert states(rig, 1) == ["waiting"]


def test_a_client_that_leaves_in_the_middle_of_a_page_leaves_nothing_behind(rig: EngineRig) -> None:
    from givalia_core.engine import turn
    from givalia_core.engine.records import Gone

    enqueue(rig, 5)
    frame = rig.frame(Kind.ACT, m.Act(uid(9_000), "cancel", module="Mail"))
    while not rig.engine.desk.acts.answers:
        turn.turn(rig.engine, rig.store, rig.timer, [frame] if not rig.engine.questions else [], rig.clock)
        turn.walk(rig.engine, rig.store, rig.timer, rig.clock)

    rig.turn(Gone(frame.conn))

    assert not rig.engine.desk.acts.answers
    assert not rig.engine.questions
    assert states(rig, 1, 5) == ["cancelled", "cancelled"]  # It was on its way; a client that asks again is told so.
