"""Runs the fast tests on each installed Python, in a virtual environment of its own under `build/pythons`.

`PYTHONS="python3.12 /opt/python3.14/bin/python3"` names the interpreters, and each must run. The default is each of `ON_PATH`
that exists. An interpreter of these that does not run (pyenv leaves a command for each version) is skipped, with a note.
The exit code is 1 if the tests failed on any interpreter, or passed on none.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ON_PATH = ("python3.11", "python3.12", "python3.13", "python3.14", "python3.15")
ASK = "import platform, sys; print(platform.python_version() + sys.abiflags); sys.exit(sys.version_info < (3, 11))"
ASK_S = 60
TESTS_S = 1_800


class Outcome(NamedTuple):
    """The result of the tests on one Python; `is_good` is None if they were not run."""

    words: str
    is_good: bool | None


def outcome_on(name: str) -> Outcome:
    """Run the tests on one Python."""
    try:
        asked = subprocess.run([name, "-c", ASK], capture_output=True, text=True, timeout=ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Outcome(f"does not run: {error}", None)
    version = asked.stdout.strip()
    if asked.returncode:
        return Outcome(f"{version} is too old" if version else "does not run", None)
    # These win over the variables of a make around this one.
    make = ["make", "--no-print-directory", f"PYTHON={name}", f"VENV=build/pythons/{version}", "unit"]
    try:
        is_good = subprocess.run(make, cwd=ROOT, timeout=TESTS_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return Outcome(f"{version} was given up after {TESTS_S} s", False)
    return Outcome(f"{version} {'passed' if is_good else 'failed'}", is_good)


def main() -> int:
    """Run the tests on every Python, then sum up."""
    named = os.environ.get("PYTHONS", "").split()
    outcomes = {name: outcome_on(name) for name in named or ON_PATH if named or shutil.which(name)}
    for name, outcome in outcomes.items():
        print(f"{name}: {outcome.words}")
    good = [outcome.is_good for outcome in outcomes.values()]
    if not any(good):
        print("The tests passed on no Python. PYTHONS names those to use.")
    return int(not any(good) or False in good or (bool(named) and None in good))


if __name__ == "__main__":
    raise SystemExit(main())
