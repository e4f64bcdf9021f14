"""A turn of a server that shares its store: what it asks the others, and what becomes of it when the store goes away."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import SharedMemory, Watching, hold, running, watched
from engine_rig import EngineRig, items_of, uid

from givalia_core.clock import SECOND_US, ManualClock, Now, Reading
from givalia_core.engine import shared_turn
from givalia_core.engine.records import Close, Effect, Hook, Input, Reply
from givalia_core.engine.sharing import WATCH_US
from givalia_core.errors import StoreAway, StoreFull
from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import answer_error
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Found, Wanted, hold_name_of_key
from givalia_core.store.shared import AlreadyDecided, Event, News

AWAY = StoreAway("it is away")
COMMANDS = frozenset({Kind.ENQ, Kind.JOIN})


class HaltingClock(ManualClock):
    """Clocks that let time pass before one of the next readings."""

    def __init__(self) -> None:
        super().__init__()
        self.halts: dict[int, int] = {}  # By which reading it is from now on, how long before.

    def read(self) -> Reading:
        self.halts = {number - 1: us for number, us in self.halts.items()}
        self.advance(us=self.halts.pop(0, 0))
        return super().read()


class SharedRig(EngineRig):
    """A rig on a store that it shares, which takes one turn at a time."""

    def __init__(self) -> None:
        self.shared = SharedMemory()
        self.halting = HaltingClock()
        super().__init__(self.shared, self.halting)

    def one(self, *inputs: Input) -> list[Effect]:
        given = [*self.engine.again.inputs, *inputs]
        return shared_turn.turn(self.engine, self.shared, self.timer, given, self.clock)

    def new(self, number: int, **fields: Any) -> Asked:
        return self.frame(Kind.ENQ, m.Enq(uid(number), "Mail", **fields))


@pytest.fixture
def rig() -> SharedRig:
    rig = SharedRig()
    rig.one()
    return rig


def replied(effects: list[Effect]) -> list[int]:
    """The requests that are answered."""
    return [effect.request for effect in effects if isinstance(effect, Reply)]


def test_the_store_is_watched_in_the_first_turn_and_then_at_its_distance(rig: SharedRig) -> None:
    assert rig.shared.watchings == [Watching(rig.policy.lease_us, all_own=False)]

    rig.clock.advance(us=WATCH_US - 1)
    rig.one()
    assert len(rig.shared.watchings) == 1
    rig.clock.advance(us=1)
    rig.one()
    rig.one()
    assert len(rig.shared.watchings) == 2


def test_news_are_taken_in_before_it_is_known_whether_to_watch(rig: SharedRig) -> None:
    rig.shared.told = News(must_watch=True)

    rig.one()

    assert len(rig.shared.watchings) == 2


def test_the_hooks_that_a_watch_owes_are_called_with_the_answers(rig: SharedRig) -> None:
    rig.shared.told = News(must_watch=True)
    rig.shared.watched = watched(events=[Event("on_enq", running(), None)])

    assert rig.one() == [Hook("on_enq", running(), {})]
    assert rig.one() == []


def test_expired_jobs_are_looked_for_only_when_a_watch_has_found_some(rig: SharedRig) -> None:
    rig.one(rig.new(1, delay_us=SECOND_US, expires_us=0))
    rig.clock.advance(2)
    rig.one()
    assert rig.stored(uid(1)).state == "waiting"

    rig.shared.told, rig.shared.watched = News(must_watch=True), watched(has_expired=True, live=1)
    rig.one()
    assert rig.stored(uid(1)).state == "dead"


def test_a_delay_is_counted_from_after_what_was_read(rig: SharedRig) -> None:
    began_us = rig.now.timer_us
    rig.halting.halts = {2: 3 * SECOND_US}

    rig.one(rig.new(1, delay_us=10))

    assert rig.stored(uid(1)).due_at_us == began_us + 3 * SECOND_US + 10


@pytest.mark.parametrize(("over_us", "is_stored"), [(0, True), (1, False)])
def test_a_process_that_stood_still_before_its_commit_decides_again(rig: SharedRig, over_us: int, is_stored: bool) -> None:
    frame = rig.new(1)
    rig.halting.halts = {3: shared_turn.PAUSE_US + over_us}
    commits = len(rig.shared.commits)

    effects = rig.one(frame)

    assert replied(effects) == [frame.request] * is_stored
    assert len(rig.shared.commits) - commits == is_stored
    assert rig.engine.again.inputs == [frame] * (not is_stored)
    assert replied(rig.one()) == [frame.request] * (not is_stored)


@pytest.mark.parametrize(("method", "is_unsure"), [("watch", False), ("find", False), ("commit", True), ("keep", True)])
def test_when_the_store_goes_away_nothing_is_said_and_it_is_known_what_may_be_stored(
    rig: SharedRig, method: str, is_unsure: bool
) -> None:
    rig.shared.told = News(must_watch=True)
    rig.shared.fails = {method: AWAY}
    frame = rig.frame(Kind.ENQ, m.Enq(uid(1), "Mail", key="k"), m.Enq(uid(2), "Mail", key="k"))

    with pytest.raises(StoreAway):
        rig.one(frame)

    assert rig.engine.again.put_off(COMMANDS) == [frame] * (not is_unsure)
    assert rig.engine.again.inputs == [frame] * is_unsure


def test_what_changes_nothing_is_never_unsure(rig: SharedRig) -> None:
    rig.shared.fails = {"commit": AWAY}
    rig.engine.must_mark = True
    frame = rig.frame(Kind.JOIN, m.Join("any", uid(10)), conn=10)

    with pytest.raises(StoreAway):
        rig.one(frame)

    assert rig.engine.again.put_off(COMMANDS) == [frame]


def test_after_the_store_was_away_it_is_watched_for_all_that_is_looked_after(rig: SharedRig) -> None:
    rig.shared.fails = {"find": AWAY}
    with pytest.raises(StoreAway):
        rig.one(rig.new(1))

    rig.shared.watched = watched()
    rig.one()

    assert [each.all_own for each in rig.shared.watchings] == [False, True]


def test_an_answer_of_another_server_lets_all_be_decided_again_at_once(rig: SharedRig) -> None:
    rig.shared.fails = {"commit": AlreadyDecided()}
    frame = rig.new(1)

    assert rig.one(frame) == []
    assert rig.engine.again.put_off(COMMANDS) == []
    assert replied(rig.one()) == [frame.request]


def test_connections_that_a_lost_turn_ended_are_ended_by_the_next(rig: SharedRig) -> None:
    rig.one(rig.frame(Kind.JOIN, m.Join("any", uid(5)), conn=10))
    rig.engine.must_mark = True
    rig.shared.fails = {"commit": AWAY}
    with pytest.raises(StoreAway):
        rig.one(rig.frame(Kind.JOIN, m.Join("any", uid(5)), conn=11))

    assert [effect.conn for effect in rig.one() if isinstance(effect, Close)] == [10]


def test_questions_that_were_under_way_are_asked_again(rig: SharedRig) -> None:
    question = rig.frame(Kind.LIST, m.List())
    rig.one(question)
    assert rig.engine.questions
    rig.shared.fails = {"find": AWAY}

    with pytest.raises(StoreAway):
        rig.one()

    assert not rig.engine.questions
    assert rig.engine.again.inputs == [question]


def test_a_credit_that_a_lost_turn_lent_on_is_free_again(rig: SharedRig) -> None:
    rig.worker(10)
    rig.shared.fails = {"commit": AWAY}
    with pytest.raises(StoreAway):
        rig.one(rig.new(1))

    assert rig.engine.desk.routing.sessions[10].rooms["greenlet"].held == 0


def test_a_held_command_waits_until_the_store_says_that_its_hold_is_free(rig: SharedRig) -> None:
    name = hold_name_of_key("k")
    rig.shared.holds = {0: hold(name)}
    frame = rig.new(1, key="k")
    assert replied(rig.one(frame)) == []
    rig.clock.advance(1)
    assert replied(rig.one()) == []

    rig.shared.free = frozenset({name})
    rig.clock.advance(1)

    assert replied(rig.one()) == [frame.request]
    assert rig.shared.asked_free == [{name}, {name}]
    rig.clock.advance(1)
    rig.one()
    assert len(rig.shared.asked_free) == 2


def test_the_store_is_asked_for_news_of_a_job_that_somebody_waits_for(rig: SharedRig) -> None:
    rig.one(rig.new(1, delay_us=SECOND_US))
    assert rig.shared.followed == []

    rig.one(rig.frame(Kind.WAIT, m.Wait(id=uid(1))))

    assert rig.shared.followed == [{uid(1)}]


def test_a_full_database_refuses_new_jobs_and_stores_the_rest(rig: SharedRig) -> None:
    rig.one(rig.new(1, delay_us=SECOND_US))
    rig.shared.fails = {"commit": StoreFull("no room")}
    new, cancel = rig.new(2), rig.frame(Kind.CANCEL, m.Cancel(uid(9), None, uid(1)))

    told = {effect.request: items_of(effect) for effect in rig.one(new, cancel) if isinstance(effect, Reply)}

    assert isinstance(answer_error(told[new.request][0][0]), StoreFull)
    assert rig.stored(uid(1)).state == "cancelled"


class Listening(SharedMemory):
    """A store that says what it was asked to read."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Wanted] = []

    def find(self, wanted: Wanted, now: Now) -> Found:
        self.asked.append(wanted)
        return super().find(wanted, now)


def test_a_strayed_job_that_a_watch_finds_is_taken_over_in_the_same_turn() -> None:
    rig = EngineRig(Listening())
    stray = running(3, keeper=99)
    assert isinstance(rig.store, Listening)
    rig.store.watched = watched(strayed=[(stray, SECOND_US)])

    shared_turn.turn(rig.engine, rig.store, rig.timer, [], rig.clock)

    assert [(change.job.id, change.job.keeper) for change in rig.store.commits[0]] == [(stray.id, rig.engine.desk.me)]
    assert rig.store.asked[-1].numbers
    assert rig.engine.sharing is not None
    assert not rig.engine.sharing.finds_strays
