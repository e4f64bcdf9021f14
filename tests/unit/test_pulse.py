"""The moment at which a path counts as dead, on a clock that the test moves."""

from __future__ import annotations

import math
import os
import random

from givalia_core.protocol.pulse import DEAD_S, LATE_S, PING_COMMAND_S, PING_WAIT_S, Due, Owed, Pulse

COMMAND = Owed(0.0, PING_COMMAND_S)
WAIT = Owed(0.0, PING_WAIT_S)
SEED = int(os.environ.get("GIVALIA_SEED", random.randrange(1 << 30)))


def unheard() -> float:
    """Nothing has come from the peer's TCP, or nobody knows."""
    return math.inf


def looked(pulse: Pulse, owed: Owed | None, at: float, acknowledged_s: float = math.inf, *, can_ping: bool = True) -> Due:
    """Intend to look at that time, and do."""
    pulse.look_at = at
    return pulse.due(at, owed, lambda: acknowledged_s, can_ping=can_ping)


def test_the_peer_is_pinged_a_second_after_a_command_and_five_after_a_wait() -> None:
    for owed, after_s in ((COMMAND, 1.0), (WAIT, 5.0)):
        pulse = Pulse(0.0)

        assert pulse.look_again_s(0.25, owed) == after_s - 0.25
        assert pulse.due(after_s - 0.001, owed, unheard) is Due.NOTHING
        assert pulse.due(after_s, owed, unheard) is Due.PING
        assert pulse.look_again_s(after_s, owed) == DEAD_S


def test_a_path_is_dead_when_a_ping_was_unanswered_for_five_seconds() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, COMMAND, 1.0) is Due.PING

    assert looked(pulse, COMMAND, 5.999) is Due.NOTHING
    assert looked(pulse, COMMAND, 6.0) is Due.DROP


def test_what_arrives_or_is_acknowledged_puts_the_end_off() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, COMMAND, 1.0) is Due.PING

    pulse.moved(2.0)
    assert looked(pulse, COMMAND, 6.0) is Due.NOTHING
    assert looked(pulse, COMMAND, 7.0, acknowledged_s=3.0) is Due.NOTHING
    assert pulse.look_again_s(7.0, COMMAND) == 1.0, "what leaves slowly is looked at often"
    assert looked(pulse, COMMAND, 9.0, acknowledged_s=5.0) is Due.DROP


def test_what_has_left_slowly_has_time_to_be_answered() -> None:
    pulse, now = Pulse(0.0), 1.0
    assert looked(pulse, COMMAND, now) is Due.PING

    while now < 60.3:  # Then the last of it is acknowledged.
        assert pulse.due(now, COMMAND, lambda: 0.0) is Due.NOTHING
        look_s = pulse.look_again_s(now, COMMAND)
        assert look_s is not None
        now += look_s
    left_at = 60.3

    while (due := pulse.due(now, COMMAND, unheard)) is not Due.DROP:
        assert due is Due.NOTHING
        look_s = pulse.look_again_s(now, COMMAND)
        assert look_s is not None
        now += look_s
    assert DEAD_S - 1.0 <= now - left_at <= DEAD_S


def test_news_from_before_what_is_known_changes_nothing() -> None:
    pulse = Pulse(10.0)

    pulse.moved(3.0)

    assert pulse.look_again_s(10.0, COMMAND) == 1.0


def test_an_answered_ping_is_followed_by_another_only_after_as_much_quiet() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, WAIT, 5.0) is Due.PING

    pulse.moved(5.1)
    pulse.answered()

    assert looked(pulse, WAIT, 10.0) is Due.NOTHING
    assert looked(pulse, WAIT, 10.2) is Due.PING


def test_without_anything_owed_nothing_is_ever_due() -> None:
    pulse = Pulse(0.0)

    assert pulse.look_again_s(0.0, None) is None
    assert pulse.due(1_000.0, None, unheard) is Due.NOTHING


def test_quiet_counts_from_what_was_asked_last_when_nothing_was_owed_before() -> None:
    pulse = Pulse(0.0)

    assert pulse.look_again_s(100.0, Owed(100.0, 1.0)) == 1.0


def test_the_kernel_is_asked_only_when_something_is_due() -> None:
    asked: list[float] = []
    pulse = Pulse(0.0)

    def acknowledged_s() -> float:
        asked.append(0.0)
        return 0.5

    pulse.due(0.99, COMMAND, acknowledged_s)
    assert not asked
    assert pulse.due(1.0, COMMAND, acknowledged_s) is Due.NOTHING
    assert asked
    assert pulse.look_again_s(1.0, COMMAND) == 0.5


def test_where_no_ping_can_be_sent_what_waits_to_be_sent_is_as_good() -> None:
    pulse = Pulse(0.0)

    assert looked(pulse, COMMAND, 1.0, can_ping=False) is Due.NOTHING
    assert pulse.look_again_s(1.0, COMMAND) == 1.0, "nobody turns round and round meanwhile"
    assert looked(pulse, COMMAND, 4.9, can_ping=False) is Due.NOTHING
    assert pulse.look_again_s(4.9, COMMAND) == 5.0 - 4.9
    assert looked(pulse, COMMAND, 5.0, can_ping=False) is Due.DROP


def test_a_ping_that_could_not_be_sent_was_not_sent() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, COMMAND, 4.0, can_ping=False) is Due.NOTHING

    assert looked(pulse, COMMAND, 6.0) is Due.PING
    assert looked(pulse, COMMAND, 10.9) is Due.NOTHING
    assert looked(pulse, COMMAND, 11.0) is Due.DROP


def test_who_was_suspended_counts_from_his_return() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, COMMAND, 1.0) is Due.PING
    assert pulse.look_again_s(1.0, COMMAND) == 5.0

    back = 6.0 + LATE_S + 0.5
    assert pulse.due(back, COMMAND, unheard) is Due.NOTHING
    assert pulse.look_again_s(back, COMMAND) == 5.0
    assert pulse.due(back + 5.0, COMMAND, unheard) is Due.DROP


def test_who_was_suspended_before_he_decided_when_to_look_counts_from_his_return_too() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, COMMAND, 1.0) is Due.PING
    pulse.look_again_s(1.0, COMMAND)

    assert pulse.look_again_s(1_000.0, COMMAND) == 5.0


def test_who_looks_a_little_late_has_seen_enough() -> None:
    pulse = Pulse(0.0)
    assert looked(pulse, COMMAND, 1.0) is Due.PING
    pulse.look_again_s(1.0, COMMAND)

    assert pulse.due(6.0 + LATE_S, COMMAND, unheard) is Due.DROP


def test_a_slow_path_that_moves_is_never_dead() -> None:
    """Answers to pings may be as late as they like, as long as something moves within each 5 s."""
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    pulse, now, moves_at = Pulse(0.0), 0.0, 0.0

    while now < 600.0:
        moves_at += chance.uniform(0.0, DEAD_S - 0.01)
        while (look_s := pulse.look_again_s(now, COMMAND)) is not None and now + look_s < moves_at:
            now += look_s
            assert pulse.due(now, COMMAND, unheard, can_ping=chance.random() < 0.5) is not Due.DROP
        now = moves_at
        if chance.random() < 0.5:
            pulse.moved(now)
        else:
            assert pulse.due(now, COMMAND, lambda: 0.0) is not Due.DROP
            pulse.moved(now)  # Which the kernel says, even if it was not asked.
        if chance.random() < 0.1:
            pulse.answered()


def test_a_path_that_stops_moving_is_found_dead_in_time_whatever_moved_before() -> None:
    print(f"GIVALIA_SEED={SEED} replays this run")
    chance = random.Random(SEED)
    for owed, within_s in ((COMMAND, 6.0), (WAIT, 10.0)):
        pulse, now = Pulse(0.0), 0.0
        for _ in range(chance.randrange(20)):
            now += chance.uniform(0.0, 0.9)
            if pulse.due(now, owed, unheard) is Due.PING:
                pulse.answered()
            pulse.moved(now)
            pulse.look_again_s(now, owed)
        died_at = now

        due = Due.NOTHING
        while due is not Due.DROP:
            look_s = pulse.look_again_s(now, owed)
            assert look_s is not None
            now += look_s + chance.uniform(0.0, 0.01)
            due = pulse.due(now, owed, unheard)

        assert now - died_at <= within_s + 0.1
