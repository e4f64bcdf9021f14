"""The inbox: nobody's flood stands before another's question, and everybody's own order is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from givalia_core.engine.records import Asked, Gone, Input
from givalia_core.protocol.messages import Kind
from givalia_core.server.inbox import COMMANDS_PER_TURN, READS_PER_TURN, Inbox


def asked(conn: int, request: int, commands: int = 1, kind: Kind = Kind.ENQ) -> Asked:
    return Asked(conn, request, kind, [None] * commands)


def filled(*inputs: Input) -> Inbox:
    inbox = Inbox()
    for each in inputs:
        inbox.put(each)
    return inbox


def test_a_small_question_goes_before_frames_that_came_earlier() -> None:
    inbox = filled(asked(1, 1, 10_000), asked(2, 1, 10_000), asked(3, 1))

    assert inbox.take()[0] == asked(3, 1)
    assert [each.conn for each in inbox.take() + inbox.take()] == [1, 2]


def test_a_frame_beyond_the_budget_is_a_turn_of_its_own() -> None:
    inbox = filled(asked(1, 1, 10_000), asked(1, 2, 10_000))

    assert [len(inbox.take()), len(inbox.take()), len(inbox.take())] == [1, 1, 0]


def test_whoever_was_served_goes_behind_the_others() -> None:
    inbox = filled(*(asked(conn, request, 3_000) for request in (1, 2) for conn in (1, 2, 3)))

    served = [each.conn for _ in range(6) for each in inbox.take()]

    assert served == [1, 2, 3, 1, 2, 3]


def test_reads_are_bounded_in_one_turn() -> None:
    inbox = filled(*(asked(conn, 1, 1, Kind.STAT) for conn in range(200)))

    assert len(inbox.take()) == READS_PER_TURN


def test_the_end_of_a_connection_comes_behind_what_it_asked() -> None:
    inbox = filled(asked(1, 1), Gone(1))

    assert inbox.take() == [asked(1, 1), Gone(1)]
    assert not inbox


def test_what_is_put_off_stands_before_everything_else_its_connection_asked() -> None:
    inbox = filled(asked(1, 1), asked(1, 2, kind=Kind.WAIT), asked(1, 3), asked(2, 1), Gone(2), asked(3, 1))

    assert inbox.take_out(frozenset({Kind.ENQ})) == [asked(1, 1), asked(2, 1), asked(3, 1)]
    assert inbox.take() == [asked(1, 2, kind=Kind.WAIT), asked(1, 3), Gone(2)]
    assert not inbox


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 1, 64, 65, 1_000, 4_000, 10_000])), max_size=60))
def test_everything_comes_out_once_in_each_connections_order_and_turns_are_bounded(arrived: list[tuple[int, int]]) -> None:
    inputs = [asked(conn, request, commands) for request, (conn, commands) in enumerate(arrived)]
    inbox = filled(*inputs)
    out: list[Input] = []
    while inbox:
        turn = inbox.take()
        assert turn
        assert len(turn) == 1 or sum(len(each.messages) for each in turn if isinstance(each, Asked)) <= COMMANDS_PER_TURN
        out += turn

    assert sorted(out, key=inputs.index) == inputs
    for conn in range(1, 6):
        assert [each for each in out if each.conn == conn] == [each for each in inputs if each.conn == conn]
