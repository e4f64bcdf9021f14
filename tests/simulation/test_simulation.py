"""Random seeds against the engine as shipped: every promise of `sim_checker` holds in every run.

`GIVALIA_SIM_SEEDS` is the number of seeds to play (500 by default), `GIVALIA_SIM_SEED` plays one again.
"""

from __future__ import annotations

import os

import pytest
from sim_run import simulate

PARTS = 10
SEEDS = int(os.environ.get("GIVALIA_SIM_SEEDS", "500"))
ONE_SEED = os.environ.get("GIVALIA_SIM_SEED")


def seeds_of(part: int) -> range:
    """Every tenth seed, so that any count is spread over the parts; or the one that was asked for."""
    if ONE_SEED is not None:
        return range(int(ONE_SEED), int(ONE_SEED) + 1)
    return range(part, SEEDS, PARTS)


@pytest.mark.parametrize("part", range(1 if ONE_SEED is not None else PARTS))
def test_every_promise_holds_whatever_befalls(part: int) -> None:
    for seed in seeds_of(part):
        run = simulate(seed)
        assert not run.violations, run.report()


def test_one_seed_is_one_run() -> None:
    first, again = simulate(7), simulate(7)

    assert [event.line() for event in first.history.events] == [event.line() for event in again.history.events]


def test_the_runs_meet_what_they_are_for() -> None:
    """A simulation in which nothing happens passes every check."""
    seen: set[tuple[str, str]] = set()
    for seed in range(40):
        seen.update((event.type, event.act) for event in simulate(seed).history.events)

    faults = {"crash", "pause", "cut", "step", "start"}
    outcomes = {"SUCCEED", "FAIL", "RELEASE", "ENQ", "CANCEL", "EXT", "REQUEUE", "STAT", "WAIT"}
    assert {("fault", each) for each in faults} <= seen
    assert {("ok", each) for each in outcomes} <= seen
    assert {("fail", each) for each in outcomes - {"RELEASE"}} <= seen
    assert ("info", "give_up") in seen
