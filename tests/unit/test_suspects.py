"""Suspects run apart a few at a time, and a suspect that has run for a while makes room for the next."""

from __future__ import annotations

from givalia_core.worker.foreman.suspects import APART_MAX, FRESH_MAX, FRESH_S, SUSPECTS_MAX, Suspects


def test_a_few_may_run_at_once_and_the_next_when_they_have_run_for_a_while() -> None:
    suspects: Suspects[int] = Suspects()

    assert [suspects.may_run(job, 100.0) for job in range(FRESH_MAX + 2)] == [True] * FRESH_MAX + [False] * 2
    assert list(suspects.waiting) == [FRESH_MAX, FRESH_MAX + 1]
    assert suspects.following(100.0 + FRESH_S / 2) is None

    assert suspects.following(100.0 + FRESH_S) == FRESH_MAX
    assert suspects.may_run(FRESH_MAX, 100.0 + FRESH_S), "its turn has come"


def test_one_that_has_ended_makes_room_at_once() -> None:
    suspects: Suspects[int] = Suspects()
    for job in range(FRESH_MAX + 1):
        suspects.may_run(job, 100.0)

    suspects.leave(0)

    assert suspects.following(100.0) == FRESH_MAX


def test_one_that_does_not_wait_any_more_has_no_turn() -> None:
    suspects: Suspects[int] = Suspects()
    for job in range(FRESH_MAX + 1):
        suspects.may_run(job, 100.0)

    suspects.leave(FRESH_MAX)

    assert suspects.following(200.0) is None


def test_however_long_they_have_run_there_are_not_too_many() -> None:
    suspects: Suspects[int] = Suspects()
    now_s = 100.0
    for job in range(APART_MAX):
        assert suspects.may_run(job, now_s)
        now_s += FRESH_S

    assert not suspects.may_run(APART_MAX, now_s)


def test_of_too_many_the_oldest_are_forgotten() -> None:
    suspects: Suspects[int] = Suspects()
    for number in range(SUSPECTS_MAX + 1):
        suspects.add(number.to_bytes(4))

    assert len(suspects.ids) == SUSPECTS_MAX
    assert (0).to_bytes(4) not in suspects.ids


def test_a_job_that_has_run_apart_is_no_suspect_any_more() -> None:
    suspects: Suspects[int] = Suspects()
    suspects.add(b"j")

    suspects.clear(b"j")

    assert suspects.ids == {}
