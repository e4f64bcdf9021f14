"""Sending again: a later copy of an answered changing command changes nothing and gets the same answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import remembered
from givalia_core.engine.desk import BusyFor
from givalia_core.errors import BadRequest, Busy, DuplicateKey, NotFound, ShuttingDown, StoreFull, WrongState
from givalia_core.model import REQUESTS_MOST, TEN_YEARS_US
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Wanted

FAR_US = 3_600 * SECOND_US
JOB, COPY, NEXT = uid(1), uid(7), uid(2)


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


class Case(NamedTuple):
    """A command, what stands before it, and what changes so that a copy of it would be decided in another way."""

    before: Callable[[EngineRig], object]
    kind: Kind
    message: Any
    change: Callable[[EngineRig], object]


def nothing(rig: EngineRig) -> None:
    """Nothing has been asked yet."""


def enq(rig: EngineRig) -> None:
    """A job waits under the key."""
    assert isinstance(rig.enq(id=JOB, key="k", delay_us=FAR_US), tuple)


def enq_next(rig: EngineRig) -> None:
    """Another job waits under the key."""
    assert isinstance(rig.enq(id=NEXT, key="k", delay_us=FAR_US), tuple)


def cancelled(rig: EngineRig) -> None:
    """The job of the key was called off."""
    enq(rig)
    cancel(rig)


def cancel(rig: EngineRig) -> None:
    """Call the job of the key off."""
    assert rig.cancel("k") == ("cancelled",)


def running(rig: EngineRig) -> None:
    """A job of the key runs."""
    rig.worker(10)
    rig.enq(id=JOB, key="k")


def failed(rig: EngineRig) -> None:
    """The running job fails, and is tried again in an hour unless it was asked to stop."""
    job = rig.dispatched[10][-1].job
    assert rig.ask(Kind.FAIL, m.FailReport(job.id, job.fence, "failed", "no", FAR_US), conn=10) in (
        [("waiting", 5, FAR_US)],
        [("cancelled", 5)],
    )


def stopping(rig: EngineRig) -> None:
    """A job of the key runs and was asked to stop."""
    running(rig)
    rig.cancel("k", running=True)


def stopped(rig: EngineRig) -> None:
    """The running job ends, and another runs under its key."""
    failed(rig)
    rig.enq(id=NEXT, key="k")


def requeue(rig: EngineRig) -> None:
    """The job of the key is given another life."""
    assert isinstance(rig.requeue("k", delay_us=FAR_US), tuple)


def cancel_twice(rig: EngineRig) -> None:
    """The job of the key is given another life, and called off."""
    requeue(rig)
    cancel(rig)


UNCHANGED = {
    "enq refused": Case(enq, Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k"), cancel),
    "enq kept": Case(enq, Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k", if_exists="keep"), cancel),
    "replace refused": Case(running, Kind.ENQ, m.Enq(COPY, "Mail", 0, "k", if_exists="replace"), failed),
    "reschedule refused": Case(running, Kind.ENQ, m.Enq(COPY, "Mail", 0, "k", if_exists="reschedule"), failed),
    "cancel of nothing": Case(nothing, Kind.CANCEL, m.Cancel(COPY, "k"), enq_next),
    "cancel of no id": Case(nothing, Kind.CANCEL, m.Cancel(COPY, None, NEXT), enq_next),
    "cancel again": Case(cancelled, Kind.CANCEL, m.Cancel(COPY, "k"), enq_next),
    "cancel again by id": Case(cancelled, Kind.CANCEL, m.Cancel(COPY, None, JOB), requeue),
    "cancel of a running job": Case(running, Kind.CANCEL, m.Cancel(COPY, "k"), failed),
    "stop again": Case(stopping, Kind.CANCEL, m.Cancel(COPY, "k", running=True), stopped),
    "ext of nothing": Case(nothing, Kind.EXT, m.Ext(COPY, "k", delta_us=5), enq_next),
    "ext of no id": Case(nothing, Kind.EXT, m.Ext(COPY, None, NEXT, delta_us=5), enq_next),
    "ext of a running job": Case(running, Kind.EXT, m.Ext(COPY, "k", delta_us=5), failed),
    "ext of an ended job": Case(cancelled, Kind.EXT, m.Ext(COPY, None, JOB, delta_us=5), requeue),
    "ext too far": Case(
        enq, Kind.EXT, m.Ext(COPY, "k", delta_us=TEN_YEARS_US), lambda rig: rig.ext("k", delta_us=-FAR_US),
    ),
    "requeue of nothing": Case(nothing, Kind.REQUEUE, m.Requeue(COPY, "k", delay_us=FAR_US), cancelled),
    "requeue of a live job": Case(enq, Kind.REQUEUE, m.Requeue(COPY, None, JOB, FAR_US), cancel),
    "requeue of a held key": Case(
        lambda rig: (cancelled(rig), enq_next(rig)), Kind.REQUEUE, m.Requeue(COPY, None, JOB, FAR_US), cancel,
    ),
}  # fmt: skip
CHANGED = {
    "enq": Case(nothing, Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k"), lambda rig: rig.cancel(id=COPY)),
    "replace": Case(enq, Kind.ENQ, m.Enq(COPY, "Mail", 2 * FAR_US, "k", if_exists="replace"), nothing),
    "reschedule": Case(enq, Kind.ENQ, m.Enq(COPY, "Mail", 2 * FAR_US, "k", if_exists="reschedule"), nothing),
    "cancel": Case(enq, Kind.CANCEL, m.Cancel(COPY, "k"), requeue),
    "stop": Case(running, Kind.CANCEL, m.Cancel(COPY, "k", running=True), stopped),
    "ext": Case(enq, Kind.EXT, m.Ext(COPY, "k", delta_us=FAR_US), nothing),
    "ext by id": Case(enq, Kind.EXT, m.Ext(COPY, None, JOB, delta_us=FAR_US), nothing),
    "ext at": Case(enq, Kind.EXT, m.Ext(COPY, "k", at_us=1_750_100_000 * SECOND_US), nothing),
    "requeue": Case(cancelled, Kind.REQUEUE, m.Requeue(COPY, None, JOB, FAR_US), cancel),
}


def rows(rig: EngineRig) -> list[tuple[Any, ...]]:
    """What is stored of the two jobs, but for what they remember."""
    found = rig.store.find(Wanted(ids=frozenset({JOB, NEXT, COPY})), rig.now).ids
    return [(job.id, job.state, job.due_at_us, job.version, job.stop_asked) for _, job in sorted(found.items())]


def touch(rig: EngineRig, times: int) -> None:
    """Change the live job of the key, or else the cancelled one, so many times."""
    for number in range(times):
        if isinstance(rig.ext("k", delta_us=1), tuple):
            continue
        if number % 2 == 0:
            rig.requeue("k", delay_us=FAR_US)
        else:
            rig.cancel("k")


@pytest.mark.parametrize("later", [0, 4, 40])
@pytest.mark.parametrize("name", [*UNCHANGED, *CHANGED])
def test_c1_a_later_copy_of_any_command_changes_nothing_and_is_answered_the_same(rig: EngineRig, name: str, later: int) -> None:
    # given a command that was answered
    case = UNCHANGED.get(name) or CHANGED[name]
    case.before(rig)
    first = rig.frame(case.kind, case.message)
    rig.turn(first)

    # when what it met has changed, others have come, and a copy of it arrives from another connection
    case.change(rig)
    touch(rig, later)
    rig.tick(100)
    before = rows(rig)
    copy = rig.frame(case.kind, case.message, conn=2)
    rig.turn(copy)

    # then
    told, again = (rig.replies[frame.conn, frame.request][0] for frame in (first, copy))
    assert [list(each[0]) for each in (told, again)] == [list(told[0])] * 2
    assert rows(rig) == before


AS_FRAMES: dict[Callable[[EngineRig], object], list[tuple[Kind, Any]]] = {
    enq_next: [(Kind.ENQ, m.Enq(NEXT, "Mail", FAR_US, "k"))],
    cancel: [(Kind.CANCEL, m.Cancel(uid(50), "k"))],
    cancelled: [(Kind.ENQ, m.Enq(JOB, "Mail", FAR_US, "k")), (Kind.CANCEL, m.Cancel(uid(50), "k"))],
    requeue: [(Kind.REQUEUE, m.Requeue(uid(51), None, JOB, FAR_US))],
}


@pytest.mark.parametrize("name", [name for name, case in UNCHANGED.items() if case.change in AS_FRAMES])
def test_c1_a_copy_in_the_same_batch_is_answered_the_same(rig: EngineRig, name: str) -> None:
    case = UNCHANGED[name]
    case.before(rig)
    first, copy = (rig.frame(case.kind, case.message, conn=conn) for conn in (1, 2))
    between = [rig.frame(kind, message, conn=3) for kind, message in AS_FRAMES[case.change]]

    rig.turn(first, *between, copy)

    told, again = (rig.replies[frame.conn, frame.request][0] for frame in (first, copy))
    assert list(told[0]) == list(again[0])
    assert all(isinstance(rig.answers(frame)[0], tuple) for frame in between)


def test_c1_many_commands_in_one_frame_are_remembered_one_by_one(rig: EngineRig) -> None:
    enq(rig)
    messages = [m.Cancel(uid(100), "k"), m.Cancel(uid(101), "none"), m.Cancel(uid(102), "k", JOB), m.Cancel(uid(103), "other")]
    first = rig.ask(Kind.CANCEL, *messages)
    for number, key in enumerate(("k", "none", "other")):
        rig.enq(id=uid(200 + number), key=key, delay_us=FAR_US)

    again = rig.ask(Kind.CANCEL, *messages, conn=2)

    assert [str(each) for each in again] == [str(each) for each in first]
    assert {rig.state(key) for key in ("k", "none", "other")} == {"waiting"}


def test_c1_what_decides_nothing_is_not_remembered(rig: EngineRig) -> None:
    # given a server that is full, then draining, and commands that are wrong in themselves
    rig.engine.desk.note_busy(BusyFor.MEMORY, "full")
    assert isinstance(rig.enq(id=uid(5)), Busy)
    rig.engine.desk.note_busy(BusyFor.MEMORY, "")
    rig.engine.desk.is_draining = True
    assert isinstance(rig.enq(id=uid(5)), ShuttingDown)
    rig.engine.desk.is_draining = False
    assert isinstance(rig.cancel("k", id=uid(5), request=uid(6)), BadRequest)

    # then nothing is known of them
    assert rig.info()["remembered"]["answers"] == 0
    assert rig.enq(id=uid(5), key="k", delay_us=FAR_US)[0] == uid(5)
    assert rig.cancel("k", request=uid(6)) == ("cancelled",)


def test_c1_an_answer_is_forgotten_after_two_minutes_and_not_before(rig: EngineRig) -> None:
    refused = m.Cancel(COPY, "k")
    assert isinstance(rig.ask(Kind.CANCEL, refused)[0], NotFound)
    rig.tick(119)
    assert rig.info()["remembered"]["answers"] == 1

    rig.tick(3)

    assert rig.info()["remembered"] == {"answers": 0, "bytes": 0, "bytes_max": remembered.BYTES_MAX}


def test_c1_an_answer_outlives_a_pause_of_the_process(rig: EngineRig) -> None:
    """What waited in its sockets meanwhile is only read when it goes on."""
    assert isinstance(rig.cancel("k", request=COPY), NotFound)
    enq(rig)
    for number in range(10):
        rig.ext("k", delta_us=1, request=uid(300 + number))
    due_us = rig.stored(JOB).due_at_us

    rig.clock.advance(1_000)
    rig.turn()

    assert isinstance(rig.cancel("k", request=COPY), NotFound)
    rig.ext("k", delta_us=FAR_US, request=uid(300))
    assert rig.stored(JOB).due_at_us == due_us


def test_c1_without_room_for_an_answer_nothing_is_decided(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    # given room for about two answers
    monkeypatch.setattr(remembered, "BYTES_MAX", 2 * remembered.ENTRY_BYTES)
    assert [type(rig.cancel("k", request=uid(number))) for number in (11, 12)] == [NotFound, NotFound]

    # when
    refused = rig.cancel("k", request=uid(13))

    # then what would change a job goes on, and the command is decided when there is room
    assert type(refused) is Busy
    enq(rig)
    assert rig.ext("k", delta_us=5)[0] == JOB
    rig.tick(122)
    assert rig.cancel("k", request=uid(13)) == ("cancelled",)


def test_c1_a_job_remembers_a_thousand_commands_and_is_then_busy_for_all_but_a_cancel(rig: EngineRig) -> None:
    # given
    rig.enq(id=JOB, key="k", delay_us=FAR_US)
    asked = [m.Ext(uid(1_000 + number), "k", delta_us=SECOND_US) for number in range(REQUESTS_MOST)]
    answers = rig.ask(Kind.EXT, *asked)

    # then the one that found no room was not done
    assert [type(each) for each in answers[-2:]] == [tuple, Busy]
    assert rig.stored(JOB).due_at_us == rig.now.timer_us + FAR_US + (REQUESTS_MOST - 1) * SECOND_US
    assert 100 < answers[-1].retry_after <= 120
    assert rig.ask(Kind.EXT, *asked[:-1], conn=2) == answers[:-1]

    # when
    rig.tick(121)

    # then
    assert isinstance(rig.ask(Kind.EXT, asked[-1])[0], tuple)
    assert len(rig.stored(JOB).answered) < 10
    rig.ask(Kind.EXT, *(m.Ext(uid(5_000 + number), "k", delta_us=1) for number in range(REQUESTS_MOST)))
    assert rig.cancel("k") == ("cancelled",)


def test_c1_a_refusal_that_came_to_nothing_is_not_remembered(rig: EngineRig) -> None:
    """Its batch was decided twice: the disk was full, so the job that was in its way was not made."""
    store, right = rig.store, rig.store.commit

    def full(changes: Any, *more: Any) -> Any:
        if any(change.was is None for change in changes):
            raise StoreFull("full")
        return right(changes, *more)

    store.commit = full  # type: ignore[method-assign]
    answers = rig.batch(
        rig.frame(Kind.ENQ, m.Enq(JOB, "Mail", FAR_US, "k")), rig.frame(Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k"), conn=2)
    )
    store.commit = right  # type: ignore[method-assign]

    assert not any(isinstance(each[0], DuplicateKey) for each in answers)
    rig.engine.desk.is_full = False
    assert rig.enq(id=COPY, key="k", delay_us=FAR_US)[0] == COPY


def test_c1_a_frame_that_is_older_than_its_client_waits_is_not_decided(rig: EngineRig) -> None:
    # given
    enq(rig)
    known = rig.ext("k", delta_us=5, request=uid(60))
    version = rig.stored(JOB).version
    late = [
        rig.frame(kind, message)._replace(until_us=rig.now.mono_us - 1)
        for kind, message in (
            (Kind.ENQ, m.Enq(uid(61), "Mail", FAR_US)),
            (Kind.EXT, m.Ext(uid(62), "k", delta_us=5)),
            (Kind.CANCEL, m.Cancel(uid(63), "k")),
            (Kind.REQUEUE, m.Requeue(uid(64), "k")),
            (Kind.EXT, m.Ext(uid(60), "k", delta_us=5)),
        )
    ]

    # when
    *refused, (again,) = rig.batch(*late)

    # then
    assert all(type(each) is Busy and each.late for (each,) in refused)
    assert again == known
    assert rig.stored(JOB).version == version
    assert rig.info()["remembered"]["answers"] == 0
    assert isinstance(rig.ext("k", delta_us=5, request=uid(62)), tuple)


def test_c1_a_frame_is_decided_up_to_the_end_of_its_time_and_a_question_after_it_too(rig: EngineRig) -> None:
    enq(rig)
    in_time = rig.frame(Kind.EXT, m.Ext(uid(62), "k", delta_us=5))._replace(until_us=rig.now.mono_us)
    question = rig.frame(Kind.STAT, m.Stat("k"), conn=2)._replace(until_us=0)

    answers = rig.batch(in_time, question)

    assert all(isinstance(each[0], tuple) for each in answers)


def test_a_refusal_that_no_copy_can_follow_takes_no_room(rig: EngineRig) -> None:
    frame = rig.frame(Kind.CANCEL, m.Cancel(COPY, "k"))._replace(is_once=True)

    assert isinstance(rig.batch(frame)[0][0], NotFound)
    assert rig.info()["remembered"]["answers"] == 0


def test_a_running_job_refuses_the_same_way_from_its_memory(rig: EngineRig) -> None:
    running(rig)
    refused = rig.ext("k", delta_us=5, request=COPY)
    failed(rig)

    again = rig.ext("k", delta_us=5, request=COPY)

    assert isinstance(refused, WrongState)
    assert (str(again), again.state) == (str(refused), "running")
