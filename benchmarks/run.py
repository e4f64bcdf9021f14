"""Every figure that the README quotes, measured here and now, each beside what we aim at.

Runs the benchmarks one after the other, each with processes and a store of its own; the machine should have nothing else to
do. The exit code is 0 if every aim is reached, 1 if one is missed, 2 if a load was refused, lost a job, or ran one twice or
early: its figures are then left out.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import backlog
import end_to_end
import harness
import lateness
import million
import postgres
import store_commit
from harness import Figure

from givalia_core import GivaliaError

BENCHMARKS = (end_to_end, lateness, million, backlog, store_commit, postgres)
QUICK: dict[ModuleType, dict[str, Any]] = {
    end_to_end: {"jobs": 20_000, "singles": 100, "repeats": 1},
    lateness: {"jobs": 300, "spread": 3.0},
    million: {"jobs": 100_000, "restarts": 1},
    backlog: {"nobody": 20_000, "away": 5_000, "singles": 100},
    store_commit: {"seconds": 0.3},
    postgres: {"jobs": 10_000, "repeats": 1, "transactions": 100, "idle": 10, "waiting": 50_000, "late": 300},
}
OPTIONS = (harness.Option("quick", False, "smaller loads, done in some two minutes; their figures are not for quoting"),)


def main() -> int:
    """Measure everything and print one table a benchmark."""
    given = harness.arguments(__doc__, OPTIONS).parse_args()
    sections: dict[str, list[Figure]] = {"This machine": harness.calibrate(given.folder)}
    worst = 0
    for benchmark in BENCHMARKS:
        harness.say(f"{benchmark.TITLE} ({benchmark.__name__}.py)")
        options = {**harness.options_of(benchmark), **(QUICK[benchmark] if given.quick else {})}
        try:
            sections[benchmark.TITLE] = benchmark.measure(**options, folder=given.folder)
        except (harness.Broken, GivaliaError) as broken:
            harness.say(f"BROKEN: {broken}")
            worst = 2
    return max(worst, harness.report(sections, given.json))


if __name__ == "__main__":
    raise SystemExit(main())
