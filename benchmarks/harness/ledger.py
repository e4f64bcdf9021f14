"""The proof: the workers themselves write down what every job of a load did."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from harness.words import say


class Broken(Exception):
    """A promise was not kept during a load: the figures of that load are worthless."""


class Ledger:
    """A file with a line for each job, mapped by workers too: how often it ran, when it last began, when it was due."""

    def __init__(self, path: Path, jobs: int) -> None:
        path.touch()
        os.truncate(path, 24 * max(jobs, 1))  # Unwritten lines take no room.
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._lines = memoryview(self._map).cast("q")

    @property
    def lines(self) -> int:
        """The number of jobs for which the ledger has room."""
        return len(self._lines) // 3

    def started_us(self, line: int) -> int:
        """Return the start of the job on the wall clock; 0 if it has not started."""
        return self._lines[3 * line + 1]

    def late_us(self, line: int) -> int:
        """Return the time from the job's due to its start."""
        return self._lines[3 * line + 1] - self._lines[3 * line + 2]

    def check(self, lines: Iterable[int]) -> None:
        """Raise `Broken` unless every one of these jobs ran once, and not before its due."""
        lines = list(lines)
        lost = sum(self._lines[3 * line] == 0 for line in lines)
        doubled = sum(self._lines[3 * line] > 1 for line in lines)
        early = sum(self.late_us(line) < 0 for line in lines)
        if lost or doubled or early:
            raise Broken(f"of {len(lines):,} jobs {lost} were lost, {doubled} ran more than once, {early} began early")
        say(f"{len(lines):,} jobs: each ran once, none lost, none early")

    def count_ran(self, lines: range) -> int:
        """Return the number of these jobs that ran; raise `Broken` if one ran twice or before its due. Some may still wait."""
        runs = self._lines[3 * lines.start : 3 * lines.stop : 3]
        ran = [line for line, times in zip(lines, runs, strict=True) if times]
        doubled = sum(self._lines[3 * line] > 1 for line in ran)
        early = sum(self.late_us(line) < 0 for line in ran)
        if doubled or early:
            raise Broken(f"of {len(ran):,} jobs {doubled} ran more than once, {early} began early")
        return len(ran)

    def close(self) -> None:
        """Close the file."""
        self._lines.release()
        self._map.close()
