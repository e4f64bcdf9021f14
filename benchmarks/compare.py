"""Compares two states of Givalia in one run: the cost of a job in each, and whether the later one is slower.

The old state, `--base`, is checked out of the repository into build/trees, with its own environment; the new state is the
installed one. This folder's code measures both. Each restart has a server, a worker and a client of each state; blocks of jobs
are then measured in turns, so that other load of the machine affects both. The median over the blocks of one restart is one
value of each state, and their ratio is one pair. The median of the pairs' ratios is shown with its interval of 95 %, which is
the range of the medians of samples drawn again from the pairs. A figure is `no worse` if the whole interval is at most 3 %
worse, `worse` if all of it is more than that, and else `undecided`: measure more restarts (with fewer than seven nothing is
decided), or use a machine with less other load.
"""

from __future__ import annotations

import io
import json
import random
import statistics
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final, NamedTuple

import harness
from blocks import KINDS

ROOT: Final = Path(__file__).resolve().parent.parent
TREES: Final = ROOT / "build" / "trees"
SLACK: Final = 0.03
FEW: Final = 7  # The fewest pairs with a meaningful interval.
DRAWS: Final = 4_000
OPTIONS = (
    harness.Option("base", "", "the commit to compare with"),
    harness.Option("kinds", ",".join(KINDS), "what to measure, with commas between"),
    harness.Option("restarts", 9, "pairs: how often servers and workers are restarted"),
    harness.Option("blocks", 6, "blocks of jobs of each state in a restart"),
)


class Compared(NamedTuple):
    """One figure of both states: the medians over the restarts, the ratio of now to before, and its interval of 95 %."""

    name: str
    before: float
    now: float
    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """Return the verdict on the new state, as the docstring of this file defines it."""
        if self.pairs < FEW:
            return "undecided"
        # More jobs a second are better; of everything else, less is better.
        best, worst = (1 / self.high, 1 / self.low) if self.name.endswith("/s") else (self.low, self.high)
        if worst <= 1 + SLACK:
            return "no worse"
        return "worse" if best > 1 + SLACK else "undecided"


def laid_out(commit: str) -> Path:
    """Return the Python of an environment with that commit's packages; create the environment if there is none."""
    sha = subprocess.run(
        ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    tree = TREES / sha.stdout.strip()
    python = tree / ".venv" / "bin" / "python"
    if not (tree / ".installed").exists():
        harness.say(f"laying {commit} out in {tree}")
        archive = subprocess.run(["git", "archive", tree.name], cwd=ROOT, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(tree, filter="data")
        # As its own Makefile would, in any version: the locked dependencies, then its packages.
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        packages = [".", *sorted(f"./{each.parent.relative_to(tree)}" for each in tree.glob("plugins/*/pyproject.toml"))]
        editable = [word for package in packages for word in ("-e", package)]
        subprocess.run([sys.executable, "-m", "venv", "--clear", tree / ".venv"], check=True)
        subprocess.run([*pip, "--require-hashes", "-r", "requirements.lock"], cwd=tree, check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", *editable], cwd=tree, check=True)
        (tree / ".installed").touch()
    return python


class State:
    """A server, a worker and a client of one state, in processes of their own until `end`."""

    def __init__(self, python: Path, kind: str, blocks: int, folder: str | None) -> None:
        command = [str(python), str(Path(__file__).with_name("blocks.py")), kind, str(blocks)]
        self._child = subprocess.Popen(
            command + (["--folder", folder] if folder else []),
            cwd=python.parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._child.stdin
        assert self._child.stdout
        self._asks, self._says = self._child.stdin, self._child.stdout
        self._line()

    def block(self) -> dict[str, float]:
        """Measure one block of jobs."""
        self._asks.write("\n")
        self._asks.flush()
        return dict(json.loads(self._line()))

    def end(self) -> None:
        """Let the process check its ledger and end.

        Raises:
            Broken: A job was lost, ran twice or began early.
        """
        self._asks.close()
        if self._child.wait(60):
            raise harness.Broken(f"the client ended with {self._child.returncode}")

    def kill(self) -> None:
        """End the process at once, if it still runs."""
        if self._child.poll() is None:
            self._child.terminate()  # The child then ends its server and worker.
            self._child.wait(60)

    def _line(self) -> str:
        line = self._says.readline()
        if not line:
            raise harness.Broken(f"the client ended with {self._child.wait(60)}")
        return line


def restart(pythons: dict[str, Path], kind: str, blocks: int, folder: str | None) -> dict[str, dict[str, float]]:
    """Return the figures of each state over `blocks` blocks in turns, after one uncounted block each."""
    states: dict[str, State] = {}
    try:
        for name, python in pythons.items():
            states[name] = State(python, kind, blocks + 1, folder)
        for state in states.values():
            state.block()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in states}
        for number in range(blocks):
            for name in states if number % 2 == 0 else reversed(states):
                found[name].append(states[name].block())
        for state in states.values():
            state.end()
    finally:
        for state in states.values():
            state.kill()
    return {name: {each: statistics.median(block[each] for block in some) for each in some[0]} for name, some in found.items()}


def compared(name: str, before: list[float], now: list[float]) -> Compared:
    """Return the medians of both states, the median of the ratios of the pairs, and its interval."""
    ratios = [after / ahead for ahead, after in zip(before, now, strict=True)]
    draw = random.Random(0)  # The same pairs have the same interval.
    drawn = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    low, high = drawn[DRAWS // 40], drawn[-1 - DRAWS // 40]
    return Compared(name, statistics.median(before), statistics.median(now), statistics.median(ratios), low, high, len(ratios))


def measure(pythons: dict[str, Path], kind: str, restarts: int, blocks: int, folder: str | None) -> list[Compared]:
    """Measure one kind of load on both states."""
    pairs: list[dict[str, dict[str, float]]] = []
    for number in range(restarts):
        ordered = dict(pythons if number % 2 == 0 else reversed(pythons.items()))
        pairs.append(restart(ordered, kind, blocks, folder))
        harness.say(f"{kind}: pair {number + 1} of {restarts}")
    names = pairs[0]["now"]
    return [compared(name, *([pair[state][name] for pair in pairs] for state in ("before", "now"))) for name in names]


def main() -> int:
    """Compare, and print a table for each kind; return 1 if a figure is worse, 2 if a promise was not kept."""
    parser = harness.arguments(__doc__, OPTIONS)
    given = parser.parse_args()
    kinds = given.kinds.split(",")
    if not given.base or not set(kinds) <= set(KINDS):
        parser.error(f"--base names a commit, and --kinds some of {', '.join(KINDS)}")
    pythons = {"before": laid_out(given.base), "now": Path(sys.executable).absolute()}
    found: dict[str, list[Compared]] = {}
    try:
        for kind in kinds:
            found[kind] = measure(pythons, kind, given.restarts, given.blocks, given.folder)
    except harness.Broken as broken:
        harness.say(f"BROKEN: {broken}")
        return 2
    if given.json:
        data = {kind: [{**each._asdict(), "verdict": each.verdict} for each in some] for kind, some in found.items()}
        text = json.dumps(data, indent=2) + "\n"
        _ = sys.stdout.write(text) if given.json == "-" else Path(given.json).write_text(text, encoding="utf-8")
    for kind, some in found.items() if given.json != "-" else ():
        rows = [("", given.base[:12], "now", "ratio", "interval", "")]
        rows += [
            (each.name, harness.shown(each.before), harness.shown(each.now), f"{each.ratio:.3f}",
             f"{each.low:.3f} to {each.high:.3f}", each.verdict) for each in some
        ]  # fmt: skip
        print(f"{kind}, {given.restarts} pairs of {given.blocks} blocks\n{harness.aligned(rows, right={1, 2, 3})}\n")
    return int(any(each.verdict == "worse" for some in found.values() for each in some))


if __name__ == "__main__":
    raise SystemExit(main())
