"""Questions that need a walk: they are cut into steps, take turns, and delay no leases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgpack
import pytest
from engine_rig import EngineRig, items_of, uid

from givalia_core.clock import SECOND_US, ManualClock, Now
from givalia_core.engine import questions, turn
from givalia_core.engine.records import Gone, Reply
from givalia_core.errors import BadRequest, Busy, StoreAway, StoreCorrupt, TooLarge
from givalia_core.protocol import codec
from givalia_core.protocol import messages as m
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.frames import RESULT_BYTES_MAX
from givalia_core.protocol.messages import CLIENT_KINDS, Kind
from givalia_core.store.base import SCAN_MAX, Filter, Page, Ready
from givalia_core.store.memory import Memory
from givalia_core.store.shared import News

ROW_US = 20


class Slow(Memory):
    """A store in which each row that is looked at takes time."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__()
        self.clock = clock
        self.looked_at: list[int] = []
        self.is_away = False
        self.too_long: set[str | None] = set()  # Modules whose pages take too long.

    def page(
        self, wanted: Filter, after: tuple[int, int] | None, limit: int, now: Now, rows: int = SCAN_MAX
    ) -> Page:  # fmt: skip
        if self.is_away:
            raise StoreAway("it is away")
        if wanted.module in self.too_long:
            raise Busy("it takes too long", retry_after=1.0)
        page = super().page(wanted, after, limit, now, rows)
        self.looked_at.append(rows)
        self.clock.advance(us=rows * ROW_US)
        return page


class Shared(Memory):
    """A store that other servers could have open, and none has; each commit is made, and its answer is lost."""

    is_shared = True

    def news(self) -> News:
        return News()

    def watch(self, now: Now, lease_us: int, about: bytes, *, all_own: bool) -> None:
        return None

    def commit(self, *given: Any) -> Any:
        super().commit(*given)
        raise StoreAway("it is away")


class SlowRig(EngineRig):
    """A rig whose turns are one each, so that what they take can be seen."""

    def __init__(self, jobs: int = 2_000) -> None:
        clock = ManualClock()
        super().__init__(Slow(clock), clock)
        self.slow: Slow = self.store  # type: ignore[assignment]
        for first in range(0, jobs, 1_000):
            self.turn(
                self.frame(Kind.ENQ, *(m.Enq(self.fresh_id(), "Mail", SECOND_US * 600) for _ in range(first, first + 1_000)))
            )

    def walk(self, *inputs: Any) -> tuple[list[Reply], int]:
        """One turn of these inputs and what it walks: the answers, and how long it took."""
        turn.turn(self.engine, self.store, self.timer, inputs, self.clock)
        before = self.now.mono_us
        told = turn.walk(self.engine, self.store, self.timer, self.clock)
        return [each for each in told if isinstance(each, Reply)], self.now.mono_us - before

    def walk_all(self, *inputs: Any) -> list[Reply]:
        """The answers of all turns until none has work; none of the turns walks for long."""
        told, took_us = self.walk(*inputs)
        longest_us = took_us
        for _ in range(10_000):
            if not self.engine.questions.has_work:
                assert longest_us < turn.WALK_US + 2 * questions.STEP_US + questions.ROWS_LEAST * ROW_US
                return told
            more, took_us = self.walk()
            told, longest_us = told + more, max(took_us, longest_us)
        raise AssertionError("they are never answered")


def vain(rig: EngineRig, conn: int, number: int = 0) -> Asked:
    return rig.frame(Kind.LIST, m.List(module=f"Nobody{number}"), conn=conn)


def test_a_listing_that_finds_nothing_is_walked_in_turns_each_bounded_in_time_and_answered_once() -> None:
    rig = SlowRig()

    (told,) = rig.walk_all(vain(rig, 5))

    assert (told.conn, items_of(told)[0]) == (5, (("OK",), msgpack.packb([])))
    assert sum(rig.slow.looked_at) >= 2_000
    assert max(rig.slow.looked_at) * ROW_US < 2 * questions.STEP_US


def test_many_listings_of_many_connections_take_no_longer_a_turn_than_one() -> None:
    rig = SlowRig()

    told = rig.walk_all(*(vain(rig, conn, number) for conn in range(20) for number in range(8)))

    assert len({(each.conn, each.request) for each in told}) == 160


def test_a_connection_with_many_listings_is_no_more_ahead_than_one_with_a_single_one() -> None:
    rig = SlowRig()
    many = [vain(rig, 5, number) for number in range(8)]
    single = vain(rig, 6, 99)

    told = [each.request for each in rig.walk_all(*many, single)]

    assert told.index(single.request) <= 1


def test_an_act_whose_filter_admits_nothing_is_walked_in_turns_each_bounded_in_time() -> None:
    rig = SlowRig()

    (told,) = rig.walk_all(rig.frame(Kind.ACT, m.Act(uid(1), "cancel", module="Nobody"), conn=5))

    assert items_of(told)[0][0][1] == {}


def test_a_lease_is_renewed_and_a_job_settled_in_the_turn_in_which_its_worker_says_so_whatever_is_walked() -> None:
    rig = SlowRig()
    worker = rig.worker(10, "w", "Fax")
    rig.enq("Fax")
    job = worker.last
    beat = rig.frame(Kind.BEAT, m.NamedLease(job.id, job.fence), conn=10)
    done = rig.frame(Kind.SUCCEED, m.Succeed(job.id, job.fence), conn=10)

    before_us = rig.now.mono_us
    effects = turn.turn(rig.engine, rig.store, rig.timer, [*(vain(rig, 5, n) for n in range(8)), beat, done], rig.clock)

    assert [items_of(each) for each in effects if isinstance(each, Reply)] == [[(("OK",), b"")]] * 2
    assert rig.now.mono_us == before_us


def test_a_listing_looks_at_a_bounded_number_of_rows_and_says_where_it_goes_on() -> None:
    rig = SlowRig(jobs=SCAN_MAX + 1_000)

    (told,) = rig.walk_all(vain(rig, 5))
    (rest,) = rig.walk_all(rig.frame(Kind.LIST, m.List("waiting", "Nobody", None, 100, *items_of(told)[0][0][1:]), conn=5))

    assert len(items_of(told)[0][0]) == 3
    assert items_of(rest)[0][0] == ("OK",)


def test_a_listing_whose_asker_is_gone_is_walked_no_further() -> None:
    rig = SlowRig()
    rig.walk(vain(rig, 5))

    rig.walk(Gone(5))

    assert not rig.engine.questions
    assert not rig.engine.questions.has_work


def test_a_listing_of_a_peer_that_does_not_read_waits_and_costs_nothing() -> None:
    rig = SlowRig()
    rig.engine.desk.clogged = frozenset({5})

    (told,) = rig.walk_all(vain(rig, 5), vain(rig, 6))
    looked_at = len(rig.slow.looked_at)
    rig.walk()

    assert told.conn == 6
    assert rig.engine.wake_in_us(rig.now) > 0
    assert len(rig.slow.looked_at) == looked_at

    rig.engine.desk.clogged = frozenset()
    (told,) = rig.walk_all()
    assert told.conn == 5


def test_a_listing_that_meets_a_store_that_is_away_begins_anew_when_it_is_back() -> None:
    rig = SlowRig()
    rig.walk(vain(rig, 5))
    rig.slow.is_away = True
    with pytest.raises(StoreAway):
        rig.walk()
    rig.slow.is_away = False

    (told,) = rig.walk_all()

    assert told.conn == 5


def test_a_listing_that_takes_the_store_too_long_is_answered_busy_and_the_others_go_on() -> None:
    rig = SlowRig()
    rig.slow.too_long.add("Nobody1")

    told = rig.walk_all(vain(rig, 5, 1), vain(rig, 6, 2))

    answers = {each.conn: codec.answer_error(items_of(each)[0][0]) for each in told}
    assert isinstance(answers[5], Busy)
    assert answers[6] is None
    assert not rig.engine.questions


def test_a_listing_is_put_off_while_the_store_is_away_also_if_commands_beside_it_may_be_stored() -> None:
    rig = EngineRig(Shared())
    listing = vain(rig, 5)
    with pytest.raises(StoreAway):
        turn.turn(rig.engine, rig.store, rig.timer, [rig.frame(Kind.ENQ, m.Enq(uid(1), "Mail")), listing], rig.clock)

    assert rig.engine.again.put_off(CLIENT_KINDS) == [listing]


def test_a_listing_keeps_neither_params_nor_results_while_it_is_walked(rig: EngineRig) -> None:
    for _ in range(4):
        rig.enq(params=bytes(RESULT_BYTES_MAX), delay_us=SECOND_US)
    kept: list[Any] = []
    status = questions.words.status

    def noted(desk: Any, job: Any, now: Now) -> Any:
        kept.append((job.params, job.result))
        return status(desk, job, now)

    questions.words.status = noted
    try:
        assert len(rig.listed()) == 4
    finally:
        questions.words.status = status
    assert kept == [(b"", None)] * 4


@pytest.fixture
def rig() -> EngineRig:
    return EngineRig()


def test_info_asked_by_many_at_once_is_counted_once_and_told_to_all(rig: EngineRig) -> None:
    counted: list[int] = []
    counts = rig.store.counts

    def noted() -> Any:
        counted.append(1)
        return counts()

    rig.store.counts = noted  # type: ignore[method-assign]
    asked = [rig.frame(Kind.INFO, m.Info(), conn=conn) for conn in range(50)]

    rig.turn(*asked)

    assert {rig.replies[each.conn, each.request][0][1] for each in asked} == {rig.replies[0, asked[0].request][0][1]}
    assert len(counted) == 1


def test_ready_jobs_are_counted_in_turns_each_bounded_in_time_however_many_modules_wait() -> None:
    rig = SlowRig(jobs=0)
    for number in range(500):
        rig.enq(f"M{number}")
    ready = rig.store.ready

    def slow(now: Now) -> Iterator[Ready]:
        for counted in ready(now):
            rig.clock.advance(us=ROW_US)
            yield counted

    rig.store.ready = slow  # type: ignore[method-assign]

    (told,) = rig.walk_all(rig.frame(Kind.INFO, m.Info()))

    shown = msgpack.unpackb(items_of(told)[0][1])
    assert shown["ready"] == "500"
    assert shown["jobs"]["M7"] == {"waiting": 1, "ready": 1}


def test_info_shows_what_was_stored_before_it_was_asked_also_while_another_is_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "STEPS_MAX", 1)
    rig = SlowRig(jobs=0)
    rig.enq("M0")
    told, _ = rig.walk(rig.frame(Kind.INFO, m.Info(), conn=5))
    assert not told  # It has begun.
    turn.turn(rig.engine, rig.store, rig.timer, [rig.frame(Kind.ENQ, m.Enq(uid(7), "M7"))], rig.clock)
    rig.engine.questions.add(rig.frame(Kind.INFO, m.Info(), conn=6))

    shown = {each.conn: msgpack.unpackb(items_of(each)[0][1])["jobs"] for each in rig.walk_all()}

    assert shown[6]["M7"] == {"waiting": 1, "ready": 1}
    assert "M0" in shown[5]


@pytest.mark.parametrize("kind", [Kind.LIST, Kind.INFO, Kind.MODULES, Kind.WORKERS])
def test_a_question_that_cannot_be_read_is_refused(rig: EngineRig, kind: Kind) -> None:
    assert isinstance(rig.ask(kind, BadRequest("no"))[0], BadRequest)


def test_damage_that_a_copy_meets_ends_the_copy_and_not_the_server(rig: EngineRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise StoreCorrupt("a page is damaged")

    monkeypatch.setattr(Memory, "copy_part", damaged, raising=False)

    assert isinstance(rig.ask(Kind.BACKUP, m.Backup(uid(1), 0))[0], StoreCorrupt)


def test_store_of_which_no_copy_can_be_sent_says_so(rig: EngineRig) -> None:
    refused = rig.ask(Kind.BACKUP, m.Backup(uid(1), 0))[0]

    assert isinstance(refused, BadRequest)
    assert "memory of the server" in str(refused)


@pytest.mark.parametrize("kind", [Kind.MODULES, Kind.WORKERS])
def test_what_many_workers_have_is_walked_in_steps(rig: EngineRig, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "ROWS_MOST", questions.ROWS_LEAST)
    for conn in range(10, 110):
        rig.worker(conn, f"w{conn}", *(f"M{number}" for number in range(5)))
    asked = rig.frame(kind, m.Modules() if kind is Kind.MODULES else m.Workers())
    turn.turn(rig.engine, rig.store, rig.timer, [asked], rig.clock)
    rig.engine.questions.begin_turn()
    steps: list[Sequence[Reply]] = []
    while not (told := rig.engine.questions.step(rig.store, rig.now)):
        steps.append(told or ())

    assert len(msgpack.unpackb(items_of(told[0])[0][1])) == (500 if kind is Kind.MODULES else 100)
    assert len(steps) > 20


def test_the_answers_about_workers_are_bounded_and_say_less_of_each_before_they_are_refused(
    rig: EngineRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(questions, "PARTS_BYTES_MAX", 20_000)
    broken = m.Announce("Mail", "d", "1", broken="x" * 3_000)
    for conn in range(10, 20):
        worker = rig.worker(conn, f"w{conn}", broken)
        worker.ask(Kind.PROCESSES, m.Process(1, "greenlets", "ready", stack="s" * 3_000))

    modules, workers = rig.info(Kind.MODULES), rig.info(Kind.WORKERS)

    assert {len(each["broken"]) for each in modules} == {3_000, questions.BRIEF_CHARS}
    assert {len(each["processes"]) for each in workers} == {0, 1}

    for conn in range(20, 220):
        rig.worker(conn, f"w{conn}", broken)
    for kind, message in ((Kind.MODULES, m.Modules()), (Kind.WORKERS, m.Workers())):
        assert isinstance(rig.ask(kind, message)[0], TooLarge)
