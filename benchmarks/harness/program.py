"""A benchmark as a program: its options as flags, and the report of what it measured."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from givalia_core import GivaliaError
from harness.figures import Figure, mapped, table
from harness.goals import Goal, goals_of, goals_table, mapped_goal
from harness.ledger import Broken
from harness.machine import calibrate, loop_ms, versions
from harness.words import say


class Option(NamedTuple):
    """A flag of a benchmark: its name in `measure`, its default, and its meaning."""

    name: str
    default: Any
    words: str


def options_of(benchmark: ModuleType) -> dict[str, Any]:
    """Return the defaults of a benchmark's options."""
    return {option.name: option.default for option in benchmark.OPTIONS}


def arguments(words: str | None, options: Sequence[Option]) -> argparse.ArgumentParser:
    """Return a parser with these options and the two that every benchmark has."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, help_words in options:
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true", help=help_words)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"{help_words} (default: %(default)s)")
    # A benchmark that is stopped early leaves no process and no folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser.add_argument("--folder", help="where to put the store: a folder on the disk to be measured (default: the system's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for standard output, without the table")
    return parser


def flags(options: Sequence[Option], given: argparse.Namespace) -> str:
    """Return the options that differ from their defaults, as flags."""
    typed = []
    for name, default, _ in options:
        flag, value = f"--{name.replace('_', '-')}", getattr(given, name)
        if value != default:
            typed.append(flag if default is False else f"{flag} {value}")
    return " ".join(typed)


class Section(NamedTuple):
    """The result of one benchmark: its file, its words, its settings, its duration, and its figures.

    `loops_ms` are the times of a million turns of a Python loop, right before and right after it.
    """

    file: str
    words: str
    settings: dict[str, Any]
    seconds: float
    figures: list[Figure]
    loops_ms: tuple[float, float]


def run(benchmark: ModuleType, settings: dict[str, Any], folder: str | None) -> Section:
    """Measure one benchmark.

    Raises:
        Broken, GivaliaError: The benchmark has no figures.
    """
    before_ms, began = loop_ms(), time.monotonic()
    figures = benchmark.measure(**settings, folder=folder)
    seconds = time.monotonic() - began
    file = Path(benchmark.__file__ or "").name
    return Section(file, _words(benchmark, settings), settings, seconds, figures, (before_ms, loop_ms()))


def _words(benchmark: ModuleType, settings: dict[str, Any]) -> str:
    """Return the benchmark's description, and the settings that differ from its own defaults."""
    alone = options_of(benchmark)
    changed = [f"{name} {value} ({alone[name]})" for name, value in settings.items() if value != alone[name]]
    words = (benchmark.__doc__ or "").strip()
    return f"{words}\n\nHere otherwise than on its own (in brackets): {', '.join(changed)}." if changed else words


class Beside(NamedTuple):
    """Further results of a run, beside Givalia's figures: for people, and as JSON."""

    text: str
    data: dict[str, Any]


class Run(NamedTuple):
    """Everything that a command measured. Its JSON has one form for all commands: see `recorded`."""

    command: str
    machine: list[Figure]
    versions: dict[str, str]
    sections: dict[str, Section]
    goals: list[Goal]
    broken: dict[str, str]
    """The parts without figures because a promise was not kept, each with the reason."""
    notes: Sequence[str] = ()
    """Notes on the goals, such as those that this run could not measure."""
    peers: Beside | None = None

    @property
    def exit_code(self) -> int:
        """Return 0 if every goal is reached, 1 if one is missed, 2 if something is broken."""
        return 2 if self.broken else int(not all(each.figure.is_reached for each in self.goals))


def recorded(run: Run) -> dict[str, Any]:
    """Return the run as JSON has it, for `document.py` and `plot.py`."""
    return {
        "command": run.command,
        "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "versions": run.versions,
        "machine": [mapped(each) for each in run.machine],
        "sections": {
            title: {**each._asdict(), "figures": [mapped(figure) for figure in each.figures]}
            for title, each in run.sections.items()
        },
        "goals": [mapped_goal(each) for each in run.goals],
        "notes": list(run.notes),
        "broken": run.broken,
        "peers": run.peers and run.peers.data,
    }


def printed(run: Run) -> str:
    """Return the run for people."""
    words = [f"{name} {version}" for name, version in run.versions.items()]
    lines = "\n".join(" · ".join(words[start : start + 8]) for start in range(0, len(words), 8))
    parts = [lines, f"This machine\n{table(run.machine)}"]
    for title, (program, _, settings, seconds, figures, loops_ms) in run.sections.items():
        given = " ".join(f"{name}={value}" for name, value in settings.items())
        loops = " and ".join(f"{each:.1f}" for each in loops_ms)
        parts.append(f"{title} ({program}, {seconds:.0f} s, the Python loop {loops} ms: {given})\n{table(figures)}")
    took = [f"{title} {section.seconds:.0f} s" for title, section in run.sections.items()]
    if len(took) > 1:
        parts.append(f"Our own took {sum(each.seconds for each in run.sections.values()):.0f} s: {', '.join(took)}")
    if run.peers:
        parts.append(run.peers.text)
    if len(run.sections) > 1 or run.peers:
        parts.append("\n".join(["Goals", goals_table(run.goals), *run.notes] if run.goals else ["No goals", *run.notes]))
    parts += [f"BROKEN: {name}: {why}" for name, why in run.broken.items()]
    return "\n\n".join(parts)


def report(run: Run, file: str | None) -> int:
    """Print the run, and write it as JSON if a file is named; return the exit code."""
    if file:
        text = json.dumps(recorded(run), indent=2)
        if file == "-":
            print(text)
        else:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(text + "\n", encoding="utf-8")
    if file != "-":
        print(printed(run))
    return run.exit_code


def main(benchmark: ModuleType) -> int:
    """Run one benchmark as a program: its OPTIONS as flags, its `measure`, then calibration and table."""
    given = vars(arguments(benchmark.__doc__, benchmark.OPTIONS).parse_args())
    file, folder = given.pop("json"), given.pop("folder")
    machine = calibrate(folder)
    try:
        section = run(benchmark, given, folder)
    except (Broken, GivaliaError) as broken:
        say(f"BROKEN: {broken}")
        return 2
    goals = goals_of({benchmark.TITLE: section.figures})
    return report(Run(f"python benchmarks/{section.file}", machine, versions(), {benchmark.TITLE: section}, goals, {}), file)
