"""Writes `docs/benchmarks.md` from the figures of a run, and puts its plots beside it.

    python benchmarks/document.py [RUN.json...]

Reads `build/bench-peers.json`, the run of `make bench-peers`, or the named files: those of `make bench` and `make
bench-ten-million` have the same form, without the peers. No figure on the page is written by hand, so none can outlive its
run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from harness import Figure, shown, unmapped

ROOT: Final = Path(__file__).resolve().parent.parent
BUILD, PAGE, PICTURES = ROOT / "build", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
PLOTS: Final = {
    "end-to-end": "Jobs a second end to end against the number of jobs that wait",
    "lateness": "Lateness against the number of jobs that wait",
    "memory": "Resident memory of the server against the number of jobs that wait",
}

Data = dict[str, Any]
Row = tuple[str, ...]

INTRODUCTION: Final = """\
# Benchmarks

`benchmarks/document.py` writes this page from the figures of a run; do not edit it by hand. Measure on your own machine with
`make bench-peers`, or without the peers with `make bench`: a queue that syncs is as fast as its disk, and figures of two
machines are comparable only beside the machines' own speed.
"""

HOW_TO_READ: Final = """\
## How to read the figures

- Server, worker and client are separate processes on one machine, with a fresh SQLite store, default settings and no plugins.
- **Durable.** Every accepted job is synced to disk before its answer, and all figures are of such jobs; a benchmark that gets a
  weaker durability class has no figures.
- **Jobs** only sign a ledger. Each has a random key, so that no index profits from neighbours, and some 30 bytes of params.
- **Checked.** A benchmark has no figures if one of its jobs did not run exactly once, or began before its due.
- **End to end** is from the first enq until the server counts the last job as done; **enq to start** until the job's own code
  runs; **late** is from the due until that.
- **p50** and **p99** are the values that half, and 99 %, of the calls do not exceed. If there are several rounds, the median of
  the rounds is shown.
- **The Python loop** before and after each benchmark shows the machine's speed, which changes on a rented machine.
- **Runs of different times** may be of different states of the code; the table above has the time of each.
- **Goals** were set before; a missed one stays on the page, beside a peer's figure from the same run.
- **Lateness** does not count for a peer that began jobs before their due.
"""


def page(runs: list[Data]) -> str:
    """Return the whole page."""
    each_run = (_peers, _goals, _lost)
    parts = [
        INTRODUCTION,
        _where(runs),
        HOW_TO_READ,
        *(part(run) for part in each_run for run in runs),
        _plots(),
        *map(_tables, runs),
    ]
    return "\n".join(filter(None, parts))


def _table(heads: Row, rows: list[Row]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _measured(figure: Figure) -> str:
    return f"{shown(figure.value)} {figure.unit}".strip()


def _where(runs: list[Data]) -> str:
    rows = []
    for run in runs:
        versions = ", ".join(
            version if name in ("python", "machine") else f"{name} {version}" for name, version in run["versions"].items()
        )
        machine = ", ".join(f"{each.name}: {_measured(each)}" for each in map(unmapped, run["machine"]))
        rows.append((f"`{run['command']}`", run["at"], versions, machine))
    return "## Where it was measured\n\n" + _table(("with", "when", "on what", "what the machine does without Givalia"), rows)


# The peers.


def _peers(run: Data) -> str:
    """Return the section about the peers: the contest, its results, and notes for reading them."""
    peers = run["peers"]
    if not peers:
        return ""
    parts = [
        "## Beside others\n",
        f"{peers['words']}\n",
        f"Rounds of each, in turns: {peers['repeats']}. Medians are shown, and of jobs that were lost or early the most.\n",
        _standing(peers),
        "\n".join(f"- **{name}** is left out: {why}" for name, why in peers["left_out"].items()),
        _ratios(peers["ratios"]),
        "### At which settings\n",
        _settings(peers["contestants"]),
    ]
    return "\n".join(filter(None, parts))


def _standing(peers: Data) -> str:
    """Return the contest as a table with a line for each figure: the page is too narrow for a column each."""
    found = {name: {each["name"]: unmapped(each) for each in figures} for name, figures in peers["figures"].items()}
    rows = []
    for column in peers["columns"]:
        unit = next((figures[column].unit for figures in found.values() if column in figures), "")
        values = [shown(figures[column].value) if column in figures else "-" for figures in found.values()]
        rows.append((f"{column}, {unit}", *values))
    return _table(("", *found), rows)


def _ratios(ratios: list[Data]) -> str:
    """Return the table of Givalia's figures divided by the peers'."""

    def words(peer: Data | None) -> tuple[str, str]:
        if not peer:
            return "-", ""
        return f"{peer['name']}: {shown(peer['value'])}", shown(peer["ratio"]) if peer["ratio"] else "-"

    if not ratios:
        return ""
    rows: list[Row] = []
    for row in ratios:
        figure, own = f"{row['figure']}, {row['unit']}", shown(row["givalia"])
        rows.append((figure, own, *words(row["best"]), *words(row["best_durable"])))
    heads = ("", "Givalia", "best peer", "ratio", "best that lost nothing by kill -9", "ratio")
    words_above = "### Givalia and the best peer\n\nOf jobs a second a ratio above 1 is better, of times one below 1.\n\n"
    return words_above + _table(heads, rows)


def _settings(contestants: Mapping[str, Data]) -> str:
    rows: list[Row] = []
    for name, each in contestants.items():
        flags = " ".join(each["flags"])
        rows.append((name, "server", f"{each['server']}{f' (`{flags}`)' if flags else ''}"))
        rows += [("", f"{setting['name']} = {setting['value']}", setting["why"]) for setting in each["settings"]]
        jobs = each["jobs"]
        rows.append(
            ("", "jobs", f"{jobs['singles']:,} one at a time, {jobs['batched']:,} in batches, {jobs['load']:,} end to end")
        )
    return _table(("", "setting", "why"), rows)


# The goals.


def _goals(run: Data) -> str:
    rows = []
    for goal in run["goals"]:
        figure, peer = unmapped(goal), goal["peer"]
        beside = f"{peer['name']}: {shown(peer['value'])} {peer['unit']}" if peer else ""
        reached = "reached" if figure.is_reached else "**missed**"
        rows.append((goal["of"], figure.name, _measured(figure), figure.aim, reached, beside))
    if not rows:
        return ""
    reached_in_all = sum(goal["reached"] for goal in run["goals"])
    words = f"## Goals, with `{run['command']}`\n\n{reached_in_all} of {len(rows)} are reached.\n\n"
    heads = ("of", "figure", "measured", "goal", "", "best peer, or the one that is meant")
    return words + _table(heads, rows) + "".join(f"\n{note}\n" for note in run["notes"])


def _lost(run: Data) -> str:
    """Return the figures in which a peer is better, and the missed goals, those missed by most first."""
    broken = [f"- **{name}** has no figures, as a promise was not kept: {why}" for name, why in run["broken"].items()]
    missed = sorted((_share(unmapped(goal)), goal["of"], unmapped(goal)) for goal in run["goals"] if not goal["reached"])
    goals = [
        f"- {title}: **{figure.name}** is {_measured(figure)}, where {figure.aim} was aimed at ({share})."
        for (_, share), title, figure in missed
    ]
    parts = [f"## Where we lose, with `{run['command']}`\n"]
    if broken:
        parts += ["\n".join(broken) + "\n"]
    if run["peers"] and run["peers"]["better"]:
        parts += ["Where a peer is better, the best first:\n", "\n".join(_better(run["peers"])) + "\n"]
    if goals:
        parts += ["The goals that are missed, those that are missed by most first:\n", "\n".join(goals) + "\n"]
    return "\n".join(parts) if len(parts) > 1 else ""


def _better(peers: Data) -> Iterator[str]:
    """Yield a line for each figure in which a peer is better, with the peers in it that would lose jobs."""
    figures = dict.fromkeys(row["figure"] for row in peers["better"])
    for figure in figures:
        rows = [row for row in peers["better"] if row["figure"] == figure]
        words = ", ".join(f"**{row['peer']}** {shown(row['value'])}" for row in rows)
        yield f"- {figure}: {words}; Givalia {shown(rows[0]['givalia'])} {rows[0]['unit']}."
    named = {row["peer"] for row in peers["better"]}
    if forgetful := [name for name in peers["forgetful"] if name in named]:
        yield f"\nOf these, the servers of {', '.join(forgetful)} lost answered jobs when they were killed (kill -9)."


def _share(figure: Figure) -> tuple[float, str]:
    """Return the share of its goal that a figure reached (1: all of it), as a number and in words."""
    if figure.least is not None:
        share = figure.value / figure.least
        return share, f"{100 * share:.0f} % of it"
    if not figure.most:
        return 0.0, "none is right"
    return figure.most / figure.value, f"{figure.value / figure.most:.1f} times that"


# The other sections.


def _plots() -> str:
    lines = [f"![{words}](benchmarks/{name}.svg)\n" for name, words in PLOTS.items() if (PICTURES / f"{name}.svg").exists()]
    return "## While more and more jobs wait\n\n" + "\n".join(lines) if lines else ""


def _tables(run: Data) -> str:
    parts = [f"## All figures of our own of `{run['command']}`\n"]
    for title, section in run["sections"].items():
        settings = ", ".join(f"{name} {value}" for name, value in section["settings"].items())
        loops_ms = section.get("loops_ms")  # Older runs lack this field.
        speed = f", and the Python loop {loops_ms[0]:.1f} ms before it, {loops_ms[1]:.1f} ms after it" if loops_ms else ""
        rows = [(figure.name, _measured(figure)) for figure in map(unmapped, section["figures"])]
        parts.append(
            f"### {title}\n\n{section['words']}\n\nOn its own: `python benchmarks/{section['file']}`. "
            f"Here with {settings}; it took {section['seconds']:.0f} s{speed}.\n\n"
            f"{_table(('figure', 'measured'), rows)}"
        )
    return "\n".join(parts) if run["sections"] else ""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", default=[BUILD / "bench-peers.json"])
    given = parser.parse_args()
    missing = [str(path) for path in given.runs if not path.exists()]
    if missing:
        parser.error(f"not there: {' '.join(missing)}; make bench-peers or make bench writes it")
    PICTURES.mkdir(exist_ok=True)
    for name in PLOTS:
        if (BUILD / f"{name}.svg").exists():
            shutil.copy(BUILD / f"{name}.svg", PICTURES)
    PAGE.write_text(page([json.loads(path.read_text(encoding="utf-8")) for path in given.runs]), encoding="utf-8")


if __name__ == "__main__":
    main()
