"""What an exception of a job says of itself and asks for, whatever its class does."""

from __future__ import annotations

from typing import Any

import pytest
from job_code import loud, lying

from givalia_core import Fail, Retry
from givalia_core.headline import headline
from givalia_core.model import TEN_YEARS_US
from givalia_core.worker.attempt.raised import asked_for, shown
from givalia_core.worker.attempt.wary import LEAVES_MAX

HEAD = "Traceback (most recent call last):"
CHAIN = "The above exception was the direct cause of the following exception:"
REMOTE = f"{HEAD}\n  File x\nKeyError: 1\n\n{CHAIN}\n\n{HEAD}\n  File x\nKeyError: 1\n"


def caught(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """The exception, as it is when it was raised."""
    try:
        raise error from cause
    except BaseException as raised:
        return raised


class NoSuchCart(Fail):
    pass


class Wishes(Retry):
    """Asks for what it is made with."""

    def __init__(self, after_us: Any) -> None:
        Exception.__init__(self, "again")
        self.after_us = after_us


class Silent(Retry):
    """Does not tell what it asks for."""

    after_us = property(loud)

    def __init__(self) -> None:
        Exception.__init__(self, "again")


# What it says.


def test_an_exception_is_shown_with_its_traceback() -> None:
    words = shown(caught(ValueError("no such cart")))

    assert words.startswith(HEAD)
    assert "in caught" in words
    assert words.endswith("ValueError: no such cart")


@pytest.mark.parametrize("kind", [Fail, Retry, NoSuchCart])
def test_what_a_job_says_on_purpose_is_shown_without_a_traceback(kind: type[Exception]) -> None:
    assert shown(caught(kind("  there is no\nsuch cart "))) == "there is no\nsuch cart"


def test_a_failure_without_words_is_shown_by_its_name() -> None:
    assert shown(caught(NoSuchCart(" "))) == "NoSuchCart"


def test_the_cause_of_a_failure_is_shown_below_it_and_does_not_look_like_a_traceback() -> None:
    words = shown(caught(Fail("no such cart"), caught(KeyError("cart"))))

    first, *more = words.splitlines()
    assert (first, more[0]) == ("no such cart", "    caused by")
    assert more[1] == "    calls (most recent last):"
    assert more[-1] == "    KeyError: 'cart'"
    assert HEAD not in words


@pytest.mark.parametrize(
    ("error", "own"), [(RuntimeError(f"remote\n{REMOTE}"), "RuntimeError: remote"), (Fail(REMOTE), "KeyError: 1")]
)
def test_an_exception_whose_words_are_tracebacks_begins_with_its_own_line(error: BaseException, own: str) -> None:
    words = shown(caught(error))

    assert headline(words) == own
    assert words.endswith("KeyError: 1")


def test_a_syntax_error_is_shown_as_python_shows_it() -> None:
    words = shown(caught(SyntaxError("invalid", ("cart.py", 3, 1, "x = =\n"))))

    assert words.startswith(HEAD)
    assert 'File "cart.py", line 3\n    x = =' in words
    assert words.endswith("SyntaxError: invalid")


def test_an_exception_that_cannot_be_shown_has_no_words() -> None:
    def refuse(_: object) -> str:
        raise ValueError

    assert shown(caught(type("Mute", (Fail,), {"__str__": refuse})())) == ""


# What it asks for.


@pytest.mark.parametrize(
    ("raised", "asked"),
    [
        (ValueError(), (False, None)),
        (Fail("no"), (True, None)),
        (NoSuchCart("no"), (True, None)),
        (Retry("again"), (False, None)),
        (Retry("again", after=2), (False, 2_000_000)),
        (BaseExceptionGroup("a", [KeyboardInterrupt(), ExceptionGroup("b", [Retry(after=2), Fail("no")])]), (True, None)),
        (ExceptionGroup("a", [Retry(after=2), ExceptionGroup("b", [Retry(after=5), Retry()])]), (False, 5_000_000)),
        (ExceptionGroup("a", [Retry(after=2), ValueError()]), (False, None)),
    ],
)
def test_one_failure_decides_and_the_longest_wait_counts(raised: BaseException, asked: tuple[bool, int | None]) -> None:
    assert asked_for(raised) == asked


@pytest.mark.parametrize("after_us", [0, 1, TEN_YEARS_US])
def test_a_wait_that_is_allowed_counts(after_us: int) -> None:
    assert asked_for(Wishes(after_us)) == (False, after_us)


@pytest.mark.parametrize("retry", [*map(Wishes, [-1, TEN_YEARS_US + 1, True, 2.0, "2", [], None]), Silent()])
def test_a_wait_that_is_not_allowed_or_cannot_be_read_is_none_and_costs_no_other_its_own(retry: Retry) -> None:
    assert asked_for(retry) == (False, None)
    assert asked_for(ExceptionGroup("a", [retry, Retry(after=2)])) == (False, 2_000_000)


def test_an_exception_that_pretends_to_be_a_failure_is_none() -> None:
    assert asked_for(lying(__class__=Fail)) == (False, None)


def test_a_group_that_contains_more_than_can_be_looked_at_is_judged_by_a_part_of_it() -> None:
    group = ExceptionGroup("many", [Fail("no"), *(ValueError() for _ in range(LEAVES_MAX))])

    assert asked_for(group) == (False, None)  # The last ones are looked at first.
