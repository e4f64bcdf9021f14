"""Sending again over several servers: one server decides a command; the others give the same answer and change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import givalia_postgres
import psycopg
import pytest
from engine_rig import EngineRig, uid
from givalia_postgres import Postgres, reads
from givalia_postgres import statements as sql
from shared_rig import sift_without_hurry, url_of
from test_answers_stand import CHANGED, COPY, FAR_US, JOB, NEXT, UNCHANGED, enq, enq_next, rows, touch
from test_shared_engines import before_commit

from givalia_core.clock import SECOND_US, ManualClock
from givalia_core.engine.steps import Decided, Read
from givalia_core.errors import Busy, DuplicateKey, NotFound, StoreAway, StoreCorrupt, StoreFull
from givalia_core.protocol import messages as m
from givalia_core.protocol.messages import Kind
from givalia_core.store.shared import AlreadyDecided
from givalia_core.views import text_id

Pair = tuple[EngineRig, EngineRig]


@pytest.fixture
def two(database_url: str) -> Iterator[Pair]:
    """Two engines on one database."""
    clock = ManualClock()
    here, there = (EngineRig(Postgres(database_url), clock) for _ in range(2))
    there._id += 10_000
    yield here, there
    for rig in (here, there):
        rig.store.close()


def of(rig: EngineRig, query: str) -> Any:
    """Ask the database itself."""
    with psycopg.connect(url_of(rig), autocommit=True) as connection:
        cursor = connection.execute(query)  # type: ignore[call-overload]
        return cursor.fetchall() if cursor.description else cursor.rowcount


def kept(rig: EngineRig) -> int:
    """Return the number of stored answers that changed nothing."""
    return int(of(rig, "SELECT count(*) FROM givalia.requests WHERE answer IS NOT NULL")[0][0])


@pytest.mark.parametrize("name", [*UNCHANGED, *CHANGED])
def test_a_command_that_another_server_has_answered_changes_nothing_and_is_answered_the_same(two: Pair, name: str) -> None:
    # given
    here, there = two
    case = UNCHANGED.get(name) or CHANGED[name]
    case.before(here)
    first = here.frame(case.kind, case.message)
    here.turn(first)

    # when what it met has changed, forty others have come, and a copy of it arrives at the other server
    case.change(here)
    touch(here, 40)
    here.tick(1)
    before = rows(here)
    copy = there.frame(case.kind, case.message)
    there.turn(copy)

    # then
    told, again = here.replies[first.conn, first.request][0], there.replies[copy.conn, copy.request][0]
    assert list(told[0]) == list(again[0])
    assert rows(here) == before


@pytest.mark.parametrize("damage", ["''", "'\\xc1'", "substr(answer, 2)", "set_byte(answer, 2, 255)", "set_byte(answer, 2, 6)"])
def test_a_damaged_answer_is_said_to_be_so_and_its_command_is_not_done_later(two: Pair, damage: str) -> None:
    # given
    here, there = two
    here.enq(key="k", delay_us=FAR_US)
    enq = m.Enq(COPY, "Mail", FAR_US, "k")
    refused = here.frame(Kind.ENQ, enq)
    here.turn(refused)
    here.cancel("k")

    # when
    assert of(here, f"UPDATE givalia.requests SET answer = {damage} WHERE answer IS NOT NULL") == 1
    copy = there.frame(Kind.ENQ, enq)
    there.turn(copy)

    # then
    told = there.answers(copy)[0]
    assert isinstance(told, StoreCorrupt)
    assert "changed nothing" in str(told)
    assert isinstance(there.stat(id=COPY), NotFound)
    assert there.enq(key="k", delay_us=FAR_US)[0]


def test_a_job_whose_id_another_server_refuses_meanwhile_is_not_made(two: Pair) -> None:
    # given a server that has decided to make a job, its key being free
    here, there = two
    refused: list[Any] = []

    def refuse() -> None:
        enq_next(there)
        refused.append(there.enq(id=COPY, key="k", delay_us=FAR_US))
        there.cancel("k")

    before_commit(here, refuse)

    # when
    answer = here.enq(id=COPY, key="k", delay_us=FAR_US)

    # then
    assert isinstance(refused[0], DuplicateKey)
    assert (str(answer), answer.details) == (str(refused[0]), refused[0].details)
    assert [each[0] for each in rows(here)] == [NEXT]
    assert here.store.check() == []


@pytest.mark.parametrize(
    ("kind", "message", "refusal"),
    [
        (Kind.EXT, m.Ext(COPY, "k", delta_us=5), m.Ext(COPY, "none", delta_us=5)),
        (Kind.CANCEL, m.Cancel(COPY, "k"), m.Cancel(COPY, "none")),
        (Kind.ENQ, m.Enq(COPY, "Mail", 5, "k", if_exists="reschedule"), m.Enq(COPY, "Mail", 5, "other")),
    ],
    ids=["ext", "cancel", "reschedule"],
)
def test_a_change_whose_request_another_server_refuses_meanwhile_is_not_made(
    two: Pair, kind: Kind, message: Any, refusal: Any
) -> None:
    # given
    here, there = two
    enq(here)
    here.enq(id=NEXT, key="other", delay_us=FAR_US)
    before = rows(here)
    refused: list[Any] = []
    before_commit(here, lambda: refused.extend(there.ask(kind, refusal)))

    # when
    answer = here.ask(kind, message)[0]

    # then
    assert isinstance(refused[0], NotFound | DuplicateKey)
    assert str(answer) == str(refused[0])
    assert rows(here) == before


@pytest.mark.parametrize(
    ("kind", "message", "refusal"),
    [
        (Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k"), m.Enq(COPY, "Mail", 5, "other")),
        (Kind.EXT, m.Ext(COPY, "other", delta_us=5), m.Ext(COPY, "none", delta_us=5)),
    ],
    ids=["enq", "ext"],
)
def test_a_refusal_of_another_server_costs_no_other_command_its_place_in_a_commit_that_is_sifted(
    two: Pair, monkeypatch: pytest.MonkeyPatch, kind: Kind, message: Any, refusal: Any
) -> None:
    # given a job, a key that an open transaction holds, and a refusal that another server decides before the commit
    here, there = two
    sift_without_hurry(monkeypatch)
    here.enq(id=NEXT, key="other", delay_us=FAR_US)
    refused: list[Any] = []
    with psycopg.connect(url_of(here)) as connection:
        givalia_postgres.enq(connection, "Mail", time=60, key="held")
        before_commit(here, lambda: refused.extend(there.ask(kind, refusal)))

        # when
        held = here.frame(Kind.ENQ, m.Enq(uid(3), "Mail", FAR_US, "held"))
        copy = here.frame(kind, message, conn=2)
        others = here.frame(Kind.ENQ, *(m.Enq(uid(number), "Mail", FAR_US) for number in range(20, 40)), conn=3)
        here._turn_once(held, copy, others)

        # then the others are stored in the same turn, and the copy is told what was decided in the next one
        assert [answer[0] for answer in here.answers(others)] == [uid(number) for number in range(20, 40)]
        here._turn_once()
        (told,) = here.answers(copy)
        assert str(told) == str(refused[0])
        assert (held.conn, held.request) not in here.replies
    assert here.store.check() == []


def test_a_refusal_of_a_job_that_another_server_makes_meanwhile_is_told_to_nobody(two: Pair) -> None:
    # given a server that has decided to refuse a job, its key being held
    here, there = two
    enq(here)
    made: list[Any] = []

    def make() -> None:
        there.cancel("k")
        made.append(there.enq(id=COPY, key="k", delay_us=FAR_US))

    right = here.store.keep  # type: ignore[attr-defined]

    def keep(answers: Any) -> Any:
        here.store.keep = right  # type: ignore[attr-defined]
        make()
        return right(answers)

    here.store.keep = keep  # type: ignore[attr-defined]

    # when
    answer = here.enq(id=COPY, key="k", delay_us=FAR_US)

    # then
    assert answer == made[0]
    assert kept(here) == 0
    assert here.store.check() == []


def test_a_refusal_of_an_id_that_an_open_transaction_makes_a_job_of_decides_nothing(two: Pair) -> None:
    # given
    here, there = two
    enq(here)
    with psycopg.connect(url_of(here)) as connection:
        givalia_postgres.enq(connection, "Mail", time=60, id=text_id(COPY))

        # when
        answers = here.batch(
            here.frame(Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k")), here.frame(Kind.CANCEL, m.Cancel(uid(8), "none"), conn=2)
        )

        # then
        assert type(answers[0][0]) is Busy
        assert isinstance(answers[1][0], NotFound)
    assert here.enq(id=COPY, key="k", delay_us=FAR_US)[0] == COPY
    assert there.state("k") == "waiting"
    assert here.stored(COPY).key is None


def test_in_a_transaction_of_ones_own_a_refused_id_stays_refused(two: Pair) -> None:
    here, _ = two
    enq(here)
    assert isinstance(here.enq(id=COPY, key="k"), DuplicateKey)

    with psycopg.connect(url_of(here)) as connection, pytest.raises(DuplicateKey):
        givalia_postgres.enq(connection, "Mail", time=60, id=text_id(COPY))

    assert [each[0] for each in rows(here)] == [JOB]


def test_a_refusal_that_depends_on_a_job_which_came_to_nothing_is_not_kept(two: Pair) -> None:
    # given a batch that makes a job and refuses another for its sake, while another server takes the key
    here, there = two
    before_commit(here, lambda: enq_next(there))

    # when
    frames = [
        here.frame(Kind.ENQ, m.Enq(each, "Mail", FAR_US, "k"), conn=conn) for conn, each in ((1, JOB), (2, COPY), (3, COPY))
    ]
    answers = here.batch(*frames)

    # then all are refused for the sake of the one that is there
    assert [each[0].id for each in answers] == [text_id(NEXT)] * 3
    assert isinstance(there.enq(id=COPY, key="k"), DuplicateKey)


def test_a_server_that_stood_still_before_its_commit_decides_again(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a server that is stopped between what it read and what it writes, for longer than answers are remembered
    here, there = two
    enq(here)
    before = rows(here)
    right = Read.decide

    def decide(read: Read) -> Decided:
        decided = right(read)
        monkeypatch.setattr(Read, "decide", right)
        assert isinstance(there.ext("none", delta_us=5, request=COPY), NotFound)
        assert of(here, "DELETE FROM givalia.requests WHERE answer IS NOT NULL") == 1
        here.clock.advance(200)
        return decided

    monkeypatch.setattr(Read, "decide", decide)

    # when
    late = here.frame(Kind.EXT, m.Ext(COPY, "k", delta_us=5))._replace(until_us=here.now.mono_us + 10 * SECOND_US)
    answer = here.batch(late)[0][0]

    # then
    assert type(answer) is Busy
    assert answer.late
    assert rows(here) == before


def test_a_commit_that_was_held_up_on_its_way_makes_no_job_that_another_server_has_refused(
    two: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a commit of a new job that something between server and database keeps
    here, there = two
    connection = here.store._connection  # type: ignore[attr-defined]
    right = connection.ask
    kept_back: list[Any] = []

    def ask(*statements: Any) -> Any:
        if any(words == sql.INSERT for words, _ in statements):
            kept_back.extend(statements)
            raise StoreAway("no answer in time")
        return right(*statements)

    monkeypatch.setattr(connection, "ask", ask)
    with monkeypatch.context() as patience:
        patience.setattr(reads, "ON_ITS_WAY_US", 0)
        with pytest.raises(StoreAway):
            here.turn(here.frame(Kind.ENQ, m.Enq(COPY, "Mail", FAR_US, "k")))

    # when its client was refused elsewhere, that is forgotten, and the database gets it all the same
    enq_next(there)
    assert isinstance(there.enq(id=COPY, key="k"), DuplicateKey)
    there.cancel("k")
    assert of(here, "DELETE FROM givalia.requests WHERE answer IS NOT NULL") == 1
    with pytest.raises(AlreadyDecided):
        right(*kept_back)

    # then
    assert [each[0] for each in rows(here)] == [NEXT]
    assert here.store.check() == []


def test_answers_are_swept_when_they_are_old_a_bounded_number_at_once(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    here, _ = two
    monkeypatch.setattr(givalia_postgres.store, "SWEPT_AT_ONCE", 20)
    monkeypatch.setattr(givalia_postgres.store, "SWEEP_S", 0.0)
    here.ask(Kind.CANCEL, *(m.Cancel(uid(100 + number), "none") for number in range(50)))
    here.store.tidy()
    assert kept(here) == 50

    # when
    of(here, "UPDATE givalia.requests SET until_us = 1")
    here.store.tidy()

    # then
    assert kept(here) == 30
    monkeypatch.setattr(givalia_postgres.store, "SWEEP_S", 3600.0)
    for _ in range(3):
        here.store.tidy()
    assert kept(here) == 0


def test_without_room_on_the_disk_a_refusal_decides_nothing_and_changes_go_on(
    two: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    here, there = two
    enq(here)

    def full(answers: Any) -> Any:
        raise StoreFull("full")

    monkeypatch.setattr(here.store, "_keep", full)

    # when
    answers = here.batch(
        here.frame(Kind.CANCEL, m.Cancel(COPY, "none")), here.frame(Kind.EXT, m.Ext(uid(8), "k", delta_us=5), conn=2)
    )

    # then
    assert type(answers[0][0]) is Busy
    assert answers[1][0][0] == JOB
    there.enq(id=NEXT, key="none", delay_us=FAR_US)
    assert there.cancel("none", request=COPY) == ("cancelled",)
