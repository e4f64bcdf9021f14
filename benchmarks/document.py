"""Writes `docs/benchmarks.md` from the figures of the last runs, and puts their plots beside it.

    python benchmarks/document.py

Reads what `make bench`, `make bench-ten-million` and `make bench-peers` left in `build`; the first of them must be there. No
figure on the page is written by hand, so none can outlive the run that it is from.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import document_peers
from markdown import aim, measured, shown, table

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD, PAGE, PICTURES = ROOT / "build", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
RUNS: Final = {"make bench": BUILD / "bench.json", "make bench-ten-million": BUILD / "bench-ten-million.json"}
PLOTS: Final = {
    "end-to-end": "Jobs a second end to end against the number of jobs that wait",
    "lateness": "Lateness against the number of jobs that wait",
    "memory": "Resident memory of the server against the number of jobs that wait",
}

Run = dict[str, Any]

INTRODUCTION: Final = """\
# Benchmarks

This page is written by `benchmarks/document.py` from the figures of a run, and is not edited by hand. Measure on your own
machine with `make bench`: a queue that syncs is as fast as its disk, and figures of two machines compare only beside what each
of them does without Givalia.
"""

HOW_TO_READ: Final = """\
## How to read the figures

- Server, worker and client are processes of their own on one machine, on a SQLite store that is made for the measurement. The
  default settings hold, without plugins.
- **Durable.** Every accepted job is synced to disk before its answer, and every figure is of such jobs; a benchmark that is
  told of a weaker class has no figures.
- **Jobs** do nothing but sign a ledger. Each has a random key, so that no index profits from neighbours, and some 30 bytes of
  params.
- **Checked.** A benchmark whose jobs did not all run once each, or of which one began before its due, has no figures either.
- **End to end** is from the first enq until the server counts the last job as done; **enq to start** until the job's own code
  runs; **late** is from the due until that.
- **p50** and **p99** are what half of the calls, and 99 of a hundred, do not exceed. Where there are several rounds, the median
  of the rounds is shown.
- **Aims** were set before; one that is missed stays on the page.
"""


def page(runs: dict[str, Run]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, _where(runs), HOW_TO_READ, _goals(runs), _lost(runs), _plots(), *map(_tables, runs, runs.values())]
    return "\n".join(filter(None, [*parts, document_peers.part(BUILD / "bench-peers.json")]))


def _where(runs: dict[str, Run]) -> str:
    rows = []
    for command, run in runs.items():
        versions = ", ".join(
            version if name in ("python", "machine") else f"{name} {version}" for name, version in run["versions"].items()
        )
        machine = ", ".join(f"{each['name']}: {shown(each['value'])} {each['unit']}".strip() for each in run["machine"])
        rows.append((f"`{command}`", run["at"], versions, machine))
    return "## Where it was measured\n\n" + table(("with", "when", "on what", "what the machine does without Givalia"), rows)


def _goals(runs: dict[str, Run]) -> str:
    rows = [
        (title, figure["name"], measured(figure), aim(figure), "reached" if figure["reached"] else "**missed**")
        for title, figure in _aimed(runs)
    ]
    reached = sum(figure["reached"] for _, figure in _aimed(runs))
    words = f"{reached} of {len(rows)} are reached.\n\n"
    return "## Goals\n\n" + words + table(("of", "figure", "measured", "aim", ""), rows)


def _lost(runs: dict[str, Run]) -> str:
    lost = [(_share(figure), title, figure) for title, figure in _aimed(runs) if not figure["reached"]]
    lines = [
        f"- {title}: **{figure['name']}** is {measured(figure)}, where {aim(figure)} was aimed at ({share})."
        for (_, share), title, figure in sorted(lost, key=lambda each: each[0])
    ]
    return (
        "## Where we lose\n\nThe aims that are missed, those that are missed by most first.\n\n" + "\n".join(lines) + "\n"
        if lines
        else ""
    )


def _aimed(runs: dict[str, Run]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (title, figure)
        for run in runs.values()
        for title, section in run["sections"].items()
        for figure in section["figures"]
        if figure["reached"] is not None
    ]


def _share(figure: dict[str, Any]) -> tuple[float, str]:
    """How near a figure came to its aim, 1 being there; as a number and in words."""
    if figure["least"] is not None:
        share = figure["value"] / figure["least"]
        return share, f"{100 * share:.0f} % of it"
    if not figure["most"]:
        return 0.0, "none is right"
    return figure["most"] / figure["value"], f"{figure['value'] / figure['most']:.1f} times that"


def _plots() -> str:
    lines = [f"![{words}](benchmarks/{name}.svg)\n" for name, words in PLOTS.items() if (PICTURES / f"{name}.svg").exists()]
    return "## While more and more jobs wait\n\n" + "\n".join(lines) if lines else ""


def _tables(command: str, run: Run) -> str:
    parts = [f"## All figures of `{command}`\n"]
    for title, section in run["sections"].items():
        settings = ", ".join(f"{name} {value}" for name, value in section["settings"].items())
        rows = [(figure["name"], measured(figure)) for figure in section["figures"]]
        parts.append(
            f"### {title}\n\n{section['words']}\n\nOn its own: `python benchmarks/{section['file']}`. "
            f"Here with {settings}; it took {section['seconds']:.0f} s.\n\n{table(('figure', 'measured'), rows)}"
        )
    return "\n".join(parts)


def main() -> None:
    """Write the page."""
    runs = {command: json.loads(path.read_text(encoding="utf-8")) for command, path in RUNS.items() if path.exists()}
    if "make bench" not in runs:
        raise SystemExit("build/bench.json is not there: run make bench first")
    PICTURES.mkdir(exist_ok=True)
    for name in PLOTS:
        if (BUILD / f"{name}.svg").exists():
            shutil.copy(BUILD / f"{name}.svg", PICTURES)
    PAGE.write_text(page(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
