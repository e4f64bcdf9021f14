"""Draws the curves of a run: lateness, throughput and memory against the number of waiting jobs.

    python benchmarks/plot.py FOLDER RUN.json...

Reads the output of `run.py --json` and writes one SVG for each plot into the folder, from the run with the most waiting jobs.
It needs the packages of `benchmarks/requirements.lock` and nothing of Givalia.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl

mpl.use("svg")  # Also where there is no screen; chosen before pyplot looks for one.
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

Points = list[tuple[float, float]]
INK, FAINT = "#1c2733", "#d6dce2"
COLOURS: Final = ("#1769aa", "#c2571a")
# The same figures give the same file, at any time and with any version of the tools.
NOTHING: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))
STYLE: Final = {
    "svg.fonttype": "path",  # The same look everywhere.
    "svg.hashsalt": "givalia",  # A fixed salt, for the same file each time.
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
}


class Plot(NamedTuple):
    """One picture: its file, its title, its left axis, and its curves with their names."""

    file: str
    title: str
    axis: str
    curves: dict[str, str]


PLOTS: Final = (
    Plot("lateness", "How late a job begins", "ms after its due", {"lateness, p50": "p50", "lateness, p99": "p99"}),
    Plot("end-to-end", "Jobs end to end", "jobs/s", {"end to end": "enqueued, run and settled"}),
    Plot("memory", "Memory of the server", "MB resident", {"memory": "resident"}),
)


def curves(run: dict[str, Any]) -> dict[str, Points]:
    """Return the points of each curve of a run, by the number of waiting jobs."""
    found: dict[str, dict[float, float]] = {}
    for section in run["sections"].values():
        for figure in section["figures"]:
            if figure["curve"]:
                # If two stores have measured the same number, the first one is drawn.
                found.setdefault(figure["curve"], {}).setdefault(figure["at"], figure["value"])
    return {name: sorted(points.items()) for name, points in found.items()}


def draw(plot: Plot, points: dict[str, Points], folder: Path, suffix: str) -> Path:
    """Write one plot."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
        for (curve, words), colour in zip(plot.curves.items(), COLOURS, strict=False):
            # Equal steps: zero has no place on a logarithmic axis.
            places = range(len(points[curve]))
            values = [value for _, value in points[curve]]
            axes.plot(places, values, color=colour, marker="o", linewidth=2, label=words)
            for place, value in zip(places, values, strict=True):
                axes.annotate(_short(value), (place, value), (0, 7), textcoords="offset points", ha="center", fontsize=9)
        _dress(axes, plot, [at for at, _ in points[next(iter(plot.curves))]])
        path = folder / f"{plot.file}.{suffix}"
        figure.savefig(path, metadata=NOTHING if suffix == "svg" else None, dpi=120)
        plt.close(figure)
    return path


def _dress(axes: Axes, plot: Plot, waiting: list[float]) -> None:
    axes.set_title(plot.title, loc="left", fontweight="bold", pad=12)
    axes.set_xlabel("jobs that wait")
    axes.set_ylabel(plot.axis)
    axes.set_xticks(range(len(waiting)), [f"{count:,.0f}" for count in waiting])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)
    axes.margins(x=0.06)
    axes.grid(axis="y", color=FAINT)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.curves) > 1:
        axes.legend(frameon=False)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Draw every plot that these runs have figures for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="those that are not there are left out")
    parser.add_argument("--png", action="store_true", help="pictures of dots instead")
    given = parser.parse_args()
    runs = [curves(json.loads(path.read_text(encoding="utf-8"))) for path in given.runs if path.exists()]
    points = max(runs, key=lambda run: max((at for each in run.values() for at, _ in each), default=-1), default={})
    given.folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        if all(curve in points for curve in plot.curves):
            print(draw(plot, points, given.folder, "png" if given.png else "svg"))


if __name__ == "__main__":
    main()
