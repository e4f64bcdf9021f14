"""Where jobs wait: routes and their variants, how many ready jobs are counted, and how claims share the bytes of a find."""

from __future__ import annotations

import pytest

from givalia_core.model import Job
from givalia_core.store.routes import (
    READY_COUNTED_LEAST,
    READY_COUNTED_TO,
    READY_ROUTES_MAX,
    Ready,
    ReadyBudget,
    Route,
    Share,
    Timer,
    by_module,
)
from givalia_core.store.suite import waiting

ROUTE, OTHER = Route("Mail", "any"), Route("Fax", "any")


@pytest.mark.parametrize(
    ("target", "specifier", "plain"), [("any", None, "any"), ("any >=2, <3", ">=2, <3", "any"), ("w1 ==1.0", "==1.0", "w1")]
)
def test_a_route_says_its_specifier_and_which_route_it_is_a_variant_of(target: str, specifier: str | None, plain: str) -> None:
    route = Route("Mail", target)

    assert route.specifier == specifier
    assert route.plain == Route("Mail", plain)
    assert route.plain.plain == route.plain


def test_the_variants_of_a_route_stand_together_directly_behind_it() -> None:
    behind = [ROUTE, Route("Mail", "any !=1"), Route("Mail", "any ==2"), Route("Mail", "any ~=3"), Route("Mail", "any-1")]

    assert sorted([Route("Mail", "anyone"), *behind[::-1], Route("Mail", "an")]) == [
        Route("Mail", "an"), *behind, Route("Mail", "anyone"),
    ]  # fmt: skip


def test_timers_sort_by_due_and_then_in_the_order_of_enq() -> None:
    assert sorted([Timer(5, 2), Timer(4, 9), Timer(5, 1)]) == [Timer(4, 9), Timer(5, 1), Timer(5, 2)]


def test_ready_jobs_are_summed_up_by_module_without_those_that_have_none() -> None:
    found = [Ready(ROUTE, 2, 5), Ready(OTHER, 0, None), Ready(Route("Mail", "w1"), 3, 4), Ready(ROUTE, 1, 5)]

    assert by_module(iter(found)) == {"Mail": 6}


def test_the_first_routes_are_counted_up_to_the_sum_and_later_ones_up_to_the_least() -> None:
    budget = ReadyBudget()
    assert budget.limit == READY_COUNTED_TO

    budget.count(READY_COUNTED_TO - READY_COUNTED_LEAST - 1)
    assert budget.limit == READY_COUNTED_LEAST + 1
    budget.count(2)
    assert budget.limit == READY_COUNTED_LEAST
    budget.count(READY_COUNTED_TO)
    assert budget.limit == READY_COUNTED_LEAST


def test_counting_ends_when_both_the_jobs_and_the_routes_are_used_up() -> None:
    budget = ReadyBudget()
    budget.count(READY_COUNTED_TO)
    for _ in range(READY_ROUTES_MAX - 2):
        budget.count(0)
    assert not budget.is_spent

    budget.count(0)

    assert budget.is_spent


def test_any_number_of_routes_is_counted_while_there_are_jobs_left_to_count() -> None:
    budget = ReadyBudget()
    for _ in range(READY_ROUTES_MAX + 1):
        budget.count(1)
    assert not budget.is_spent

    budget.count(READY_COUNTED_TO)

    assert budget.is_spent


def test_jobs_that_fill_a_share_exactly_are_all_taken_and_the_next_is_left_out() -> None:
    share = Share(30)
    jobs = [waiting(seq, params=bytes(10)) for seq in (1, 2, 3, 4)]
    taken = jobs[:1]

    assert share.take(ROUTE, taken, iter(jobs[1:])) is True
    assert (taken, share.cut) == (jobs, set())

    assert share.take(ROUTE, taken, [waiting(5, params=b"1")]) is False
    assert (taken, share.cut) == (jobs, {ROUTE})


def test_the_job_that_uses_up_a_share_is_taken_whole() -> None:
    share = Share(15)
    jobs = [waiting(seq, params=bytes(10)) for seq in (1, 2, 3)]
    taken = [waiting(9)]

    assert share.take(ROUTE, taken, jobs) is False

    assert taken == [waiting(9), *jobs[:2]]
    assert share.cut == {ROUTE}


@pytest.mark.parametrize("claimed_bytes", [0, 10])
def test_every_route_gets_one_job_although_the_share_is_used_up(claimed_bytes: int) -> None:
    share = Share(claimed_bytes)
    first: list[Job] = []
    second: list[Job] = []

    for route, lent in ((ROUTE, first), (OTHER, second)):
        assert share.take(route, lent, [waiting(1, params=bytes(20)), waiting(2)]) is False

    assert first == second == [waiting(1, params=bytes(20))]
    assert share.cut == {ROUTE, OTHER}


def test_jobs_without_params_need_no_room() -> None:
    share = Share(0)
    jobs = [waiting(seq, params=b"") for seq in range(1, 9)]
    taken = [waiting(9)]

    assert share.take(ROUTE, taken, jobs) is True
    assert taken[1:] == jobs
