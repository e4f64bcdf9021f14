"""Acts by filter: the walk of a page, its commands, and the counts of their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from engine_parts import NOW, found, job, later, running
from engine_rig import uid

from givalia_core.clock import Mark, Now
from givalia_core.engine.acts import AT_ONCE, CONN, Acts, Awaiting, page
from givalia_core.engine.questions import filter_of
from givalia_core.engine.records import Close, Effect, Refusal, Reply
from givalia_core.errors import BadRequest, Busy, DuplicateKey, NotFound, StoreFull, WrongState
from givalia_core.model import CANCELLED, DEAD, DONE, TEN_YEARS_US, Job
from givalia_core.protocol.answers import ActedPage, Answer, Cancelled, Moved
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Act, Kind
from givalia_core.store.base import Change, Found, Page, Wanted
from givalia_core.store.memory import Memory

LAST = 1_000
RUN = uid(9)
ALL_DONE: dict[Kind, Answer] = {
    Kind.CANCEL: Cancelled("cancelled"),
    Kind.EXT: Moved(uid(1), 0),
    Kind.REQUEUE: Moved(uid(1), 0),
}


def store_of(*jobs: Job) -> Memory:
    store = Memory()
    store.commit([Change(None, each) for each in jobs], Mark("boot", 0, 0, 0))
    return store


def dead(seq: int, **fields: Any) -> Job:
    return job(seq, state=DEAD, ended_at_us=seq, forget_at_us=seq, **fields)


def succeed(given: Asked) -> list[Answer]:
    return [ALL_DONE[given.kind]] * len(given.messages)


class Run:
    """A page that was walked to its end, with the commands it submitted and how often it paused between steps."""

    def __init__(
        self,
        store: Memory,
        message: Act,
        decide: Callable[[Asked], list[Answer]] = succeed,
        rows: int = 500,
        last_seq: int = LAST,
        now: Now = NOW,
    ) -> None:
        self.acts = Acts()
        self.asked: list[Asked] = []
        self.pauses = 0
        walk = page(self.acts, store, message, filter_of(message), last_seq)
        next(walk)
        while True:
            try:
                rest = walk.send((now, rows))
            except StopIteration as end:
                self.answer: ActedPage = end.value
                return
            if isinstance(rest, Awaiting):
                (given,) = self.acts.take()
                assert given.request == rest.ticket
                assert not self.acts.is_answered(rest.ticket)
                self.asked.append(given)
                assert self.acts.without_own([Reply(CONN, rest.ticket, decide(given))]) == []
            else:
                assert rest is False
                self.pauses += 1

    @property
    def ids(self) -> list[bytes]:
        return [message.id for given in self.asked for message in given.messages]


def cancel(**fields: Any) -> Act:
    return Act(RUN, "cancel", **fields)


def test_the_answers_to_own_commands_are_kept_for_the_walk_and_all_else_goes_on() -> None:
    acts = Acts()
    ticket = acts.submit(Kind.CANCEL, [])
    others: list[Effect] = [Reply(1, ticket, []), Close(3, "why")]

    assert acts.without_own([others[0], Reply(CONN, ticket, [Cancelled("cancelled")]), others[1]]) == others
    assert acts.is_answered(ticket)
    assert acts.collect(ticket) == [Cancelled("cancelled")]
    assert acts.collect(ticket) == []


def test_answers_that_nobody_waits_for_any_more_are_forgotten() -> None:
    acts = Acts()
    dropped, awaited = acts.submit(Kind.CANCEL, []), acts.submit(Kind.EXT, [])
    acts.drop(dropped)

    assert acts.without_own([Reply(CONN, dropped, [Cancelled("cancelled")])]) == []
    assert acts.is_answered(dropped)
    assert not acts.is_answered(awaited)
    assert acts.answers == {awaited: None}


def test_what_was_submitted_is_taken_once() -> None:
    acts = Acts()
    tickets = [acts.submit(Kind.CANCEL, []), acts.submit(Kind.EXT, [])]

    assert [(given.conn, given.request) for given in acts.take()] == [(CONN, ticket) for ticket in tickets]
    assert acts.take() == []


@pytest.mark.parametrize(
    "message",
    [
        Act(RUN, "ext"),
        Act(RUN, "ext", delta_us=1, at_us=NOW.wall_us),
        Act(RUN, "ext", at_us=NOW.wall_us + TEN_YEARS_US + 1),
        Act(RUN, "ext", delta_us=1, state="dead"),
        Act(RUN, "cancel", state="done"),
        Act(RUN, "requeue", state="waiting"),
        Act(RUN, "requeue"),
    ],
)
def test_nonsense_is_refused_before_anything_is_submitted(message: Act) -> None:
    acts = Acts()
    walk = page(acts, store_of(job(1), dead(2)), message, filter_of(message), LAST)
    next(walk)

    with pytest.raises(Refusal) as refused:
        walk.send((NOW, 500))
    assert isinstance(refused.value.error, BadRequest)
    assert acts.take() == []


def test_a_run_is_for_live_jobs_that_were_there_when_it_began() -> None:
    jobs = [job(1), running(2), dead(3), job(4, expires_at_us=NOW.timer_us), job(5), job(6)]

    run = Run(store_of(*jobs), cancel(), last_seq=5)

    assert run.ids == [uid(1), uid(2), uid(5)]
    assert run.answer == ActedPage({"cancelled": 3}, 5)


def test_a_run_goes_in_the_order_of_enq_whatever_the_dues() -> None:
    store = store_of(job(1, due_at_us=NOW.timer_us + 9), job(2, due_at_us=NOW.timer_us + 5))

    assert Run(store, cancel(state="waiting")).ids == [uid(1), uid(2)]


class Numbered(Memory):
    """A store that gives numbers of its own."""

    def find(self, wanted: Wanted, now: Now) -> Found:
        return found(floor=7 if wanted.numbers else 0)


def test_where_a_store_gives_the_numbers_it_says_where_a_run_ends_unless_the_run_knows() -> None:
    assert Run(Numbered(), cancel()).answer.end_seq == 7
    assert Run(Numbered(), cancel(end_seq=3)).answer.end_seq == 3


def test_the_pages_of_a_run_follow_each_other_and_meet_each_job_once() -> None:
    store = store_of(*(job(seq) for seq in range(1, 6)))

    first = Run(store, cancel(limit=2))
    second = Run(store, cancel(limit=2, end_seq=4, after_a=first.answer.after_a, after_b=first.answer.after_b))

    assert (first.ids, second.ids) == ([uid(1), uid(2)], [uid(3), uid(4)])
    assert first.answer.after_b == 2
    assert (second.answer.after_a, second.answer.after_b) == (None, None)


def test_jobs_that_have_ended_are_gone_through_backwards_even_those_after_the_end_of_the_run() -> None:
    run = Run(store_of(dead(1), dead(3), dead(2)), Act(RUN, "requeue", state="dead"), last_seq=1)

    assert run.ids == [uid(3), uid(2), uid(1)]
    assert run.answer.counts == {"requeued": 3}


def test_a_step_looks_at_no_more_rows_than_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[int] = []
    store = store_of(*(job(seq) for seq in range(1, 6)))
    read = store.page

    def watched(wanted: Any, after: Any, limit: int, now: Now, rows: int) -> Page:
        looked_at.append(rows)
        return read(wanted, after, limit, now, rows)

    monkeypatch.setattr(store, "page", watched)
    monkeypatch.setattr("givalia_core.engine.acts.SCAN_MAX", 5)

    run = Run(store, cancel(), rows=2)

    assert looked_at == [2, 2, 1]
    assert run.pauses == 2
    assert len(run.ids) == 5


def test_commands_come_in_batches_each_behind_the_answers_of_the_one_before() -> None:
    run = Run(store_of(*(job(seq) for seq in range(1, AT_ONCE + 2))), cancel())

    assert [len(given.messages) for given in run.asked] == [AT_ONCE, 1]
    assert run.answer.counts == {"cancelled": AT_ONCE + 1}
    assert run.acts.answers == {}


def test_the_request_of_a_command_is_made_of_its_run_and_its_job() -> None:
    store = store_of(job(1), job(2))

    def requests(message: Act) -> list[bytes]:
        return [each.request for each in Run(store, message).asked[0].messages]

    first = requests(cancel())
    assert len(set(first)) == 2
    assert requests(cancel()) == first
    assert requests(Act(uid(8), "cancel", run=RUN)) == first
    assert set(requests(Act(uid(8), "cancel"))).isdisjoint(first)


def test_the_commands_say_what_the_act_says() -> None:
    live, ended = store_of(job(1)), store_of(dead(1))

    def command(store: Memory, *act: Any, **fields: Any) -> Any:
        ((message,),) = [given.messages for given in Run(store, Act(RUN, *act, **fields)).asked]
        return message

    assert command(live, "cancel", running=True).running
    assert command(live, "ext", delta_us=-5)[3:] == (-5, None)
    assert command(ended, "requeue", "dead", delta_us=-5)[3:] == (0, None)
    assert command(ended, "requeue", "dead", at_us=7)[3:] == (0, 7)


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        (cancel(), {"cancelled": 2, "running": 1}),
        (cancel(running=True), {"cancelled": 2, "stop_requested": 1}),
        (Act(RUN, "ext", delta_us=1), {"moved": 1, "BAD_REQUEST": 1, "running": 1}),
        (Act(RUN, "requeue", "dead"), {"requeued": 4, "DUPLICATE_KEY": 2}),
    ],
)
def test_a_dry_run_counts_what_would_be_and_submits_nothing(message: Act, counts: dict[str, int]) -> None:
    far = job(3, key="far", due_at_us=NOW.timer_us + TEN_YEARS_US)
    jobs = [
        job(1, key="live"),
        running(2),
        far,
        dead(4),
        dead(5, key="live"),
        dead(6, key="k"),
        dead(7, key="k"),
        dead(8),
        dead(9, key="m"),
    ]

    run = Run(store_of(*jobs), message._replace(dry_run=True))

    assert (run.answer.counts, run.asked) == (counts, [])


def test_answers_are_counted_by_what_the_commands_came_to() -> None:
    answers: list[Answer] = [
        Cancelled("cancelled"), Cancelled("stop_requested"), WrongState("no", state="done"), NotFound("no"),
        DuplicateKey("no", id=""), BadRequest("no"),
    ]  # fmt: skip

    run = Run(store_of(*(job(seq) for seq in range(1, 7))), cancel(), lambda given: answers)

    assert run.answer.counts == {
        "cancelled": 1, "stop_requested": 1, "done": 1, "NOT_FOUND": 1, "DUPLICATE_KEY": 1, "BAD_REQUEST": 1,
    }  # fmt: skip


@pytest.mark.parametrize("error", [Busy("no", retry_after=1.0), StoreFull("no")])
def test_a_page_of_which_something_was_not_decided_is_to_be_asked_for_again(error: Busy | StoreFull) -> None:
    with pytest.raises(Refusal) as refused:
        Run(store_of(job(1), job(2)), cancel(), lambda given: [Cancelled("cancelled"), error])
    assert refused.value.error is error


def test_a_cancelled_job_can_be_requeued_and_a_done_one_is_none_that_an_act_is_for() -> None:
    store = store_of(job(1, state=CANCELLED, ended_at_us=1, forget_at_us=1), job(2, state=DONE, ended_at_us=2, forget_at_us=2))

    assert Run(store, Act(RUN, "requeue", "cancelled"), now=later(1)).ids == [uid(1)]
    assert Run(store, cancel()).ids == []
