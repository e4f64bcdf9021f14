"""The audit asks a process which of its lent attempts it has, and so finds the lost ones."""

from __future__ import annotations

import pytest

from givalia_core.worker.processes.audit import DEAF_S, Audit


@pytest.fixture
def audit() -> Audit:
    made = Audit()
    made.begin_anew(100.0)
    return made


def test_a_question_is_open_until_it_is_answered(audit: Audit) -> None:
    assert not audit.is_open

    audit.ask([1], 102.0)
    assert audit.is_open
    audit.answered([1], 103.0)

    assert not audit.is_open


def test_what_it_should_have_and_does_not_is_missing(audit: Audit) -> None:
    audit.ask([1, 2, 3], 102.0)

    assert audit.answered([2, 4], 103.0) == {1, 3}


def test_what_it_was_lent_after_it_was_asked_is_not_missing(audit: Audit) -> None:
    audit.ask([1], 102.0)
    audit.begin_anew(102.5)

    assert audit.answered([], 103.0) == frozenset()


def test_it_is_deaf_if_it_says_nothing_though_it_was_asked(audit: Audit) -> None:
    assert not audit.is_deaf(1_000.0)

    audit.ask([1], 102.0)
    audit.heard_s = 110.0

    assert not audit.is_deaf(110.0 + DEAF_S)
    assert audit.is_deaf(110.1 + DEAF_S)
