"""Runs every test, in concurrent parts: most tests wait most of the time. The exit code is the worst of all.

The output of the first part is shown live, that of the others at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
FOLDERS = sorted(f"tests/{each.name}" for each in HERE.iterdir() if each.is_dir() and not each.name.startswith(("_", ".")))
APART = {"tests/system", "tests/docs", "tests/postgres"}


def but(*, early: bool) -> list[str]:
    """Leave one half of the system's tests out. To name the other would run what `conftest.py` leaves out."""
    files = sorted((HERE / "system").glob("test_*.py"))
    return [f"--ignore={each}" for each in files if (each.name < "test_s") is early]


PARTS = (
    # Each takes some seven minutes by itself.
    ["tests/system", *but(early=True)],
    ["tests/docs", "tests/system", *but(early=False)],
    ["tests/postgres"],
    [*(each for each in FOLDERS if each not in APART), "plugins", "example_modules_pkg"],
)
END_S = int(os.environ.get("GIVALIA_END_S", "1200"))


def main() -> int:
    """Run all of them."""
    end_s = time.monotonic() + END_S
    running: list[subprocess.Popen[bytes]] = []
    with ExitStack() as files:
        said = [files.enter_context(tempfile.TemporaryFile()) for _ in PARTS[1:]]
        try:
            for part, file in zip(PARTS, [None, *said], strict=True):
                command = [sys.executable, "-m", "pytest", *part]
                errors = None if file is None else subprocess.STDOUT
                running.append(subprocess.Popen(command, cwd=HERE.parent, stdout=file, stderr=errors))
            codes = [each.wait(max(0.0, end_s - time.monotonic())) for each in running]
        finally:
            for each in running:
                each.kill()
            for file in said:
                file.seek(0)
                sys.stdout.buffer.write(file.read())
            sys.stdout.flush()
    return max(map(abs, codes))  # Negative: ended by a signal.


if __name__ == "__main__":
    raise SystemExit(main())
