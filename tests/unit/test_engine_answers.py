"""The table of commands, and the answering of frames: in their order, once, and not too late."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import NOW, asked, changed, connect, found, job, later, new_batch, new_desk, said
from engine_rig import uid

from givalia_core.engine import questions, remembered
from givalia_core.engine.answers import FORGETFUL, LATE, VERBS, answer, answer_one, forget
from givalia_core.engine.batch import Batch
from givalia_core.engine.desk import BusyFor, Desk
from givalia_core.engine.records import Reply
from givalia_core.errors import BadRequest, Busy, DuplicateKey, NotFound, TooLarge
from givalia_core.model import CANCELLED, Answered
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import TAKEN, Answer, Cancelled
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import CHANGING, Kind
from givalia_core.store.shared import Kept

DONE = Cancelled("cancelled")
REQUEST = uid(20)
SENT_ONLY = {Kind.ANSWER, Kind.DISPATCH, Kind.STOP, Kind.PROGRESSED}
OF_THE_CONNECTION = {Kind.HELLO, Kind.CLOCK}


@pytest.fixture
def desk() -> Desk:
    return new_desk()


def cancel(key: str = "k", request: bytes = REQUEST) -> m.Cancel:
    return m.Cancel(request, key)


def answered(batch: Batch, frame: Asked, standing: dict[int, Answer] | None = None) -> list[Answer]:
    """The answers to a frame, the only one of its batch."""
    answer(batch, frame, 0, standing or {})
    (reply,) = (effect for effect in said(batch) if isinstance(effect, Reply))
    assert (reply.conn, reply.request) == (frame.conn, frame.request)
    return reply.answers


def one(batch: Batch, kind: Kind, message: Any, **fields: Any) -> Answer | None:
    return answer_one(VERBS[kind], batch, asked(kind, message, **fields), message)


def test_each_kind_of_frame_is_decided_in_one_place() -> None:
    assert VERBS.keys().isdisjoint(questions.KINDS)
    assert VERBS.keys() | questions.KINDS | SENT_ONLY | OF_THE_CONNECTION == set(Kind)


def test_each_command_that_changes_something_can_be_known_by_its_request() -> None:
    assert {kind for kind, verb in VERBS.items() if verb.known is not None} == CHANGING - questions.KINDS


def test_a_frame_is_answered_command_by_command_in_its_order(desk: Desk) -> None:
    batch, unreadable = new_batch(desk, job(key="k")), TooLarge("no")

    told = answered(batch, asked(Kind.CANCEL, cancel("none"), unreadable, cancel("k", uid(21))))

    assert [type(each) for each in told] == [NotFound, TooLarge, Cancelled]
    assert told[1] is unreadable


def test_an_answer_that_stands_is_not_decided_again(desk: Desk) -> None:
    batch = new_batch(desk, job(1, key="k"), job(2, key="l"))
    stands = BadRequest("it stands")

    assert answered(batch, asked(Kind.CANCEL, cancel("k"), cancel("l", uid(21))), {0: stands}) == [stands, DONE]
    assert [each.key for each in changed(batch)] == ["l"]


def test_an_empty_frame_is_answered_empty_and_one_that_is_answered_later_not_at_all(desk: Desk) -> None:
    assert answered(new_batch(desk), asked(Kind.CANCEL)) == []

    batch = new_batch(desk, job(key="k"))
    answer(batch, asked(Kind.WAIT, m.Wait("k")), 0, {})
    assert said(batch) == []


def test_a_whole_frame_that_is_refused_is_answered_once(desk: Desk) -> None:
    told = answered(new_batch(desk), asked(Kind.BEAT, m.NamedLease(uid(1), 1), m.NamedLease(uid(2), 2)))

    assert [type(each) for each in told] == [BadRequest]


def test_each_command_is_the_author_of_what_it_touches(desk: Desk) -> None:
    batch = new_batch(desk, job(1, key="k"), job(2, key="l"))

    answer(batch, asked(Kind.CANCEL, cancel("k"), cancel("l", uid(21))), 4, {})

    assert {author for seq, author in batch.touched if seq == 1} == {(4, 0)}
    assert {author for seq, author in batch.touched if seq == 2} == {(4, 1)}


def test_whatever_a_worker_asks_shows_that_it_is_alive(desk: Desk) -> None:
    session = connect(desk, 10)

    answered(new_batch(desk, now=later(3)), asked(Kind.CREDIT, m.Credit(2), conn=10, request=77))

    assert (session.heard, session.beat_mono_us) == (77, later(3).mono_us)


@pytest.mark.parametrize(("over_us", "is_late"), [(0, False), (1, True)])
def test_a_command_that_is_older_than_its_client_waits_is_not_decided(desk: Desk, over_us: int, is_late: bool) -> None:
    batch = new_batch(desk, job(key="k"))

    told = one(batch, Kind.CANCEL, cancel(), until_us=NOW.mono_us - over_us)

    assert told == (LATE if is_late else DONE)
    assert bool(changed(batch)) is not is_late
    assert batch.unchanged == {}


def test_a_command_that_is_known_is_answered_however_late_it_comes(desk: Desk) -> None:
    past = job(key="k", state=CANCELLED, answered=(Answered(REQUEST, "cancel", 0),))
    batch = new_batch(desk, past)

    assert one(batch, Kind.CANCEL, cancel(), until_us=NOW.mono_us - 1) == DONE
    assert changed(batch) == []


def test_a_read_is_answered_however_late_it_comes(desk: Desk) -> None:
    told = one(new_batch(desk), Kind.STAT, m.Stat("none"), until_us=0)

    assert isinstance(told, NotFound)


def test_a_copy_in_the_same_batch_is_answered_as_the_first_was(desk: Desk) -> None:
    batch = new_batch(desk)
    first = one(batch, Kind.CANCEL, cancel())
    one(batch, Kind.ENQ, m.Enq(uid(1), "Mail", key="k"))

    assert isinstance(first, NotFound)
    assert one(batch, Kind.CANCEL, cancel()) is first
    assert one(batch, Kind.CANCEL, cancel(request=uid(21))) == DONE


@pytest.mark.parametrize("kept_by", ["memory", "store"])
def test_an_answer_that_changed_nothing_is_told_again(desk: Desk, kept_by: str) -> None:
    kept = remembered.pack(NotFound("it was so"))
    batch = new_batch(desk, job(key="k"))
    if kept_by == "memory":
        desk.remembered.add([Kept(REQUEST, kept, is_enq=False)], NOW.mono_us)
    else:
        batch.found = found(job(key="k"), answers={REQUEST: kept})

    told = one(batch, Kind.CANCEL, cancel())

    assert (type(told), str(told)) == (NotFound, "it was so")
    assert changed(batch) == []


def test_what_decides_nothing_is_not_remembered(desk: Desk) -> None:
    desk.note_busy(BusyFor.MEMORY, "too much")
    batch = new_batch(desk)

    refused = one(batch, Kind.ENQ, m.Enq(uid(1), "Mail"))
    desk.note_busy(BusyFor.MEMORY, "")

    assert isinstance(refused, Busy)
    assert batch.unchanged == {}
    assert not isinstance(one(batch, Kind.ENQ, m.Enq(uid(1), "Mail")), Busy)


def test_a_refused_enq_is_remembered_as_one_whose_id_is_no_jobs(desk: Desk) -> None:
    batch = new_batch(desk, job(2, key="k"))

    assert isinstance(one(batch, Kind.ENQ, m.Enq(uid(1), "Mail", key="k")), DuplicateKey)
    assert batch.unchanged[uid(1)].is_enq
    one(batch, Kind.ENQ, m.Enq(uid(3), "Mail"))
    assert batch.unchanged.keys() == {uid(1)}


@pytest.mark.parametrize(("is_once", "remembered_ids"), [(False, {REQUEST}), (True, set())])
def test_what_changed_nothing_is_remembered_unless_it_never_comes_again(
    desk: Desk, is_once: bool, remembered_ids: set[bytes]
) -> None:
    batch = new_batch(desk)

    one(batch, Kind.CANCEL, cancel(), is_once=is_once)

    assert batch.unchanged.keys() == remembered_ids


def test_without_room_to_remember_only_what_its_job_remembers_is_decided(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "BYTES_MAX", 0)
    batch = new_batch(desk, job(2, key="k"))

    assert one(batch, Kind.CANCEL, cancel("none")) is FORGETFUL
    assert one(batch, Kind.CANCEL, cancel("none"), is_once=True) is not FORGETFUL
    assert one(batch, Kind.CANCEL, cancel("k", uid(21))) == DONE
    assert not isinstance(one(batch, Kind.ENQ, m.Enq(uid(1), "Mail")), Busy)


def test_answers_that_could_not_be_kept_are_replaced_and_no_others(desk: Desk) -> None:
    batch = new_batch(desk, job(key="k"))
    frame = asked(Kind.CANCEL, cancel("none"), cancel("k", uid(21)), cancel("nor this", uid(22)))
    told = answered(batch, frame)

    forget(batch, [frame], {batch.unchanged[REQUEST].number})

    assert told[:2] == [FORGETFUL, DONE]
    assert isinstance(told[2], NotFound)


def test_a_whole_frame_of_a_worker_is_answered_in_its_places(desk: Desk) -> None:
    connect(desk, 10)
    unreadable = BadRequest("no")

    told = answered(new_batch(desk), asked(Kind.ANNOUNCE, m.Announce("Mail", "d", "1"), unreadable, conn=10))

    assert told == [TAKEN, unreadable]
