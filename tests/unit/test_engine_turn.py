"""The engine's memory of time, how long it may sleep, and a turn on a store that is full, fails or goes away."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from engine_parts import ME, NOW, SharedMemory, job, later, running
from engine_rig import EngineRig, items_of, uid

from givalia_core.clock import SECOND_US, STEP_US, ManualClock, Mark, Now, Reading, TimerClock
from givalia_core.engine import turn
from givalia_core.engine.again import STUCK_US
from givalia_core.engine.aside import Waiting
from givalia_core.engine.records import Reply
from givalia_core.engine.steps import FORGOTTEN_AT_ONCE
from givalia_core.engine.turn import GAP_US, STEPS_MAX, SWEEP_US, WALK_US, Engine
from givalia_core.errors import BadRequest, StoreAway, StoreFailed, StoreFull
from givalia_core.model import DEAD, DONE, REMEMBERED_AT_LEAST_US, Job
from givalia_core.policy import Policy
from givalia_core.protocol import messages as m
from givalia_core.protocol.codec import answer_error
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Change, Commit, Filter, Hold, Opened, Page, Retention
from givalia_core.store.memory import Memory


def new_engine(*leased: Job, now: Now = NOW, **policy: Any) -> Engine:
    return Engine(
        Policy(**policy), epoch=ME, last_seq=0, live=0, running=leased, durability="memory", regrant_us=30 * SECOND_US,
        now=now, rng=random.Random(1),
    )  # fmt: skip


def started(store: Memory, mark: Mark | None = None, **policy: Any) -> Engine:
    clock = ManualClock()
    opened = Opened(ME, mark, 9)
    return turn.start(store, opened, TimerClock.start(clock, None), clock, Policy(**policy), random.Random(1))


def stored(store: Memory) -> Memory:
    jobs = [job(1), running(2), job(3, state=DONE, ended_at_us=1), job(4, state=DEAD, ended_at_us=2)]
    store.commit([Change(None, each) for each in jobs], Mark("boot", 0, 0, 0))
    return store


# Start.


@pytest.mark.parametrize(("marked_s", "expected_s"), [(None, 30), (10, 30), (60, 60)])
def test_a_running_job_has_a_lease_as_long_as_its_worker_was_told_to_be_heard_of_again(
    marked_s: int | None, expected_s: int
) -> None:
    mark = None if marked_s is None else Mark("boot", 0, 0, 0, marked_s * SECOND_US)

    engine = started(stored(Memory()), mark)

    (lease,) = engine.desk.leases.values()
    assert (lease.job.id, lease.session) == (uid(2), None)
    assert lease.expires_mono_us == ManualClock().read().mono_us + expected_s * SECOND_US


def test_an_engine_begins_with_the_counts_and_numbers_of_its_store() -> None:
    desk = started(stored(Memory())).desk

    assert (desk.live, desk.last_seq, desk.durability) == (2, 9, "memory")
    assert desk.last_fence >> 40 == ME
    assert desk.me == 0


def test_of_a_shared_store_others_may_look_after_what_runs() -> None:
    engine = started(stored(SharedMemory()))

    assert engine.desk.leases == {}
    assert engine.desk.me == ME
    assert engine.sharing is not None


# The time.


@pytest.mark.parametrize(("gap_us", "bridged_us"), [(GAP_US, 0), (GAP_US + 1, GAP_US + 1)])
def test_a_pause_of_the_process_counts_for_no_lease_and_no_beat(gap_us: int, bridged_us: int) -> None:
    engine = new_engine(running(1))
    engine.desk.losses.gone = {uid(10): NOW.mono_us}
    lease = engine.desk.leases[uid(1)]
    before_us = lease.expires_mono_us

    engine.begin(later(us=gap_us))

    assert lease.expires_mono_us == before_us + bridged_us
    assert engine.desk.losses.gone == {uid(10): NOW.mono_us + bridged_us}
    assert engine.desk.held_up_us == bridged_us


def test_a_pause_of_the_process_is_no_silence_of_its_workers() -> None:
    rig = EngineRig()
    rig.worker(10)
    session = rig.engine.desk.routing.sessions[10]
    before_us = session.beat_mono_us

    rig.engine.bridge(5 * SECOND_US, rig.now)

    assert session.beat_mono_us == before_us + 5 * SECOND_US


def test_commands_may_have_waited_for_as_long_as_the_process_stood_still_for_two_minutes() -> None:
    engine = new_engine()
    for seconds in (3.0, 6.0):
        engine.begin(later(seconds))
    assert engine.desk.held_up_us == 6 * SECOND_US

    engine.now = later(6, us=REMEMBERED_AT_LEAST_US)
    engine.begin(engine.now)
    assert engine.desk.held_up_us == 6 * SECOND_US
    engine.begin(later(6, us=REMEMBERED_AT_LEAST_US + 1))
    assert engine.desk.held_up_us == 0


@pytest.mark.parametrize(
    ("step_us", "is_step"), [(STEP_US, False), (-STEP_US, False), (STEP_US + 1, True), (-STEP_US - 1, True)]
)
def test_a_step_of_the_wall_clock_is_stored_with_the_next_commit_and_drift_is_not(step_us: int, is_step: bool) -> None:
    engine = new_engine()
    engine.must_mark = False

    engine.begin(NOW._replace(wall_us=NOW.wall_us + step_us))

    assert engine.must_mark is is_step
    assert engine.ahead_us == NOW.timer_ahead_us - (step_us if is_step else 0)


def test_slow_drift_adds_up_to_a_step() -> None:
    engine = new_engine()
    engine.must_mark = False
    for part in range(1, 4):
        assert not engine.must_mark
        engine.begin(NOW._replace(wall_us=NOW.wall_us + part * (STEP_US // 3 + 1)))

    assert engine.must_mark


def test_a_sweep_comes_with_the_first_turn_a_second_after_the_one_before() -> None:
    engine, sweeps = new_engine(), []
    for us in (SWEEP_US - 1, SWEEP_US, SWEEP_US + 1, 2 * SWEEP_US - 1, 2 * SWEEP_US):
        engine.begin(later(us=us))
        sweeps.append(engine.is_sweeping)

    assert sweeps == [False, True, False, False, True]


def test_what_may_be_forgotten_follows_the_policy_and_the_time_in_which_clients_resend() -> None:
    engine = new_engine(retain_max=3, retain_dead_max=4)

    assert engine.retention(NOW) == Retention(
        NOW.timer_us, NOW.timer_us - REMEMBERED_AT_LEAST_US, 3, 4, FORGOTTEN_AT_ONCE
    )  # fmt: skip


def test_a_question_that_cannot_be_read_is_owed_an_answer_and_takes_no_walk() -> None:
    rig, error = EngineRig(), BadRequest("no")
    readable, unreadable = rig.frame(Kind.LIST, m.List()), rig.frame(Kind.LIST, error)

    rig.engine.ask(readable)
    rig.engine.ask(unreadable)

    assert rig.engine.owed == [Reply(unreadable.conn, unreadable.request, [error])]
    assert [list(line) for line in rig.engine.questions.lines.values()] == [[readable]]


# Sleep.


def wait_alone(engine: Engine) -> None:
    held = Hold("key k", "held", 0)
    engine.desk.aside.meet([held], NOW)
    engine.desk.aside.put(Waiting(EngineRig().frame(Kind.CANCEL), {0: held}, {}), NOW, is_unsure=False)


SLEEPS: dict[str, tuple[Callable[[Engine], Any], int]] = {
    "nothing": (lambda engine: None, SWEEP_US),
    "more can be lent": (lambda engine: setattr(engine.lender, "hurry", True), 0),
    "more can be forgotten": (lambda engine: setattr(engine, "forget_more", True), 0),
    "an act has submitted commands": (lambda engine: engine.desk.acts.submit(Kind.CANCEL, []), 0),
    "a question walks": (lambda engine: engine.ask(EngineRig().frame(Kind.LIST, m.List())), 0),
    "commands are decided again": (lambda engine: engine.again.keep([EngineRig().frame(Kind.STAT)], is_unsure=False), 0),
    "a job is suspect": (lambda engine: engine.desk.suspects.add(uid(1)), 0),
    "the disk is full": (lambda engine: setattr(engine.again, "is_stuck", True), STUCK_US),
    "a command waits alone": (wait_alone, 5_000),
}


@pytest.mark.parametrize("cause", SLEEPS)
def test_the_loop_sleeps_until_something_is_to_be_decided(cause: str) -> None:
    engine = new_engine()
    bring_about, expected_us = SLEEPS[cause]

    bring_about(engine)

    assert engine.wake_in_us(NOW) == expected_us


def test_a_full_disk_lets_nothing_hurry() -> None:
    engine = new_engine()
    for cause in ("the disk is full", "more can be lent", "a job is suspect"):
        SLEEPS[cause][0](engine)

    assert engine.wake_in_us(NOW) == STUCK_US


@pytest.mark.parametrize(("due_us", "expected_us"), [(400_000, 400_000), (3 * SECOND_US, SWEEP_US)])
def test_the_loop_wakes_at_the_next_due_that_is_served(due_us: int, expected_us: int) -> None:
    rig = EngineRig()
    rig.worker()
    rig.enq(delay_us=due_us)
    rig.enq("Fax", delay_us=1)

    assert rig.engine.wake_in_us(rig.now) == expected_us
    rig.clock.advance(us=due_us + 1)
    assert rig.engine.wake_in_us(rig.now) == 0


# A turn.


class Failing(Memory):
    """A store whose commit fails, or which is full until there is room."""

    fails: Exception | None = None
    room = True
    rooms_asked = 0

    def commit(self, *given: Any) -> Commit:
        if self.fails is not None:
            raise self.fails
        return super().commit(*given)

    def has_room(self) -> bool:
        self.rooms_asked += 1
        return self.room


class FailingRig(EngineRig):
    """A rig on a store that may fail."""

    def __init__(self) -> None:
        self.failing = Failing()
        super().__init__(self.failing)

    def enq_error(self) -> Any:
        """The error that a new job is refused with, if it is."""
        frame = self.frame(Kind.ENQ, m.Enq(self.fresh_id(), "Mail"))
        told = turn.turn(self.engine, self.store, self.timer, [frame], self.clock)
        (reply,) = (effect for effect in told if isinstance(effect, Reply))
        return answer_error(items_of(reply)[0][0])


def test_nothing_is_said_if_it_is_unknown_what_is_on_disk() -> None:
    rig = FailingRig()
    rig.failing.fails = StoreFailed("no")

    with pytest.raises(StoreFailed):
        rig.enq_error()


def test_the_store_is_asked_for_room_only_while_it_is_full() -> None:
    rig = FailingRig()
    assert rig.enq_error() is None
    assert rig.failing.rooms_asked == 0

    rig.failing.is_full, rig.failing.room = True, False
    assert isinstance(rig.enq_error(), StoreFull)
    rig.failing.is_full = False
    assert isinstance(rig.enq_error(), StoreFull)
    rig.failing.room = True
    assert rig.enq_error() is None
    assert rig.failing.rooms_asked == 3
    assert rig.enq_error() is None
    assert rig.failing.rooms_asked == 3


def test_what_is_decided_again_comes_before_what_has_arrived() -> None:
    rig = EngineRig()
    first, second = (rig.frame(Kind.ENQ, m.Enq(uid(number), "Mail", key="k")) for number in (1, 2))
    rig.engine.again.keep([first], is_unsure=True)

    rig.turn(second)

    assert isinstance(rig.answers(first)[0], tuple)
    assert not isinstance(rig.answers(second)[0], tuple)


# Walks.


class WalkRig(EngineRig):
    """A rig in whose store each look at a page takes its time."""

    def __init__(self, took_us: int) -> None:
        self.pages = 0
        self.away = False
        super().__init__()

        def page(wanted: Filter, after: Any, limit: int, now: Now, rows: int = 1) -> Page:
            if self.away:
                raise StoreAway("it is away")
            self.pages += 1
            self.clock.advance(us=took_us)
            return Page([], (0, self.pages))

        self.store.page = page  # type: ignore[method-assign]

    def walk(self) -> int:
        """How many pages a turn looks at."""
        before = self.pages
        turn.walk(self.engine, self.store, self.timer, self.clock)
        return self.pages - before


@pytest.mark.parametrize(("took_us", "pages"), [(0, STEPS_MAX), (WALK_US - 1, 2), (WALK_US, 1)])
def test_a_turn_walks_for_its_time_and_no_more_than_so_many_steps(took_us: int, pages: int) -> None:
    rig = WalkRig(took_us)
    for conn in range(1, STEPS_MAX + 2):
        rig.engine.ask(rig.frame(Kind.LIST, m.List(), conn=conn))

    assert rig.walk() == pages


def test_without_questions_no_clock_is_read() -> None:
    class Unread(ManualClock):
        def read(self) -> Reading:
            raise AssertionError("it is read")

    rig = EngineRig()

    assert turn.walk(rig.engine, rig.store, rig.timer, Unread()) == []


def test_questions_whose_store_goes_away_are_asked_again() -> None:
    rig = WalkRig(0)
    frames = [rig.frame(Kind.LIST, m.List(), conn=conn) for conn in (5, 6)]
    for frame in frames:
        rig.engine.ask(frame)
    rig.away = True

    with pytest.raises(StoreAway):
        rig.walk()

    assert sorted(rig.engine.again.inputs) == sorted(frames)
    assert not rig.engine.questions
