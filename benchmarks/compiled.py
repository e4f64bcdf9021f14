"""The gain of compiling the hot modules with mypyc: the load of `end_to_end.py` on the plain and the compiled package.

A copy of the package is compiled in a separate folder, which needs a C compiler and a minute or two; then the two take turns.
Only the modules in which the server spends most of its time are compiled: the engine, the store, the wire.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

import harness
from harness import Figure, Option

TITLE = "Compiled"
OPTIONS = (
    Option("jobs", 50_000, "jobs of each load"),
    Option("rounds", 3, "loads on each of the two, in turn; the medians are shown"),
)
COMPILE_S: Final = 900
LOAD_S: Final = 300
_HERE: Final = Path(__file__).resolve().parent
_PACKAGE: Final = _HERE.parent / "givalia_core"
_HOT: Final = (
    *("model", "clock", "timers", "routing", "policy", "engine/*", "server/inbox"),
    *("store/base", "store/sqlite/index/*", "store/sqlite/store", "store/sqlite/reads", "store/sqlite/records"),
    *("store/sqlite/admission", "store/sqlite/sweeper"),
    *("protocol/frames", "protocol/messages", "protocol/codec", "protocol/checks", "protocol/session"),
)
_WANTED: Final = {"end to end": "jobs/s", "CPU of the server": "us a job", "idle, enq to start, p50": "ms"}


def measure(jobs: int, rounds: int, folder: str | None = None) -> list[Figure]:
    """Return the medians of both packages, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="givalia-bench-", dir=folder) as path:
        _compile(Path(path))
        sources = (_HERE.parent, Path(path))
        return harness.in_turn(rounds, "as it is", "compiled", [partial(_load, source, jobs, folder) for source in sources])


def _compile(folder: Path) -> None:
    shutil.copytree(_PACKAGE, folder / _PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    files = [str(path.relative_to(folder)) for name in _HOT for path in sorted(folder.glob(f"{_PACKAGE.name}/{name}.py"))]
    harness.say(f"compiling {len(files)} modules")
    command = [sys.executable, "-m", "mypyc", "--ignore-missing-imports", *files]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=COMPILE_S, check=False)
    if made.returncode:
        raise harness.Broken(f"mypyc failed: {(made.stdout + made.stderr)[-2000:]}")
    if not list((folder / _PACKAGE.name / "engine").glob("core.*.so")):
        raise harness.Broken("mypyc has compiled nothing")


def _load(source: Path, jobs: int, folder: str | None) -> list[Figure]:
    flags = ["--jobs", str(jobs), "--repeats", "1", "--json", "-", *(["--folder", folder] if folder else [])]
    run = subprocess.run(
        [sys.executable, str(_HERE / "end_to_end.py"), *flags],
        capture_output=True,
        text=True,
        timeout=LOAD_S,
        check=False,
        cwd=source,  # Python searches there first, before the folders of PYTHONPATH.
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    if run.returncode > 1:  # 1 means a missed goal.
        raise harness.Broken(run.stderr[-2000:])
    (section,) = json.loads(run.stdout)["sections"].values()
    values = {figure["name"]: figure["value"] for figure in section["figures"]}
    return [Figure(name, values[name], unit) for name, unit in _WANTED.items()]


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
