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
from harness.ledger import Broken
from harness.machine import calibrate, versions
from harness.words import say


class Option(NamedTuple):
    """A flag of a benchmark: its name as `measure` takes it, its default, and what it means."""

    name: str
    default: Any
    words: str


def options_of(benchmark: ModuleType) -> dict[str, Any]:
    """The defaults of a benchmark's options."""
    return {option.name: option.default for option in benchmark.OPTIONS}


def arguments(words: str | None, options: Sequence[Option]) -> argparse.ArgumentParser:
    """A parser with these options and the two that every benchmark has."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, help_words in options:
        flag = f"--{name.replace('_', '-')}"
        if default is False:
            parser.add_argument(flag, action="store_true", help=help_words)
        else:
            parser.add_argument(flag, type=type(default), default=default, help=f"{help_words} (default: %(default)s)")
    # Whoever stops a benchmark early leaves no process and no folder behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser.add_argument("--folder", help="where to put the store: a folder on the disk to be measured (default: the system's)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too; - for standard output, without the table")
    return parser


class Section(NamedTuple):
    """What one benchmark measured: its file, its words, the settings it ran with, how long it took, and the figures."""

    file: str
    words: str
    settings: dict[str, Any]
    seconds: float
    figures: list[Figure]


def run(benchmark: ModuleType, settings: dict[str, Any], folder: str | None) -> Section:
    """Measure one benchmark.

    Raises:
        Broken, GivaliaError: There are no figures.
    """
    began = time.monotonic()
    figures = benchmark.measure(**settings, folder=folder)
    file = Path(benchmark.__file__ or "").name
    return Section(file, (benchmark.__doc__ or "").strip(), settings, time.monotonic() - began, figures)


def report(machine: list[Figure], sections: dict[str, Section], file: str | None) -> int:
    """Print the figures, and write them as JSON if a file is named; returns the exit code, 1 if an aim is missed."""
    if file:
        known = {
            "at": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "versions": versions(),
            "machine": [mapped(each) for each in machine],
            "sections": {
                title: {**each._asdict(), "figures": [mapped(figure) for figure in each.figures]}
                for title, each in sections.items()
            },
        }
        text = json.dumps(known, indent=2)
        if file == "-":
            print(text)
        else:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(text + "\n", encoding="utf-8")
    if file != "-":
        print(" · ".join(f"{name} {version}" for name, version in versions().items()))
        print(f"\nThis machine\n{table(machine)}")
        for title, (program, _, settings, seconds, figures) in sections.items():
            given = " ".join(f"{name}={value}" for name, value in settings.items())
            print(f"\n{title} ({program}, {seconds:.0f} s: {given})\n{table(figures)}")
    return int(any(each.is_reached is False for section in sections.values() for each in section.figures))


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
    return report(machine, {benchmark.TITLE: section}, file)
