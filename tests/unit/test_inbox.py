"""The inbox: one peer's flood does not delay another's question, and each peer's own order is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from givalia_core.engine.records import Gone, Input
from givalia_core.protocol.asked import Asked
from givalia_core.protocol.messages import Kind
from givalia_core.server.inbox import COMMANDS_PER_TURN, READS_PER_TURN, SMALL, Inbox


def asked(conn: int, request: int, commands: int = 1, kind: Kind = Kind.ENQ) -> Asked:
    return Asked(conn, request, kind, [None] * commands)


def filled(*inputs: Input) -> Inbox:
    inbox = Inbox()
    for each in inputs:
        inbox.put(each)
    return inbox


def test_a_small_question_goes_before_frames_that_came_earlier() -> None:
    inbox = filled(asked(1, 1, 10_000), asked(2, 1, 10_000), asked(3, 1))

    assert inbox.take() == [asked(3, 1), asked(1, 1, 10_000)]
    assert inbox.take() == [asked(2, 1, 10_000)]


def test_a_turn_has_one_frame_beyond_the_budget_and_no_more() -> None:
    inbox = filled(asked(1, 1, 10_000), asked(1, 2, 10_000), asked(2, 1, 100))

    assert [inbox.take(), inbox.take(), inbox.take()] == [[asked(1, 1, 10_000)], [asked(2, 1, 100)], [asked(1, 2, 10_000)]]


def test_a_large_frame_does_not_wait_for_a_turn_that_small_ones_leave_room_in() -> None:
    inbox = filled(*(asked(conn, request, SMALL) for conn in range(20) for request in range(2)), asked(99, 1, 1_000))

    turn = inbox.take()

    assert turn[-1] == asked(99, 1, 1_000)
    assert sum(len(each.messages) for each in turn[:-1] if isinstance(each, Asked)) == COMMANDS_PER_TURN


def test_whoever_was_served_goes_behind_the_others() -> None:
    inbox = filled(*(asked(conn, request, 3_000) for request in (1, 2) for conn in (1, 2, 3)))

    served = [each.conn for _ in range(6) for each in inbox.take()]

    assert served == [1, 2, 3, 1, 2, 3]


def test_large_frames_are_shared_out_by_commands_and_not_by_frames() -> None:
    inbox = filled(*(asked(1, request, 1_000) for request in range(10)), *(asked(2, request, 250) for request in range(40)))

    turns = [inbox.take() for _ in range(16)]

    served = {conn: sum(len(each.messages) for turn in turns for each in turn if each.conn == conn) for conn in (1, 2)}  # type: ignore[union-attr]
    assert abs(served[1] - served[2]) <= 1_000


def test_whoever_was_away_has_no_more_than_its_share_when_it_comes_back() -> None:
    inbox = filled(*(asked(1, request, 1_000) for request in range(20)))
    for _ in range(10):
        inbox.take()
    for request in range(10):
        inbox.put(asked(2, request, 1_000))

    assert {each.conn for _ in range(3) for each in inbox.take()} == {1, 2}


def test_a_connection_that_is_over_is_forgotten() -> None:
    inbox = filled(asked(1, 1, 1_000), Gone(1))

    while inbox:
        inbox.take()

    assert not inbox._begins


def test_reads_are_bounded_in_one_turn() -> None:
    inbox = filled(*(asked(conn, 1, 1, Kind.STAT) for conn in range(200)))

    assert len(inbox.take()) == READS_PER_TURN


def test_a_connection_whose_peer_has_to_read_first_is_held_and_goes_on_in_its_order() -> None:
    inbox = filled(asked(1, 1), asked(2, 1))
    inbox.hold(1)
    inbox.put(asked(1, 2, kind=Kind.STAT))

    assert inbox.take() == [asked(2, 1)]
    assert not inbox  # Nothing to turn for.

    inbox.release(1)
    inbox.put(asked(1, 3))

    assert inbox.take() == [asked(1, 1), asked(1, 2, kind=Kind.STAT), asked(1, 3)]


def test_the_end_of_a_connection_that_is_held_lets_its_commands_be_decided_and_drops_its_questions() -> None:
    inbox = filled(asked(1, 1, kind=Kind.WAIT), asked(1, 2), asked(1, 3, kind=Kind.LIST))
    inbox.hold(1)

    inbox.put(Gone(1))

    assert inbox.take() == [asked(1, 2), Gone(1)]
    assert not inbox


def test_one_connection_gets_no_more_results_in_a_turn_than_a_frame_of_them() -> None:
    inbox = filled(*(asked(1, request, 4, Kind.STAT) for request in range(3)), asked(2, 1, 1, Kind.STAT))

    assert inbox.take() == [asked(1, 0, 4, Kind.STAT), asked(2, 1, 1, Kind.STAT)]


def test_large_answers_wait_for_room_in_the_budget_and_small_ones_and_reports_do_not() -> None:
    report = asked(3, 1, 1_000, Kind.SUCCEED)
    inbox = filled(asked(1, 1, 1, Kind.STAT), asked(2, 1), asked(4, 1, 10_000), report)

    assert inbox.take(left=0) == [asked(2, 1), report]
    assert inbox.is_short
    assert not inbox

    taken = inbox.take(left=1 << 24) + inbox.take(left=1 << 24)

    assert taken == [asked(1, 1, 1, Kind.STAT), asked(4, 1, 10_000)]
    assert not inbox.is_short


def test_waits_of_a_connection_that_has_no_room_for_their_results_are_taken_a_few_at_a_time() -> None:
    inbox = filled(*(asked(1, request, kind=Kind.WAIT) for request in range(40)))

    assert len(inbox.take()) == 40

    for request in range(40):
        inbox.put_back(asked(1, request, kind=Kind.WAIT))

    assert len(inbox.take()) < 5


def test_reads_in_a_turn_are_fewer_after_large_answers_and_more_again_after_small_ones() -> None:
    inbox = filled(*(asked(conn, 1, 1, Kind.STAT) for conn in range(200)))
    inbox.note_answered(1 << 24)

    assert len(inbox.take()) == READS_PER_TURN // 2

    inbox.note_answered(0)

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


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0, 1, SMALL, SMALL + 1, 256, 1_000, 10_000])), max_size=60))
def test_everything_comes_out_once_in_each_connections_order_and_turns_are_bounded(arrived: list[tuple[int, int]]) -> None:
    inputs = [asked(conn, request, commands) for request, (conn, commands) in enumerate(arrived)]
    inbox = filled(*inputs)
    out: list[Input] = []
    while inbox:
        turn = inbox.take()
        assert turn
        sizes = [len(each.messages) for each in turn if isinstance(each, Asked)]
        assert sum(sizes) <= COMMANDS_PER_TURN or (
            sum(size > SMALL for size in sizes) == 1 and sum(sizes) - max(sizes) <= COMMANDS_PER_TURN
        )
        out += turn

    assert sorted(out, key=inputs.index) == inputs
    for conn in range(1, 6):
        assert [each for each in out if each.conn == conn] == [each for each in inputs if each.conn == conn]


def test_workers_with_many_modules_that_leave_together_are_spread_over_turns() -> None:
    inbox = filled(*(Gone(conn, 100) for conn in range(1, 101)), asked(999, 1))

    turns = [inbox.take()]
    while inbox:
        turns.append(inbox.take())

    assert asked(999, 1) in turns[0]
    assert all(sum(each.size for each in turn if isinstance(each, Gone)) <= COMMANDS_PER_TURN for turn in turns)
    assert sorted(each.conn for turn in turns for each in turn) == [*range(1, 101), 999]
