"""Measures every figure that the README quotes, each beside its goal.

Runs the benchmarks one after the other, each with its own processes and store; the machine should have no other load. The exit
code is 0 if every goal is reached, 1 if one is missed, 2 if a load was refused, lost a job, or ran one twice or early: its
figures are then left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import backlog
import end_to_end
import enqueue
import harness
import instant
import lateness
import postgres
import steady_store
import store_commit
import waiting
from harness import Figure, Section

from givalia_core import GivaliaError

Plan = dict[ModuleType, dict[str, Any]]
# Some benchmarks measure less than alone, so that all end within five minutes, even where a server does 10,000 jobs/s; the
# words of a benchmark name the difference. Filling a store takes longest, so only one benchmark has its million here.
USUAL: Plan = {
    enqueue: {"together": 30_000, "batches": 80_000, "repeats": 1},
    end_to_end: {"repeats": 2},
    lateness: {"jobs": 600, "spread": 6.0},
    instant: {},
    waiting: {"levels": "0,100000,1000000", "repeats": 1, "seconds": 5.0},
    backlog: {"nobody": 50_000, "away": 20_000},
    steady_store: {"waiting": 200_000},
    store_commit: {"seconds": 0.5},
    postgres: {"jobs": 10_000, "repeats": 1, "transactions": 50, "idle": 5, "waiting": 20_000, "late": 300},
}
QUICK: Plan = {
    enqueue: {"singles": 400, "together": 10_000, "batches": 20_000, "repeats": 1},
    end_to_end: {"jobs": 20_000, "singles": 100, "repeats": 1},
    lateness: {"jobs": 300, "spread": 3.0, "pace": 3_000},
    instant: {"jobs": 20_000, "before": 20_000, "rate": 8_000},
    waiting: {"levels": "0,10000,50000", "load": 10_000, "repeats": 1, "late": 100, "singles": 100, "seconds": 3.0},
    backlog: {"nobody": 20_000, "away": 5_000, "singles": 100},
    steady_store: {"waiting": 50_000, "seconds": 2.0},
    store_commit: {"seconds": 0.3},
    postgres: {"jobs": 10_000, "repeats": 1, "transactions": 100, "idle": 10, "waiting": 50_000, "late": 300},
}
TEN_MILLION: Plan = {
    waiting: {"levels": "0,10000,100000,1000000,10000000", "seconds": 15.0},
    steady_store: {"waiting": 10_000_000},
}
OPTIONS = (
    harness.Option("quick", False, "smaller loads, done in some two minutes; their figures are not for quoting"),
    harness.Option("ten_million", False, "instead what depends on how many wait, with ten million of them"),
    harness.Option("only", "", "some of them, by the names of their files without .py, with commas between"),
)


class Measured(NamedTuple):
    """The results of the benchmarks of a plan."""

    sections: dict[str, Section]
    broken: dict[str, str]
    """The benchmarks without figures, and the reasons."""

    @property
    def figures(self) -> dict[str, list[Figure]]:
        """Return the figures by the titles of the benchmarks."""
        return {title: section.figures for title, section in self.sections.items()}


def measure(plan: Plan, folder: str | None, titles: Mapping[ModuleType, str] | None = None) -> Measured:
    """Run the benchmarks of a plan, one after the other, with their own titles or these; each prints its duration."""
    sections: dict[str, Section] = {}
    broken: dict[str, str] = {}
    for benchmark, some in plan.items():
        name = (titles or {}).get(benchmark, benchmark.TITLE)
        harness.say(f"{name} ({benchmark.__name__}.py)")
        try:
            sections[name] = harness.run(benchmark, {**harness.options_of(benchmark), **some}, folder)
            harness.say(f"{name} took {sections[name].seconds:.0f} s")
        except (harness.Broken, GivaliaError) as error:
            broken[name] = str(error)
            harness.say(f"BROKEN: {error}")
    return Measured(sections, broken)


def main() -> int:
    """Measure everything; print a table for each benchmark, and one of all goals."""
    given = harness.arguments(__doc__, OPTIONS).parse_args()
    plan = TEN_MILLION if given.ten_million else QUICK if given.quick else USUAL
    only = set(filter(None, given.only.split(",")))
    machine = harness.calibrate(given.folder)
    found = measure({each: some for each, some in plan.items() if not only or each.__name__ in only}, given.folder)
    flags = harness.flags(OPTIONS, given)
    command = f"python benchmarks/run.py {flags}" if flags else "make bench"
    goals = harness.goals_of(found.figures)
    return harness.report(harness.Run(command, machine, harness.versions(), found.sections, goals, found.broken), given.json)


if __name__ == "__main__":
    raise SystemExit(main())
