"""Every test, in two halves beside each other: what waits most of the time, and what computes. The exit code is the worse one.

The first half is shown as it goes, the other when both are done.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
WAITING = ("tests/system", "tests/docs")
FOLDERS = {f"tests/{each.name}" for each in HERE.iterdir() if each.is_dir() and not each.name.startswith(("_", "."))}
COMPUTING = (*sorted(FOLDERS - set(WAITING)), "plugins", "example_modules_pkg")
END_S = int(os.environ.get("GIVALIA_END_S", "1200"))


def main() -> int:
    """Run both."""
    pytest = [sys.executable, "-m", "pytest"]
    with tempfile.TemporaryFile() as said:
        computing = subprocess.Popen([*pytest, *COMPUTING], cwd=HERE.parent, stdout=said, stderr=subprocess.STDOUT)
        try:
            waiting = subprocess.run([*pytest, *WAITING], cwd=HERE.parent, timeout=END_S, check=False).returncode
            computed = computing.wait(END_S)
        finally:
            computing.kill()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return max(abs(waiting), abs(computed))  # Negative: ended by a signal.


if __name__ == "__main__":
    raise SystemExit(main())
