"""The WorkModules of the benchmarks: each run signs the ledger, which proves that it ran, and does nothing else.

The harness copies this file beside the metadata of a distribution and puts both on a worker's path; nothing is installed.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from givalia_core import WorkModule

with Path(os.environ["BENCH_LEDGER"]).open("r+b") as _file:
    _LEDGER = memoryview(mmap.mmap(_file.fileno(), 0)).cast("q")


class Noop(WorkModule):
    """A job that notes its run, its start and its due in the line of the ledger that its params name."""

    def process(self) -> int:
        started_us = time.time_ns() // 1_000
        line: int = self.params["line"]
        _LEDGER[3 * line] += 1
        _LEDGER[3 * line + 1] = started_us
        _LEDGER[3 * line + 2] = round(self.job.due.timestamp() * 1_000_000)
        return line


class Alone(Noop):
    """The same job in its own process; `executors.py` announces this module, the harness does not."""

    isolation = "process"
