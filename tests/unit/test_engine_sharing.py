"""What a server knows of the others: suspects, when it asks the store again, and jobs that nobody looks after."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from engine_parts import ME, NOW, changed, connect, job, later, lend, new_batch, new_desk, running, watched
from engine_rig import uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import sharing
from givalia_core.engine.aside import LOOK_NEWS_US
from givalia_core.engine.desk import Desk
from givalia_core.engine.records import Hook, Reply, Tell
from givalia_core.engine.sharing import AWAITED_LEAST, AWAITED_MOST, REVIEWED_BYTES, Pace, Sharing
from givalia_core.errors import NotFound
from givalia_core.model import CANCELLED, DONE, RUNNING, WAITING, Job
from givalia_core.protocol.answers import EndedCancelled
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Kind, Process, Stop
from givalia_core.store.base import Route
from givalia_core.store.shared import Event, News

CANCEL = Event("on_cancel", running(stop_asked=True), running=True)


@pytest.fixture
def desk() -> Desk:
    return new_desk(is_shared=True)


@pytest.fixture
def others(desk: Desk) -> Sharing:
    """What is known of the others once the store was watched."""
    made = Sharing(desk, NOW)
    made.watch(None, NOW)
    return made


def await_end(desk: Desk, *numbers: int) -> None:
    for number in numbers:
        desk.waits.add(uid(number), 1, number, wants_progress=False)


# The pace of reviews.


def test_a_batch_reads_all_suspects_that_are_leased_and_a_few_that_are_waited_for(desk: Desk) -> None:
    pace, leased = Pace(), {uid(number) for number in range(1, 41)}
    for number in range(1, 41):
        lend(desk, running(number))
    desk.suspects = {uid(number) for number in range(100, 100 + AWAITED_LEAST)}
    assert pace.some(desk) == desk.suspects

    desk.suspects |= leased | {uid(200)}
    some = pace.some(desk)

    assert leased < some < desk.suspects
    assert len(some - leased) == AWAITED_LEAST


def test_the_pace_follows_the_size_of_what_was_read(desk: Desk) -> None:
    pace, small = Pace(), {uid(number): job(number) for number in range(AWAITED_MOST)}
    large = {uid(1): job(1, params=b"p" * REVIEWED_BYTES, result=b"r")}

    def room() -> int:
        desk.suspects = set(map(uid, range(2 * AWAITED_MOST)))
        return len(pace.some(desk))

    pace.note(list(small)[: AWAITED_LEAST // 2 - 1], small)
    assert room() == AWAITED_LEAST
    pace.note(list(small)[: AWAITED_LEAST // 2], small)
    assert room() == 2 * AWAITED_LEAST
    for _ in range(20):
        pace.note(small, small)
    assert room() == AWAITED_MOST
    pace.note([uid(1)], large)
    assert room() == AWAITED_MOST // 2
    for _ in range(20):
        pace.note([uid(1)], large)
    assert room() == AWAITED_LEAST


# Hearing and watching.


def test_what_others_changed_is_suspect_if_it_is_leased_or_waited_for_here(desk: Desk, others: Sharing) -> None:
    lend(desk, running(1))
    await_end(desk, 2)

    others.hear(News(changed=frozenset({uid(1), uid(2), uid(3)})), NOW)

    assert desk.suspects == {uid(1), uid(2)}


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        (News(), False),
        (News(is_deaf=True), False),
        (News(must_watch=True), True),
        (News(changed=frozenset({uid(3)})), True),
        (News(ready=frozenset({Route("Mail", "any")})), True),
        (News(nearing={Route("Mail", "any"): 5}), True),
    ],
)
def test_whatever_others_did_may_have_freed_what_was_held(desk: Desk, others: Sharing, news: News, expected: bool) -> None:
    desk.aside._look_us = later(60).mono_us

    others.hear(news, NOW)

    assert (desk.aside.next_us(NOW) == LOOK_NEWS_US) is expected


@pytest.mark.parametrize(("is_deaf", "each_us"), [(False, sharing.WATCH_US), (True, sharing.WATCH_DEAF_US)])
def test_the_store_is_watched_more_often_while_no_news_arrive(others: Sharing, is_deaf: bool, each_us: int) -> None:
    others.hear(News(is_deaf=is_deaf), NOW)

    assert not others.must_watch(later(us=each_us - 1))
    assert others.must_watch(later(us=each_us))


def test_the_store_is_watched_at_once_when_it_says_so_and_when_news_arrive_again(desk: Desk, others: Sharing) -> None:
    assert Sharing(desk, NOW).must_watch(NOW)

    others.hear(News(must_watch=True), NOW)
    assert others.must_watch(NOW)
    others.watch(None, NOW)
    others.hear(News(is_deaf=True), NOW)
    assert not others.must_watch(NOW)
    others.hear(News(), NOW)
    assert others.must_watch(NOW)


def test_expiries_and_retention_are_looked_after_at_their_distance(others: Sharing) -> None:
    each_us = sharing.SWEEP_SHARED_US

    assert not others.begin(later(us=each_us - 1))
    assert others.begin(later(us=each_us))
    assert not others.begin(later(us=2 * each_us - 1))


def test_the_near_windows_are_read_again_with_each_watch(desk: Desk, others: Sharing) -> None:
    connect(desk, 10)
    desk.routing.sort()

    others.begin(later(us=sharing.WATCH_US - 1))
    assert desk.routing.tick(NOW) == []
    others.begin(later(us=sharing.WATCH_US))
    assert [span.route for span in desk.routing.tick(NOW)] == [Route("Mail", "any")]


@pytest.mark.parametrize(("looked_after", "is_amiss"), [(None, False), (1, False), (0, True), (2, True)])
def test_a_count_that_does_not_agree_is_looked_at_closer_once(
    desk: Desk, others: Sharing, looked_after: int | None, is_amiss: bool
) -> None:
    lend(desk, running(1))

    others.watch(watched(looked_after=looked_after), NOW)
    assert (others.all_own, others.must_watch(NOW)) == (is_amiss, is_amiss)
    assert desk.suspects == set()

    others.watch(watched(looked_after=looked_after), NOW)
    assert (others.all_own, others.must_watch(NOW)) == (False, False)
    assert desk.suspects == ({uid(1)} if is_amiss else set())


def test_after_the_store_was_away_all_that_it_does_not_name_is_suspect(desk: Desk, others: Sharing) -> None:
    for number in (1, 2):
        lend(desk, running(number))
    others.suspend()
    assert others.must_watch(NOW)
    assert others.all_own

    others.watch(watched(own=[running(1)]), NOW)

    assert desk.suspects == {uid(2)}


def test_a_watch_brings_the_others_and_owes_the_hooks_that_somebody_listens_to(desk: Desk, others: Sharing) -> None:
    desk.listening = frozenset({"on_cancel"})
    about: dict[str, Any] = {"workers": [], "hooks": []}
    done = Event("on_done", job(state=DONE), None)

    owed = others.watch(watched(live=7, others=[msgpack.packb(about), b""], events=[CANCEL, done]), NOW)

    assert owed == [Hook("on_cancel", CANCEL.job, {"running": True})]
    assert (desk.live, desk.others) == (7, [about])


@pytest.mark.parametrize("has_lapsed", [False, True])
def test_awaited_jobs_are_suspect_with_each_watch_and_leased_ones_if_they_may_be_taken(
    desk: Desk, others: Sharing, has_lapsed: bool
) -> None:
    lend(desk, running(1))
    lend(desk, running(3))
    await_end(desk, 1, 2)

    others.watch(watched(has_lapsed=has_lapsed), NOW)

    assert desk.suspects == ({uid(1), uid(2), uid(3)} if has_lapsed else {uid(2)})


def test_what_a_watch_found_is_cared_for_in_its_turn_only(desk: Desk, others: Sharing) -> None:
    found = watched(strayed=[(running(keeper=99), SECOND_US)])
    others.watch(found, NOW)
    assert others.finds_strays
    others.end()
    assert not others.finds_strays

    batch = new_batch(desk)
    others.care(batch)
    assert changed(batch) == []
    others.watch(found, NOW)
    others.care(batch)
    assert len(changed(batch)) == 1


def test_a_server_tells_the_others_nothing_that_changes_from_moment_to_moment(desk: Desk) -> None:
    session = connect(desk, 10)
    before = sharing.about(desk)
    session.processes = [Process(5, "greenlets", "ready", jobs=3)]

    assert sharing.about(desk) == before
    told = msgpack.unpackb(before)
    assert [(worker["name"], worker["processes"], worker["runs"]) for worker in told["workers"]] == [("any", [], {})]
    assert told["hooks"] == sorted(desk.listening)


# Review.


@pytest.mark.parametrize(
    "now",
    [
        None,
        running(1, keeper=ME, fence=99),
        running(1, keeper=ME + 1),
        job(1, fence=51, keeper=ME, state=WAITING),
    ],
    ids=["it is gone", "it was lent again", "another server looks after it", "it waits"],
)
def test_a_lease_that_is_no_longer_ours_is_forgotten_and_its_credit_free(desk: Desk, now: Job | None) -> None:
    session = connect(desk, 10)
    lend(desk, running(1, keeper=ME), session)
    desk.suspects = {uid(1), uid(2)}

    assert sharing.review(desk, Pace(), {uid(1)}, {} if now is None else {uid(1): now}) == []
    assert desk.leases == {}
    assert session.rooms["greenlet"].held == 0
    assert desk.suspects == {uid(2)}


def test_a_lease_that_is_ours_knows_the_job_as_it_is(desk: Desk) -> None:
    session = connect(desk, 10)
    lease, now = lend(desk, running(1, keeper=ME), session), running(1, keeper=ME, version=4)

    assert sharing.review(desk, Pace(), {uid(1)}, {uid(1): now}) == []
    assert lease.job is now
    assert session.rooms["greenlet"].held == 1


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_stop_that_another_server_took_is_told_once(desk: Desk, is_connected: bool) -> None:
    lend(desk, running(1, keeper=ME), connect(desk, 10) if is_connected else None)
    stopped = running(1, keeper=ME, stop_asked=True, version=2)

    told = sharing.review(desk, Pace(), {uid(1)}, {uid(1): stopped})

    if is_connected:
        assert told == [Tell(10, Kind.STOP, [item(Stop(uid(1), stopped.fence))])]
    else:
        assert told == [Hook("on_cancel", stopped, {"running": True})]
    assert sharing.review(desk, Pace(), {uid(1)}, {uid(1): stopped}) == []


def test_who_waits_is_told_of_an_end_that_another_server_made_and_of_a_job_that_is_gone(desk: Desk) -> None:
    await_end(desk, 1, 2, 3)
    jobs = {uid(1): job(1, state=CANCELLED), uid(3): job(3)}

    ended, gone = sharing.review(desk, Pace(), [uid(1), uid(2), uid(3)], jobs)

    assert ended == Reply(1, 1, [EndedCancelled()], uid(1))
    assert isinstance(gone, Reply)
    assert isinstance(gone.answers[0], NotFound)
    assert list(desk.waits) == [uid(3)]


# Care.


@pytest.mark.parametrize(("lease_s", "expected_s"), [(10, 30), (60, 60)])
def test_a_job_whose_keeper_is_gone_is_looked_after_for_a_whole_lease(desk: Desk, lease_s: int, expected_s: int) -> None:
    batch = new_batch(desk)

    sharing.care(batch, watched(strayed=[(running(keeper=99), lease_s * SECOND_US)]))

    assert [each.keeper for each in changed(batch)] == [ME]
    assert batch.taken == {1: (None, expected_s * SECOND_US)}


@pytest.mark.parametrize("is_named", [True, False])
def test_what_a_worker_did_not_name_never_reached_it_and_is_given_back(desk: Desk, is_named: bool) -> None:
    session, own = connect(desk, 10), running(keeper=ME)
    session.has_resumed = True
    batch = new_batch(desk)
    if is_named:
        lend(desk, own, session)

    sharing.care(batch, watched(own=[own]))

    assert [(each.state, each.attempt) for each in changed(batch)] == ([] if is_named else [(WAITING, 0)])


def test_what_a_worker_names_in_this_batch_counts_and_another_keepers_job_is_taken_over(desk: Desk) -> None:
    session = connect(desk, 10)
    batch = new_batch(desk)
    batch.resumed.append(session)

    sharing.care(batch, watched(own=[running(1, keeper=ME)], strayed=[(running(2, keeper=99), 1)]))

    assert {each.id: (each.state, each.keeper) for each in changed(batch)} == {uid(1): (WAITING, 0), uid(2): (RUNNING, ME)}


@pytest.mark.parametrize("change", [{"fence": 99}, {"state": DONE}])
def test_a_job_that_has_gone_on_since_the_watch_is_left_alone(desk: Desk, change: dict[str, Any]) -> None:
    batch, was = new_batch(desk), running(keeper=99)
    batch.put(was, was.changed(version=2, **change))
    before = changed(batch)

    sharing.care(batch, watched(strayed=[(was, 1)]))

    assert changed(batch) == before
    assert batch.taken == {}
