"""Commands that wait alone: their deadlines, when the store is asked, and what is known of holds."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import NOW, asked, hold, job, later
from engine_rig import uid

from givalia_core.engine.aside import HELD_US, KNOWN_US, LOOK_FIRST_US, LOOK_MAX_US, LOOK_NEWS_US, Aside, Waiting
from givalia_core.engine.records import Gone, Reply
from givalia_core.errors import Busy
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import Cancelled
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import hold_name_of_id, hold_name_of_key

KEY = hold_name_of_key("k")
CANCELLED = Cancelled("cancelled")


@pytest.fixture
def aside() -> Aside:
    return Aside()


def frame(kind: Kind = Kind.CANCEL, commands: int = 1, **fields: Any) -> Asked:
    make = {Kind.STAT: m.Stat("k"), Kind.WAIT: m.Wait("k")}.get(kind, m.Cancel(uid(9), "k"))
    return asked(kind, *[make] * commands, **fields)


def put(aside: Aside, given: Asked, *names: str, answers: Any = None, is_unsure: bool = False, us: int = 0) -> None:
    """Let a frame wait whose first commands are held by these names."""
    holds = {number: hold(name) for number, name in enumerate(names or (KEY,))}
    aside.put(Waiting(given, holds, answers or {}), later(us=us), is_unsure=is_unsure)


def test_a_frame_that_has_waited_for_long_enough_is_answered_with_what_stands_and_words_for_the_hold(aside: Aside) -> None:
    put(aside, frame(commands=2), answers={1: CANCELLED})

    assert aside.overdue(later(us=HELD_US - 1)) == []
    (reply,) = aside.overdue(later(us=HELD_US))

    assert (reply.conn, reply.request) == (1, 1)
    busy, stands = reply.answers
    assert isinstance(busy, Busy)
    assert str(busy) == f"{hold(KEY).words}; nothing changed"
    assert stands is CANCELLED
    assert (bool(aside), aside.until_us) == (False, {})


def test_a_frame_whose_own_commit_may_be_the_hold_has_no_deadline_and_is_not_put_off(aside: Aside) -> None:
    put(aside, frame(), is_unsure=True)

    assert aside.overdue(later(3_600)) == []
    assert aside.put_off({Kind.CANCEL}) == []
    assert aside


def test_a_frame_that_waits_once_more_keeps_its_deadline_until_it_is_answered(aside: Aside) -> None:
    given = frame()
    put(aside, given)
    aside.take({KEY}, NOW)
    aside.settle([given], {(1, 1)})
    put(aside, given, us=HELD_US // 2)
    assert aside.until_us == {(1, 1): NOW.mono_us + HELD_US}

    aside.take({KEY}, NOW)
    aside.settle([Gone(1), frame(request=2)], ())
    assert aside.until_us != {}
    aside.settle([given], ())
    assert aside.until_us == {}


def test_frames_are_taken_out_by_the_names_of_their_holds_and_reads_in_any_case(aside: Aside) -> None:
    frames = [frame(request=1), frame(commands=2, request=2), frame(Kind.STAT, request=3), frame(Kind.WAIT, request=4)]
    put(aside, frames[0], "key a")
    put(aside, frames[1], "key a", "key b")
    put(aside, frames[2], "key c")
    put(aside, frames[3], "key c")
    assert aside.names == {"key a", "key b", "key c"}

    assert [each.asked for each in aside.take({"key b"}, NOW)] == frames[1:]
    assert list(aside.waiting) == [(1, 1)]


def test_the_store_is_asked_at_growing_distances(aside: Aside) -> None:
    aside.meet([hold(KEY)], NOW)
    put(aside, frame())
    distances, now = [], NOW
    for _ in range(8):
        waited_us = aside.next_us(now)
        assert not aside.must_look(now)
        now = now._replace(mono_us=now.mono_us + waited_us)
        assert aside.must_look(now)
        aside.take((), now)
        distances.append(waited_us)

    assert distances[:4] == [LOOK_FIRST_US, LOOK_FIRST_US, 2 * LOOK_FIRST_US, 4 * LOOK_FIRST_US]
    assert distances[-1] == LOOK_MAX_US


def test_a_hold_that_is_new_lets_the_store_be_asked_soon_again_and_one_that_is_known_does_not(aside: Aside) -> None:
    aside.meet([hold(KEY)], NOW)
    put(aside, frame())
    for _ in range(10):
        aside.take((), NOW)

    aside.meet([hold(KEY)], NOW)
    assert aside.next_us(NOW) == LOOK_MAX_US
    aside.meet([hold("key other")], NOW)
    assert aside.next_us(NOW) == LOOK_FIRST_US


def test_news_let_the_store_be_asked_soon_but_not_later_than_it_would_be(aside: Aside) -> None:
    aside.meet([hold(KEY)], NOW)
    put(aside, frame())
    aside.hear(NOW)
    assert aside.next_us(NOW) == LOOK_FIRST_US

    for _ in range(10):
        aside.take((), NOW)
    aside.hear(NOW)
    assert aside.next_us(NOW) == LOOK_NEWS_US


def test_while_no_frame_waits_the_store_is_not_asked(aside: Aside) -> None:
    aside.meet([hold(KEY)], NOW)

    assert not aside.must_look(later(60))


def test_the_next_thing_to_do_may_be_a_deadline_and_is_never_past(aside: Aside) -> None:
    put(aside, frame())
    for _ in range(10):
        aside.take((), later(us=HELD_US - 100))

    assert aside.next_us(later(us=HELD_US - 100)) == 100
    assert aside.next_us(later(us=HELD_US + 100)) == 0


def test_a_hold_is_found_by_the_key_and_else_by_the_id_of_a_job(aside: Aside) -> None:
    of_key, of_id = hold(KEY), hold(hold_name_of_id(uid(1)))
    assert aside.hold_of(job(1, key="k")) is None

    aside.meet([of_key, of_id], NOW)

    assert aside.hold_of(job(1, key="k")) is of_key
    assert aside.hold_of(job(2, key="k")) is of_key
    assert aside.hold_of(job(1, key="other")) is of_id
    assert aside.hold_of(job(1)) is of_id
    assert aside.hold_of(job(2)) is None
    assert aside.hold_of_name(None, None) is None


def test_a_hold_is_known_until_it_is_over_or_was_not_met_for_long(aside: Aside) -> None:
    aside.meet([hold("key a"), hold("key b"), hold("key c")], NOW)
    aside.meet([hold("key b")], later(us=1))
    aside.take({"key c"}, NOW)
    assert aside.holds.keys() == {"key a", "key b"}

    aside.overdue(later(us=KNOWN_US))

    assert aside.holds.keys() == {"key b"}


def test_the_frames_of_a_connection_that_has_ended_are_forgotten(aside: Aside) -> None:
    for conn in (1, 2):
        put(aside, frame(conn=conn))

    aside.leave([Gone(1), frame(conn=2)])

    assert (list(aside.waiting), list(aside.until_us)) == ([(2, 1)], [(2, 1)])
    assert [reply.conn for reply in aside.overdue(later(60)) if isinstance(reply, Reply)] == [2]


def test_while_the_store_is_away_frames_of_which_nothing_is_stored_are_put_off(aside: Aside) -> None:
    frames = [frame(request=1), frame(commands=2, request=2), frame(Kind.EXT, request=3)]
    put(aside, frames[0])
    put(aside, frames[1], answers={1: CANCELLED})
    put(aside, frames[2])

    assert aside.put_off({Kind.CANCEL}) == [frames[0]]
    assert list(aside.waiting) == list(aside.until_us) == [(1, 2), (1, 3)]
