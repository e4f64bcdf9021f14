"""The gate on the judge itself: the judge finds every bug put in on purpose, by the promise that the bug breaks."""

from __future__ import annotations

import pytest
from sim_mutants import MUTANTS
from sim_run import Run, simulate

SEEDS_MOST = 200


def first_caught(name: str) -> Run | None:
    """The first run that condemns this bug for the right reason."""
    mutant = MUTANTS[name]
    for seed in range(SEEDS_MOST):
        with mutant.inside():
            run = simulate(seed)
        if any(violation.invariant in mutant.invariants for violation in run.violations):
            return run
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_each_seeded_bug_is_caught(name: str) -> None:
    caught = first_caught(name)

    assert caught is not None, f"{SEEDS_MOST} seeds did not catch it"
    assert not simulate(caught.seed).violations, "the seed condemns the engine as shipped too"
