"""The batch that is being decided: every job as the commands before have left it, and at most one change for each."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import NOW, changed, connect, job, lend, new_batch, new_desk, running, said
from engine_rig import uid

from givalia_core.clock import SECOND_US
from givalia_core.engine.records import Hook, JournalEntry, Refusal
from givalia_core.errors import Busy
from givalia_core.model import CANCELLED, DEAD, DONE, REMEMBERED_AT_LEAST_US, REQUESTS_MOST, RUNNING, WAITING, Answered, evolve
from givalia_core.store.base import VARIANTS_MAX, Change, Route
from givalia_core.views import text_id


def test_a_job_is_found_by_every_name_as_the_batch_has_left_it() -> None:
    stored = job(3, key="k", answered=(Answered(uid(90), "enq", 0, 0),))
    batch = new_batch(new_desk(), stored)
    moved = evolve(stored, "ext")
    moved.due_at_us += 9

    batch.put(stored, moved)

    assert batch.by_id(uid(3)) is moved
    assert batch.live("k") is moved
    assert batch.see(stored) is moved
    assert batch.of_key("k") == (moved, None)


def test_a_key_is_free_once_its_job_has_ended_and_names_that_job_still() -> None:
    stored = job(3, key="k")
    batch = new_batch(new_desk(), stored)
    over = batch.end(stored, evolve(stored, "cancel"))

    assert batch.live("k") is None
    assert batch.ended("k") is over
    next_one = job(4, key="k")
    batch.insert(next_one)
    assert batch.of_key("k") == (next_one, over)


def test_a_key_in_the_form_of_an_id_means_that_job_if_no_live_job_has_it() -> None:
    stored = job(3)
    batch = new_batch(new_desk(), stored)
    name = text_id(uid(3))

    assert batch.of_key(name) == (stored, None)
    batch.insert(job(4, key=name))
    assert batch.of_key(name)[0] is batch.jobs[4]


def test_an_expired_job_is_ended_before_it_is_shown() -> None:
    stored = job(3, key="k", expires_at_us=NOW.timer_us - 1)
    batch = new_batch(new_desk(), stored)

    assert batch.live("k") is None
    (ended,) = changed(batch)
    assert (ended.state, ended.reason) == (DEAD, "expired")


def test_a_job_that_is_touched_often_is_one_change_and_one_that_is_only_seen_is_none() -> None:
    stored, seen = job(3), job(4)
    batch = new_batch(new_desk(), stored, seen)
    batch.by_id(uid(4))
    first = evolve(stored, "ext")
    batch.put(stored, first)
    second = evolve(first, "ext")
    batch.put(first, second)

    assert batch.changes() == [Change(stored, second)]


def test_of_two_jobs_that_end_at_once_it_is_known_which_ended_last() -> None:
    one, two = job(3, key="k"), job(4)
    batch = new_batch(new_desk(), one, two)

    first, second = batch.end(one, evolve(one, "cancel")), batch.end(two, evolve(two, "cancel"))

    assert first.ended_at_us == NOW.timer_us
    assert second.ended_at_us == NOW.timer_us + 1


@pytest.mark.parametrize(
    ("act", "retain_s", "kept_s"),
    [("cancel", None, 3_600), ("cancel", 500, 500), ("cancel", 0, 120), ("expire", None, 7_200)],
)
def test_an_ended_job_is_remembered_for_its_own_time_or_that_of_its_state(act: str, retain_s: int | None, kept_s: int) -> None:
    retain_us = None if retain_s is None else retain_s * SECOND_US
    stored = job(3, retain_us=retain_us)
    batch = new_batch(new_desk(retain_us=3_600 * SECOND_US, retain_dead_us=7_200 * SECOND_US), stored)

    ended = batch.end(stored, evolve(stored, act))

    assert ended.forget_at_us == ended.ended_at_us + max(kept_s * SECOND_US, REMEMBERED_AT_LEAST_US)


def test_the_end_of_a_job_lets_its_worker_take_another_at_once_and_a_refused_end_takes_that_back() -> None:
    desk = new_desk()
    session, stored = connect(desk), running(3)
    lend(desk, stored, session)
    room = session.room("Mail")
    batch = new_batch(desk, stored)
    assert room.free == 0

    batch.end(stored, evolve(stored, "succeed"))
    assert room.free == 1
    batch.take_back_credits(3)

    assert room.free == 0


def test_a_death_is_told_to_plugins_and_to_the_log() -> None:
    desk = new_desk()
    desk.tells_news = True
    batch = new_batch(desk, job(3))

    dead = batch.expire(job(3))

    hook, entry = said(batch)
    assert isinstance(hook, Hook)
    assert isinstance(entry, JournalEntry)
    assert (hook.name, hook.job, entry.act, entry.subject) == ("on_dead", dead, "dead", dead)


@pytest.mark.parametrize("listening", [frozenset(), frozenset({"on_enq"})])
def test_hooks_that_nobody_implements_cost_nothing(listening: frozenset[str]) -> None:
    desk = new_desk()
    desk.listening = listening
    batch = new_batch(desk, running(3))

    batch.end(running(3), evolve(running(3), "succeed"))

    assert said(batch) == []


def answered(count: int, at_us: int = NOW.timer_us - 5) -> tuple[Answered, ...]:
    return tuple(Answered(uid(1_000 + number), "ext", 0, at_us) for number in range(count))


@pytest.mark.parametrize("act", ["ext", "cancel", "ask_stop"])
def test_a_job_that_remembers_all_it_can_takes_only_what_ends_it(act: str) -> None:
    batch = new_batch(new_desk())
    full = job(3, answered=answered(REQUESTS_MOST))

    if act == "ext":
        with pytest.raises(Refusal) as caught:
            batch.answered(full, uid(9), act, 1)
        assert isinstance(caught.value.error, Busy)
        assert caught.value.error.details["retry_after"] == pytest.approx(120, abs=1)
    else:
        assert batch.answered(full, uid(9), act, 1)[-1] == Answered(uid(9), act, 1, NOW.timer_us)


def test_old_commands_make_room() -> None:
    batch = new_batch(new_desk())
    old = NOW.timer_us - REMEMBERED_AT_LEAST_US - 1

    kept = batch.answered(job(3, answered=answered(REQUESTS_MOST, old)), uid(9), "ext", 1)

    assert len(kept) < 10
    assert kept[-1].request == uid(9)
    assert batch.requests == {uid(9): 3}


def test_a_new_specifier_is_refused_once_the_route_has_all_it_may_have() -> None:
    batch = new_batch(new_desk())
    batch.found.variants[Route("Mail", "any")] = [Route("Mail", f"any =={number}") for number in range(VARIANTS_MAX - 1)]

    assert batch.has_room(Route("Mail", "any"))
    assert batch.has_room(Route("Mail", "any >=1"))
    assert not batch.has_room(Route("Mail", "any >=2"))
    assert batch.has_room(Route("Mail", "any >=1"))
    assert batch.has_room(Route("Fax", "any >=2"))


def test_of_several_reports_of_progress_a_waiter_hears_the_newest_in_one_frame_a_connection() -> None:
    desk = new_desk()
    lease = lend(desk, running(3))
    batch = new_batch(desk, running(3))
    for fraction in (0.1, 0.2):
        lease.progress = (fraction, "half")
        batch.tell_progress(uid(3), (1, 8))
    batch.tell_progress(uid(3), (1, 9))
    desk.clogged = frozenset({2})
    batch.tell_progress(uid(3), (2, 7))

    (told,) = batch.progress()

    assert told.conn == 1
    assert [tuple(fields) for fields, _ in told.items] == [(8, 0.2, "half"), (9, 0.2, "half")]


def test_whoever_shares_a_store_hears_of_the_end_of_a_job_that_ends_elsewhere() -> None:
    desk = new_desk(is_shared=True)
    lend(desk, running(3))
    batch = new_batch(desk)

    batch.follow(running(3))
    batch.follow(running(4))

    assert batch.followed == desk.suspects == {uid(4)}


STATES: Any = [WAITING, RUNNING, DONE, CANCELLED, DEAD]


@pytest.mark.parametrize("state", STATES)
def test_a_request_that_made_or_changed_a_job_is_not_new(state: Any) -> None:
    past = (Answered(uid(3), "enq", 0, 0), Answered(uid(90), "ext", 0, 0))
    batch = new_batch(new_desk(), job(3, state=state, answered=past))

    assert [batch.is_new(uid(number)) for number in (3, 90, 91)] == [False, False, True]
    assert batch.by_request(uid(90)) is batch.found.ids[uid(3)]
