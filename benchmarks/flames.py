"""Flame graphs of server, worker and client during the load of `end_to_end.py`.

py-spy samples the three processes some hundred times a second while the load runs, once for the pictures and once for the
sums. It writes three SVGs, and a text that names for each process the functions with most samples. Each sample stops the
process briefly, so the rate is lower than that of the benchmark. If the system lets only parents trace a process, run this as
root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import end_to_end
import harness
from harness import Figure, Option

TITLE = "Flames"
ROOT = Path(__file__).resolve().parent.parent
OPTIONS = (
    Option("jobs", 100_000, "jobs of the load, which is laid twice"),
    Option("frame", 1_000, "jobs in one frame"),
    Option("in_flight", 4, "frames on their way at once"),
    Option("rate", 200, "looks a second"),
    Option("top", 25, "functions of each process to name"),
    Option("spy", str(ROOT / "build" / "bench-venv" / "bin" / "py-spy"), "the program of py-spy"),
    Option("out", str(ROOT / "build"), "the folder to write to"),
)
FORMATS = {"flamegraph": "svg", "raw": "txt"}


def measure(
    jobs: int, frame: int, in_flight: int, rate: int, top: int, spy: str, out: str, folder: str | None = None
) -> list[Figure]:
    """Run the load once for each format; return the rates and the numbers of samples."""
    Path(out).mkdir(parents=True, exist_ok=True)
    figures = []
    with harness.Rig(2 * jobs, folder) as rig, rig.client() as client:
        worker = rig.start_worker(client)
        pids = {"server": rig.server.pid, "worker": worker.pid, "client": os.getpid()}
        for number, (form, suffix) in enumerate(FORMATS.items()):
            files = {name: Path(out) / f"flame-{name}.{suffix}" for name in pids}
            with contextlib.ExitStack() as looking:
                for name, pid in pids.items():
                    looking.enter_context(_looked_at(spy, pid, form, rate, files[name], with_children=name == "worker"))
                ran = end_to_end.run(rig, client, worker, range(number * jobs, (number + 1) * jobs), frame, in_flight)
            figures.append(Figure(f"end to end, looked at for the {form}", ran.done, "jobs/s"))
        rig.ledger.check(range(2 * jobs))
    sums = {name: _own_samples(path) for name, path in files.items()}
    summary = Path(out) / "flames.txt"
    summary.write_text("\n".join(_shown(name, samples, top) for name, samples in sums.items()), encoding="utf-8")
    harness.say(f"see {summary} and the pictures beside it")
    return [*figures, *(Figure(f"samples of the {name}", samples.total(), "") for name, samples in sums.items())]


@contextlib.contextmanager
def _looked_at(spy: str, pid: int, form: str, rate: int, file: Path, *, with_children: bool) -> Iterator[None]:
    """Sample a process, with its children if asked to, until the end of the `with`, and write the file."""
    command = [spy, "record", "--pid", str(pid), "--format", form, "--rate", str(rate), "--output", str(file)]
    # A worker runs jobs in its child processes; the client's children are the other two programs.
    command += ["--subprocesses"] if with_children else []
    looker = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)  # py-spy has read the symbols by then.
        if looker.poll() is not None:
            raise harness.Broken(f"py-spy does not look: {looker.communicate()[1].strip()[-500:]}")
        yield
    finally:
        looker.send_signal(signal.SIGINT)
        looker.communicate(timeout=60)


def _own_samples(raw: Path) -> Counter[str]:
    """Return, for each function, the number of samples in which it was the innermost."""
    samples: Counter[str] = Counter()
    for line in raw.read_text(encoding="utf-8").splitlines():
        stack, _, count = line.rpartition(" ")
        innermost = stack.rpartition(";")[2]
        if not innermost.startswith("process "):  # The line of a child process that runs no Python at the moment.
            samples[_function(innermost)] += int(count)
    return samples


def _function(frame: str) -> str:
    """Return `name (file:line)` without the line."""
    name, _, place = frame.rpartition(" (")
    return f"{name} ({place.rpartition(':')[0]})" if ":" in place else frame


def _shown(process: str, samples: Counter[str], top: int) -> str:
    rows = [f"  {100 * count / samples.total():5.1f} %  {function}" for function, count in samples.most_common(top)]
    return "\n".join([f"{process}: {samples.total():,} samples, by the function they were taken in", *rows, ""])


if __name__ == "__main__":
    raise SystemExit(harness.main(sys.modules[__name__]))
