"""Names that are held are left alone while their holder goes on, and are tried again when it may have let go."""

from __future__ import annotations

import pytest
from givalia_core.store.base import Hold

from givalia_postgres.doubts import LOOK_MAX_S, NAMES_MAX, OVER_S, PAUSE_HELD_S, PAUSE_S, TRY_EACH_S, Doubts

WHY = "held"


def blamed(*names: str, has_holder: bool = True, running: set[int] | None = None) -> Doubts:
    """Doubts that have met a hold of each of these names while these transactions were in progress."""
    doubts = Doubts()
    for name in names:
        doubts.blame(Hold(name, WHY, 7), 0.0, has_holder=has_holder)
    doubts.look(frozenset({1, 2} if running is None else running), 0.0)
    return doubts


def test_name_is_left_alone_while_every_transaction_of_then_goes_on() -> None:
    doubts = blamed("a")
    doubts.look(frozenset({1, 2, 3}), 0.1)
    assert doubts.freed(["a", "b"], 0.1) == {"b"}
    assert doubts.hold_of(["b", "a"]) == Hold("a", WHY, 7)


def test_name_is_tried_when_one_of_them_ends_and_keeps_its_beginning_if_it_was_another() -> None:
    # given
    doubts = blamed("a")

    # when
    doubts.look(frozenset({2, 3}), 0.2)

    # then
    assert doubts.freed(["a"], 0.2) == {"a"}
    assert doubts.hold_of(["a"]) is None
    assert doubts.knows(["a"])

    # when it is held all the same
    assert doubts.blame(Hold("a", WHY, 99), 0.2, has_holder=True).since_us == 7
    doubts.look(frozenset({2, 4}), 0.2)

    # then
    assert doubts.freed(["a"], 0.2) == frozenset()


def test_name_is_free_when_all_of_them_have_ended_and_is_forgotten_when_nobody_tries_it() -> None:
    doubts = blamed("a", running={1})
    doubts.look(frozenset({5}), 0.01)
    assert doubts.freed(["a"], 0.01) == {"a"}
    doubts.look(frozenset({5}), 0.01 + OVER_S)
    assert not doubts.knows(["a"])


@pytest.mark.parametrize("others", [0, 1, 3])
def test_name_whose_holder_has_no_number_is_tried_seldom_however_fast_others_come_and_go(others: int) -> None:
    # given
    doubts = blamed("a", running=set(range(others)))
    tries = []

    # when
    for step in range(1, 10_000):
        now = step / 1_000
        doubts.look(frozenset(range(step, step + others)), now)
        if doubts.freed(["a"], now):
            tries.append(now)
            doubts.blame(Hold("a", WHY, 7), now, has_holder=True)

    # then
    pauses = [later - sooner for sooner, later in zip([0.0, *tries], tries, strict=False)]
    assert pauses[0] < 0.01
    assert len(tries) < 10 / LOOK_MAX_S + 10
    assert abs(pauses[-1] - LOOK_MAX_S) < 0.01


def test_name_whose_holder_goes_on_is_tried_after_a_pause_that_grows_to_its_most() -> None:
    # given
    doubts = blamed("a")
    now, tries = 0.0, []

    # when
    while now < 10:
        now += 0.01
        doubts.look(frozenset({1, 2}), now)
        if doubts.freed(["a"], now):
            tries.append(now)
            doubts.blame(Hold("a", WHY, 7), now, has_holder=True)

    # then
    pauses = [later - sooner for sooner, later in zip([0.0, *tries], tries, strict=False)]
    assert abs(pauses[0] - PAUSE_S) < 0.02
    assert abs(pauses[-1] - PAUSE_HELD_S) < 0.02


def test_of_many_names_few_are_tried_at_once() -> None:
    # given
    names = [f"k{number}" for number in range(1_000)]
    doubts = blamed(*names)

    # when
    tried = 0
    for step in range(100):
        doubts.look(frozenset({1, 2}), PAUSE_S + step / 100)
        for name in doubts.freed(names, PAUSE_S + step / 100):
            doubts.blame(Hold(name, WHY, 7), PAUSE_S + step / 100, has_holder=True)
            tried += 1

    # then
    assert 10 <= tried <= 1 / TRY_EACH_S + 1


def test_name_that_is_kept_back_without_a_holder_is_not_freed_by_the_end_of_others() -> None:
    doubts = blamed("a", has_holder=False)
    doubts.look(frozenset(), 0.2)
    assert doubts.freed(["a"], 0.2) == frozenset()
    assert doubts.freed(["a"], PAUSE_S) == {"a"}


def test_names_beyond_the_most_are_forgotten_oldest_first() -> None:
    doubts = blamed(*(f"k{number}" for number in range(NAMES_MAX + 1)))
    assert not doubts.knows(["k0"])
    assert doubts.knows(["k1", f"k{NAMES_MAX}"])
