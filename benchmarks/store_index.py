"""The index of waiting jobs beside other layouts: the work of an index alone, without records.

A batch looks up a thousand unknown ids and keys, inserts a thousand jobs, and removes those that fall due meanwhile, which are
the earliest and about as many: waits have no memory, so the number of waiting jobs stays the same. `ours` is the index of the
SQLite store; `arrays` is the same on arrays in memory; `dicts` is two dicts and a heap. LMDB, RocksDB and tables of SQLite are
never synced, and survive a kill of the process as `ours` does; layouts in memory must be rebuilt.

Each layout is measured in a process of its own. Memory is the maximum during the measurement, above the memory before the
layout was opened, without the system's cache of files that are not mapped. Packages that only this benchmark needs are in
`build/bench-venv` (`make bench` creates it); a layout without its package is left out.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import harness
from harness import Figure, Option
from index_alone import FRAME, NO_PACKAGE
from index_layouts import LAYOUTS

TITLE = "Layouts of an index"
OPTIONS = (
    Option("waiting", 1_000_000, "jobs that wait, always"),
    Option("ten_million", False, "ten million of them"),
    Option("batches", 200, f"batches of {FRAME:,} that are measured"),
    Option("layouts", ",".join(LAYOUTS), "which ones, with commas between"),
    Option("patience", 120.0, "seconds after which a layout is left out"),
)
_HERE: Final = Path(__file__).resolve().parent
_BENCH_PYTHON: Final = _HERE.parent / "build" / "bench-venv" / "bin" / "python"
_ELSEWHERE: Final = {"lmdb", "rocksdb"}


class _LeftOut(Exception):
    """A layout has no figures, through no fault of its own."""


def measure(
    waiting: int, ten_million: bool, batches: int, layouts: str, patience: float, folder: str | None = None
) -> list[Figure]:
    """Measure one layout after the other."""
    waiting = 10_000_000 if ten_million else waiting
    figures: list[Figure] = []
    for layout in layouts.split(","):
        with tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path:
            try:
                figures += _figures(layout, Path(path), waiting, batches, time.monotonic() + patience)
            except _LeftOut as why:
                harness.say(f"{layout} is left out: {why}")
    if not figures:
        raise harness.Broken("no layout is left")
    return figures


def _figures(layout: str, path: Path, waiting: int, batches: int, end: float) -> list[Figure]:
    told = _told(layout, end, do="measure", folder=str(path), waiting=waiting, batches=batches)
    disk = sum(file.stat().st_blocks * 512 for file in path.rglob("*") if file.is_file())
    jobs = batches * FRAME
    figures = [
        ("jobs a second", jobs / told["wall_s"], "jobs/s"),
        ("processor", told["cpu_s"] / jobs * 1e6, "us a job"),
        ("worst batch", told["worst_s"] * 1e3, "ms"),
        ("memory of its own, at most", told["resident"]["anonymous"] / harness.MIB, "MiB"),
        ("memory mapped from files, at most", told["resident"]["files"] / harness.MIB, "MiB"),
    ]
    if LAYOUTS[layout].is_on_disk:
        again = _told(layout, end, do="reopen", folder=str(path), left=told["left"], due_us=told["due_us"])
        if again["next"] != told["next"] or again["found"] < 2 * len(told["next"]):
            raise harness.Broken(f"{layout} did not survive the kill")
        figures += [
            ("on disk", disk / waiting, "bytes a job"),
            ("opened after a kill", again["open_s"], "s"),
            ("opened after a kill, processor", again["open_cpu_s"], "s"),
        ]
    else:
        figures.append(("made anew after a kill, records read already", told["fill_s"], "s"))
    return [Figure(f"{layout}, {name}", value, unit) for name, value, unit in figures]


def _told(layout: str, end: float, **plan: Any) -> dict[str, Any]:
    """Return the report of a process that carried out this plan; the process ends by killing itself."""
    python = _BENCH_PYTHON if layout in _ELSEWHERE else Path(sys.executable)
    if not python.exists():
        raise _LeftOut("there is no build/bench-venv")
    harness.say(f"{layout}: {plan['do']}")
    command = [str(python), str(_HERE / "index_alone.py"), json.dumps({"layout": layout, **plan})]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=max(end - time.monotonic(), 1.0), check=False)
    except subprocess.TimeoutExpired:
        raise _LeftOut("it would have taken too long") from None
    if done.returncode == NO_PACKAGE:
        raise _LeftOut("its package is not installed")
    if done.returncode != -signal.SIGKILL or not done.stdout:
        raise harness.Broken(f"{layout} failed; what it says is above")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
