"""The steps of a turn, one by one: what each reads, decides and believes, and that nothing is true before the commit."""

from __future__ import annotations

from typing import Any

import pytest
from engine_rig import EngineRig, uid

from givalia_core.clock import SECOND_US
from givalia_core.engine import acts
from givalia_core.engine.records import Close, Effect, Gone, Hook, Input, Reply, Tell
from givalia_core.engine.steps import FORGOTTEN_AT_ONCE, NOTHING, Arrived, Decided
from givalia_core.errors import BadRequest
from givalia_core.model import CANCELLED, DEAD, WAITING
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import EndedCancelled
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.codec import item
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Commit, Retention
from givalia_core.store.memory import Memory

LEASE_US = 30 * SECOND_US


class Spy(Memory):
    """A store that says what it was given to commit."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[Any, ...]] = []

    def commit(self, *given: Any) -> Commit:
        self.given.append(given)
        return super().commit(*given[:3])


class StepRig(EngineRig):
    """A rig whose turns are taken step by step."""

    def __init__(self, **policy: Any) -> None:
        self.spy = Spy()
        super().__init__(self.spy, **policy)

    def arrive(self, *inputs: Input) -> Arrived:
        arrived = Arrived(self.engine, inputs, self.now)
        arrived.fill(self.store.upcoming(arrived.spans, self.now))
        return arrived

    def decide(self, *inputs: Input) -> Decided:
        return self.arrive(*inputs).read(self.store).decide()

    def finish(self, *inputs: Input, commit: Commit | None = None) -> list[Effect]:
        """The effects of a turn; with a commit, the store is said to have done that and nothing else."""
        decided = self.decide(*inputs)
        return decided.committed(decided.store(self.store, self.timer) if commit is None else commit)

    def new(self, number: int, **fields: Any) -> Asked:
        return self.frame(Kind.ENQ, m.Enq(uid(number), "Mail", **fields))


@pytest.fixture
def rig() -> StepRig:
    rig = StepRig()
    rig.turn()
    rig.spy.given.clear()
    return rig


def states(decided: Decided) -> dict[bytes, str]:
    return {change.job.id: change.job.state for change in decided.changes}


# Arrived.


def test_questions_that_take_a_walk_are_no_part_of_a_batch_and_unreadable_ones_are_answered_with_it(rig: StepRig) -> None:
    listing, unreadable = rig.frame(Kind.LIST, m.List()), rig.frame(Kind.LIST, BadRequest("no"))
    stat = rig.frame(Kind.STAT, m.Stat("k"))

    arrived = rig.arrive(listing, unreadable, stat, Gone(9))

    assert arrived.inputs == [stat, Gone(9)]
    assert [list(line) for line in rig.engine.questions.lines.values()] == [[listing]]
    assert rig.engine.owed == [Reply(unreadable.conn, unreadable.request, unreadable.messages)]


def test_commands_of_acts_come_before_what_arrived_and_their_answers_are_not_said(rig: StepRig) -> None:
    desk, new = rig.engine.desk, rig.new(1)
    ticket = desk.acts.submit(Kind.CANCEL, [m.Cancel(uid(9), None, uid(1))])

    decided = rig.decide(new)

    assert [given.conn for given in decided.arrived.inputs if isinstance(given, Asked)] == [acts.CONN, new.conn]
    replied = [effect.conn for effect in decided.committed(NOTHING) if isinstance(effect, Reply)]
    assert replied == [new.conn]
    assert desk.acts.is_answered(ticket)


# Read.


def test_a_requeue_by_id_reads_the_live_job_of_the_same_key(rig: StepRig) -> None:
    rig.enq(id=uid(1), key="k")
    rig.cancel("k")
    rig.enq(id=uid(2), key="k", delay_us=SECOND_US)

    read = rig.arrive(rig.frame(Kind.REQUEUE, m.Requeue(uid(9), None, uid(1)))).read(rig.store)

    assert {key: job.id for key, job in read.found.live.items()} == {"k": uid(2)}


def test_what_stands_of_a_frame_is_not_read_again(rig: StepRig) -> None:
    for number in (1, 2):
        rig.enq(id=uid(number))
    frame = rig.frame(Kind.CANCEL, m.Cancel(uid(8), None, uid(1)), m.Cancel(uid(9), None, uid(2)))
    rig.engine.again.standing = {(frame.conn, frame.request): {0: BadRequest("it stands")}}

    assert rig.arrive(frame).read(rig.store).found.ids.keys() == {uid(2)}


@pytest.mark.parametrize(("after_us", "is_swept"), [(SECOND_US - 1, False), (SECOND_US, True)])
def test_expired_jobs_and_retention_are_read_once_a_second(rig: StepRig, after_us: int, is_swept: bool) -> None:
    rig.enq(id=uid(1), retain_us=0)
    rig.cancel(id=uid(1))
    rig.enq(id=uid(2), delay_us=119 * SECOND_US, expires_us=SECOND_US)
    rig.clock.advance(119)
    rig.engine.now, rig.engine.swept_us = rig.now, rig.now.mono_us + SECOND_US - after_us
    rig.clock.advance(1)

    read = rig.arrive().read(rig.store)

    assert [job.id for job in read.expired] == [uid(2)] * is_swept
    assert (read.retention is not None) is is_swept


def test_ended_jobs_are_forgotten_with_a_commit_only_if_there_are_any(rig: StepRig) -> None:
    rig.enq(id=uid(1), retain_us=0)
    rig.cancel(id=uid(1))
    rig.clock.advance(121)
    rig.engine.forget_more = True

    decided = rig.decide()

    assert decided.must_commit
    assert isinstance(decided.retention, Retention)
    decided.committed(decided.store(rig.store, rig.timer))
    rig.engine.forget_more = True
    assert rig.decide().retention is None


# Decide.


@pytest.mark.parametrize(("over_us", "is_over"), [(-1, False), (0, True)])
def test_a_lease_ends_with_its_last_microsecond(rig: StepRig, over_us: int, is_over: bool) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    rig.clock.advance(us=SECOND_US)
    rig.engine.desk.leases[uid(1)].expires_mono_us = rig.now.mono_us - over_us

    decided = rig.decide(rig.frame(Kind.CREDIT, m.Credit(0), conn=worker.conn))

    assert states(decided) == ({uid(1): WAITING} if is_over else {})


@pytest.mark.parametrize(
    ("silent_us", "is_gone"), [(LEASE_US * 2 // 3 + SECOND_US, False), (LEASE_US * 2 // 3 + SECOND_US + 1, True)]
)
def test_a_worker_that_missed_two_beats_is_cut_off(rig: StepRig, silent_us: int, is_gone: bool) -> None:
    rig.worker(10)
    rig.clock.advance(us=SECOND_US)
    rig.engine.desk.routing.sessions[10].beat_mono_us = rig.now.mono_us - silent_us

    effects = rig.finish()

    assert effects == [Close(10, "it missed two beats")] * is_gone
    assert (10 in rig.engine.desk.routing.sessions) is not is_gone


def test_a_connection_that_has_ended_takes_its_questions_and_waits_along(rig: StepRig) -> None:
    rig.enq(id=uid(1))
    listing = rig.frame(Kind.LIST, m.List(), conn=5)
    rig.decide(listing, rig.frame(Kind.WAIT, m.Wait(id=uid(1)), conn=5))
    assert rig.engine.questions

    rig.decide(Gone(5))

    assert not rig.engine.questions
    assert len(rig.engine.desk.waits) == 0


# Decided.


def test_what_changes_nothing_is_not_committed_unless_the_mark_must_be(rig: StepRig) -> None:
    decided = rig.decide(rig.frame(Kind.STAT, m.Stat("k")))
    assert not decided.must_commit
    assert decided.store(rig.store, rig.timer) is NOTHING
    assert rig.spy.given == []

    rig.engine.must_mark = True
    marking = rig.decide()
    marking.committed(marking.store(rig.store, rig.timer))
    ((changes, mark, retention),) = rig.spy.given
    assert (changes, mark.timer_us, mark.lease_us, retention) == ([], rig.now.timer_us, LEASE_US, None)
    assert not rig.engine.must_mark


def test_what_the_store_learned_while_it_read_goes_back_to_it(rig: StepRig) -> None:
    decided, learned = rig.decide(rig.new(1)), object()
    decided.batch.found = decided.batch.found._replace(learned=learned)

    decided.store(rig.store, rig.timer)

    assert [given[3] for given in rig.spy.given] == [learned]


def test_memory_believes_nothing_before_the_commit(rig: StepRig) -> None:
    worker, desk = rig.worker(), rig.engine.desk
    frame = rig.new(1)

    decided = rig.decide(frame)
    assert (desk.live, dict(desk.leases)) == (0, {})

    told, dispatch = (
        effect for effect in decided.committed(decided.store(rig.store, rig.timer)) if not isinstance(effect, Hook)
    )
    assert isinstance(told, Reply)
    assert (told.conn, told.request) == (frame.conn, frame.request)
    assert isinstance(dispatch, Tell)
    assert (dispatch.conn, dispatch.kind) == (worker.conn, Kind.DISPATCH)
    assert (desk.live, set(desk.leases)) == (1, {uid(1)})


def test_a_lease_runs_from_the_last_message_of_the_worker_which_the_dispatch_names(rig: StepRig) -> None:
    rig.worker()
    session = rig.engine.desk.routing.sessions[10]
    session.heard, session.beat_mono_us = 44, rig.now.mono_us - 5

    (dispatch,) = (effect for effect in rig.finish(rig.new(1)) if isinstance(effect, Tell))

    assert dispatch.items[0] == item(m.Heard(44, LEASE_US))
    assert rig.engine.desk.leases[uid(1)].expires_mono_us == rig.now.mono_us - 5 + LEASE_US


def test_a_refused_change_is_neither_said_nor_believed_and_decided_again(rig: StepRig) -> None:
    rig.worker(capacity=2)
    session, first, second = rig.engine.desk.routing.sessions[10], rig.new(1), rig.new(2)

    effects = rig.finish(first, second, commit=Commit(refused=(0,)))

    assert [effect.request for effect in effects if isinstance(effect, Reply)] == [second.request]
    assert [effect.job.id for effect in effects if isinstance(effect, Hook)] == [uid(2)]
    assert rig.engine.again.inputs == [first]
    assert rig.engine.desk.live == 1
    assert rig.engine.desk.leases.keys() == {uid(2)}
    assert session.rooms["greenlet"].held == 1


def test_who_waits_is_answered_when_the_end_is_stored(rig: StepRig) -> None:
    rig.enq(id=uid(1))
    wait, cancel = rig.frame(Kind.WAIT, m.Wait(id=uid(1)), conn=5), rig.frame(Kind.CANCEL, m.Cancel(uid(9), None, uid(1)))

    assert rig.finish(wait) == []
    effects = rig.finish(cancel)

    assert Reply(5, wait.request, [EndedCancelled()], uid(1)) in effects
    assert len(rig.engine.desk.waits) == 0
    assert rig.engine.desk.live == 0


def test_what_is_owed_is_said_first_and_once(rig: StepRig) -> None:
    owed, frame = Close(77, "as if"), rig.frame(Kind.STAT, m.Stat("k"))
    rig.engine.owed = [owed]

    assert rig.finish(frame)[0] is owed
    assert rig.finish() == []


@pytest.mark.parametrize(("forgotten", "more"), [(FORGOTTEN_AT_ONCE - 1, False), (FORGOTTEN_AT_ONCE, True)])
def test_while_a_commit_forgets_as_much_as_it_may_there_is_more_to_forget(rig: StepRig, forgotten: int, more: bool) -> None:
    rig.finish(commit=Commit(forgotten=forgotten))

    assert rig.engine.forget_more is more


def test_a_job_that_is_lent_again_in_the_batch_that_ended_its_attempt_has_the_new_lease(rig: StepRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))
    fence = worker.last.fence

    effects = rig.finish(rig.frame(Kind.RELEASE, m.Release(uid(1), fence), conn=worker.conn))

    lease = rig.engine.desk.leases[uid(1)]
    assert lease.job.fence > fence
    assert lease.session is rig.engine.desk.routing.sessions[worker.conn]
    assert [effect.kind for effect in effects if isinstance(effect, Tell)] == [Kind.DISPATCH]
    assert rig.engine.desk.routing.sessions[worker.conn].rooms["greenlet"].held == 1


def test_a_job_that_is_put_back_has_no_lease_any_more(rig: StepRig) -> None:
    worker = rig.worker()
    rig.enq(id=uid(1))

    rig.finish(
        rig.frame(Kind.CREDIT, m.Credit(0), conn=worker.conn),
        rig.frame(Kind.RELEASE, m.Release(uid(1), worker.last.fence), conn=worker.conn),
    )

    assert rig.engine.desk.leases == {}
    assert (rig.stored(uid(1)).state, rig.engine.desk.live) == (WAITING, 1)


def test_a_stuck_store_is_asked_for_no_end(rig: StepRig) -> None:
    rig.worker()
    rig.enq(id=uid(1))
    rig.enq(id=uid(2), delay_us=5, expires_us=5)
    rig.clock.advance(31)
    rig.engine.now = rig.now
    rig.engine.desk.is_stuck = True

    decided = rig.decide()

    assert states(decided) == {}
    rig.engine.desk.is_stuck, rig.engine.swept_us = False, 0
    assert states(rig.decide()) == {uid(1): WAITING, uid(2): DEAD}


def test_the_changes_of_a_batch_are_one_for_each_job(rig: StepRig) -> None:
    decided = rig.decide(
        rig.new(1), rig.frame(Kind.CANCEL, m.Cancel(uid(9), None, uid(1))), rig.frame(Kind.EXT, m.Ext(uid(8), None, uid(1)))
    )

    assert [(change.was, change.job.state) for change in decided.changes] == [(None, CANCELLED)]
