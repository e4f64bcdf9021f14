"""Log lines that come in storms are counted."""

from __future__ import annotations

from givalia_core.repeats import KINDS_MAX, Repeats


def test_the_first_lines_of_a_kind_are_said_and_the_others_counted() -> None:
    repeats = Repeats(said_most=2, period_s=10.0)

    said = [repeats.may_say("lines", 100.0 + number / 100) for number in range(1_000)]

    assert sum(said) == 2
    assert said[:2] == [True, True]
    assert repeats.may_say("other lines", 105.0)
    assert repeats.left_out(109.9) == []
    assert repeats.left_out(110.0) == ["998 more lines, within 10 s"]
    assert repeats.left_out(200.0) == []
    assert repeats.may_say("lines", 200.0)


def test_what_is_left_can_be_said_at_the_end() -> None:
    repeats = Repeats(said_most=1)
    for _ in range(3):
        repeats.may_say("lines", 1.0)
    assert repeats.rest() == ["2 more lines, within 10 s"]
    assert repeats.rest() == []


def test_kinds_that_are_all_different_are_counted_together() -> None:
    repeats = Repeats(said_most=1)

    said = sum(repeats.may_say(f"errors of type {number}", 0.0) for number in range(10 * KINDS_MAX))

    assert said == KINDS_MAX + 1
    (words,) = repeats.rest()
    assert words.startswith(f"{9 * KINDS_MAX - 1} more lines of other kinds")
