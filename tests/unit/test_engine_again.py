"""Commands to decide again: what is refused, what stands, what waits alone, and what may have been stored."""

from __future__ import annotations

from typing import Any

import pytest
from engine_parts import NOW, asked, hold, later, new_batch, new_desk
from engine_rig import uid

from givalia_core.engine.again import LATER, PAUSE_US, STUCK_US, Again
from givalia_core.engine.aside import HELD_US, NEVER_US, Waiting
from givalia_core.engine.batch import NOBODY, Batch
from givalia_core.engine.desk import Desk
from givalia_core.engine.records import Gone, Input, Reply
from givalia_core.protocol import messages as m
from givalia_core.protocol.answers import TAKEN, Answer, Cancelled
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.store.base import Hold

CANCELLED = Cancelled("cancelled")
KINDS = frozenset({Kind.ENQ, Kind.CANCEL})


@pytest.fixture
def desk() -> Desk:
    return new_desk()


@pytest.fixture
def again(desk: Desk) -> Again:
    return Again(desk)


def cancels(count: int, **fields: Any) -> Asked:
    return asked(Kind.CANCEL, *(m.Cancel(uid(100 + number), None, uid(number)) for number in range(count)), **fields)


def decided(desk: Desk, *inputs: Input) -> Batch:
    """A batch in which the command `number` of the input `place` has changed the job of seq 10 * place + number."""
    batch = new_batch(desk)
    for place, given in enumerate(inputs):
        if isinstance(given, Asked):
            batch.touched += [(10 * place + number, (place, number)) for number in range(len(given.messages))]
            answer: Answer = TAKEN if given.kind is Kind.BEAT else CANCELLED
            batch.effects.append((0, Reply(given.conn, given.request, [answer] * len(given.messages))))
    return batch


def take_back(again: Again, desk: Desk, *inputs: Input, refused: set[int], held: dict[int, Hold] | None = None) -> set[Any]:
    """Take back what was refused, which includes what is held."""
    return again.take_back(inputs, decided(desk, *inputs), refused | (held or {}).keys(), held or {})


def test_a_frame_is_decided_again_but_for_the_commands_that_came_to_something(again: Again, desk: Desk) -> None:
    frame, other = cancels(3), cancels(1, request=2)

    assert take_back(again, desk, frame, other, refused={1}) == {(1, 1)}
    assert again.inputs == [frame]
    assert again.standing == {(1, 1): {0: CANCELLED, 2: CANCELLED}}
    assert again.unanswered(frame).messages == [frame.messages[1]]
    assert again.unanswered(other) is other
    assert again.has_state


def test_once_nothing_is_refused_nothing_is_left(again: Again, desk: Desk) -> None:
    frame = cancels(2)
    take_back(again, desk, frame, refused={1})

    assert take_back(again, desk, frame, refused=set()) == set()
    assert (again.inputs, again.standing, again.has_state, again.pause_us) == ([], {}, False, 0)


def test_what_no_command_did_is_not_decided_again(again: Again, desk: Desk) -> None:
    batch = new_batch(desk)
    batch.touched = [(5, NOBODY)]

    assert again.take_back([], batch, {5}, {}) == set()
    assert again.inputs == []
    assert again.pause_us == 0


def test_an_end_of_a_connection_that_came_to_nothing_is_not_decided_again(again: Again, desk: Desk) -> None:
    batch = new_batch(desk)
    batch.touched = [(5, (0, 0))]

    assert again.take_back([Gone(1)], batch, {5}, {}) == set()
    assert again.inputs == []


def test_a_frame_that_is_decided_as_a_whole_is_answered_and_says_later_where_nothing_is_known(again: Again, desk: Desk) -> None:
    beat = asked(Kind.BEAT, *(m.NamedLease(uid(number), 5) for number in range(3)))
    batch = decided(desk, beat)

    assert again.take_back([beat], batch, {1}, {}) == set()
    assert again.inputs == []
    (reply,) = (effect for _, effect in batch.effects if isinstance(effect, Reply))
    assert reply.answers == [TAKEN, LATER, TAKEN]


def test_the_wait_of_a_connection_that_has_ended_is_over_while_its_commands_are_decided_again(again: Again, desk: Desk) -> None:
    wait = asked(Kind.WAIT, m.Wait(id=uid(1)), request=1)
    cancel = cancels(1, request=2)
    desk.waits.add(uid(1), 1, 1, wants_progress=False)

    assert take_back(again, desk, wait, cancel, Gone(1), refused={0, 10}) == {(1, 2)}
    assert again.inputs == [cancel]
    assert len(desk.waits) == 0


def test_a_wait_that_is_decided_again_waits_for_nothing_meanwhile(again: Again, desk: Desk) -> None:
    wait = asked(Kind.WAIT, m.Wait(id=uid(1)))
    desk.waits.add(uid(1), 1, 1, wants_progress=False)
    desk.waits.add(uid(1), 1, 2, wants_progress=False)

    take_back(again, desk, wait, refused={0})

    assert again.inputs == [wait]
    assert list(desk.waits.of(uid(1))) == [(1, 2)]


def test_a_frame_of_which_only_held_commands_are_left_waits_alone(again: Again, desk: Desk) -> None:
    frame, held = cancels(3), {0: hold("key a"), 2: hold("key b")}

    assert take_back(again, desk, frame, refused=set(), held=held) == {(1, 1)}
    assert again.inputs == []
    assert desk.aside.waiting == {(1, 1): Waiting(frame, held, {1: CANCELLED})}
    assert again.has_state


@pytest.mark.parametrize(
    ("refused", "others", "expected"),
    [({1}, (), True), (set(), (Gone(1),), False), (set(), (Gone(2),), False)],
    ids=["a part is refused", "its connection has ended", "another has ended"],
)
def test_a_held_frame_does_not_wait_alone_with_a_refused_command_or_without_a_connection(
    again: Again, desk: Desk, refused: set[int], others: tuple[Input, ...], expected: bool
) -> None:
    frame = cancels(2)

    take_back(again, desk, frame, *others, refused=refused, held={0: hold("key a")})

    assert again.inputs == [frame] * expected
    assert bool(desk.aside) is (others == (Gone(2),))


def test_what_is_freed_is_taken_up_with_the_answers_that_stand(again: Again, desk: Desk) -> None:
    frame = cancels(2)
    take_back(again, desk, frame, refused=set(), held={1: hold("key a")})
    again.standing = {}

    assert again.take_up(frozenset({"key b"}), later(1)) == []
    assert again.take_up(frozenset({"key a"}), later(2)) == [frame]
    assert again.standing == {(1, 1): {0: CANCELLED}}
    assert again.has_state


def test_the_deadline_of_a_frame_that_waited_alone_ends_with_its_answer(again: Again, desk: Desk) -> None:
    frame = cancels(1)
    take_back(again, desk, frame, refused=set(), held={0: hold("key a")})
    again.take_up(frozenset({"key a"}), NOW)
    assert list(desk.aside.until_us) == [(1, 1)]

    take_back(again, desk, frame, refused=set())

    assert desk.aside.until_us == {}
    assert not again.has_state


def test_the_pause_begins_with_the_second_refusal_in_a_row_and_held_commands_do_not_count(again: Again, desk: Desk) -> None:
    pauses = []
    for refused, held in (({0}, {}), ({0}, {}), (set(), {0: hold("key a")}), ({0}, {}), ({0}, {}), (set(), {}), ({0}, {})):
        take_back(again, desk, cancels(1), refused=refused, held=held)
        pauses.append(again.pause_us)

    assert pauses == [0, PAUSE_US, 0, 0, PAUSE_US, 0, 0]


def test_what_a_full_disk_keeps_is_looked_at_seldom_until_a_commit_goes_through(again: Again, desk: Desk) -> None:
    again.is_stuck = True
    assert again.pause_us == STUCK_US

    take_back(again, desk, refused=set())

    assert again.pause_us == 0


def test_while_the_store_is_away_only_what_is_known_not_to_be_stored_is_put_off(again: Again, desk: Desk) -> None:
    command, read = cancels(1, request=1), asked(Kind.STAT, m.Stat("k"), request=2)
    inputs: list[Input] = [command, read, Gone(5)]

    again.keep(inputs, is_unsure=False)
    assert again.put_off(KINDS) == [command]
    assert again.inputs == [read, Gone(5)]

    again.keep(inputs, is_unsure=True)
    assert again.put_off(KINDS) == []
    assert again.inputs == inputs


def test_a_frame_of_which_an_answer_stands_is_not_put_off(again: Again, desk: Desk) -> None:
    partly, wholly = cancels(2, request=1), cancels(1, request=2)
    take_back(again, desk, partly, wholly, refused={1, 10})

    assert again.put_off(KINDS) == [wholly]
    assert again.inputs == [partly]


def test_what_was_unsure_is_known_after_the_next_commit(again: Again, desk: Desk) -> None:
    frame = cancels(1)
    again.keep([frame], is_unsure=True)
    take_back(again, desk, frame, refused={0})

    assert again.put_off(KINDS) == [frame]


def test_a_frame_that_may_be_held_by_its_own_commit_waits_alone_without_a_deadline(again: Again, desk: Desk) -> None:
    frame, other = cancels(1, request=1), cancels(1, request=2)
    again.keep([frame], is_unsure=True)

    take_back(again, desk, frame, other, refused=set(), held={0: hold("key a"), 10: hold("key b")})

    assert desk.aside.until_us == {(1, 1): NEVER_US, (1, 2): NOW.mono_us + HELD_US}


def test_what_is_kept_waits_for_no_end_and_questions_come_behind_it(again: Again, desk: Desk) -> None:
    wait, question = asked(Kind.WAIT, m.Wait(id=uid(1))), asked(Kind.LIST, m.List(), request=2)
    desk.waits.add(uid(1), 1, 1, wants_progress=False)

    assert not again.has_state
    again.keep([wait], is_unsure=False)
    assert again.has_state
    again.add([question])

    assert len(desk.waits) == 0
    assert again.inputs == [wait, question]
    assert again.has_state
