"""The process in which `store_index.py` measures one layout, so that memory and threads belong to this layout alone.

Its plan and its results are JSON; at the end it kills itself with -9, so that another process can open its files. Making the
jobs is not counted: their ids and keys follow from their seqs, as the store would read them.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from index_layouts import LAYOUTS, Entry, entry_of

FRAME: Final = 1_000
MEAN_US: Final = 3_600_000_000  # The mean wait of jobs; waits have no memory, so every moment is alike.
WARM: Final = 20  # Batches that are not counted.
STRANGERS: Final = FRAME // 100  # The most names of a batch whose hash may match another name: callers also compare the record.
NO_PACKAGE: Final = 3


class Watch:
    """The wall and processor time of the layout, including its own threads."""

    def __init__(self) -> None:
        self.wall_s = 0.0
        self._cpu_s, self._own_s, self._laid_s = time.process_time(), time.thread_time(), 0.0

    def __call__(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the layout, and count its time."""
        began, own = time.perf_counter(), time.thread_time()
        result = call(*args)
        self.wall_s += time.perf_counter() - began
        self._laid_s += time.thread_time() - own
        return result

    @property
    def cpu_s(self) -> float:
        """Return the processor time of the process, without this thread's work beside the layout."""
        return (time.process_time() - self._cpu_s) - (time.thread_time() - self._own_s) + self._laid_s


class Steady:
    """A layout with a constant number of waiting jobs: as many are enqueued as fall due."""

    def __init__(self, layout: Any, waiting: int) -> None:
        self._layout, self._waiting = layout, waiting
        self.last_seq = self.now_us = 0

    def fill(self, watch: Watch) -> None:
        """Insert jobs until the wanted number waits."""
        while self.last_seq < self._waiting:
            self._insert(watch)

    def turn(self, watch: Watch) -> int:
        """Run a batch: look up and insert unknown jobs, and remove those that fell due meanwhile."""
        self._insert(watch)
        self.now_us += MEAN_US * FRAME // self._waiting
        taken = watch(self._layout.take, self.now_us)
        if taken:
            watch(self._layout.remove, taken, self._made([entry_of(seq, due_us) for due_us, seq, _ in taken]))
        return len(taken)

    def _insert(self, watch: Watch) -> None:
        seqs = range(self.last_seq + 1, self.last_seq + FRAME + 1)
        jobs = self._made([entry_of(seq, self.now_us + round(random.expovariate(1 / MEAN_US))) for seq in seqs])
        if watch(self._layout.look_up, jobs) > STRANGERS:
            raise SystemExit("a job was there before it was inserted")
        watch(self._layout.insert, jobs)
        self.last_seq = seqs[-1]

    def _made(self, entries: Sequence[Entry]) -> Any:
        return self._layout.made(entries)


def measure(layout: str, folder: str, waiting: int, batches: int) -> dict[str, Any]:
    """Fill the layout, then run the batches; report the next due, which the process that opens it again must find."""
    before = _resident()
    laid = LAYOUTS[layout](Path(folder))
    steady, filled = Steady(laid, waiting), Watch()
    steady.fill(filled)
    for _ in range(WARM):
        steady.turn(Watch())
    watch, took, jobs = Watch(), [], 0
    most = before
    for _ in range(batches):
        began = watch.wall_s
        jobs += steady.turn(watch)
        took.append(watch.wall_s - began)
        most = {name: max(size, most[name]) for name, size in _resident().items()}
    resident = {name: size - before[name] for name, size in most.items()}
    if not 0.9 < jobs / (batches * FRAME) < 1.1:
        raise SystemExit(f"{jobs:,} jobs fell due in {batches} batches of {FRAME:,}")
    due = steady.now_us + MEAN_US * FRAME // waiting
    return {
        "fill_s": filled.wall_s, "wall_s": watch.wall_s, "cpu_s": watch.cpu_s, "worst_s": max(took), "resident": resident,
        "left": laid.left(), "due_us": due, "next": [seq for _, seq, _ in laid.take(due)],
    }  # fmt: skip


def reopen(layout: str, folder: str, left: dict[str, int], due_us: int) -> dict[str, Any]:
    """Open the files that a kill has left, until the first due jobs are known and found by their names."""
    began, used = time.perf_counter(), time.process_time()
    laid = LAYOUTS[layout](Path(folder), **left)
    taken = laid.take(due_us)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - used
    found = laid.look_up(laid.made([entry_of(seq, due) for due, seq, _ in taken]))
    return {"open_s": seconds, "open_cpu_s": cpu_s, "next": [seq for _, seq, _ in taken], "found": found}


def _resident() -> dict[str, int]:
    """Return the resident bytes of this process: its own, and those of mapped files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {name: int(fields[field].split()[0]) << 10 for name, field in (("anonymous", "RssAnon"), ("files", "RssFile"))}


def main() -> None:
    """Carry out the plan in the first argument."""
    plan = json.loads(sys.argv[1])
    work: Callable[..., dict[str, Any]] = measure if plan.pop("do") == "measure" else reopen
    try:
        importlib.import_module(LAYOUTS[plan["layout"]].package)  # Imported now, so that the import is not measured.
    except ImportError:
        raise SystemExit(NO_PACKAGE) from None
    print(json.dumps(work(**plan)), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
